/* model/packed_manifest.c - see packed_manifest.h. */
#include "model/packed_manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/json.h"

enum { MANIFEST_LIMIT_BYTES = 1 << 30, MAX_FILES = 65536, MATRIX_ALIGN_BYTES = 64 };

static const char *const part_names[PACKED_PARTS] = {
    [PACKED_EXPERTS] = "experts", [PACKED_ATTENTION] = "attention", [PACKED_HEAD] = "head",
    [PACKED_DENSE] = "dense",     [PACKED_SHARED] = "shared",
};
static const int part_matrices[PACKED_PARTS] = {
    [PACKED_EXPERTS] = 3, [PACKED_ATTENTION] = 4, [PACKED_HEAD] = 1,
    [PACKED_DENSE] = 3,   [PACKED_SHARED] = 3,
};

const char *packed_part_name(enum packed_part part)
{
    return part_names[part];
}

int packed_part_matrices(enum packed_part part)
{
    return part_matrices[part];
}

struct packed_shape packed_shape_of(const struct model_config *c)
{
    return (struct packed_shape){.n_layers = c->n_layers,
                                 .n_experts = c->n_experts,
                                 .n_dense_layers = c->n_dense_layers,
                                 .has_shared = c->shared_size > 0};
}

bool packed_shape_has(const struct packed_shape *s, enum packed_part part)
{
    return part == PACKED_DENSE ? s->n_dense_layers > 0 : part != PACKED_SHARED || s->has_shared;
}

/* ---- which blob is where ---- */

enum { DENSE_LAYER_BLOBS = 2 }; /* attention, MLP */

static int blobs_before_experts(const struct packed_shape *s)
{
    return 1 + s->has_shared;
}

/* Of the layers before `layer`. */
static int64_t blobs_before(const struct packed_shape *s, int layer)
{
    int64_t per_layer = (int64_t)s->n_experts + blobs_before_experts(s);
    if (layer <= s->n_dense_layers)
        return (int64_t)layer * DENSE_LAYER_BLOBS;
    return (int64_t)s->n_dense_layers * DENSE_LAYER_BLOBS + (layer - s->n_dense_layers) * per_layer;
}

void packed_layer_blobs(const struct packed_manifest *m, int layer, int *first, int *n)
{
    must(layer >= 0 && layer <= m->shape.n_layers);
    bool is_head = layer == m->shape.n_layers;
    *first = (int)blobs_before(&m->shape, layer);
    *n = is_head ? 1 : (int)blobs_before(&m->shape, layer + 1) - *first;
}

int packed_blob_index(const struct packed_manifest *m, enum packed_part part, int layer, int expert)
{
    const struct packed_shape *s = &m->shape;
    if (part == PACKED_HEAD)
        return m->n_blobs - 1;
    must(layer >= 0 && layer < s->n_layers && packed_shape_has(s, part));
    must(part == PACKED_ATTENTION || (layer < s->n_dense_layers) == (part == PACKED_DENSE));
    must(part != PACKED_EXPERTS || (expert >= 0 && expert < s->n_experts));
    int first = (int)blobs_before(s, layer);
    return part == PACKED_ATTENTION ? first
           : part == PACKED_EXPERTS ? first + blobs_before_experts(s) + expert
                                    : first + 1;
}

struct packed_place packed_place_of(const struct packed_manifest *m, int index)
{
    const struct packed_shape *s = &m->shape;
    struct packed_place p = {.part = PACKED_HEAD};
    int dense = s->n_dense_layers * DENSE_LAYER_BLOBS;
    int per_layer = s->n_experts + blobs_before_experts(s);
    if (index == m->n_blobs - 1)
        return p;
    bool is_dense = index < dense;
    p.layer =
        is_dense ? index / DENSE_LAYER_BLOBS : s->n_dense_layers + (index - dense) / per_layer;
    int within = is_dense ? index % DENSE_LAYER_BLOBS : (index - dense) % per_layer;
    if (within == 0) {
        p.part = PACKED_ATTENTION;
    } else if (is_dense || within < blobs_before_experts(s)) {
        p.part = is_dense ? PACKED_DENSE : PACKED_SHARED;
    } else {
        p.part = PACKED_EXPERTS;
        p.expert = within - blobs_before_experts(s);
    }
    return p;
}

const char *packed_blob_text(const struct packed_manifest *m, int index,
                             char out[PACKED_BLOB_TEXT_BYTES])
{
    struct packed_place p = packed_place_of(m, index);
    if (p.part == PACKED_HEAD)
        snprintf(out, PACKED_BLOB_TEXT_BYTES, "head");
    else if (p.part == PACKED_EXPERTS)
        snprintf(out, PACKED_BLOB_TEXT_BYTES, "layer %d: expert %d", p.layer, p.expert);
    else
        snprintf(out, PACKED_BLOB_TEXT_BYTES, "layer %d: %s%s", p.layer, part_names[p.part],
                 p.part == PACKED_ATTENTION ? ""
                 : p.part == PACKED_DENSE   ? " MLP"
                                            : " expert");
    return out;
}

/* ---- memory ---- */

void packed_manifest_init(struct packed_manifest *m, const struct packed_shape *shape)
{
    *m = (struct packed_manifest){.shape = *shape};
    int64_t n_blobs = blobs_before(shape, shape->n_layers) + 1;
    must(n_blobs <= INT32_MAX);
    m->n_blobs = (int)n_blobs;
    m->blobs = mem_array((size_t)n_blobs, sizeof *m->blobs);
    for (int i = 0; i < m->n_blobs; i++)
        m->blobs[i].file = -1;
    for (int part = 0; part < PACKED_PARTS; part++)
        if (packed_shape_has(shape, (enum packed_part)part))
            m->parts[part].n_matrices = part_matrices[part];
}

void packed_manifest_fini(struct packed_manifest *m)
{
    for (int i = 0; i < m->n_files; i++)
        mem_free(m->files[i].name);
    mem_free(m->files);
    mem_free(m->blobs);
    *m = (struct packed_manifest){0};
}

/* ---- reading ---- */

/* A whole number from 0 on, at most `most`. */
static int take_number(const json_t *object, const char *field, size_t most, size_t *out,
                       struct err *e)
{
    const json_t *value = json_object_get(object, field);
    if (!json_is_integer(value) || json_integer_value(value) < 0 ||
        (uint64_t)json_integer_value(value) > most)
        return err_set(e, E_CORRUPT, "%s: expected a whole number from 0 to %zu", field, most);
    *out = (size_t)json_integer_value(value);
    return 0;
}

static int take_hex(const json_t *object, const char *field, uint64_t *out, struct err *e)
{
    const char *text = json_string_value(json_object_get(object, field));
    if (!text || strlen(text) != 16 || strspn(text, "0123456789abcdef") != 16)
        return err_set(e, E_CORRUPT, "%s: expected 16 hexadecimal digits", field);
    *out = strtoull(text, NULL, 16);
    return 0;
}

static int read_part(const json_t *parts, enum packed_part part, struct packed_part_info *info,
                     struct err *e)
{
    const json_t *object = json_object_get(parts, part_names[part]);
    const json_t *sizes = json_object_get(object, "matrix_bytes");
    const char *format = json_string_value(json_object_get(object, "format"));
    if (!format || !format_parse(format, &info->format) || info->format == FORMAT_NATIVE)
        return err_set(e, E_CORRUPT, "parts.%s.format: expected one of f32, bf16, fp8, q8, q4",
                       part_names[part]);
    if (json_array_size(sizes) != (size_t)info->n_matrices)
        return err_set(e, E_CORRUPT, "parts.%s.matrix_bytes: expected %d numbers", part_names[part],
                       info->n_matrices);
    for (int i = 0; i < info->n_matrices; i++) {
        const json_t *size = json_array_get(sizes, (size_t)i);
        json_int_t bytes = json_is_integer(size) ? json_integer_value(size) : 0;
        if (bytes <= 0 || bytes % MATRIX_ALIGN_BYTES != 0 ||
            !mem_add(info->blob_bytes, (size_t)bytes, &info->blob_bytes))
            return err_set(e, E_CORRUPT,
                           "parts.%s.matrix_bytes[%d]: expected a positive multiple of %d",
                           part_names[part], i, MATRIX_ALIGN_BYTES);
        info->matrix_bytes[i] = (size_t)bytes;
    }
    return 0;
}

/* Which blob an entry describes: its index, or an error. */
static int read_place(const json_t *entry, const struct packed_manifest *m, int *out, struct err *e)
{
    const char *name = json_string_value(json_object_get(entry, "part"));
    size_t layer = 0, expert = 0;
    const struct packed_shape *s = &m->shape;
    int part = 0, rc = 0;
    while (part < PACKED_PARTS && (!name || strcmp(name, part_names[part]) != 0))
        part++;
    if (part == PACKED_PARTS || !packed_shape_has(s, (enum packed_part)part))
        return err_set(e, E_CORRUPT, "part: expected one of experts, attention, head%s%s",
                       packed_shape_has(s, PACKED_DENSE) ? ", dense" : "",
                       packed_shape_has(s, PACKED_SHARED) ? ", shared" : "");
    if (part != PACKED_HEAD)
        rc = take_number(entry, "layer", (size_t)s->n_layers - 1, &layer, e);
    if (rc == 0 && part == PACKED_EXPERTS)
        rc = take_number(entry, "expert", (size_t)s->n_experts - 1, &expert, e);
    bool is_anywhere = part == PACKED_HEAD || part == PACKED_ATTENTION;
    if (rc == 0 && !is_anywhere && ((int)layer < s->n_dense_layers) != (part == PACKED_DENSE))
        return err_set(e, E_CORRUPT, "layer: layer %zu of this model has no %s", layer,
                       part_names[part]);
    if (rc == 0)
        *out = packed_blob_index(m, (enum packed_part)part, (int)layer, (int)expert);
    return rc;
}

static int read_blob(const json_t *entry, struct packed_manifest *m, int file, int *index,
                     struct err *e)
{
    char text[PACKED_BLOB_TEXT_BYTES];
    struct packed_blob_info blob = {.file = file};
    size_t end;
    int rc = read_place(entry, m, index, e);
    if (rc < 0)
        return rc;
    packed_blob_text(m, *index, text);
    if (m->blobs[*index].file >= 0)
        return err_set(e, E_CORRUPT, "%s is listed twice", text);
    rc = take_number(entry, "offset", INT64_MAX, &blob.offset, e);
    if (rc == 0)
        rc = take_number(entry, "bytes", INT64_MAX, &blob.bytes, e);
    if (rc == 0)
        rc = take_hex(entry, "hash", &blob.hash, e);
    if (rc < 0)
        return err_prefix(e, "%s", text);
    size_t expected = m->parts[packed_place_of(m, *index).part].blob_bytes;
    if (blob.bytes != expected)
        return err_set(e, E_CORRUPT, "%s: bytes is %zu, its matrices have %zu", text, blob.bytes,
                       expected);
    if (blob.offset % PACKED_ALIGN_BYTES != 0)
        return err_set(e, E_CORRUPT, "%s: offset %zu is no multiple of %d", text, blob.offset,
                       PACKED_ALIGN_BYTES);
    if (!mem_add(blob.offset, blob.bytes, &end) || end > m->files[file].bytes)
        return err_set(e, E_CORRUPT, "%s: offset %zu with %zu bytes lies beyond the file's %zu",
                       text, blob.offset, blob.bytes, m->files[file].bytes);
    m->blobs[*index] = blob;
    return 0;
}

static int compare_offset(const void *a, const void *b, void *ud)
{
    const struct packed_blob_info *blobs = ud;
    size_t x = blobs[*(const int *)a].offset, y = blobs[*(const int *)b].offset;
    return (x > y) - (x < y);
}

static int check_overlap(const struct packed_manifest *m, int *indexes, int n, struct err *e)
{
    char text[2][PACKED_BLOB_TEXT_BYTES];
    qsort_r(indexes, (size_t)n, sizeof *indexes, compare_offset, m->blobs);
    for (int i = 1; i < n; i++) {
        const struct packed_blob_info *before = &m->blobs[indexes[i - 1]];
        if (before->offset + before->bytes > m->blobs[indexes[i]].offset)
            return err_set(e, E_CORRUPT, "%s overlaps %s", packed_blob_text(m, indexes[i], text[0]),
                           packed_blob_text(m, indexes[i - 1], text[1]));
    }
    return 0;
}

static int read_blobs(const json_t *list, struct packed_manifest *m, int file, struct err *e)
{
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > (size_t)m->n_blobs)
        return err_set(e, E_CORRUPT, "blobs: expected an array of at most %d", m->n_blobs);
    int *indexes = mem_array(n + 1, sizeof *indexes), rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = read_blob(json_array_get(list, i), m, file, &indexes[i], e);
    if (rc == 0)
        rc = check_overlap(m, indexes, (int)n, e);
    mem_free(indexes);
    return rc;
}

static bool is_packed_name(const char *name)
{
    size_t len = strlen(name), suffix = strlen(".packed");
    return len > suffix && strcmp(name + len - suffix, ".packed") == 0 && *name != '.' &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == len;
}

static int read_file(const json_t *object, struct packed_manifest *m, struct err *e)
{
    const char *name = json_string_value(json_object_get(object, "name"));
    if (!name || !is_packed_name(name))
        return err_set(e, E_CORRUPT, "files[%d].name: expected a plain name that ends in .packed",
                       m->n_files);
    int file = m->n_files++;
    m->files[file].name = mem_string(name);
    int rc = take_number(object, "bytes", INT64_MAX, &m->files[file].bytes, e);
    if (rc == 0)
        rc = read_blobs(json_object_get(object, "blobs"), m, file, e);
    return rc < 0 ? err_prefix(e, "%s", name) : 0;
}

/* A file twice could hide an overlap. */
static int check_names(const struct packed_manifest *m, struct err *e)
{
    json_t *seen = json_object();
    int rc = 0;
    must(seen);
    for (int i = 0; i < m->n_files && rc == 0; i++) {
        if (json_object_get(seen, m->files[i].name))
            rc = err_set(e, E_CORRUPT, "files: %s is listed twice", m->files[i].name);
        /* Names that are no UTF-8 do not come out of the parser. */
        json_object_set_new(seen, m->files[i].name, json_true());
    }
    json_decref(seen);
    return rc;
}

static int read_files(const json_t *files, struct packed_manifest *m, struct err *e)
{
    char text[PACKED_BLOB_TEXT_BYTES];
    size_t n = json_array_size(files);
    if (n == 0 || n > MAX_FILES)
        return err_set(e, E_CORRUPT, "files: expected an array of 1 to %d", MAX_FILES);
    m->files = mem_array(n, sizeof *m->files);
    for (size_t i = 0; i < n; i++) {
        int rc = read_file(json_array_get(files, i), m, e);
        if (rc < 0)
            return rc;
    }
    for (int i = 0; i < m->n_blobs; i++)
        if (m->blobs[i].file < 0)
            return err_set(e, E_CORRUPT, "%s is not listed", packed_blob_text(m, i, text));
    return check_names(m, e);
}

static int check_version(const json_t *root, struct err *e)
{
    const json_t *version = json_object_get(root, "polymath_packed");
    if (!json_is_integer(version))
        return err_set(e, E_CORRUPT, "polymath_packed: expected a version number");
    if (json_integer_value(version) != PACKED_VERSION)
        return err_set(e, E_PRECONDITION,
                       "polymath_packed: version %lld, this program reads %d; pack the model again",
                       (long long)json_integer_value(version), PACKED_VERSION);
    return 0;
}

static int check_shape(const json_t *root, const struct packed_shape *s, struct err *e)
{
    size_t layers, experts, dense = 0;
    bool has_shared = json_is_true(json_object_get(root, "shared"));
    int rc = take_number(root, "layers", INT32_MAX, &layers, e);
    if (rc == 0)
        rc = take_number(root, "experts", INT32_MAX, &experts, e);
    if (rc == 0 && json_object_get(root, "dense_layers"))
        rc = take_number(root, "dense_layers", INT32_MAX, &dense, e);
    if (rc < 0)
        return rc;
    if (layers != (size_t)s->n_layers || experts != (size_t)s->n_experts)
        return err_set(e, E_PRECONDITION,
                       "layers and experts are %zu and %zu, config.json says %d and %d: another "
                       "model's manifest; pack the model again",
                       layers, experts, s->n_layers, s->n_experts);
    if (dense != (size_t)s->n_dense_layers || has_shared != s->has_shared)
        return err_set(e, E_PRECONDITION,
                       "dense_layers is %zu and shared %s, config.json says %d and %s: another "
                       "model's manifest; pack the model again",
                       dense, has_shared ? "true" : "false", s->n_dense_layers,
                       s->has_shared ? "true" : "false");
    return 0;
}

/* The engine has one format for everything that is an expert. */
static int check_formats(const struct packed_manifest *m, struct err *e)
{
    static const enum packed_part alike[] = {PACKED_DENSE, PACKED_SHARED};
    enum weight_format format = m->parts[PACKED_EXPERTS].format;
    for (size_t i = 0; i < sizeof alike / sizeof *alike; i++)
        if (packed_shape_has(&m->shape, alike[i]) && m->parts[alike[i]].format != format)
            return err_set(e, E_CORRUPT, "parts.%s.format: expected %s, that of the experts",
                           part_names[alike[i]], format_name(format));
    return 0;
}

static int read_manifest(const json_t *root, struct packed_manifest *m, struct err *e)
{
    int rc = take_hex(root, "fingerprint", &m->fingerprint, e);
    for (int part = 0; part < PACKED_PARTS && rc == 0; part++)
        if (packed_shape_has(&m->shape, (enum packed_part)part))
            rc = read_part(json_object_get(root, "parts"), (enum packed_part)part, &m->parts[part],
                           e);
    if (rc == 0)
        rc = check_formats(m, e);
    if (rc == 0)
        rc = read_files(json_object_get(root, "files"), m, e);
    return rc;
}

int packed_manifest_parse(const void *data, size_t bytes, const struct packed_shape *shape,
                          struct packed_manifest *m, struct err *e)
{
    *m = (struct packed_manifest){0};
    struct err own = {0};
    if (!e)
        e = &own;
    json_t *root = json_parse_object(data, bytes, e);
    if (!root)
        return e->code;
    int rc = check_version(root, e);
    if (rc == 0)
        rc = check_shape(root, shape, e);
    if (rc == 0) {
        packed_manifest_init(m, shape);
        rc = read_manifest(root, m, e);
    }
    if (rc < 0)
        packed_manifest_fini(m);
    json_decref(root);
    return rc;
}

int packed_manifest_read(const char *dir, const struct packed_shape *shape,
                         struct packed_manifest *m, struct err *e)
{
    struct buf text = {0};
    char *path = mem_format("%s/" PACKED_MANIFEST, dir);
    *m = (struct packed_manifest){0};
    int rc = buf_read_file(&text, path, MANIFEST_LIMIT_BYTES, e);
    if (rc == 0) {
        rc = packed_manifest_parse(text.data, text.len, shape, m, e);
        if (rc < 0)
            err_prefix(e, "%s", path);
    }
    buf_fini(&text);
    mem_free(path);
    return rc;
}

/* ---- writing ---- */

static void put_part(const struct packed_part_info *info, enum packed_part part, struct buf *out)
{
    buf_printf(out, "%s\n  \"%s\": {\"format\": \"%s\", \"matrix_bytes\": [", part > 0 ? "," : "",
               part_names[part], format_name(info->format));
    for (int i = 0; i < info->n_matrices; i++)
        buf_printf(out, "%s%zu", i > 0 ? ", " : "", info->matrix_bytes[i]);
    buf_puts(out, "]}");
}

static void put_blob(const struct packed_manifest *m, int index, struct buf *out)
{
    const struct packed_blob_info *blob = &m->blobs[index];
    struct packed_place p = packed_place_of(m, index);
    buf_printf(out, "    {\"part\": \"%s\", ", part_names[p.part]);
    if (p.part != PACKED_HEAD)
        buf_printf(out, "\"layer\": %d, ", p.layer);
    if (p.part == PACKED_EXPERTS)
        buf_printf(out, "\"expert\": %d, ", p.expert);
    buf_printf(out, "\"offset\": %zu, \"bytes\": %zu, \"hash\": \"%016" PRIx64 "\"}", blob->offset,
               blob->bytes, blob->hash);
}

/* Blobs come by file because the files are in the order of their blobs' indexes. */
void packed_manifest_text(const struct packed_manifest *m, struct buf *out)
{
    buf_printf(out,
               "{\"polymath_packed\": %d,\n \"fingerprint\": \"%016" PRIx64
               "\",\n \"layers\": %d, \"experts\": %d,",
               PACKED_VERSION, m->fingerprint, m->shape.n_layers, m->shape.n_experts);
    if (m->shape.n_dense_layers > 0)
        buf_printf(out, " \"dense_layers\": %d,", m->shape.n_dense_layers);
    if (m->shape.has_shared)
        buf_puts(out, " \"shared\": true,");
    buf_puts(out, "\n \"parts\": {");
    for (int part = 0; part < PACKED_PARTS; part++)
        if (packed_shape_has(&m->shape, (enum packed_part)part))
            put_part(&m->parts[part], (enum packed_part)part, out);
    buf_puts(out, "},\n \"files\": [");
    int index = 0;
    for (int file = 0; file < m->n_files; file++) {
        buf_printf(out, "%s\n  {\"name\": \"%s\", \"bytes\": %zu, \"blobs\": [",
                   file > 0 ? "," : "", m->files[file].name, m->files[file].bytes);
        for (bool is_first = true; index < m->n_blobs && m->blobs[index].file == file; index++) {
            buf_puts(out, is_first ? "\n" : ",\n");
            put_blob(m, index, out);
            is_first = false;
        }
        buf_puts(out, "]}");
    }
    must(index == m->n_blobs);
    buf_puts(out, "]}\n");
}
