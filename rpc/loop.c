/* rpc/loop.c - one thread's event loop.  Owner: the thread that opened it.
 *
 * Callbacks may add and remove anything, their own entry too: during a turn removed
 * entries only lose their callback, added ones wait for the next turn, and the holes are
 * closed at the turn's end. */
#include "rpc/loop.h"

#include <limits.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"

struct entry {
    struct link *link; /* or NULL: `fd` */
    int fd;
    loop_callback *cb; /* NULL: removed */
    void *ud;
    int first_item; /* its place in `items` in this turn */
};

struct loop {
    struct owner owner;
    struct entry *entries;
    int n_entries, entries_size;
    struct loop_timer **timers;
    int n_timers, timers_size;
    zmq_pollitem_t *items;
    int items_size;
    bool is_stopped, is_turning;
    loop_callback *gate;
    void *gate_ud;
};

int loop_open(struct loop **out, struct err *e)
{
    (void)e;
    struct loop *l = mem_alloc(sizeof(*l));
    owner_take(&l->owner);
    *out = l;
    return 0;
}

void loop_close(struct loop **loop)
{
    struct loop *l = *loop;
    if (!l)
        return;
    *loop = NULL;
    must_own(l);
    must(!l->is_turning);
    for (int i = 0; i < l->n_timers; i++)
        if (l->timers[i])
            l->timers[i]->added = false;
    mem_free(l->entries);
    mem_free(l->timers);
    mem_free(l->items);
    mem_free(l);
}

static void add_entry(struct loop *l, struct entry entry)
{
    must_own(l);
    must(entry.cb);
    if (l->n_entries == l->entries_size) {
        l->entries_size = l->entries_size ? l->entries_size * 2 : 8;
        l->entries = mem_resize(l->entries, (size_t)l->entries_size * sizeof(*l->entries));
    }
    l->entries[l->n_entries++] = entry;
}

/* Closes the holes that removals left; only between turns. */
static void close_holes(struct loop *l)
{
    int n = 0;
    for (int i = 0; i < l->n_entries; i++)
        if (l->entries[i].cb)
            l->entries[n++] = l->entries[i];
    l->n_entries = n;
    n = 0;
    for (int i = 0; i < l->n_timers; i++)
        if (l->timers[i])
            l->timers[n++] = l->timers[i];
    l->n_timers = n;
}

static void remove_entry(struct loop *l, const struct link *link, int fd)
{
    must_own(l);
    for (int i = 0; i < l->n_entries; i++) {
        struct entry *entry = &l->entries[i];
        if (entry->cb && entry->link == link && entry->fd == fd)
            entry->cb = NULL;
    }
    if (!l->is_turning)
        close_holes(l);
}

void loop_add_link(struct loop *l, struct link *link, loop_callback *cb, void *ud)
{
    add_entry(l, (struct entry){.link = link, .fd = -1, .cb = cb, .ud = ud});
}

void loop_remove_link(struct loop *l, struct link *link)
{
    remove_entry(l, link, -1);
}

void loop_add_fd(struct loop *l, int fd, loop_callback *cb, void *ud)
{
    must(fd >= 0);
    add_entry(l, (struct entry){.fd = fd, .cb = cb, .ud = ud});
}

void loop_remove_fd(struct loop *l, int fd)
{
    remove_entry(l, NULL, fd);
}

void loop_set_timer(struct loop *l, struct loop_timer *t, int64_t deadline_ns)
{
    must_own(l);
    must(t->cb);
    t->deadline_ns = deadline_ns;
    if (t->added)
        return;
    if (l->n_timers == l->timers_size) {
        l->timers_size = l->timers_size ? l->timers_size * 2 : 8;
        l->timers = mem_resize(l->timers, (size_t)l->timers_size * sizeof(struct loop_timer *));
    }
    l->timers[l->n_timers++] = t;
    t->added = true;
}

void loop_remove_timer(struct loop *l, struct loop_timer *t)
{
    must_own(l);
    for (int i = 0; i < l->n_timers; i++)
        if (l->timers[i] == t)
            l->timers[i] = NULL;
    t->added = false;
    if (!l->is_turning)
        close_holes(l);
}

void loop_set_gate(struct loop *l, loop_callback *cb, void *ud)
{
    must_own(l);
    l->gate = cb;
    l->gate_ud = ud;
}

static int64_t next_deadline_ns(const struct loop *l, int64_t deadline_ns)
{
    for (int i = 0; i < l->n_entries; i++)
        if (l->entries[i].link && link_has_news(l->entries[i].link))
            return 0;
    for (int i = 0; i < l->n_timers; i++)
        if (l->timers[i]->deadline_ns < deadline_ns)
            deadline_ns = l->timers[i]->deadline_ns;
    return deadline_ns;
}

static int fill_items(struct loop *l)
{
    if (l->items_size < 2 * l->n_entries) {
        l->items_size = 2 * l->entries_size;
        l->items = mem_resize(l->items, (size_t)l->items_size * sizeof(*l->items));
    }
    int n = 0;
    for (int i = 0; i < l->n_entries; i++) {
        struct entry *entry = &l->entries[i];
        entry->first_item = n;
        if (!entry->link) {
            l->items[n++] = (zmq_pollitem_t){.fd = entry->fd, .events = ZMQ_POLLIN};
            continue;
        }
        void *sockets[2] = {link_socket(entry->link), link_monitor(entry->link)};
        for (int k = 0; k < 2 && sockets[k]; k++)
            l->items[n++] = (zmq_pollitem_t){.socket = sockets[k], .events = ZMQ_POLLIN};
    }
    return n;
}

static void run_timers(struct loop *l, int64_t now_ns)
{
    int n = l->n_timers;
    for (int i = 0; i < n; i++) {
        struct loop_timer *t = l->timers[i];
        if (!t || t->deadline_ns > now_ns)
            continue;
        t->deadline_ns = CLOCK_NEVER;
        t->cb(t->ud, now_ns);
    }
}

static void run_entries(struct loop *l, int n_entries, int n_items, int64_t now_ns)
{
    for (int i = 0; i < n_entries; i++) {
        /* Anew each time: a callback that adds an entry may move the array. */
        const struct entry *entry = &l->entries[i];
        int end = i + 1 < n_entries ? l->entries[i + 1].first_item : n_items;
        bool is_ready = entry->cb && entry->link && link_has_news(entry->link);
        for (int k = entry->first_item; k < end; k++)
            is_ready = is_ready || l->items[k].revents != 0;
        if (entry->cb && is_ready)
            entry->cb(entry->ud, now_ns);
    }
}

void loop_turn(struct loop *l, int64_t deadline_ns)
{
    must_own(l);
    must(!l->is_turning);
    int n_items = fill_items(l), n_entries = l->n_entries;
    int64_t until_ns = next_deadline_ns(l, deadline_ns);
    int left_ms = until_ns == CLOCK_NEVER ? -1 : clock_left_ms(until_ns, clock_now_ns(), INT_MAX);
    l->is_turning = true;
    /* On an error (a signal came) nothing is ready: revents may be stale. */
    if (zmq_poll(l->items, n_items, left_ms) < 0)
        for (int i = 0; i < n_items; i++)
            l->items[i].revents = 0;
    int64_t now_ns = clock_now_ns();
    if (l->gate)
        l->gate(l->gate_ud, now_ns);
    run_timers(l, now_ns);
    run_entries(l, n_entries, n_items, now_ns);
    l->is_turning = false;
    close_holes(l);
}

void loop_run(struct loop *l)
{
    l->is_stopped = false;
    while (!l->is_stopped)
        loop_turn(l, CLOCK_NEVER);
}

void loop_stop(struct loop *l)
{
    must_own(l);
    l->is_stopped = true;
}
