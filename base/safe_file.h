/* base/safe_file.h - small files on which safety depends: keys, lists of who is let in.
 *
 * A file that somebody else could have written, or a secret that somebody else can read, is
 * refused by name.  Any thread; blocks for a small file's time. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

enum safe_file_kind {
    SAFE_FILE_SECRET, /* nobody but the owner may read or write it: 0600, 0400 */
    SAFE_FILE_PUBLIC, /* nobody but the owner may write it: 0644 */
};
enum { SAFE_FILE_BYTES = 1 << 20 };

/* The whole file, at most SAFE_FILE_BYTES, appended to `out`, whose data is then never NULL.  E_DENIED: its mode lets others
 * in, or it belongs neither to us nor to root; E_INVALID: not a regular file; E_RANGE: too
 * large. */
int safe_file_read(const char *path, enum safe_file_kind kind, struct buf *out, struct err *e);
/* A new file; E_EXISTS if there is one. */
int safe_file_create(const char *path, enum safe_file_kind kind, struct str text, struct err *e);
/* In place of the old one, which readers see whole until they see the new one. */
int safe_file_replace(const char *path, enum safe_file_kind kind, struct str text, struct err *e);

/* Changes when the file does; 0 if it is not there. */
uint64_t safe_file_stamp(const char *path);
