/* model/json.c - see json.h. */
#include "model/json.h"

#include "base/buf.h"

json_t *json_parse_object(const void *data, size_t bytes, struct err *e)
{
    json_error_t where;
    json_t *root = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &where);
    if (!root) {
        err_set(e, E_CORRUPT, "line %d: %s", where.line, where.text);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        err_set(e, E_CORRUPT, "expected a JSON object");
        return NULL;
    }
    return root;
}

json_t *json_read_object(const char *path, size_t limit_bytes, struct err *e)
{
    struct buf text = {0};
    json_t *root = NULL;
    if (buf_read_file(&text, path, limit_bytes, e) == 0) {
        root = json_parse_object(text.data, text.len, e);
        if (!root)
            err_prefix(e, "%s", path);
    }
    buf_fini(&text);
    return root;
}
