/* engine/kernels_index.c - the definition of `index_largest` (m3.md 5.2): scores of index keys
 * and the largest of a block.  kernels_avx2_index.c and kernels_avx512_index.c are its twins. */
#include <math.h>

#include "engine/kernels.h"
#include "model/halves.h"

enum { LANES = 16 };

/* Dimension d of key j. */
typedef float element_at(const struct index_block *b, int j, int d);

static size_t lane_index(const struct index_block *b, int j, int d, int packed)
{
    size_t groups = (size_t)(b->head_dim / packed);
    return ((size_t)(j / LANES) * groups + (size_t)(d / packed)) * LANES + (size_t)(j % LANES);
}

static float key_f32(const struct index_block *b, int j, int d)
{
    return ((const float *)b->k)[lane_index(b, j, d, 1)];
}

static float key_bf16(const struct index_block *b, int j, int d)
{
    return bf16_to_f32(((const uint16_t *)b->k)[lane_index(b, j, d, 2) * 2 + (size_t)(d % 2)]);
}

static void look(const struct index_block *b, element_at *key)
{
    for (int i = 0; i < b->n_queries; i++) {
        const float *q = b->q + (size_t)i * (size_t)b->q_stride;
        float *largest = b->largest + (size_t)i * b->largest_stride;
        for (int j = 0; j < b->n_keys; j++) {
            float s = 0.0f;
            for (int d = 0; d < b->head_dim; d++)
                s = fmaf(q[d], key(b, j, d), s);
            if (s > *largest)
                *largest = s;
        }
        *largest += 0.0f;
    }
}

static void largest_f32(const struct index_block *b)
{
    look(b, key_f32);
}

static void largest_bf16(const struct index_block *b)
{
    look(b, key_bf16);
}

void kernels_portable_index(struct kernels *k)
{
    k->index_largest[KV_F32] = largest_f32;
    k->index_largest[KV_BF16] = largest_bf16;
}
