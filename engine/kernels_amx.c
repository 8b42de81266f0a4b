/* engine/kernels_amx.c - q8 and q4 products for AMX; same bits as kernels.c. */
#include "engine/kernels.h"

void kernels_amx_fill(struct kernels *k)
{
    (void)k;
}

bool kernels_amx_allowed(void)
{
    return false;
}
