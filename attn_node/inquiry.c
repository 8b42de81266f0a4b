/* attn_node/inquiry.c - see inquiry.h. */
#include "attn_node/inquiry.h"

#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"

_Static_assert((int)VERIFY_MAX_PARTS >= (int)MODEL_MAX_TOP_K, "a part for each expert of a row");

enum { MAX_QUESTIONS = 1 + 2 * VERIFY_MAX_PARTS };

/* The row and some of its experts, asked of one node. */
struct question {
    struct wire_forward forward;
    struct verify_answer *answer; /* where it goes */
    uint64_t call_id;
    struct channel *channel;
    void *data; /* [vector], what answer points to */
    int *n_open;
};

struct questions {
    struct question items[MAX_QUESTIONS];
    int n, n_open;
};

static void on_answer(void *ud, const struct reply *r)
{
    struct question *q = ud;
    --*q->n_open;
    q->call_id = 0;
    struct wire_forward_reply *reply = mem_alloc(sizeof(*reply));
    if (r->code == 0 && wire_forward_reply_decode(r->message, r->payloads, r->n_payloads,
                                                  &q->forward, reply, NULL) == 0) {
        memcpy(q->data, r->payloads[0].data, r->payloads[0].size_bytes);
        *q->answer = (struct verify_answer){
            .is_there = true, .is_off_grid = reply->n_overflow > 0, .data = q->data};
    }
    mem_free(reply);
}

static void ask(const struct inquiry *q, struct questions *all, const struct round_dispute *d,
                const struct round_answer *about, int node, struct verify_answer *answer)
{
    struct expert_peer *peer = node < 0 ? NULL : q->peers->items[node];
    if (!peer || expert_peer_standing(peer) == STANDING_AWAY)
        return;
    uint16_t experts[MODEL_MAX_TOP_K];
    float weights[MODEL_MAX_TOP_K];
    int32_t row = d->row, first_route[2] = {0, about->n_slots};
    for (int i = 0; i < about->n_slots; i++) {
        experts[i] = q->rows->routing->experts[about->slots[i]];
        weights[i] = q->rows->routing->weights[about->slots[i]];
    }
    struct round_parcel p = {.mode = d->mode,
                             .node = node,
                             .n_rows = 1,
                             .n_routes = about->n_slots,
                             .rows = &row,
                             .first_route = first_route,
                             .exponents = &q->rows->exponents[row],
                             .slots = about->slots,
                             .experts = experts,
                             .weights = weights};
    struct question *item = &all->items[all->n++];
    *item = (struct question){.forward = forward_describe(q->calls, &q->about, &p),
                              .answer = answer,
                              .channel = peer->channel,
                              .data = mem_alloc((size_t)q->rows->hidden * sizeof(float)),
                              .n_open = &all->n_open};
    struct forward_request r = {.about = q->about,
                                .parcel = &p,
                                .rows = &q->rows->rows,
                                .deadline_ns = q->deadline_ns,
                                .done = on_answer,
                                .ud = item};
    uint64_t bytes;
    if (forward_send(q->calls, peer->channel, &r, &item->call_id, &bytes) == 0)
        all->n_open++;
}

/* A node that has all these experts and has not spoken yet, or -1. */
static int find_third(const struct inquiry *q, const struct round_dispute *d,
                      const struct round_answer *about)
{
    for (int node = 0; node < q->peers->n; node++) {
        bool fits = node != d->first.node && node != about->node;
        for (int i = 0; i < about->n_slots && fits; i++) {
            const uint16_t *h = wire_table_holders(q->table, (uint32_t)q->rows->layer,
                                                   q->rows->routing->experts[about->slots[i]]);
            fits = false;
            for (uint32_t k = 0; k < q->table->n_replicas; k++)
                fits |= h[k] == node;
        }
        if (fits && expert_peer_standing(q->peers->items[node]) != STANDING_AWAY)
            return node;
    }
    return -1;
}

static struct verify_answer said_by(const struct round_answer *a)
{
    return (struct verify_answer){.is_there = true, .is_off_grid = a->is_off_grid, .data = a->data};
}

struct verify_verdict inquiry_run(const struct inquiry *q, const struct round_dispute *d)
{
    struct verify_case c = {.mode = d->mode, .hidden = q->rows->hidden, .n_parts = d->n_parts};
    struct questions *all = mem_alloc(sizeof(*all));
    c.whole.said = said_by(&d->first);
    ask(q, all, d, &d->first, d->first.node, &c.whole.again);
    for (int i = 0; i < d->n_parts; i++) {
        const struct round_answer *part = &d->parts[i];
        c.parts[i].said = said_by(part);
        ask(q, all, d, part, part->node, &c.parts[i].again);
        ask(q, all, d, part, find_third(q, d, part), &c.parts[i].third);
    }
    while (all->n_open > 0)
        channel_wait(q->peers->channels, q->peers->n_channels, -1, q->deadline_ns, 0);
    struct verify_verdict v = verify_judge(&c);
    for (int i = 0; i < all->n; i++)
        mem_free(all->items[i].data);
    mem_free(all);
    return v;
}
