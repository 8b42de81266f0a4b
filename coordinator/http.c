/* coordinator/http.c - see http.h; the only file that knows libmicrohttpd.
 *
 * MHD runs on our loop: its epoll descriptor is one more descriptor there, and its timeout
 * one more timer.  An exchange that waits for its answer is a suspended connection.  MHD
 * does not look at suspended connections, hence the watch for POLLRDHUP; and it accepts
 * Content-Length together with Transfer-Encoding as well as two lengths, the stuff of
 * request smuggling, which are refused here.
 *
 * Lifetimes: an exchange lives from its headers until MHD's completion callback.  The owner
 * (hub) holds it from on_request until it answers, or on_gone; `owned` says whether it does.
 *
 * Log events: http.mhd (debug, MHD's own complaints), http.connections_limited. */
#include "coordinator/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file_limit.h"
#include "base/list.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "coordinator/work.h"

enum {
    HEADER_BYTES = 32768,    /* of one connection: request line, headers, one write */
    STREAM_BLOCK = 16384,    /* largest piece of a stream at once */
    SWALLOW_BYTES = 4 << 20, /* how much of an over-long body we take to be able to say so */
    MAX_HEADERS = 8,
    BACKLOG = 1024,
    SPARES = 128,      /* connections that are only let in to be refused */
    SPARE_MS = 1000,   /* for the header of one of these */
    OTHER_FILES = 512, /* that the process needs beside connections */
};

enum exchange_state {
    X_RECEIVING,
    X_WAITING,   /* the owner has it, no answer yet */
    X_REPLY,     /* the whole answer is there */
    X_STREAMING, /* the answer has begun */
    X_ENDED,     /* of a stream: nothing will be added */
    X_ABORTED,
};

/* Lives as long as the library's; found by its fd's watch and by its exchange. */
struct connection {
    struct list link;
    int fd;
    bool is_spare;    /* there are too many already */
    bool is_cut;      /* it was too slow, and ends as soon as the library sees it */
    int64_t since_ns; /* it is awaited: a header, or the body of `receiving` */
    struct http_exchange *receiving;
    bool is_served; /* it has a request whose answer is not complete */
};

struct http_exchange {
    struct list link;
    struct http *http;
    struct connection *home;
    struct MHD_Connection *connection;
    const char *path; /* the library's, as long as the request's headers */
    enum exchange_state state;
    bool suspended, queued, owned;
    void *user;
    struct buf in;
    size_t swallowed;
    int refused; /* status; 0: not refused */
    const char *why;
    struct buf out;
    size_t out_at; /* read so far */
    int status;
    const char *content_type;
    struct {
        char *name, *value;
    } headers[MAX_HEADERS];
    int n_headers;
};

struct http {
    struct http_options o;
    struct loop *loop;
    struct MHD_Daemon *daemon;
    struct list exchanges, connections, spares; /* oldest first */
    int n_spares;
    struct loop_timer timer, watch;
    int64_t watch_due_ns;
    int epoll_fd, port;
    char url[LINK_ENDPOINT_BYTES];
    bool running, resumed, closing, stopped_accepting;
    struct http_counters counters;
    struct pollfd *polls;
    struct http_exchange **polled;
    int polls_room;
};

/* ---- turning --------------------------------------------------------------------------- */

/* MHD shall look at its connections soon: something was resumed. */
static void wake(struct http *h)
{
    h->resumed = true;
    if (!h->running && !h->closing)
        loop_set_timer(h->loop, &h->timer, clock_now_ns());
}

static void turn(struct http *h, int64_t now_ns)
{
    MHD_UNSIGNED_LONG_LONG wait_ms;
    h->running = true;
    h->resumed = false;
    enum work_kind before = WORK_OTHER;
    if (h->o.work)
        before = work_turn(h->o.work, WORK_HTTP, clock_thread_ns());
    MHD_run(h->daemon);
    if (h->o.work)
        work_turn(h->o.work, before, clock_thread_ns());
    h->running = false;
    if (h->resumed)
        loop_set_timer(h->loop, &h->timer, now_ns);
    else if (MHD_get_timeout(h->daemon, &wait_ms) == MHD_YES)
        loop_set_timer(h->loop, &h->timer, now_ns + (int64_t)wait_ms * CLOCK_MS);
    else
        loop_set_timer(h->loop, &h->timer, CLOCK_NEVER);
}

static void on_turn(void *ud, int64_t now_ns)
{
    turn(ud, now_ns);
}

static void suspend(struct http_exchange *x)
{
    must(!x->suspended);
    x->suspended = true;
    MHD_suspend_connection(x->connection);
}

static void resume(struct http_exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    MHD_resume_connection(x->connection);
    wake(x->http);
}

/* Tells the owner, once. */
static void lose(struct http_exchange *x)
{
    x->state = X_ABORTED;
    if (!x->owned)
        return;
    x->owned = false;
    x->http->counters.hung_up++;
    if (!x->http->closing)
        x->http->o.on_gone(x->http->o.ud, x);
}

static int connection_fd(struct http_exchange *x)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

/* The library takes no answer in the middle of a body, but nothing else has been written either. */
static void say_too_slow(struct http_exchange *x)
{
    struct http *h = x->http;
    struct buf body = {0}, whole = {0};
    h->counters.refused++;
    h->o.on_refused(h->o.ud, x, 408, "the request's body took too long to come", &body);
    buf_printf(&whole,
               "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
               "Content-Length: %zu\r\nConnection: close\r\n\r\n",
               body.len);
    buf_append_str(&whole, buf_str(&body));
    (void)!send(x->home->fd, whole.data, whole.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    buf_fini(&body);
    buf_fini(&whole);
}

/* A crowd that says nothing shall not fill the kernel's queue: the oldest makes place for the newest. */
static void make_place(struct http *h)
{
    for (struct list *l = h->spares.next; l != &h->spares; l = l->next) {
        struct connection *c = LIST_ITEM(l, struct connection, link);
        if (c->is_served || c->is_cut || c->receiving)
            continue;
        c->is_cut = true;
        shutdown(c->fd, SHUT_RDWR);
        return;
    }
}

/* Who of these takes too long over a request? */
static void cut_slow(struct http *h, const struct list *connections, int64_t now_ns)
{
    for (struct list *l = connections->next; l != connections; l = l->next) {
        struct connection *c = LIST_ITEM(l, struct connection, link);
        int64_t most_ns = c->is_spare && !c->receiving ? SPARE_MS * CLOCK_MS : h->o.request_ns;
        if (c->is_served || c->is_cut || now_ns - c->since_ns < most_ns)
            continue;
        c->is_cut = true;
        if (c->receiving)
            say_too_slow(c->receiving);
        shutdown(c->fd, SHUT_RDWR);
    }
}

static void watch_next(struct http *h, int64_t now_ns)
{
    h->watch_due_ns = now_ns + HTTP_WATCH_MS * CLOCK_MS;
    loop_set_timer(h->loop, &h->watch, h->watch_due_ns);
}

/* Which of the suspended have hung up? */
static void on_watch(void *ud, int64_t now_ns)
{
    struct http *h = ud;
    int n = 0;
    /* After a pause of our own (a stopped process, a stalled host) what they sent lies unread. */
    if (now_ns - h->watch_due_ns < HTTP_WATCH_MS * CLOCK_MS) {
        cut_slow(h, &h->connections, now_ns);
        cut_slow(h, &h->spares, now_ns);
    }
    for (struct list *l = h->exchanges.next; l != &h->exchanges; l = l->next) {
        struct http_exchange *x = LIST_ITEM(l, struct http_exchange, link);
        if (!x->suspended)
            continue;
        if (n == h->polls_room) {
            h->polls_room = n ? 2 * n : 64;
            h->polls = mem_resize(h->polls, (size_t)h->polls_room * sizeof *h->polls);
            h->polled =
                mem_resize(h->polled, (size_t)h->polls_room * sizeof(struct http_exchange *));
        }
        h->polls[n] = (struct pollfd){.fd = connection_fd(x), .events = POLLRDHUP};
        h->polled[n++] = x;
    }
    if (n > 0 && poll(h->polls, (nfds_t)n, 0) > 0)
        for (int i = 0; i < n; i++)
            if (h->polls[i].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) {
                lose(h->polled[i]);
                resume(h->polled[i]);
            }
    watch_next(h, now_ns);
}

/* ---- answers ----------------------------------------------------------------------------- */

void http_set_user(struct http_exchange *x, void *user)
{
    x->user = user;
}

void *http_user(const struct http_exchange *x)
{
    return x->user;
}

const char *http_request_header(const struct http_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

const char *http_path(const struct http_exchange *x)
{
    return x->path;
}

const char *http_query(const struct http_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_GET_ARGUMENT_KIND, name);
}

void http_add_header(struct http_exchange *x, const char *name, const char *value)
{
    must(x->n_headers < MAX_HEADERS);
    x->headers[x->n_headers].name = mem_string(name);
    x->headers[x->n_headers++].value = mem_string(value);
}

static enum MHD_Result queue_response(struct http_exchange *x, struct MHD_Response *r)
{
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, x->content_type);
    for (int i = 0; i < x->n_headers; i++)
        MHD_add_response_header(r, x->headers[i].name, x->headers[i].value);
    enum MHD_Result rc = MHD_queue_response(x->connection, (unsigned)x->status, r);
    MHD_destroy_response(r);
    x->queued = true;
    x->home->receiving = NULL;
    x->home->is_served = true;
    return rc;
}

static enum MHD_Result queue_reply(struct http_exchange *x)
{
    return queue_response(
        x, MHD_create_response_from_buffer(x->out.len, x->out.data, MHD_RESPMEM_MUST_COPY));
}

/* MHD wants more of a stream. */
static ssize_t read_stream(void *ud, uint64_t position, char *to, size_t max)
{
    struct http_exchange *x = ud;
    (void)position;
    if (x->state == X_ABORTED)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t left = x->out.len - x->out_at;
    if (left == 0) {
        if (x->state == X_ENDED)
            return MHD_CONTENT_READER_END_OF_STREAM;
        suspend(x);
        return 0;
    }
    size_t n = left < max ? left : max;
    memcpy(to, x->out.data + x->out_at, n);
    x->out_at += n;
    /* Not byte by byte: a slow reader of a long stream would make it quadratic. */
    if (x->out_at == x->out.len || x->out_at > STREAM_BLOCK * 4) {
        buf_drop(&x->out, x->out_at);
        x->out_at = 0;
    }
    return (ssize_t)n;
}

static enum MHD_Result queue_stream(struct http_exchange *x)
{
    return queue_response(
        x, MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, x, NULL));
}

void http_reply(struct http_exchange *x, int status, const char *content_type, struct str body)
{
    must(x->owned && x->state == X_WAITING);
    x->status = status;
    x->content_type = content_type;
    buf_append_str(&x->out, body);
    x->state = X_REPLY;
    x->owned = false;
    resume(x);
}

void http_stream_begin(struct http_exchange *x, int status, const char *content_type)
{
    must(x->owned && x->state == X_WAITING);
    x->status = status;
    x->content_type = content_type;
    x->state = X_STREAMING;
    resume(x);
}

size_t http_stream_write(struct http_exchange *x, struct str data)
{
    must(x->owned && x->state == X_STREAMING);
    buf_append_str(&x->out, data);
    if (x->queued)
        resume(x);
    return x->out.len - x->out_at;
}

void http_stream_end(struct http_exchange *x)
{
    must(x->owned && x->state == X_STREAMING);
    x->state = X_ENDED;
    x->owned = false;
    resume(x);
}

void http_abort(struct http_exchange *x)
{
    must(x->owned);
    x->owned = false;
    x->state = X_ABORTED;
    /* A client that does not read keeps MHD from looking at it: end the socket, too. */
    shutdown(connection_fd(x), SHUT_RDWR);
    resume(x);
}

/* ---- requests ----------------------------------------------------------------------------- */

struct length_check {
    int lengths, encodings;
};

static enum MHD_Result count_lengths(void *ud, enum MHD_ValueKind kind, const char *key,
                                     const char *value)
{
    struct length_check *c = ud;
    (void)kind;
    (void)value;
    c->lengths += strcasecmp(key, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0;
    c->encodings += strcasecmp(key, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0;
    return MHD_YES;
}

static void refuse(struct http_exchange *x, int status, const char *why)
{
    x->refused = status;
    x->why = why;
    buf_fini(&x->in);
}

static const char WHY_TOO_LARGE[] = "the body is larger than this server takes";
static const char WHY_TOO_MANY[] =
    "this server has as many connections as it takes; try again soon";

/* Headers are there: is this a request that we take? */
static void check_headers(struct http_exchange *x, const char *path)
{
    struct length_check c = {0};
    if (x->home->is_spare) {
        http_add_header(x, "Retry-After", "1");
        refuse(x, 503, WHY_TOO_MANY);
        return;
    }
    MHD_get_connection_values(x->connection, MHD_HEADER_KIND, count_lengths, &c);
    if (c.lengths > 1)
        refuse(x, 400, "more than one Content-Length");
    else if (c.encodings > 1 || (c.lengths && c.encodings))
        refuse(x, 400, "Content-Length and Transfer-Encoding together");
    const char *length =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const char *why = NULL;
    int status =
        x->refused || !x->http->o.admit ? 0 : x->http->o.admit(x->http->o.ud, x, path, &why);
    if (status)
        refuse(x, status, why);
    unsigned long long bytes = 0;
    if (!x->refused && length && sscanf(length, "%llu", &bytes) == 1 &&
        bytes > x->http->o.max_body_bytes)
        refuse(x, 413, WHY_TOO_LARGE);
}

static enum MHD_Result queue_refusal(struct http_exchange *x)
{
    x->http->counters.refused++;
    x->http->o.on_refused(x->http->o.ud, x, x->refused, x->why, &x->out);
    x->status = x->refused;
    x->content_type = "application/json";
    x->state = X_REPLY;
    /* The rest of the body is not wanted, and where a next request would begin is not sure. */
    http_add_header(x, MHD_HTTP_HEADER_CONNECTION, "close");
    return queue_reply(x);
}

static enum MHD_Result take_body(struct http_exchange *x, const char *data, size_t *bytes)
{
    if (!x->refused && x->in.len + *bytes > x->http->o.max_body_bytes)
        refuse(x, 413, WHY_TOO_LARGE);
    if (x->refused) {
        x->swallowed += *bytes;
        if (x->swallowed > SWALLOW_BYTES)
            return MHD_NO;
    } else {
        buf_append(&x->in, data, *bytes);
    }
    *bytes = 0;
    return MHD_YES;
}

static void hand_over(struct http_exchange *x, const char *method, const char *path)
{
    struct http_message m = {.method = method, .path = path, .body = buf_str(&x->in)};
    x->state = X_WAITING;
    x->home->is_served = true;
    x->home->receiving = NULL;
    x->owned = true;
    x->http->counters.requests++;
    x->http->o.on_request(x->http->o.ud, x, &m);
    buf_fini(&x->in);
}

/* MHD calls this for the headers, for each piece of the body, at its end, and after every
 * resumption until a response is queued. */
static enum MHD_Result on_access(void *ud, struct MHD_Connection *c, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *bytes, void **context)
{
    struct http *h = ud;
    struct http_exchange *x = *context;
    (void)version;
    if (!x) {
        x = mem_alloc(sizeof *x);
        x->http = h;
        x->connection = c;
        x->home = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
        x->home->receiving = x;
        x->home->since_ns = clock_now_ns();
        x->path = url;
        list_push_back(&h->exchanges, &x->link);
        *context = x;
        check_headers(x, url);
        return x->refused ? queue_refusal(x) : MHD_YES;
    }
    if (x->home->is_cut)
        return MHD_NO;
    if (x->queued)
        return MHD_YES;
    if (*bytes > 0)
        return take_body(x, data, bytes);
    if (x->refused)
        return queue_refusal(x);
    if (x->state == X_RECEIVING)
        hand_over(x, method, url);
    switch (x->state) {
    case X_WAITING:
        suspend(x);
        return MHD_YES;
    case X_REPLY:
        return queue_reply(x);
    case X_STREAMING:
    case X_ENDED:
        return queue_stream(x);
    case X_RECEIVING:
    case X_ABORTED:
        break;
    }
    return MHD_NO;
}

static void on_completed(void *ud, struct MHD_Connection *c, void **context,
                         enum MHD_RequestTerminationCode why)
{
    struct http_exchange *x = *context;
    (void)ud;
    (void)c;
    (void)why;
    if (!x)
        return;
    *context = NULL;
    x->home->receiving = NULL;
    x->home->is_served = false;
    x->home->since_ns = clock_now_ns();
    lose(x);
    list_remove(&x->link);
    for (int i = 0; i < x->n_headers; i++) {
        mem_free(x->headers[i].name);
        mem_free(x->headers[i].value);
    }
    buf_fini(&x->in);
    buf_fini(&x->out);
    mem_free(x);
}

static void on_connection(void *ud, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http *h = ud;
    if (what == MHD_CONNECTION_NOTIFY_CLOSED) {
        struct connection *home = *context;
        h->counters.open--;
        h->n_spares -= home->is_spare;
        list_remove(&home->link);
        mem_free(home);
        return;
    }
    h->counters.connections++;
    struct connection *home = mem_alloc(sizeof *home);
    home->fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    home->since_ns = clock_now_ns();
    home->is_spare = ++h->counters.open > h->o.max_connections;
    list_push_back(home->is_spare ? &h->spares : &h->connections, &home->link);
    h->n_spares += home->is_spare;
    if (h->n_spares > SPARES / 2)
        make_place(h);
    *context = home;
}

__attribute__((format(printf, 2, 0))) static void on_log(void *ud, const char *format, va_list args)
{
    char text[512];
    (void)ud;
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http.mhd", "text=%s", log_quote(text).text);
}

/* ---- opening and closing ------------------------------------------------------------------- */

static int bind_address(const struct addrinfo *a, int *fd, const struct http_options *o,
                        struct err *e)
{
    int s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    if (s < 0)
        return err_set_errno(e, errno, "socket");
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(s, a->ai_addr, a->ai_addrlen) == 0 && listen(s, BACKLOG) == 0) {
        *fd = s;
        return 0;
    }
    int saved = errno;
    close(s);
    if (saved == EADDRINUSE)
        return err_set(e, E_EXISTS, "port %d of %s is in use by another program", o->port, o->host);
    return err_set_errno(e, saved, "bind to %s port %d", o->host, o->port);
}

static int open_listener(struct http *h, int *fd, struct err *e)
{
    char port[16];
    snprintf(port, sizeof port, "%d", h->o.port);
    struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *a;
    int rc = getaddrinfo(h->o.host, port, &hints, &a);
    if (rc != 0)
        return err_set(e, E_INVALID, "http.host \"%s\": %s", h->o.host, gai_strerror(rc));
    rc = bind_address(a, fd, &h->o, e);
    freeaddrinfo(a);
    if (rc < 0)
        return rc;
    struct sockaddr_storage bound;
    socklen_t len = sizeof bound;
    char name[128], service[16];
    must_zero(getsockname(*fd, (struct sockaddr *)&bound, &len));
    must_zero(getnameinfo((struct sockaddr *)&bound, len, name, sizeof name, service,
                          sizeof service, NI_NUMERICHOST | NI_NUMERICSERV));
    sscanf(service, "%d", &h->port);
    snprintf(h->url, sizeof h->url, strchr(name, ':') ? "http://[%s]:%s" : "http://%s:%s", name,
             service);
    return 0;
}

/* No more than there may be files: without one the others' connections would suffer, too. */
static void limit_connections(struct http *h)
{
    long files = file_limit_raise(), fit = files - OTHER_FILES - SPARES;
    if (h->o.max_connections <= fit)
        return;
    log_warn("http.connections_limited",
             "max_connections=%d fit=%ld files=%ld hint=\"raise ulimit -n or LimitNOFILE\"",
             h->o.max_connections, fit, files);
    h->o.max_connections = fit > 16 ? (int)fit : 16;
}

static int start_daemon(struct http *h, int listener, struct err *e)
{
    unsigned timeout_s = (unsigned)((h->o.idle_timeout_ns + CLOCK_S - 1) / CLOCK_S);
    limit_connections(h);
    int most = h->o.max_connections + SPARES;
    h->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_access, h,
        MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_LISTEN_SOCKET, listener,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_NOTIFY_CONNECTION, on_connection,
        h, MHD_OPTION_CONNECTION_LIMIT, (unsigned)most, MHD_OPTION_CONNECTION_TIMEOUT, timeout_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_BYTES, MHD_OPTION_STRICT_FOR_CLIENT, 1,
        MHD_OPTION_END);
    if (!h->daemon)
        return err_set(e, E_INTERNAL, "the HTTP library does not start");
    h->epoll_fd = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    return 0;
}

int http_open(struct loop *l, const struct http_options *o, struct http **out, struct err *e)
{
    struct http *h = mem_alloc(sizeof *h);
    int listener = -1;
    *out = NULL;
    h->o = *o;
    h->loop = l;
    list_init(&h->exchanges);
    list_init(&h->connections);
    list_init(&h->spares);
    int rc = open_listener(h, &listener, e);
    if (rc < 0)
        goto out;
    rc = start_daemon(h, listener, e);
    if (rc < 0) {
        close(listener);
        goto out;
    }
    h->timer = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_turn, .ud = h};
    h->watch = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_watch, .ud = h};
    loop_add_fd(l, h->epoll_fd, on_turn, h);
    watch_next(h, clock_now_ns());
    *out = h;
    h = NULL;
out:
    mem_free(h);
    return rc;
}

void http_stop_accepting(struct http *h)
{
    if (h->stopped_accepting)
        return;
    h->stopped_accepting = true;
    int fd = MHD_quiesce_daemon(h->daemon);
    if (fd >= 0)
        close(fd);
}

void http_close(struct http **hp)
{
    struct http *h = *hp;
    *hp = NULL;
    if (!h)
        return;
    h->closing = true;
    loop_remove_fd(h->loop, h->epoll_fd);
    loop_remove_timer(h->loop, &h->timer);
    loop_remove_timer(h->loop, &h->watch);
    /* Answers that are complete get one chance to leave; the rest is cut. */
    for (struct list *l = h->exchanges.next; l != &h->exchanges; l = l->next) {
        struct http_exchange *x = LIST_ITEM(l, struct http_exchange, link);
        if (x->state != X_REPLY && x->state != X_ENDED)
            x->state = X_ABORTED;
        resume(x);
    }
    h->running = true;
    MHD_run(h->daemon);
    MHD_stop_daemon(h->daemon);
    mem_free(h->polls);
    mem_free(h->polled);
    mem_free(h);
}

const char *http_url(const struct http *h)
{
    return h->url;
}

int http_port(const struct http *h)
{
    return h->port;
}

void http_count(const struct http *h, struct http_counters *out)
{
    *out = h->counters;
}
