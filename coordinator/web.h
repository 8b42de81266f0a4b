/* coordinator/web.h - the pages that the coordinator serves at /: the files of coordinator/web/, which are
 * part of the program. */
#pragma once

#include <stdbool.h>

#include "base/buf.h"

struct web_file {
    const char *content_type;
    struct str data;
};
/* "/", "/web/style.css"; false: there is no such file. */
bool web_find(const char *path, struct web_file *out);
/* What the pages may do, as the header Content-Security-Policy says it: nothing from elsewhere, no
 * scripts and styles inside the text. */
extern const char web_policy[];
