/* model/grammar_regex_build.c - an automaton over characters becomes a graph over bytes; see grammar_regex.h. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_automaton.h"
#include "model/utf8.h"

enum { MAX_PAIRS = 40000 };

struct writer {
    struct builder *b;
    const struct regex *r;
    enum regex_form form;
    int64_t least, most;
    int n_counts;    /* characters that are told apart, 0 ... n_counts - 1 */
    uint32_t *nodes; /* [n_states * n_counts], 0: not met */
    int *work;
    int n_work;
    uint32_t rules[REGEX_MAX_CLASSES]; /* one character of a class, 0: not made */
    bool is_impossible[REGEX_MAX_CLASSES];
    uint32_t next;
};

/* ---- characters ------------------------------------------------------------------------------- */

/* Bytes from `low` to `high`, which have the same length; `is_low`, `is_high`: all bytes so far were theirs. */
static uint32_t between(struct grammar *g, struct str low, struct str high, bool is_low,
                        bool is_high, uint32_t next)
{
    if (low.len == 0)
        return next;
    unsigned from = is_low ? (unsigned char)low.ptr[0] : 0x80;
    unsigned to = is_high ? (unsigned char)high.ptr[0] : 0xbf;
    struct str l = {low.ptr + 1, low.len - 1}, h = {high.ptr + 1, high.len - 1};
    uint32_t all = 0;
    if (is_low && is_high && from == to)
        return grammar_range(g, (unsigned char)from, (unsigned char)to,
                             between(g, l, h, true, true, next));
    if (is_low) {
        all = grammar_range(g, (unsigned char)from, (unsigned char)from,
                            between(g, l, h, true, false, next));
        from++;
    }
    if (is_high) {
        all = grammar_either(g, all,
                             grammar_range(g, (unsigned char)to, (unsigned char)to,
                                           between(g, l, h, false, true, next)));
        to--;
    }
    if (from <= to)
        all = grammar_either(g, all,
                             grammar_range(g, (unsigned char)from, (unsigned char)to,
                                           between(g, l, h, false, false, next)));
    return all;
}

static uint32_t beyond_ascii(struct grammar *g, struct char_range r, uint32_t next)
{
    static const int32_t ends[] = {0x7ff, 0xffff, 0x10ffff}; /* of 2, 3 and 4 bytes */
    uint32_t all = 0;
    for (int i = 0; i < 3; i++) {
        int32_t begin = i > 0 ? ends[i - 1] + 1 : 0x80;
        int32_t first = r.first > begin ? r.first : begin;
        int32_t last = r.last < ends[i] ? r.last : ends[i];
        if (first > last)
            continue;
        struct buf low = {0}, high = {0};
        utf8_append(&low, first);
        utf8_append(&high, last);
        all = grammar_either(g, all, between(g, buf_str(&low), buf_str(&high), true, true, next));
        buf_fini(&low);
        buf_fini(&high);
    }
    return all;
}

static bool needs_escape(const struct writer *w, int c)
{
    return c < ' ' || c == '"' || c == '\\' || c == 0x7f || (c == '<' && w->b->in_call);
}

static uint32_t escaped(struct grammar *g, int c, uint32_t next)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    const char *known = c ? strchr(plain, c) : NULL;
    char text[8];
    if (known)
        snprintf(text, sizeof text, "\\%c", letters[known - plain]);
    else
        snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    return grammar_literal(g, str_of(text), next);
}

static bool may_be_raw(int c)
{
    return (c >= ' ' || c == '\t' || c == '\n') && c != '<' && c != 0x7f;
}

static uint32_t character(struct writer *w, const struct char_class *c, uint32_t next)
{
    struct grammar *g = w->b->g;
    struct byte_set plain = {0};
    uint32_t all = 0;
    bool has_plain = false;
    for (int i = 0; i < c->n; i++) {
        struct char_range r = c->ranges[i];
        for (int k = r.first; k <= r.last && k < 0x80; k++) {
            if (w->form == REGEX_JSON && needs_escape(w, k)) {
                all = grammar_either(g, all, escaped(g, k, next));
            } else if (w->form == REGEX_JSON || may_be_raw(k)) {
                byte_set_add(&plain, (unsigned)k, (unsigned)k);
                has_plain = true;
            }
        }
        if (r.last >= 0x80)
            all = grammar_either(g, all, beyond_ascii(g, r, next));
    }
    return has_plain ? grammar_either(g, all, grammar_bytes(g, &plain, next)) : all;
}

/* A character of the class, before `next`: a rule, unless it is one byte anyway. */
static uint32_t class_node(struct writer *w, int class, uint32_t next)
{
    const struct char_class *c = &w->r->classes[class];
    struct grammar *g = w->b->g;
    int32_t first = c->n > 0 ? c->ranges[0].first : 0;
    if (c->n == 1 && first == c->ranges[0].last && first < 0x80)
        return character(w, c, next);
    if (!w->rules[class] && !w->is_impossible[class]) {
        w->rules[class] = character(w, c, grammar_return(g));
        w->is_impossible[class] = w->rules[class] == 0;
    }
    return grammar_call(g, w->rules[class], next);
}

/* ---- states and counts ------------------------------------------------------------------------------ */

static uint32_t node_of(struct writer *w, int state, int count)
{
    if (count >= w->n_counts) {
        if (w->most >= 0)
            return 0; /* one too many */
        count = w->n_counts - 1;
    }
    size_t i = (size_t)state * (size_t)w->n_counts + (size_t)count;
    if (!w->nodes[i]) {
        w->nodes[i] = grammar_ahead(w->b->g);
        if (w->nodes[i])
            w->work[w->n_work++] = (int)i;
    }
    return w->nodes[i];
}

static void write_pair(struct writer *w, int state, int count)
{
    const struct regex_state *s = &w->r->states[state];
    struct grammar *g = w->b->g;
    uint32_t to;
    if (s->class == REGEX_END)
        to = count >= w->least ? w->next : 0;
    else if (s->class == -1)
        to = grammar_either(g, node_of(w, s->next, count), node_of(w, s->other, count));
    else
        to = class_node(w, s->class, node_of(w, s->next, count + 1));
    grammar_lead(g, w->nodes[(size_t)state * (size_t)w->n_counts + (size_t)count], to);
}

uint32_t regex_build(const struct regex *r, struct builder *b, enum regex_form form, int64_t least,
                     int64_t most, uint32_t next)
{
    int64_t n_counts = 1 + (most >= 0 ? most : least > 0 ? least : 0);
    if (n_counts * r->n_states > MAX_PAIRS)
        return build_refuse(b, "pattern and lengths together are too large: use shorter lengths, "
                               "or say them in the pattern");
    if (next == 0)
        return 0;
    struct writer *w = mem_alloc(sizeof *w);
    *w = (struct writer){.b = b,
                         .r = r,
                         .form = form,
                         .least = least,
                         .most = most,
                         .n_counts = (int)n_counts,
                         .next = next};
    size_t n = (size_t)n_counts * (size_t)r->n_states;
    w->nodes = mem_array(n, sizeof *w->nodes);
    w->work = mem_array(n, sizeof *w->work);
    uint32_t start = node_of(w, r->start, 0);
    while (w->n_work > 0 && !grammar_is_full(b->g)) {
        int pair = w->work[--w->n_work];
        write_pair(w, pair / w->n_counts, pair % w->n_counts);
    }
    if (grammar_is_full(b->g))
        start = build_refuse(b, "the schema is too large");
    mem_free(w->nodes);
    mem_free(w->work);
    mem_free(w);
    return start;
}
