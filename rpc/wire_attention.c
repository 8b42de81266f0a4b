/* rpc/wire_attention.c - steps and their answers (steps 5 and 13): struct <-> frames. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "proto/attention.pb-c.h"
#include "rpc/wire.h"
#include "rpc/wire_codec.h"

/* ---- Step ------------------------------------------------------------------------- */

struct sampling_view {
    Polymath__V1__Sampling message;
    uint32_t tokens[SAMPLING_MAX_BIAS];
    float values[SAMPLING_MAX_BIAS];
};

static void view_sampling(const struct sampling *s, struct sampling_view *v)
{
    must(s->n_bias >= 0 && s->n_bias <= SAMPLING_MAX_BIAS && s->top_k >= 0 && s->n_top >= 0);
    polymath__v1__sampling__init(&v->message);
    v->message.temperature = s->temperature;
    v->message.top_k = (uint32_t)s->top_k;
    v->message.top_p = s->top_p;
    v->message.min_p = s->min_p;
    v->message.repetition_penalty = s->repetition_penalty;
    v->message.frequency_penalty = s->frequency_penalty;
    v->message.presence_penalty = s->presence_penalty;
    v->message.seed = s->seed;
    v->message.logprobs = s->logprobs;
    v->message.n_top = (uint32_t)s->n_top;
    v->message.logits_hash = s->logits_hash;
    if (s->grammar)
        v->message.grammar = (char *)(uintptr_t)s->grammar; /* is only read */
    for (int i = 0; i < s->n_bias; i++) {
        v->tokens[i] = (uint32_t)s->bias[i].token;
        v->values[i] = s->bias[i].bias;
    }
    v->message.n_bias_tokens = v->message.n_bias_values = (size_t)s->n_bias;
    v->message.bias_tokens = v->tokens;
    v->message.bias_values = v->values;
}

static size_t payload_tokens(const struct wire_step *m)
{
    size_t n = m->n_tokens;
    for (uint32_t i = 0; i < m->n_seqs; i++)
        n += m->seqs[i].n_ahead;
    return n;
}

void wire_step_encode(const struct wire_step *m, struct buf *message, struct blob **payload)
{
    must(m->n_seqs > 0 && m->n_seqs <= WIRE_MAX_SEQS);
    uint32_t n_sampling = 0;
    for (uint32_t i = 0; i < m->n_seqs; i++)
        n_sampling += m->seqs[i].sampling != NULL;
    Polymath__V1__StepSeq *items = mem_array(m->n_seqs, sizeof(*items));
    Polymath__V1__StepSeq **pointers = mem_array(m->n_seqs, sizeof(Polymath__V1__StepSeq *));
    struct sampling_view *views = mem_array(n_sampling, sizeof(*views)), *view = views;
    for (uint32_t i = 0; i < m->n_seqs; i++) {
        const struct wire_step_seq *seq = &m->seqs[i];
        polymath__v1__step_seq__init(&items[i]);
        items[i].seq = seq->seq;
        items[i].position = seq->position;
        items[i].n_tokens = seq->n_tokens;
        items[i].sample = seq->sample;
        items[i].n_prompt = seq->n_prompt;
        items[i].n_ahead = seq->n_ahead;
        items[i].n_draft = seq->n_draft;
        if (seq->sampling) {
            view_sampling(seq->sampling, view);
            items[i].sampling = &view++->message;
        }
        pointers[i] = &items[i];
    }
    Polymath__V1__StepRequest p;
    polymath__v1__step_request__init(&p);
    p.step = m->step;
    p.session = m->session;
    p.n_tokens = m->n_tokens;
    p.n_seqs = m->n_seqs;
    p.seqs = pointers;
    wire_pack(&p.base, message);
    mem_free(views);
    mem_free(pointers);
    mem_free(items);
    *payload = blob_copy(m->tokens, payload_tokens(m) * sizeof(*m->tokens));
}

/* true if low <= x <= high; false for NaN. */
static bool is_within(float x, float low, float high)
{
    return x >= low && x <= high;
}

static int check_sampling(const Polymath__V1__Sampling *p, struct err *e)
{
    if (!is_within(p->temperature, 0, 100))
        return wire_invalid(e, "temperature is not in 0 to 100");
    if (!is_within(p->top_p, 0, 1) || !is_within(p->min_p, 0, 1))
        return wire_invalid(e, "top_p or min_p is not in 0 to 1");
    if (!is_within(p->repetition_penalty, 0, 100))
        return wire_invalid(e, "repetition_penalty is not in 0 to 100");
    if (!is_within(p->frequency_penalty, -100, 100) || !is_within(p->presence_penalty, -100, 100))
        return wire_invalid(e, "frequency_penalty or presence_penalty is not in -100 to 100");
    if (p->top_k > INT32_MAX || p->n_top > SAMPLING_MAX_TOP)
        return wire_invalid(e, "top_k %u, n_top %u", p->top_k, p->n_top);
    if (p->n_bias_tokens > SAMPLING_MAX_BIAS || p->n_bias_values != p->n_bias_tokens)
        return wire_invalid(e, "%zu biased tokens with %zu values, at most %d", p->n_bias_tokens,
                            p->n_bias_values, SAMPLING_MAX_BIAS);
    if (strlen(p->grammar) > SAMPLING_MAX_GRAMMAR_BYTES)
        return wire_invalid(e, "a grammar of %zu bytes, at most %d", strlen(p->grammar),
                            SAMPLING_MAX_GRAMMAR_BYTES);
    return 0;
}

static int read_sampling(const Polymath__V1__Sampling *p, uint32_t vocab_size, struct sampling *out,
                         struct err *e)
{
    int rc = check_sampling(p, e);
    if (rc < 0)
        return rc;
    out->temperature = p->temperature;
    out->top_k = (int)p->top_k;
    out->top_p = p->top_p;
    out->min_p = p->min_p;
    out->repetition_penalty = p->repetition_penalty;
    out->frequency_penalty = p->frequency_penalty;
    out->presence_penalty = p->presence_penalty;
    out->seed = p->seed;
    out->logprobs = p->logprobs;
    out->n_top = (int)p->n_top;
    out->logits_hash = p->logits_hash;
    out->n_bias = (int)p->n_bias_tokens;
    for (int i = 0; i < out->n_bias; i++) {
        if (p->bias_tokens[i] >= vocab_size || !is_within(p->bias_values[i], -1000, 1000))
            return wire_invalid(e, "bias of token %u", p->bias_tokens[i]);
        out->bias[i].token = (int32_t)p->bias_tokens[i];
        out->bias[i].bias = p->bias_values[i];
    }
    return 0;
}

static int check_seq(const Polymath__V1__StepSeq *p, const struct wire_step_limits *l,
                     struct err *e)
{
    unsigned long long id = p->seq;
    if (p->n_tokens == 0 || p->n_tokens > l->max_rows)
        return wire_invalid(e, "seq %llu: %u tokens, 1 to %u are taken", id, p->n_tokens,
                            l->max_rows);
    uint64_t end = (uint64_t)p->position + p->n_tokens + p->n_ahead;
    if (end > l->max_positions)
        return wire_invalid(e, "seq %llu: %llu tokens from position %u, %u positions are possible",
                            id, (unsigned long long)end - p->position, p->position,
                            l->max_positions);
    if (p->n_ahead > 0 && p->position != 0)
        return wire_invalid(e, "seq %llu: n_ahead belongs to position 0 and only there", id);
    bool drafts = p->n_draft > 0;
    if (drafts && (p->position == 0 || !p->sample || p->n_draft != p->n_tokens - 1))
        return wire_invalid(e, "seq %llu: n_draft %u with %u tokens from position %u", id,
                            p->n_draft, p->n_tokens, p->position);
    if ((p->position == 0) != (p->sampling != NULL))
        return wire_invalid(e, "seq %llu: sampling belongs to position 0 and only there", id);
    if (p->sampling && (p->n_prompt == 0 || p->n_prompt > l->max_positions))
        return wire_invalid(e, "seq %llu: a prompt of %u tokens", id, p->n_prompt);
    return 0;
}

static int check_tokens(const int32_t *tokens, size_t n, uint32_t vocab_size, struct err *e)
{
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab_size)
            return wire_invalid(e, "token %d of %u", tokens[i], vocab_size);
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

static int check_ids_differ(const Polymath__V1__StepRequest *p, struct wire_memory *memory,
                            struct err *e)
{
    uint64_t *ids = wire_memory_take(memory, p->n_seqs * sizeof(*ids));
    if (!ids)
        return err_set(e, E_NOMEM, "no memory for %zu sequences", p->n_seqs);
    for (size_t i = 0; i < p->n_seqs; i++)
        ids[i] = p->seqs[i]->seq;
    qsort(ids, p->n_seqs, sizeof(*ids), compare_ids);
    for (size_t i = 1; i < p->n_seqs; i++)
        if (ids[i] == ids[i - 1])
            return wire_invalid(e, "seq %llu twice in one step", (unsigned long long)ids[i]);
    return 0;
}

/* Everything that needs no memory of its own. */
static int check_step(const Polymath__V1__StepRequest *p, const struct frame *payloads,
                      int n_payloads, const struct wire_step_limits *l, struct err *e)
{
    if (p->n_seqs == 0 || p->n_seqs > l->max_seqs || p->n_seqs > WIRE_MAX_SEQS)
        return wire_invalid(e, "%zu sequences, 1 to %u are taken", p->n_seqs, l->max_seqs);
    if (p->n_tokens > l->max_rows || p->n_tokens > WIRE_MAX_ROWS)
        return wire_invalid(e, "%u rows, at most %u are taken", p->n_tokens, l->max_rows);
    uint64_t sum = 0, n_ahead = 0;
    for (size_t i = 0; i < p->n_seqs; i++) {
        int rc = check_seq(p->seqs[i], l, e);
        if (rc < 0)
            return rc;
        sum += p->seqs[i]->n_tokens;
        n_ahead += p->seqs[i]->n_ahead;
    }
    if (sum != p->n_tokens)
        return wire_invalid(e, "%u tokens, the sequences name %llu", p->n_tokens,
                            (unsigned long long)sum);
    if (n_payloads != 1 || payloads[0].size_bytes != (sum + n_ahead) * sizeof(int32_t))
        return wire_invalid(e, "%d payloads, expected one of %llu tokens", n_payloads,
                            (unsigned long long)(sum + n_ahead));
    return 0;
}

/* Step, sequences, their sampling, the tokens and texts in one block, largest alignment first. */
static int read_step(const Polymath__V1__StepRequest *p, const struct frame *payload,
                     const struct wire_step_limits *l, struct wire_step **out, struct err *e)
{
    size_t n_sampling = 0, text_bytes = 0, n_payload = payload->size_bytes / sizeof(int32_t);
    for (size_t i = 0; i < p->n_seqs; i++)
        if (p->seqs[i]->sampling) {
            n_sampling++;
            text_bytes += strlen(p->seqs[i]->sampling->grammar) + 1;
        }
    struct wire_step *s = mem_try_aligned(sizeof(*s) + p->n_seqs * sizeof(struct wire_step_seq) +
                                          n_sampling * sizeof(struct sampling) +
                                          n_payload * sizeof(int32_t) + text_bytes);
    if (!s)
        return err_set(e, E_NOMEM, "no memory for a step of %u rows", p->n_tokens);
    struct wire_step_seq *seqs = (struct wire_step_seq *)(void *)(s + 1);
    struct sampling *sampling = (struct sampling *)(void *)(seqs + p->n_seqs);
    int32_t *tokens = (int32_t *)(void *)(sampling + n_sampling);
    char *texts = (char *)(tokens + n_payload);
    memcpy(tokens, payload->data, n_payload * sizeof(*tokens));
    *s = (struct wire_step){.step = p->step,
                            .session = p->session,
                            .n_seqs = (uint32_t)p->n_seqs,
                            .n_tokens = p->n_tokens,
                            .seqs = seqs,
                            .tokens = tokens};
    int rc = check_tokens(tokens, n_payload, l->vocab_size, e);
    for (size_t i = 0; i < p->n_seqs && rc == 0; i++) {
        const Polymath__V1__StepSeq *q = p->seqs[i];
        seqs[i] = (struct wire_step_seq){.seq = q->seq,
                                         .position = q->position,
                                         .n_tokens = q->n_tokens,
                                         .sample = q->sample,
                                         .n_prompt = q->n_prompt,
                                         .n_ahead = q->n_ahead,
                                         .n_draft = q->n_draft};
        if (!q->sampling)
            continue;
        rc = read_sampling(q->sampling, l->vocab_size, sampling, e);
        if (q->sampling->grammar[0]) {
            sampling->grammar = texts;
            texts = stpcpy(texts, q->sampling->grammar) + 1;
        }
        seqs[i].sampling = sampling++;
    }
    if (rc < 0)
        mem_free(s);
    else
        *out = s;
    return rc;
}

int wire_step_decode(struct str message, const struct frame *payloads, int n_payloads,
                     const struct wire_step_limits *limits, struct wire_step **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    int rc = E_INVALID;
    const Polymath__V1__StepRequest *p =
        wire_unpack(&memory, &polymath__v1__step_request__descriptor, message, e);
    if (!p)
        goto out;
    rc = check_step(p, payloads, n_payloads, limits, e);
    if (rc == 0)
        rc = check_ids_differ(p, &memory, e);
    if (rc == 0)
        rc = read_step(p, &payloads[0], limits, out, e);
out:
    wire_memory_fini(&memory);
    return rc;
}

/* ---- Step's reply ----------------------------------------------------------------- */

struct sample_view {
    Polymath__V1__StepSample message;
    uint32_t tokens[SAMPLING_MAX_TOP];
    float logprobs[SAMPLING_MAX_TOP];
};

static void view_sample(const struct wire_step_sample *m, struct sample_view *v)
{
    const struct sampled *s = &m->sampled;
    must(s->n_top >= 0 && s->n_top <= SAMPLING_MAX_TOP);
    polymath__v1__step_sample__init(&v->message);
    v->message.seq = m->seq;
    v->message.status = (uint32_t)err_to_status(m->code);
    v->message.token = (uint32_t)s->token;
    v->message.logprob = s->logprob;
    v->message.logits_hash = s->logits_hash;
    for (int i = 0; i < s->n_top; i++) {
        v->tokens[i] = (uint32_t)s->top[i].token;
        v->logprobs[i] = s->top[i].logprob;
    }
    v->message.n_top_tokens = v->message.n_top_logprobs = (size_t)s->n_top;
    v->message.top_tokens = v->tokens;
    v->message.top_logprobs = v->logprobs;
}

const char *wire_standing_name(enum wire_standing s)
{
    static const char *const names[WIRE_STANDINGS] = {"good", "suspect", "away", "wrong"};
    return s < WIRE_STANDINGS ? names[s] : "unknown";
}

static void view_ladder(const struct wire_ladder_counters *m, Polymath__V1__LadderCounters *p)
{
    polymath__v1__ladder_counters__init(p);
    p->calls = m->calls;
    p->retries = m->retries;
    p->lates = m->lates;
    p->hedges = m->hedges;
    p->hedge_wins = m->hedge_wins;
    p->waits = m->waits;
    p->left_out = m->left_out;
    p->checks = m->checks;
    p->mismatches = m->mismatches;
    p->not_finite = m->not_finite;
}

static struct wire_ladder_counters read_ladder(const Polymath__V1__LadderCounters *p)
{
    if (!p)
        return (struct wire_ladder_counters){0};
    return (struct wire_ladder_counters){
        .calls = p->calls,
        .retries = p->retries,
        .lates = p->lates,
        .hedges = p->hedges,
        .hedge_wins = p->hedge_wins,
        .waits = p->waits,
        .left_out = p->left_out,
        .checks = p->checks,
        .mismatches = p->mismatches,
        .not_finite = p->not_finite,
    };
}

static void view_grammars(const struct wire_grammar_counters *m, Polymath__V1__GrammarCounters *p)
{
    polymath__v1__grammar_counters__init(p);
    p->compiled = m->compiled;
    p->shared = m->shared;
    p->refused = m->refused;
    p->masks_asked = m->masks_asked;
    p->masks_made = m->masks_made;
    p->bytes = m->bytes;
    p->kept = m->kept;
}

static struct wire_grammar_counters read_grammars(const Polymath__V1__GrammarCounters *p)
{
    if (!p)
        return (struct wire_grammar_counters){0};
    return (struct wire_grammar_counters){
        .compiled = p->compiled,
        .shared = p->shared,
        .refused = p->refused,
        .masks_asked = p->masks_asked,
        .masks_made = p->masks_made,
        .bytes = p->bytes,
        .kept = p->kept,
    };
}

static void view_health(const struct wire_node_health *m, Polymath__V1__NodeHealth *p)
{
    polymath__v1__node_health__init(p);
    p->node_id = m->node_id;
    p->incarnation = m->incarnation;
    p->standing = (Polymath__V1__NodeStanding)m->standing;
    p->failovers = m->failovers;
    p->lates = m->lates;
    p->wrongs = m->wrongs;
    p->usual_us = m->usual_us;
}

static int read_health(const Polymath__V1__NodeHealth *p, struct wire_node_health *out,
                       struct err *e)
{
    if (p->node_id == 0 || (unsigned)p->standing >= WIRE_STANDINGS)
        return wire_invalid(e, "node %u of standing %d", p->node_id, (int)p->standing);
    *out = (struct wire_node_health){
        .node_id = p->node_id,
        .incarnation = p->incarnation,
        .standing = (enum wire_standing)p->standing,
        .failovers = p->failovers,
        .lates = p->lates,
        .wrongs = p->wrongs,
        .usual_us = p->usual_us,
    };
    return 0;
}

void wire_step_reply_encode(const struct wire_step_reply *m, struct buf *message)
{
    must(m->n_samples <= WIRE_MAX_ROWS && m->n_nodes <= WIRE_MAX_NODES &&
         m->n_opened <= WIRE_MAX_SEQS);
    Polymath__V1__LadderCounters ladder;
    view_ladder(&m->ladder, &ladder);
    Polymath__V1__GrammarCounters grammars;
    view_grammars(&m->grammars, &grammars);
    Polymath__V1__NodeHealth *nodes = mem_array(m->n_nodes, sizeof(*nodes));
    Polymath__V1__NodeHealth **node_pointers =
        mem_array(m->n_nodes, sizeof(Polymath__V1__NodeHealth *));
    for (uint32_t i = 0; i < m->n_nodes; i++) {
        view_health(&m->nodes[i], &nodes[i]);
        node_pointers[i] = &nodes[i];
    }
    struct sample_view *views = mem_array(m->n_samples, sizeof(*views));
    Polymath__V1__StepSample **pointers =
        mem_array(m->n_samples, sizeof(Polymath__V1__StepSample *));
    for (uint32_t i = 0; i < m->n_samples; i++) {
        view_sample(&m->samples[i], &views[i]);
        pointers[i] = &views[i].message;
    }
    Polymath__V1__StepOpened *opened = mem_array(m->n_opened, sizeof(*opened));
    Polymath__V1__StepOpened **opened_pointers =
        mem_array(m->n_opened, sizeof(Polymath__V1__StepOpened *));
    for (uint32_t i = 0; i < m->n_opened; i++) {
        polymath__v1__step_opened__init(&opened[i]);
        opened[i].seq = m->opened[i].seq;
        opened[i].n_cached = m->opened[i].n_cached;
        opened_pointers[i] = &opened[i];
    }
    Polymath__V1__StepReply p;
    polymath__v1__step_reply__init(&p);
    p.step = m->step;
    p.epoch = m->epoch;
    p.n_samples = m->n_samples;
    p.samples = pointers;
    p.attention_us = m->attention_us;
    p.experts_us = m->experts_us;
    p.head_us = m->head_us;
    p.router_us = m->router_us;
    p.sampling_us = m->sampling_us;
    p.lanes = m->lanes;
    p.lanes_permille = m->lanes_permille;
    p.kv_pages_free = m->kv_pages_free;
    p.degraded = m->degraded;
    p.ladder = &ladder;
    p.grammars = &grammars;
    p.n_nodes = m->n_nodes;
    p.nodes = node_pointers;
    p.status = (uint32_t)err_to_status(m->code);
    p.text = (char *)(uintptr_t)m->text;
    p.n_opened = m->n_opened;
    p.opened = opened_pointers;
    wire_pack(&p.base, message);
    mem_free(opened_pointers);
    mem_free(opened);
    mem_free(node_pointers);
    mem_free(nodes);
    mem_free(pointers);
    mem_free(views);
}

/* A log-probability: at most 0 but for rounding, -inf for what cannot be. */
static bool is_logprob(float x)
{
    return x <= 1e-3f;
}

static int read_sample(const Polymath__V1__StepSample *p, struct wire_step_sample *out,
                       struct err *e)
{
    unsigned long long id = p->seq;
    if (p->status > 16 || p->token > INT32_MAX || !is_logprob(p->logprob))
        return wire_invalid(e, "seq %llu: status %u, token %u", id, p->status, p->token);
    if (p->n_top_tokens > SAMPLING_MAX_TOP || p->n_top_logprobs != p->n_top_tokens)
        return wire_invalid(e, "seq %llu: %zu alternatives with %zu values", id, p->n_top_tokens,
                            p->n_top_logprobs);
    out->seq = p->seq;
    out->code = err_from_status((int)p->status);
    out->sampled.token = (int32_t)p->token;
    out->sampled.logprob = p->logprob;
    out->sampled.logits_hash = p->logits_hash;
    out->sampled.n_top = (int)p->n_top_tokens;
    for (size_t i = 0; i < p->n_top_tokens; i++) {
        if (p->top_tokens[i] > INT32_MAX || !is_logprob(p->top_logprobs[i]))
            return wire_invalid(e, "seq %llu: alternative %u", id, p->top_tokens[i]);
        out->sampled.top[i].token = (int32_t)p->top_tokens[i];
        out->sampled.top[i].logprob = p->top_logprobs[i];
    }
    return 0;
}

/* A part is not more than its whole, whatever a side says. */
static uint64_t within(uint64_t part, uint64_t whole)
{
    return part < whole ? part : whole;
}

static int read_step_reply(const Polymath__V1__StepReply *p, struct wire_step_reply **out,
                           struct err *e)
{
    if (p->n_samples > WIRE_MAX_ROWS || p->n_nodes > WIRE_MAX_NODES || p->n_opened > WIRE_MAX_SEQS)
        return wire_invalid(e, "%zu samples, %zu nodes, %zu sequences", p->n_samples, p->n_nodes,
                            p->n_opened);
    if (p->status > 16 || (p->status != 0 && p->n_samples > 0))
        return wire_invalid(e, "status %u with %zu samples", p->status, p->n_samples);
    struct wire_step_reply *r =
        mem_try_aligned(sizeof(*r) + p->n_samples * sizeof(struct wire_step_sample) +
                        p->n_nodes * sizeof(struct wire_node_health) +
                        p->n_opened * sizeof(struct wire_step_opened));
    if (!r)
        return err_set(e, E_NOMEM, "no memory for %zu samples", p->n_samples);
    struct wire_step_sample *samples = (struct wire_step_sample *)(void *)(r + 1);
    struct wire_node_health *nodes = (struct wire_node_health *)(void *)(samples + p->n_samples);
    struct wire_step_opened *opened = (struct wire_step_opened *)(void *)(nodes + p->n_nodes);
    *r = (struct wire_step_reply){.step = p->step,
                                  .epoch = p->epoch,
                                  .n_samples = (uint32_t)p->n_samples,
                                  .samples = samples,
                                  .attention_us = p->attention_us,
                                  .experts_us = p->experts_us,
                                  .head_us = p->head_us,
                                  .router_us = within(p->router_us, p->attention_us),
                                  .sampling_us = within(p->sampling_us, p->head_us),
                                  .lanes = p->lanes == 2 ? 2 : 1,
                                  .lanes_permille = p->lanes_permille,
                                  .kv_pages_free = p->kv_pages_free,
                                  .degraded = p->degraded,
                                  .ladder = read_ladder(p->ladder),
                                  .grammars = read_grammars(p->grammars),
                                  .n_nodes = (uint32_t)p->n_nodes,
                                  .nodes = nodes,
                                  .n_opened = (uint32_t)p->n_opened,
                                  .opened = opened,
                                  .code = err_from_status((int)p->status)};
    int rc = wire_text(r->text, sizeof(r->text), p->text, "step's text", e);
    for (size_t i = 0; i < p->n_opened; i++)
        opened[i] = (struct wire_step_opened){p->opened[i]->seq, p->opened[i]->n_cached};
    for (size_t i = 0; i < p->n_samples && rc == 0; i++)
        rc = read_sample(p->samples[i], &samples[i], e);
    for (size_t i = 0; i < p->n_nodes && rc == 0; i++)
        rc = read_health(p->nodes[i], &nodes[i], e);
    if (rc < 0)
        mem_free(r);
    else
        *out = r;
    return rc;
}

int wire_step_reply_decode(struct str message, struct wire_step_reply **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__StepReply *p =
        wire_unpack(&memory, &polymath__v1__step_reply__descriptor, message, e);
    int rc = p ? read_step_reply(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}

/* ---- Release and Describe --------------------------------------------------------- */

void wire_release_encode(const struct wire_release *m, struct buf *message)
{
    must(m->n_seqs <= WIRE_MAX_SEQS);
    Polymath__V1__ReleaseRequest p;
    polymath__v1__release_request__init(&p);
    p.n_seqs = m->n_seqs;
    p.seqs = (uint64_t *)(uintptr_t)m->seqs;
    p.session = m->session;
    wire_pack(&p.base, message);
}

int wire_release_decode(struct str message, struct wire_release **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__ReleaseRequest *p =
        wire_unpack(&memory, &polymath__v1__release_request__descriptor, message, e);
    int rc = p ? 0 : E_INVALID;
    if (p && p->n_seqs > WIRE_MAX_SEQS)
        rc = wire_invalid(e, "%zu sequences", p->n_seqs);
    if (rc == 0) {
        struct wire_release *r = mem_alloc(sizeof(*r) + p->n_seqs * sizeof(uint64_t));
        uint64_t *seqs = (uint64_t *)(void *)(r + 1);
        if (p->n_seqs > 0)
            memcpy(seqs, p->seqs, p->n_seqs * sizeof(*seqs));
        *r = (struct wire_release){
            .session = p->session, .n_seqs = (uint32_t)p->n_seqs, .seqs = seqs};
        *out = r;
    }
    wire_memory_fini(&memory);
    return rc;
}

void wire_attention_description_encode(const struct wire_attention_description *m,
                                       struct buf *message)
{
    Polymath__V1__AttentionDescription p;
    polymath__v1__attention_description__init(&p);
    p.name = wire_borrow(m->name);
    p.fingerprint = m->fingerprint;
    p.epoch = m->epoch;
    p.session = m->session;
    p.keeps_prefixes = m->keeps_prefixes;
    p.takes_drafts = m->takes_drafts;
    p.kv_pages_total = m->kv_pages_total;
    p.kv_pages_free = m->kv_pages_free;
    p.page_tokens = m->page_tokens;
    p.max_rows = m->max_rows;
    p.max_seqs = m->max_seqs;
    p.max_positions = m->max_positions;
    p.protocol_version = m->protocol_version;
    char formats[FORMAT_SET_BYTES];
    p.format = wire_borrow(format_set_text(&m->formats, formats));
    p.combine = wire_borrow(combine_name(m->combine));
    p.kernels = wire_borrow(m->kernels);
    p.build = wire_borrow(m->build);
    wire_pack(&p.base, message);
}

static int read_description(const Polymath__V1__AttentionDescription *p,
                            struct wire_attention_description *out, struct err *e)
{
    int rc = wire_text(out->name, sizeof(out->name), p->name, "name", e);
    if (rc == 0)
        rc = wire_text(out->kernels, sizeof(out->kernels), p->kernels, "kernels", e);
    if (rc == 0)
        rc = wire_text(out->build, sizeof(out->build), p->build, "build", e);
    if (rc == 0)
        rc = wire_model_choices(p->format, p->combine, &out->formats, &out->combine, e);
    out->fingerprint = p->fingerprint;
    out->epoch = p->epoch;
    out->session = p->session;
    out->keeps_prefixes = p->keeps_prefixes;
    out->takes_drafts = p->takes_drafts;
    out->kv_pages_total = p->kv_pages_total;
    out->kv_pages_free = p->kv_pages_free;
    out->page_tokens = p->page_tokens;
    out->max_rows = p->max_rows;
    out->max_seqs = p->max_seqs;
    out->max_positions = p->max_positions;
    out->protocol_version = p->protocol_version;
    return rc;
}

int wire_attention_description_decode(struct str message, struct wire_attention_description *out,
                                      struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__AttentionDescription *p =
        wire_unpack(&memory, &polymath__v1__attention_description__descriptor, message, e);
    int rc = p ? read_description(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}
