/* model/grammar_regex_both.c - several regular expressions, some of which must not match, as one; see grammar_regex.h.
 *
 * The product of their automata by sets of states, over classes of characters that none of them tells apart. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/mem.h"
#include "model/grammar_automaton.h"

enum { MAX_SETS = 1000, LAST = 0x10ffff, MAX_WORK = 4000000, NO_CHARACTER = 0 };

struct product {
    const struct regex *const *parts;
    const bool *forbidden;
    int n;
    struct char_class classes[REGEX_MAX_CLASSES]; /* characters that all parts treat alike */
    uint64_t hashes[REGEX_MAX_CLASSES];           /* of which parts' classes they are in */
    int32_t example[REGEX_MAX_CLASSES];
    int n_classes;
    size_t words;        /* of a set */
    uint64_t *sets;      /* [MAX_SETS][words] */
    int entry[MAX_SETS]; /* the state of the result */
    int n_sets;
    int64_t work;
    struct regex *out;
    const char *why; /* too large */
};

static int compare_points(const void *x, const void *y)
{
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    return (a > b) - (a < b);
}

static uint64_t who_has(const struct product *p, int32_t code_point)
{
    XXH64_hash_t h = 1;
    for (int i = 0; i < p->n; i++)
        for (int k = 0; k < p->parts[i]->n_classes; k++) {
            bool has = char_class_has(&p->parts[i]->classes[k], code_point);
            h = XXH64(&has, sizeof has, h);
        }
    return h;
}

static void add_characters(struct product *p, int32_t first, int32_t last)
{
    uint64_t hash = who_has(p, first);
    int i = 0;
    while (i < p->n_classes && p->hashes[i] != hash)
        i++;
    if (i == REGEX_MAX_CLASSES) {
        p->why = "the patterns tell too many characters apart";
        return;
    }
    if (i == p->n_classes) {
        p->hashes[i] = hash;
        p->example[i] = first;
        p->n_classes++;
    }
    char_class_add(&p->classes[i], first, last);
}

static void find_classes(struct product *p)
{
    size_t n = 0, room = 4;
    for (int i = 0; i < p->n; i++)
        for (int k = 0; k < p->parts[i]->n_classes; k++)
            room += 2 * (size_t)p->parts[i]->classes[k].n;
    int32_t *at = mem_array(room, sizeof *at);
    at[n++] = 0;
    at[n++] = 0xd800;
    at[n++] = 0xe000;
    at[n++] = LAST + 1;
    for (int i = 0; i < p->n; i++)
        for (int k = 0; k < p->parts[i]->n_classes; k++)
            for (int r = 0; r < p->parts[i]->classes[k].n; r++) {
                at[n++] = p->parts[i]->classes[k].ranges[r].first;
                at[n++] = p->parts[i]->classes[k].ranges[r].last + 1;
            }
    qsort(at, n, sizeof *at, compare_points);
    for (size_t i = 0; i + 1 < n && !p->why; i++)
        if (at[i] < at[i + 1] && at[i] != 0xd800)
            add_characters(p, at[i], at[i + 1] - 1);
    mem_free(at);
}

/* ---- sets -------------------------------------------------------------------------------------------- */

static bool has(const uint64_t *set, size_t i)
{
    return set[i >> 6] >> (i & 63) & 1;
}

/* And all that is reached without reading. */
static void reach(const struct regex *r, size_t base, int from, uint64_t *set)
{
    while (!has(set, base + (size_t)from)) {
        set[(base + (size_t)from) >> 6] |= 1ull << ((base + (size_t)from) & 63);
        if (r->states[from].class != -1)
            return;
        reach(r, base, r->states[from].other, set);
        from = r->states[from].next;
    }
}

/* Is it hopeless: has a part that must match no state left? */
static bool is_dead(const struct product *p, const uint64_t *set)
{
    size_t base = 0;
    for (int i = 0; i < p->n; i++) {
        bool any = false;
        for (int s = 0; s < p->parts[i]->n_states && !any; s++)
            any = has(set, base + (size_t)s);
        if (!any && !p->forbidden[i])
            return true;
        base += (size_t)p->parts[i]->n_states;
    }
    return false;
}

static bool accepts(const struct product *p, const uint64_t *set)
{
    size_t base = 0;
    for (int i = 0; i < p->n; i++) {
        if (has(set, base) == p->forbidden[i])
            return false;
        base += (size_t)p->parts[i]->n_states;
    }
    return true;
}

static int new_state(struct product *p, struct regex_state s)
{
    if (p->out->n_states == REGEX_MAX_STATES) {
        p->why = "the patterns are too large together";
        return 0;
    }
    p->out->states[p->out->n_states] = s;
    return p->out->n_states++;
}

/* The number of a set, which may be new; -1: too many. */
static int number_of(struct product *p, const uint64_t *set)
{
    for (int i = 0; i < p->n_sets; i++)
        if (memcmp(p->sets + (size_t)i * p->words, set, p->words * sizeof *set) == 0)
            return i;
    if (p->n_sets == MAX_SETS) {
        p->why = "the patterns are too large together";
        return -1;
    }
    memcpy(p->sets + (size_t)p->n_sets * p->words, set, p->words * sizeof *set);
    p->entry[p->n_sets] = new_state(p, (struct regex_state){.class = -1});
    return p->n_sets++;
}

static void step(struct product *p, const uint64_t *from, int32_t c, uint64_t *to)
{
    size_t base = 0;
    memset(to, 0, p->words * sizeof *to);
    for (int i = 0; i < p->n; i++) {
        const struct regex *r = p->parts[i];
        for (int s = 0; s < r->n_states; s++)
            if (has(from, base + (size_t)s) && r->states[s].class >= 0 &&
                char_class_has(&r->classes[r->states[s].class], c))
                reach(r, base, r->states[s].next, to);
        base += (size_t)r->n_states;
        p->work += r->n_states;
    }
}

/* All characters that lead to one set are one class of the result. */
static int class_to(struct product *p, const int *targets, int target)
{
    struct char_class c = {0};
    struct regex *out = p->out;
    if (out->n_classes == REGEX_MAX_CLASSES) {
        p->why = "the patterns tell too many characters apart";
        return 0;
    }
    for (int i = 0; i < p->n_classes; i++)
        for (int r = 0; targets[i] == target && r < p->classes[i].n; r++)
            char_class_add(&c, p->classes[i].ranges[r].first, p->classes[i].ranges[r].last);
    char_class_tidy(&c);
    for (int i = 0; i < out->n_classes; i++)
        if (out->classes[i].n == c.n &&
            memcmp(out->classes[i].ranges, c.ranges, (size_t)c.n * sizeof *c.ranges) == 0) {
            mem_free(c.ranges);
            return i;
        }
    out->classes[out->n_classes] = c;
    return out->n_classes++;
}

/* Ways out of a set, one after another. */
static void write_set(struct product *p, int set, uint64_t *to)
{
    int targets[REGEX_MAX_CLASSES];
    int at = p->entry[set];
    for (int i = 0; i < p->n_classes && !p->why; i++) {
        step(p, p->sets + (size_t)set * p->words, p->example[i], to);
        targets[i] = is_dead(p, to) ? -1 : number_of(p, to);
    }
    for (int i = 0; i < p->n_classes && !p->why; i++) {
        bool is_new = targets[i] >= 0;
        for (int k = 0; k < i && is_new; k++)
            is_new = targets[k] != targets[i];
        if (!is_new)
            continue;
        int way = new_state(
            p, (struct regex_state){class_to(p, targets, targets[i]), p->entry[targets[i]], 0});
        int rest = new_state(p, (struct regex_state){.class = -1});
        p->out->states[at].next = way;
        p->out->states[at].other = rest;
        at = rest;
    }
    /* Nothing more, and perhaps the end; a class without characters leads nowhere. */
    bool ends = accepts(p, p->sets + (size_t)set * p->words);
    p->out->states[at].next = p->out->states[at].other =
        ends ? 0 : new_state(p, (struct regex_state){NO_CHARACTER, 0, 0});
}

int regex_combine(const struct regex *const *parts, const bool *forbidden, int n,
                  struct regex **out, struct err *e)
{
    struct product *p = mem_alloc(sizeof *p);
    *p = (struct product){.parts = parts, .forbidden = forbidden, .n = n};
    p->out = mem_alloc(sizeof *p->out);
    size_t total = 0, base = 0;
    for (int i = 0; i < n; i++)
        total += (size_t)parts[i]->n_states;
    p->words = (total + 63) / 64;
    p->sets = mem_array(MAX_SETS * p->words, sizeof *p->sets);
    uint64_t *to = mem_array(p->words, sizeof *to);
    new_state(p, (struct regex_state){.class = REGEX_END});
    p->out->classes[p->out->n_classes++] = (struct char_class){0}; /* NO_CHARACTER */
    find_classes(p);
    for (int i = 0; i < n; i++) {
        reach(parts[i], base, parts[i]->start, to);
        base += (size_t)parts[i]->n_states;
    }
    if (!p->why)
        p->out->start = p->entry[number_of(p, to)];
    for (int i = 0; i < p->n_sets && !p->why; i++) {
        write_set(p, i, to);
        if (p->work > MAX_WORK)
            p->why = "the patterns are too large together";
    }
    for (int i = 0; i < p->n_classes; i++)
        mem_free(p->classes[i].ranges);
    mem_free(p->sets);
    mem_free(to);
    const char *why = p->why;
    *out = p->out;
    mem_free(p);
    if (why)
        regex_free(out);
    return why ? err_set(e, E_INVALID, "%s", why) : 0;
}
