/* model/grammar_tokens.c - see grammar_tokens.h. */
#include "model/grammar_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { MAX_MASKS = 256, MASK_SLOTS = 1024, NEVER_LONGER = 1024 };

struct token_list {
    const struct tokenizer *tokenizer;
    int vocab_size;
    int32_t *ids; /* of plain tokens, sorted by bytes */
    int n_ids;
    uint16_t *shared; /* bytes that a token has in common with the one before it */
    int32_t *markers;
    int n_markers;
};

struct mask {
    uint32_t state;
    uint64_t *bits;
};

struct constraint {
    const struct token_list *list;
    struct grammar *grammar;
    int32_t *output;  /* as far as it was followed */
    uint32_t *states; /* [n_output + 1]: before each token, and after the last */
    int n_output, room;
    struct mask masks[MASK_SLOTS]; /* open addressing by state; state 0 is free */
    int n_masks;
};

/* ---- the vocabulary ----------------------------------------------------------------------------- */

static struct str bytes_of(const struct token_list *l, int32_t id)
{
    return tokenizer_token_bytes(l->tokenizer, id);
}

static int compare_ids(const void *a, const void *b, void *list)
{
    struct str x = bytes_of(list, *(const int32_t *)a), y = bytes_of(list, *(const int32_t *)b);
    size_t n = x.len < y.len ? x.len : y.len;
    int order = n ? memcmp(x.ptr, y.ptr, n) : 0;
    return order ? order : (x.len > y.len) - (x.len < y.len);
}

static size_t shared_bytes(struct str a, struct str b)
{
    size_t n = 0;
    while (n < a.len && n < b.len && n < NEVER_LONGER && a.ptr[n] == b.ptr[n])
        n++;
    return n;
}

struct token_list *token_list_new(const struct tokenizer *t, int vocab_size)
{
    struct token_list *l = mem_alloc(sizeof *l);
    *l = (struct token_list){.tokenizer = t, .vocab_size = vocab_size};
    l->ids = mem_array((size_t)vocab_size, sizeof *l->ids);
    l->markers = mem_array((size_t)vocab_size, sizeof *l->markers);
    for (int32_t id = 0; id < vocab_size; id++) {
        size_t len = bytes_of(l, id).len;
        if (tokenizer_is_added(t, id))
            l->markers[l->n_markers++] = id;
        else if (len > 0 && len < NEVER_LONGER)
            l->ids[l->n_ids++] = id;
    }
    qsort_r(l->ids, (size_t)l->n_ids, sizeof *l->ids, compare_ids, l);
    l->shared = mem_array((size_t)l->n_ids + 1, sizeof *l->shared);
    for (int i = 1; i < l->n_ids; i++)
        l->shared[i] = (uint16_t)shared_bytes(bytes_of(l, l->ids[i - 1]), bytes_of(l, l->ids[i]));
    return l;
}

void token_list_free(struct token_list **lp)
{
    struct token_list *l = *lp;
    *lp = NULL;
    if (!l)
        return;
    mem_free(l->ids);
    mem_free(l->shared);
    mem_free(l->markers);
    mem_free(l);
}

/* ---- masks -------------------------------------------------------------------------------------- */

static void allow(uint64_t *bits, int32_t id)
{
    bits[id >> 6] |= 1ull << (id & 63);
}

/* Every plain token whose bytes lead somewhere.  path[n] is the state after n bytes of the token at hand;
 * `alive` of its bytes lead somewhere, and if `dies` the next one does not. */
static void allow_plain(struct constraint *c, uint32_t state, uint64_t *bits)
{
    const struct token_list *l = c->list;
    uint32_t path[NEVER_LONGER + 1];
    size_t alive = 0;
    bool dies = false;
    path[0] = state;
    for (int i = 0; i < l->n_ids; i++) {
        size_t shared = i > 0 ? l->shared[i] : 0;
        if (dies && shared > alive)
            continue;
        struct str text = bytes_of(l, l->ids[i]);
        if (alive > shared)
            alive = shared;
        dies = false;
        while (alive < text.len && !dies) {
            uint32_t next = grammar_byte(c->grammar, path[alive], (unsigned char)text.ptr[alive]);
            dies = next == GRAMMAR_DEAD;
            if (!dies)
                path[++alive] = next;
        }
        if (!dies)
            allow(bits, l->ids[i]);
    }
}

static void fill_mask(struct constraint *c, uint32_t state, uint64_t *bits)
{
    const struct token_list *l = c->list;
    int n;
    allow_plain(c, state, bits);
    for (int i = 0; i < l->n_markers; i++)
        if (grammar_marker(c->grammar, state, l->markers[i]) != GRAMMAR_DEAD)
            allow(bits, l->markers[i]);
    const int32_t *stops = grammar_stops(c->grammar, &n);
    for (int i = 0; i < n && grammar_accepts(c->grammar, state); i++)
        if (stops[i] >= 0 && stops[i] < l->vocab_size)
            allow(bits, stops[i]);
}

static void forget_masks(struct constraint *c)
{
    for (int i = 0; i < MASK_SLOTS; i++) {
        mem_free(c->masks[i].bits);
        c->masks[i] = (struct mask){0};
    }
    c->n_masks = 0;
}

static const uint64_t *mask_of(struct constraint *c, uint32_t state)
{
    size_t at = state * 2654435761u % MASK_SLOTS;
    while (c->masks[at].state && c->masks[at].state != state)
        at = (at + 1) % MASK_SLOTS;
    if (c->masks[at].state)
        return c->masks[at].bits;
    if (c->n_masks == MAX_MASKS) {
        forget_masks(c);
        at = state * 2654435761u % MASK_SLOTS;
    }
    struct mask *m = &c->masks[at];
    m->state = state;
    m->bits = mem_array((size_t)(c->list->vocab_size + 63) / 64, sizeof *m->bits);
    c->n_masks++;
    fill_mask(c, state, m->bits);
    return m->bits;
}

/* ---- sequences ----------------------------------------------------------------------------------- */

int constraint_new(const struct token_list *l, struct str text, struct constraint **out,
                   struct err *e)
{
    struct grammar *g;
    *out = NULL;
    int rc = grammar_compile(text, &g, e);
    if (rc < 0)
        return rc;
    struct constraint *c = mem_alloc(sizeof *c);
    c->list = l;
    c->grammar = g;
    c->room = 64;
    c->output = mem_array((size_t)c->room, sizeof *c->output);
    c->states = mem_array((size_t)c->room + 1, sizeof *c->states);
    c->states[0] = grammar_start(g);
    *out = c;
    return 0;
}

void constraint_free(struct constraint **cp)
{
    struct constraint *c = *cp;
    *cp = NULL;
    if (!c)
        return;
    forget_masks(c);
    grammar_free(&c->grammar);
    mem_free(c->output);
    mem_free(c->states);
    mem_free(c);
}

static uint32_t after_token(struct constraint *c, uint32_t state, int32_t id)
{
    if (tokenizer_is_added(c->list->tokenizer, id))
        return grammar_marker(c->grammar, state, id);
    struct str text = bytes_of(c->list, id);
    for (size_t i = 0; i < text.len; i++)
        state = grammar_byte(c->grammar, state, (unsigned char)text.ptr[i]);
    return text.len > 0 ? state : GRAMMAR_DEAD;
}

/* Of what was followed already only the last state is still good. */
static void trim(struct constraint *c)
{
    bool forgot;
    uint32_t now = grammar_trim(c->grammar, c->states[c->n_output], &forgot);
    if (!forgot)
        return;
    memset(c->states, 0, (size_t)c->n_output * sizeof *c->states);
    c->states[c->n_output] = now;
    forget_masks(c);
}

static void push(struct constraint *c, int32_t id)
{
    if (c->n_output == c->room) {
        c->room *= 2;
        c->output = mem_resize(c->output, (size_t)c->room * sizeof *c->output);
        c->states = mem_resize(c->states, ((size_t)c->room + 1) * sizeof *c->states);
    }
    uint32_t next = after_token(c, c->states[c->n_output], id);
    c->output[c->n_output++] = id;
    c->states[c->n_output] = next;
}

/* Back to what both have in common, or to the beginning if the states there were forgotten. */
static void rewind_to(struct constraint *c, const int32_t *output, int n)
{
    int same = 0;
    while (same < n && same < c->n_output && output[same] == c->output[same])
        same++;
    if (same == c->n_output)
        return;
    c->n_output = same;
    if (c->states[same] == GRAMMAR_DEAD) {
        c->n_output = 0;
        c->states[0] = grammar_start(c->grammar);
    }
}

const uint64_t *constraint_allow(struct constraint *c, const int32_t *output, int n)
{
    rewind_to(c, output, n);
    while (c->n_output < n) {
        trim(c);
        push(c, output[c->n_output]);
    }
    uint32_t state = c->states[c->n_output];
    return state == GRAMMAR_DEAD ? NULL : mask_of(c, state);
}
