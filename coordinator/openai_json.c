/* coordinator/openai_json.c - see openai_json.h. */
#include "coordinator/openai_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int openai_refuse(struct openai_error *e, const char *reason, const char *param, const char *format,
                  ...)
{
    *e = (struct openai_error){.status = 400, .type = "invalid_request_error", .reason = reason};
    snprintf(e->param, sizeof e->param, "%s", param);
    va_list args;
    va_start(args, format);
    vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
    return E_INVALID;
}

void openai_error_of(struct openai_error *e, int code, const char *text)
{
    static const struct {
        int code, status;
        const char *type, *name;
    } kinds[] = {
        {E_BUSY, 429, "rate_limit_error", "queue_full"},
        {E_UNAVAILABLE, 503, "service_unavailable", "not_ready"},
        {E_DEADLINE, 504, "timeout", "timeout"},
        {E_RANGE, 400, "invalid_request_error", "context_length_exceeded"},
        {E_INVALID, 400, "invalid_request_error", NULL},
        {E_CANCELLED, 503, "service_unavailable", "cancelled"},
        {E_ABORTED, 503, "service_unavailable", "aborted"},
    };
    *e = (struct openai_error){
        .status = 500, .type = "server_error", .code = "internal_error", .reason = "internal"};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].code == code) {
            e->status = kinds[i].status;
            e->type = kinds[i].type;
            e->code = kinds[i].name;
            e->reason = kinds[i].name ? kinds[i].name : "invalid";
        }
    snprintf(e->message, sizeof e->message, "%s", text && text[0] ? text : err_text(code));
}

int json_body(struct str body, json_t **out, struct openai_error *e)
{
    json_error_t at;
    *out = NULL;
    json_t *root = json_loadb(body.ptr ? body.ptr : "", body.len,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &at);
    if (!root)
        return openai_refuse(e, "json", "", "the body is not valid JSON: line %d, column %d: %s",
                             at.line, at.column, at.text);
    if (!json_is_object(root)) {
        int rc = openai_refuse(e, "json", "", "the body must be a JSON object, not %s",
                               json_type_name(root));
        json_decref(root);
        return rc;
    }
    *out = root;
    return 0;
}

json_t *json_field(const json_t *object, const char *name)
{
    json_t *v = json_object_get(object, name);
    return json_is_null(v) ? NULL : v;
}

struct str json_str(const json_t *string)
{
    return (struct str){json_string_value(string), json_string_length(string)};
}

const char *json_type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        break;
    }
    return "null";
}

int json_read_bool(const json_t *object, const char *name, bool *out, struct openai_error *e)
{
    const json_t *v = json_field(object, name);
    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return openai_refuse(e, "type", name, "%s must be true or false, not %s", name,
                             json_type_name(v));
    *out = json_is_true(v);
    return 0;
}

int json_read_number(const json_t *object, const char *name, double min, double max, double *out,
                     struct openai_error *e)
{
    const json_t *v = json_field(object, name);
    if (!v)
        return 0;
    if (!json_is_number(v))
        return openai_refuse(e, "type", name, "%s must be a number, not %s", name,
                             json_type_name(v));
    double x = json_number_value(v);
    if (!isfinite(x) || x < min || x > max)
        return openai_refuse(e, "range", name, "%s must be between %g and %g, not %g", name, min,
                             max, x);
    *out = x;
    return 0;
}

int json_read_int(const json_t *object, const char *name, int64_t min, int64_t max, int64_t *out,
                  struct openai_error *e)
{
    const json_t *v = json_field(object, name);
    if (!v)
        return 0;
    if (!json_is_integer(v))
        return openai_refuse(e, "type", name, "%s must be an integer, not %s", name,
                             json_type_name(v));
    int64_t x = json_integer_value(v);
    if (x < min || x > max)
        return openai_refuse(e, "range", name,
                             "%s must be between %" PRId64 " and %" PRId64 ", not %" PRId64, name,
                             min, max, x);
    *out = x;
    return 0;
}
