/* tools/plan_hosts.h - the machines that a plan is for.
 *
 * In short, for --hosts, "COUNTxMEMORY@READ" with commas between, in GiB and GB/s; COUNT 1 and a
 * measured READ may be left out: "4x64@80,128".  In full, for --config, a line for each kind of
 * machine, # begins a comment:
 *
 *   name=big count=4 memory=64GiB read_gb_s=80 nodes=2 rack=a wire_gbit=10 round_trip_us=150 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum { PLAN_MAX_HOSTS = 4096 };

struct plan_host {
    char name[48], rack[48];
    int64_t memory_bytes; /* for experts */
    double read_bytes_s;  /* what its memory gives, all its nodes together */
    double node_bytes_s;  /* what one of them can take of it; 0: its part */
    double wire_bytes_s, round_trip_ns;
    int nodes;        /* expert nodes that share it */
    bool is_measured; /* read_bytes_s is this machine's: nobody stated one */
};

struct plan_hosts {
    struct plan_host *hosts;
    int n_hosts, n_nodes;
};

/* What is not said for a machine. */
struct plan_defaults {
    double read_bytes_s; /* measured here; 0: not yet */
    double wire_gbit, round_trip_us;
    int n_threads; /* for measuring; 0: all */
};

/* One of `list` and `path`; with neither this machine alone.  Speeds that are missing are measured
 * on this machine, once.  E_INVALID names item or line, and the field. */
int plan_hosts_open(const char *list, const char *path, struct plan_defaults *d,
                    struct plan_hosts *out, struct err *e);
/* n equal machines. */
int plan_hosts_equal(int n, int64_t memory_bytes, struct plan_defaults *d, struct plan_hosts *out,
                     struct err *e);
void plan_hosts_close(struct plan_hosts *h);
/* Bytes per second that this machine's memory gives; E_NOMEM. */
int plan_measure(struct plan_defaults *d, struct err *e);
