/* tools/chaos_net.h - several hosts inside one machine, with wires that can be slow or cut.
 *
 * Every host is a network namespace with one Ethernet interface, 10.77.0.(10 + host); a thread
 * is the switch between them and lets each frame wait, or drops it.  This needs root and
 * /dev/net/tun, and no kernel module for delays (netem is not everywhere).  Namespaces and
 * interfaces have no names outside this process: they are gone when it and the processes in
 * them are, however it ends.
 *
 * Owner: the main thread; the switch's thread reads the wires' properties. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { CHAOS_NET_MAX_HOSTS = 64 };

/* What the wire between a host and the switch does to frames, each way. */
struct chaos_wire {
    int64_t delay_ns, jitter_ns; /* order is kept */
    int loss_permille;
    bool is_cut; /* nothing passes, nobody is told */
};

struct chaos_net;
/* Nothing passes between the hosts before chaos_net_start().  E_DENIED: not root, or the kernel
 * does not let us; `e` says what is missing. */
int chaos_net_open(int n_hosts, const struct chaos_wire *wire, struct chaos_net **out,
                   struct err *e);
/* Starts the switch's thread: once, and after the caller's last fork without an exec. */
int chaos_net_start(struct chaos_net *net, struct err *e);
void chaos_net_close(struct chaos_net **net);
/* The calling thread, and what it starts, is on that host from here on; 0 or -1 with errno. */
int chaos_net_enter(const struct chaos_net *net, int host);
const char *chaos_net_address(const struct chaos_net *net, int host);
void chaos_net_set(struct chaos_net *net, int host, const struct chaos_wire *wire);
struct chaos_net_counters {
    int64_t frames, lost, cut, overflows;
};
void chaos_net_count(const struct chaos_net *net, struct chaos_net_counters *out);
