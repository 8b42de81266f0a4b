/* base/rng.c - SplitMix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number
 * generators", OOPSLA 2014.  No state beyond the caller's struct. */
#include "base/rng.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <sys/random.h>

#include "base/must.h"

/* 2^64 over the golden ratio, the paper's increment. */
#define RNG_STEP 0x9e3779b97f4a7c15ULL

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

struct rng rng_seed(uint64_t seed)
{
    return (struct rng){.state = seed};
}

struct rng rng_stream(uint64_t seed, uint64_t stream)
{
    /* Mixed twice, so that neither (s, n+1) nor (s+1, n) lies a few steps after (s, n). */
    return (struct rng){.state = mix(mix(seed + RNG_STEP) ^ mix(stream * RNG_STEP + 1))};
}

uint64_t rng_next(struct rng *r)
{
    r->state += RNG_STEP;
    return mix(r->state);
}

uint64_t rng_below(struct rng *r, uint64_t bound)
{
    must(bound > 0);
    /* 2^64 mod bound: values below it would make the small remainders likelier. */
    uint64_t reject_below = (0 - bound) % bound;
    uint64_t x;
    do
        x = rng_next(r);
    while (x < reject_below);
    return x % bound;
}

double rng_unit(struct rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1.0p-53;
}

double rng_normal(struct rng *r)
{
    /* Box and Muller; 1 - u is in (0, 1], so the logarithm is finite. */
    double radius = sqrt(-2.0 * log(1.0 - rng_unit(r)));
    return radius * cos(2.0 * M_PI * rng_unit(r));
}

uint64_t rng_entropy(void)
{
    uint64_t value = 0;
    ssize_t n;
    do
        n = getrandom(&value, sizeof(value), 0);
    while (n < 0 && errno == EINTR);
    /* Reads of at most 256 bytes are never short once the pool is ready (getrandom(2)). */
    must(n == (ssize_t)sizeof(value));
    return value;
}
