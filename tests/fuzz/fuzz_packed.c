/* tests/fuzz/fuzz_packed.c - any bytes as packed.json: refused with a reason, or a manifest
 * whose every blob lies inside its file and on no other. */
#include "tests/lib/fuzz.h"

#include "base/must.h"
#include "model/packed_manifest.h"

/* A blank in front, which JSON allows, asks for a model like M3: a dense layer, then one with a
 * shared expert. */
static struct packed_shape shape_of(const uint8_t *data, size_t bytes)
{
    bool is_m3 = bytes > 0 && data[0] == ' ';
    return (struct packed_shape){
        .n_layers = 1 + is_m3, .n_experts = 2, .n_dense_layers = is_m3, .has_shared = is_m3};
}

static void check_blobs(const struct packed_manifest *m)
{
    for (int i = 0; i < m->n_blobs; i++) {
        const struct packed_blob_info *a = &m->blobs[i];
        must(a->file >= 0 && a->file < m->n_files && a->bytes > 0);
        must(a->offset % PACKED_ALIGN_BYTES == 0);
        must(a->offset <= m->files[a->file].bytes);
        must(a->bytes <= m->files[a->file].bytes - a->offset);
        for (int k = 0; k < i; k++) {
            const struct packed_blob_info *b = &m->blobs[k];
            must(a->file != b->file || a->offset >= b->offset + b->bytes ||
                 b->offset >= a->offset + a->bytes);
        }
    }
}

/* What was accepted is accepted again as we write it ourselves. */
static void check_text(const struct packed_manifest *m)
{
    struct packed_manifest back;
    struct buf text = {0};
    for (int i = 1; i < m->n_blobs; i++)
        if (m->blobs[i].file < m->blobs[i - 1].file)
            return; /* a good manifest, but not in our order */
    packed_manifest_text(m, &text);
    must_zero(packed_manifest_parse(text.data, text.len, &m->shape, &back, NULL));
    must(back.fingerprint == m->fingerprint && back.n_files == m->n_files);
    packed_manifest_fini(&back);
    buf_fini(&text);
}

FUZZ(packed)
{
    struct packed_manifest m;
    struct err e = {0};
    struct packed_shape shape = shape_of(data, bytes);
    int rc = packed_manifest_parse(data, bytes, &shape, &m, &e);
    must(rc == 0 || (rc == e.code && e.text[0] != '\0' && m.n_files == 0));
    if (rc == 0) {
        check_blobs(&m);
        check_text(&m);
    }
    packed_manifest_fini(&m);
}
