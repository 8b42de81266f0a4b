/* engine/index_sketch.h - a quarter of an index key, and what its score can be at most.
 *
 * Beside every index key the cache keeps 4 bits of each of its dimensions (kernels.h: a
 * sketch_block), how far that is from the key (error) and how long both are (norm).  With a query
 * q of 8-bit integers u, q = scale * u + rest, and a key k = sketch + off,
 *
 *     q . k  =  scale * (u . sketch)  +  rest . sketch  +  q . off
 *           <=  scale * (u . sketch)  +  |rest| * norm  +  |q| * error         (Cauchy-Schwarz)
 *
 * where the first sum is over integers and exact.  Everything that is rounded - the score itself,
 * a chain of f32, and the bound - is covered: the factor of norm has (dim + 32) * 2^-22 * |q| more
 * than |rest|, the factor of error 2^-16 of itself, the whole 2^-120.  So no key scores above its
 * bound, whatever the keys, and a block whose keys' bounds lie below the top_k-th best score so far
 * needs not be read.
 *
 * A key with a NaN, an infinity or 2^60 and more has a bound of infinity; a query with one has
 * none.  A key's sketch depends on the key alone: a page's are as good as its keys, whoever
 * shares it.
 *
 * Pure. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/kernels.h"

/* The integers of the sums must be exact as f32; longer index keys have no sketch. */
enum { SKETCH_MAX_DIM = 4096 };

/* Bytes of the sketches of SKETCH_UNIT keys; a multiple of 64. */
size_t sketch_unit_bytes(int dim);
/* Key `slot` of a unit; key [dim] as it is stored. */
void sketch_key(const float *key, int dim, char *unit, int slot);
/* Bytes of a query's integers, zeros past dim. */
size_t sketch_query_stride(int dim);
/* false: this query has no bounds. */
bool sketch_query(const float *q, int dim, int8_t *integers, struct sketch_query *out);
