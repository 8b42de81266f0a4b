/* rpc/auth.c - see auth.h.
 *
 * The list in force is an immutable `struct view`.  The handler's thread alone makes a new one
 * and swaps it in; others look through `view` for some hundred nanoseconds at a time and say so
 * in `n_readers`.  The old one is freed when nobody looks: who looks then began after the swap. */
#include "rpc/auth.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/safe_file.h"
#include "base/signals.h"
#include "base/thread.h"
#include "rpc/allow.h"
#include "rpc/link.h"

#define ZAP_ENDPOINT "inproc://zeromq.zap.01"
#define LOOK_EVERY_NS (250 * CLOCK_MS)
enum {
    ZAP_PARTS = 7, /* of a request with one credential; others are read and refused */
    ZAP_PART_BYTES = 256,
    QUEUED_ORDERS = 16,
    REQUESTS_AT_ONCE = 256
};

struct view {
    struct allow allowed;
};

/* For the handler's thread: new callers, or (without a list) the wish to stop. */
struct order {
    struct allow callers;
};

struct auth {
    struct key_pair keys;
    char server_key[KEY_TEXT_BYTES];
    bool is_insecure, lets_in_itself;
    char *allow_file;

    _Atomic(struct view *) view;
    _Atomic int n_readers;
    _Atomic uint64_t generation;
    _Atomic int64_t accepted, refused[AUTH_REFUSALS], reloads, failed_reloads, n_allowed;

    struct thread *thread; /* NULL: no handler */
    struct queue *orders;
    struct order wake;

    /* handler's thread only */
    void *socket;
    struct allow listed, callers;
    struct allow gone;          /* names of revoked keys */
    uint64_t stamp, seen_stamp; /* of the file as read, and as it was at the last look */
    int n_hangups;
};

const char *auth_refusal_name(enum auth_refusal r)
{
    static const char *const names[AUTH_REFUSALS] = {
        "unknown_key", "revoked_key", "malformed", "no_key", "crypto", "handshake", "call"};
    return r < AUTH_REFUSALS ? names[r] : "unknown";
}

/* ---- what everybody may ask ----------------------------------------------------------- */

bool auth_has_keys(const struct auth *a)
{
    return a && a->keys.public_key[0];
}

bool auth_is_insecure(const struct auth *a)
{
    return a && a->is_insecure;
}

const char *auth_public_key(const struct auth *a)
{
    return a ? a->keys.public_key : "";
}

const char *auth_secret_key(const struct auth *a)
{
    return a ? a->keys.secret_key : "";
}

const char *auth_server_key(const struct auth *a)
{
    return a ? a->server_key : "";
}

uint64_t auth_generation(const struct auth *a)
{
    return a ? atomic_load(&a->generation) : 0;
}

bool auth_allows(const struct auth *a, const char *key, char name[KEY_NAME_BYTES])
{
    if (name)
        name[0] = '\0';
    if (!a)
        return false;
    struct auth *shared = (struct auth *)(uintptr_t)a; /* the count of readers is ours to change */
    atomic_fetch_add(&shared->n_readers, 1);
    const struct view *v = atomic_load(&shared->view);
    const struct allow_entry *found = v ? allow_find(&v->allowed, key) : NULL;
    if (found && name)
        memcpy(name, found->name, KEY_NAME_BYTES);
    atomic_fetch_sub(&shared->n_readers, 1);
    return found != NULL;
}

void auth_note_refusal(struct auth *a, enum auth_refusal r)
{
    must(r < AUTH_REFUSALS);
    if (a)
        atomic_fetch_add(&a->refused[r], 1);
}

void auth_count(const struct auth *a, struct auth_counters *out)
{
    *out = (struct auth_counters){0};
    if (!a)
        return;
    out->accepted = atomic_load(&a->accepted);
    for (int i = 0; i < AUTH_REFUSALS; i++)
        out->refused[i] = atomic_load(&a->refused[i]);
    out->n_allowed = atomic_load(&a->n_allowed);
    out->reloads = atomic_load(&a->reloads);
    out->failed_reloads = atomic_load(&a->failed_reloads);
}

/* ---- the list in force ---------------------------------------------------------------- */

static void free_view(struct view *v)
{
    if (v)
        allow_fini(&v->allowed);
    mem_free(v);
}

/* Who was let in and is not any more, for the log. */
static void remember_gone(struct auth *a, const struct view *old, const struct view *now)
{
    for (int i = 0; old && i < old->allowed.n; i++) {
        const struct allow_entry *was = &old->allowed.entries[i];
        if (allow_find(&now->allowed, was->key))
            continue;
        if (a->gone.n == ALLOW_MAX_KEYS)
            allow_fini(&a->gone);
        allow_add(&a->gone, was->key, was->name);
    }
}

static void publish(struct auth *a)
{
    struct view *v = mem_alloc(sizeof(*v));
    if (a->server_key[0])
        allow_add(&v->allowed, a->server_key, "coordinator");
    if (a->lets_in_itself)
        allow_add(&v->allowed, a->keys.public_key, "coordinator");
    allow_add_all(&v->allowed, &a->listed);
    allow_add_all(&v->allowed, &a->callers);
    struct view *old = atomic_load(&a->view);
    remember_gone(a, old, v);
    atomic_store(&a->view, v);
    atomic_store(&a->n_allowed, v->allowed.n);
    atomic_fetch_add(&a->generation, 1);
    while (old && atomic_load(&a->n_readers) > 0)
        sched_yield();
    free_view(old);
}

static int read_list(struct auth *a, struct err *e)
{
    if (!a->allow_file)
        return 0;
    struct allow fresh;
    uint64_t stamp = safe_file_stamp(a->allow_file);
    int rc = allow_read(a->allow_file, &fresh, e);
    if (rc < 0)
        return rc;
    allow_fini(&a->listed);
    a->listed = fresh;
    a->stamp = stamp; /* taken before: a change while reading is seen the next time */
    return 0;
}

/* Is there something new to read?  A file that changed is left alone until it was the same for
 * one look, because it may be half written. */
static bool is_list_due(struct auth *a)
{
    int n_hangups = signals_hangups();
    bool is_told = n_hangups != a->n_hangups;
    a->n_hangups = n_hangups;
    if (!a->allow_file)
        return false;
    uint64_t stamp = safe_file_stamp(a->allow_file);
    bool is_settled = stamp == a->seen_stamp;
    a->seen_stamp = stamp;
    return is_told || (stamp != a->stamp && is_settled);
}

static void look_at_list(struct auth *a)
{
    if (!is_list_due(a))
        return;
    struct err e = {0};
    if (read_list(a, &e) < 0) {
        atomic_fetch_add(&a->failed_reloads, 1);
        log_warn("auth.list_refused", "file=%s why=%s", log_quote(a->allow_file).text,
                 log_quote(e.text).text);
        a->stamp = safe_file_stamp(a->allow_file); /* said once */
        return;
    }
    publish(a);
    atomic_fetch_add(&a->reloads, 1);
    log_info("auth.list", "file=%s keys=%d", log_quote(a->allow_file).text, a->listed.n);
}

/* ---- ZAP ------------------------------------------------------------------------------ */

struct zap_request {
    int n_parts;
    size_t bytes[ZAP_PARTS];
    char parts[ZAP_PARTS][ZAP_PART_BYTES + 1];
};

/* false: nothing waits.  Parts that are too many or too long are counted and cut. */
static bool receive_request(void *socket, struct zap_request *r)
{
    memset(r, 0, sizeof(*r));
    for (bool has_more = true; has_more; r->n_parts++) {
        zmq_msg_t msg;
        must_zero(zmq_msg_init(&msg));
        if (zmq_msg_recv(&msg, socket, r->n_parts == 0 ? ZMQ_DONTWAIT : 0) < 0) {
            zmq_msg_close(&msg);
            return false;
        }
        if (r->n_parts < ZAP_PARTS) {
            size_t bytes = zmq_msg_size(&msg);
            r->bytes[r->n_parts] = bytes;
            memcpy(r->parts[r->n_parts], zmq_msg_data(&msg),
                   bytes < ZAP_PART_BYTES ? bytes : ZAP_PART_BYTES);
        }
        has_more = zmq_msg_more(&msg);
        zmq_msg_close(&msg);
    }
    return true;
}

/* 200 lets in; 300 ends the connection and lets the client try again, which is what a node
 * that is put on the list later needs: after 400 a client of libzmq never dials again. */
static void send_answer(void *socket, const struct zap_request *r, bool is_allowed, const char *key)
{
    const char *status = is_allowed ? "200" : "300", *text = is_allowed ? "OK" : "refused";
    (void)zmq_send(socket, "1.0", 3, ZMQ_SNDMORE);
    (void)zmq_send(socket, r->parts[1], r->bytes[1] < ZAP_PART_BYTES ? r->bytes[1] : 0,
                   ZMQ_SNDMORE);
    (void)zmq_send(socket, status, strlen(status), ZMQ_SNDMORE);
    (void)zmq_send(socket, text, strlen(text), ZMQ_SNDMORE);
    /* User-Id: what a server asks for when it wants to know who called. */
    (void)zmq_send(socket, key, is_allowed ? strlen(key) : 0, ZMQ_SNDMORE);
    (void)zmq_send(socket, "", 0, 0);
}

static bool is_curve(const struct zap_request *r)
{
    return r->n_parts == ZAP_PARTS && strcmp(r->parts[0], "1.0") == 0 &&
           strcmp(r->parts[5], "CURVE") == 0 && r->bytes[6] == KEY_RAW_BYTES;
}

static void refuse(struct auth *a, const struct zap_request *r, const char *key)
{
    enum auth_refusal why = AUTH_MALFORMED;
    const struct allow_entry *was = key[0] ? allow_find(&a->gone, key) : NULL;
    if (key[0])
        why = was ? AUTH_REVOKED_KEY : AUTH_UNKNOWN_KEY;
    auth_note_refusal(a, why);
    /* What a ZAP request says comes from outside: libzmq copies the peer's routing id. */
    log_warn("auth.refused", "why=%s key=%s name=%s address=%s", auth_refusal_name(why),
             log_quote(key).text, log_quote(was ? was->name : "").text,
             log_quote(r->n_parts > 3 ? r->parts[3] : "").text);
}

static void answer_requests(struct auth *a)
{
    struct zap_request r;
    for (int i = 0; i < REQUESTS_AT_ONCE && receive_request(a->socket, &r); i++) {
        char key[KEY_TEXT_BYTES] = "";
        if (is_curve(&r))
            key_from_raw((const unsigned char *)r.parts[6], key);
        bool is_allowed = key[0] && allow_find(&atomic_load(&a->view)->allowed, key);
        if (is_allowed)
            atomic_fetch_add(&a->accepted, 1);
        else
            refuse(a, &r, key);
        send_answer(a->socket, &r, is_allowed, key);
    }
}

/* ---- the thread ----------------------------------------------------------------------- */

static void take_orders(struct auth *a)
{
    for (struct order *o; (o = queue_pop(a->orders));) {
        if (o == &a->wake)
            continue;
        allow_fini(&a->callers);
        a->callers = o->callers;
        mem_free(o);
        publish(a);
        log_info("auth.callers", "keys=%d", a->callers.n);
    }
}

static int open_handler(struct auth *a, struct err *e)
{
    int rc = read_list(a, e);
    if (rc < 0)
        return err_prefix(e, "security.allow_file");
    a->n_hangups = signals_hangups();
    publish(a);
    a->socket = zmq_socket(link_context(), ZMQ_REP);
    int linger = 0;
    if (a->socket && zmq_setsockopt(a->socket, ZMQ_LINGER, &linger, sizeof(linger)) == 0 &&
        zmq_bind(a->socket, ZAP_ENDPOINT) == 0)
        return 0;
    return err_set(e, zmq_errno() == EADDRINUSE ? E_EXISTS : E_INTERNAL, "the ZAP handler: %s",
                   zmq_strerror(zmq_errno()));
}

static void handler_main(struct thread *t, void *arg)
{
    struct auth *a = arg;
    struct err e = {0};
    int rc = open_handler(a, &e);
    thread_ready(t, rc, &e);
    int64_t look_ns = clock_now_ns() + LOOK_EVERY_NS;
    while (rc == 0 && !thread_should_stop(t)) {
        zmq_pollitem_t items[] = {{.socket = a->socket, .events = ZMQ_POLLIN},
                                  {.fd = queue_fd(a->orders), .events = ZMQ_POLLIN}};
        (void)zmq_poll(items, 2, clock_left_ms(look_ns, clock_now_ns(), INT_MAX));
        take_orders(a);
        answer_requests(a);
        if (clock_now_ns() >= look_ns) {
            look_at_list(a);
            look_ns = clock_now_ns() + LOOK_EVERY_NS;
        }
    }
    if (a->socket)
        zmq_close(a->socket);
    a->socket = NULL;
}

void auth_set_callers(struct auth *a, const char (*keys)[KEY_TEXT_BYTES], uint32_t n)
{
    if (!a || !a->thread)
        return;
    struct order *o = mem_alloc(sizeof(*o));
    for (uint32_t i = 0; i < n && i < ALLOW_MAX_KEYS; i++) {
        char name[KEY_NAME_BYTES];
        snprintf(name, sizeof(name), "caller-%u", i);
        allow_add(&o->callers, keys[i], name);
    }
    /* The handler's thread never waits long, so a full queue empties at once. */
    while (queue_push(a->orders, (void **)&o) == E_BUSY)
        sched_yield();
}

/* ---- start and end -------------------------------------------------------------------- */

static int read_keys(struct auth *a, const struct auth_options *o, struct err *e)
{
    int rc = key_pair_read(o->key_file, &a->keys, e);
    if (rc < 0)
        return err_prefix(e, "security.key_file");
    if (o->server_key && o->server_key[0])
        rc = key_public_of(o->server_key, a->server_key, e);
    return rc < 0 ? err_prefix(e, "security.server_key") : 0;
}

static int start_handler(struct auth *a, const struct auth_options *o, struct err *e)
{
    if (o->allow_file && o->allow_file[0])
        a->allow_file = mem_string(o->allow_file);
    a->orders = queue_new(QUEUED_ORDERS);
    int rc = thread_start("auth", handler_main, a, &a->thread, e);
    if (rc == 0)
        log_info("auth.ready", "name=%s key=%s allowed=%lld", a->keys.name,
                 log_quote(a->keys.public_key).text, (long long)atomic_load(&a->n_allowed));
    return rc;
}

int auth_start(const struct auth_options *o, struct auth **out, struct err *e)
{
    struct auth *a = mem_alloc(sizeof(*a));
    a->is_insecure = o->is_insecure;
    a->lets_in_itself = o->lets_in_itself;
    int rc = 0;
    if (o->key_file && o->key_file[0])
        rc = read_keys(a, o, e);
    else if ((o->server_key && o->server_key[0]) || (o->allow_file && o->allow_file[0]))
        rc = err_set(e, E_INVALID,
                     "security.key_file is missing: this program needs a key of its own beside the "
                     "keys of others (polymath keys new)");
    if (rc == 0 && auth_has_keys(a) && !o->is_client_only)
        rc = start_handler(a, o, e);
    if (rc < 0)
        auth_stop(&a);
    *out = a;
    return rc;
}

static void wake_handler(void *ud)
{
    struct auth *a = ud;
    struct order *o = &a->wake;
    (void)queue_push(a->orders, (void **)&o); /* full: it is awake */
}

void auth_stop(struct auth **auth)
{
    struct auth *a = *auth;
    if (!a)
        return;
    *auth = NULL;
    thread_stop(&a->thread, wake_handler, a);
    for (struct order *o; a->orders && (o = queue_pop(a->orders));) {
        if (o == &a->wake)
            continue;
        allow_fini(&o->callers);
        mem_free(o);
    }
    queue_free(&a->orders);
    free_view(atomic_load(&a->view));
    allow_fini(&a->listed);
    allow_fini(&a->callers);
    allow_fini(&a->gone);
    mem_free(a->allow_file);
    explicit_bzero(&a->keys, sizeof(a->keys));
    mem_free(a);
}
