/* tools/chaos_net.c - see chaos_net.h. */
#include "tools/chaos_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "base/stats.h"
#include "base/thread.h"

enum { FRAME_BYTES = 2048, QUEUE_FRAMES = 2048, BURST_FRAMES = 64, MAC_BYTES = 6 };

struct frame {
    int64_t due_ns;
    int size;
    uint8_t bytes[FRAME_BYTES];
};

/* Frames on their way to one host, in the order in which they leave. */
struct queue_to {
    struct frame *frames; /* [QUEUE_FRAMES] */
    unsigned head, tail;
};

struct host {
    int net_fd, tap_fd;
    char address[24];
    /* struct chaos_wire, word by word: written by the main thread */
    _Atomic int64_t delay_ns, jitter_ns;
    _Atomic int loss_permille;
    _Atomic bool is_cut;
    struct queue_to queue;
};

struct chaos_net {
    struct host hosts[CHAOS_NET_MAX_HOSTS];
    int n_hosts, home_fd; /* where this process came from */
    struct thread *thread;
    struct rng rng; /* of the switch's thread */
    struct stats_counter frames, lost, cut, overflows;
};

/* ---- hosts ------------------------------------------------------------------------------- */

static int set_flags(int fd, const char *name)
{
    struct ifreq r = {0};
    snprintf(r.ifr_name, sizeof r.ifr_name, "%s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &r) < 0)
        return -1;
    r.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(fd, SIOCSIFFLAGS, &r);
}

static int set_address(int fd, unsigned long request, const char *address)
{
    struct ifreq r = {.ifr_name = "eth0"};
    struct sockaddr_in in = {.sin_family = AF_INET};
    inet_pton(AF_INET, address, &in.sin_addr);
    memcpy(&r.ifr_addr, &in, sizeof in);
    return ioctl(fd, request, &r);
}

/* Host i has the hardware address 02:00:00:00:00:i, by which the switch knows it. */
static int set_hardware_address(int fd, int host)
{
    struct ifreq r = {.ifr_name = "eth0"};
    r.ifr_hwaddr.sa_family = 1; /* ARPHRD_ETHER */
    r.ifr_hwaddr.sa_data[0] = 2;
    r.ifr_hwaddr.sa_data[5] = (char)host;
    return ioctl(fd, SIOCSIFHWADDR, &r);
}

static int configure(const struct host *h, int index)
{
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int rc = set_hardware_address(fd, index);
    if (rc == 0)
        rc = set_address(fd, SIOCSIFADDR, h->address);
    if (rc == 0)
        rc = set_address(fd, SIOCSIFNETMASK, "255.255.255.0");
    if (rc == 0)
        rc = set_flags(fd, "eth0");
    if (rc == 0)
        rc = set_flags(fd, "lo");
    int saved = errno;
    close(fd);
    errno = saved;
    return rc;
}

/* In the new namespace. */
static int open_tap(struct host *h)
{
    struct ifreq r = {.ifr_name = "eth0", .ifr_flags = IFF_TAP | IFF_NO_PI};
    h->tap_fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    return h->tap_fd < 0 ? -1 : ioctl(h->tap_fd, TUNSETIFF, &r);
}

static int open_host(struct host *h, int index, struct err *e)
{
    snprintf(h->address, sizeof h->address, "10.77.0.%d", 10 + index);
    if (unshare(CLONE_NEWNET) < 0)
        return err_set_errno(e, errno,
                             "network namespaces are not permitted here (root is needed)");
    h->net_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (h->net_fd < 0)
        return err_set_errno(e, errno, "/proc/thread-self/ns/net");
    if (open_tap(h) < 0)
        return err_set_errno(e, errno, "/dev/net/tun cannot make an interface");
    if (configure(h, index) < 0)
        return err_set_errno(e, errno, "configure the interface of host %d", index);
    h->queue.frames = mem_array(QUEUE_FRAMES, sizeof *h->queue.frames);
    return 0;
}

/* ---- the switch ---------------------------------------------------------------------------- */

/* true: this wire lets the frame pass. */
static bool passes(struct chaos_net *net, const struct host *h)
{
    if (h->is_cut) {
        stats_add(&net->cut, 1);
        return false;
    }
    if (h->loss_permille > 0 && (int)rng_below(&net->rng, 1000) < h->loss_permille) {
        stats_add(&net->lost, 1);
        return false;
    }
    return true;
}

static int64_t wait_of(struct chaos_net *net, const struct host *h)
{
    int64_t jitter_ns = h->jitter_ns;
    return h->delay_ns + (jitter_ns > 0 ? (int64_t)rng_below(&net->rng, (uint64_t)jitter_ns) : 0);
}

static void enqueue(struct chaos_net *net, const struct host *from, struct host *to,
                    const struct frame *f, int64_t now_ns)
{
    struct queue_to *q = &to->queue;
    if (!passes(net, from) || !passes(net, to))
        return;
    if (q->tail - q->head == QUEUE_FRAMES) {
        stats_add(&net->overflows, 1);
        return;
    }
    int64_t due_ns = now_ns + wait_of(net, from) + wait_of(net, to);
    if (q->tail != q->head && due_ns < q->frames[(q->tail - 1) % QUEUE_FRAMES].due_ns)
        due_ns = q->frames[(q->tail - 1) % QUEUE_FRAMES].due_ns;
    struct frame *slot = &q->frames[q->tail++ % QUEUE_FRAMES];
    slot->due_ns = due_ns;
    slot->size = f->size;
    memcpy(slot->bytes, f->bytes, (size_t)f->size);
    stats_add(&net->frames, 1);
}

static void forward(struct chaos_net *net, int from, const struct frame *f, int64_t now_ns)
{
    static const uint8_t ours[MAC_BYTES - 1] = {2};
    if (f->size < 2 * MAC_BYTES)
        return;
    int to = f->bytes[MAC_BYTES - 1];
    if (memcmp(f->bytes, ours, sizeof ours) == 0 && to < net->n_hosts) {
        enqueue(net, &net->hosts[from], &net->hosts[to], f, now_ns);
    } else if (f->bytes[0] & 1) { /* to all: who has which address */
        for (int i = 0; i < net->n_hosts; i++)
            if (i != from)
                enqueue(net, &net->hosts[from], &net->hosts[i], f, now_ns);
    }
}

static void receive(struct chaos_net *net, int from)
{
    struct frame f;
    for (int i = 0; i < BURST_FRAMES; i++) {
        ssize_t n = read(net->hosts[from].tap_fd, f.bytes, sizeof f.bytes);
        if (n <= 0)
            return;
        f.size = (int)n;
        forward(net, from, &f, clock_now_ns());
    }
}

/* Sends what is due; the next due time of all hosts. */
static int64_t deliver(struct chaos_net *net)
{
    int64_t next_ns = CLOCK_NEVER;
    for (int i = 0; i < net->n_hosts; i++) {
        struct queue_to *q = &net->hosts[i].queue;
        while (q->head != q->tail) {
            struct frame *f = &q->frames[q->head % QUEUE_FRAMES];
            if (f->due_ns > clock_now_ns()) {
                next_ns = f->due_ns < next_ns ? f->due_ns : next_ns;
                break;
            }
            /* a full interface drops, as a real one does */
            if (write(net->hosts[i].tap_fd, f->bytes, (size_t)f->size) < 0)
                stats_add(&net->overflows, 1);
            q->head++;
        }
    }
    return next_ns;
}

static void switch_main(struct thread *t, void *arg)
{
    struct chaos_net *net = arg;
    struct pollfd polls[CHAOS_NET_MAX_HOSTS];
    for (int i = 0; i < net->n_hosts; i++)
        polls[i] = (struct pollfd){.fd = net->hosts[i].tap_fd, .events = POLLIN};
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t)) {
        int64_t now_ns = clock_now_ns(), next_ns = deliver(net);
        int64_t wait_ns = next_ns - now_ns < 50 * CLOCK_MS ? next_ns - now_ns : 50 * CLOCK_MS;
        wait_ns = wait_ns > 0 ? wait_ns : 0;
        struct timespec wait = {.tv_nsec = wait_ns};
        if (ppoll(polls, (nfds_t)net->n_hosts, &wait, NULL) > 0)
            for (int i = 0; i < net->n_hosts; i++)
                if (polls[i].revents)
                    receive(net, i);
    }
}

/* ---- the interface -------------------------------------------------------------------------- */

static int open_hosts(struct chaos_net *net, int n_hosts, struct err *e)
{
    net->home_fd = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (net->home_fd < 0)
        return err_set_errno(e, errno, "/proc/thread-self/ns/net");
    int rc = 0;
    while (rc == 0 && net->n_hosts < n_hosts) {
        rc = open_host(&net->hosts[net->n_hosts], net->n_hosts, e);
        net->n_hosts++;
    }
    must_zero(setns(net->home_fd, CLONE_NEWNET));
    return rc;
}

int chaos_net_open(int n_hosts, const struct chaos_wire *wire, struct chaos_net **out,
                   struct err *e)
{
    must(n_hosts <= CHAOS_NET_MAX_HOSTS);
    struct chaos_net *net = mem_alloc(sizeof *net);
    net->home_fd = -1;
    net->rng = rng_seed(1);
    for (int i = 0; i < n_hosts; i++)
        net->hosts[i].net_fd = net->hosts[i].tap_fd = -1;
    int rc = open_hosts(net, n_hosts, e);
    for (int i = 0; i < n_hosts && rc == 0; i++)
        chaos_net_set(net, i, wire);
    if (rc < 0)
        chaos_net_close(&net);
    *out = net;
    return rc;
}

int chaos_net_start(struct chaos_net *net, struct err *e)
{
    must(!net->thread);
    return thread_start("switch", switch_main, net, &net->thread, e);
}

void chaos_net_close(struct chaos_net **n)
{
    struct chaos_net *net = *n;
    if (!net)
        return;
    if (net->thread)
        thread_stop(&net->thread, NULL, NULL);
    if (net->home_fd >= 0) {
        must_zero(setns(net->home_fd, CLONE_NEWNET));
        close(net->home_fd);
    }
    for (int i = 0; i < net->n_hosts; i++) {
        if (net->hosts[i].net_fd >= 0)
            close(net->hosts[i].net_fd);
        if (net->hosts[i].tap_fd >= 0)
            close(net->hosts[i].tap_fd);
        mem_free(net->hosts[i].queue.frames);
    }
    mem_free(net);
    *n = NULL;
}

int chaos_net_enter(const struct chaos_net *net, int host)
{
    return setns(net->hosts[host].net_fd, CLONE_NEWNET);
}

const char *chaos_net_address(const struct chaos_net *net, int host)
{
    return net->hosts[host].address;
}

void chaos_net_set(struct chaos_net *net, int host, const struct chaos_wire *wire)
{
    struct host *h = &net->hosts[host];
    h->delay_ns = wire->delay_ns;
    h->jitter_ns = wire->jitter_ns;
    h->loss_permille = wire->loss_permille;
    h->is_cut = wire->is_cut;
}

void chaos_net_count(const struct chaos_net *net, struct chaos_net_counters *out)
{
    *out = (struct chaos_net_counters){stats_read(&net->frames), stats_read(&net->lost),
                                       stats_read(&net->cut), stats_read(&net->overflows)};
}
