/* model/json.h - JSON files of a model directory, read with one set of rules: duplicate
 * keys are an error, size is bounded, and errors name file and line. */
#pragma once

#include <jansson.h>
#include <stddef.h>

#include "base/err.h"

/* The file's top-level object, or NULL with *e filled; free with json_decref(). */
json_t *json_read_object(const char *path, size_t limit_bytes, struct err *e);
/* The same for bytes in memory; `line` numbers in the error count from 1. */
json_t *json_parse_object(const void *data, size_t bytes, struct err *e);
