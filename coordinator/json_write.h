/* coordinator/json_write.h - JSON that goes out, shared by the files that write answers. */
#pragma once

#include <jansson.h>

#include "base/buf.h"

/* Appends the value, compact, and gives its reference back. */
void json_write(json_t *v, struct buf *out);
/* A string; bytes that are no characters become U+FFFD. */
json_t *json_text(struct str s);
/* Both take the reference to v. */
void json_put(json_t *object, const char *key, json_t *v);
void json_push(json_t *array, json_t *v);
