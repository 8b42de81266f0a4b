/* attn_node/seqs.c - see seqs.h.
 *
 * seqs_begin() checks everything that can be wrong with a step before it changes anything;
 * after that only memory (pages, places) can run out, and taking is undone. */
#include "attn_node/seqs.h"

#include <inttypes.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

enum { GRAMMARS_MAX_BYTES = 128 << 20 };

struct seq {
    uint64_t id;
    struct seq *next; /* in its bucket, or among the free ones */
    struct kv_seq kv;
    int committed; /* positions that survive a roll-back */
    int32_t *tokens;
    int n_tokens, tokens_size;
    uint32_t n_prompt;
    struct sampling sampling;
    struct constraint *constraint; /* of sampling.grammar */
    bool is_in_step, is_opened_by_step, is_inexact;
};

struct seqs {
    struct kv *kv;
    bool keeps;
    uint64_t seed;
    int max_seqs, n_seqs;
    struct grammar_cache *grammars; /* NULL: none can be read */
    struct seq *all;                /* [max_seqs] */
    struct seq *idle;               /* places that hold no sequence */
    struct seq **buckets;
    uint64_t n_buckets;   /* a power of two */
    struct seq **in_step; /* [max_seqs]: of the step in progress */
    int n_in_step;
};

struct seqs *seqs_new(struct kv *kv, int max_seqs, bool keeps, uint64_t seed)
{
    must(max_seqs > 0);
    struct seqs *s = mem_alloc(sizeof(*s));
    s->kv = kv;
    s->keeps = keeps;
    s->seed = seed;
    s->max_seqs = max_seqs;
    s->n_buckets = 16;
    while (s->n_buckets < 2 * (uint64_t)max_seqs)
        s->n_buckets *= 2;
    s->buckets = mem_array(s->n_buckets, sizeof(struct seq *));
    s->in_step = mem_array((size_t)max_seqs, sizeof(struct seq *));
    s->all = mem_array((size_t)max_seqs, sizeof(*s->all));
    for (int i = max_seqs - 1; i >= 0; i--) {
        s->all[i].next = s->idle;
        s->idle = &s->all[i];
    }
    return s;
}

void seqs_set_words(struct seqs *s, const struct token_list *words)
{
    must(!s->grammars);
    s->grammars = words ? grammar_cache_new(words, GRAMMARS_MAX_BYTES) : NULL;
}

void seqs_free(struct seqs **seqs)
{
    struct seqs *s = *seqs;
    if (!s)
        return;
    *seqs = NULL;
    for (int i = 0; i < s->max_seqs; i++) {
        kv_truncate(s->kv, &s->all[i].kv, 0);
        mem_free(s->all[i].kv.pages);
        mem_free(s->all[i].tokens);
        constraint_free(&s->all[i].constraint);
    }
    grammar_cache_free(&s->grammars);
    mem_free(s->all);
    mem_free(s->in_step);
    mem_free(s->buckets);
    mem_free(s);
}

struct wire_grammar_counters seqs_grammars(const struct seqs *s)
{
    if (!s->grammars)
        return (struct wire_grammar_counters){0};
    struct grammar_counts c = grammar_cache_counts(s->grammars);
    return (struct wire_grammar_counters){.compiled = c.compiled,
                                          .shared = c.shared,
                                          .refused = c.refused,
                                          .masks_asked = c.masks_asked,
                                          .masks_made = c.masks_made,
                                          .bytes = c.bytes,
                                          .kept = c.grammars};
}

int seqs_count(const struct seqs *s)
{
    return s->n_seqs;
}

/* ---- the table ----------------------------------------------------------------------- */

/* Where the pointer to this sequence is, or would be put. */
static struct seq **place_of(const struct seqs *s, uint64_t id)
{
    uint64_t mixed = id * 0x9e3779b97f4a7c15u;
    struct seq **at = &s->buckets[(mixed >> 32) & (s->n_buckets - 1)];
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static struct seq *add_seq(struct seqs *s, uint64_t id)
{
    struct seq *q = s->idle;
    if (!q)
        return NULL;
    s->idle = q->next;
    q->id = id;
    q->next = NULL;
    q->committed = q->n_tokens = 0;
    struct seq **at = place_of(s, id);
    must(!*at);
    *at = q;
    s->n_seqs++;
    return q;
}

static void remove_seq(struct seqs *s, struct seq *q)
{
    struct seq **at = place_of(s, q->id);
    must(*at == q);
    *at = q->next;
    kv_truncate(s->kv, &q->kv, 0);
    constraint_free(&q->constraint);
    q->is_in_step = q->is_opened_by_step = false;
    q->next = s->idle;
    s->idle = q;
    s->n_seqs--;
}

void seqs_release(struct seqs *s, uint64_t id)
{
    must(s->n_in_step == 0);
    struct seq *q = *place_of(s, id);
    if (q)
        remove_seq(s, q);
}

void seqs_clear(struct seqs *s)
{
    must(s->n_in_step == 0);
    for (uint64_t i = 0; i < s->n_buckets; i++)
        while (s->buckets[i])
            remove_seq(s, s->buckets[i]);
    must(s->n_seqs == 0);
}

void seqs_clear_all(struct seqs *s)
{
    seqs_clear(s);
    kv_forget(s->kv);
}

/* ---- a step -------------------------------------------------------------------------- */

static int check_seq(struct seqs *s, const struct wire_step_seq *w, int *n_new, struct err *e)
{
    if (w->n_tokens == 0)
        return err_set(e, E_INVALID, "sequence %" PRIu64 ": a step without tokens", w->seq);
    if (w->n_draft > 0 && (w->position == 0 || w->n_draft != w->n_tokens - 1))
        return err_set(e, E_INVALID, "sequence %" PRIu64 ": %u guesses with %u tokens", w->seq,
                       w->n_draft, w->n_tokens);
    if (w->n_ahead > 0 && w->position != 0)
        return err_set(e, E_INVALID, "sequence %" PRIu64 ": only a beginning has tokens ahead",
                       w->seq);
    if ((uint64_t)w->position + w->n_tokens + w->n_ahead > INT32_MAX)
        return err_set(e, E_INVALID, "sequence %" PRIu64 ": position %u is out of range", w->seq,
                       w->position);
    struct seq *q = *place_of(s, w->seq);
    if (!q && w->position == 0) {
        ++*n_new;
        return 0;
    }
    int length = q ? q->kv.length : 0;
    if (w->position != 0 && w->position != (uint32_t)length)
        return err_set(e, E_PRECONDITION,
                       "sequence %" PRIu64 ": the step begins at position %u, the KV cache ends "
                       "at %d",
                       w->seq, w->position, length);
    return 0;
}

static int check_step(struct seqs *s, const struct wire_step *step, struct err *e)
{
    int n_new = 0;
    if (step->n_seqs > (uint32_t)s->max_seqs)
        return err_set(e, E_BUSY, "%u sequences in a step, room for %d", step->n_seqs, s->max_seqs);
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        int rc = check_seq(s, &step->seqs[i], &n_new, e);
        if (rc < 0)
            return rc;
    }
    if (n_new > s->max_seqs - s->n_seqs)
        return err_set(e, E_BUSY, "%d sequences are open, no room for %d more of %d", s->n_seqs,
                       n_new, s->max_seqs);
    return 0;
}

/* A grammar that cannot be read leaves no constraint, and sampling refuses the sequence. */
static void take_grammar(struct seqs *s, struct seq *q)
{
    struct err why = {0};
    constraint_free(&q->constraint);
    if (q->sampling.grammar && s->grammars)
        constraint_new(s->grammars, str_of(q->sampling.grammar), &q->constraint, &why);
    if (q->sampling.grammar)
        q->sampling.grammar = ""; /* the text is the step's */
}

static void open_seq(struct seqs *s, struct seq *q, const struct wire_step_seq *w)
{
    kv_truncate(s->kv, &q->kv, 0);
    q->committed = q->n_tokens = 0;
    q->is_opened_by_step = true;
    q->is_inexact = false;
    q->n_prompt = w->n_prompt;
    q->sampling = w->sampling ? *w->sampling : (struct sampling){0};
    take_grammar(s, q);
}

static void log_tokens(struct seq *q, const int32_t *tokens, int n)
{
    if (q->n_tokens + n > q->tokens_size) {
        int size = 2 * (q->n_tokens + n);
        q->tokens = mem_resize(q->tokens, (size_t)size * sizeof(*q->tokens));
        q->tokens_size = size;
    }
    memcpy(q->tokens + q->n_tokens, tokens, (size_t)n * sizeof(*tokens));
    q->n_tokens += n;
}

static int take_seq(struct seqs *s, const struct wire_step_seq *w, const int32_t *tokens,
                    struct step_seq *out, struct err *e)
{
    struct seq *q = *place_of(s, w->seq);
    if (q && q->is_in_step)
        return err_set(e, E_INVALID, "sequence %" PRIu64 " is twice in one step", w->seq);
    bool is_new = !q;
    if (is_new)
        q = add_seq(s, w->seq);
    must(q);
    s->in_step[s->n_in_step++] = q;
    q->is_in_step = true;
    int given = (int)(w->n_tokens + w->n_ahead), position = (int)w->position, adopted = 0;
    if (position == 0) {
        open_seq(s, q, w);
        /* The last token is always fed: it gives the next one. */
        if (s->keeps)
            adopted = kv_adopt(s->kv, &q->kv, s->seed, tokens, given - 1);
    }
    int rows = given - adopted < (int)w->n_tokens ? given - adopted : (int)w->n_tokens;
    int end = position + adopted + rows;
    int rc = kv_reserve(s->kv, &q->kv, end);
    if (rc == E_PRECONDITION)
        return err_set(e, rc,
                       "sequence %" PRIu64 ": the KV pages for positions below %d are where its "
                       "context has been already: all are laid out anew",
                       w->seq, end);
    if (rc < 0)
        return err_set(e, rc, "sequence %" PRIu64 ": no KV pages for positions below %d, %d free",
                       w->seq, end, kv_pages_free(s->kv));
    log_tokens(q, tokens, adopted + rows);
    *out = (struct step_seq){
        .kv = &q->kv,
        .number = (uint32_t)(q - s->all),
        .position = position + adopted,
        .n_tokens = rows,
        .tokens = tokens + adopted,
        .no_logits = !w->sample || adopted + rows<given, .all_logits = w->n_draft> 0,
    };
    return 0;
}

int seqs_begin(struct seqs *s, const struct wire_step *step, struct step_seq *out, struct err *e)
{
    must(s->n_in_step == 0);
    int rc = check_step(s, step, e);
    if (rc < 0)
        return rc;
    const int32_t *tokens = step->tokens;
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        rc = take_seq(s, &step->seqs[i], tokens, &out[i], e);
        if (rc < 0) {
            seqs_roll_back(s);
            if (rc == E_PRECONDITION)
                seqs_clear_all(s);
            return rc;
        }
        tokens += step->seqs[i].n_tokens + step->seqs[i].n_ahead;
    }
    return 0;
}

void seqs_cut(struct seqs *s, int i, int n_rows)
{
    must(i >= 0 && i < s->n_in_step && n_rows > 0);
    struct seq *q = s->in_step[i];
    int end = q->committed + n_rows;
    must(end <= q->n_tokens && !q->is_opened_by_step);
    kv_truncate(s->kv, &q->kv, end);
    q->n_tokens = end;
}

void seqs_commit(struct seqs *s, bool is_exact)
{
    for (int i = 0; i < s->n_in_step; i++) {
        struct seq *q = s->in_step[i];
        must(q->kv.length == q->n_tokens);
        q->is_inexact |= !is_exact;
        if (s->keeps && !q->is_inexact)
            kv_keep(s->kv, &q->kv, s->seed, q->tokens);
        q->committed = q->kv.length;
        q->is_in_step = q->is_opened_by_step = false;
    }
    s->n_in_step = 0;
}

void seqs_roll_back(struct seqs *s)
{
    for (int i = 0; i < s->n_in_step; i++) {
        struct seq *q = s->in_step[i];
        if (q->is_opened_by_step) {
            remove_seq(s, q);
            continue;
        }
        kv_truncate(s->kv, &q->kv, q->committed);
        q->n_tokens = q->committed;
        q->is_in_step = false;
    }
    s->n_in_step = 0;
}

const struct sampling *seqs_sampling(const struct seqs *s, int i)
{
    must(i >= 0 && i < s->n_in_step);
    return &s->in_step[i]->sampling;
}

struct sample_history seqs_history(const struct seqs *s, int i)
{
    must(i >= 0 && i < s->n_in_step);
    const struct seq *q = s->in_step[i];
    int n_prompt = q->n_prompt < (uint32_t)q->n_tokens ? (int)q->n_prompt : q->n_tokens;
    return (struct sample_history){.tokens = q->tokens,
                                   .n_tokens = q->n_tokens,
                                   .n_prompt = n_prompt,
                                   .constraint = q->constraint};
}
