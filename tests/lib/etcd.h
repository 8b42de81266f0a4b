/* tests/lib/etcd.h - a real etcd of a test's own: on free loopback ports, its data in the test's
 * directory, dead when the test is. */
#pragma once

#include "tools/local_etcd.h"

/* Skips the test where there is no etcd-server.  Returns when it answers. */
void etcd_begin(struct local_etcd *t);
/* One that speaks TLS with clients whose certificate ca.pem has signed; ca.pem, server.pem and
 * server.key lie in the test's directory.  Returns before it answers; the functions below are not for
 * it, but for etcd_end(). */
void etcd_begin_secured(struct local_etcd *t);
/* The same data and ports again, after etcd_end(). */
void etcd_again(struct local_etcd *t);
/* SIGKILL. */
void etcd_end(struct local_etcd *t);
/* What is at `key` (whole, with prefix); waits until there is something.  "": never. */
void etcd_wait_key(const struct local_etcd *t, const char *key);
void etcd_delete(const struct local_etcd *t, const char *key);
