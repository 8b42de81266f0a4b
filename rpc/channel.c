/* rpc/channel.c - the client's side of calls to one server (steps 5, 9 and 11).
 *
 * An open call lives in a slot of a fixed table; its id holds the slot in the low bits and
 * a number that this process never uses twice above them, so a reply finds its call
 * without searching, and one that comes late finds nothing.
 *
 * A slot is free before its callback runs, so a callback may call and cancel as it likes;
 * only closing the channel from inside one is our bug.
 *
 * A connection that breaks takes along what was under way on it.  Events are drained
 * first, but the calls of the broken connection end only after the replies that had
 * already arrived were taken: `connection` counts breaks and each call remembers its own. */
#include "rpc/channel.h"

#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "base/version.h"
#include "rpc/loop.h"
#include "rpc/wire.h"

enum {
    CHANNEL_DEFAULT_CALLS = 64,
    CHANNEL_SLOT_BITS = 10,
    CHANNEL_MAX_CALLS = 1 << CHANNEL_SLOT_BITS,
    CHANNEL_RECEIVE_AT_ONCE = 256, /* replies per turn, so that nobody else starves */
};

struct open_call {
    uint64_t id; /* 0: free */
    int64_t deadline_ns;
    uint32_t connection;
    bool is_stream;
    reply_callback *done;
    void *ud;
};

struct channel {
    struct owner owner;
    struct link *link;
    char *peer_name;
    struct open_call *calls;
    int *free_slots;
    int max_calls, n_free;
    uint32_t connection;
    int depth; /* callbacks that are running */
    bool is_closing;
    struct buf header;
    struct channel_counters counters;
    struct loop *loop;
    struct loop_timer timer;
    /* Large, and needed for one reply at a time. */
    struct wire_reply_header reply_header;
};

int channel_open(const struct channel_options *o, struct channel **out, struct err *e)
{
    *out = NULL;
    int max_calls = o->max_calls ? o->max_calls : CHANNEL_DEFAULT_CALLS;
    must(max_calls > 0 && max_calls <= CHANNEL_MAX_CALLS);
    struct link *link = NULL;
    struct link_options options = {.role = LINK_CLIENT,
                                   .endpoint = o->endpoint,
                                   .high_water = max_calls,
                                   .auth = o->auth,
                                   .server_key = o->server_key};
    int rc = link_open(&options, &link, e);
    if (rc < 0)
        return rc;
    struct channel *c = mem_alloc(sizeof(*c));
    owner_take(&c->owner);
    c->link = link;
    c->peer_name = mem_string(o->peer_name ? o->peer_name : o->endpoint);
    c->max_calls = c->n_free = max_calls;
    c->calls = mem_array((size_t)max_calls, sizeof(*c->calls));
    c->free_slots = mem_array((size_t)max_calls, sizeof(*c->free_slots));
    for (int i = 0; i < max_calls; i++)
        c->free_slots[i] = max_calls - 1 - i;
    *out = c;
    return 0;
}

static uint64_t new_id(int slot)
{
    static _Atomic uint64_t counter = 1;
    uint64_t n = atomic_fetch_add_explicit(&counter, 1, memory_order_relaxed);
    return n << CHANNEL_SLOT_BITS | (uint64_t)slot;
}

static struct open_call *find_call(struct channel *c, uint64_t id)
{
    int slot = (int)(id & (CHANNEL_MAX_CALLS - 1));
    return id != 0 && slot < c->max_calls && c->calls[slot].id == id ? &c->calls[slot] : NULL;
}

static struct open_call *take_slot(struct channel *c)
{
    int slot = c->free_slots[--c->n_free];
    struct open_call *call = &c->calls[slot];
    must(call->id == 0);
    call->id = new_id(slot);
    return call;
}

static void free_slot(struct channel *c, struct open_call *call)
{
    *call = (struct open_call){0};
    c->free_slots[c->n_free++] = (int)(call - c->calls);
}

static void set_timer(struct channel *c)
{
    if (c->loop)
        loop_set_timer(c->loop, &c->timer, channel_deadline_ns(c));
}

/* Ends the call: the slot is free when the callback runs. */
static void finish(struct channel *c, struct open_call *call, struct reply *r)
{
    struct open_call ended = *call;
    free_slot(c, call);
    r->call_id = ended.id;
    r->last = true;
    if (r->code == 0)
        c->counters.replies++;
    else
        c->counters.failures++;
    c->depth++;
    ended.done(ended.ud, r);
    c->depth--;
}

static void fail(struct channel *c, struct open_call *call, int code, const char *why)
{
    char text[192];
    snprintf(text, sizeof(text), "%s: %s", c->peer_name, why);
    struct reply r = {.code = code, .text = text};
    finish(c, call, &r);
}

void channel_close(struct channel **channel)
{
    struct channel *c = *channel;
    if (!c)
        return;
    *channel = NULL;
    must_own(c);
    must(c->depth == 0);
    c->is_closing = true;
    for (int i = 0; i < c->max_calls; i++)
        if (c->calls[i].id != 0)
            fail(c, &c->calls[i], E_CANCELLED, "the channel is closed");
    if (c->loop)
        channel_detach(c, c->loop);
    link_close(&c->link);
    buf_fini(&c->header);
    mem_free(c->free_slots);
    mem_free(c->calls);
    mem_free(c->peer_name);
    mem_free(c);
}

/* What is left of it, for the header; 0 means none, so what has passed is 1. */
static uint64_t left_us(int64_t deadline_ns)
{
    if (deadline_ns == CLOCK_NEVER)
        return 0;
    int64_t left_ns = deadline_ns - clock_now_ns();
    return left_ns > CLOCK_US ? (uint64_t)(left_ns / CLOCK_US) : 1;
}

static int send_call(struct channel *c, const struct call *call, const struct open_call *slot)
{
    struct wire_call_header header;
    header.version = POLYMATH_PROTOCOL_VERSION;
    header.flags = call->stream ? WIRE_FLAG_STREAM : 0;
    header.call_id = slot->id;
    header.trace_id = call->trace_id;
    header.deadline_us = left_us(call->deadline_ns);
    header.n_metadata = (uint32_t)call->n_metadata;
    for (int i = 0; i < call->n_metadata; i++)
        header.metadata[i] = call->metadata[i];
    int n = snprintf(header.method, sizeof(header.method), "%s", call->method);
    must(n > 0 && n < (int)sizeof(header.method));
    wire_call_header_encode(&header, &c->header);
    struct str message = call->message ? buf_str(call->message) : (struct str){"", 0};
    struct frame frames[2] = {{c->header.data, c->header.len}, {message.ptr, message.len}};
    struct link_send s = {
        .frames = frames, .n_frames = 2, .blobs = call->payloads, .n_blobs = call->n_payloads};
    return link_send(c->link, &s);
}

int channel_call(struct channel *c, const struct call *call, uint64_t *call_id)
{
    must_own(c);
    must(call->method && call->done);
    must(call->n_payloads >= 0 && call->n_payloads <= CHANNEL_MAX_PAYLOADS);
    must(call->n_metadata >= 0 && call->n_metadata <= WIRE_MAX_METADATA);
    must(call->deadline_ns != CLOCK_NEVER || call->stream);
    if (c->is_closing || !link_is_connected(c->link))
        return E_UNAVAILABLE;
    if (c->n_free == 0)
        return E_BUSY;
    struct open_call *slot = take_slot(c);
    slot->deadline_ns = call->deadline_ns;
    slot->connection = c->connection;
    slot->is_stream = call->stream;
    slot->done = call->done;
    slot->ud = call->ud;
    int rc = send_call(c, call, slot);
    if (rc < 0) {
        free_slot(c, slot);
        return rc;
    }
    c->counters.calls++;
    if (call_id)
        *call_id = slot->id;
    set_timer(c);
    return 0;
}

/* Best effort: a server that does not hear of it works in vain, no more. */
static void send_cancel(struct channel *c, uint64_t call_id)
{
    struct wire_call_header header;
    header.version = POLYMATH_PROTOCOL_VERSION;
    header.flags = WIRE_FLAG_CANCEL;
    header.call_id = call_id;
    header.trace_id = header.deadline_us = 0;
    header.n_metadata = 0;
    header.method[0] = '\0'; /* the id says it all */
    wire_call_header_encode(&header, &c->header);
    struct frame frame = {c->header.data, c->header.len};
    (void)link_send(c->link, &(struct link_send){.frames = &frame, .n_frames = 1});
}

void channel_cancel(struct channel *c, uint64_t call_id)
{
    must_own(c);
    struct open_call *call = find_call(c, call_id);
    if (!call)
        return;
    send_cancel(c, call_id);
    fail(c, call, E_CANCELLED, "the caller cancelled");
    set_timer(c);
}

/* A call that is still open: false if the reply's shape is broken. */
static bool read_reply(const struct wire_reply_header *h, const struct message *m, struct reply *r)
{
    int n_payloads = m->n_frames - 2;
    *r = (struct reply){.call_id = h->call_id,
                        .code = h->code,
                        .text = h->text,
                        .last = (h->flags & WIRE_FLAG_LAST) || h->code != 0,
                        .queue_us = h->queue_us,
                        .compute_us = h->compute_us,
                        .n_metadata = (int)h->n_metadata,
                        .metadata = h->metadata};
    if (n_payloads < 0 || n_payloads > CHANNEL_MAX_PAYLOADS)
        return false;
    r->message = (struct str){m->frames[1].data, m->frames[1].size_bytes};
    r->n_payloads = n_payloads;
    for (int i = 0; i < n_payloads; i++)
        r->payloads[i] = m->frames[i + 2];
    return true;
}

static void take_reply(struct channel *c, const struct message *m)
{
    struct wire_reply_header *h = &c->reply_header;
    struct str frame = {m->frames[0].data, m->frames[0].size_bytes};
    int rc = wire_reply_header_decode(frame, h, NULL);
    struct open_call *call = find_call(c, h->call_id);
    struct reply r;
    bool is_whole = read_reply(h, m, &r);
    if (call && (rc < 0 || !is_whole || (!r.last && !call->is_stream))) {
        c->counters.bad_frames++;
        fail(c, call, E_INTERNAL, "its reply is malformed");
    } else if (rc < 0) {
        c->counters.bad_frames++;
    } else if (!call) {
        c->counters.late_replies++;
    } else if (r.last) {
        finish(c, call, &r);
    } else {
        c->depth++;
        call->done(call->ud, &r);
        c->depth--;
    }
}

static int take_events(struct channel *c)
{
    int n = 0;
    for (enum link_event event; (event = link_next_event(c->link)) != LINK_NOTHING; n++) {
        if (event == LINK_REFUSED) {
            log_warn("channel.refused", "peer=%s endpoint=%s why=%s", log_quote(c->peer_name).text,
                     link_endpoint(c->link),
                     "\"the handshake failed: one side has no keys, the server's key is not the "
                     "one that is "
                     "expected, or this program's key is not on its list\"");
            continue;
        }
        if (event == LINK_DISCONNECTED)
            c->connection++;
        log_debug("channel.event", "peer=%s up=%d", log_quote(c->peer_name).text,
                  event == LINK_CONNECTED);
    }
    return n;
}

/* Where nothing is open any more, whether something else has come is asked by the next turn: it costs
 * system calls, and the caller waits for this answer. */
static int take_replies(struct channel *c)
{
    int n = 0;
    struct message m;
    for (; n < CHANNEL_RECEIVE_AT_ONCE && (n == 0 || c->n_free < c->max_calls); n++) {
        if (link_receive(c->link, &m) < 0)
            break;
        take_reply(c, &m);
        message_fini(&m);
    }
    return n;
}

static int end_lost_calls(struct channel *c)
{
    int n = 0;
    for (int i = 0; i < c->max_calls && c->n_free < c->max_calls; i++)
        if (c->calls[i].id != 0 && c->calls[i].connection != c->connection) {
            fail(c, &c->calls[i], E_UNAVAILABLE, "the connection broke");
            n++;
        }
    return n;
}

static int end_late_calls(struct channel *c, int64_t now_ns)
{
    int n = 0;
    for (int i = 0; i < c->max_calls; i++)
        if (c->calls[i].id != 0 && c->calls[i].deadline_ns <= now_ns) {
            fail(c, &c->calls[i], E_DEADLINE, "no answer in time");
            n++;
        }
    return n;
}

/* How much happened.  `looked`: after link_look() or link_wait(), so what is quiet need not be asked. */
static int process(struct channel *c, int64_t now_ns, bool looked)
{
    must(c->depth == 0);
    int n_events = looked && !link_may_have_event(c->link) ? 0 : take_events(c);
    int n = n_events + take_replies(c);
    if (n_events > 0)
        n += end_lost_calls(c);
    if (channel_deadline_ns(c) <= now_ns)
        n += end_late_calls(c, now_ns);
    set_timer(c);
    return n;
}

void channel_process(struct channel *c, int64_t now_ns)
{
    must_own(c);
    process(c, now_ns, false);
}

int64_t channel_deadline_ns(const struct channel *c)
{
    int64_t next_ns = link_deadline_ns(c->link);
    for (int i = 0; i < c->max_calls && c->n_free < c->max_calls; i++)
        if (c->calls[i].id != 0 && c->calls[i].deadline_ns < next_ns)
            next_ns = c->calls[i].deadline_ns;
    return next_ns;
}

bool channel_is_connected(const struct channel *c)
{
    return link_is_connected(c->link);
}

const char *channel_peer_name(const struct channel *c)
{
    return c->peer_name;
}

static bool is_fd_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return fd >= 0 && poll(&p, 1, 0) > 0;
}

/* After link_look() or link_wait().  Where a loop polls the link, too, quiet means nothing. */
static bool has_to_do(const struct channel *c, int64_t now_ns)
{
    return c->loop || !link_is_quiet(c->link) || channel_deadline_ns(c) <= now_ns;
}

void channel_wait(struct channel *const *channels, int n, int extra_fd, int64_t deadline_ns,
                  int64_t spin_ns)
{
    must(n >= 0 && n <= LINK_MAX_WAIT);
    struct link *links[LINK_MAX_WAIT];
    for (int i = 0; i < n; i++)
        links[i] = channels[i]->link;
    /* What was just sent waits for an I/O thread, which may want this CPU. */
    if (spin_ns > 0)
        sched_yield();
    link_look(links, n);
    for (;;) {
        int64_t now_ns = clock_now_ns(), until_ns = deadline_ns;
        int happened = 0;
        for (int i = 0; i < n; i++)
            if (has_to_do(channels[i], now_ns))
                happened += process(channels[i], now_ns, !channels[i]->loop);
        if (happened > 0 || now_ns >= deadline_ns || is_fd_readable(extra_fd))
            return;
        for (int i = 0; i < n; i++)
            if (channel_deadline_ns(channels[i]) < until_ns)
                until_ns = channel_deadline_ns(channels[i]);
        link_wait(links, n, extra_fd, until_ns, spin_ns);
        spin_ns = 0; /* spent */
    }
}

void channel_count(const struct channel *c, struct channel_counters *out)
{
    *out = c->counters;
}

static void on_turn(void *ud, int64_t now_ns)
{
    channel_process(ud, now_ns);
}

void channel_attach(struct channel *c, struct loop *l)
{
    must_own(c);
    must(!c->loop);
    c->loop = l;
    c->timer = (struct loop_timer){.cb = on_turn, .ud = c};
    loop_add_link(l, c->link, on_turn, c);
    set_timer(c);
}

void channel_detach(struct channel *c, struct loop *l)
{
    must_own(c);
    must(c->loop == l);
    loop_remove_link(l, c->link);
    loop_remove_timer(l, &c->timer);
    c->loop = NULL;
}
