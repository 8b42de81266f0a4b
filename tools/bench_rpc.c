/* tools/bench_rpc.c - what a call costs on its way: the bytes of a Forward and its answer there and
 * back, through our channels with and without CURVE, beside bare TCP sockets that carry the same
 * bytes in the same run.
 *
 * Every node is a process of its own that answers at once.  The variants take turns, so a machine
 * that is busy for a while is busy for all of them.  "Spinning" looks for --spin-us before it sleeps,
 * on both sides; "blocking" sleeps at once.  With a CPU for each process they stay there, as on hosts of
 * their own: where the scheduler puts two ends on one CPU now and then, bare TCP takes 16 us or 41 from
 * one run to the next.  With fewer, nothing is pinned and only the asking process spins, which is what
 * clusters do, too.
 *
 * With --delay-us every process is a host of its own behind wires that take so long there and back
 * (tools/chaos_net.h; root). */
#include "tools/bench_rpc.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/safe_file.h"
#include "rpc/auth.h"
#include "rpc/channel.h"
#include "rpc/io_threads.h"
#include "rpc/server.h"
#include "tools/chaos_net.h"

enum { MAX_NODES = 64, TOP_K = 8, MAX_SAMPLES = 200000, CONNECT_S = 10, MAX_BROKEN = 20 };

enum carrier { RAW, PLAIN, CURVE, CARRIERS };
struct variant {
    const char *name;
    enum carrier carrier;
    bool spins;
};
static const struct variant variants[] = {
    {"tcp blocking", RAW, false},     {"tcp spinning", RAW, true},
    {"call blocking", PLAIN, false},  {"call spinning", PLAIN, true},
    {"CURVE blocking", CURVE, false}, {"CURVE spinning", CURVE, true},
};
enum { N_VARIANTS = sizeof variants / sizeof variants[0] };

struct options {
    int nodes, rows, hidden, turns, calls, spin_us, delay_us;
};

/* One variant's client side. */
struct party {
    const struct variant *variant;
    int64_t spin_ns;
    pid_t pids[MAX_NODES];
    char endpoints[MAX_NODES][LINK_ENDPOINT_BYTES];
    int sockets[MAX_NODES];
    struct channel *channels[MAX_NODES];
    double *one_us, *all_us; /* round trips to one node, and to all */
    int n_one, n_all;
};

struct scene {
    struct options options;
    char dir[64];
    struct party parties[N_VARIANTS];
    struct auth *auth;
    struct wire_forward forward;
    struct blob *payloads[2];
    struct buf message;
    size_t request_bytes, reply_bytes;               /* with headers: what bare TCP carries, too */
    size_t sealed_request_bytes, sealed_reply_bytes; /* as CURVE and ZMTP send them */
    int first, end;                                  /* variants that take part */
    bool are_apart;                                  /* each process has a CPU of its own */
    struct chaos_net *net;                           /* NULL: loopback.  The client is host 0 */
    int n_open, n_failed, n_broken;
    struct err why; /* of the last one that failed */
    char *scratch;
};

/* Where node `index` listens. */
static const char *host_of(const struct scene *s, int index)
{
    return s->net ? chaos_net_address(s->net, 1 + index) : "127.0.0.1";
}

/* ---- bare TCP ----------------------------------------------------------------------------- */

static void be_quick(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static bool send_all(int fd, const char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t n = send(fd, data, bytes, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        data += n;
        bytes -= (size_t)n;
    }
    return true;
}

/* Spins for spin_ns at most before each sleep. */
static bool receive_all(int fd, char *data, size_t bytes, int64_t spin_ns)
{
    int64_t until_ns = spin_ns > 0 ? clock_now_ns() + spin_ns : 0;
    while (bytes > 0) {
        bool is_spinning = spin_ns > 0 && clock_now_ns() < until_ns;
        ssize_t n = recv(fd, data, bytes, is_spinning ? MSG_DONTWAIT : 0);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0)
            return false;
        data += n;
        bytes -= (size_t)n;
    }
    return true;
}

static _Noreturn void serve_raw(const struct scene *s, const char *host, int64_t spin_ns, int tell)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(host)};
    socklen_t len = sizeof a;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&a, len) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&a, &len) < 0)
        _exit(1);
    dprintf(tell, "tcp://%s:%d", host, ntohs(a.sin_port));
    close(tell);
    int fd = accept(listener, NULL, NULL);
    be_quick(fd);
    size_t room = s->request_bytes > s->reply_bytes ? s->request_bytes : s->reply_bytes;
    char *data = mem_alloc(room);
    while (receive_all(fd, data, s->request_bytes, spin_ns) && send_all(fd, data, s->reply_bytes))
        continue;
    _exit(0);
}

static int dial_raw(const char *endpoint)
{
    struct sockaddr_in a = {.sin_family = AF_INET};
    char host[32];
    if (sscanf(endpoint, "tcp://%31[^:]", host) != 1)
        return -1;
    a.sin_addr.s_addr = inet_addr(host);
    a.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0)
        return -1;
    be_quick(fd);
    return fd;
}

/* ---- calls -------------------------------------------------------------------------------- */

static size_t answer_bytes(const struct scene *s)
{
    return (size_t)s->options.rows * (size_t)s->options.hidden * sizeof(int32_t);
}

struct node {
    struct blob_pool *answers;
    struct buf message;
    size_t bytes;
};

static void on_forward(void *ud, struct server_call *call, const struct server_request *r)
{
    struct node *n = ud;
    (void)r;
    struct blob *payload = blob_pool_get(n->answers);
    payload->size_bytes = n->bytes;
    struct server_answer a = {.message = &n->message, .payloads = &payload, .n_payloads = 1};
    server_reply(&call, &a);
    blob_unref(&payload);
}

static void encode_answer(const struct scene *s, struct buf *message)
{
    static struct wire_forward_reply reply;
    reply.n_rows = (uint32_t)s->options.rows;
    reply.mode = COMBINE_FIXED;
    wire_forward_reply_encode(&reply, message);
}

static _Noreturn void serve_calls(const struct scene *s, const char *host, bool has_keys,
                                  int64_t spin_ns, int tell)
{
    struct err e = {0};
    struct auth *auth = NULL;
    char key[128], allow[128];
    snprintf(key, sizeof key, "%s/node.key", s->dir);
    snprintf(allow, sizeof allow, "%s/client.pub", s->dir);
    struct auth_options a = {.key_file = key, .allow_file = allow};
    if (!has_keys)
        a = (struct auth_options){.is_insecure = true};
    if (auth_start(&a, &auth, &e) < 0)
        _exit(1);
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "tcp://%s:0", host);
    struct server *server;
    struct server_options o = {.endpoint = endpoint, .name = "bench", .auth = auth};
    if (server_open(&o, &server, &e) < 0)
        _exit(1);
    struct node n = {.bytes = answer_bytes(s)};
    n.answers = blob_pool_new(n.bytes, 8);
    encode_answer(s, &n.message);
    server_handler *const handlers[EXPERT_METHODS] = {[EXPERT_FORWARD] = on_forward};
    server_add(server, WIRE_EXPERT, handlers, &n);
    dprintf(tell, "%s", server_endpoint(server));
    close(tell);
    struct link *link = server_link(server);
    io_threads_spin(spin_ns);
    for (;;) {
        link_wait(&link, 1, -1, clock_now_ns() + CLOCK_S, spin_ns);
        server_process(server, clock_now_ns());
    }
}

static void on_reply(void *ud, const struct reply *r)
{
    struct scene *s = ud;
    s->n_open--;
    if (r->code == 0 && r->n_payloads == 1)
        return;
    s->n_failed++;
    err_set(&s->why, r->code, "%s", r->text);
}

static int post_call(struct scene *s, struct channel *c)
{
    buf_reset(&s->message);
    wire_forward_encode(&s->forward, &s->message);
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                        .message = &s->message,
                        .payloads = s->payloads,
                        .n_payloads = 2,
                        .deadline_ns = clock_now_ns() + CONNECT_S * CLOCK_S,
                        .done = on_reply,
                        .ud = s};
    int rc = channel_call(c, &call, NULL);
    s->n_open += rc == 0;
    return rc;
}

/* ---- round trips -------------------------------------------------------------------------- */

/* To the first n nodes and back, in nanoseconds; negative: E_*. */
static int64_t round_trip(struct scene *s, struct party *p, int n)
{
    int64_t begun_ns = clock_now_ns();
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        if (p->variant->carrier != RAW)
            rc = post_call(s, p->channels[i]);
        else if (!send_all(p->sockets[i], s->scratch, s->request_bytes))
            rc = E_IO;
    }
    for (int i = 0; i < n && p->variant->carrier == RAW && rc == 0; i++)
        if (!receive_all(p->sockets[i], s->scratch, s->reply_bytes, p->spin_ns))
            rc = E_IO;
    while (s->n_open > 0) /* also when a post failed: nothing may come later */
        channel_wait(p->channels, n, -1, CLOCK_NEVER, p->spin_ns);
    if (rc < 0)
        return err_set(&s->why, rc, "%s", err_text(rc));
    return s->n_failed ? E_UNAVAILABLE : clock_now_ns() - begun_ns;
}

static int wait_connected(const struct options *o, struct party *p)
{
    int64_t deadline_ns = clock_now_ns() + CONNECT_S * CLOCK_S;
    for (int i = 0; i < o->nodes && p->variant->carrier != RAW; i++) {
        while (!channel_is_connected(p->channels[i]) && clock_now_ns() < deadline_ns)
            channel_wait(&p->channels[i], 1, -1, deadline_ns, 0);
        if (!channel_is_connected(p->channels[i]))
            return E_DEADLINE;
    }
    return 0;
}

/* A machine that stands still for longer than a heartbeat breaks connections; what was under way
 * is left out and told. */
static bool is_mended(struct scene *s, struct party *p)
{
    bool is_broken = s->why.code == E_UNAVAILABLE && ++s->n_broken <= MAX_BROKEN;
    s->n_failed = 0;
    return is_broken && wait_connected(&s->options, p) == 0;
}

static int take_turn(struct scene *s, struct party *p, int n, double *out, int *n_out)
{
    io_threads_spin(p->spin_ns);
    for (int i = 0; i < s->options.calls; i++) {
        int64_t ns = round_trip(s, p, n);
        if (ns < 0 && !is_mended(s, p))
            return (int)ns;
        if (ns < 0)
            continue;
        if (*n_out < MAX_SAMPLES && i >= s->options.calls / 10) /* the first wake things up */
            out[(*n_out)++] = (double)ns / CLOCK_US;
    }
    return 0;
}

static int measure(struct scene *s, struct err *e)
{
    for (int turn = 0; turn < s->options.turns; turn++)
        for (int v = s->first; v < s->end; v++) {
            struct party *p = &s->parties[v];
            int rc = take_turn(s, p, 1, p->one_us, &p->n_one);
            if (rc == 0)
                rc = take_turn(s, p, s->options.nodes, p->all_us, &p->n_all);
            if (rc < 0)
                return err_set(e, rc, "%s: a round trip failed: %s", p->variant->name,
                               s->why.code ? s->why.text : err_text(rc));
        }
    return 0;
}

/* ---- setting up --------------------------------------------------------------------------- */

/* The client is process 0, and has what is left over: who asks many has the most to do. */
static void take_cpus(const struct scene *s, int process)
{
    const struct cpus *all = cpus_of_process();
    int n_cpus = all->n - (s->net != NULL); /* the network's */
    int share = n_cpus / (s->options.nodes + 1), rest = n_cpus % (s->options.nodes + 1);
    int first = process ? process * share + rest : 0, n = process ? share : share + rest;
    char ids[32];
    if (!s->are_apart)
        return;
    snprintf(ids, sizeof ids, "%d-%d", all->ids[first], all->ids[first + n - 1]);
    (void)cpus_take(ids, NULL); /* refused: slower */
    cpus_pin_thread(0);
}

static int start_node(struct scene *s, struct party *p, int index, struct err *e)
{
    int ends[2];
    if (pipe(ends) < 0)
        return err_set_errno(e, errno, "pipe");
    pid_t pid = fork();
    if (pid < 0)
        return err_set_errno(e, errno, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(ends[0]);
        take_cpus(s, 1 + index);
        if (s->net && chaos_net_enter(s->net, 1 + index) < 0)
            _exit(1);
        int64_t spin_ns = s->are_apart ? p->spin_ns : 0;
        if (p->variant->carrier == RAW)
            serve_raw(s, host_of(s, index), spin_ns, ends[1]);
        serve_calls(s, host_of(s, index), p->variant->carrier == CURVE, spin_ns, ends[1]);
    }
    close(ends[1]);
    p->pids[index] = pid;
    size_t len = 0;
    for (ssize_t n;
         (n = read(ends[0], p->endpoints[index] + len, sizeof p->endpoints[index] - 1 - len)) > 0;)
        len += (size_t)n;
    close(ends[0]);
    return len > 0 ? 0 : err_set(e, E_INTERNAL, "%s: a node did not start", p->variant->name);
}

static int connect_node(struct scene *s, struct party *p, int index, struct err *e)
{
    if (p->variant->carrier == RAW) {
        p->sockets[index] = dial_raw(p->endpoints[index]);
        return p->sockets[index] < 0 ? err_set_errno(e, errno, "connect") : 0;
    }
    struct auth *auth = p->variant->carrier == CURVE ? s->auth : NULL;
    struct channel_options o = {.endpoint = p->endpoints[index],
                                .peer_name = p->variant->name,
                                .auth = auth,
                                .server_key = auth_server_key(auth)};
    return channel_open(&o, &p->channels[index], e);
}

static int make_keys(struct scene *s, struct err *e)
{
    snprintf(s->dir, sizeof s->dir, "/tmp/polymath-bench-XXXXXX");
    if (!mkdtemp(s->dir))
        return err_set_errno(e, errno, "%s", s->dir);
    static const char *const names[] = {"node", "client"};
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        struct key_pair k;
        rc = key_pair_new(names[i], &k, e);
        if (rc == 0)
            rc = key_pair_write(&k, s->dir, e);
    }
    return rc;
}

static void remove_keys(const struct scene *s)
{
    static const char *const names[] = {"node.key", "node.pub", "client.key", "client.pub"};
    for (int i = 0; i < 4 && s->dir[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", s->dir, names[i]);
        unlink(path);
    }
    if (s->dir[0])
        rmdir(s->dir);
}

/* A frame on a wire with keys: CURVE's command, nonce, flags and authenticator, ZMTP's flags and
 * length. */
static size_t sealed_bytes(size_t frame_bytes)
{
    size_t sealed = frame_bytes + 8 + 8 + 1 + 16;
    return sealed + (sealed > 255 ? 9 : 2);
}

/* The frames of one parcel, and how many bytes both ways are with their headers. */
static void make_call(struct scene *s)
{
    const struct options *o = &s->options;
    s->forward = (struct wire_forward){.fingerprint = 0x1234567890abcdef,
                                       .epoch = 1764000000,
                                       .step = 100000,
                                       .layer = 31,
                                       .n_rows = (uint32_t)o->rows,
                                       .hidden = (uint32_t)o->hidden,
                                       .n_routes = (uint32_t)(o->rows * TOP_K),
                                       .group = 128,
                                       .mode = COMBINE_FIXED};
    size_t rows_bytes = 0;
    (void)wire_forward_rows_bytes(&s->forward, &rows_bytes);
    size_t sizes[2] = {wire_forward_routes_bytes(s->forward.n_rows, s->forward.n_routes),
                       rows_bytes};
    struct buf buf = {0}, header = {0};
    static struct wire_call_header call = {
        .version = 1, .call_id = 1 << 20, .deadline_us = 9999999};
    static struct wire_reply_header reply = {.version = 1, .call_id = 1 << 20, .compute_us = 100};
    snprintf(call.method, sizeof call.method, "%s", wire_method(WIRE_EXPERT, EXPERT_FORWARD));
    wire_call_header_encode(&call, &header);
    wire_forward_encode(&s->forward, &buf);
    s->request_bytes = header.len + buf.len + sizes[0] + sizes[1];
    s->sealed_request_bytes = sealed_bytes(header.len) + sealed_bytes(buf.len) +
                              sealed_bytes(sizes[0]) + sealed_bytes(sizes[1]);
    wire_reply_header_encode(&reply, &header);
    buf_reset(&buf);
    encode_answer(s, &buf);
    s->reply_bytes = header.len + buf.len + answer_bytes(s);
    s->sealed_reply_bytes =
        sealed_bytes(header.len) + sealed_bytes(buf.len) + sealed_bytes(answer_bytes(s));
    for (int i = 0; i < 2; i++) {
        s->payloads[i] = blob_new(sizes[i]);
        memset(s->payloads[i]->data, 1, sizes[i]);
    }
    s->scratch = mem_alloc(s->request_bytes + s->reply_bytes);
    buf_fini(&buf);
    buf_fini(&header);
}

/* A frame waits at both ends of its way, twice in a round trip. */
static int open_net(struct scene *s, struct err *e)
{
    struct chaos_wire wire = {.delay_ns = s->options.delay_us * CLOCK_US / 4};
    int rc = chaos_net_open(s->options.nodes + 1, &wire, &s->net, e);
    if (rc == 0 && chaos_net_enter(s->net, 0) < 0)
        rc = err_set_errno(e, errno, "enter the client's host");
    return rc;
}

static int set_up(struct scene *s, struct err *e)
{
    int rc = make_keys(s, e);
    make_call(s);
    if (s->options.delay_us > 0 && rc == 0)
        rc = open_net(s, e);
    for (int v = s->first; v < s->end; v++) {
        struct party *p = &s->parties[v];
        p->variant = &variants[v];
        p->spin_ns = p->variant->spins ? s->options.spin_us * CLOCK_US : 0;
        p->one_us = mem_array(MAX_SAMPLES, sizeof(double));
        p->all_us = mem_array(MAX_SAMPLES, sizeof(double));
        /* All processes before the first thread, which would not survive a fork. */
        for (int i = 0; rc == 0 && i < s->options.nodes; i++)
            rc = start_node(s, p, i, e);
    }
    if (rc == 0 && s->net)
        rc = chaos_net_start(s->net, e);
    take_cpus(s, 0);
    char key[128], server[128];
    snprintf(key, sizeof key, "%s/client.key", s->dir);
    snprintf(server, sizeof server, "%s/node.pub", s->dir);
    struct auth_options a = {.key_file = key, .server_key = server, .is_client_only = true};
    if (rc == 0)
        rc = auth_start(&a, &s->auth, e);
    for (int v = s->first; v < s->end; v++)
        for (int i = 0; rc == 0 && i < s->options.nodes; i++)
            rc = connect_node(s, &s->parties[v], i, e);
    for (int v = s->first; v < s->end && rc == 0; v++)
        if (wait_connected(&s->options, &s->parties[v]) < 0)
            rc = err_set(e, E_DEADLINE, "%s: no connection", variants[v].name);
    return rc;
}

static void tear_down(struct scene *s)
{
    for (int v = s->first; v < s->end; v++) {
        struct party *p = &s->parties[v];
        for (int i = 0; i < s->options.nodes; i++) {
            if (p->channels[i])
                channel_close(&p->channels[i]);
            if (p->sockets[i] > 0)
                close(p->sockets[i]);
            if (p->pids[i] > 0) {
                kill(p->pids[i], SIGKILL);
                waitpid(p->pids[i], NULL, 0);
            }
        }
        mem_free(p->one_us);
        mem_free(p->all_us);
    }
    auth_stop(&s->auth);
    chaos_net_close(&s->net);
    remove_keys(s);
    for (int i = 0; i < 2; i++)
        blob_unref(&s->payloads[i]);
    buf_fini(&s->message);
    mem_free(s->scratch);
}

/* ---- telling ------------------------------------------------------------------------------ */

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double at_share(const double *sorted, int n, double share)
{
    return n ? sorted[(int)(share * (n - 1))] : 0;
}

/* What must travel: 8-bit rows with a float for each group of 128, a route's expert and weight
 * and two numbers for each row; one int32 for each column back.  The rest is the wire's. */
static void print_bytes(const struct scene *s)
{
    const struct options *o = &s->options;
    size_t row = (size_t)o->hidden + (size_t)(o->hidden / 128) * 4 + 2 * 2 + TOP_K * (2 + 4);
    double there = (double)row * o->rows, back = (double)answer_bytes(s);
    printf("a Forward of %d row%s of %d and its answer: %.0f bytes must travel there, %.0f back\n",
           o->rows, o->rows == 1 ? "" : "s", o->hidden, there, back);
    const struct {
        const char *what;
        size_t request, reply;
    } wires[] = {{"with headers", s->request_bytes, s->reply_bytes},
                 {"with CURVE", s->sealed_request_bytes, s->sealed_reply_bytes}};
    for (int i = 0; i < 2; i++) {
        double request = (double)wires[i].request, reply = (double)wires[i].reply;
        printf("%-12s  %.0f there (%+.1f %%), %.0f back (%+.1f %%), both ways %+.1f %%\n",
               wires[i].what, request, 100 * (request / there - 1), reply, 100 * (reply / back - 1),
               100 * ((request + reply) / (there + back) - 1));
    }
}

static void print(struct scene *s)
{
    const struct options *o = &s->options;
    print_bytes(s);
    printf("%d processes for each variant, %d us away, spinning for %d us; %ld CPUs, %s; %d round "
           "trips "
           "each\n\n"
           "%-16s %9s %9s %9s  %6s  |%9s %9s %9s  %6s  %s\n",
           o->nodes, o->delay_us, o->spin_us, sysconf(_SC_NPROCESSORS_ONLN),
           s->are_apart ? "one for each" : "shared: only the asking process spins",
           s->parties[0].n_one, "round trips, us", "median", "p10", "p99", "x tcp", "median", "p10",
           "p99", "x tcp", "x one");
    for (int v = 0; v < N_VARIANTS; v++) {
        struct party *p = &s->parties[v];
        qsort(p->one_us, (size_t)p->n_one, sizeof(double), compare);
        qsort(p->all_us, (size_t)p->n_all, sizeof(double), compare);
    }
    for (int v = 0; v < N_VARIANTS; v++) {
        const struct party *p = &s->parties[v], *tcp = &s->parties[0];
        double one = at_share(p->one_us, p->n_one, 0.5), all = at_share(p->all_us, p->n_all, 0.5);
        printf("%-16s %9.1f %9.1f %9.1f  %6.2f  |%9.1f %9.1f %9.1f  %6.2f  %5.2f\n",
               p->variant->name, one, at_share(p->one_us, p->n_one, 0.1),
               at_share(p->one_us, p->n_one, 0.99), one / at_share(tcp->one_us, tcp->n_one, 0.5),
               all, at_share(p->all_us, p->n_all, 0.1), at_share(p->all_us, p->n_all, 0.99),
               all / at_share(tcp->all_us, tcp->n_all, 0.5), all / one);
    }
    printf(
        "\nleft of the bar: one node; right: all %d, posted before any answer is awaited\n"
        "x tcp: beside bare blocking TCP with the same bytes and as many nodes; x one: beside one "
        "node\n",
        o->nodes);
    if (s->n_broken > 0)
        printf("connections broke %d times: something stood still for 1.5 s\n", s->n_broken);
}

static void usage(FILE *out)
{
    fputs("usage: polymath bench rpc [OPTION]...\n\n"
          "Round trips of a Forward without its experts, beside bare TCP in the same run.\n\n"
          "  --nodes N     answering processes (8)\n"
          "  --rows N      rows of the parcel (1)\n"
          "  --hidden N    of the model (3072)\n"
          "  --spin-us N   how long to look before sleeping, where it spins (50)\n"
          "  --turns N     of every variant (20)\n"
          "  --calls N     round trips of a turn (100)\n"
          "  --delay-us N  hosts of their own, N us apart there and back (0: one host; root)\n",
          out);
}

static int parse(int argc, char **argv, struct options *o)
{
    static const struct option long_options[] = {{"nodes", required_argument, NULL, 'n'},
                                                 {"rows", required_argument, NULL, 'r'},
                                                 {"hidden", required_argument, NULL, 'd'},
                                                 {"spin-us", required_argument, NULL, 's'},
                                                 {"turns", required_argument, NULL, 't'},
                                                 {"calls", required_argument, NULL, 'c'},
                                                 {"delay-us", required_argument, NULL, 'w'},
                                                 {"help", no_argument, NULL, 'h'},
                                                 {0}};
    *o = (struct options){
        .nodes = 8, .rows = 1, .hidden = 3072, .turns = 20, .calls = 100, .spin_us = 50};
    optind = 1;
    for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        int *target = c == 'n'   ? &o->nodes
                      : c == 'r' ? &o->rows
                      : c == 'd' ? &o->hidden
                      : c == 's' ? &o->spin_us
                      : c == 't' ? &o->turns
                      : c == 'c' ? &o->calls
                      : c == 'w' ? &o->delay_us
                                 : NULL;
        if (c == 'h') {
            usage(stdout);
            return 1;
        }
        if (!target)
            return E_INVALID;
        *target = atoi(optarg);
    }
    bool is_good = optind == argc && o->nodes >= 1 && o->nodes <= MAX_NODES && o->rows >= 1 &&
                   o->rows <= 1024 && o->hidden >= 128 && o->hidden <= 65536 && o->turns >= 1 &&
                   o->calls >= 10 && o->spin_us >= 0 && o->spin_us <= 1000000 && o->delay_us >= 0 &&
                   o->delay_us <= 1000000 && (o->delay_us == 0 || o->nodes < CHAOS_NET_MAX_HOSTS);
    if (!is_good)
        usage(stderr);
    return is_good ? 0 : E_INVALID;
}

int bench_rpc_main(int argc, char **argv)
{
    struct scene *s = mem_alloc(sizeof *s);
    struct err e = {0};
    int rc = parse(argc, argv, &s->options);
    if (rc != 0) {
        mem_free(s);
        return rc < 0 ? 2 : 0;
    }
    log_init("bench", LOG_ERROR);
    s->end = N_VARIANTS;
    s->are_apart = cpus_of_process()->n > s->options.nodes + (s->options.delay_us > 0);
    rc = set_up(s, &e);
    if (rc == 0)
        rc = measure(s, &e);
    if (rc == 0)
        print(s);
    else
        fprintf(stderr, "polymath bench rpc: %s\n", e.text);
    tear_down(s);
    mem_free(s);
    return rc < 0 ? 1 : 0;
}

int bench_rpc_round_trips(const struct bench_rpc_case *c, double *us, struct err *e)
{
    enum { CALL_BLOCKING = 2 };
    struct scene *s = mem_alloc(sizeof *s);
    s->options = (struct options){
        .nodes = c->nodes, .rows = c->rows, .hidden = c->hidden, .turns = 1, .calls = c->calls};
    s->first = CALL_BLOCKING;
    s->end = CALL_BLOCKING + 1;
    struct party *p = &s->parties[CALL_BLOCKING];
    int rc = set_up(s, e);
    for (int n = 1; n <= c->nodes && rc == 0; n++) {
        p->n_all = 0;
        rc = take_turn(s, p, n, p->all_us, &p->n_all);
        if (rc < 0)
            err_set(e, rc, "a round trip failed: %s", s->why.code ? s->why.text : err_text(rc));
        qsort(p->all_us, (size_t)p->n_all, sizeof(double), compare);
        us[n - 1] = at_share(p->all_us, p->n_all, c->share);
    }
    tear_down(s);
    mem_free(s);
    return rc;
}
