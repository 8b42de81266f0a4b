/* model/tensor.c - see tensor.h. */
#include "model/tensor.h"

#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "model/fp8.h"
#include "model/halves.h"
#include "model/mx.h"

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
    [DTYPE_F32] = {"F32", 4},         [DTYPE_F16] = {"F16", 2},         [DTYPE_BF16] = {"BF16", 2},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E8M0] = {"F8_E8M0", 1}, [DTYPE_U8] = {"U8", 1},
    [DTYPE_I32] = {"I32", 4},         [DTYPE_OTHER] = {"other", 0},
};

size_t dtype_bytes(enum dtype d)
{
    return dtypes[d].bytes;
}

const char *dtype_name(enum dtype d)
{
    return dtypes[d].name;
}

enum dtype dtype_parse(struct str s)
{
    for (int d = 0; d < DTYPE_OTHER; d++)
        if (str_equal(s, str_of(dtypes[d].name)))
            return (enum dtype)d;
    return DTYPE_OTHER;
}

const char *tensor_text(const struct tensor *t, char out[TENSOR_TEXT_BYTES])
{
    int len = snprintf(out, TENSOR_TEXT_BYTES, "%s [", dtype_name(t->dtype));
    for (int d = 0; d < t->n_dims && len < TENSOR_TEXT_BYTES; d++)
        len += snprintf(out + len, (size_t)(TENSOR_TEXT_BYTES - len), "%s%lld", d ? ", " : "",
                        (long long)t->dims[d]);
    if (len < TENSOR_TEXT_BYTES)
        snprintf(out + len, (size_t)(TENSOR_TEXT_BYTES - len), "]");
    return out;
}

/* memcpy, because a mapping gives no alignment. */
static float read_element(enum dtype dtype, const unsigned char *data)
{
    uint16_t half;
    int32_t integer;
    float value;
    switch (dtype) {
    case DTYPE_F32:
        memcpy(&value, data, sizeof value);
        return value;
    case DTYPE_F16:
        memcpy(&half, data, sizeof half);
        return f16_to_f32(half);
    case DTYPE_BF16:
        memcpy(&half, data, sizeof half);
        return bf16_to_f32(half);
    case DTYPE_F8_E4M3:
        return fp8_decode(*data);
    case DTYPE_F8_E8M0:
        return mx_scale_decode(*data);
    case DTYPE_U8:
        return (float)*data;
    case DTYPE_I32:
        memcpy(&integer, data, sizeof integer);
        return (float)integer;
    case DTYPE_OTHER:
        break;
    }
    unreachable();
}

void tensor_read_f32(const struct tensor *t, int64_t first, int64_t count, float *out)
{
    size_t bytes = dtype_bytes(t->dtype);
    must(bytes > 0);
    int64_t n_elements = (int64_t)(t->size_bytes / bytes);
    must(first >= 0 && count >= 0 && first <= n_elements && count <= n_elements - first);
    const unsigned char *data = (const unsigned char *)t->data + (size_t)first * bytes;
    if (t->dtype == DTYPE_F32) {
        memcpy(out, data, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = read_element(t->dtype, data + (size_t)i * bytes);
}
