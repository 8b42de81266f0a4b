/* tools/bench_profile.h - where a step's time goes: a kernel table that times its loops.
 *
 * Every loop of the given table is wrapped; while profiling is on, the time of each call is
 * added to the part of the model that it belongs to, over all threads.  Products outside the
 * experts are told apart by the matrix's shape.  While it is off, a call costs one test more.
 *
 * One profile at a time: a kernel has no argument to carry one.  Owner: main thread; the
 * sums are written by every thread of the pool. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/kernels.h"
#include "model/config.h"

enum bench_part {
    BENCH_PART_PROJECTIONS, /* q, k, v, o */
    BENCH_PART_CACHE,       /* attention over the KV cache */
    BENCH_PART_ROUTER,
    BENCH_PART_EXPERTS,
    BENCH_PART_HEAD,
    BENCH_PART_REST, /* norms, quantising, adding */
    BENCH_PARTS
};
const char *bench_part_name(enum bench_part part);

/* The wrapped table; valid until the next call.  Profiling is off. */
const struct kernels *bench_profile_wrap(const struct kernels *kernels,
                                         const struct model_config *config);
/* Turns profiling on, with all sums 0, or off. */
void bench_profile_set(bool is_on);
/* Between true and false every product belongs to the experts, whose ranges of panels have
 * shapes of their own. */
void bench_profile_experts(bool are_running);
/* Nanoseconds in a part, of all threads together. */
int64_t bench_profile_ns(enum bench_part part);
