/* tests/unit/test_packed.c - packed files and their manifest: nothing in them is believed. */
#include "model/packed.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "tests/lib/test.h"

enum { LAYERS = 2, EXPERTS = 3, KEY = 77 };
static const struct packed_shape plain = {.n_layers = LAYERS, .n_experts = EXPERTS};
static const struct packed_shape like_m3 = {
    .n_layers = LAYERS, .n_experts = EXPERTS, .n_dense_layers = 1, .has_shared = true};

/* Two layer files and one for the head, all blobs small. */
static void make_manifest(struct packed_manifest *m, const struct packed_shape *shape)
{
    static const size_t sizes[PACKED_PARTS][PACKED_MAX_MATRICES] = {
        {64, 128, 192}, {64, 64, 64, 128}, {4096}, {64, 64, 128}, {128, 192, 64}};
    packed_manifest_init(m, shape);
    m->fingerprint = 0x0123456789abcdef;
    for (int part = 0; part < PACKED_PARTS; part++) {
        struct packed_part_info *info = &m->parts[part];
        if (!packed_shape_has(shape, (enum packed_part)part))
            continue;
        info->format = part == PACKED_HEAD ? FORMAT_BF16 : FORMAT_Q8;
        for (int i = 0; i < info->n_matrices; i++) {
            info->matrix_bytes[i] = sizes[part][i];
            info->blob_bytes += sizes[part][i];
        }
    }
    m->n_files = LAYERS + 1;
    m->files = mem_array((size_t)m->n_files, sizeof *m->files);
    for (int file = 0; file < m->n_files; file++) {
        int first, n;
        packed_layer_blobs(m, file, &first, &n);
        for (int i = 0; i < n; i++)
            m->blobs[first + i] = (struct packed_blob_info){
                .file = file,
                .offset = (size_t)i * PACKED_ALIGN_BYTES,
                .bytes = m->parts[packed_place_of(m, first + i).part].blob_bytes,
                .hash = 0xf000000000000000 + (uint64_t)(first + i)};
        m->files[file].name = mem_format("%c.packed", 'a' + file);
        m->files[file].bytes = packed_file_bytes((size_t)n * PACKED_ALIGN_BYTES, n);
    }
}

static struct buf manifest_text(const struct packed_shape *shape)
{
    struct packed_manifest m;
    struct buf text = {0};
    make_manifest(&m, shape);
    packed_manifest_text(&m, &text);
    packed_manifest_fini(&m);
    return text;
}

TEST(packed_manifest_comes_back_as_it_was_written)
{
    struct packed_manifest m, back;
    struct buf text = manifest_text(&plain);
    char name[PACKED_BLOB_TEXT_BYTES];
    make_manifest(&m, &plain);
    CHECK_INT(packed_manifest_parse(text.data, text.len, &plain, &back, NULL), 0);
    CHECK(back.fingerprint == m.fingerprint);
    CHECK_BYTES(back.parts, m.parts, sizeof m.parts);
    CHECK_INT(back.n_files, m.n_files);
    CHECK_INT(back.n_blobs, LAYERS * (EXPERTS + 1) + 1);
    for (int i = 0; i < m.n_files; i++) {
        CHECK_STR(back.files[i].name, m.files[i].name);
        CHECK_INT(back.files[i].bytes, m.files[i].bytes);
    }
    for (int i = 0; i < m.n_blobs; i++) {
        CHECK_INT(back.blobs[i].file, m.blobs[i].file);
        CHECK_INT(back.blobs[i].offset, m.blobs[i].offset);
        CHECK(back.blobs[i].hash == m.blobs[i].hash);
    }
    CHECK_STR(packed_blob_text(&m, packed_blob_index(&m, PACKED_EXPERTS, 1, 2), name),
              "layer 1: expert 2");
    CHECK_STR(packed_blob_text(&m, packed_blob_index(&m, PACKED_ATTENTION, 1, 0), name),
              "layer 1: attention");
    CHECK_STR(packed_blob_text(&m, packed_blob_index(&m, PACKED_HEAD, 0, 0), name), "head");
    packed_manifest_fini(&m);
    packed_manifest_fini(&back);
    buf_fini(&text);
}

/* A dense layer, then one with a shared expert: every blob has one place, whatever is asked. */
TEST(packed_manifest_of_m3_knows_dense_layers_and_the_shared_expert)
{
    static const char *const names[] = {
        "layer 0: attention", "layer 0: dense MLP", "layer 1: attention", "layer 1: shared expert",
        "layer 1: expert 0",  "layer 1: expert 1",  "layer 1: expert 2",  "head"};
    struct packed_manifest m;
    struct buf text = manifest_text(&like_m3), again = {0};
    char name[PACKED_BLOB_TEXT_BYTES];
    CHECK_INT(packed_manifest_parse(text.data, text.len, &like_m3, &m, NULL), 0);
    CHECK_INT(m.n_blobs, 8);
    for (int i = 0; i < m.n_blobs; i++) {
        struct packed_place p = packed_place_of(&m, i);
        CHECK_STR(packed_blob_text(&m, i, name), names[i]);
        CHECK_INT(packed_blob_index(&m, p.part, p.layer, p.expert), i);
        CHECK(m.blobs[i].hash == 0xf000000000000000 + (uint64_t)i);
    }
    packed_manifest_text(&m, &again);
    CHECK(str_equal(buf_str(&text), buf_str(&again)));
    packed_manifest_fini(&m);
    buf_fini(&again);
    buf_fini(&text);
}

/* The manifest with the first `from` replaced, read again. */
static int parse_changed(const struct packed_shape *shape, const char *from, const char *to,
                         struct err *e)
{
    struct buf text = manifest_text(shape), changed = {0};
    struct packed_manifest m;
    *e = (struct err){0};
    size_t at = str_find(buf_str(&text), str_of(from));
    CHECK(at != SIZE_MAX);
    buf_append(&changed, text.data, at);
    buf_puts(&changed, to);
    buf_puts(&changed, text.data + at + strlen(from));
    int rc = packed_manifest_parse(changed.data, changed.len, shape, &m, e);
    packed_manifest_fini(&m);
    buf_fini(&text);
    buf_fini(&changed);
    return rc;
}

TEST(packed_manifest_that_lies_is_refused)
{
    static const struct {
        const char *from, *to, *says;
        int code;
    } rows[] = {
        {"\"polymath_packed\": 1", "\"polymath_packed\": 2", "version 2", E_PRECONDITION},
        {"\"polymath_packed\": 1", "\"polymath_packed\": \"1\"", "version number", E_CORRUPT},
        {"\"layers\": 2", "\"layers\": 3", "another model", E_PRECONDITION},
        {"\"experts\": 3", "\"experts\": -3", "experts: expected a whole number", E_CORRUPT},
        {"0123456789abcdef", "0123456789abcde", "fingerprint: expected 16", E_CORRUPT},
        {"0123456789abcdef", "0123456789abcdeX", "fingerprint: expected 16", E_CORRUPT},
        {"\"format\": \"q8\"", "\"format\": \"q9\"", "parts.experts.format", E_CORRUPT},
        {"\"format\": \"q8\"", "\"format\": \"native\"", "parts.experts.format", E_CORRUPT},
        {"[64, 128, 192]", "[64, 128]", "parts.experts.matrix_bytes: expected 3", E_CORRUPT},
        {"[64, 128, 192]", "[64, 128, 191]", "matrix_bytes[2]", E_CORRUPT},
        {"[64, 128, 192]", "[64, 0, 320]", "matrix_bytes[1]", E_CORRUPT},
        {"[64, 128, 192]", "[9223372036854775744, 9223372036854775744, 256]", "matrix_bytes[2]",
         E_CORRUPT},
        {"[64, 128, 192]", "[64, 128, 256]", "its matrices have 448", E_CORRUPT},
        {"\"a.packed\"", "\"../a.packed\"", "plain name", E_CORRUPT},
        {"\"a.packed\"", "\".packed\"", "plain name", E_CORRUPT},
        {"\"a.packed\"", "\"b.packed\"", "b.packed is listed twice", E_CORRUPT},
        {"\"offset\": 4096", "\"offset\": 4097", "no multiple", E_CORRUPT},
        {"\"offset\": 4096", "\"offset\": 9223372036854771712", "beyond the file", E_CORRUPT},
        {"\"offset\": 4096", "\"offset\": 1048576", "beyond the file", E_CORRUPT},
        {"\"offset\": 4096", "\"offset\": -4096", "offset: expected", E_CORRUPT},
        {"\"offset\": 4096", "\"offset\": 8192", "overlaps", E_CORRUPT},
        {"\"offset\": 4096", "\"offset\": 0", "overlaps", E_CORRUPT},
        {"\"bytes\": 384", "\"bytes\": 320", "its matrices have 384", E_CORRUPT},
        {"\"hash\": \"f", "\"hash\": \"g", "hash: expected 16", E_CORRUPT},
        {"\"layer\": 0, \"expert\": 1", "\"layer\": 0, \"expert\": 0", "listed twice", E_CORRUPT},
        {"\"layer\": 0, \"expert\": 1", "\"layer\": 2, \"expert\": 1", "layer: expected",
         E_CORRUPT},
        {"\"layer\": 0, \"expert\": 1", "\"layer\": 0, \"expert\": 3", "expert: expected",
         E_CORRUPT},
        {"\"part\": \"head\"", "\"part\": \"tail\"", "part: expected", E_CORRUPT},
        {"\"files\"", "\"filez\"", "files: expected an array", E_CORRUPT},
        {"\"blobs\"", "\"blobz\"", "blobs: expected an array", E_CORRUPT},
        {"{\"poly", "[\"poly", "line", E_CORRUPT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e;
        int rc = parse_changed(&plain, rows[i].from, rows[i].to, &e);
        test_note("%s: %s", rows[i].to, e.text);
        CHECK_INT(rc, rows[i].code);
        CHECK_HAS(e.text, rows[i].says);
    }
}

TEST(packed_manifest_of_m3_that_lies_is_refused)
{
    static const struct {
        const char *from, *to, *says;
        int code;
    } rows[] = {
        {"\"dense_layers\": 1", "\"dense_layers\": 2", "another model", E_PRECONDITION},
        {"\"dense_layers\": 1, ", "", "dense_layers is 0", E_PRECONDITION},
        {"\"dense_layers\": 1", "\"dense_layers\": \"1\"", "dense_layers: expected", E_CORRUPT},
        {"\"shared\": true", "\"shared\": false", "shared false", E_PRECONDITION},
        {"\"dense\": {\"format\": \"q8\"", "\"dense\": {\"format\": \"q4\"",
         "parts.dense.format: expected q8", E_CORRUPT},
        {"\"shared\": {", "\"sharing\": {", "parts.shared.format", E_CORRUPT},
        {"\"part\": \"dense\", \"layer\": 0", "\"part\": \"dense\", \"layer\": 1",
         "layer 1 of this model has no dense", E_CORRUPT},
        {"\"part\": \"shared\", \"layer\": 1", "\"part\": \"shared\", \"layer\": 0",
         "layer 0 of this model has no shared", E_CORRUPT},
        {"\"part\": \"experts\", \"layer\": 1", "\"part\": \"experts\", \"layer\": 0",
         "layer 0 of this model has no experts", E_CORRUPT},
        {"\"part\": \"shared\"", "\"part\": \"tail\"", "head, dense, shared", E_CORRUPT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err e;
        int rc = parse_changed(&like_m3, rows[i].from, rows[i].to, &e);
        test_note("%s: %s", rows[i].to, e.text);
        CHECK_INT(rc, rows[i].code);
        CHECK_HAS(e.text, rows[i].says);
    }
}

TEST(packed_manifest_must_name_every_blob)
{
    struct packed_manifest m;
    struct err e = {0};
    struct buf text = manifest_text(&plain), headless = {0};
    size_t at = str_find(buf_str(&text), STR(",\n  {\"name\": \"c.packed\""));
    CHECK(at != SIZE_MAX);
    buf_append(&headless, text.data, at);
    buf_puts(&headless, "]}");
    CHECK_INT(packed_manifest_parse(headless.data, headless.len, &plain, &m, &e), E_CORRUPT);
    CHECK_HAS(e.text, "head is not listed");
    buf_fini(&text);
    buf_fini(&headless);
}

/* ---- files ---- */

static uint8_t data[3 * PACKED_ALIGN_BYTES];

/* A file of two blobs, at 0 and 4096. */
static int write_file(const char *path, struct err *e)
{
    struct packed_writer *w;
    uint64_t hashes[2];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 37 + i / 256);
    int rc = packed_writer_open(path, KEY, PACKED_ALIGN_BYTES + 100, 2, &w, e);
    if (rc < 0)
        return rc;
    CHECK(access(path, F_OK) != 0); /* not under its name before it is whole */
    rc = packed_writer_put(w, PACKED_ALIGN_BYTES, data + 7, 100, e);
    if (rc == 0)
        rc = packed_writer_put(w, 0, data, 64, e);
    if (rc == 0)
        rc = packed_writer_hash(w, 0, 64, &hashes[0], e);
    if (rc == 0)
        rc = packed_writer_hash(w, PACKED_ALIGN_BYTES, 100, &hashes[1], e);
    if (rc < 0) {
        packed_writer_abandon(&w);
        return rc;
    }
    CHECK(hashes[0] == packed_hash(data, 64));
    CHECK(hashes[1] == packed_hash(data + 7, 100));
    return packed_writer_finish(&w, hashes, e);
}

static bool is_whole(uint64_t key, size_t data_bytes, int n_blobs)
{
    uint64_t hashes[4] = {0};
    bool is = packed_file_is_whole("f.packed", key, data_bytes, n_blobs, hashes);
    if (is)
        CHECK(hashes[1] == packed_hash(data + 7, 100));
    return is;
}

TEST(packed_file_knows_whether_it_is_whole)
{
    struct err e = {0};
    size_t data_bytes = PACKED_ALIGN_BYTES + 100, bytes = packed_file_bytes(data_bytes, 2);
    CHECK(!is_whole(KEY, data_bytes, 2));
    CHECK_INT(write_file("f.packed", &e), 0);
    CHECK(access("f.packed.tmp", F_OK) != 0);
    CHECK(is_whole(KEY, data_bytes, 2));
    CHECK(!is_whole(KEY + 1, data_bytes, 2));
    CHECK(!is_whole(KEY, data_bytes, 3));
    CHECK(!is_whole(KEY, data_bytes - PACKED_ALIGN_BYTES, 2));
    CHECK_INT(truncate("f.packed", (off_t)bytes - 1), 0);
    CHECK(!is_whole(KEY, data_bytes, 2));
    CHECK_INT(truncate("f.packed", (off_t)bytes), 0); /* the last byte of the trailer is zero */
    CHECK(!is_whole(KEY, data_bytes, 2));
}

static void fill_up(void *ud)
{
    struct rlimit limit = {PACKED_ALIGN_BYTES, PACKED_ALIGN_BYTES};
    struct err e = {0};
    (void)ud;
    signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    CHECK(write_file("f.packed", &e) < 0);
    printf("%s\n", e.text);
}

TEST(packed_file_that_may_not_grow_leaves_nothing)
{
    struct test_end end = test_run_apart(fill_up, NULL);
    CHECK_INT(end.exit_status, 0);
    CHECK_HAS(end.output, "f.packed.tmp: ");
    CHECK(access("f.packed", F_OK) != 0);
    CHECK(access("f.packed.tmp", F_OK) != 0);
}

TEST(packed_file_on_a_full_disk_says_so)
{
    struct err e = {0};
    CHECK_INT(mkdir("small", 0700), 0);
    if (mount("none", "small", "tmpfs", 0, "size=8k") < 0)
        test_skip("no tmpfs of our own: %s", strerror(errno));
    int rc = write_file("small/f.packed", &e);
    bool is_left = access("small/f.packed.tmp", F_OK) == 0;
    umount("small");
    CHECK_INT(rc, E_BUSY);
    CHECK_HAS(e.text, "small/f.packed.tmp");
    CHECK_HAS(e.text, "No space");
    CHECK(!is_left);
}

/* ---- opening ---- */

/* The directory d of make_manifest(), with every blob's bytes its index. */
static void make_directory(struct packed_manifest *m)
{
    CHECK(mkdir("d", 0700) == 0 || errno == EEXIST);
    make_manifest(m, &plain);
    for (int file = 0, index = 0; file < m->n_files; file++) {
        char *path = mem_format("d/%s", m->files[file].name);
        int n = file == LAYERS ? 1 : EXPERTS + 1;
        struct packed_writer *w;
        uint64_t hashes[EXPERTS + 1];
        CHECK_INT(packed_writer_open(path, KEY, (size_t)n * PACKED_ALIGN_BYTES, n, &w, NULL), 0);
        for (int i = 0; i < n; i++, index++) {
            struct packed_blob_info *blob = &m->blobs[index];
            memset(data, index + 1, blob->bytes);
            CHECK_INT(packed_writer_put(w, blob->offset, data, blob->bytes, NULL), 0);
            blob->hash = hashes[i] = packed_hash(data, blob->bytes);
        }
        CHECK_INT(packed_writer_finish(&w, hashes, NULL), 0);
        mem_free(path);
    }
    CHECK_INT(packed_write_manifest("d", m, NULL), 0);
}

static void flip(const char *path, off_t offset)
{
    FILE *f = fopen(path, "r+b");
    CHECK(f != NULL);
    CHECK_INT(fseek(f, offset, SEEK_SET), 0);
    int c = fgetc(f);
    CHECK_INT(fseek(f, offset, SEEK_SET), 0);
    fputc(c ^ 4, f);
    CHECK_INT(fclose(f), 0);
}

TEST(packed_opens_only_the_files_that_are_asked_for)
{
    static const struct checkpoint_options all[] = {
        {0}, {.verifies = true}, {.copies = true}, {.locks = true}};
    struct packed_manifest m;
    make_directory(&m);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct packed *p;
        const void *found;
        CHECK(packed_is_here("d"));
        CHECK_INT(packed_open("d", &plain, &all[i], &p, NULL), 0);
        CHECK_INT(packed_open_files(p), 0);
        int index = packed_blob_index(&m, PACKED_EXPERTS, 1, 2);
        CHECK_INT(packed_find(p, index, &found, NULL), 0);
        CHECK_INT((uintptr_t)found % PACKED_ALIGN_BYTES, 0);
        memset(data, index + 1, m.blobs[index].bytes);
        CHECK_BYTES(found, data, m.blobs[index].bytes);
        CHECK_INT(packed_open_files(p), 1);
        /* What left the resident set is still there. */
        packed_advise(p, index, MAPPING_DONE);
        CHECK_BYTES(found, data, m.blobs[index].bytes);
        packed_advise(p, packed_blob_index(&m, PACKED_HEAD, 0, 0), MAPPING_SOON);
        CHECK_INT(packed_open_files(p), 2);
        packed_close(&p);
        CHECK(p == NULL);
    }
    packed_manifest_fini(&m);
}

TEST(packed_finds_the_bit_that_was_flipped)
{
    struct packed_manifest m;
    struct packed *p;
    struct checkpoint_options verifies = {.verifies = true}, none = {0};
    const void *found;
    struct err e = {0};
    make_directory(&m);
    flip("d/b.packed", 2 * PACKED_ALIGN_BYTES + 383);
    int bad = packed_blob_index(&m, PACKED_EXPERTS, 1, 1);
    CHECK_INT(packed_open("d", &plain, &verifies, &p, &e), 0);
    for (int i = 0; i < m.n_blobs; i++)
        CHECK_INT(packed_find(p, i, &found, &e), i == bad ? E_CORRUPT : 0);
    CHECK_HAS(e.text, "d/b.packed: layer 1: expert 1: hash is");
    CHECK_HAS(e.text, "pack the model again");
    packed_close(&p);
    CHECK_INT(packed_open("d", &plain, &none, &p, &e), 0);
    CHECK_INT(packed_find(p, bad, &found, &e), 0); /* nobody asked */
    CHECK_INT(packed_verify(p, bad, &e), E_CORRUPT);
    CHECK_INT(packed_verify(p, bad - 1, &e), 0);
    packed_close(&p);
    packed_manifest_fini(&m);
}

TEST(packed_refuses_files_that_are_short_or_missing)
{
    struct packed_manifest m;
    struct packed *p;
    struct checkpoint_options none = {0};
    struct err e = {0};
    const void *found;
    make_directory(&m);
    CHECK_INT(packed_open("d", &plain, &none, &p, &e), 0);
    CHECK_INT(truncate("d/b.packed", 8192), 0);
    /* Cut after the directory was opened: seen when the file is. */
    CHECK_INT(packed_find(p, packed_blob_index(&m, PACKED_EXPERTS, 1, 1), &found, &e), E_CORRUPT);
    CHECK_HAS(e.text, "d/b.packed: has 8192 bytes");
    packed_close(&p);
    CHECK_INT(packed_open("d", &plain, &none, &p, &e), E_CORRUPT);
    CHECK_HAS(e.text, "d/b.packed: has 8192 bytes, packed.json says");
    CHECK_INT(unlink("d/b.packed"), 0);
    CHECK_INT(packed_open("d", &plain, &none, &p, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "d/b.packed: packed.json names it");
    CHECK_INT(unlink("d/packed.json"), 0);
    CHECK(!packed_is_here("d"));
    packed_manifest_fini(&m);
}
