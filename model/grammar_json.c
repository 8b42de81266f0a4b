/* model/grammar_json.c - the parts of JSON as graphs; see grammar_build.h. */
#include "model/chat.h"
#include "model/grammar_build.h"

enum { MAX_DIGITS = 18, MAX_INDENT = 32 };

static uint32_t range(struct builder *b, int first, int last, uint32_t next)
{
    return grammar_range(b->g, (unsigned char)first, (unsigned char)last, next);
}

static uint32_t either(struct builder *b, uint32_t x, uint32_t y)
{
    return grammar_either(b->g, x, y);
}

static uint32_t literal(struct builder *b, const char *text, uint32_t next)
{
    return grammar_literal(b->g, str_of(text), next);
}

/* Up to n of a range. */
static uint32_t up_to(struct builder *b, int n, int first, int last, uint32_t next)
{
    uint32_t at = next;
    for (int i = 0; i < n; i++)
        at = either(b, next, range(b, first, last, at));
    return at;
}

uint32_t build_space(struct builder *b, uint32_t next)
{
    uint32_t *rule = &b->shared[BUILD_SPACE], end = grammar_return(b->g);
    if (!*rule) {
        uint32_t indent = range(b, '\n', '\n', up_to(b, MAX_INDENT, ' ', ' ', end));
        *rule = either(b, end, either(b, range(b, ' ', ' ', end), indent));
    }
    return grammar_call(b->g, *rule, next);
}

/* ---- characters ------------------------------------------------------------------------------ */

/* What is no ASCII, as well-formed UTF-8. */
static uint32_t beyond_ascii(struct builder *b, uint32_t next)
{
    uint32_t one = range(b, 0x80, 0xbf, next), two = range(b, 0x80, 0xbf, one);
    uint32_t three = range(b, 0x80, 0xbf, two);
    uint32_t all = range(b, 0xc2, 0xdf, one);
    all = either(b, all, range(b, 0xe0, 0xe0, range(b, 0xa0, 0xbf, one)));
    all = either(b, all, range(b, 0xe1, 0xec, two));
    all = either(b, all, range(b, 0xed, 0xed, range(b, 0x80, 0x9f, one)));
    all = either(b, all, range(b, 0xee, 0xef, two));
    all = either(b, all, range(b, 0xf0, 0xf0, range(b, 0x90, 0xbf, two)));
    all = either(b, all, range(b, 0xf1, 0xf3, three));
    return either(b, all, range(b, 0xf4, 0xf4, range(b, 0x80, 0x8f, two)));
}

static uint32_t hex(struct builder *b, uint32_t next)
{
    struct byte_set set = {0};
    byte_set_add(&set, '0', '9');
    byte_set_add(&set, 'a', 'f');
    byte_set_add(&set, 'A', 'F');
    return grammar_bytes(b->g, &set, next);
}

/* \uXXXX that is a character: no surrogates. */
static uint32_t escape(struct builder *b, uint32_t next)
{
    struct byte_set simple = {0}, first = {0}, d = {0};
    for (const char *c = "\"\\/bfnrt"; *c; c++)
        byte_set_add(&simple, (unsigned char)*c, (unsigned char)*c);
    byte_set_add(&first, '0', '9');
    byte_set_add(&first, 'a', 'c');
    byte_set_add(&first, 'e', 'f');
    byte_set_add(&first, 'A', 'C');
    byte_set_add(&first, 'E', 'F');
    byte_set_add(&d, 'd', 'd');
    byte_set_add(&d, 'D', 'D');
    uint32_t two = hex(b, hex(b, next)), three = hex(b, two);
    uint32_t code = either(b, grammar_bytes(b->g, &first, three),
                           grammar_bytes(b->g, &d, range(b, '0', '7', two)));
    code = range(b, 'u', 'u', code);
    return range(b, '\\', '\\', either(b, grammar_bytes(b->g, &simple, next), code));
}

uint32_t build_character(struct builder *b)
{
    uint32_t *rule = &b->shared[BUILD_CHARACTER], end = grammar_return(b->g);
    if (!*rule) {
        struct byte_set plain = {0};
        byte_set_add(&plain, ' ', '!');
        byte_set_add(&plain, '#', '[');
        if (b->in_call)
            plain.bits['<' >> 6] &= ~(1ull << ('<' & 63));
        byte_set_add(&plain, ']', 0x7e);
        *rule = either(b, grammar_bytes(b->g, &plain, end),
                       either(b, escape(b, end), beyond_ascii(b, end)));
    }
    return *rule;
}

uint32_t build_raw_character(struct builder *b)
{
    uint32_t *rule = &b->shared[BUILD_RAW], end = grammar_return(b->g);
    if (!*rule) {
        struct byte_set plain = {0};
        byte_set_add(&plain, '\t', '\n');
        byte_set_add(&plain, ' ', ';');
        byte_set_add(&plain, b->in_call ? '=' : '<', 0x7e);
        *rule = either(b, grammar_bytes(b->g, &plain, end), beyond_ascii(b, end));
    }
    return *rule;
}

uint32_t build_repeat(struct builder *b, uint32_t rule, int64_t min, int64_t max, uint32_t next)
{
    uint32_t at = next;
    if (min > BUILD_MAX_REPEATS || max > BUILD_MAX_REPEATS)
        return build_refuse(b, "at most %d repetitions can be counted", BUILD_MAX_REPEATS);
    if (max >= 0 && max < min)
        return 0;
    if (max < 0) {
        uint32_t loop = grammar_ahead(b->g);
        grammar_lead(b->g, loop, either(b, next, grammar_call(b->g, rule, loop)));
        at = loop;
    }
    for (int64_t i = min; i < max; i++)
        at = either(b, next, grammar_call(b->g, rule, at));
    for (int64_t i = 0; i < min; i++)
        at = grammar_call(b->g, rule, at);
    return at;
}

uint32_t build_string(struct builder *b, uint32_t next)
{
    uint32_t *rule = &b->shared[BUILD_STRING];
    if (!*rule)
        *rule = range(
            b, '"', '"',
            build_repeat(b, build_character(b), 0, -1, range(b, '"', '"', grammar_return(b->g))));
    return grammar_call(b->g, *rule, next);
}

/* ---- numbers ---------------------------------------------------------------------------------- */

uint32_t build_number(struct builder *b, uint32_t next)
{
    uint32_t *rule = &b->shared[BUILD_NUMBER], end = grammar_return(b->g);
    if (!*rule) {
        struct byte_set sign = {0}, e = {0};
        byte_set_add(&sign, '+', '+');
        byte_set_add(&sign, '-', '-');
        byte_set_add(&e, 'e', 'e');
        byte_set_add(&e, 'E', 'E');
        uint32_t digits = range(b, '0', '9', up_to(b, 1, '0', '9', end));
        uint32_t exponent = either(b, digits, grammar_bytes(b->g, &sign, digits));
        uint32_t tail = either(b, end, grammar_bytes(b->g, &e, exponent));
        uint32_t point = range(b, '0', '9', up_to(b, MAX_DIGITS - 1, '0', '9', tail));
        tail = either(b, tail, range(b, '.', '.', point));
        uint32_t whole = either(b, range(b, '0', '0', tail),
                                range(b, '1', '9', up_to(b, MAX_DIGITS - 1, '0', '9', tail)));
        *rule = either(b, whole, range(b, '-', '-', whole));
    }
    return grammar_call(b->g, *rule, next);
}

/* ---- anything ----------------------------------------------------------------------------------- */

/* Open, nothing or items with commas between them, close. */
static uint32_t list_of(struct builder *b, char open, char close, uint32_t item, uint32_t next)
{
    uint32_t end = build_space(b, range(b, close, close, next)), loop = grammar_ahead(b->g);
    uint32_t more = range(b, ',', ',', build_space(b, grammar_call(b->g, item, loop)));
    grammar_lead(b->g, loop, either(b, end, more));
    uint32_t items = build_space(b, grammar_call(b->g, item, loop));
    return range(b, open, open, either(b, end, items));
}

uint32_t build_any(struct builder *b, uint32_t next)
{
    uint32_t *rule = &b->shared[BUILD_ANY], end = grammar_return(b->g);
    if (!*rule) {
        *rule = grammar_ahead(b->g);
        uint32_t all = either(b, literal(b, "null", end), literal(b, "true", end));
        all = either(b, all, literal(b, "false", end));
        all = either(b, all, build_number(b, end));
        all = either(b, all, build_string(b, end));
        all = either(b, all, list_of(b, '[', ']', *rule, end));
        all = either(b, all, build_object_of_anything(b, end));
        grammar_lead(b->g, *rule, all);
    }
    return grammar_call(b->g, *rule, next);
}

uint32_t build_object_of_anything(struct builder *b, uint32_t next)
{
    uint32_t *rule = &b->shared[BUILD_OBJECT], end = grammar_return(b->g);
    if (!*rule) {
        *rule = grammar_ahead(b->g);
        uint32_t value = range(b, ':', ':', build_space(b, build_any(b, end)));
        grammar_lead(b->g, *rule, list_of(b, '{', '}', build_string(b, value), end));
    }
    return grammar_call(b->g, *rule, next);
}

uint32_t build_json(struct builder *b, const json_t *value, uint32_t next)
{
    struct buf text = {0};
    chat_dump_json(value, &text);
    bool ends_early = b->in_call && str_find(buf_str(&text), STR("</parameter>")) != SIZE_MAX;
    next = ends_early ? 0 : grammar_literal(b->g, buf_str(&text), next);
    buf_fini(&text);
    return next;
}

/* The closing tag is looked for as the parser does: "<" begins anew. */
uint32_t build_raw_to_close(struct builder *b, uint32_t next)
{
    if (b->namespace >= 0)
        return build_repeat(b, build_raw_character(b), 0, -1, next);
    static const char tag[] = "</parameter>";
    uint32_t states[sizeof tag - 1]; /* so many bytes of the tag were there */
    for (size_t i = 0; i < sizeof tag - 1; i++)
        states[i] = grammar_ahead(b->g);
    for (size_t i = 0; i < sizeof tag - 1; i++) {
        struct byte_set other = {0};
        byte_set_add(&other, '\t', '\n');
        byte_set_add(&other, ' ', 0x7e);
        other.bits['<' >> 6] &= ~(1ull << ('<' & 63));
        other.bits[(unsigned char)tag[i] >> 6] &= ~(1ull << (tag[i] & 63));
        uint32_t on = i + 2 < sizeof tag ? states[i + 1] : next;
        uint32_t all = range(b, tag[i], tag[i], on);
        if (i > 0)
            all = either(b, all, range(b, '<', '<', states[1]));
        all = either(b, all, grammar_bytes(b->g, &other, states[0]));
        grammar_lead(b->g, states[i], either(b, all, beyond_ascii(b, states[0])));
    }
    return states[0];
}
