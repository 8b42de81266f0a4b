/* model/prefix.c - see prefix.h. */
#include "model/prefix.h"

#include <xxhash.h>

uint64_t prefix_seed(uint64_t fingerprint, int kv_format)
{
    uint64_t parts[] = {fingerprint, (uint64_t)kv_format};
    return XXH3_64bits(parts, sizeof(parts));
}

uint64_t prefix_extend(uint64_t before, const int32_t *tokens, uint32_t n)
{
    return XXH3_64bits_withSeed(tokens, (size_t)n * sizeof(*tokens), before);
}
