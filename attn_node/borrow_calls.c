/* attn_node/borrow_calls.c - the calls of a step to the nodes that lend; see borrow.h.
 *
 * Calls of one lender are answered in the order in which they are made, so nobody waits for Begin: if
 * it failed, what follows fails, too. */
#include <string.h>

#include "attn_node/borrow_state.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"

void borrow_begin_step(struct borrow *b, uint64_t step, uint64_t trace_id, int64_t deadline_ns)
{
    b->step = step;
    b->trace_id = trace_id;
    b->deadline_ns = deadline_ns;
    b->error = (struct err){0};
}

const struct err *borrow_error(const struct borrow *b)
{
    return &b->error;
}

static struct lender *lender_of(struct borrow *b, int place)
{
    for (int i = 0; i < b->n_lenders; i++)
        if (b->lenders[i]->place == place)
            return b->lenders[i];
    unreachable();
}

/* The first failure of a step is its reason. */
static int fail(struct lender *l, int code, const char *why)
{
    struct borrow *b = l->owner;
    if (b->error.code == 0)
        err_set(&b->error, code, "context node %s: %s", l->who.name, why);
    borrow_lose(b, l, code, why);
    return code;
}

/* ---- answers --------------------------------------------------------------------------- */

static int take_choice(struct lender *l, const struct reply *r, struct err *e)
{
    const struct lender_lane *at = &l->lanes[l->awaited.lane];
    _Static_assert(sizeof(struct context_candidate) == sizeof(struct wire_context_candidate),
                   "both are a score and a block");
    return wire_context_choose_reply_decode(
        r->payloads, r->n_payloads, &l->owner->model, &at->counts, at->n_blocks,
        (struct wire_context_candidate *)(void *)l->awaited.candidates, e);
}

static int take_states(struct lender *l, const struct reply *r, struct err *e)
{
    const struct wire_context_model *m = &l->owner->model;
    const struct wire_context_counts *n = &l->lanes[l->awaited.lane].counts;
    const void *states;
    int rc = wire_context_attend_reply_decode(r->payloads, r->n_payloads, m, n, &states, e);
    if (rc < 0)
        return rc;
    size_t state_bytes = wire_context_state_bytes(m, n);
    memcpy(l->awaited.rows->state, states, state_bytes);
    memcpy(l->awaited.rows->o, (const char *)states + state_bytes,
           wire_context_states_bytes(m, n) - state_bytes);
    return 0;
}

static void on_begun(void *ud, const struct reply *r)
{
    struct lender *l = ud;
    if (r->code < 0 && !l->is_closing && l->state == LENDER_OPEN)
        fail(l, r->code, r->text);
}

static void on_answer(void *ud, const struct reply *r)
{
    struct lender *l = ud;
    struct err e = {0};
    if (l->is_closing || l->state != LENDER_OPEN || r->call_id != l->awaited.call_id)
        return;
    if (r->code < 0) {
        fail(l, r->code, r->text);
        return;
    }
    int rc = l->awaited.candidates ? take_choice(l, r, &e) : take_states(l, r, &e);
    l->awaited.is_there = rc == 0;
    if (rc < 0)
        fail(l, E_CORRUPT, e.text);
}

static int await(struct lender *l)
{
    struct borrow *b = l->owner;
    while (l->state == LENDER_OPEN && !l->awaited.is_there)
        channel_wait(&l->channel, 1, -1, b->deadline_ns, b->options.spin_ns);
    bool is_there = l->awaited.is_there;
    l->awaited = (struct awaited){0};
    return is_there ? 0 : b->error.code;
}

/* ---- calls ------------------------------------------------------------------------------ */

struct borrow_call {
    int method;
    struct blob *payloads[CHANNEL_MAX_PAYLOADS];
    int n_payloads;
};

/* The payloads are gone afterwards. */
static int send(struct lender *l, struct borrow_call *c, reply_callback *done, uint64_t *id)
{
    struct borrow *b = l->owner;
    struct call call = {.method = wire_method(WIRE_CONTEXT, c->method),
                        .message = &b->message,
                        .payloads = c->payloads,
                        .n_payloads = c->n_payloads,
                        .deadline_ns = b->deadline_ns,
                        .trace_id = b->trace_id,
                        .done = done,
                        .ud = l};
    int rc = channel_call(l->channel, &call, id);
    for (int i = 0; i < c->n_payloads; i++)
        blob_unref(&c->payloads[i]);
    return rc < 0 ? fail(l, rc, "it cannot be reached") : 0;
}

static void add_payload(struct borrow_call *c, const void *data, size_t bytes)
{
    c->payloads[c->n_payloads++] = blob_copy(data, bytes);
}

/* What a plan has, counted and in the wire's form. */
static struct wire_context_begin plan_on_wire(struct borrow *b, struct lender *l, int lane,
                                              const struct context_plan *p)
{
    struct lender_lane *at = &l->lanes[lane];
    for (uint32_t i = 0; i < p->n_parts; i++)
        b->parts[i] = (struct wire_context_part){
            .seq = p->parts[i].seq, .n_kept = p->parts[i].n_kept, .n_new = p->parts[i].n_new};
    int32_t block_size = b->options.config->sparse.block_size;
    size_t n_choosing = 0;
    for (uint32_t i = 0; i < p->n_groups; i++) {
        const struct context_group *g = &p->groups[i];
        const struct context_part *part = &p->parts[g->part];
        b->groups[i] = (struct wire_context_group){.part = g->part,
                                                   .n_rows = g->n_rows,
                                                   .position = g->position,
                                                   .chooses = g->chooses,
                                                   .ends = g->ends};
        uint32_t n_pages = part->n_kept + part->n_new;
        for (uint32_t row = 0; g->chooses && row < g->n_rows; row++)
            at->n_blocks[n_choosing++] = (int32_t)(n_pages * KV_PAGE_TOKENS) / block_size;
    }
    struct wire_context_begin m = {.session = l->session,
                                   .step = b->step,
                                   .lane = (uint32_t)lane,
                                   .n_parts = p->n_parts,
                                   .n_groups = p->n_groups,
                                   .parts = b->parts,
                                   .pages = p->pages,
                                   .groups = b->groups};
    at->counts = wire_context_count(&m);
    return m;
}

static int begin(void *ud, int lane, int place, const struct context_plan *plan)
{
    struct borrow *b = ud;
    struct lender *l = lender_of(b, place);
    struct wire_context_begin m = plan_on_wire(b, l, lane, plan);
    struct borrow_call c = {.method = CONTEXT_BEGIN};
    if (l->state != LENDER_OPEN)
        return fail(l, E_UNAVAILABLE, "it is gone");
    buf_reset(&b->message);
    wire_context_begin_encode(&m, &b->message, &c.payloads[0]);
    c.n_payloads = c.payloads[0] != NULL;
    uint64_t id;
    return send(l, &c, on_begun, &id);
}

static void begin_call(struct lender *l, struct borrow_call *c, int lane,
                       const struct context_rows *r)
{
    struct borrow *b = l->owner;
    const struct wire_context_counts *n = &l->lanes[lane].counts;
    struct wire_context_call m = {.session = l->session,
                                  .step = b->step,
                                  .lane = (uint32_t)lane,
                                  .layer = r->layer,
                                  .has_writes = r->k != NULL,
                                  .has_states = c->method == CONTEXT_ATTEND};
    buf_reset(&b->message);
    wire_context_call_encode(&m, &b->message);
    if (!r->k)
        return;
    size_t kv_bytes = (size_t)n->ending * b->model.n_kv_heads * b->model.head_dim * sizeof(float);
    struct blob *writes = blob_new(wire_context_writes_bytes(&b->model, n, r->layer));
    char *to = writes->data;
    memcpy(to, r->k, kv_bytes);
    memcpy(to + kv_bytes, r->v, kv_bytes);
    if (r->index_k)
        memcpy(to + 2 * kv_bytes, r->index_k, writes->size_bytes - 2 * kv_bytes);
    c->payloads[c->n_payloads++] = writes;
}

static int choose(void *ud, int lane, int place, const struct context_rows *r)
{
    struct borrow *b = ud;
    struct lender *l = lender_of(b, place);
    struct borrow_call c = {.method = CONTEXT_CHOOSE};
    if (l->state != LENDER_OPEN)
        return fail(l, E_UNAVAILABLE, "it is gone");
    begin_call(l, &c, lane, r);
    add_payload(&c, r->index_q, wire_context_index_q_bytes(&b->model, &l->lanes[lane].counts));
    l->awaited = (struct awaited){.lane = lane};
    return send(l, &c, on_answer, &l->awaited.call_id);
}

static int chosen(void *ud, int lane, int place, struct context_candidate *candidates)
{
    struct lender *l = lender_of(ud, place);
    must(l->awaited.lane == lane);
    l->awaited.candidates = candidates;
    return await(l);
}

static int attend(void *ud, int lane, int place, const struct context_rows *r)
{
    struct borrow *b = ud;
    struct lender *l = lender_of(b, place);
    const struct wire_context_counts *n = &l->lanes[lane].counts;
    struct borrow_call c = {.method = CONTEXT_ATTEND};
    if (l->state != LENDER_OPEN)
        return fail(l, E_UNAVAILABLE, "it is gone");
    begin_call(l, &c, lane, r);
    add_payload(&c, r->q, wire_context_q_bytes(&b->model, n));
    if (r->blocks)
        add_payload(&c, r->blocks, wire_context_blocks_bytes(&b->model, n, r->layer));
    size_t state_bytes = wire_context_state_bytes(&b->model, n);
    struct blob *states = blob_new(wire_context_states_bytes(&b->model, n));
    memcpy(states->data, r->state, state_bytes);
    memcpy((char *)states->data + state_bytes, r->o, states->size_bytes - state_bytes);
    c.payloads[c.n_payloads++] = states;
    l->awaited = (struct awaited){.lane = lane, .rows = r};
    int rc = send(l, &c, on_answer, &l->awaited.call_id);
    return rc < 0 ? rc : await(l);
}

const struct far_ops borrow_ops = {begin, choose, chosen, attend};
