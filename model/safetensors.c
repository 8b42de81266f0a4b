/* model/safetensors.c - see safetensors.h.
 *
 * File: 8 bytes little-endian header length N, N bytes of JSON, then the tensors' data
 * without gaps.  Source: the format's specification, "Safetensors", Hugging Face. */
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/json.h"

enum { LENGTH_BYTES = 8, HEADER_LIMIT_BYTES = 100000000 };

struct entry {
    char *name;
    struct tensor tensor;
    size_t begin, end; /* in the data part */
};

struct header {
    struct entry *entries; /* in the order of their data */
    int *by_name;
    int n_entries;
    size_t data_offset;
};

struct safetensors {
    struct header header;
    struct mapping map;
};

static void header_fini(struct header *h)
{
    for (int i = 0; i < h->n_entries; i++)
        mem_free(h->entries[i].name);
    mem_free(h->entries);
    mem_free(h->by_name);
}

static int read_dims(const json_t *shape, struct tensor *t, struct err *e)
{
    if (!json_is_array(shape))
        return err_set(e, E_CORRUPT, "shape: expected an array");
    if (json_array_size(shape) > TENSOR_MAX_DIMS)
        return err_set(e, E_CORRUPT, "shape: has %zu dimensions, at most %d are known",
                       json_array_size(shape), TENSOR_MAX_DIMS);
    t->n_dims = (int)json_array_size(shape);
    size_t elements = 1;
    for (int d = 0; d < t->n_dims; d++) {
        const json_t *dim = json_array_get(shape, (size_t)d);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(e, E_CORRUPT, "shape: dimension %d is not a number from 0 on", d);
        t->dims[d] = json_integer_value(dim);
        if (!mem_mul(elements, (size_t)t->dims[d], &elements))
            return err_set(e, E_CORRUPT, "shape: the number of elements overflows");
    }
    /* Bytes are compared by the caller; a dtype that we do not know has no size here. */
    if (!mem_mul(elements, dtype_bytes(t->dtype), &t->size_bytes))
        return err_set(e, E_CORRUPT, "shape: the number of bytes overflows");
    return 0;
}

static int read_offsets(const json_t *offsets, struct entry *entry, struct err *e)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
        return err_set(e, E_CORRUPT, "data_offsets: expected two ascending numbers from 0 on");
    entry->begin = (size_t)json_integer_value(begin);
    entry->end = (size_t)json_integer_value(end);
    return 0;
}

static int read_entry(const char *name, const json_t *value, struct entry *entry, struct err *e)
{
    struct tensor *t = &entry->tensor;
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    if (!dtype)
        return err_set(e, E_CORRUPT, "tensor %s: dtype: expected a string", name);
    t->dtype = dtype_parse(str_of(dtype));
    if (read_dims(json_object_get(value, "shape"), t, e) < 0 ||
        read_offsets(json_object_get(value, "data_offsets"), entry, e) < 0)
        return err_prefix(e, "tensor %s", name);
    size_t stored = entry->end - entry->begin;
    char text[TENSOR_TEXT_BYTES];
    if (t->dtype != DTYPE_OTHER && t->size_bytes != stored)
        return err_set(e, E_CORRUPT, "tensor %s: %s needs %zu bytes, data_offsets span %zu", name,
                       tensor_text(t, text), t->size_bytes, stored);
    t->size_bytes = stored;
    entry->name = mem_string(name);
    return 0;
}

static int compare_begin(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_name(const void *a, const void *b, void *ud)
{
    const struct entry *entries = ud;
    const int *x = a, *y = b;
    return strcmp(entries[*x].name, entries[*y].name);
}

/* Sorted by offset, the tensors must fill the data part exactly. */
static int check_layout(const struct header *h, size_t file_bytes, struct err *e)
{
    size_t at = 0, data_end;
    for (int i = 0; i < h->n_entries; i++) {
        const struct entry *entry = &h->entries[i];
        if (entry->begin < at)
            return err_set(e, E_CORRUPT, "tensor %s overlaps tensor %s", entry->name,
                           h->entries[i - 1].name);
        if (entry->begin > at)
            return err_set(e, E_CORRUPT, "data bytes %zu to %zu before tensor %s belong to none",
                           at, entry->begin, entry->name);
        at = entry->end;
    }
    if (!mem_add(h->data_offset, at, &data_end))
        return err_set(e, E_CORRUPT, "data offsets overflow");
    if (data_end != file_bytes)
        return err_set(e, E_CORRUPT,
                       "header says data ends at %zu but the file has %zu bytes; "
                       "fetch the file again",
                       data_end, file_bytes);
    return 0;
}

static void sort_names(struct header *h)
{
    h->by_name = mem_array((size_t)h->n_entries, sizeof *h->by_name);
    for (int i = 0; i < h->n_entries; i++)
        h->by_name[i] = i;
    qsort_r(h->by_name, (size_t)h->n_entries, sizeof *h->by_name, compare_name, h->entries);
}

static int read_entries(json_t *root, struct header *h, struct err *e)
{
    const char *name;
    json_t *value;
    h->entries = mem_array(json_object_size(root) + 1, sizeof *h->entries);
    json_object_foreach(root, name, value)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        int rc = read_entry(name, value, &h->entries[h->n_entries], e);
        if (rc < 0)
            return rc;
        h->n_entries++;
    }
    qsort(h->entries, (size_t)h->n_entries, sizeof *h->entries, compare_begin);
    return 0;
}

static int header_init(struct header *h, const void *data, size_t bytes, size_t file_bytes,
                       struct err *e)
{
    const unsigned char *length_bytes = data;
    uint64_t length = 0;
    if (bytes < LENGTH_BYTES)
        return err_set(e, E_CORRUPT, "has %zu bytes, too short for a safetensors header", bytes);
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | length_bytes[i];
    if (length > HEADER_LIMIT_BYTES)
        return err_set(e, E_CORRUPT, "header length %llu is beyond the format's limit of %d bytes",
                       (unsigned long long)length, HEADER_LIMIT_BYTES);
    if (length > bytes - LENGTH_BYTES)
        return err_set(e, E_CORRUPT, "header of %llu bytes reaches beyond the file's %zu bytes",
                       (unsigned long long)length, file_bytes);
    json_t *root = json_parse_object(length_bytes + LENGTH_BYTES, (size_t)length, e);
    if (!root)
        return err_prefix(e, "header");
    *h = (struct header){.data_offset = LENGTH_BYTES + (size_t)length};
    int rc = read_entries(root, h, e);
    json_decref(root);
    if (rc == 0)
        rc = check_layout(h, file_bytes, e);
    if (rc == 0)
        sort_names(h);
    else
        header_fini(h);
    return rc;
}

int safetensors_check_header(const void *data, size_t bytes, size_t file_bytes, struct err *e)
{
    struct header h;
    int rc = header_init(&h, data, bytes, file_bytes, e);
    if (rc == 0)
        header_fini(&h);
    return rc;
}

int safetensors_open(const char *path, struct safetensors **out, struct err *e)
{
    struct mapping map;
    struct header header;
    int rc = mapping_open(&map, path, e);
    if (rc < 0)
        return rc;
    rc = header_init(&header, map.data, map.bytes, map.bytes, e);
    if (rc < 0) {
        mapping_close(&map);
        return err_prefix(e, "%s", path);
    }
    for (int i = 0; i < header.n_entries; i++)
        header.entries[i].tensor.data = map.data + header.data_offset + header.entries[i].begin;
    struct safetensors *s = mem_alloc(sizeof *s);
    *s = (struct safetensors){.header = header, .map = map};
    *out = s;
    return 0;
}

void safetensors_close(struct safetensors **s)
{
    if (!*s)
        return;
    header_fini(&(*s)->header);
    mapping_close(&(*s)->map);
    mem_free(*s);
    *s = NULL;
}

void safetensors_advise(const struct safetensors *s, const struct tensor *t,
                        enum mapping_advice advice)
{
    mapping_advise(&s->map, (size_t)((const char *)t->data - s->map.data), t->size_bytes, advice);
}

int safetensors_count(const struct safetensors *s)
{
    return s->header.n_entries;
}

void safetensors_at(const struct safetensors *s, int i, const char **name, struct tensor *out)
{
    must(i >= 0 && i < s->header.n_entries);
    *name = s->header.entries[i].name;
    *out = s->header.entries[i].tensor;
}

bool safetensors_find(const struct safetensors *s, const char *name, struct tensor *out)
{
    int low = 0, high = s->header.n_entries;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const struct entry *entry = &s->header.entries[s->header.by_name[middle]];
        int order = strcmp(name, entry->name);
        if (order == 0) {
            *out = entry->tensor;
            return true;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return false;
}
