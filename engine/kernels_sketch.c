/* engine/kernels_sketch.c - the definition of `index_bound`.  kernels_avx2_index.c and
 * kernels_avx512_index.c have its twins. */
#include <math.h>

#include "engine/kernels.h"
#include "model/halves.h"

static int32_t product(const int8_t *q, const uint32_t *codes, int dim, int key)
{
    int32_t sum = 0;
    for (int d = 0; d < dim; d++) {
        uint32_t word = codes[d / SKETCH_DIMS * SKETCH_UNIT + key];
        int at = d % SKETCH_DIMS;
        sum += (int32_t)(word >> (8 * (at % 4) + at / 4 * 4) & 15) * q[d];
    }
    return sum;
}

static void bound_unit(const struct sketch_block *b, const char *unit, float *largest)
{
    const struct sketch_head *head = (const struct sketch_head *)(const void *)unit;
    const uint32_t *codes = (const uint32_t *)(const void *)(unit + sizeof(*head));
    for (int i = 0; i < b->n_queries; i++, largest += b->largest_stride) {
        const struct sketch_query *q = &b->queries[i];
        *largest = -INFINITY;
        for (int key = 0; key < SKETCH_UNIT; key++) {
            float step = bf16_to_f32(head->step[key]);
            int32_t sum = product(b->q + (size_t)i * b->q_stride, codes, b->head_dim, key);
            float around = fmaf(q->error, head->error[key], q->norm * head->norm[key]);
            float bound =
                fmaf(step, fmaf(q->unit, (float)(2 * sum - q->middle), around), SKETCH_LEAST);
            if (step != step)
                bound = INFINITY;
            if (bound > *largest)
                *largest = bound;
        }
    }
}

static void bound(const struct sketch_block *b)
{
    for (size_t unit = 0; unit < (size_t)(b->n_keys / SKETCH_UNIT); unit++)
        bound_unit(b, (const char *)b->sketch + unit * b->unit_bytes, b->largest + unit);
}

void kernels_portable_sketch(struct kernels *k)
{
    k->index_bound = bound;
}
