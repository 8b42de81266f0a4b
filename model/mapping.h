/* model/mapping.h - a model file, mapped read-only and shared.
 *
 * A file that shrinks while it is mapped kills its reader (SIGBUS): replace model files by
 * renaming, never in place.  Thread-safe once open. */
#pragma once

#include <stddef.h>

#include "base/err.h"

/* All-zero is empty. */
struct mapping {
    const char *data;
    size_t bytes;
};

/* E_NOT_FOUND, E_IO, E_INVALID (no regular file) or E_CORRUPT (an empty one). */
int mapping_open(struct mapping *m, const char *path, struct err *e);
void mapping_close(struct mapping *m);

/* What will be needed soon is read ahead; what is done leaves the resident set (not the page
 * cache) and stays valid.  Advice: the system may do nothing. */
enum mapping_advice { MAPPING_SOON, MAPPING_DONE };
void mapping_advise(const struct mapping *m, size_t offset, size_t bytes,
                    enum mapping_advice advice);
/* Reads a range and enters it into the page tables, so that nobody waits at its first touch.
 * E_IO: the file cannot be read there or is shorter by now. */
int mapping_fill(const struct mapping *m, size_t offset, size_t bytes);
/* mlock(2), which also fills; an errno or 0. */
int mapping_lock(const struct mapping *m, size_t offset, size_t bytes);
