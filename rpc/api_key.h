/* rpc/api_key.h - keys of HTTP clients: how one looks, and its line in the file of keys.
 *
 *   # comment
 *   alice sha256:HEX requests=60 tokens=100000 streams=4 priority=5 max_priority=7 share=2
 *   ops   sha256:HEX admin
 *
 * A key is 32 random bytes, so a plain SHA-256 of it cannot be turned round and costs nothing per
 * request; the key itself is shown once, when it is made, and stored nowhere. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "rpc/key.h"

enum { API_KEY_TEXT_BYTES = 48, API_KEY_HASH_BYTES = 32, API_KEY_MAX = 4096 };
enum { API_KEY_PRIORITIES = 10 /* 0 .. 9 */, API_KEY_MOST_SHARE = 1000 };

/* Limits; 0: none. */
struct api_key_limits {
    int64_t requests_per_minute, tokens_per_minute, streams;
    int priority; /* 0 (first to wait) .. 9; 5 unless given; for the scheduler */
    /* The highest that a request may ask for; below `priority`: that. */
    int max_priority;
    int share;     /* of the tokens, against other keys of the same priority: 1 (unless given) .. */
    bool is_admin; /* may read /metrics, /cluster and /admin */
};
struct api_key_line {
    char name[KEY_NAME_BYTES];
    uint8_t hash[API_KEY_HASH_BYTES];
    struct api_key_limits limits;
};

/* A fresh key into `text` ("pm-" and 43 characters), its hash into the line. */
void api_key_make(struct api_key_line *line, char text[API_KEY_TEXT_BYTES]);
void api_key_hash(struct str text, uint8_t out[API_KEY_HASH_BYTES]);
/* In time that does not depend on where they differ. */
bool api_key_hash_equal(const uint8_t a[API_KEY_HASH_BYTES], const uint8_t b[API_KEY_HASH_BYTES]);

/* All lines of a file's text; free `*out` with mem_free().  E_INVALID names the line: malformed, a
 * name or a key twice. */
int api_key_parse(struct str text, const char *what, struct api_key_line **out, int *n,
                  struct err *e);
int api_key_read(const char *path, struct api_key_line **out, int *n, struct err *e);
void api_key_print(const struct api_key_line *line, struct buf *out);
