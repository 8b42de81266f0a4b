/* coordinator/access.h - who may ask over HTTP, and how much: API keys and their limits (step 1
 * of a token's path).
 *
 * Time comes with every call.  A key's requests and tokens per minute are buckets that hold one
 * minute's worth; a request is let in while both hold something, and what its answer costs is
 * taken afterwards, so one long answer may owe some of the next minute.
 *
 * A key that is taken out of the file lets nobody in from then on; what runs, ends.
 *
 * Owner: coordinator loop.  Log events: access.keys, access.keys_refused (the old ones stay). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/list.h"
#include "rpc/api_key.h"

enum access_level { ACCESS_OPEN, ACCESS_CLIENT, ACCESS_ADMIN };
/* What a path asks for: /health, /ready and the pages (/, /web/...) are open; /metrics, /cluster,
 * /admin/... and /debug/... are the operators'; the rest needs a key. */
enum access_level access_level_of(const char *path);

/* Owner: coordinator loop.  Valid while it is in the file or something of it runs. */
struct access_key {
    struct list link;
    struct api_key_line line;
    bool is_gone;
    int64_t filled_ns, n_running;
    double request_room, token_room;
    int64_t n_requests, n_limited, n_tokens;
};

struct access;
/* `path` "" or NULL: no keys, and everybody may do everything. */
int access_open(const char *path, int64_t now_ns, struct access **out, struct err *e);
void access_close(struct access **a);
/* Reads the file again if it has changed. */
void access_tick(struct access *a, int64_t now_ns);
bool access_has_keys(const struct access *a);

/* Whose key is it?  The header's values, or NULL: "Bearer KEY", and the key alone. */
struct access_key *access_find(struct access *a, const char *authorization, const char *api_key);
/* 0, 401 (no key, or an unknown one) or 403 (not an admin's). */
int access_status(struct access *a, const struct access_key *k, enum access_level level);
const char *access_why(int status);

/* One more request of this key (NULL: everybody's): 0, or E_BUSY with what it is too much of and
 * when to come again.  After 0 comes exactly one access_end(). */
int access_begin(struct access_key *k, int64_t now_ns, int64_t *retry_s, struct err *e);
void access_end(struct access_key **k, int64_t n_tokens, int64_t now_ns);
/* For the scheduler; NULL: what a key has of which nothing is said. */
uint32_t access_share(const struct access_key *k);
/* The class of a request that asks for `raise` more than its key's; as much of it as the key may have. */
int access_priority(const struct access_key *k, int raise);

struct access_counters {
    int64_t unknown, denied, limited;
    int n_keys;
};
void access_count(const struct access *a, struct access_counters *out);
/* Every key, oldest first: head of struct access_key links. */
const struct list *access_keys(const struct access *a);
