/* coordinator/etcd.h - a client of etcd's JSON gateway (/v3/...: what is put and got there is
 * coordinator/etcd_keys.h).
 *
 * Requests are done one after another by a thread of their own, so that no etcd ever holds up
 * the loop; each has a time by which its answer comes, if only as E_DEADLINE.  Of several
 * endpoints it stays with the one that answers.  Nothing that an endpoint says is believed to
 * be well-formed: an answer is at most ETCD_MAX_ANSWER_BYTES of JSON with status 200, or an error.
 *
 * With a user and a password it gets itself a token, and another one when that is not taken any more;
 * a request that has to wait for that may be answered up to 10 s late.  What is refused is told with
 * the option that is wrong and the remedy.
 *
 * Owner: coordinator loop.  Log events: etcd.lost, etcd.answers. */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "rpc/loop.h"

enum { ETCD_MAX_ENDPOINTS = 9, ETCD_MAX_ANSWER_BYTES = 32 << 20, ETCD_MAX_UNDER_WAY = 4 };

/* Texts are borrowed until etcd_close(); "": none. */
struct etcd_options {
    const char *endpoints; /* http(s)://HOST:PORT, several with commas between */
    const char *ca_file, *cert_file, *key_file;
    const char *user, *password_file;
};

struct etcd;
/* E_INVALID: an endpoint or a file is not what it should be.  That etcd answers is not needed. */
int etcd_open(struct loop *l, const struct etcd_options *o, struct etcd **out, struct err *e);
/* Ends what is under way; nobody is called back any more. */
void etcd_close(struct etcd **e);

/* `answer` is an object, borrowed; NULL if code < 0, and `why` says why. */
typedef void etcd_done(void *ud, int code, const json_t *answer, const char *why);
/* Posts `body` (taken) to `path` ("/v3/kv/range"; static).  E_BUSY: too much is under way. */
int etcd_post(struct etcd *c, const char *path, json_t *body, int64_t timeout_ns, etcd_done *done,
              void *ud);
/* The last word, before etcd_close(): what is under way is given up, this is sent, and its answer
 * waited for, at most timeout_ns.  Blocks. */
void etcd_post_last(struct etcd *c, const char *path, json_t *body, int64_t timeout_ns);
/* NULL, or why the latest request failed. */
const char *etcd_why_lost(const struct etcd *c);

/* Are these endpoints well-formed, and is no password sent where anybody can read it?
 * `may_be_open`: it may. */
int etcd_check(const struct etcd_options *o, bool may_be_open, struct err *e);
