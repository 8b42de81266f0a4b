/* model/output.c - see output.h.
 *
 * Inside, the output is one stream of bytes: text is made valid UTF-8 first, which leaves the
 * bytes from 0xf8 on free to stand for markers that came as tokens.  A table says which
 * sequences of tags mean something in which place; where no rule fits, a byte is text.  No rule's
 * sequence is the beginning of another's in the same place, so the first that fits is the one. */
#include "model/output.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/output_m3.h"
#include "model/output_value.h"

/* ---- the format --------------------------------------------------------------------------- */

enum tag {
    TAG_THINK, /* the first OUTPUT_N_MARKERS are tokens */
    TAG_END_THINK,
    TAG_CALLS,
    TAG_END_CALLS,
    TAG_NAMESPACE, /* M3's alone */
    TAG_CALL,      /* up to the name */
    TAG_END_CALL,
    TAG_VALUE, /* up to the name */
    TAG_END_VALUE,
    N_TAGS,
    LINE_FEED, /* in a rule: one, if there is one */
    NO_TAG,
};
_Static_assert((int)TAG_CALL == OUTPUT_N_MARKERS, "the markers come first");

static const char *const tags[N_TAGS] = {
    [TAG_THINK] = "<think>",
    [TAG_END_THINK] = "</think>",
    [TAG_CALLS] = "<minimax:tool_call>",
    [TAG_END_CALLS] = "</minimax:tool_call>",
    [TAG_NAMESPACE] = OUTPUT_M3_NAMESPACE,
    [TAG_CALL] = "<invoke name=",
    [TAG_END_CALL] = "</invoke>",
    [TAG_VALUE] = "<parameter name=",
    [TAG_END_VALUE] = "</parameter>",
};
enum { LINE_FEEDS_AFTER_THINK = 1, LINE_FEEDS_AFTER_END_THINK = 2 };

enum condition { ALWAYS, AT_START, WITH_TOOLS, UNCLOSED };
enum action {
    BEGIN_REASONING,
    END_REASONING,
    BEGIN_BLOCK,
    END_BLOCK,
    BEGIN_CALL_NAME,
    END_CALL,
    BEGIN_VALUE_NAME,
    END_VALUE,
};

struct rule {
    enum output_place place;
    enum condition condition;
    enum action action;
    enum tag sequence[5]; /* ends with NO_TAG */
};
static const struct rule rules[] = {
    {OUTPUT_IN_REASONING, AT_START, BEGIN_REASONING, {LINE_FEED, LINE_FEED, TAG_THINK, NO_TAG}},
    {OUTPUT_IN_REASONING, ALWAYS, END_REASONING, {LINE_FEED, TAG_END_THINK, NO_TAG}},
    {OUTPUT_IN_REASONING, WITH_TOOLS, BEGIN_BLOCK, {LINE_FEED, TAG_CALLS, NO_TAG}},
    {OUTPUT_IN_CONTENT, AT_START, BEGIN_REASONING, {LINE_FEED, LINE_FEED, TAG_THINK, NO_TAG}},
    {OUTPUT_IN_CONTENT, AT_START, END_REASONING, {TAG_END_THINK, NO_TAG}},
    {OUTPUT_IN_CONTENT, UNCLOSED, END_REASONING, {LINE_FEED, TAG_END_THINK, NO_TAG}},
    {OUTPUT_IN_CONTENT, WITH_TOOLS, BEGIN_BLOCK, {LINE_FEED, TAG_CALLS, NO_TAG}},
    {OUTPUT_IN_BLOCK, ALWAYS, BEGIN_CALL_NAME, {TAG_CALL, NO_TAG}},
    {OUTPUT_IN_BLOCK, ALWAYS, END_BLOCK, {TAG_END_CALLS, NO_TAG}},
    {OUTPUT_IN_CALL, ALWAYS, BEGIN_VALUE_NAME, {TAG_VALUE, NO_TAG}},
    {OUTPUT_IN_CALL, ALWAYS, END_CALL, {TAG_END_CALL, NO_TAG}},
    {OUTPUT_IN_CALL, ALWAYS, BEGIN_CALL_NAME, {TAG_CALL, NO_TAG}},
    {OUTPUT_IN_CALL, ALWAYS, END_BLOCK, {TAG_END_CALLS, NO_TAG}},
    {OUTPUT_IN_VALUE, ALWAYS, END_VALUE, {TAG_END_VALUE, NO_TAG}},
    /* Broken ends.  A bare </invoke> may be text. */
    {OUTPUT_IN_VALUE,
     ALWAYS,
     END_BLOCK,
     {LINE_FEED, TAG_END_CALL, LINE_FEED, TAG_END_CALLS, NO_TAG}},
    {OUTPUT_IN_VALUE, ALWAYS, END_BLOCK, {LINE_FEED, TAG_END_CALLS, NO_TAG}},
};

/* ---- markers as bytes --------------------------------------------------------------------- */

static char marker_byte(enum tag marker)
{
    return (char)(OUTPUT_MARKER_BYTE + (int)marker);
}

static bool is_marker_byte(char c)
{
    return (unsigned char)c >= OUTPUT_MARKER_BYTE;
}

static struct str marker_letters(char byte)
{
    return str_of(tags[(unsigned char)byte - OUTPUT_MARKER_BYTE]);
}

/* ---- events of a call --------------------------------------------------------------------- */

static void put(struct output *o, enum output_kind kind, struct str text, struct output_events *out)
{
    output_events_put(out, kind, o->report.n_calls - 1, text);
}

static void put_arguments(struct output *o, const struct buf *json, struct output_events *out)
{
    put(o, OUTPUT_ARGUMENTS, buf_str(json), out);
}

static bool is_in_call(const struct output *o)
{
    return o->place == OUTPUT_IN_CALL || o->place == OUTPUT_IN_VALUE ||
           o->place == OUTPUT_IN_VALUE_NAME;
}

static void break_off(struct output *o, const char *why, struct output_events *out)
{
    o->report.n_cut = is_in_call(o);
    o->place = OUTPUT_BROKEN;
    output_events_put(out, OUTPUT_ERROR, -1, str_of(why));
}

static void begin_call(struct output *o, const char *name, struct output_events *out)
{
    if (o->report.n_calls == OUTPUT_MAX_CALLS) {
        break_off(o, "too many tool calls", out);
        return;
    }
    o->report.n_calls++;
    o->place = OUTPUT_IN_CALL;
    o->schema = output_schema_of(o->tools, name);
    o->n_parameters = 0;
    buf_reset(&o->keys);
    put(o, OUTPUT_CALL, str_of(name), out);
}

static void end_call(struct output *o, struct output_events *out)
{
    put(o, OUTPUT_ARGUMENTS, o->n_parameters == 0 ? STR("{}") : STR("}"), out);
    put(o, OUTPUT_CALL_END, STR(""), out);
    o->place = OUTPUT_IN_BLOCK;
}

/* What stands before the value of the latest parameter; its name is the last of `keys`. */
static void write_key(const struct output *o, struct buf *json)
{
    const char *key = o->keys.data;

    for (int i = 1; i < o->n_parameters; i++)
        key += strlen(key) + 1;
    buf_puts(json, o->n_parameters == 1 ? "{\"" : ", \"");
    output_value_escape(str_of(key), json);
    buf_puts(json, "\": ");
}

static bool has_key(const struct output *o, const char *name)
{
    const char *key = o->keys.data;

    for (int i = 0; i < o->n_parameters; i++, key += strlen(key) + 1)
        if (strcmp(key, name) == 0)
            return true;
    return false;
}

/* From now on the value can only be a string: it need not wait for its end. */
static void stream_value(struct output *o, struct output_events *out)
{
    struct buf json = {0};

    o->value_is = OUTPUT_VALUE_STREAMED;
    write_key(o, &json);
    buf_putc(&json, '"');
    output_value_escape(buf_str(&o->value), &json);
    put_arguments(o, &json, out);
    buf_fini(&json);
    buf_reset(&o->value);
}

static void begin_value(struct output *o, const char *name, struct output_events *out)
{
    if (o->n_parameters == OUTPUT_MAX_PARAMETERS) {
        break_off(o, "too many parameters in a tool call", out);
        return;
    }
    o->place = OUTPUT_IN_VALUE;
    o->value_is = OUTPUT_VALUE_HELD;
    buf_reset(&o->value);
    if (has_key(o, name)) {
        o->value_is = OUTPUT_VALUE_DROPPED;
        return;
    }
    o->n_parameters++;
    buf_append(&o->keys, name, strlen(name) + 1);
    o->types = output_types_of(o->schema, name);
    if (o->types == OUTPUT_TYPE_STRING)
        stream_value(o, out);
}

static void put_value(struct output *o, struct str text, struct output_events *out)
{
    bool may_nest = o->types == 0 || (o->types & (OUTPUT_TYPE_OBJECT | OUTPUT_TYPE_ARRAY));
    bool may_be_string = o->types == 0 || !may_nest || (o->types & OUTPUT_TYPE_STRING);
    size_t most = may_nest ? OUTPUT_MAX_VALUE_BYTES : OUTPUT_MAX_SCALAR_BYTES;
    struct buf json = {0};

    if (o->value_is == OUTPUT_VALUE_DROPPED) {
        o->report.dropped_bytes += text.len;
        return;
    }
    if (o->value_is == OUTPUT_VALUE_HELD && text.len <= most - o->value.len) {
        buf_append_str(&o->value, text);
        return;
    }
    if (o->value_is == OUTPUT_VALUE_HELD && !may_be_string) {
        break_off(o, "an object or array in a tool call is too long", out);
        return;
    }
    if (o->value_is == OUTPUT_VALUE_HELD)
        stream_value(o, out);
    output_value_escape(text, &json);
    put_arguments(o, &json, out);
    buf_fini(&json);
}

static void end_value(struct output *o, struct output_events *out)
{
    struct buf json = {0};

    o->place = OUTPUT_IN_CALL;
    if (o->value_is == OUTPUT_VALUE_STREAMED) {
        buf_putc(&json, '"');
    } else if (o->value_is == OUTPUT_VALUE_HELD) {
        write_key(o, &json);
        output_value_write(buf_str(&o->value), o->types, &json);
    }
    put_arguments(o, &json, out);
    buf_fini(&json);
}

/* ---- text --------------------------------------------------------------------------------- */

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static struct str skip_space(struct str text)
{
    while (text.len > 0 && is_space(text.ptr[0])) {
        text.ptr++;
        text.len--;
    }
    return text;
}

static void put_spoken(struct output *o, struct str text, struct output_events *out)
{
    for (; text.len > 0 && o->n_line_feeds > 0; o->n_line_feeds--) {
        if (text.ptr[0] != '\n') {
            o->n_line_feeds = 0;
            break;
        }
        text.ptr++;
        text.len--;
    }
    if (o->after_block)
        text = skip_space(text);
    if (text.len == 0)
        return;
    o->after_block = false;
    output_events_put(out, o->place == OUTPUT_IN_REASONING ? OUTPUT_REASONING : OUTPUT_CONTENT, -1,
                      text);
}

/* Text without marker bytes, where it stands. */
static void put_text(struct output *o, struct str text, struct output_events *out)
{
    if (text.len == 0)
        return;
    o->at_start = false;
    switch (o->place) {
    case OUTPUT_IN_REASONING:
    case OUTPUT_IN_CONTENT:
        put_spoken(o, text, out);
        break;
    case OUTPUT_IN_BLOCK:
    case OUTPUT_IN_CALL:
        for (size_t i = 0; i < text.len; i++)
            o->report.dropped_bytes += !is_space(text.ptr[i]);
        break;
    case OUTPUT_IN_VALUE:
        put_value(o, text, out);
        break;
    case OUTPUT_IN_CALL_NAME:
    case OUTPUT_IN_VALUE_NAME:
        unreachable(); /* read_name() takes it all */
    case OUTPUT_BROKEN:
        break;
    }
}

/* ---- tags --------------------------------------------------------------------------------- */

/* Ends what is open below a place. */
static void close_to(struct output *o, enum output_place place, struct output_events *out)
{
    if (o->place == OUTPUT_IN_VALUE && place < OUTPUT_IN_VALUE)
        end_value(o, out);
    if (o->place == OUTPUT_IN_CALL && place < OUTPUT_IN_CALL)
        end_call(o, out);
    if (o->place == OUTPUT_IN_BLOCK && place < OUTPUT_IN_BLOCK) {
        o->place = OUTPUT_IN_CONTENT;
        o->after_block = true;
    }
}

static void begin_name(struct output *o, enum output_place place)
{
    o->place = place;
    buf_reset(&o->name);
}

static void act(struct output *o, enum action action, struct output_events *out)
{
    o->at_start = false;
    switch (action) {
    case BEGIN_REASONING:
        o->place = OUTPUT_IN_REASONING;
        o->reasons = true;
        o->n_line_feeds = LINE_FEEDS_AFTER_THINK;
        break;
    case END_REASONING:
        o->place = OUTPUT_IN_CONTENT;
        o->reasons = false;
        o->n_line_feeds = LINE_FEEDS_AFTER_END_THINK;
        break;
    case BEGIN_BLOCK:
        o->place = OUTPUT_IN_BLOCK;
        o->n_line_feeds = 0;
        break;
    case END_BLOCK:
        close_to(o, OUTPUT_IN_CONTENT, out);
        break;
    case BEGIN_CALL_NAME:
        close_to(o, OUTPUT_IN_BLOCK, out);
        begin_name(o, OUTPUT_IN_CALL_NAME);
        break;
    case END_CALL:
        close_to(o, OUTPUT_IN_BLOCK, out);
        break;
    case BEGIN_VALUE_NAME:
        begin_name(o, OUTPUT_IN_VALUE_NAME);
        break;
    case END_VALUE:
        close_to(o, OUTPUT_IN_CALL, out);
        break;
    }
}

static bool is_in_name(const struct output *o)
{
    return o->place == OUTPUT_IN_CALL_NAME || o->place == OUTPUT_IN_VALUE_NAME;
}

/* "name" in quotes of either kind, or anything without them. */
static bool is_whole_name(struct str name)
{
    char first = name.len > 0 ? name.ptr[0] : 0;

    if (first != '"' && first != '\'')
        return true;
    return name.len >= 2 && name.ptr[name.len - 1] == first;
}

static void end_name(struct output *o, struct output_events *out)
{
    bool quoted = o->name.len > 0 && (o->name.data[0] == '"' || o->name.data[0] == '\'');
    char *name =
        str_copy(quoted ? (struct str){o->name.data + 1, o->name.len - 2} : buf_str(&o->name));

    if (o->place == OUTPUT_IN_CALL_NAME)
        begin_call(o, name, out);
    else
        begin_value(o, name, out);
    mem_free(name);
}

/* Reads a tag from its name on, from text.ptr[at]; returns where it stopped. */
static size_t read_name(struct output *o, struct str text, size_t at, struct output_events *out)
{
    while (at < text.len && is_in_name(o)) {
        char c = text.ptr[at];
        if (is_marker_byte(c)) { /* the tag was never finished */
            o->report.dropped_bytes += o->name.len;
            o->place = o->place == OUTPUT_IN_CALL_NAME ? OUTPUT_IN_BLOCK : OUTPUT_IN_CALL;
            break;
        }
        at++;
        if (c == '>' && is_whole_name(buf_str(&o->name)))
            end_name(o, out);
        else if (c == 0)
            break_off(o, "a name in a tool call holds a NUL", out);
        else if (o->name.len == OUTPUT_MAX_NAME_BYTES + 2) /* with quotes */
            break_off(o, "a name in a tool call is too long", out);
        else
            buf_putc(&o->name, c);
    }
    return at;
}

/* ---- scanning ----------------------------------------------------------------------------- */

enum match { NO_MATCH, MAY_MATCH, MATCH };

static enum match match_tag(const struct output *o, enum tag tag, struct str text, size_t *len)
{
    struct str letters = str_of(tags[tag]);
    bool is_marker = tag < TAG_CALL;

    if (is_marker && text.ptr[0] == marker_byte(tag)) {
        *len = 1;
        return MATCH;
    }
    /* An opening at the start cannot be what somebody else wrote. */
    if (is_marker && tag != TAG_THINK && o->marker_ids[tag] != TOKENIZER_NO_ID)
        return NO_MATCH;
    *len = letters.len;
    if (text.len < letters.len)
        return memcmp(text.ptr, letters.ptr, text.len) == 0 ? MAY_MATCH : NO_MATCH;
    return memcmp(text.ptr, letters.ptr, letters.len) == 0 ? MATCH : NO_MATCH;
}

static enum match match_rule(const struct output *o, const struct rule *rule, struct str text,
                             size_t *len)
{
    size_t at = 0, n = 0;

    for (const enum tag *t = rule->sequence; *t != NO_TAG; t++) {
        if (at == text.len)
            return MAY_MATCH;
        if (*t == LINE_FEED) {
            at += text.ptr[at] == '\n';
            continue;
        }
        enum match m = match_tag(o, *t, (struct str){text.ptr + at, text.len - at}, &n);
        if (m != MATCH)
            return m;
        at += n;
    }
    *len = at;
    return MATCH;
}

static bool applies(const struct output *o, const struct rule *rule)
{
    if (rule->place != o->place)
        return false;
    switch (rule->condition) {
    case ALWAYS:
        return true;
    case AT_START:
        return o->at_start;
    case WITH_TOOLS:
        return o->tools != NULL;
    case UNCLOSED:
        return o->reasons;
    }
    return false;
}

/* The rule that the text begins with, or may begin with once more of it is there. */
static enum match find_rule(const struct output *o, struct str text, const struct rule **found,
                            size_t *len)
{
    enum match best = NO_MATCH;

    for (size_t i = 0; i < sizeof rules / sizeof rules[0] && best != MATCH; i++) {
        if (!applies(o, &rules[i]))
            continue;
        enum match m = match_rule(o, &rules[i], text, len);
        *found = &rules[i];
        if (m > best)
            best = m;
    }
    return best;
}

enum more { MORE_COMES, NO_MORE };

/* Understands as much of the text as is certain. */
static void scan(struct output *o, enum more more, struct output_events *out)
{
    if (o->is_m3) {
        output_m3_scan(o, more == NO_MORE, out);
        return;
    }
    struct str text = buf_str(&o->text);
    size_t at = 0, run = 0, len = 0; /* from run to at: text that has not been put yet */
    const struct rule *rule = NULL;

    while (at < text.len) {
        char c = text.ptr[at];
        if (is_in_name(o)) {
            at = run = read_name(o, text, at, out);
            continue;
        }
        if (c != '<' && c != '\n' && !is_marker_byte(c)) {
            at++;
            continue;
        }
        put_text(o, (struct str){text.ptr + run, at - run}, out);
        run = at;
        enum match m = find_rule(o, (struct str){text.ptr + at, text.len - at}, &rule, &len);
        if (m == MAY_MATCH && more == MORE_COMES)
            break;
        if (m == MATCH) {
            act(o, rule->action, out);
            at = run = at + len;
        } else if (is_marker_byte(c)) {
            put_text(o, marker_letters(c), out);
            run = ++at;
        } else {
            at++;
        }
    }
    put_text(o, (struct str){text.ptr + run, at - run}, out);
    buf_drop(&o->text, at);
}

/* ---- in and out --------------------------------------------------------------------------- */

void output_init(struct output *o, const struct tokenizer *t, enum output_place begins,
                 const json_t *tools)
{
    must(begins == OUTPUT_IN_REASONING || begins == OUTPUT_IN_CONTENT);
    *o = (struct output){.tokenizer = t,
                         .tools = (json_t *)(uintptr_t)tools, /* counting is no change */
                         .place = begins,
                         .at_start = true,
                         .reasons = begins == OUTPUT_IN_REASONING};
    json_incref(o->tools);
    o->is_m3 = t && tokenizer_is_added(t, tokenizer_find(t, str_of(output_m3_markers[0])));
    const char *const *names = o->is_m3 ? output_m3_markers : tags;
    for (int i = 0; i < OUTPUT_N_MARKERS; i++)
        o->marker_ids[i] = t ? tokenizer_find(t, str_of(names[i])) : TOKENIZER_NO_ID;
}

void output_fini(struct output *o)
{
    json_decref(o->tools);
    buf_fini(&o->text);
    buf_fini(&o->name);
    buf_fini(&o->keys);
    buf_fini(&o->value);
    *o = (struct output){0};
}

void output_feed_text(struct output *o, struct str bytes, struct output_events *out)
{
    utf8_feed(&o->utf8, bytes, &o->text);
    scan(o, MORE_COMES, out);
}

void output_feed(struct output *o, int32_t id, struct output_events *out)
{
    must(o->tokenizer);
    if (tokenizer_is_special(o->tokenizer, id))
        return;
    for (int i = 0; i < OUTPUT_N_MARKERS; i++) {
        if (id != o->marker_ids[i])
            continue;
        utf8_finish(&o->utf8, &o->text);
        buf_putc(&o->text, marker_byte((enum tag)i));
        scan(o, MORE_COMES, out);
        return;
    }
    output_feed_text(o, tokenizer_token_bytes(o->tokenizer, id), out);
}

void output_finish(struct output *o, enum output_ending ending, struct output_events *out)
{
    utf8_finish(&o->utf8, &o->text);
    o->report.ended = o->place;
    o->report.in_tag = is_in_name(o) || (o->text.len > 0 && memchr(o->text.data, '<', o->text.len));
    bool in_block = o->place > OUTPUT_IN_CONTENT && o->place != OUTPUT_BROKEN;
    if (in_block && ending == OUTPUT_STOPPED && !o->is_m3)
        buf_putc(&o->text, marker_byte(TAG_END_CALLS));
    scan(o, NO_MORE, out);
    if (is_in_call(o))
        o->report.n_cut = 1;
}
