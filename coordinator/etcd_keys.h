/* coordinator/etcd_keys.h - what a cluster keeps in etcd, and the requests and answers about it.
 *
 *   PREFIX/leader       who leads; under its lease            {"instance", "state", "name", "url",
 *                                                                       "cluster"}
 *   PREFIX/last         the same, without a lease: its revision is the term
 *   PREFIX/in_step      {"states": [...]}: of the standbys that have all of the leader's log
 *   PREFIX/placement    {"version", "layers", "experts", "fingerprint"}
 *   PREFIX/nodes/NAME   {"host", "capacity", "holds": base64 of [layers][(experts + 7) / 8]}
 *
 * Answers are not believed to be well-formed: what is not as it should be is E_CORRUPT, or left out.
 * Requests are for etcd_post(), which takes them.
 *
 * Pure: JSON and structs. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "coordinator/leader.h"

enum { ETCD_TEXT_BYTES = 256, ETCD_STORE_BATCH = 16 };

/* A coordinator, as others see it. */
struct etcd_leader {
    uint64_t instance;
    uint64_t state; /* of its state directory (coordinator/identity.h), or the instance again */
    char name[ETCD_TEXT_BYTES], url[ETCD_TEXT_BYTES], cluster[ETCD_TEXT_BYTES];
};

/* ---- leadership ------------------------------------------------------------------------- */

/* Where to post a leader's request; NULL if it is none. */
const char *etcd_path_of(enum leader_ask ask);
json_t *etcd_request_of(const struct leader_request *r, const char *prefix,
                        const struct etcd_leader *self);
/* Fills `out` (its number, too) and, after LOOK and TAKE, `holder`, which is all-zero if there is
 * none.  `cluster`: etcd's own name, if the answer says it; else unchanged. */
int etcd_answer_of(const json_t *answer, const struct leader_request *r,
                   const struct etcd_leader *self, struct leader_answer *out,
                   struct etcd_leader *holder, uint64_t *cluster, struct err *e);
/* Who is in step with the leader of this term; done only as long as it leads. */
json_t *etcd_store_in_step(const char *prefix, uint64_t term, const uint64_t *states, int n);
extern const char etcd_path_revoke[], etcd_path_txn[], etcd_path_range[];
json_t *etcd_revoke(int64_t lease);

/* ---- placement ------------------------------------------------------------------------------ */

struct etcd_placement {
    uint64_t version, fingerprint;
    uint32_t n_layers, n_experts;
};
struct etcd_node {
    const char *name, *host;
    int64_t capacity;
    const uint8_t *holds; /* NULL: to be deleted */
    size_t holds_bytes;
};
/* One transaction, done only as long as the key `leader` is that of this term: a successor's state is
 * never overwritten. */
json_t *etcd_store(const char *prefix, uint64_t term, const struct etcd_placement *p,
                   const struct etcd_node *nodes, int n_nodes);
/* false: somebody else leads. */
bool etcd_was_stored(const json_t *answer);
/* All of it. */
json_t *etcd_fetch(const char *prefix);
/* Calls `each` for every node whose bitmap has `holds_bytes` bytes, borrowed; `out` is all-zero if
 * nothing was stored.  How many nodes were unreadable, or an error. */
int etcd_read_placement(const json_t *answer, const char *prefix, size_t holds_bytes,
                        struct etcd_placement *out,
                        void (*each)(void *ud, const struct etcd_node *n), void *ud);
