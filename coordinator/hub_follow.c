/* coordinator/hub_follow.c - a standby with a state directory of its own copies the leader's token
 * log into it (coordinator/follow.h decides what to make of the leader's answers).  When it leads it
 * opens the log like one that it wrote itself.  See hub.h.
 *
 * One question is under way at a time, and it goes out when what came before is on the disk.
 *
 * Log events: follow.copied, follow.refused, follow.anew, follow.stopped. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/etcd_keys.h"
#include "coordinator/follow.h"
#include "coordinator/hub_state.h"

#define ASK_DEADLINE_NS (3 * CLOCK_S) /* longer than a leader holds a question */
#define ASK_AGAIN_NS (50 * CLOCK_MS)  /* after a failure */
#define LOOK_AGAIN_NS (2 * CLOCK_MS)  /* whether it is written */
#define OPEN_AGAIN_NS (1 * CLOCK_S)

struct hub_follow {
    struct follow machine;
    uint64_t instance, state;
    char endpoint[LINK_ENDPOINT_BYTES], leader[WIRE_NAME_BYTES];
    struct channel *channel; /* NULL: no leader is known */
    struct journal *journal; /* NULL: to be opened again */
    struct loop_timer timer;
    bool is_asking, is_closing, is_stopped;
    bool is_replacing;
    uint64_t rewrites; /* before that */
    bool said_copied, said_refused;
    int64_t copied_bytes, heard_ns;
};

static void look_again(struct hub *h, int64_t after_ns)
{
    loop_set_timer(h->loop, &h->follow->timer, clock_now_ns() + after_ns);
}

/* ---- the directory ------------------------------------------------------------------------ */

static void on_durable(void *ud)
{
    look_again(ud, 0);
}

static void on_stopped(void *ud, const char *why)
{
    struct hub *h = ud;
    log_error("follow.stopped", "why=%s", log_quote(why).text);
    h->follow->is_stopped = true;
    look_again(h, OPEN_AGAIN_NS);
}

static void keep_record(void *ud, uint8_t type, struct str payload)
{
    records_put(ud, type, payload);
}

/* What is there stays until the leader's snapshot has come. */
static int open_log(struct hub *h, struct err *e)
{
    struct hub_follow *f = h->follow;
    struct buf all = {0};
    struct journal_options o = {.on_durable = on_durable, .on_stopped = on_stopped, .ud = h};
    int rc = hub_log_open_dir(h, &o, keep_record, &all, &f->journal, e);
    if (rc == 0)
        rc = journal_start(f->journal, h->loop, &all, e);
    buf_fini(&all);
    if (rc < 0)
        journal_close(&f->journal);
    f->is_stopped = f->is_replacing = false;
    follow_restart(&f->machine);
    return rc;
}

static void open_again(struct hub *h)
{
    struct err e = {0};
    journal_close(&h->follow->journal);
    if (open_log(h, &e) < 0) {
        log_error("follow.stopped", "why=%s", log_quote(e.text).text);
        look_again(h, OPEN_AGAIN_NS);
    }
}

/* ---- questions and answers ------------------------------------------------------------------ */

static void append_record(void *ud, uint8_t type, struct str payload)
{
    journal_append(ud, type, payload);
}

static void take(struct hub *h, const struct wire_follow_reply *m)
{
    struct hub_follow *f = h->follow;
    struct follow_answer a = {.stream = m->stream,
                              .offset = m->offset,
                              .snapshot_bytes = m->snapshot_bytes,
                              .bytes = m->bytes};
    struct str records;
    enum follow_act act = follow_take(&f->machine, &a, &records);
    f->copied_bytes += (int64_t)m->bytes.len;
    f->heard_ns = clock_now_ns();
    if (act == FOLLOW_REPLACE) {
        struct buf snapshot = {0};
        buf_append_str(&snapshot, records);
        f->rewrites = journal_rewrites(f->journal);
        f->is_replacing = true;
        journal_rewrite(f->journal, &snapshot);
    } else if (act == FOLLOW_APPEND) {
        records_read(records, append_record, f->journal);
    }
    follow_written(&f->machine, records);
    if (act == FOLLOW_ANEW)
        log_warn("follow.anew", "leader=%s stream=%llu", log_quote(f->leader).text,
                 (unsigned long long)m->stream);
    look_again(h, act == FOLLOW_ANEW ? ASK_AGAIN_NS : 0);
}

static void on_answer(void *ud, const struct reply *r)
{
    struct hub *h = ud;
    struct hub_follow *f = h->follow;
    struct wire_follow_reply m;
    struct err e = {0};
    f->is_asking = false;
    if (f->is_closing)
        return;
    int rc = r->code;
    if (rc == 0)
        rc = wire_follow_reply_decode(r->message, r->payloads, r->n_payloads, &m, &e);
    if (rc == 0 && f->journal && !f->is_stopped) {
        f->said_refused = false;
        take(h, &m);
        return;
    }
    /* Unavailable: it does not lead any more, or not yet. */
    if (rc < 0 && rc != E_UNAVAILABLE && rc != E_DEADLINE && !f->said_refused) {
        log_warn("follow.refused", "leader=%s why=%s", log_quote(f->leader).text,
                 log_quote(r->code < 0 ? r->text : e.text).text);
        f->said_refused = true;
    }
    look_again(h, ASK_AGAIN_NS);
}

static void ask(struct hub *h)
{
    struct hub_follow *f = h->follow;
    struct wire_follow q = {.instance = f->instance,
                            .state = f->state,
                            .stream = f->machine.stream,
                            .offset = f->machine.offset};
    snprintf(q.name, sizeof q.name, "%s", h->config->node_name);
    struct buf message = {0};
    wire_follow_encode(&q, &message);
    struct call c = {.method = wire_method(WIRE_CLUSTER, CLUSTER_FOLLOW),
                     .message = &message,
                     .deadline_ns = clock_now_ns() + ASK_DEADLINE_NS,
                     .done = on_answer,
                     .ud = h};
    f->is_asking = channel_call(f->channel, &c, NULL) == 0;
    buf_fini(&message);
    if (!f->is_asking)
        look_again(h, ASK_AGAIN_NS);
}

/* The snapshot is on the disk, or it could not be written. */
static void finish_replacing(struct hub *h)
{
    struct hub_follow *f = h->follow;
    f->is_replacing = false;
    if (journal_rewrites(f->journal) == f->rewrites) {
        follow_restart(&f->machine);
        look_again(h, OPEN_AGAIN_NS);
        return;
    }
    if (!f->said_copied)
        log_info("follow.copied", "leader=%s bytes=%lld", log_quote(f->leader).text,
                 (long long)journal_bytes(f->journal));
    f->said_copied = true;
    ask(h);
}

static void on_timer(void *ud, int64_t now_ns)
{
    struct hub *h = ud;
    struct hub_follow *f = h->follow;
    (void)now_ns;
    if (!f->journal || f->is_stopped) {
        open_again(h);
        if (!f->journal)
            return;
    }
    if (f->is_asking || !f->channel)
        return;
    if (!journal_is_idle(f->journal)) {
        look_again(h, LOOK_AGAIN_NS);
        return;
    }
    if (f->is_replacing) {
        finish_replacing(h);
        return;
    }
    if (journal_wants_rewrite(f->journal))
        follow_restart(&f->machine); /* the leader's next snapshot is what is to remain */
    ask(h);
}

/* ---- whom, and for how long ------------------------------------------------------------------ */

static void stop_asking(struct hub_follow *f)
{
    f->is_closing = true;
    channel_close(&f->channel);
    f->is_closing = f->is_asking = false;
}

static int dial(struct hub *h, const char *endpoint, struct err *e)
{
    struct channel_options o = {.endpoint = endpoint,
                                .peer_name = h->follow->leader,
                                .auth = h->auth,
                                .server_key = auth_public_key(h->auth)};
    int rc = channel_open(&o, &h->follow->channel, e);
    if (rc == 0)
        channel_attach(h->follow->channel, h->loop);
    return rc;
}

int hub_follow_leader(struct hub *h, const struct etcd_leader *self, const char *name,
                      const char *endpoint, struct err *e)
{
    struct hub_follow *f = h->follow;
    struct err why = {0};
    if (!f) {
        f = h->follow = mem_alloc(sizeof *f);
        f->instance = self->instance;
        f->state = self->state;
        f->timer = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_timer, .ud = h};
        int rc = open_log(h, e);
        if (rc < 0)
            return err_prefix(e, "state.dir");
    }
    stop_asking(f);
    snprintf(f->leader, sizeof f->leader, "%.63s", name);
    snprintf(f->endpoint, sizeof f->endpoint, "%.255s", endpoint);
    f->said_copied = f->said_refused = false;
    if (dial(h, f->endpoint, &why) < 0)
        log_warn("follow.refused", "leader=%s why=%s", log_quote(f->leader).text,
                 log_quote(why.text).text);
    look_again(h, 0);
    return 0;
}

json_t *hub_follow_object(const struct hub *h)
{
    const struct hub_follow *f = h->follow;
    int64_t age_ns = f->heard_ns ? clock_now_ns() - f->heard_ns : -CLOCK_MS;
    return json_pack("{ss, sI, sI, sI}", "leader", f->leader, "bytes", (json_int_t)f->copied_bytes,
                     "restarts", (json_int_t)f->machine.n_restarts, "age_ms",
                     (json_int_t)(age_ns / CLOCK_MS));
}

int64_t hub_follow_bytes(const struct hub *h)
{
    return h->follow ? h->follow->copied_bytes : 0;
}

void hub_follow_close(struct hub *h)
{
    struct hub_follow *f = h->follow;
    if (!f)
        return;
    stop_asking(f);
    if (f->timer.added)
        loop_remove_timer(h->loop, &f->timer);
    journal_close(&f->journal);
    follow_fini(&f->machine);
    mem_free(f);
    h->follow = NULL;
}
