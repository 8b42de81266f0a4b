/* tests/lib/etcd.h - a real etcd of a test's own: on free loopback ports, its data in the test's
 * directory, dead when the test is. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct test_etcd {
    pid_t pid; /* 0: not running */
    int client_port, peer_port;
    bool is_secured;
    char url[64];
};

/* Of 127.0.0.1; nobody has it at this moment. */
int etcd_free_port(void);
/* Skips the test where there is no etcd-server.  Leases of a second are possible.  Returns when it
 * answers. */
void etcd_begin(struct test_etcd *t);
/* One that speaks TLS with clients whose certificate ca.pem has signed; ca.pem, server.pem and
 * server.key lie in the test's directory.  Returns before it answers; the functions below are not for
 * it, but for etcd_end(). */
void etcd_begin_secured(struct test_etcd *t);
/* The same data and ports again, after etcd_end(). */
void etcd_again(struct test_etcd *t);
/* SIGKILL. */
void etcd_end(struct test_etcd *t);
/* What is at `key` (whole, with prefix); waits until there is something.  "": never. */
void etcd_wait_key(const struct test_etcd *t, const char *key);
void etcd_delete(const struct test_etcd *t, const char *key);
