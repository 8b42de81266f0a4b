/* engine/load.c - see load.h. */
#include "engine/load.h"

#include <stdatomic.h>
#include <sys/mman.h>

#include "engine/matrix.h"
#include "model/weights.h"

struct loading {
    const struct load_options *options;
    const size_t *which;
    struct expert *const *out;
    int n, n_experts, ahead;
    atomic_int n_done;
    atomic_bool has_failed, is_overtaken;
    struct err *error; /* written by the first task that fails */
};

static void advise(struct checkpoint *c, size_t which, enum mapping_advice advice)
{
    size_t n_experts = (size_t)checkpoint_config(c)->n_experts;
    weights_advise_expert(c, (int)(which / n_experts), (int)(which % n_experts), advice);
}

static int load_one(const struct loading *l, size_t which, struct expert *x, struct err *e)
{
    struct checkpoint *c = l->options->checkpoint;
    int layer = (int)(which / (size_t)l->n_experts), index = (int)(which % (size_t)l->n_experts);
    struct expert_view view;
    *x = (struct expert){0};
    int rc = weights_expert(c, layer, index, &view, e);
    if (rc == 0)
        rc = expert_load(x, &view, l->options->format, l->options->compute, e);
    /* What was converted or copied is not needed twice. */
    if (rc < 0 || x->room)
        advise(c, which, MAPPING_DONE);
    if (rc < 0)
        return err_prefix(e, "layer %d: expert %d", layer + checkpoint_config(c)->n_dense_layers,
                          index);
    /* A mapping is locked where it is opened.  Refused: slower some day, not wrong. */
    if (checkpoint_how(c)->locks && x->room)
        (void)mlock(x->room, x->room_bytes);
    return 0;
}

static void load_task(void *ctx, int task)
{
    struct loading *l = ctx;
    const struct load_options *o = l->options;
    struct err e = {0};
    if (atomic_load(&l->has_failed) || atomic_load(&l->is_overtaken))
        return;
    if (o->is_overtaken && o->is_overtaken(o->ud)) {
        atomic_store(&l->is_overtaken, true);
        return;
    }
    if (task + l->ahead < l->n)
        advise(o->checkpoint, l->which[task + l->ahead], MAPPING_SOON);
    if (load_one(l, l->which[task], l->out[task], &e) < 0) {
        if (!atomic_exchange(&l->has_failed, true))
            *l->error = e;
        return;
    }
    int n_done = atomic_fetch_add(&l->n_done, 1) + 1;
    if (o->loaded)
        o->loaded(o->ud, n_done, l->n);
}

int load_experts(const struct load_options *o, const size_t *which, int n,
                 struct expert *const *out, struct err *e)
{
    struct err own = {0};
    int n_threads = pool_threads(o->compute->pool);
    struct loading l = {.options = o,
                        .which = which,
                        .out = out,
                        .n = n,
                        .n_experts = checkpoint_config(o->checkpoint)->n_experts,
                        .ahead = n_threads,
                        .error = e ? e : &own};
    for (int i = 0; i < n; i++)
        *out[i] = (struct expert){0};
    if (n >= n_threads)
        pool_run(o->compute->pool, load_task, &l, n);
    else
        for (int i = 0; i < n; i++)
            load_task(&l, i);
    if (atomic_load(&l.has_failed))
        return l.error->code;
    return atomic_load(&l.is_overtaken) ? E_CANCELLED : 0;
}

void load_release(struct checkpoint *c, size_t which, struct expert *x)
{
    bool is_mapped = x->gate.panels && !x->room;
    expert_fini(x);
    if (is_mapped)
        advise(c, which, MAPPING_DONE);
}

static int add_view(const struct linear_view *v, enum weight_format want, size_t *total,
                    struct err *e)
{
    size_t bytes;
    int rc = matrix_view_bytes(v, want, &bytes, e);
    if (rc == 0)
        *total += bytes > 0 ? bytes : v->packed_bytes;
    return rc;
}

int load_expert_bytes(struct checkpoint *c, enum weight_format want, size_t *bytes,
                      enum weight_format *format, struct err *e)
{
    struct expert_view v;
    size_t total = 0;
    int rc = weights_expert(c, 0, 0, &v, e);
    if (rc == 0)
        rc = add_view(&v.gate, want, &total, e);
    if (rc == 0)
        rc = add_view(&v.up, want, &total, e);
    if (rc == 0)
        rc = add_view(&v.down, want, &total, e);
    /* Somebody else may hold this expert. */
    advise(c, 0, MAPPING_DONE);
    if (rc < 0)
        return rc;
    *bytes = total;
    if (format)
        *format = matrix_format(&v.gate, want);
    return 0;
}
