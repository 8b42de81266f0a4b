/* base/rng.h - small seeded generators for sampling, tests and jitter; not for secrets. */
#pragma once

#include <stdint.h>

/* SplitMix64 (Steele, Lea, Flood 2014): the state is a counter, so a generator for
 * "seed s, position p" is made in O(1) - a replayed sequence draws the same numbers. */
struct rng {
    uint64_t state;
};
struct rng rng_seed(uint64_t seed);
/* Independent stream number `stream` of `seed`. */
struct rng rng_stream(uint64_t seed, uint64_t stream);
uint64_t rng_next(struct rng *r);
/* Uniform in [0, bound), bound > 0, without bias. */
uint64_t rng_below(struct rng *r, uint64_t bound);
/* Uniform in [0, 1) with 53 bits. */
double rng_unit(struct rng *r);
/* Standard normal. */
double rng_normal(struct rng *r);
/* From the operating system, for default seeds and ids. */
uint64_t rng_entropy(void);
