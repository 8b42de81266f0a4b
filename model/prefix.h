/* model/prefix.h - a number for the beginning of a sequence: a chain over blocks of its tokens.
 *
 * Equal beginnings have equal numbers under equal seeds; unequal ones have unequal numbers almost
 * always.  Whoever acts on it compares the tokens, or does no harm if it is wrong. */
#pragma once

#include <stdint.h>

/* What the keys and values of a sequence depend on beside its tokens. */
uint64_t prefix_seed(uint64_t fingerprint, int kv_format);
/* Of everything up to the end of this block; `before`: of what is before it, at first the seed. */
uint64_t prefix_extend(uint64_t before, const int32_t *tokens, uint32_t n);
