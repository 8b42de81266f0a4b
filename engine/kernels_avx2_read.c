/* engine/kernels_avx2_read.c - reading memory for its own sake: AVX2; see kernels.h. */
#include <immintrin.h>

#include "engine/kernels.h"

enum { STREAMS = 4, LINE_BYTES = 256, VECTOR_BYTES = 32 };

static inline __m256i load(const uint8_t *from)
{
    return _mm256_load_si256((const __m256i *)(const void *)from);
}

static inline uint32_t fold(__m256i v)
{
    __m128i half = _mm_xor_si128(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return (uint32_t)(_mm_extract_epi32(half, 0) ^ _mm_extract_epi32(half, 1) ^
                      _mm_extract_epi32(half, 2) ^ _mm_extract_epi32(half, 3));
}

static uint64_t read_avx2(const uint8_t *from, size_t bytes)
{
    size_t stream = bytes / STREAMS;
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t at = 0; at + LINE_BYTES <= stream; at += LINE_BYTES)
        for (size_t i = at; i < at + LINE_BYTES; i += VECTOR_BYTES) {
            a = _mm256_xor_si256(a, load(from + i));
            b = _mm256_xor_si256(b, load(from + stream + i));
            c = _mm256_xor_si256(c, load(from + 2 * stream + i));
            d = _mm256_xor_si256(d, load(from + 3 * stream + i));
        }
    return fold(_mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)));
}

void kernels_avx2_read(struct kernels *k)
{
    k->read = read_avx2;
}
