/* tests/unit/test_prepare.c - who is read when: coordinator/prepare.h. */
#include "base/clock.h"
#include "base/queue.h"
#include "coordinator/prepare.h"
#include "tests/lib/test.h"

enum { LONG = PREPARE_SHORT_BYTES + 1, JOBS = 8 };

struct piece {
    struct prepare_job job;
    struct world *world;
    bool is_done;
};

/* The first long body is held up until the gate has something, so that the others wait. */
struct world {
    struct loop *loop;
    struct preparer *preparer;
    struct queue *gate;
    struct piece pieces[JOBS];
    struct piece *order[JOBS];
    int n_done;
};

static void pass(struct prepare_job *job)
{
    (void)job;
}

static void pass_the_gate(struct prepare_job *job)
{
    struct world *w = LIST_ITEM(job, struct piece, job)->world;
    CHECK(queue_pop_wait(w->gate, clock_now_ns() + 60 * CLOCK_S) != NULL);
}

static void on_done(void *ud, struct prepare_job *job)
{
    struct world *w = ud;
    struct piece *p = LIST_ITEM(job, struct piece, job);
    CHECK(!p->is_done);
    p->is_done = true;
    w->order[w->n_done++] = p;
}

static void begin(struct world *w, int max_waiting)
{
    *w = (struct world){.gate = queue_new(1)};
    CHECK_INT(loop_open(&w->loop, NULL), 0);
    CHECK_INT(prepare_open(w->loop, max_waiting, on_done, w, &w->preparer, NULL), 0);
    for (int i = 0; i < JOBS; i++)
        w->pieces[i] = (struct piece){.world = w, .job.work = i == 0 ? pass_the_gate : pass};
}

static int give(struct world *w, int i, size_t n_bytes, int64_t now_ns)
{
    return prepare_give(w->preparer, &w->pieces[i].job, n_bytes, now_ns);
}

static void open_gate(struct world *w)
{
    void *pass_it = w;
    CHECK_INT(queue_push(w->gate, &pass_it), 0);
}

static void turn_until(struct world *w, int n_done)
{
    int64_t deadline_ns = clock_now_ns() + 60 * CLOCK_S;
    while (w->n_done < n_done && clock_now_ns() < deadline_ns)
        loop_turn(w->loop, deadline_ns);
    CHECK_INT(w->n_done, n_done);
}

static void end(struct world *w)
{
    prepare_close(&w->preparer);
    loop_close(&w->loop);
    queue_free(&w->gate);
}

TEST(prepare_short_bodies_pass_long_ones_and_the_shorter_comes_first)
{
    struct world w;
    begin(&w, JOBS);
    CHECK_INT(give(&w, 0, LONG, 0), 0);
    CHECK_INT(give(&w, 1, 100 * LONG, 1), 0);
    CHECK_INT(give(&w, 2, 2 * LONG, 2), 0);
    CHECK_INT(give(&w, 3, 2 * LONG, 3), 0);
    /* So much later that the longest is not overtaken any more. */
    CHECK_INT(give(&w, 4, LONG, (int64_t)100 * LONG * PREPARE_NS_PER_BYTE), 0);
    CHECK_INT(give(&w, 5, PREPARE_SHORT_BYTES, 5), 0);
    CHECK_INT(give(&w, 6, 0, 6), 0);
    turn_until(&w, 2);
    open_gate(&w);
    turn_until(&w, 7);
    static const int want[] = {5, 6, 0, 2, 3, 1, 4};
    for (int i = 0; i < 7; i++)
        CHECK_INT((int)(w.order[i] - w.pieces), want[i]);
    end(&w);
}

TEST(prepare_takes_so_many_and_gives_back_what_waits)
{
    struct world w;
    begin(&w, 2);
    CHECK_INT(give(&w, 0, LONG, 0), 0);
    CHECK_INT(give(&w, 1, LONG, 1), 0);
    CHECK_INT(give(&w, 2, LONG, 2), 0);
    CHECK_INT(give(&w, 3, LONG, 3), E_BUSY);
    CHECK(!prepare_take_back(w.preparer, &w.pieces[0].job));
    CHECK(prepare_take_back(w.preparer, &w.pieces[1].job));
    CHECK_INT(give(&w, 3, LONG, 3), 0);
    open_gate(&w);
    turn_until(&w, 3);
    CHECK(!w.pieces[1].is_done && w.pieces[3].is_done);
    end(&w);
}

TEST(prepare_closes_while_bodies_are_read_and_wait)
{
    struct world w;
    begin(&w, JOBS);
    for (int i = 0; i < 3; i++)
        CHECK_INT(give(&w, i, LONG, 0), 0);
    open_gate(&w);
    prepare_close(&w.preparer);
    CHECK_INT(w.n_done, 0);
    end(&w);
}
