/* model/grammar_regex.c - see grammar_regex.h: from the text to an automaton, and matching; regex_build() is in
 * grammar_regex_build.c. */
#include "model/grammar_regex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/grammar_automaton.h"
#include "model/utf8.h"

enum { MAX_NESTING = 32, LAST = 0x10ffff, NO_CHAR = -1, MAX_STEPS = 200000 };

/* Parts of an expression, before it becomes an automaton. */
enum part_kind { PART_EMPTY, PART_CLASS, PART_BOTH, PART_EITHER, PART_REPEAT };
struct part {
    enum part_kind kind;
    int a, b;        /* parts, or a: class */
    int least, most; /* of PART_REPEAT; most -1: any number */
};

struct parser {
    struct str text;
    size_t at;
    int nesting, steps;
    struct part *parts;
    int n_parts, parts_room;
    struct regex *r;
    struct err *e;
    bool failed;
};

static int refuse(struct parser *p, const char *why)
{
    if (!p->failed)
        err_set(p->e, E_INVALID, "%s (at character %zu of \"%.*s\")", why, p->at + 1,
                p->text.len < 60 ? (int)p->text.len : 60, p->text.ptr);
    p->failed = true;
    p->at = p->text.len;
    return 0;
}

static int new_part(struct parser *p, struct part part)
{
    if (p->n_parts == p->parts_room) {
        p->parts_room = p->parts_room ? 2 * p->parts_room : 64;
        p->parts = mem_resize(p->parts, (size_t)p->parts_room * sizeof *p->parts);
    }
    p->parts[p->n_parts] = part;
    return p->n_parts++;
}

/* ---- classes --------------------------------------------------------------------------------- */

void char_class_add(struct char_class *c, int32_t first, int32_t last)
{
    if (c->n == c->room) {
        c->room = c->room ? 2 * c->room : 4;
        c->ranges = mem_resize(c->ranges, (size_t)c->room * sizeof *c->ranges);
    }
    c->ranges[c->n++] = (struct char_range){first, last};
}

static int compare_ranges(const void *a, const void *b)
{
    const struct char_range *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

void char_class_tidy(struct char_class *c)
{
    struct char_class out = {0};
    if (c->n > 0)
        qsort(c->ranges, (size_t)c->n, sizeof *c->ranges, compare_ranges);
    for (int i = 0; i < c->n; i++) {
        struct char_range r = c->ranges[i];
        if (out.n > 0 && r.first <= out.ranges[out.n - 1].last + 1) {
            if (r.last > out.ranges[out.n - 1].last)
                out.ranges[out.n - 1].last = r.last;
        } else {
            char_class_add(&out, r.first, r.last);
        }
    }
    mem_free(c->ranges);
    *c = (struct char_class){0};
    for (int i = 0; i < out.n; i++) {
        struct char_range r = out.ranges[i];
        if (r.first < 0xd800)
            char_class_add(c, r.first, r.last < 0xd800 ? r.last : 0xd7ff);
        if (r.last > 0xdfff)
            char_class_add(c, r.first > 0xdfff ? r.first : 0xe000, r.last);
    }
    mem_free(out.ranges);
}

static void turn_round(struct char_class *c)
{
    struct char_class out = {0};
    int32_t from = 0;
    char_class_tidy(c);
    for (int i = 0; i < c->n; i++) {
        if (c->ranges[i].first > from)
            char_class_add(&out, from, c->ranges[i].first - 1);
        from = c->ranges[i].last + 1;
    }
    if (from <= LAST)
        char_class_add(&out, from, LAST);
    mem_free(c->ranges);
    *c = out;
    char_class_tidy(c);
}

/* \d, \w or \s, and their opposites in capitals. */
static void add_named(struct char_class *c, char name)
{
    struct char_class own = {0};
    switch (name | 0x20) {
    case 'd':
        char_class_add(&own, '0', '9');
        break;
    case 'w':
        char_class_add(&own, '0', '9');
        char_class_add(&own, 'A', 'Z');
        char_class_add(&own, '_', '_');
        char_class_add(&own, 'a', 'z');
        break;
    default:
        char_class_add(&own, '\t', '\r');
        char_class_add(&own, ' ', ' ');
        char_class_add(&own, 0xa0, 0xa0);
        char_class_add(&own, 0x1680, 0x1680);
        char_class_add(&own, 0x2000, 0x200a);
        char_class_add(&own, 0x2028, 0x2029);
        char_class_add(&own, 0x202f, 0x202f);
        char_class_add(&own, 0x205f, 0x205f);
        char_class_add(&own, 0x3000, 0x3000);
        char_class_add(&own, 0xfeff, 0xfeff);
    }
    if (!(name & 0x20))
        turn_round(&own);
    for (int i = 0; i < own.n; i++)
        char_class_add(c, own.ranges[i].first, own.ranges[i].last);
    mem_free(own.ranges);
}

/* A part of one character of the class, which it takes. */
static int part_of_class(struct parser *p, struct char_class *c)
{
    struct regex *r = p->r;
    char_class_tidy(c);
    for (int i = 0; i < r->n_classes; i++) {
        const struct char_class *k = &r->classes[i];
        if (k->n == c->n &&
            (c->n == 0 || memcmp(k->ranges, c->ranges, (size_t)c->n * sizeof *c->ranges) == 0)) {
            mem_free(c->ranges);
            return new_part(p, (struct part){.kind = PART_CLASS, .a = i});
        }
    }
    if (r->n_classes == REGEX_MAX_CLASSES) {
        mem_free(c->ranges);
        return refuse(p, "too many different characters");
    }
    r->classes[r->n_classes] = *c;
    return new_part(p, (struct part){.kind = PART_CLASS, .a = r->n_classes++});
}

static int part_of_char(struct parser *p, int32_t code_point)
{
    struct char_class c = {0};
    char_class_add(&c, code_point, code_point);
    return part_of_class(p, &c);
}

static int part_of_any(struct parser *p)
{
    struct char_class c = {0};
    char_class_add(&c, 0, LAST);
    return part_of_class(p, &c);
}

/* ---- parsing -------------------------------------------------------------------------------------- */

static int peek(const struct parser *p)
{
    return p->at < p->text.len ? (unsigned char)p->text.ptr[p->at] : NO_CHAR;
}

static bool takes(struct parser *p, const char *letters)
{
    struct str rest = {p->text.ptr + p->at, p->text.len - p->at};
    if (!str_has_prefix(rest, str_of(letters)))
        return false;
    p->at += strlen(letters);
    return true;
}

static int32_t take_char(struct parser *p)
{
    int32_t c = 0;
    size_t n = p->at < p->text.len ? utf8_decode(p->text, p->at, &c) : 0;
    if (n == 0)
        return refuse(p, "a character is missing or broken");
    p->at += n;
    return c;
}

static int32_t take_hex(struct parser *p, int n)
{
    int32_t value = 0;
    for (int i = 0; i < n; i++) {
        int c = peek(p);
        int lower = c | 0x20;
        int digit = c >= '0' && c <= '9'           ? c - '0'
                    : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10
                                                   : -1;
        if (digit < 0)
            return refuse(p, "a hexadecimal digit is missing");
        value = value * 16 + digit;
        p->at++;
    }
    return value;
}

static int32_t take_unicode(struct parser *p)
{
    if (takes(p, "{")) {
        int32_t c = 0;
        while (!p->failed && !takes(p, "}"))
            if ((c = c * 16 + take_hex(p, 1)) > LAST)
                return refuse(p, "a code point beyond Unicode");
        return c;
    }
    int32_t c = take_hex(p, 4);
    if (c >= 0xd800 && c < 0xdc00 && takes(p, "\\u")) {
        int32_t low = take_hex(p, 4);
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
        return low >= 0xdc00 && low < 0xe000 ? c : refuse(p, "half of a surrogate pair");
    }
    return c >= 0xd800 && c < 0xe000 ? refuse(p, "half of a surrogate pair") : c;
}

/* After a backslash.  A class goes to `named` (NO_CHAR is returned), else the character is returned. */
static int32_t take_escape(struct parser *p, bool in_class, struct char_class *named)
{
    static const char simple[] = "tnrfv0", values[] = "\t\n\r\f\v";
    int c = peek(p);
    const char *known = c > 0 ? strchr(simple, c) : NULL;
    if (c > 0 && strchr("dDwWsS", c)) {
        p->at++;
        add_named(named, (char)c);
        return NO_CHAR;
    }
    if (known) {
        p->at++;
        return c == '0' ? 0 : values[known - simple];
    }
    if (takes(p, "x"))
        return take_hex(p, 2);
    if (takes(p, "u"))
        return take_unicode(p);
    if (c == 'b' && in_class) {
        p->at++;
        return '\b';
    }
    if (c >= '1' && c <= '9')
        return refuse(p, "back references are not supported: write the alternatives out");
    if (c == 'b' || c == 'B')
        return refuse(p, "\\b is not supported: write the characters on both sides");
    if (c == 'p' || c == 'P')
        return refuse(p, "\\p is not supported: list the ranges of characters");
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')
        return refuse(p, "this escape is not supported");
    return take_char(p);
}

/* After '['. */
static int parse_class(struct parser *p)
{
    struct char_class c = {0};
    bool other = takes(p, "^");
    while (!p->failed && !takes(p, "]")) {
        int before = c.n;
        int32_t first = takes(p, "\\") ? take_escape(p, true, &c) : take_char(p), last = first;
        bool is_named = c.n > before;
        bool has_dash = peek(p) == '-' && p->at + 1 < p->text.len && p->text.ptr[p->at + 1] != ']';
        if (!is_named && has_dash) {
            p->at++;
            before = c.n;
            last = takes(p, "\\") ? take_escape(p, true, &c) : take_char(p);
            if (c.n > before || last < first)
                refuse(p, "a range of characters that goes backwards or nowhere");
        }
        if (!is_named && !p->failed)
            char_class_add(&c, first, last);
    }
    if (other)
        turn_round(&c);
    return part_of_class(p, &c);
}

static int parse_alternatives(struct parser *p, bool is_outermost);

/* After '('. */
static int parse_group(struct parser *p)
{
    if (takes(p, "?=") || takes(p, "?!") || takes(p, "?<=") || takes(p, "?<!"))
        return refuse(p, "looking ahead or behind is not supported: write the alternatives out");
    if (takes(p, "?<")) {
        while (p->at < p->text.len && peek(p) != '>')
            p->at++;
        takes(p, ">");
    } else if (peek(p) == '?' && !takes(p, "?:")) {
        return refuse(p, "this kind of group is not supported");
    }
    if (++p->nesting > MAX_NESTING)
        return refuse(p, "groups are nested too deep");
    int inner = parse_alternatives(p, false);
    p->nesting--;
    return p->failed || takes(p, ")") ? inner : refuse(p, "a group is not closed");
}

static int parse_atom(struct parser *p)
{
    struct char_class c = {0};
    if (takes(p, "("))
        return parse_group(p);
    if (takes(p, "["))
        return parse_class(p);
    if (takes(p, ".")) {
        char_class_add(&c, '\n', '\n');
        char_class_add(&c, '\r', '\r');
        char_class_add(&c, 0x2028, 0x2029);
        turn_round(&c);
        return part_of_class(p, &c);
    }
    if (takes(p, "\\")) {
        int32_t one = take_escape(p, false, &c);
        return c.n > 0 ? part_of_class(p, &c) : p->failed ? 0 : part_of_char(p, one);
    }
    if (peek(p) == '^' || peek(p) == '$')
        return refuse(p,
                      "an anchor must be at an end of the pattern or of one of its alternatives");
    if (strchr("*+?{}])", peek(p)))
        return refuse(p, "a character that needs a backslash");
    int32_t one = take_char(p);
    return p->failed ? 0 : part_of_char(p, one);
}

static int take_count(struct parser *p)
{
    int n = 0;
    if (!(peek(p) >= '0' && peek(p) <= '9'))
        return refuse(p, "a number of repetitions is missing");
    for (; peek(p) >= '0' && peek(p) <= '9'; p->at++)
        if ((n = n * 10 + peek(p) - '0') > REGEX_MAX_REPEATS)
            return refuse(p, "more than 1000 repetitions");
    return n;
}

static int parse_repeat(struct parser *p)
{
    int part = parse_atom(p), least = 0, most = -1;
    if (p->failed)
        return 0;
    if (takes(p, "+"))
        least = 1;
    else if (takes(p, "?"))
        most = 1;
    else if (takes(p, "{")) {
        least = most = take_count(p);
        if (takes(p, ","))
            most = peek(p) == '}' ? -1 : take_count(p);
        if (!p->failed && (!takes(p, "}") || (most >= 0 && most < least)))
            return refuse(p, "a quantifier that cannot be");
    } else if (!takes(p, "*")) {
        return part;
    }
    takes(p, "?");
    return new_part(p, (struct part){PART_REPEAT, part, 0, least, most});
}

static int parse_branch(struct parser *p, bool is_outermost)
{
    bool from_start = is_outermost && takes(p, "^"), to_end = false;
    int all = new_part(p, (struct part){.kind = PART_EMPTY});
    while (p->at < p->text.len && peek(p) != '|' && peek(p) != ')') {
        if (is_outermost && takes(p, "$")) {
            to_end = true;
            if (p->at < p->text.len && peek(p) != '|')
                return refuse(p, "something behind $");
            break;
        }
        all = new_part(p, (struct part){.kind = PART_BOTH, .a = all, .b = parse_repeat(p)});
    }
    for (int side = 0; is_outermost && side < 2; side++) {
        if (side ? to_end : from_start)
            continue;
        int any = new_part(p, (struct part){PART_REPEAT, part_of_any(p), 0, 0, -1});
        all = new_part(
            p, (struct part){.kind = PART_BOTH, .a = side ? all : any, .b = side ? any : all});
    }
    return all;
}

static int parse_alternatives(struct parser *p, bool is_outermost)
{
    int all = parse_branch(p, is_outermost);
    while (!p->failed && takes(p, "|"))
        all = new_part(
            p, (struct part){.kind = PART_EITHER, .a = all, .b = parse_branch(p, is_outermost)});
    return all;
}

/* ---- the automaton --------------------------------------------------------------------------------- */

static int new_state(struct parser *p, struct regex_state s)
{
    struct regex *r = p->r;
    if (r->n_states == REGEX_MAX_STATES)
        return refuse(p, "the pattern is too large");
    r->states[r->n_states] = s;
    return r->n_states++;
}

/* Where to begin to read the part before `next`. */
static int compile(struct parser *p, int part, int next);

static int compile_repeat(struct parser *p, const struct part *x, int next)
{
    int at = next;
    if (x->most < 0) {
        at = new_state(p, (struct regex_state){.class = -1});
        int body = compile(p, x->a, at);
        p->r->states[at].next = body;
        p->r->states[at].other = next;
    }
    for (int i = x->least; i < x->most && !p->failed; i++)
        at = new_state(p, (struct regex_state){-1, compile(p, x->a, at), next});
    for (int i = 0; i < x->least && !p->failed; i++)
        at = compile(p, x->a, at);
    return at;
}

static int compile(struct parser *p, int part, int next)
{
    struct part x = p->parts[part];
    if (p->failed || ++p->steps > MAX_STEPS)
        return refuse(p, "the pattern is too large");
    switch (x.kind) {
    case PART_EMPTY:
        return next;
    case PART_CLASS:
        return new_state(p, (struct regex_state){x.a, next, 0});
    case PART_BOTH:
        return compile(p, x.a, compile(p, x.b, next));
    case PART_EITHER:
        return new_state(p, (struct regex_state){-1, compile(p, x.a, next), compile(p, x.b, next)});
    case PART_REPEAT:
        return compile_repeat(p, &x, next);
    }
    return next;
}

int regex_open(struct str pattern, struct regex **out, struct err *e)
{
    struct regex *r = mem_alloc(sizeof *r);
    struct parser p = {.text = pattern, .r = r, .e = e};
    *out = NULL;
    if (!utf8_is_valid(pattern) || pattern.len > 4096) {
        mem_free(r);
        return err_set(e, E_INVALID, "not text of at most 4096 bytes");
    }
    int all = parse_alternatives(&p, true);
    if (!p.failed && p.at < pattern.len)
        refuse(&p, "a parenthesis that was never opened");
    new_state(&p, (struct regex_state){.class = REGEX_END});
    if (!p.failed)
        r->start = compile(&p, all, 0);
    mem_free(p.parts);
    if (p.failed)
        regex_free(&r);
    *out = r;
    return p.failed ? E_INVALID : 0;
}

void regex_free(struct regex **rp)
{
    struct regex *r = *rp;
    *rp = NULL;
    if (!r)
        return;
    for (int i = 0; i < r->n_classes; i++)
        mem_free(r->classes[i].ranges);
    mem_free(r);
}

/* ---- matching ---------------------------------------------------------------------------------------- */

bool char_class_has(const struct char_class *c, int32_t code_point)
{
    for (int i = 0; i < c->n; i++)
        if (code_point >= c->ranges[i].first && code_point <= c->ranges[i].last)
            return true;
    return false;
}

/* States that are reached without reading; a flag for each. */
static void reach(const struct regex *r, int from, bool *in, int *work)
{
    int n = 0;
    work[n++] = from;
    while (n > 0) {
        int s = work[--n];
        if (in[s])
            continue;
        in[s] = true;
        if (r->states[s].class == -1) {
            work[n++] = r->states[s].next;
            work[n++] = r->states[s].other;
        }
    }
}

int regex_size(const struct regex *r)
{
    return r->n_states;
}

bool regex_matches(const struct regex *r, struct str text)
{
    bool now[REGEX_MAX_STATES] = {false}, then[REGEX_MAX_STATES];
    int *work = mem_array(2 * REGEX_MAX_STATES + 2, sizeof *work);
    int32_t c;
    reach(r, r->start, now, work);
    for (size_t at = 0, n; at < text.len; at += n) {
        n = utf8_decode(text, at, &c);
        memset(then, 0, (size_t)r->n_states);
        for (int s = 0; s < r->n_states && n > 0; s++)
            if (now[s] && r->states[s].class >= 0 &&
                char_class_has(&r->classes[r->states[s].class], c))
                reach(r, r->states[s].next, then, work);
        memcpy(now, then, (size_t)r->n_states);
        n = n ? n : 1;
    }
    mem_free(work);
    return now[0];
}
