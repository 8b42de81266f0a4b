/* tools/gguf_write.c - see gguf_write.h. */
#include "tools/gguf_write.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/must.h"
#include "model/halves.h"

/* The format's numbers for kinds of values. */
enum { VALUE_U32 = 4, VALUE_I32 = 5, VALUE_F32 = 6, VALUE_STRING = 8, VALUE_ARRAY = 9 };
enum { BLOCK_Q8_BYTES = 2 + GGUF_BLOCK, BLOCK_Q4_BYTES = 2 + GGUF_BLOCK / 2 };

struct gguf_writer {
    struct buf values, tensors; /* as they stand in the file */
    uint64_t n_values, n_tensors, data_bytes;
    uint64_t *offsets; /* [n_tensors], from the begin of the data */
    size_t offsets_size;
    uint64_t data_start;
    int fd; /* -1: not created */
    char *path, *part_path;
};

/* ---- values ---- */

size_t gguf_bytes(enum gguf_type type, size_t n)
{
    switch (type) {
    case GGUF_F32:
        return n * sizeof(float);
    case GGUF_BF16:
        return n * sizeof(uint16_t);
    case GGUF_Q8_0:
        return n / GGUF_BLOCK * BLOCK_Q8_BYTES;
    default:
        return n / GGUF_BLOCK * BLOCK_Q4_BYTES;
    }
}

/* Nearest whole number, ties to even, of |x| < 2^22: no call of libm per weight. */
static inline int32_t round_small(float x)
{
    const float rounder = 0x1.8p23f;
    return (int32_t)(f32_to_bits(x + rounder) - f32_to_bits(rounder));
}

static inline float largest_of(float a, float b)
{
    return a > b ? a : b;
}

static void encode_q8(const float *x, uint8_t *out)
{
    float most = 0;
    for (int i = 0; i < GGUF_BLOCK; i++)
        most = largest_of(most, fabsf(x[i]));
    float inverse = most > 0 ? 127 / most : 0;
    uint16_t scale = f32_to_f16(most / 127);
    memcpy(out, &scale, sizeof(scale));
    for (int i = 0; i < GGUF_BLOCK; i++)
        out[2 + i] = (uint8_t)(int8_t)round_small(x[i] * inverse);
}

/* The value of the largest magnitude becomes -8, the only end that has eight steps. */
static void encode_q4(const float *x, uint8_t *out)
{
    float largest = 0;
    for (int i = 0; i < GGUF_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(largest))
            largest = x[i];
    float inverse = largest != 0 ? -8 / largest : 0;
    uint16_t scale = f32_to_f16(largest / -8);
    uint8_t steps[GGUF_BLOCK];
    memcpy(out, &scale, sizeof(scale));
    for (int i = 0; i < GGUF_BLOCK; i++) {
        int32_t step = round_small(x[i] * inverse);
        steps[i] = (uint8_t)((step < 7 ? step : 7) + 8);
    }
    for (int i = 0; i < GGUF_BLOCK / 2; i++)
        out[2 + i] = (uint8_t)(steps[i] | steps[i + GGUF_BLOCK / 2] << 4);
}

void gguf_encode(enum gguf_type type, const float *x, size_t n, void *out)
{
    uint8_t *bytes = out;
    if (type == GGUF_F32) {
        memcpy(out, x, n * sizeof(*x));
    } else if (type == GGUF_BF16) {
        for (size_t i = 0; i < n; i++) {
            uint16_t half = f32_to_bf16(x[i]);
            memcpy(bytes + i * sizeof(half), &half, sizeof(half));
        }
    } else {
        must(n % GGUF_BLOCK == 0);
        for (size_t at = 0; at < n; at += GGUF_BLOCK)
            if (type == GGUF_Q8_0)
                encode_q8(x + at, bytes + at / GGUF_BLOCK * BLOCK_Q8_BYTES);
            else
                encode_q4(x + at, bytes + at / GGUF_BLOCK * BLOCK_Q4_BYTES);
    }
}

/* ---- declaring ---- */

struct gguf_writer *gguf_writer_new(void)
{
    struct gguf_writer *w = mem_alloc(sizeof(*w));
    w->fd = -1;
    return w;
}

static void put_u32(struct buf *b, uint32_t value)
{
    buf_append(b, &value, sizeof(value)); /* little-endian, as every CPU we run on */
}

static void put_u64(struct buf *b, uint64_t value)
{
    buf_append(b, &value, sizeof(value));
}

static void put_text(struct buf *b, const char *text)
{
    put_u64(b, strlen(text));
    buf_puts(b, text);
}

static void put_key(struct gguf_writer *w, const char *key, uint32_t kind)
{
    must(w->fd < 0);
    put_text(&w->values, key);
    put_u32(&w->values, kind);
    w->n_values++;
}

void gguf_put_string(struct gguf_writer *w, const char *key, const char *value)
{
    put_key(w, key, VALUE_STRING);
    put_text(&w->values, value);
}

void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t value)
{
    put_key(w, key, VALUE_U32);
    put_u32(&w->values, value);
}

void gguf_put_f32(struct gguf_writer *w, const char *key, float value)
{
    put_key(w, key, VALUE_F32);
    put_u32(&w->values, f32_to_bits(value));
}

static void put_array(struct gguf_writer *w, const char *key, uint32_t kind, size_t n)
{
    put_key(w, key, VALUE_ARRAY);
    put_u32(&w->values, kind);
    put_u64(&w->values, n);
}

void gguf_put_strings(struct gguf_writer *w, const char *key, const char *const *values, size_t n)
{
    put_array(w, key, VALUE_STRING, n);
    for (size_t i = 0; i < n; i++)
        put_text(&w->values, values[i]);
}

void gguf_put_i32s(struct gguf_writer *w, const char *key, const int32_t *values, size_t n)
{
    put_array(w, key, VALUE_I32, n);
    buf_append(&w->values, values, n * sizeof(*values));
}

int gguf_add_tensor(struct gguf_writer *w, const char *name, enum gguf_type type, int n_dims,
                    const uint64_t *dims)
{
    size_t n = 1, index = (size_t)w->n_tensors;
    must(w->fd < 0 && n_dims >= 1 && n_dims <= GGUF_MAX_DIMS);
    put_text(&w->tensors, name);
    put_u32(&w->tensors, (uint32_t)n_dims);
    for (int i = 0; i < n_dims; i++) {
        put_u64(&w->tensors, dims[i]);
        must(mem_mul(n, dims[i], &n));
    }
    put_u32(&w->tensors, (uint32_t)type);
    put_u64(&w->tensors, w->data_bytes);
    if (index == w->offsets_size) {
        w->offsets_size = w->offsets_size ? 2 * w->offsets_size : 64;
        w->offsets = mem_resize(w->offsets, w->offsets_size * sizeof(*w->offsets));
    }
    w->offsets[index] = w->data_bytes;
    w->data_bytes += mem_round_up(gguf_bytes(type, n), GGUF_ALIGN);
    w->n_tensors++;
    return (int)index;
}

/* ---- the file ---- */

static int write_at(struct gguf_writer *w, const void *data, size_t bytes, uint64_t offset,
                    struct err *e)
{
    const char *at = data;
    while (bytes > 0) {
        ssize_t n = pwrite(w->fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set_errno(e, n < 0 ? errno : EIO, "%s: write", w->part_path);
        at += n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

int gguf_create(struct gguf_writer *w, const char *path, struct err *e)
{
    struct buf header = {0};
    w->path = mem_string(path);
    w->part_path = mem_format("%s.part", path);
    buf_puts(&header, "GGUF");
    put_u32(&header, GGUF_VERSION);
    put_u64(&header, w->n_tensors);
    put_u64(&header, w->n_values);
    buf_append_str(&header, buf_str(&w->values));
    buf_append_str(&header, buf_str(&w->tensors));
    w->data_start = mem_round_up(header.len, GGUF_ALIGN);
    w->fd = open(w->part_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int rc = w->fd < 0 ? err_set_errno(e, errno, "%s", w->part_path) : 0;
    uint64_t bytes = w->data_start + w->data_bytes;
    if (rc == 0) {
        int failed = posix_fallocate(w->fd, 0, (off_t)bytes);
        if (failed)
            rc = err_set_errno(e, failed, "%s: reserve %.1f GB", w->part_path, (double)bytes / 1e9);
    }
    if (rc == 0)
        rc = write_at(w, header.data, header.len, 0, e);
    buf_fini(&header);
    return rc;
}

int gguf_write(struct gguf_writer *w, int tensor, uint64_t offset, const void *data, size_t bytes,
               struct err *e)
{
    must(w->fd >= 0 && tensor >= 0 && (uint64_t)tensor < w->n_tensors);
    return write_at(w, data, bytes, w->data_start + w->offsets[tensor] + offset, e);
}

int gguf_finish(struct gguf_writer **writer, int rc, struct err *e)
{
    struct gguf_writer *w = *writer;
    if (w->fd >= 0 && close(w->fd) != 0 && rc == 0)
        rc = err_set_errno(e, errno, "%s: close", w->part_path);
    if (w->fd >= 0 && rc == 0 && rename(w->part_path, w->path) != 0)
        rc = err_set_errno(e, errno, "%s: rename", w->part_path);
    if (w->fd >= 0 && rc < 0)
        unlink(w->part_path);
    buf_fini(&w->values);
    buf_fini(&w->tensors);
    mem_free(w->offsets);
    mem_free(w->path);
    mem_free(w->part_path);
    mem_free(w);
    *writer = NULL;
    return rc;
}
