/* attn_node/borrow.c - see borrow.h; borrow_calls.c has the calls of a step. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "attn_node/borrow_state.h"
#include "attn_node/context_model.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/version.h"

#define OPEN_TIMEOUT_NS (5 * CLOCK_S)
#define OPEN_AGAIN_NS CLOCK_S
#define MIND_NS (10 * CLOCK_MS)       /* while something is to come */
#define MIND_IDLE_NS (100 * CLOCK_MS) /* to notice what breaks */

struct borrow *borrow_new(const struct borrow_options *o)
{
    struct borrow *b = mem_alloc(sizeof(*b));
    b->options = *o;
    b->name = mem_string(o->name);
    b->model = context_model(o->config);
    b->parts = mem_array((size_t)o->max_seqs, sizeof(*b->parts));
    b->groups = mem_array((size_t)o->max_rows, sizeof(*b->groups));
    return b;
}

static void free_lender(struct lender **lender)
{
    struct lender *l = *lender;
    *lender = NULL;
    l->is_closing = true;
    if (l->channel)
        channel_close(&l->channel);
    for (int i = 0; i < FORWARD_LANES; i++)
        mem_free(l->lanes[i].n_blocks);
    mem_free(l);
}

void borrow_free(struct borrow **borrow)
{
    struct borrow *b = *borrow;
    if (!b)
        return;
    *borrow = NULL;
    while (b->n_lenders > 0)
        free_lender(&b->lenders[--b->n_lenders]);
    buf_fini(&b->message);
    mem_free(b->parts);
    mem_free(b->groups);
    mem_free(b->name);
    mem_free(b);
}

/* ---- who lends ------------------------------------------------------------------------ */

void borrow_install(struct borrow *b, const struct wire_table *t, uint32_t node_id)
{
    b->n_wanted = 0;
    for (uint32_t i = 0; i < t->n_contexts && b->n_wanted < MAX_LENDERS; i++)
        if (t->contexts[i].borrower == node_id)
            b->wanted[b->n_wanted++] = t->contexts[i];
    b->has_news = true;
}

static bool is_same(const struct wire_table_context *a, const struct wire_table_context *b)
{
    return a->node_id == b->node_id && a->incarnation == b->incarnation &&
           strcmp(a->endpoint, b->endpoint) == 0;
}

void borrow_lose(struct borrow *b, struct lender *l, int code, const char *why)
{
    if (l->state == LENDER_OPEN)
        log_warn("context.lost", "name=%s place=%d code=%s why=%s", l->who.name, l->place,
                 err_name(code), log_quote(why).text);
    b->is_lost |= l->place > 0;
    l->state = LENDER_SHUT;
    l->open_ns = clock_now_ns() + OPEN_AGAIN_NS;
}

static void drop_unwanted(struct borrow *b)
{
    for (int i = 0; i < b->n_lenders; i++) {
        struct lender *l = b->lenders[i];
        bool is_wanted = false;
        for (int j = 0; j < b->n_wanted; j++)
            is_wanted |= is_same(&l->who, &b->wanted[j]);
        if (is_wanted)
            continue;
        borrow_lose(b, l, E_UNAVAILABLE, "it lends no longer");
        free_lender(&b->lenders[i]);
        b->lenders[i--] = b->lenders[--b->n_lenders];
    }
}

static void dial(struct borrow *b, const struct wire_table_context *who)
{
    struct err e = {0};
    struct lender *l = mem_alloc(sizeof(*l));
    l->owner = b;
    l->who = *who;
    for (int i = 0; i < FORWARD_LANES; i++)
        l->lanes[i].n_blocks = mem_array((size_t)b->options.max_rows, sizeof(int32_t));
    struct channel_options o = {.endpoint = l->who.endpoint,
                                .peer_name = l->who.name,
                                .auth = b->options.auth,
                                .server_key = l->who.public_key};
    if (channel_open(&o, &l->channel, &e) < 0)
        log_error("context.refused", "name=%s endpoint=%s why=%s", l->who.name, l->who.endpoint,
                  log_quote(e.text).text);
    b->lenders[b->n_lenders++] = l;
}

static void dial_new(struct borrow *b)
{
    for (int j = 0; j < b->n_wanted; j++) {
        bool is_there = false;
        for (int i = 0; i < b->n_lenders; i++)
            is_there |= is_same(&b->lenders[i]->who, &b->wanted[j]);
        if (!is_there)
            dial(b, &b->wanted[j]);
    }
}

/* ---- opening --------------------------------------------------------------------------- */

static int check_opened(const struct borrow *b, const struct wire_context_open_reply *r,
                        struct err *e)
{
    if (r->page_tokens != KV_PAGE_TOKENS)
        return err_set(e, E_PRECONDITION, "page_tokens is %u there, %d here", r->page_tokens,
                       KV_PAGE_TOKENS);
    if (r->max_seqs < (uint32_t)b->options.max_seqs)
        return err_set(e, E_PRECONDITION, "max_seqs is %u there, attention.max_seqs %d here",
                       r->max_seqs, b->options.max_seqs);
    if (r->pages < KV_SPAN_PAGES || r->pages > INT32_MAX)
        return err_set(e, E_PRECONDITION, "%u pages are lent; at least %d are of use", r->pages,
                       KV_SPAN_PAGES);
    return 0;
}

static void on_opened(void *ud, const struct reply *r)
{
    struct lender *l = ud;
    struct wire_context_open_reply reply;
    struct err e = {0};
    if (l->is_closing)
        return;
    int rc = r->code < 0 ? err_set(&e, r->code, "%s", r->text)
                         : wire_context_open_reply_decode(r->message, &reply, &e);
    if (rc == 0)
        rc = check_opened(l->owner, &reply, &e);
    if (rc < 0) {
        if (!l->is_told_refused)
            log_warn("context.refused", "name=%s why=%s", l->who.name, log_quote(e.text).text);
        l->is_told_refused = true;
        l->state = LENDER_SHUT;
        l->open_ns = clock_now_ns() + OPEN_AGAIN_NS;
        return;
    }
    l->is_told_refused = false;
    l->state = LENDER_OPEN;
    l->session = reply.session;
    l->n_pages = reply.pages;
    log_info("context.opened", "name=%s pages=%u tokens=%" PRIu64, l->who.name, reply.pages,
             (uint64_t)reply.pages * KV_PAGE_TOKENS);
}

static void open_lender(struct borrow *b, struct lender *l, int64_t now_ns)
{
    struct wire_context_open m = {.fingerprint = b->options.fingerprint,
                                  .kv = b->options.kv,
                                  .protocol_version = POLYMATH_PROTOCOL_VERSION,
                                  .max_rows = (uint32_t)b->options.max_rows};
    snprintf(m.owner, sizeof(m.owner), "%s", b->name);
    buf_reset(&b->message);
    wire_context_open_encode(&m, &b->message);
    struct call call = {.method = wire_method(WIRE_CONTEXT, CONTEXT_OPEN),
                        .message = &b->message,
                        .deadline_ns = now_ns + OPEN_TIMEOUT_NS,
                        .done = on_opened,
                        .ud = l};
    uint64_t id;
    if (channel_call(l->channel, &call, &id) == 0)
        l->state = LENDER_OPENING;
}

int64_t borrow_mind(struct borrow *b, int64_t now_ns)
{
    bool is_any_coming = false;
    if (b->has_news) {
        b->has_news = false;
        drop_unwanted(b);
        dial_new(b);
    }
    for (int i = 0; i < b->n_lenders; i++) {
        struct lender *l = b->lenders[i];
        if (!l->channel)
            continue;
        channel_process(l->channel, now_ns);
        bool is_connected = channel_is_connected(l->channel);
        if (l->state == LENDER_OPEN && !is_connected)
            borrow_lose(b, l, E_UNAVAILABLE, "the connection broke");
        if (l->state == LENDER_SHUT && is_connected && now_ns >= l->open_ns)
            open_lender(b, l, now_ns);
        is_any_coming |= l->state != LENDER_OPEN;
    }
    return b->n_lenders == 0 ? CLOCK_NEVER : now_ns + (is_any_coming ? MIND_NS : MIND_IDLE_NS);
}

bool borrow_take_loss(struct borrow *b)
{
    if (!b->is_lost)
        return false;
    b->is_lost = false;
    for (int i = 0; i < b->n_lenders; i++)
        b->lenders[i]->place = 0;
    return true;
}

int borrow_take_pages(struct borrow *b, int place)
{
    for (int i = 0; i < b->n_lenders && place < KV_MAX_PLACES; i++) {
        struct lender *l = b->lenders[i];
        if (l->state != LENDER_OPEN || l->place > 0)
            continue;
        l->place = place;
        return (int)l->n_pages;
    }
    return 0;
}
