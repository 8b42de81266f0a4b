/* coordinator/prepare.c - see prepare.h. */
#include "coordinator/prepare.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/thread.h"

enum { SHORT_BODIES, LONG_BODIES, LANES };

struct lane {
    struct preparer *preparer;
    struct thread *thread;
    struct queue *jobs;  /* one at a time */
    struct list waiting; /* by due_ns */
    bool is_busy;
};

struct preparer {
    struct loop *loop;
    struct lane lanes[LANES];
    struct queue *done;
    struct prepare_job wake; /* ends a thread's wait */
    int n_waiting, max_waiting;
    void (*on_done)(void *ud, struct prepare_job *job);
    void *ud;
};

static void lane_main(struct thread *t, void *arg)
{
    struct lane *lane = arg;
    struct preparer *p = lane->preparer;
    thread_ready(t, 0, NULL);
    for (;;) {
        struct prepare_job *job = queue_pop_wait(lane->jobs, clock_now_ns() + CLOCK_S);
        if (job && job != &p->wake) {
            job->work(job);
            must_zero(queue_push(p->done, (void **)&job));
        } else if (thread_should_stop(t)) {
            return;
        }
    }
}

/* ---- on the loop ------------------------------------------------------------------------- */

static void hand_out(struct lane *lane)
{
    struct list *first = lane->is_busy ? NULL : list_pop_front(&lane->waiting);
    if (!first)
        return;
    struct prepare_job *job = LIST_ITEM(first, struct prepare_job, link);
    lane->preparer->n_waiting--;
    lane->is_busy = job->is_out = true;
    must_zero(queue_push(lane->jobs, (void **)&job));
}

static void on_done(void *ud, int64_t now_ns)
{
    struct preparer *p = ud;
    struct prepare_job *job = queue_pop(p->done);
    (void)now_ns;
    if (!job)
        return;
    struct lane *lane = &p->lanes[job->lane];
    lane->is_busy = job->is_out = false;
    hand_out(lane);
    p->on_done(p->ud, job);
}

int prepare_give(struct preparer *p, struct prepare_job *job, size_t n_bytes, int64_t now_ns)
{
    bool is_long = n_bytes > PREPARE_SHORT_BYTES;
    if (p->n_waiting == p->max_waiting)
        return E_BUSY;
    job->lane = is_long ? LONG_BODIES : SHORT_BODIES;
    job->due_ns = now_ns + (is_long ? (int64_t)n_bytes * PREPARE_NS_PER_BYTE : 0);
    job->is_out = false;
    struct lane *lane = &p->lanes[job->lane];
    struct list *at = lane->waiting.prev;
    while (at != &lane->waiting && LIST_ITEM(at, struct prepare_job, link)->due_ns > job->due_ns)
        at = at->prev;
    list_push_front(at, &job->link);
    p->n_waiting++;
    hand_out(lane);
    return 0;
}

bool prepare_take_back(struct preparer *p, struct prepare_job *job)
{
    if (job->is_out)
        return false;
    list_remove(&job->link);
    p->n_waiting--;
    return true;
}

/* ---- opening and closing ------------------------------------------------------------------- */

int prepare_open(struct loop *l, int max_waiting, void (*done)(void *ud, struct prepare_job *job),
                 void *ud, struct preparer **out, struct err *e)
{
    static const char *const names[LANES] = {
        [SHORT_BODIES] = "short-bodies", [LONG_BODIES] = "long-bodies"};
    struct preparer *p = mem_alloc(sizeof *p);
    *p = (struct preparer){.loop = l, .max_waiting = max_waiting, .on_done = done, .ud = ud};
    p->done = queue_new(LANES);
    loop_add_fd(l, queue_fd(p->done), on_done, p);
    int rc = 0;
    for (int i = 0; i < LANES; i++) {
        struct lane *lane = &p->lanes[i];
        lane->preparer = p;
        lane->jobs = queue_new(2); /* with `wake` */
        list_init(&lane->waiting);
        if (rc == 0)
            rc = thread_start(names[i], lane_main, lane, &lane->thread, e);
    }
    if (rc < 0)
        prepare_close(&p);
    *out = p;
    return rc;
}

static void wake(void *ud)
{
    struct lane *lane = ud;
    struct prepare_job *job = &lane->preparer->wake;
    queue_push(lane->jobs, (void **)&job);
}

void prepare_close(struct preparer **pp)
{
    struct preparer *p = *pp;
    *pp = NULL;
    if (!p)
        return;
    loop_remove_fd(p->loop, queue_fd(p->done));
    for (int i = 0; i < LANES; i++) {
        struct lane *lane = &p->lanes[i];
        if (lane->thread)
            thread_stop(&lane->thread, wake, lane);
        while (queue_pop(lane->jobs))
            ;
        queue_free(&lane->jobs);
    }
    while (queue_pop(p->done))
        ;
    queue_free(&p->done);
    mem_free(p);
}
