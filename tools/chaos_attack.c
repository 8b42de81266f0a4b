/* tools/chaos_attack.c - see chaos_attack.h. */
#include "tools/chaos_attack.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "rpc/link.h"
#include "rpc/wire.h"

enum { MAX_TARGETS = 160, NOISE_BYTES = 70000, MAX_HELD = 48, MESSAGES = 40, CONNECT_MS = 100 };

struct attack {
    struct chaos_attack_options options;
    char *targets[MAX_TARGETS];
    int n_targets;
    struct rng rng;
    uint8_t noise[NOISE_BYTES];
    int held[MAX_HELD]; /* connections that say nothing more; -1: none */
    int64_t n, until_ns;
};

static bool is_over(const struct attack *a)
{
    struct pollfd p = {.fd = a->options.signal_fd, .events = POLLIN};
    return poll(&p, 1, 0) > 0 || clock_now_ns() >= a->until_ns;
}

static uint64_t below(struct attack *a, uint64_t n)
{
    return rng_below(&a->rng, n);
}

/* Bits turned, bytes cut off or put behind; sometimes nothing. */
static void damage(struct attack *a, struct buf *b)
{
    uint64_t n = below(a, 4);
    for (uint64_t i = 0; i < n && b->len > 0; i++)
        b->data[below(a, b->len)] ^= (char)(1 << below(a, 8));
    if (b->len > 0 && below(a, 4) == 0)
        b->len = below(a, b->len);
    if (below(a, 8) == 0)
        buf_append(b, a->noise + below(a, NOISE_BYTES / 2), below(a, 3000));
}

/* ---- frames --------------------------------------------------------------------------------- */

/* A request that some program of ours understands, of a node or a caller that does not exist. */
static void encode_some(struct attack *a, struct buf *message, const char **method)
{
    uint64_t id = rng_next(&a->rng);
    uint32_t node = (uint32_t)below(a, 8);
    struct wire_join join = {.role = (enum node_role)below(a, 3),
                             .name = "expert-0",
                             .endpoint = "tcp://127.0.0.1:9",
                             .host = "elsewhere",
                             .incarnation = id,
                             .fingerprint = id | 1,
                             .kernels = "portable",
                             .build = "none",
                             .memory_bytes = id,
                             .max_rows = 8};
    struct wire_heartbeat beat = {.node_id = node, .incarnation = id, .state = NODE_READY};
    struct wire_leave leave = {.node_id = node, .incarnation = id, .reason = "none"};
    struct wire_holdings_request holdings = {.node_id = node};
    struct wire_forward forward = {.fingerprint = id,
                                   .epoch = id,
                                   .n_rows = 1u << below(a, 32),
                                   .hidden = 1u << below(a, 32),
                                   .n_routes = 1u << below(a, 32),
                                   .mode = COMBINE_FIXED};
    struct wire_release release = {.n_seqs = 1, .seqs = &id};
    switch (below(a, 8)) {
    case 0:
        wire_join_encode(&join, message);
        *method = wire_method(WIRE_CLUSTER, CLUSTER_JOIN);
        return;
    case 1:
        wire_heartbeat_encode(&beat, message);
        *method = wire_method(WIRE_CLUSTER, CLUSTER_HEARTBEAT);
        return;
    case 2:
        wire_leave_encode(&leave, message);
        *method = wire_method(WIRE_CLUSTER, CLUSTER_LEAVE);
        return;
    case 3:
        wire_holdings_request_encode(&holdings, message);
        *method = wire_method(WIRE_CLUSTER, CLUSTER_HOLDINGS);
        return;
    case 4:
        *method = wire_method(WIRE_CLUSTER, (int)below(a, CLUSTER_METHODS));
        return;
    case 5:
        wire_forward_encode(&forward, message);
        *method = wire_method(WIRE_EXPERT, EXPERT_FORWARD);
        return;
    case 6:
        wire_release_encode(&release, message);
        *method = wire_method(WIRE_ATTENTION, ATTENTION_RELEASE);
        return;
    default:
        *method = wire_method(WIRE_EXPERT, EXPERT_DESCRIBE);
        return;
    }
}

/* A call with damaged header, message and payloads. */
static void send_call(struct attack *a, struct link *l)
{
    static struct wire_call_header header;
    struct buf head = {0}, message = {0};
    const char *method = NULL;
    encode_some(a, &message, &method);
    header = (struct wire_call_header){.version = below(a, 10) ? 1 : (uint32_t)below(a, 9),
                                       .flags = (uint32_t)below(a, 8),
                                       .call_id = below(a, 100),
                                       .deadline_us = below(a, 1000000)};
    snprintf(header.method, sizeof header.method, "%s", method);
    wire_call_header_encode(&header, &head);
    damage(a, &head);
    damage(a, &message);
    struct frame frames[LINK_MAX_FRAMES] = {{head.data, head.len}, {message.data, message.len}};
    int n = 2 + (int)below(a, 4);
    for (int k = 2; k < n; k++)
        frames[k] = (struct frame){a->noise, below(a, NOISE_BYTES)};
    link_send(l, &(struct link_send){.frames = frames, .n_frames = n});
    buf_fini(&head);
    buf_fini(&message);
}

static void send_noise(struct attack *a, struct link *l)
{
    struct frame frames[LINK_MAX_FRAMES];
    int n = 1 + (int)below(a, LINK_MAX_FRAMES);
    for (int k = 0; k < n; k++) {
        size_t size = below(a, 20) ? below(a, 200) : below(a, NOISE_BYTES / 2);
        frames[k] = (struct frame){a->noise + below(a, NOISE_BYTES - size), size};
    }
    link_send(l, &(struct link_send){.frames = frames, .n_frames = n});
}

static void as_peer(struct attack *a, const char *endpoint)
{
    struct link *l = NULL;
    struct link_options o = {.role = LINK_CLIENT, .endpoint = endpoint};
    if (link_open(&o, &l, NULL) < 0)
        return;
    int64_t deadline_ns = clock_now_ns() + CONNECT_MS * CLOCK_MS;
    a->n++; /* where there are keys, it ends with the handshake */
    while (!link_is_connected(l) && clock_now_ns() < deadline_ns) {
        link_wait(&l, 1, -1, clock_now_ns() + 10 * CLOCK_MS, 0);
        link_next_event(l);
    }
    for (int i = 0; i < MESSAGES && link_is_connected(l); i++) {
        if (below(a, 2))
            send_call(a, l);
        else
            send_noise(a, l);
        a->n++;
        struct message m = {0};
        while (link_receive(l, &m) == 0)
            message_fini(&m);
        link_wait(&l, 1, -1, clock_now_ns() + CLOCK_MS, 0);
        link_next_event(l);
    }
    link_close(&l);
}

/* ---- bytes ------------------------------------------------------------------------------------ */

static int dial_unix(const char *path)
{
    struct sockaddr_un u = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    snprintf(u.sun_path, sizeof u.sun_path, "%s", path);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&u, sizeof u) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static int dial_tcp(const char *host_port)
{
    const char *colon = strrchr(host_port, ':');
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST}, *found;
    if (!colon)
        return -1;
    snprintf(host, sizeof host, "%.*s", (int)(colon - host_port), host_port);
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0)
        return -1;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval soon = {.tv_usec = CONNECT_MS * 1000};
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon);
    bool fine = fd >= 0 && connect(fd, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
    if (!fine && fd >= 0)
        close(fd);
    return fine ? fd : -1;
}

/* tcp://, ipc:// or http:// */
static int dial(const char *target)
{
    const char *rest = strstr(target, "://");
    if (!rest)
        return -1;
    return strncmp(target, "ipc:", 4) == 0 ? dial_unix(rest + 3) : dial_tcp(rest + 3);
}

/* What a peer says first, or nearly. */
static void opening(struct attack *a, bool is_http, struct buf *out)
{
    static const char greeting[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL";
    static const char *const requests[] = {
        "GET /cluster HTTP/1.1\r\nHost: x\r\n\r\n",
        ("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 51\r\n\r\n"
         "{\"prompt\":[5,6,7],\"max_tokens\":1,\"temperature\":0.5}"),
        ("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
         "Content-Length: 5\r\n\r\nfffffffffffffff\r\n{}"),
        "GET /v1/streams/cmpl-1 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: -1\r\n\r\n",
    };
    if (below(a, 3) == 0) {
        size_t n = below(a, 4000);
        buf_append(out, a->noise + below(a, NOISE_BYTES - n), n);
    } else if (is_http) {
        buf_puts(out, requests[below(a, sizeof requests / sizeof requests[0])]);
        damage(a, out);
    } else {
        buf_append(out, greeting, sizeof greeting);
        buf_append(out, "\4\x19\5READY\xbSocket-Type\0\0\0\6DEALER", below(a, 28));
        damage(a, out);
    }
}

static void as_anybody(struct attack *a, const char *target)
{
    int fd = dial(target);
    if (fd < 0)
        return;
    struct buf bytes = {0};
    char answer[512];
    opening(a, strncmp(target, "http:", 5) == 0, &bytes);
    if (bytes.len > 0 && send(fd, bytes.data, bytes.len, MSG_NOSIGNAL) > 0 && below(a, 2)) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 5) > 0 && recv(fd, answer, sizeof answer, MSG_DONTWAIT) < 0)
            a->n--; /* it has hung up on us before we had tried */
    }
    buf_fini(&bytes);
    a->n++;
    struct linger at_once = {.l_onoff = 1};
    if (below(a, 3) == 0)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    if (below(a, 3) == 0) { /* stays, in place of one that stayed before */
        int *place = &a->held[below(a, MAX_HELD)], old = *place;
        *place = fd;
        fd = old;
    }
    if (fd >= 0)
        close(fd);
}

/* ---- all ---------------------------------------------------------------------------------------- */

static void take_targets(struct attack *a)
{
    for (const char *at = a->options.targets; *at && a->n_targets < MAX_TARGETS; at += *at == ',') {
        size_t n = strcspn(at, ",");
        a->targets[a->n_targets++] = str_copy((struct str){at, n});
        at += n;
    }
}

int chaos_attack(const struct chaos_attack_options *o)
{
    struct attack *a = mem_alloc(sizeof *a);
    a->options = *o;
    a->rng = rng_seed(o->seed);
    a->until_ns = o->seconds ? clock_now_ns() + o->seconds * CLOCK_S : CLOCK_NEVER;
    take_targets(a);
    for (int i = 0; i < NOISE_BYTES; i++)
        a->noise[i] = (uint8_t)rng_next(&a->rng);
    for (int i = 0; i < MAX_HELD; i++)
        a->held[i] = -1;
    while (a->n_targets > 0 && !is_over(a)) {
        const char *target = a->targets[below(a, (uint64_t)a->n_targets)];
        if (strncmp(target, "http:", 5) == 0 || below(a, 2))
            as_anybody(a, target);
        else
            as_peer(a, target);
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    }
    printf("attacks=%lld\n", (long long)a->n);
    for (int i = 0; i < MAX_HELD; i++)
        if (a->held[i] >= 0)
            close(a->held[i]);
    for (int i = 0; i < a->n_targets; i++)
        mem_free(a->targets[i]);
    mem_free(a);
    return 0;
}
