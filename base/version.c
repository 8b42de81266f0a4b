/* base/version.c - what this binary is; the build gives commit and variant. */
#include "base/version.h"

#ifndef BUILD_COMMIT
#define BUILD_COMMIT "unknown"
#endif
#ifndef BUILD_VARIANT
#define BUILD_VARIANT "unknown"
#endif

const char *version_string(void)
{
    return POLYMATH_VERSION " (commit " BUILD_COMMIT ", " BUILD_VARIANT ")";
}
