/* tests/fuzz/fuzz_output.c - what a model says is outside data: any bytes, orderly events.
 *
 * First byte: bit 0 begins in the reasoning, bit 1 with tools, bit 2 cut short, bits 3 to 7 the
 * length of the pieces in which it comes (0: whole).  The rest is the output. */
#include "tests/lib/fuzz.h"

#include <string.h>

#include "base/must.h"
#include "model/output.h"
#include "model/utf8.h"

static const char tools_text[] =
    "[{\"function\": {\"name\": \"f\", \"parameters\": {\"properties\": {\"s\": {\"type\": "
    "\"string\"}, \"i\": {\"type\": \"integer\"}, \"b\": {\"type\": \"boolean\"}, \"m\": "
    "{\"type\": "
    "[\"string\", \"null\"]}, \"o\": {\"type\": \"object\"}}}}}]";

static void read_output(struct str text, uint8_t flags, size_t piece, const json_t *tools,
                        struct output_events *said)
{
    struct output o;

    output_init(&o, NULL, flags & 1 ? OUTPUT_IN_REASONING : OUTPUT_IN_CONTENT,
                flags & 2 ? tools : NULL);
    for (size_t at = 0; at < text.len; at += piece) {
        size_t len = text.len - at < piece ? text.len - at : piece;
        output_feed_text(&o, (struct str){text.ptr + at, len}, said);
        must(o.text.len < 64 && o.value.len <= OUTPUT_MAX_VALUE_BYTES);
    }
    output_finish(&o, flags & 4 ? OUTPUT_CUT : OUTPUT_STOPPED, said);
    must(flags & 4 || o.report.n_cut == 0 || o.report.ended == OUTPUT_BROKEN);
    output_fini(&o);
}

static void check_arguments(struct buf *json)
{
    json_t *v = json_loadb(json->data, json->len,
                           JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    /* Within a value the model may have written a key twice. */
    if (!v)
        v = json_loadb(json->data, json->len, JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, NULL);
    must(json_is_object(v));
    json_decref(v);
    buf_reset(json);
}

/* A call is its name, its arguments and its end; nothing else comes in between. */
static void check_events(const struct output_events *said)
{
    struct buf json = {0};
    int n_calls = 0;
    enum { NO_CALL, IN_CALL } inside = NO_CALL;

    for (size_t i = 0; i < said->n; i++) {
        struct str text = output_events_text(said, i);
        must(utf8_is_valid(text));
        switch (said->list[i].kind) {
        case OUTPUT_REASONING:
        case OUTPUT_CONTENT:
            must(inside == NO_CALL && text.len > 0 && said->list[i].call == -1);
            break;
        case OUTPUT_CALL:
            must(inside == NO_CALL && said->list[i].call == n_calls++);
            inside = IN_CALL;
            break;
        case OUTPUT_ARGUMENTS:
            must(inside == IN_CALL && said->list[i].call == n_calls - 1);
            buf_append_str(&json, text);
            break;
        case OUTPUT_CALL_END:
            must(inside == IN_CALL && said->list[i].call == n_calls - 1);
            check_arguments(&json);
            inside = NO_CALL;
            break;
        case OUTPUT_ERROR:
            must(i + 1 == said->n && text.len > 0);
        }
    }
    buf_fini(&json);
}

static void check_same(const struct output_events *a, const struct output_events *b)
{
    must(a->n == b->n && str_equal(buf_str(&a->text), buf_str(&b->text)));
    for (size_t i = 0; i < a->n; i++)
        must(a->list[i].kind == b->list[i].kind && a->list[i].len == b->list[i].len);
}

FUZZ(output)
{
    if (bytes == 0)
        return;
    json_t *tools = json_loads(tools_text, 0, NULL);
    struct str text = {(const char *)data + 1, bytes - 1};
    struct output_events said = {0}, again = {0};
    read_output(text, data[0], text.len + 1, tools, &said);
    check_events(&said);
    if (data[0] >> 3) {
        read_output(text, data[0], data[0] >> 3, tools, &again);
        check_same(&said, &again);
    }
    output_events_fini(&said);
    output_events_fini(&again);
    json_decref(tools);
}
