/* coordinator/embed.c - see embed.h. */
#include "coordinator/embed.h"

#include "attn_node/side.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/thread.h"
#include "coordinator/hub.h"

enum { REFUSED_CHECK_MS = 250 };

struct embed {
    struct loop *loop;
    void (*on_failed)(void *ud, const struct err *e);
    void *ud;
    struct side_config config;
    char *name;
    struct thread *thread;
    struct queue *results; /* starter -> loop: one struct started */
    struct loop_timer check;
    struct side *side;
    bool finished; /* the starter's result has arrived */
};

struct started {
    struct side *side;
    struct err e;
};

static void starter_main(struct thread *t, void *arg)
{
    struct embed *m = arg;
    struct started *s = mem_alloc(sizeof *s);
    thread_ready(t, 0, NULL);
    side_start(&m->config, &s->side, &s->e);
    void *item = s;
    queue_push(m->results, &item); /* room for one, and there is only one */
}

static void on_check(void *ud, int64_t now_ns)
{
    struct embed *m = ud;
    struct err why = {0};
    if (side_is_refused(m->side, &why)) {
        m->on_failed(m->ud, &why);
        return;
    }
    loop_set_timer(m->loop, &m->check, now_ns + REFUSED_CHECK_MS * CLOCK_MS);
}

static void take_result(struct embed *m)
{
    struct started *s = queue_pop(m->results);
    if (!s)
        return;
    m->finished = true;
    m->side = s->side;
    if (s->side) {
        log_info("attention.started", "name=%s", m->name);
    } else {
        err_prefix(&s->e, "attention side");
        m->on_failed(m->ud, &s->e);
    }
    mem_free(s);
}

static void on_result(void *ud, int64_t now_ns)
{
    struct embed *m = ud;
    take_result(m);
    if (m->side)
        loop_set_timer(m->loop, &m->check, now_ns);
}

int embed_start(struct loop *l, const struct embed_options *o, struct embed **out, struct err *e)
{
    const struct coordinator_config *c = o->config;
    struct embed *m = mem_alloc(sizeof *m);
    m->loop = l;
    m->on_failed = o->on_failed;
    m->ud = o->ud;
    m->name = mem_format("%s-attention", c->node_name);
    m->config = (struct side_config){.name = m->name,
                                     .model_dir = c->model_path,
                                     .cache_dir = c->weights.cache,
                                     .coordinator_endpoint = HUB_INPROC_CLUSTER,
                                     .listen_endpoint = "inproc://attention",
                                     .auth = o->auth,
                                     .checkpoint = {.copies = c->weights.copies,
                                                    .locks = c->weights.locks,
                                                    .verifies = c->weights.verifies},
                                     .combine = (enum combine_mode)c->weights.combine,
                                     .kernels = c->weights.kernels,
                                     .threads = (int)c->attention_threads,
                                     .kv_bytes = c->attention_kv_bytes,
                                     .keeps_prefixes = c->attention_keeps_prefixes,
                                     .borrows = c->attention_borrows,
                                     .max_rows = (int)c->attention_max_rows,
                                     .max_seqs = (int)c->attention_max_seqs,
                                     .lanes = c->attention_lanes,
                                     .call_timeout_ns = c->attention_call_timeout_ns,
                                     .ladder = c->ladder,
                                     .spin_ns = c->attention_spin_us * CLOCK_US};
    m->config.formats = weights_options_formats(&c->weights);
    m->check = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_check, .ud = m};
    m->results = queue_new(1);
    loop_add_fd(l, queue_fd(m->results), on_result, m);
    *out = m;
    int rc = thread_start("side-starter", starter_main, m, &m->thread, e);
    if (rc < 0)
        embed_stop(out);
    return rc;
}

bool embed_can_stop(const struct embed *m)
{
    return !m || m->finished;
}

void embed_abandon(struct embed *m)
{
    thread_abandon(m->thread);
}

void embed_stop(struct embed **mp)
{
    struct embed *m = *mp;
    *mp = NULL;
    if (!m)
        return;
    if (m->thread)
        thread_stop(&m->thread, NULL, NULL);
    loop_remove_fd(m->loop, queue_fd(m->results));
    if (m->check.added)
        loop_remove_timer(m->loop, &m->check);
    if (!m->finished) {
        struct started *s = queue_pop(m->results);
        if (s)
            m->side = s->side;
        mem_free(s);
    }
    side_stop(&m->side);
    queue_free(&m->results);
    mem_free(m->name);
    mem_free(m);
}
