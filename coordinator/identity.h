/* coordinator/identity.h - what others know a state directory by, also after a restart: a random
 * number in a file of it.
 *
 * It stands for what lies in the directory, so a copy of it somewhere else is another one: the file
 * says where it was made (its inode and the host's name), and is made anew where that does not fit. */
#pragma once

#include <stdint.h>

#include "base/err.h"

/* Makes the directory and the file where they are not there.  Never 0.  Blocks for a small file. */
int identity_of(const char *dir, uint64_t *out, struct err *e);
