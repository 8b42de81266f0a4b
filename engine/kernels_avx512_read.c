/* engine/kernels_avx512_read.c - reading memory for its own sake: AVX-512; see kernels.h. */
#include <immintrin.h>

#include "engine/kernels.h"

enum { STREAMS = 4, LINE_BYTES = 256, VECTOR_BYTES = 64 };

static uint64_t read_avx512(const uint8_t *from, size_t bytes)
{
    size_t stream = bytes / STREAMS;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (size_t at = 0; at + LINE_BYTES <= stream; at += LINE_BYTES)
        for (size_t i = at; i < at + LINE_BYTES; i += VECTOR_BYTES) {
            a = _mm512_xor_si512(a, _mm512_load_si512(from + i));
            b = _mm512_xor_si512(b, _mm512_load_si512(from + stream + i));
            c = _mm512_xor_si512(c, _mm512_load_si512(from + 2 * stream + i));
            d = _mm512_xor_si512(d, _mm512_load_si512(from + 3 * stream + i));
        }
    a = _mm512_xor_si512(_mm512_xor_si512(a, b), _mm512_xor_si512(c, d));
    uint64_t sum = 0, lanes[VECTOR_BYTES / sizeof(uint64_t)];
    _mm512_storeu_si512(lanes, a);
    for (size_t i = 0; i < VECTOR_BYTES / sizeof(uint64_t); i++)
        sum += lanes[i]; /* not _mm512_reduce_add_epi64(), which adds signed numbers */
    return sum;
}

void kernels_avx512_read(struct kernels *k)
{
    k->read = read_avx512;
}
