/* rpc/allow.h - who may connect: a list of public keys with names.
 *
 *   # comment
 *   q!2(:dXJ...(40 characters) expert-0
 *
 * Immutable once made, so any thread may read one. */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "rpc/key.h"

enum { ALLOW_MAX_KEYS = 4096 };

struct allow_entry {
    char key[KEY_TEXT_BYTES], name[KEY_NAME_BYTES];
};
/* All-zero is empty: nobody. */
struct allow {
    struct allow_entry *entries; /* by key */
    int n;
};

/* E_INVALID names the line: no key, no name, a key twice.  `what` is the file's name. */
int allow_parse(struct str text, const char *what, struct allow *out, struct err *e);
/* safe_file_read() and allow_parse(). */
int allow_read(const char *path, struct allow *out, struct err *e);
void allow_fini(struct allow *a);

/* Adds a key, also one that is there (its name then stays). */
void allow_add(struct allow *a, const char *key, const char *name);
void allow_add_all(struct allow *a, const struct allow *more);
/* NULL: not allowed. */
const struct allow_entry *allow_find(const struct allow *a, const char *key);
