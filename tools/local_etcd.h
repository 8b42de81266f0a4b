/* tools/local_etcd.h - an etcd of our own on this machine, for `polymath chaos` and tests: its data
 * and its log in a directory of ours; it dies with the thread that started it.
 *
 * Leases of a second are possible (etcd's default election timeout makes them two). */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "tools/chaos_net.h"
#include "tools/http_client.h"

struct local_etcd {
    /* what the caller wants; borrowed */
    const char *dir; /* gets etcd.data and etcd.log */
    const char *host;
    bool
        is_secured; /* TLS: server.pem, server.key and ca.pem, which has signed clients', lie in dir */
    const struct chaos_net *net; /* it runs on this host of it; NULL: where the caller runs */
    int net_host;
    int client_port, peer_port; /* 0: free ones, which are kept */
    /* what came of it */
    pid_t pid; /* 0: not running */
    char url[64];
};

/* NULL if there is an etcd here; else which package is missing. */
const char *local_etcd_missing(void);
/* Starts it, with what its directory holds.  Returns before it answers. */
int local_etcd_start(struct local_etcd *t, struct err *e);
/* Does it answer now?  Blocks for a second at most; not for one that is secured. */
bool local_etcd_answers(const struct local_etcd *t, struct http_client *http);
/* SIGKILL, if it runs; its data stays. */
void local_etcd_kill(struct local_etcd *t);
