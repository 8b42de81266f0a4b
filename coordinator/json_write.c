/* coordinator/json_write.c - see json_write.h. */
#include "coordinator/json_write.h"

#include <stdlib.h>

#include "base/must.h"
#include "model/utf8.h"

/* Digits that give back the same float. */
enum { FLOAT_DIGITS = 9 };

void json_write(json_t *v, struct buf *out)
{
    char *text = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(FLOAT_DIGITS));
    must(text); /* everything in it is ours or was made valid UTF-8 */
    buf_puts(out, text);
    free(text);
    json_decref(v);
}

json_t *json_text(struct str s)
{
    if (utf8_is_valid(s))
        return json_stringn_nocheck(s.ptr ? s.ptr : "", s.len);
    struct buf clean = {0};
    struct utf8_stream stream = {0};
    utf8_feed(&stream, s, &clean);
    utf8_finish(&stream, &clean);
    json_t *v = json_stringn_nocheck(clean.data ? clean.data : "", clean.len);
    buf_fini(&clean);
    return v;
}

void json_put(json_t *object, const char *key, json_t *v)
{
    must_zero(json_object_set_new_nocheck(object, key, v));
}

void json_push(json_t *array, json_t *v)
{
    must_zero(json_array_append_new(array, v));
}
