/* rpc/link.c - one ZeroMQ socket with one owner thread (steps 5, 9 and 11 of a token's path).
 *
 * Who is connected: a DEALER over tcp or ipc has a socket monitor with two events.  A
 * monitor that nobody drains freezes its socket, and closing its reader before it is
 * stopped hangs libzmq's I/O thread; so clients have one (few events, and the channel
 * drains it first in every turn), and link_close() stops, drains and closes in this order.
 * A server with keys has one for handshakes that fail, which nobody may freeze by failing
 * them: its queue has no bound, and every link_receive() that finds nothing drains it.
 * inproc sockets emit no events: such a client counts as connected from the start.
 *
 * With ZMQ_IMMEDIATE a broken connection takes its unsent messages with it, and a ROUTER
 * knows a reconnected DEALER under another id: nothing is delivered late across a break.
 *
 * Messages are received into blocks that are kept and used again, so a call on the step
 * path allocates nothing here after warm-up. */
#include "rpc/link.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/cpus.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "rpc/auth.h"
#include "rpc/endpoint.h"
#include "rpc/io_threads.h"

/* libzmq is not instrumented, so ThreadSanitizer does not see that handing a message over
 * orders the sender's writes before the receiver's reads: hand_over() and take_over() say
 * it.  What libzmq does among its own threads (and through the C++ library) is left out:
 * of it the sanitizer sees the memcpy, but not the lock-free queue that orders it. */
#if defined(__SANITIZE_THREAD__)
#define LINK_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define LINK_TSAN 1
#endif
#endif
#ifdef LINK_TSAN
#include <sanitizer/tsan_interface.h>
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
    return "called_from_lib:libzmq.so\ncalled_from_lib:libstdc++.so\n"
           "called_from_lib:libsodium.so\n";
}
static void hand_over(void *data)
{
    __tsan_release(data);
}
static void take_over(void *data)
{
    __tsan_acquire(data);
}
#else
static void hand_over(void *data)
{
    (void)data;
}
static void take_over(void *data)
{
    (void)data;
}
#endif

enum {
    LINK_MAX_SPARE = 16,  /* receive blocks kept */
    LINK_BIND_TRIES = 50, /* a millisecond apart */
    LINK_LINGER_MS = 5000,
    LINK_HANDSHAKE_MS = 2000,
    LINK_REFUSE_AT_ONCE = 64 /* malformed messages that one link_receive() skips */
};
#define LINK_DEFAULT_FRAME_BYTES ((size_t)256 << 20)
#define LINK_FAILED_HANDSHAKE \
    (ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | \
     ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
#define LINK_REDIAL_NS (1 * CLOCK_S)
/* What CURVE puts around a frame, and some room. */
#define LINK_CURVE_BYTES 64

struct received {
    struct list link;
    struct link *owner; /* NULL once the link is closed */
    int n_parts;
    zmq_msg_t parts[LINK_MAX_FRAMES + 1];
};

struct link {
    struct owner owner;
    enum link_role role;
    void *socket;
    int fd, monitor_fd; /* readable when they may have something */
    void *monitor;      /* PAIR; NULL for inproc and for servers without keys */
    struct auth *auth;
    bool has_curve;
    int64_t redial_ns; /* of a client that libzmq will not dial again; CLOCK_NEVER: it will */
    bool is_connected, has_news;
    bool is_inside; /* a message of which some parts are sent */
    /* libzmq had nothing when it was last asked, and no other call has made it look since: what
     * comes now makes the descriptor readable, so nobody need ask before it is. */
    bool is_drained, is_monitor_drained;
    char endpoint[LINK_ENDPOINT_BYTES];
    struct link_counters counters;
    struct list taken, spare;
    int n_spare;
};

static _Atomic(void *) the_context;

/* One context per process: inproc names meet only inside one.  Made by whoever comes
 * first; a loser of the race throws his away. */
void *link_context(void)
{
    void *c = atomic_load(&the_context);
    if (c)
        return c;
    void *mine = zmq_ctx_new();
    must(mine);
    must_zero(zmq_ctx_set(mine, ZMQ_MAX_SOCKETS, 16383));
    must_zero(zmq_ctx_set(mine, ZMQ_IO_THREADS, io_threads_wanted(thread_cpu_count())));
    /* Its threads begin with the first socket, whose owner may be pinned.  Where CPUs are our own that
     * is to the first (engine/pool.c: the pool's owner), and one I/O thread goes there, too
     * (rpc/io_threads.c). */
    const struct cpus *cpus = cpus_of_process();
    for (int i = cpus_are_own() && cpus->n > 1; i < cpus->n; i++)
        (void)zmq_ctx_set(mine, ZMQ_THREAD_AFFINITY_CPU_ADD, cpus->ids[i]);
    if (atomic_compare_exchange_strong(&the_context, &c, mine))
        return mine;
    zmq_ctx_term(mine);
    return c;
}

static int set_failed(struct err *e, const char *doing, const char *endpoint)
{
    int saved = zmq_errno(), code;
    switch (saved) {
    case EADDRINUSE:
        code = E_EXISTS;
        break;
    case EADDRNOTAVAIL:
    case ENODEV:
    case EPROTONOSUPPORT:
        code = E_INVALID;
        break;
    default:
        code = err_from_errno(saved);
    }
    return err_set(e, code, "%s %s: %s", doing, endpoint, zmq_strerror(saved));
}

static void set_option(void *socket, int option, int value)
{
    must_zero(zmq_setsockopt(socket, option, &value, sizeof(value)));
}

/* Clients take turns: who asks many nodes at a time has its channels spread evenly, which libzmq's own
 * choice by open descriptors does not promise while connections come and go.  A server's connections
 * it chooses for. */
static void set_io_thread(void *socket)
{
    static _Atomic unsigned turn;
    int n_threads = zmq_ctx_get(link_context(), ZMQ_IO_THREADS);
    must(n_threads >= 1 && n_threads <= 64);
    uint64_t mask = 1ull << (atomic_fetch_add(&turn, 1) % (unsigned)n_threads);
    must_zero(zmq_setsockopt(socket, ZMQ_AFFINITY, &mask, sizeof mask));
}

static void set_options(void *socket, const struct link_options *o, const struct endpoint *where)
{
    size_t frame_bytes = o->max_frame_bytes ? o->max_frame_bytes : LINK_DEFAULT_FRAME_BYTES;
    int64_t most = frame_bytes > INT64_MAX ? INT64_MAX : (int64_t)frame_bytes;
    must_zero(zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &most, sizeof(most)));
    int high_water = o->high_water > 0 ? o->high_water : 64;
    set_option(socket, ZMQ_SNDHWM, high_water);
    int receive_high_water = o->receive_high_water;
    if (receive_high_water <= 0 || receive_high_water > high_water)
        receive_high_water = high_water;
    set_option(socket, ZMQ_RCVHWM, receive_high_water);
    /* Last answers and cancellations get time to leave.  When it is over libzmq 4.3.4 gives a
     * connection up, also in the middle of a message, and if the peer's death is found in that moment
     * it aborts the process (session_base.cpp, clean_pipes: 5 of 100 times with 0; with 200 ms after a
     * pause of our own as long as that).  So heartbeats come first: a peer that takes nothing is
     * given up by them after 2 s, and with it what waits for it. */
    set_option(socket, ZMQ_LINGER, LINK_LINGER_MS);
    set_option(socket, ZMQ_HANDSHAKE_IVL, 5000);
    set_option(socket, ZMQ_IPV6, where->is_ipv6);
    if (o->role == LINK_SERVER) {
        /* No heartbeats from here: libzmq 4.3.4 aborts the process when one is due on a connection
         * that broke while what had come over it was not taken (a peer sends more than the high
         * water mark and goes; stream_engine_base.cpp, out_event).  Clients say with theirs how long
         * they may be silent; the system finds strangers that have vanished. */
        set_option(socket, ZMQ_HEARTBEAT_IVL, 0);
        set_option(socket, ZMQ_TCP_KEEPALIVE, 1);
        set_option(socket, ZMQ_TCP_KEEPALIVE_IDLE, 10);
        set_option(socket, ZMQ_TCP_KEEPALIVE_INTVL, 5);
        set_option(socket, ZMQ_TCP_KEEPALIVE_CNT, 3);
        set_option(socket, ZMQ_ROUTER_MANDATORY, 1);
        set_option(socket, ZMQ_ROUTER_HANDOVER, 1);
    } else {
        set_option(socket, ZMQ_HEARTBEAT_IVL, 500);
        set_option(socket, ZMQ_HEARTBEAT_TIMEOUT, 1500);
        set_option(socket, ZMQ_HEARTBEAT_TTL, 1500);
        set_option(socket, ZMQ_TCP_KEEPALIVE, 0); /* heartbeats see more, sooner */
        set_option(socket, ZMQ_IMMEDIATE, 1);
        set_option(socket, ZMQ_CONNECT_TIMEOUT, 2000);
        set_option(socket, ZMQ_RECONNECT_IVL, 10);
        set_option(socket, ZMQ_RECONNECT_IVL_MAX, 1000);
        set_io_thread(socket);
    }
}

/* libzmq unlinks a socket file that is in its way, also one that a living process listens
 * on; so ask first. */
static bool is_somebody_listening(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    must(strlen(path) < sizeof(address.sun_path)); /* endpoint_parse() saw to it */
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    int rc = connect(fd, (struct sockaddr *)&address, sizeof(address));
    bool is_there = rc == 0 || errno == EAGAIN;
    close(fd);
    return is_there;
}

static int bind_once(struct link *l, const struct endpoint *where, struct err *e)
{
    if (where->kind == ENDPOINT_IPC && is_somebody_listening(where->path))
        return err_set(e, E_EXISTS, "bind %s: somebody listens there already", where->text);
    return zmq_bind(l->socket, where->text) < 0 ? set_failed(e, "bind", where->text) : 0;
}

/* A link of this process that was just closed may hold the address for a moment more:
 * libzmq closes in a thread of its own. */
static int bind_server(struct link *l, const struct endpoint *where, struct err *e)
{
    int rc = bind_once(l, where, e);
    for (int i = 1; rc == E_EXISTS && i < LINK_BIND_TRIES; i++) {
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
        rc = bind_once(l, where, e);
    }
    if (rc < 0)
        return rc;
    size_t bytes = sizeof(l->endpoint);
    must_zero(zmq_getsockopt(l->socket, ZMQ_LAST_ENDPOINT, l->endpoint, &bytes));
    return 0;
}

static int fd_of(void *socket)
{
    int fd = -1;
    size_t bytes = sizeof(fd);
    must_zero(zmq_getsockopt(socket, ZMQ_FD, &fd, &bytes));
    return fd;
}

static int open_monitor(struct link *l, struct err *e)
{
    static _Atomic unsigned long long counter;
    char name[64];
    snprintf(name, sizeof(name), "inproc://link-monitor-%llu", atomic_fetch_add(&counter, 1));
    int events = LINK_FAILED_HANDSHAKE;
    if (l->role == LINK_CLIENT)
        events |= ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED;
    if (zmq_socket_monitor(l->socket, name, events))
        return set_failed(e, "monitor", name);
    l->monitor = zmq_socket(link_context(), ZMQ_PAIR);
    if (l->monitor) {
        set_option(l->monitor, ZMQ_LINGER, 0);
        if (l->role == LINK_SERVER)
            set_option(l->monitor, ZMQ_RCVHWM, 0);
        l->monitor_fd = fd_of(l->monitor);
        if (zmq_connect(l->monitor, name) == 0)
            return 0;
    }
    int rc = set_failed(e, "monitor", name);
    zmq_socket_monitor(l->socket, NULL, 0); /* nobody would drain it */
    return rc;
}

static int dial(struct link *l, const struct endpoint *where, struct err *e)
{
    snprintf(l->endpoint, sizeof(l->endpoint), "%s", where->text);
    if (where->kind == ENDPOINT_INPROC) {
        l->is_connected = l->has_news = true;
    } else {
        int rc = open_monitor(l, e);
        if (rc < 0)
            return rc;
    }
    return zmq_connect(l->socket, where->text) < 0 ? set_failed(e, "dial", where->text) : 0;
}

static void set_key(struct link *l, int option, const char *key)
{
    must_zero(zmq_setsockopt(l->socket, option, key, KEY_TEXT_BYTES));
}

/* Every tcp link has keys if the process has; what has none stays at home unless it is told
 * otherwise. */
static int set_keys(struct link *l, const struct link_options *o, const struct endpoint *where,
                    struct err *e)
{
    bool is_server = o->role == LINK_SERVER;
    const char *server_key = o->server_key ? o->server_key : "";
    l->auth = o->auth;
    if (where->kind != ENDPOINT_TCP)
        return 0;
    if (!auth_has_keys(o->auth)) {
        if (is_server && !where->is_local && !auth_is_insecure(o->auth))
            return err_set(
                e, E_INVALID,
                "endpoint \"%.200s\": without keys (security.key_file) the connection is "
                "not encrypted, so it binds only loopback (127.0.0.0/8, ::1), ipc:// and "
                "inproc:// unless security.insecure = true is written out",
                o->endpoint);
        if (!is_server && server_key[0])
            return err_set(e, E_INVALID, "endpoint \"%.200s\" has keys, and this program has none",
                           o->endpoint);
        return 0;
    }
    if (!is_server && !key_is_valid(server_key))
        return err_set(e, E_INVALID,
                       "endpoint \"%.200s\": this program has keys, but that server's "
                       "public key is not known",
                       o->endpoint);
    l->has_curve = true;
    size_t frame_bytes = o->max_frame_bytes ? o->max_frame_bytes : LINK_DEFAULT_FRAME_BYTES;
    int64_t most = (int64_t)(frame_bytes < INT64_MAX / 2 ? frame_bytes : INT64_MAX / 2);
    most += LINK_CURVE_BYTES;
    must_zero(zmq_setsockopt(l->socket, ZMQ_MAXMSGSIZE, &most, sizeof(most)));
    /* Whom the list does not name (yet) hears nothing, and tries again when this is over. */
    set_option(l->socket, ZMQ_HANDSHAKE_IVL, LINK_HANDSHAKE_MS);
    set_key(l, ZMQ_CURVE_SECRETKEY, auth_secret_key(o->auth));
    if (is_server) {
        set_option(l->socket, ZMQ_CURVE_SERVER, 1);
        /* If the handler were not there libzmq would let everybody in, without a User-Id: the
         * server asks for it again (rpc/server.c). */
        must_zero(zmq_setsockopt(l->socket, ZMQ_ZAP_DOMAIN, "polymath", 8));
    } else {
        set_key(l, ZMQ_CURVE_PUBLICKEY, auth_public_key(o->auth));
        set_key(l, ZMQ_CURVE_SERVERKEY, server_key);
    }
    return 0;
}

int link_open(const struct link_options *o, struct link **out, struct err *e)
{
    *out = NULL;
    struct endpoint where;
    int rc = endpoint_parse(o->endpoint, o->role, &where, e);
    if (rc < 0)
        return rc;
    struct link *l = mem_alloc(sizeof(*l));
    owner_take(&l->owner);
    l->role = o->role;
    l->redial_ns = CLOCK_NEVER;
    list_init(&l->taken);
    list_init(&l->spare);
    l->socket = zmq_socket(link_context(), o->role == LINK_SERVER ? ZMQ_ROUTER : ZMQ_DEALER);
    if (!l->socket) {
        rc = set_failed(e, "open a socket for", where.text);
        goto out;
    }
    l->fd = fd_of(l->socket);
    set_options(l->socket, o, &where);
    rc = set_keys(l, o, &where, e);
    if (rc == 0 && l->has_curve && o->role == LINK_SERVER)
        rc = open_monitor(l, e);
    if (rc == 0)
        rc = o->role == LINK_SERVER ? bind_server(l, &where, e) : dial(l, &where, e);
out:
    if (rc < 0)
        link_close(&l);
    *out = l;
    return rc;
}

/* One monitor event (two frames); 0 if there is none. */
static int read_monitor(struct link *l, uint32_t *value)
{
    zmq_msg_t msg;
    must_zero(zmq_msg_init(&msg));
    int event = 0;
    if (zmq_msg_recv(&msg, l->monitor, ZMQ_DONTWAIT) >= 0) {
        uint16_t number;
        const char *data = zmq_msg_data(&msg);
        must(zmq_msg_size(&msg) >= sizeof(number) + sizeof(*value));
        memcpy(&number, data, sizeof(number));
        memcpy(value, data + sizeof(number), sizeof(*value));
        event = number;
        while (zmq_msg_more(&msg))
            must(zmq_msg_recv(&msg, l->monitor, ZMQ_DONTWAIT) >= 0);
    }
    zmq_msg_close(&msg);
    return event;
}

static void drain_monitor(struct link *l)
{
    uint32_t value;
    while (l->monitor && read_monitor(l, &value) != 0)
        continue;
}

/* Of a server: handshakes that failed.  The ZAP handler has counted those that it refused. */
static void count_failed_handshakes(struct link *l)
{
    uint32_t value;
    for (int event; (event = read_monitor(l, &value)) != 0;) {
        enum auth_refusal why = AUTH_HANDSHAKE;
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
            continue;
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
            why = value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH ? AUTH_NO_KEY : AUTH_CRYPTO;
        l->counters.failed_handshakes++;
        auth_note_refusal(l->auth, why);
        log_warn("auth.refused", "why=%s endpoint=%s", auth_refusal_name(why), l->endpoint);
    }
}

static void close_monitor(struct link *l)
{
    if (!l->monitor)
        return;
    drain_monitor(l);
    zmq_socket_monitor(l->socket, NULL, 0);
    drain_monitor(l);
    zmq_close(l->monitor);
    l->monitor = NULL;
}

static void free_received(struct received *r)
{
    list_remove(&r->link);
    mem_free(r);
}

void link_close(struct link **link)
{
    struct link *l = *link;
    if (!l)
        return;
    *link = NULL;
    must_own(l);
    close_monitor(l);
    /* Of inproc names only: unbinding a tcp or ipc endpoint gives its connections up in the
     * middle of messages, as a linger of 0 would. */
    if (l->role == LINK_SERVER && str_has_prefix(str_of(l->endpoint), STR("inproc:")))
        zmq_unbind(l->socket, l->endpoint);
    if (l->socket)
        zmq_close(l->socket);
    while (!list_is_empty(&l->spare))
        free_received(LIST_ITEM(l->spare.next, struct received, link));
    /* Messages that are still in use free themselves. */
    for (struct list *node; (node = list_pop_front(&l->taken));)
        LIST_ITEM(node, struct received, link)->owner = NULL;
    mem_free(l);
}

const char *link_endpoint(const struct link *l)
{
    return l->endpoint;
}

void *link_socket(const struct link *l)
{
    return l->socket;
}

void *link_monitor(const struct link *l)
{
    return l->monitor;
}

bool link_has_news(const struct link *l)
{
    return l->has_news;
}

/* libzmq's I/O thread, or the receiver's thread for inproc. */
static void release_blob(void *data, void *hint)
{
    (void)data;
    struct blob *b = hint;
    take_over(b);
    blob_unref(&b);
}

static bool is_readable(void *socket)
{
    int events = 0;
    size_t bytes = sizeof(events);
    return zmq_getsockopt(socket, ZMQ_EVENTS, &events, &bytes) == 0 && (events & ZMQ_POLLIN);
}

static bool has_message(struct link *l)
{
    l->is_drained = !is_readable(l->socket);
    return !l->is_drained;
}

static bool has_event(struct link *l)
{
    l->is_monitor_drained = !is_readable(l->monitor);
    return !l->is_monitor_drained;
}

static int send_part(struct link *l, zmq_msg_t *msg, bool has_more)
{
    hand_over(zmq_msg_data(msg));
    size_t bytes = zmq_msg_size(msg);
    int flags = ZMQ_DONTWAIT | (has_more ? ZMQ_SNDMORE : 0);
    int rc = zmq_msg_send(msg, l->socket, flags);
    if (rc < 0 && zmq_errno() == EAGAIN && !l->is_inside) {
        /* What the other side gave back waits in the socket's mailbox, where a send looks
         * once a millisecond or so; asking for events looks now.  Not inside a message:
         * libzmq has dropped its first parts then. */
        (void)has_message(l);
        rc = zmq_msg_send(msg, l->socket, flags);
    }
    l->is_inside = rc >= 0 && has_more;
    if (rc >= 0) {
        l->counters.sent_bytes += (int64_t)bytes;
        return 0;
    }
    int saved = zmq_errno();
    zmq_msg_close(msg);
    return saved == EAGAIN ? E_BUSY : E_UNAVAILABLE;
}

static int send_copy(struct link *l, const void *data, size_t bytes, bool has_more)
{
    zmq_msg_t msg;
    if (zmq_msg_init_size(&msg, bytes) < 0)
        return E_BUSY;
    if (bytes > 0)
        memcpy(zmq_msg_data(&msg), data, bytes);
    return send_part(l, &msg, has_more);
}

static int send_blob(struct link *l, struct blob *b, bool has_more)
{
    zmq_msg_t msg;
    hand_over(b);
    if (zmq_msg_init_data(&msg, b->data, b->size_bytes, release_blob, blob_ref(b)) < 0) {
        blob_unref(&b);
        return E_BUSY;
    }
    return send_part(l, &msg, has_more);
}

int link_send(struct link *l, const struct link_send *s)
{
    must_own(l);
    must(s->n_frames + s->n_blobs > 0);
    must((l->role == LINK_SERVER) == (s->peer_bytes > 0));
    if (l->role == LINK_CLIENT && !l->is_connected)
        return E_UNAVAILABLE;
    l->is_drained = false; /* sending takes in what waits in the mailbox, now and then */
    int rc = l->role == LINK_SERVER ? send_copy(l, s->peer, s->peer_bytes, true) : 0;
    int left = s->n_frames + s->n_blobs;
    for (int i = 0; i < s->n_frames && rc == 0; i++)
        rc = send_copy(l, s->frames[i].data, s->frames[i].size_bytes, --left > 0);
    for (int i = 0; i < s->n_blobs && rc == 0; i++)
        rc = send_blob(l, s->blobs[i], --left > 0);
    if (rc == 0)
        l->counters.sent_messages++;
    /* Without a connection libzmq says "would block" too. */
    if (rc == E_BUSY && l->monitor && has_event(l))
        rc = E_UNAVAILABLE;
    return rc;
}

static struct received *take_received(struct link *l)
{
    struct list *node = list_pop_front(&l->spare);
    struct received *r;
    if (node) {
        r = LIST_ITEM(node, struct received, link);
        l->n_spare--;
    } else {
        r = mem_alloc(sizeof(*r));
        r->owner = l;
    }
    list_push_back(&l->taken, &r->link);
    return r;
}

static void give_received(struct received *r)
{
    for (int i = 0; i < r->n_parts; i++)
        zmq_msg_close(&r->parts[i]);
    r->n_parts = 0;
    struct link *l = r->owner;
    list_remove(&r->link);
    if (l && l->n_spare < LINK_MAX_SPARE) {
        list_push_front(&l->spare, &r->link);
        l->n_spare++;
    } else {
        mem_free(r);
    }
}

void message_fini(struct message *m)
{
    struct received *r = m->received;
    if (r && r->owner)
        must_own(r->owner);
    if (r)
        give_received(r);
    memset(m, 0, sizeof(*m));
}

bool link_has_keys(const struct link *l)
{
    return l->has_curve;
}

const char *message_key(const struct message *m)
{
    const struct received *r = m->received;
    if (!r || r->n_parts < 2)
        return "";
    /* What the ZAP handler said about this connection; libzmq keeps it with the message. */
    const char *key = zmq_msg_gets(&r->parts[1], "User-Id");
    return key ? key : "";
}

/* Reads the parts of one message.  E_AGAIN; E_INVALID: more parts than fit, all read and
 * dropped. */
static int read_parts(struct link *l, struct received *r)
{
    for (;;) {
        zmq_msg_t *part = &r->parts[r->n_parts];
        must_zero(zmq_msg_init(part));
        if (zmq_msg_recv(part, l->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(part);
            return E_AGAIN;
        }
        take_over(zmq_msg_data(part));
        l->counters.received_bytes += (int64_t)zmq_msg_size(part);
        r->n_parts++;
        if (!zmq_msg_more(part))
            return 0;
        if (r->n_parts == LINK_MAX_FRAMES + 1)
            break;
    }
    bool has_more = true;
    while (has_more) {
        zmq_msg_t part;
        must_zero(zmq_msg_init(&part));
        has_more = zmq_msg_recv(&part, l->socket, ZMQ_DONTWAIT) >= 0 && zmq_msg_more(&part);
        zmq_msg_close(&part);
    }
    return E_INVALID;
}

static int fill_message(const struct link *l, struct received *r, struct message *out)
{
    int first = l->role == LINK_SERVER ? 1 : 0;
    if (r->n_parts - first < 1 || r->n_parts - first > LINK_MAX_FRAMES)
        return E_INVALID;
    memset(out, 0, sizeof(*out));
    if (l->role == LINK_SERVER) {
        size_t bytes = zmq_msg_size(&r->parts[0]);
        if (bytes == 0 || bytes > LINK_PEER_BYTES)
            return E_INVALID;
        memcpy(out->peer, zmq_msg_data(&r->parts[0]), bytes);
        out->peer_bytes = bytes;
    }
    for (int i = first; i < r->n_parts; i++)
        out->frames[out->n_frames++] =
            (struct frame){zmq_msg_data(&r->parts[i]), zmq_msg_size(&r->parts[i])};
    out->received = r;
    return 0;
}

int link_receive(struct link *l, struct message *out)
{
    must_own(l);
    for (int i = 0; i < LINK_REFUSE_AT_ONCE; i++) {
        struct received *r = take_received(l);
        int rc = read_parts(l, r);
        if (rc == 0)
            rc = fill_message(l, r, out);
        if (rc == 0) {
            l->counters.received_messages++;
            l->is_drained = false;
            return 0;
        }
        give_received(r);
        if (rc == E_AGAIN && l->role == LINK_SERVER && l->monitor)
            count_failed_handshakes(l);
        l->is_drained = rc == E_AGAIN;
        if (rc == E_AGAIN)
            return rc;
        l->counters.refused_messages++;
    }
    return E_AGAIN;
}

static void redial(struct link *l)
{
    l->redial_ns = CLOCK_NEVER;
    l->is_drained = false;
    (void)zmq_disconnect(l->socket, l->endpoint);
    (void)zmq_connect(l->socket, l->endpoint); /* it could be dialled before */
}

int64_t link_deadline_ns(const struct link *l)
{
    return l->redial_ns;
}

enum link_event link_next_event(struct link *l)
{
    must_own(l);
    if (l->redial_ns != CLOCK_NEVER && clock_now_ns() >= l->redial_ns)
        redial(l);
    if (l->has_news) {
        l->has_news = false;
        return LINK_CONNECTED;
    }
    for (;;) {
        uint32_t value;
        int event = l->monitor ? read_monitor(l, &value) : 0;
        l->is_monitor_drained = event == 0;
        if (event == 0)
            return LINK_NOTHING;
        if (event & LINK_FAILED_HANDSHAKE) {
            l->counters.failed_handshakes++;
            /* The other side has keys and this one none, or the other way round: libzmq takes
             * that for final, but programs start again with other settings. */
            if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
                l->redial_ns = clock_now_ns() + LINK_REDIAL_NS;
            return LINK_REFUSED;
        }
        bool is_up = event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
        if (is_up == l->is_connected)
            continue; /* a handshake that failed also ends in "disconnected" */
        l->is_connected = is_up;
        /* The new connection waits in the socket's mailbox; a send looks there only now and then. */
        (void)has_message(l);
        return is_up ? LINK_CONNECTED : LINK_DISCONNECTED;
    }
}

bool link_is_connected(const struct link *l)
{
    return l->is_connected;
}

bool link_is_quiet(const struct link *l)
{
    return !l->has_news && l->is_drained && (!l->monitor || l->is_monitor_drained);
}

bool link_may_have_event(const struct link *l)
{
    return l->has_news || l->redial_ns != CLOCK_NEVER || (l->monitor && !l->is_monitor_drained);
}

/* Asks libzmq only where its answer is not known. */
static bool has_work(struct link *const *links, int n_links)
{
    bool has = false;
    for (int i = 0; i < n_links; i++) {
        struct link *l = links[i];
        if (!l->is_drained)
            (void)has_message(l);
        if (l->monitor && !l->is_monitor_drained)
            (void)has_event(l);
        has = has || !link_is_quiet(l);
    }
    return has;
}

struct wait {
    struct link *const *links;
    int n_links, extra_fd;
    nfds_t n_sockets, n; /* items: sockets, then monitors, then the extra one */
    struct pollfd items[2 * LINK_MAX_WAIT + 1];
};

static void begin_wait(struct wait *w)
{
    for (int i = 0; i < w->n_links; i++)
        w->items[w->n++] = (struct pollfd){.fd = w->links[i]->fd, .events = POLLIN};
    w->n_sockets = w->n;
    for (int i = 0; i < w->n_links; i++)
        if (w->links[i]->monitor)
            w->items[w->n++] = (struct pollfd){.fd = w->links[i]->monitor_fd, .events = POLLIN};
    if (w->extra_fd >= 0)
        w->items[w->n++] = (struct pollfd){.fd = w->extra_fd, .events = POLLIN};
}

/* One system call for all links, and libzmq is asked about those that it names: zmq_poll() and the
 * sockets' own options make several for each.  `everywhere`: also monitors and the extra one. */
static bool poll_work(struct wait *w, bool everywhere, int timeout_ms)
{
    if (poll(w->items, everywhere ? w->n : w->n_sockets, timeout_ms) <= 0)
        return false;
    bool has = everywhere && w->extra_fd >= 0 && w->items[w->n - 1].revents != 0;
    nfds_t at = w->n_sockets;
    for (int i = 0; i < w->n_links; i++) {
        struct link *l = w->links[i];
        if (w->items[i].revents && has_message(l))
            has = true;
        if (everywhere && l->monitor && w->items[at++].revents && has_event(l))
            has = true;
    }
    return has;
}

void link_wait(struct link *const *links, int n_links, int extra_fd, int64_t deadline_ns,
               int64_t spin_ns)
{
    must(n_links >= 0 && n_links <= LINK_MAX_WAIT);
    for (int i = 0; i < n_links; i++)
        must_own(links[i]);
    struct wait w;
    w.links = links;
    w.n_links = n_links;
    w.extra_fd = extra_fd;
    w.n = 0;
    begin_wait(&w);
    /* Before the first look at the clock: a link that holds a message already must not wait. */
    if (has_work(links, n_links) || poll_work(&w, true, 0))
        return;
    int64_t now_ns = clock_now_ns();
    int64_t spin_until_ns = spin_ns < deadline_ns - now_ns ? now_ns + spin_ns : deadline_ns;
    for (unsigned turn = 1; now_ns < spin_until_ns; turn++) {
        /* The message comes through libzmq's I/O thread, which wants a CPU too.  6 KB there
         * and back over tcp, both sides spinning for 50 us on 2 virtual cores of an EPYC:
         * median 152 us without this line, 79 us with it. */
        sched_yield();
        /* Messages are what a spinning thread waits for; the rest may come some turns later. */
        if (poll_work(&w, turn % 16 == 0, 0))
            return;
        now_ns = clock_now_ns();
    }
    if (now_ns < deadline_ns)
        (void)poll_work(&w, true, clock_left_ms(deadline_ns, now_ns, INT_MAX));
}

void link_look(struct link *const *links, int n_links)
{
    must(n_links >= 0 && n_links <= LINK_MAX_WAIT);
    struct wait w;
    w.links = links;
    w.n_links = n_links;
    w.extra_fd = -1;
    w.n = 0;
    begin_wait(&w);
    (void)poll_work(&w, true, 0);
}

void link_count(const struct link *l, struct link_counters *out)
{
    *out = l->counters;
}
