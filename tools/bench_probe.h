/* tools/bench_probe.h - what this machine can do at most: reading memory, and arithmetic.
 *
 * A kernel's figure means something only beside its ceiling, measured on the same cores in
 * the same minute.  Reading: engine/read_probe.h.  Arithmetic:
 * each level's inner sequence with one operand in the L1 cache and enough independent sums.
 *
 * Each bench_probe_<level>.c is compiled with that level's instruction flags and is called
 * only where kernels.h says that the level runs. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/pool.h"

/* The loops of one level.  Arithmetic loops do `rounds` rounds on the calling thread and
 * return how many operations that was (a multiply-add counts as two); what they compute goes
 * to *sink, so that the compiler cannot leave it out. */
typedef double bench_arithmetic(long rounds, uint32_t *sink);
struct bench_level {
    const char *name; /* as in kernels.h */
    bench_arithmetic *f32;
    const char *f32_name;
    bench_arithmetic *q8;
    const char *q8_name; /* of the instruction sequence */
    bench_arithmetic *q4;
    const char *q4_name;
};
extern const struct bench_level bench_level_portable, bench_level_avx2, bench_level_avx512,
    bench_level_amx;

/* Measures with the level of a kernel table.  Owner: one thread, which is the pool's caller. */
struct bench_probe;
enum bench_arithmetic_kind { BENCH_F32, BENCH_Q8, BENCH_Q4 };
/* NULL when there is no memory for the read probe's buffer. */
struct bench_probe *bench_probe_open(struct pool *pool, const char *kernels_name);
void bench_probe_close(struct bench_probe **p);
/* One measurement of about a tenth of a second, all threads together. */
double bench_probe_read_gb_s(struct bench_probe *p);
double bench_probe_gop_s(struct bench_probe *p, enum bench_arithmetic_kind kind);
const char *bench_probe_name(const struct bench_probe *p, enum bench_arithmetic_kind kind);
