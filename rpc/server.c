/* rpc/server.c - the server's side of calls: decode, dispatch, answer (steps 5 and 9 to 11).
 *
 * Calls in progress live in a fixed table; a handler that keeps its call holds a pointer
 * into it.  A cancel message only marks the call: its final answer is then dropped here,
 * because nobody waits for it.
 *
 * A ROUTER never hears that a peer has gone: an answer to it fails, is dropped and counted.
 * An answer that meets the high-water mark of one slow peer is dropped and counted too
 * rather than queued: the queue would need a bound of its own, and the caller's deadline
 * cures both.  The mark is above what one channel may have open, so an honest peer never
 * meets it. */
#include "rpc/server.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "base/version.h"
#include "rpc/auth.h"
#include "rpc/loop.h"
#include "rpc/peers.h"

enum {
    SERVER_DEFAULT_CALLS = 256,
    SERVER_HIGH_WATER = 1100, /* above a channel's most calls, 1,024 */
    SERVER_RECEIVE_AT_ONCE = 256,
    SERVER_MAX_WATCHERS = 64,
    SERVER_PEER_WATCHERS = 8,
    SERVER_RECEIVE_MOST = 64, /* messages of one peer that wait to be read, */
    SERVER_RECEIVE_LEAST = 4, /* and fewer if frames may be large: */
    SERVER_RECEIVE_BYTES = 256 << 20,
    SERVER_MAX_METHODS = 8, /* of one service */
};

struct server_call {
    struct server *server;
    bool is_open, is_cancelled, is_stream;
    struct peer *peer;
    uint64_t id;
    int64_t deadline_ns;
};

struct service {
    server_handler *handlers[SERVER_MAX_METHODS];
    void *ud;
};

struct server {
    struct owner owner;
    struct link *link;
    struct auth *auth;
    struct peers *peers;
    char *name;
    struct server_call *calls;
    int *free_calls;
    int max_calls, max_peer_calls, n_free;
    struct service services[WIRE_SERVICES];
    bool is_serving;
    struct server_call *watchers[SERVER_MAX_WATCHERS];
    int n_watchers;
    struct buf header, message;
    struct server_counters counters;
    struct loop *loop;
    /* Large, and needed for one call at a time. */
    struct wire_call_header call_header;
    struct wire_reply_header reply_header;
};

/* What an answer is addressed to. */
struct address {
    const uint8_t *peer;
    size_t peer_bytes;
    uint64_t call_id;
};

/* What one peer's unread messages may take bounds it: it waits in its own memory then. */
static int receive_high_water(size_t max_frame_bytes)
{
    size_t n = max_frame_bytes ? SERVER_RECEIVE_BYTES / max_frame_bytes : 0;
    return n < SERVER_RECEIVE_LEAST  ? SERVER_RECEIVE_LEAST
           : n > SERVER_RECEIVE_MOST ? SERVER_RECEIVE_MOST
                                     : (int)n;
}

static server_handler check_health, watch_health, list_methods;

int server_open(const struct server_options *o, struct server **out, struct err *e)
{
    *out = NULL;
    struct link *link = NULL;
    struct link_options options = {.role = LINK_SERVER,
                                   .endpoint = o->endpoint,
                                   .max_frame_bytes = o->max_frame_bytes,
                                   .high_water = SERVER_HIGH_WATER,
                                   .receive_high_water = receive_high_water(o->max_frame_bytes),
                                   .auth = o->auth};
    int rc = link_open(&options, &link, e);
    if (rc < 0)
        return rc;
    struct server *s = mem_alloc(sizeof(*s));
    owner_take(&s->owner);
    s->link = link;
    s->auth = o->auth;
    s->name = mem_string(o->name ? o->name : "server");
    s->max_calls = s->n_free = o->max_calls > 0 ? o->max_calls : SERVER_DEFAULT_CALLS;
    s->peers = peers_new(s->max_calls);
    s->max_peer_calls = o->max_peer_calls > 0 ? o->max_peer_calls : (s->max_calls + 1) / 2;
    s->calls = mem_array((size_t)s->max_calls, sizeof(*s->calls));
    s->free_calls = mem_array((size_t)s->max_calls, sizeof(*s->free_calls));
    for (int i = 0; i < s->max_calls; i++)
        s->free_calls[i] = s->max_calls - 1 - i;
    server_handler *const health[] = {check_health, watch_health};
    server_handler *const reflection[] = {list_methods};
    server_add(s, WIRE_HEALTH, health, s);
    server_add(s, WIRE_REFLECTION, reflection, s);
    *out = s;
    return 0;
}

const char *server_endpoint(const struct server *s)
{
    return link_endpoint(s->link);
}

struct link *server_link(struct server *s)
{
    return s->link;
}

void server_add(struct server *s, enum wire_service service, server_handler *const *handlers,
                void *ud)
{
    must_own(s);
    int n = wire_service_methods(service);
    must(n <= SERVER_MAX_METHODS);
    for (int i = 0; i < n; i++)
        s->services[service].handlers[i] = handlers[i];
    s->services[service].ud = ud;
}

/* ---- Answers ---------------------------------------------------------------------- */

/* The rest of s->reply_header is filled by the caller. */
static int send_reply(struct server *s, const struct address *to, const struct server_answer *a)
{
    struct wire_reply_header *h = &s->reply_header;
    h->version = POLYMATH_PROTOCOL_VERSION;
    h->call_id = to->call_id;
    h->queue_us = a->queue_us;
    h->compute_us = a->compute_us;
    must(a->n_metadata >= 0 && a->n_metadata <= WIRE_MAX_METADATA);
    h->n_metadata = (uint32_t)a->n_metadata;
    for (int i = 0; i < a->n_metadata; i++)
        h->metadata[i] = a->metadata[i];
    wire_reply_header_encode(h, &s->header);
    must(a->n_payloads >= 0 && a->n_payloads <= SERVER_MAX_PAYLOADS);
    struct str message = a->message ? buf_str(a->message) : (struct str){"", 0};
    struct frame frames[2] = {{s->header.data, s->header.len}, {message.ptr, message.len}};
    struct link_send send = {.peer = to->peer,
                             .peer_bytes = to->peer_bytes,
                             .frames = frames,
                             .n_frames = 2,
                             .blobs = a->payloads,
                             .n_blobs = a->n_payloads};
    int rc = link_send(s->link, &send);
    if (rc < 0)
        s->counters.dropped_answers++;
    return rc;
}

static int send_ok(struct server *s, const struct address *to, uint32_t flags,
                   const struct server_answer *a)
{
    s->reply_header.flags = flags;
    s->reply_header.code = 0;
    s->reply_header.text[0] = '\0';
    return send_reply(s, to, a);
}

static void send_failure(struct server *s, const struct address *to, int code, const char *text)
{
    s->counters.failures++;
    s->reply_header.flags = WIRE_FLAG_LAST;
    s->reply_header.code = code;
    snprintf(s->reply_header.text, sizeof(s->reply_header.text), "%s", text);
    send_reply(s, to, &(struct server_answer){.message = NULL});
}

static struct address address_of(const struct server_call *c)
{
    return (struct address){c->peer->id, c->peer->id_bytes, c->id};
}

static void free_call(struct server_call **call)
{
    struct server_call *c = *call;
    struct server *s = c->server;
    *call = NULL;
    c->peer->n_open--;
    *c = (struct server_call){0};
    s->free_calls[s->n_free++] = (int)(c - s->calls);
}

void server_reply(struct server_call **call, const struct server_answer *a)
{
    struct server_call *c = *call;
    must(c && c->is_open);
    must_own(c->server);
    struct address to = address_of(c);
    if (!c->is_cancelled)
        send_ok(c->server, &to, WIRE_FLAG_LAST, a);
    free_call(call);
}

void server_fail(struct server_call **call, int code, const char *format, ...)
{
    struct server_call *c = *call;
    must(c && c->is_open && code < 0);
    must_own(c->server);
    char text[WIRE_STATUS_TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    struct address to = address_of(c);
    if (!c->is_cancelled)
        send_failure(c->server, &to, code, text);
    free_call(call);
}

int server_stream_item(struct server_call *call, const struct server_answer *a)
{
    must(call->is_open && call->is_stream);
    must_own(call->server);
    if (server_call_is_cancelled(call))
        return E_UNAVAILABLE;
    struct address to = address_of(call);
    int rc = send_ok(call->server, &to, WIRE_FLAG_STREAM, a);
    if (rc == E_UNAVAILABLE)
        call->is_cancelled = true;
    return rc;
}

bool server_call_is_cancelled(const struct server_call *call)
{
    return call->is_cancelled || call->deadline_ns <= clock_now_ns();
}

void server_close(struct server **server)
{
    struct server *s = *server;
    if (!s)
        return;
    *server = NULL;
    must_own(s);
    for (int i = 0; i < s->max_calls; i++) {
        struct server_call *call = &s->calls[i];
        if (call->is_open)
            server_fail(&call, E_UNAVAILABLE, "%s is closing", s->name);
    }
    if (s->loop)
        server_detach(s, s->loop);
    link_close(&s->link);
    peers_free(&s->peers);
    buf_fini(&s->header);
    buf_fini(&s->message);
    mem_free(s->free_calls);
    mem_free(s->calls);
    mem_free(s->name);
    mem_free(s);
}

/* ---- Requests --------------------------------------------------------------------- */

static void cancel(struct server *s, const struct message *m, uint64_t call_id)
{
    for (int i = 0; i < s->max_calls && s->n_free < s->max_calls; i++) {
        struct server_call *c = &s->calls[i];
        if (!c->is_open || c->id != call_id || c->peer->id_bytes != m->peer_bytes ||
            memcmp(c->peer->id, m->peer, m->peer_bytes) != 0)
            continue;
        c->is_cancelled = true;
    }
}

static int64_t deadline_of(uint64_t left_us, int64_t now_ns)
{
    if (left_us == 0 || left_us > (uint64_t)((CLOCK_NEVER - now_ns) / CLOCK_US))
        return CLOCK_NEVER;
    return now_ns + (int64_t)left_us * CLOCK_US;
}

static struct server_call *take_call(struct server *s, struct peer *peer,
                                     const struct wire_call_header *h)
{
    struct server_call *c = &s->calls[s->free_calls[--s->n_free]];
    must(!c->is_open);
    c->server = s;
    c->is_open = true;
    c->peer = peer;
    peer->n_open++;
    c->id = h->call_id;
    return c;
}

/* Is this peer let in, and is there room for another call of it? */
static int admit(struct server *s, struct peer *peer, struct err *e)
{
    if (link_has_keys(s->link) && !peer_is_allowed(peer, s->auth)) {
        s->counters.refused_peers++;
        auth_note_refusal(s->auth, AUTH_CALL);
        log_warn("auth.refused", "why=%s server=%s key=%s", auth_refusal_name(AUTH_CALL), s->name,
                 log_quote(peer->key).text);
        return err_set(e, E_DENIED, "%s does not let the key \"%s\" in", s->name, peer->key);
    }
    if (peer->n_open < s->max_peer_calls)
        return 0;
    s->counters.over_share++;
    return err_set(e, E_BUSY, "this peer has %d calls open at %s, which is its share", peer->n_open,
                   s->name);
}

/* The handler of a method; NULL with the reason why there is none. */
static server_handler *find_handler(struct server *s, const struct wire_call_header *h,
                                    enum wire_service *service, int *method, struct err *e)
{
    if (h->version != POLYMATH_PROTOCOL_VERSION) {
        err_set(e, E_PRECONDITION, "protocol version %u, %s speaks %d", h->version, s->name,
                POLYMATH_PROTOCOL_VERSION);
        return NULL;
    }
    server_handler *handler = NULL;
    if (wire_method_find(h->method, service, method) == 0)
        handler = s->services[*service].handlers[*method];
    if (!handler) {
        s->counters.unknown_methods++;
        err_set(e, E_UNIMPLEMENTED, "%s has no method \"%s\"", s->name, h->method);
    } else if (s->n_free == 0) {
        err_set(e, E_BUSY, "%s has %d calls open", s->name, s->max_calls);
        return NULL;
    }
    return handler;
}

static void dispatch(struct server *s, const struct message *m, const struct wire_call_header *h,
                     int64_t now_ns)
{
    struct peer *peer = peers_of(s->peers, m);
    enum wire_service service = WIRE_SERVICES;
    int method = 0;
    struct err e = {0};
    server_handler *handler =
        admit(s, peer, &e) == 0 ? find_handler(s, h, &service, &method, &e) : NULL;
    if (!handler) {
        send_failure(s, &(struct address){m->peer, m->peer_bytes, h->call_id}, e.code, e.text);
        return;
    }
    struct server_request r = {.message = {m->frames[1].data, m->frames[1].size_bytes},
                               .n_payloads = m->n_frames - 2,
                               .deadline_ns = deadline_of(h->deadline_us, now_ns),
                               .trace_id = h->trace_id,
                               .received_ns = now_ns,
                               .n_metadata = (int)h->n_metadata,
                               .metadata = h->metadata,
                               .key = peer->key};
    for (int i = 0; i < r.n_payloads; i++)
        r.payloads[i] = m->frames[i + 2];
    struct server_call *call = take_call(s, peer, h);
    call->deadline_ns = r.deadline_ns;
    call->is_stream = wire_method_is_stream(service, method);
    s->counters.calls++;
    handler(s->services[service].ud, call, &r);
}

static void take_request(struct server *s, const struct message *m, int64_t now_ns)
{
    struct wire_call_header *h = &s->call_header;
    struct str frame = {m->frames[0].data, m->frames[0].size_bytes};
    struct err e = {0};
    int rc = wire_call_header_decode(frame, h, &e);
    if (rc == 0 && (h->flags & WIRE_FLAG_CANCEL)) {
        cancel(s, m, h->call_id);
        return;
    }
    if (rc == 0 && (m->n_frames < 2 || m->n_frames - 2 > SERVER_MAX_PAYLOADS))
        rc = err_set(&e, E_INVALID, "a call of %d frames", m->n_frames);
    if (rc == 0) {
        dispatch(s, m, h, now_ns);
        return;
    }
    s->counters.bad_frames++;
    log_warn("server.bad_frame", "server=%s why=%s", s->name, log_quote(e.text).text);
    if (h->call_id != 0)
        send_failure(s, &(struct address){m->peer, m->peer_bytes, h->call_id}, rc, e.text);
}

/* Watches whose caller went away; nobody else would look at them again. */
static void end_dead_watches(struct server *s)
{
    int n = 0;
    for (int i = 0; i < s->n_watchers; i++) {
        struct server_call *call = s->watchers[i];
        if (server_call_is_cancelled(call))
            server_fail(&call, call->is_cancelled ? E_CANCELLED : E_DEADLINE, "the watch ended");
        else
            s->watchers[n++] = call;
    }
    s->n_watchers = n;
}

void server_process(struct server *s, int64_t now_ns)
{
    must_own(s);
    struct message m;
    for (int n = 0; n < SERVER_RECEIVE_AT_ONCE && link_receive(s->link, &m) == 0; n++) {
        take_request(s, &m, now_ns);
        message_fini(&m);
    }
    end_dead_watches(s);
}

/* ---- Health and reflection -------------------------------------------------------- */

static void check_health(void *ud, struct server_call *call, const struct server_request *r)
{
    (void)r;
    struct server *s = ud;
    wire_health_encode(&(struct wire_health){s->is_serving}, &s->message);
    server_reply(&call, &(struct server_answer){.message = &s->message});
}

static void tell_watchers(struct server *s)
{
    wire_health_encode(&(struct wire_health){s->is_serving}, &s->message);
    for (int i = 0; i < s->n_watchers; i++)
        (void)server_stream_item(s->watchers[i], &(struct server_answer){.message = &s->message});
    end_dead_watches(s);
}

static int watches_of(const struct server *s, const struct peer *peer)
{
    int n = 0;
    for (int i = 0; i < s->n_watchers; i++)
        n += s->watchers[i]->peer == peer;
    return n;
}

static void watch_health(void *ud, struct server_call *call, const struct server_request *r)
{
    (void)r;
    struct server *s = ud;
    /* Only a send shows that a watcher has gone; a repeated state does no harm. */
    if (s->n_watchers == SERVER_MAX_WATCHERS)
        tell_watchers(s);
    if (s->n_watchers == SERVER_MAX_WATCHERS || watches_of(s, call->peer) >= SERVER_PEER_WATCHERS) {
        server_fail(&call, E_BUSY, "%d watches are open", s->n_watchers);
        return;
    }
    wire_health_encode(&(struct wire_health){s->is_serving}, &s->message);
    (void)server_stream_item(call, &(struct server_answer){.message = &s->message});
    s->watchers[s->n_watchers++] = call;
}

void server_set_serving(struct server *s, bool serving)
{
    must_own(s);
    if (s->is_serving == serving)
        return;
    s->is_serving = serving;
    tell_watchers(s);
}

static void list_methods(void *ud, struct server_call *call, const struct server_request *r)
{
    (void)r;
    struct server *s = ud;
    struct wire_listing *listing = mem_alloc(sizeof(*listing));
    for (int service = 0; service < WIRE_SERVICES; service++)
        for (int i = 0; i < wire_service_methods((enum wire_service)service); i++)
            if (s->services[service].handlers[i] && listing->n_methods < WIRE_MAX_LISTED)
                snprintf(listing->methods[listing->n_methods++], WIRE_METHOD_BYTES, "%s",
                         wire_method((enum wire_service)service, i));
    wire_listing_encode(listing, &s->message);
    server_reply(&call, &(struct server_answer){.message = &s->message});
    mem_free(listing);
}

/* ---- Loop ------------------------------------------------------------------------- */

void server_count(const struct server *s, struct server_counters *out)
{
    *out = s->counters;
}

static void on_turn(void *ud, int64_t now_ns)
{
    server_process(ud, now_ns);
}

void server_attach(struct server *s, struct loop *l)
{
    must_own(s);
    must(!s->loop);
    s->loop = l;
    loop_add_link(l, s->link, on_turn, s);
}

void server_detach(struct server *s, struct loop *l)
{
    must_own(s);
    must(s->loop == l);
    loop_remove_link(l, s->link);
    s->loop = NULL;
}
