/* model/output_m3.c - see output_m3.h.
 *
 * Between NS<tool_call> and NS</tool_call> an invocation is held until it is whole and then read by
 * descent: an element is NS<name>, what is in it, NS</name>.  What is in it is text, or elements:
 * all named "item" they are an array, else an object, and text beside them is its "$text".  What the tool's
 * schema says of a part goes before how it looks. */
#include "model/output_m3.h"

#include <string.h>

#include "model/output_value.h"

enum { THINK, END_THINK, CALLS, END_CALLS, NAMESPACE };
enum { MAX_DEPTH = 64, NS = OUTPUT_MARKER_BYTE + NAMESPACE };

const char *const output_m3_markers[OUTPUT_N_MARKERS] = {
    [THINK] = "<mm:think>",       [END_THINK] = "</mm:think>",       [CALLS] = "<tool_call>",
    [END_CALLS] = "</tool_call>", [NAMESPACE] = OUTPUT_M3_NAMESPACE,
};

static bool is_marker(char c)
{
    return (unsigned char)c >= OUTPUT_MARKER_BYTE;
}

static int marker_of(char c)
{
    return (unsigned char)c - OUTPUT_MARKER_BYTE;
}

/* ---- an invocation that is whole ---- */

struct reader {
    struct str text;
    size_t at;
    bool is_broken;
    const json_t *root; /* the tool's schema, or NULL */
};

/* Whether NS and then `letters` stand here; goes past them. */
static bool takes(struct reader *r, const char *letters)
{
    size_t n = strlen(letters);
    if (r->text.len - r->at < n + 1 || (unsigned char)r->text.ptr[r->at] != NS ||
        memcmp(r->text.ptr + r->at + 1, letters, n) != 0)
        return false;
    r->at += n + 1;
    return true;
}

/* Up to `end`, without it; empty and broken if there is none. */
static struct str take_until(struct reader *r, char end)
{
    const char *from = r->text.ptr + r->at;
    const char *found = memchr(from, end, r->text.len - r->at);
    if (!found || (size_t)(found - from) > OUTPUT_MAX_NAME_BYTES) {
        r->is_broken = true;
        return (struct str){from, 0};
    }
    r->at += (size_t)(found - from) + 1;
    return (struct str){from, (size_t)(found - from)};
}

/* Text up to the next namespace; other markers are their letters. */
static void take_text(struct reader *r, struct buf *out)
{
    for (; r->at < r->text.len && (unsigned char)r->text.ptr[r->at] != NS; r->at++) {
        char c = r->text.ptr[r->at];
        if (is_marker(c) && marker_of(c) < OUTPUT_N_MARKERS)
            buf_puts(out, output_m3_markers[marker_of(c)]);
        else
            buf_putc(out, c);
    }
}

/* Names of the members so far, NUL after each. */
static bool has_name(const struct buf *names, struct str name)
{
    for (size_t at = 0; at < names->len; at += strlen(names->data + at) + 1)
        if (str_equal(str_of(names->data + at), name))
            return true;
    return false;
}

static void read_content(struct reader *r, const json_t *schema, int depth, struct buf *out);

/* What describes the element in a value that `schema` describes. */
static const json_t *part_named(const struct reader *r, const json_t *schema, struct str name)
{
    unsigned types = schema ? output_schema_types(r->root, schema) : 0;
    if (!schema)
        return NULL;
    if (str_equal(name, STR("item")) && !(types & OUTPUT_TYPE_OBJECT))
        return output_schema_part(r->root, schema, NULL);
    struct buf key = {0};
    buf_append_str(&key, name);
    buf_putc(&key, 0);
    const json_t *part = output_schema_part(r->root, schema, key.data);
    buf_fini(&key);
    return part;
}

/* After NS<: name, content, end tag, of something that `schema` describes.  The value goes to `out`. */
static struct str read_element(struct reader *r, const json_t *schema, int depth, struct buf *out)
{
    struct str name = take_until(r, '>');
    if (!r->is_broken)
        read_content(r, part_named(r, schema, name), depth, out);
    if (!r->is_broken && (!takes(r, "</") || !str_equal(take_until(r, '>'), name)))
        r->is_broken = true;
    return name;
}

static bool is_all_space(struct str text)
{
    for (size_t i = 0; i < text.len; i++)
        if (!strchr(" \t\r\n", text.ptr[i]))
            return false;
    return true;
}

static void put_member(struct buf *json, struct str name)
{
    buf_puts(json, json->len > 0 ? ", \"" : "\"");
    output_value_escape(name, json);
    buf_puts(json, "\": ");
}

/* Without elements. */
static void write_text(struct str text, unsigned types, struct buf *out)
{
    bool is_nothing = is_all_space(text) && !(types & OUTPUT_TYPE_STRING);
    if (is_nothing && types & OUTPUT_TYPE_ARRAY)
        buf_puts(out, "[]");
    else if (is_nothing && types & OUTPUT_TYPE_OBJECT)
        buf_puts(out, "{}");
    else
        output_value_write(text, types, out);
}

/* What stands before the end tag of an element. */
static void read_content(struct reader *r, const json_t *schema, int depth, struct buf *out)
{
    unsigned types = schema ? output_schema_types(r->root, schema) : 0;
    struct buf text = {0}, items = {0}, members = {0}, names = {0}, value = {0};
    bool is_array = types & OUTPUT_TYPE_ARRAY || !(types & OUTPUT_TYPE_OBJECT);
    int n = 0;

    r->is_broken = r->is_broken || depth == MAX_DEPTH;
    for (take_text(r, &text); !r->is_broken; take_text(r, &text)) {
        size_t before = r->at;
        if (takes(r, "</") || !takes(r, "<")) {
            r->at = before;
            break;
        }
        buf_reset(&value);
        struct str name = read_element(r, schema, depth + 1, &value);
        r->is_broken = r->is_broken || ++n > OUTPUT_MAX_PARAMETERS || memchr(name.ptr, 0, name.len);
        is_array = is_array && str_equal(name, STR("item"));
        buf_puts(&items, n > 1 ? ", " : "");
        buf_append_str(&items, buf_str(&value));
        if (r->is_broken || has_name(&names, name))
            continue;
        buf_append_str(&names, name);
        buf_putc(&names, 0);
        put_member(&members, name);
        buf_append_str(&members, buf_str(&value));
    }
    if (n == 0) {
        write_text(buf_str(&text), types, out);
    } else if (is_array && is_all_space(buf_str(&text))) {
        buf_printf(out, "[%s]", items.data);
    } else {
        if (!is_all_space(buf_str(&text))) {
            put_member(&members, STR("$text"));
            buf_putc(&members, '"');
            output_value_escape(buf_str(&text), &members);
            buf_putc(&members, '"');
        }
        buf_printf(out, "{%s}", members.data);
    }
    buf_fini(&text);
    buf_fini(&items);
    buf_fini(&members);
    buf_fini(&names);
    buf_fini(&value);
}

/* The name of an invocation that begins here, quotes taken off. */
static bool read_name(struct reader *r, struct buf *name)
{
    if (!takes(r, "<invoke name="))
        return false;
    struct str text = take_until(r, '>');
    if (r->is_broken || memchr(text.ptr, 0, text.len))
        return false;
    char first = text.len > 0 ? text.ptr[0] : 0;
    if (text.len >= 2 && (first == '"' || first == '\'') && text.ptr[text.len - 1] == first)
        text = (struct str){text.ptr + 1, text.len - 2};
    buf_append_str(name, text);
    return true;
}

static void break_off(struct output *o, const char *why, struct output_events *out)
{
    o->place = OUTPUT_BROKEN;
    output_events_put(out, OUTPUT_ERROR, -1, str_of(why));
}

/* Each parameter by the type that the tool declares for it. */
static void read_parameters(struct output *o, struct reader *r, const char *tool, struct buf *json)
{
    struct buf names = {0}, value = {0}, dropped = {0};
    r->root = output_schema_of(o->tools, tool);

    for (take_text(r, &dropped); !r->is_broken && !takes(r, "</invoke>"); take_text(r, &dropped)) {
        if (!takes(r, "<")) {
            r->is_broken = true;
            break;
        }
        buf_reset(&value);
        struct str name = read_element(r, r->root, 0, &value);
        if (r->is_broken || has_name(&names, name))
            continue;
        buf_append_str(&names, name);
        buf_putc(&names, 0);
        put_member(json, name);
        buf_append_str(json, buf_str(&value));
    }
    for (size_t i = 0; i < dropped.len; i++)
        o->report.dropped_bytes += !strchr(" \t\r\n", dropped.data[i]);
    buf_fini(&names);
    buf_fini(&value);
    buf_fini(&dropped);
}

/* A whole invocation: a call with its end, or, where it cannot be read, its name alone. */
static void put_call(struct output *o, struct str text, struct output_events *out)
{
    struct reader r = {.text = text};
    struct buf name = {0}, json = {0}, all = {0};

    if (o->report.n_calls == OUTPUT_MAX_CALLS) {
        break_off(o, "too many tool calls", out);
    } else if (!read_name(&r, &name)) {
        o->report.dropped_bytes += text.len;
    } else {
        int call = o->report.n_calls++;
        output_events_put(out, OUTPUT_CALL, call, buf_str(&name));
        read_parameters(o, &r, name.len > 0 ? name.data : "", &json);
        if (r.is_broken) {
            o->report.n_cut = 1;
            break_off(o, "a tool call cannot be read", out);
        } else {
            buf_printf(&all, "{%s}", json.len > 0 ? json.data : "");
            output_events_put(out, OUTPUT_ARGUMENTS, call, buf_str(&all));
            output_events_put(out, OUTPUT_CALL_END, call, STR(""));
        }
    }
    buf_fini(&name);
    buf_fini(&json);
    buf_fini(&all);
}

/* ---- the stream ---- */

static void put_spoken(struct output *o, struct str text, struct output_events *out)
{
    for (; o->after_block && text.len > 0 && strchr(" \t\r\n", text.ptr[0]); text.len--)
        text.ptr++;
    if (text.len == 0)
        return;
    o->after_block = o->at_start = false;
    output_events_put(out, o->place == OUTPUT_IN_REASONING ? OUTPUT_REASONING : OUTPUT_CONTENT, -1,
                      text);
}

/* A marker outside a block.  Returns how many bytes it was, 0 if more must come first. */
static size_t take_marker(struct output *o, struct str text, bool no_more,
                          struct output_events *out)
{
    int marker = marker_of(text.ptr[0]);
    bool was_at_start = o->at_start;

    if (marker == NAMESPACE && text.len == 1 && !no_more && o->tools)
        return 0;
    bool has_namespace = marker == NAMESPACE && text.len > 1;
    if (o->tools && (marker == CALLS || (has_namespace && is_marker(text.ptr[1]) &&
                                         marker_of(text.ptr[1]) == CALLS))) {
        o->place = OUTPUT_IN_BLOCK;
        o->at_start = false;
        return marker == CALLS ? 1 : 2;
    }
    o->at_start = false;
    if (marker == THINK && was_at_start) {
        o->place = OUTPUT_IN_REASONING;
        o->reasons = true;
    } else if (marker == END_THINK && (o->place == OUTPUT_IN_REASONING || was_at_start)) {
        o->place = OUTPUT_IN_CONTENT;
        o->reasons = false;
    } else if (marker < OUTPUT_N_MARKERS) {
        put_spoken(o, str_of(output_m3_markers[marker]), out);
    }
    return 1;
}

/* Bytes up to and with NS</invoke>, or 0. */
static size_t whole_invocation(struct str text)
{
    static const char end[] = "</invoke>";
    for (size_t at = 0; at + sizeof end <= text.len; at++)
        if ((unsigned char)text.ptr[at] == NS &&
            memcmp(text.ptr + at + 1, end, sizeof end - 1) == 0)
            return at + sizeof end;
    return 0;
}

/* In a block: one invocation or the block's end.  Returns how many bytes, 0 if more must come. */
static size_t take_from_block(struct output *o, struct str text, struct output_events *out)
{
    size_t first = 0; /* what is no tag before the first namespace is dropped */
    while (first < text.len && (unsigned char)text.ptr[first] != NS &&
           !(is_marker(text.ptr[first]) && marker_of(text.ptr[first]) == END_CALLS))
        first++;
    if (first > 0 || text.len == 0) {
        for (size_t i = 0; i < first; i++)
            o->report.dropped_bytes += !strchr(" \t\r\n", text.ptr[i]);
        return first;
    }
    size_t skip = (unsigned char)text.ptr[0] == NS;
    if (text.len == skip)
        return 0;
    if (is_marker(text.ptr[skip]) && marker_of(text.ptr[skip]) == END_CALLS) {
        o->place = OUTPUT_IN_CONTENT;
        o->after_block = true;
        return skip + 1;
    }
    size_t whole = whole_invocation(text);
    if (whole > 0)
        put_call(o, (struct str){text.ptr, whole}, out);
    else if (text.len > OUTPUT_MAX_VALUE_BYTES)
        break_off(o, "a tool call is too long", out);
    return whole;
}

/* The output ends inside an invocation: its name, if that is there. */
static void put_cut_call(struct output *o, struct str text, struct output_events *out)
{
    struct reader r = {.text = text};
    struct buf name = {0};
    o->report.n_cut = 1;
    if (o->report.n_calls < OUTPUT_MAX_CALLS && read_name(&r, &name))
        output_events_put(out, OUTPUT_CALL, o->report.n_calls++, buf_str(&name));
    buf_fini(&name);
}

void output_m3_scan(struct output *o, bool no_more, struct output_events *out)
{
    struct str text = buf_str(&o->text);
    size_t at = 0;

    while (at < text.len && o->place != OUTPUT_BROKEN) {
        struct str rest = {text.ptr + at, text.len - at};
        size_t n = 0;
        if (o->place == OUTPUT_IN_BLOCK) {
            n = take_from_block(o, rest, out);
        } else if (is_marker(rest.ptr[0])) {
            n = take_marker(o, rest, no_more, out);
        } else {
            while (n < rest.len && !is_marker(rest.ptr[n]))
                n++;
            put_spoken(o, (struct str){rest.ptr, n}, out);
        }
        if (n == 0)
            break;
        at += n;
    }
    if (no_more && o->place == OUTPUT_IN_BLOCK && at < text.len)
        put_cut_call(o, (struct str){text.ptr + at, text.len - at}, out);
    buf_drop(&o->text, o->place == OUTPUT_BROKEN || no_more ? text.len : at);
}
