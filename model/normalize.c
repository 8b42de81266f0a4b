#include "model/normalize.h"

#include <stdlib.h>
#include <utf8proc.h>

#include "base/must.h"
#include "model/utf8.h"

/* libutf8proc sorts a run of marks by insertion, so a run must not get long.  Real text has a
 * handful; UAX #15 calls text with at most 30 "stream-safe". */
enum { MARKS_MAX = 128 };

/* End of the stretch from `at` that can be composed on its own: one character and the non-ASCII
 * ones behind it (ASCII starts a character and never joins the one before). */
static size_t stretch_end(struct str text, size_t at)
{
    size_t len, n_marks = 0;
    int32_t code_point;

    for (size_t start = at; at < text.len; at += len) {
        if (at > start && (unsigned char)text.ptr[at] < 0x80)
            break;
        len = utf8_decode(text, at, &code_point);
        if (len == 0)
            break;
        n_marks = utf8proc_get_property(code_point)->combining_class > 0 ? n_marks + 1 : 0;
        if (n_marks > MARKS_MAX)
            break;
    }
    return at;
}

static void append_composed(struct str stretch, struct buf *out)
{
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t len =
        utf8proc_map((const utf8proc_uint8_t *)stretch.ptr, (utf8proc_ssize_t)stretch.len,
                     &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);

    /* The stretch is valid UTF-8, so only memory can be short. */
    must(len >= 0);
    buf_append(out, composed, (size_t)len);
    free(composed);
}

void normalize_nfc(struct str text, struct buf *out)
{
    size_t at = 0, end;

    while (at < text.len) {
        end = stretch_end(text, at);
        if (end <= at + 1) { /* plain ASCII, or a bad byte */
            buf_putc(out, text.ptr[at++]);
            continue;
        }
        append_composed((struct str){text.ptr + at, end - at}, out);
        at = end;
    }
}
