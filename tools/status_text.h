/* tools/status_text.h - a cluster as /cluster tells it, for people: lines of at most
 * STATUS_TEXT_COLUMNS, except where a model's name, an URL or an error is longer. */
#pragma once

#include <jansson.h>

#include "base/buf.h"

enum { STATUS_TEXT_COLUMNS = 100 };

/* Appends to `out`.  `root`: an answer of /cluster; what it lacks is left out. */
void status_text(const json_t *root, struct buf *out);
