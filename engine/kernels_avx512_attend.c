/* engine/kernels_avx512_attend.c - `attend` with AVX-512: the bits of kernels_attend.c. */
#include "engine/kernels.h"

void kernels_avx512_attend(struct kernels *k)
{
    (void)k;
}
