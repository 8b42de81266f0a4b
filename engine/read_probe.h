/* engine/read_probe.h - how fast this machine reads memory: what experts cost at small batch.
 *
 * Every thread reads four streams from huge pages, by the kernels' `read`.  The caller holds the
 * clock: bytes of a pass, divided by the time that it took.
 *
 * Owner: one thread, which is the pool's caller. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine/kernels.h"
#include "engine/pool.h"

struct read_probe;
/* A buffer of `bytes`, rounded up to whole tasks: it should be several times what the caches hold.
 * NULL when there is no memory for it. */
struct read_probe *read_probe_open(struct pool *pool, const struct kernels *kernels, size_t bytes);
void read_probe_close(struct read_probe **p);
/* Reads it all once, all threads together; returns how many bytes that was. */
size_t read_probe_pass(struct read_probe *p);

/* A buffer that is large enough for the caches of this machine and n_threads. */
size_t read_probe_bytes(int n_threads);
/* Bytes per second of the best of the passes that `spend_ns` gives time for, by the clock now_ns:
 * whoever disturbs a pass makes it slower, nobody makes it faster. */
double read_probe_best(struct read_probe *p, int64_t (*now_ns)(void), int64_t spend_ns);
