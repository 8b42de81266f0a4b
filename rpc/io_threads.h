/* rpc/io_threads.h - libzmq's I/O threads: how many there are, and how they wait.
 *
 * A message passes through an I/O thread at either end.  libzmq lets them sleep as soon as they have
 * nothing to do, and has no option for it; but it calls epoll_wait() by name, and a program's own
 * function of that name comes first.  Ours (io_threads.c) looks for a bounded time before it sleeps,
 * in I/O threads only, and is the system's in every other way. */
#pragma once

#include <stdint.h>

/* How many a process has use for: one for every two CPUs, up to four.  They encrypt, and who asks many
 * nodes at a time has much to encrypt at a time. */
int io_threads_wanted(int n_cpus);

/* From now on all I/O threads of the process look for so long before each sleep; 0, as at the start:
 * they sleep at once.  Only where its CPUs are its own (base/cpus.h): beside others that compute they
 * would take the time that they wait for (measured: two expert nodes and the attention side on two CPUs
 * made 53 instead of 61 % of a single process' tokens).  Any thread. */
void io_threads_spin(int64_t spin_ns);

/* Waits that found something to do at once, while looking, and that slept. */
struct io_threads_counters {
    int64_t ready, spun, slept;
};
void io_threads_count(struct io_threads_counters *out);
