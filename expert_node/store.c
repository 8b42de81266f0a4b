/* expert_node/store.c - see store.h. */
#include "expert_node/store.h"

#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "base/thread.h"
#include "engine/load.h"

enum {
    MAX_WISHES = 8,
    SELF_TESTED = 8, /* experts, spread evenly over what was loaded */
    TESTED_AGAIN = 64,
};
#define PROGRESS_EVERY_NS (3 * CLOCK_S)
#define WAIT_NS (CLOCK_S / 5)

struct wish {
    uint64_t version;
    size_t n_wanted;
    uint8_t *wanted; /* [n_layers * n_experts], in the same allocation */
};

struct store {
    struct store_options options;
    size_t n_all; /* n_layers * n_experts */
    size_t expert_bytes, stored_bytes;
    struct queue *wishes, *outcomes;
    struct thread *thread;
    struct wish wake; /* ends the wait of a loader that shall stop */

    _Atomic uint32_t n_loaded, n_wanted;
    _Atomic uint64_t loaded_bytes, read_bytes, serving_version, test_asked, tested;

    /* loader thread only */
    struct thread *self;
    const struct model_config *config;
    struct compute compute;
    int group; /* format_group() of the experts */
    struct expert_scratch *scratch;
    struct expert **loaded; /* [n_all]; NULL where not here */
    uint8_t *is_new;        /* [n_all]: loaded by this wish, to be tested */
    bool is_testing_again;
    struct store_view *lent; /* the view that the worker has, or was sent */
};

/* ---- sizes --------------------------------------------------------------------------- */

int store_expert_bytes(struct checkpoint *c, enum weight_format format, size_t *out, struct err *e)
{
    return load_expert_bytes(c, format, out, NULL, e);
}

static int layer_of(const struct store *s, size_t i)
{
    return (int)(i / (size_t)s->config->n_experts);
}

static int index_of(const struct store *s, size_t i)
{
    return (int)(i % (size_t)s->config->n_experts);
}

/* ---- views --------------------------------------------------------------------------- */

static void free_view(struct store_view **view)
{
    if (!*view)
        return;
    mem_free(*view);
    *view = NULL;
}

/* What is loaded and wanted, in one allocation. */
static struct store_view *make_view(const struct store *s, const struct wish *w)
{
    struct store_view *v = mem_alloc(sizeof(*v) + s->n_all * sizeof(*v->held));
    v->version = w->version;
    v->n_experts = s->config->n_experts;
    v->held = (void *)(v + 1);
    for (size_t i = 0; i < s->n_all; i++) {
        if (!w->wanted[i] || !s->loaded[i])
            continue;
        v->held[i] = s->loaded[i];
        v->held_bytes += expert_bytes(s->loaded[i]);
        v->n_held++;
    }
    return v;
}

static void unload(struct store *s, size_t i)
{
    atomic_fetch_sub(&s->loaded_bytes, s->expert_bytes);
    atomic_fetch_sub(&s->n_loaded, 1);
    load_release(s->options.checkpoint, i, s->loaded[i]);
    mem_free(s->loaded[i]);
    s->loaded[i] = NULL;
    s->is_new[i] = 0;
}

/* Frees what neither the wish wants nor the worker can see. */
static void drop_unused(struct store *s, const struct wish *w)
{
    for (size_t i = 0; i < s->n_all; i++)
        if (s->loaded[i] && !w->wanted[i] && !(s->lent && s->lent->held[i]))
            unload(s, i);
}

/* Gives the worker a new view and waits until it has let go of the one before. */
static void publish(struct store *s, const struct wish *w)
{
    struct store_view *old = s->lent;
    s->lent = make_view(s, w);
    struct store_view *v = s->lent;
    must_zero(queue_push(s->options.views, (void **)&v));
    while (old && !thread_should_stop(s->self)) {
        struct store_view *back = queue_pop_wait(s->options.retired, clock_now_ns() + WAIT_NS);
        if (!back)
            continue;
        must(back == old);
        free_view(&old);
    }
    /* A worker that stopped uses nothing any more. */
    free_view(&old);
    drop_unused(s, w);
}

/* ---- loading ------------------------------------------------------------------------- */

static bool is_overtaken(const struct store *s)
{
    return thread_should_stop(s->self) || queue_len(s->wishes) > 0;
}

/* What the pool's threads tell while one wish is loaded. */
struct pace {
    struct store *store;
    int64_t begun_ns;
    _Atomic int64_t say_ns; /* when the next line is due */
};

static bool loading_is_overtaken(void *ud)
{
    const struct pace *p = ud;
    return is_overtaken(p->store);
}

static void on_loaded(void *ud, int n_done, int n_all)
{
    struct pace *p = ud;
    struct store *s = p->store;
    int64_t now_ns = clock_now_ns(), due_ns = atomic_load(&p->say_ns);
    atomic_fetch_add(&s->n_loaded, 1);
    atomic_fetch_add(&s->loaded_bytes, s->expert_bytes);
    atomic_fetch_add(&s->read_bytes, s->stored_bytes);
    if (now_ns < due_ns ||
        !atomic_compare_exchange_strong(&p->say_ns, &due_ns, now_ns + PROGRESS_EVERY_NS))
        return;
    double seconds = (double)(now_ns - p->begun_ns) / CLOCK_S;
    double mb = (double)n_done * (double)s->stored_bytes / 1e6;
    log_info("store.loading", "percent=%d mb=%.0f mb_per_s=%.1f eta_s=%.0f",
             (int)(100LL * n_done / n_all), mb, mb / seconds, seconds / n_done * (n_all - n_done));
}

/* Which of the wish are not here. */
static int list_missing(const struct store *s, const struct wish *w, size_t *missing)
{
    int n = 0;
    for (size_t i = 0; i < s->n_all; i++)
        if (w->wanted[i] && !s->loaded[i])
            missing[n++] = i;
    return n;
}

/* 0; E_CANCELLED when a newer wish came: what was loaded stays. */
static int load_missing(struct store *s, const struct wish *w, struct err *e)
{
    struct pace pace = {.store = s, .begun_ns = clock_now_ns()};
    struct load_options o = {.checkpoint = s->options.checkpoint,
                             .format = s->options.format,
                             .compute = &s->compute,
                             .loaded = on_loaded,
                             .is_overtaken = loading_is_overtaken,
                             .ud = &pace};
    size_t *missing = mem_array(s->n_all, sizeof(*missing));
    struct expert **experts = mem_array(s->n_all, sizeof(*experts));
    int n = list_missing(s, w, missing);
    atomic_init(&pace.say_ns, pace.begun_ns + PROGRESS_EVERY_NS);
    for (int i = 0; i < n; i++)
        experts[i] = mem_alloc(sizeof(*experts[i]));
    int rc = load_experts(&o, missing, n, experts, e);
    for (int i = 0; i < n; i++) {
        if (experts[i]->gate.panels) {
            s->loaded[missing[i]] = experts[i];
            s->is_new[missing[i]] = 1;
        } else {
            mem_free(experts[i]);
        }
    }
    mem_free(experts);
    mem_free(missing);
    return rc;
}

/* ---- the self-test ------------------------------------------------------------------- */

/* The expert read anew gives `got`, too: memory decays.  What is mapped is its file. */
static int test_against_storage(struct store *s, size_t i, const struct parcel *p, const float *got,
                                float *want, struct err *e)
{
    struct expert again = {0}, *const fresh[1] = {&again};
    const struct expert *held[1] = {&again};
    struct load_options o = {
        .checkpoint = s->options.checkpoint, .format = s->options.format, .compute = &s->compute};
    size_t bytes = (size_t)p->hidden * sizeof(float);
    if (!s->loaded[i]->room)
        return 0;
    int rc = load_experts(&o, &i, 1, fresh, e);
    if (rc < 0)
        return rc;
    expert_forward(&s->compute, s->scratch, held, 1, p, &(struct parcel_result){.by_expert = want});
    load_release(s->options.checkpoint, i, &again);
    if (memcmp(got, want, bytes) != 0)
        return err_set(
            e, E_CORRUPT,
            "self-test: layer %d: expert %d: its weights are not those on storage any more",
            layer_of(s, i), index_of(s, i));
    return 0;
}

static int test_one(struct store *s, size_t i, const struct rows *row, float *got, float *want,
                    struct err *e)
{
    static const int32_t first_route[2] = {0, 1};
    static const uint16_t experts[1] = {0};
    static const float weights[1] = {1};
    static const int16_t exponents[1] = {0};
    int hidden = s->config->hidden_size, layer = layer_of(s, i), index = index_of(s, i);
    const struct expert *held[1] = {s->loaded[i]};
    struct parcel p = {.n_rows = 1,
                       .hidden = hidden,
                       .n_routes = 1,
                       .mode = COMBINE_EXPERT,
                       .rows = *row,
                       .exponents = exponents,
                       .first_route = first_route,
                       .experts = experts,
                       .weights = weights};
    struct compute portable = s->compute;
    portable.kernels = kernels_named("portable");
    must(portable.kernels);
    expert_forward(&s->compute, s->scratch, held, 1, &p, &(struct parcel_result){.by_expert = got});
    expert_forward(&portable, s->scratch, held, 1, &p, &(struct parcel_result){.by_expert = want});
    for (int k = 0; k < hidden; k++)
        if (!isfinite(got[k]))
            return err_set(e, E_CORRUPT, "self-test: layer %d: expert %d: element %d is not finite",
                           layer, index, k);
    if (memcmp(got, want, (size_t)hidden * sizeof(float)) != 0)
        return err_set(e, E_CORRUPT,
                       "self-test: layer %d: expert %d: kernels %s and portable give other bits",
                       layer, index, s->compute.kernels->name);
    return s->is_testing_again ? test_against_storage(s, i, &p, got, want, e) : 0;
}

static int test_new(struct store *s, size_t stride, const struct rows *row, float *got, float *want,
                    struct err *e)
{
    size_t seen = 0;
    int rc = 0;
    for (size_t i = 0; i < s->n_all && rc == 0; i++)
        if (s->is_new[i] && s->loaded[i] && seen++ % stride == 0)
            rc = test_one(s, i, row, got, want, e);
    return rc;
}

/* About `most` of those that are new. */
static int self_test(struct store *s, size_t most, struct err *e)
{
    size_t hidden = (size_t)s->config->hidden_size, padded = mem_round_up(hidden, 16), n_new = 0;
    struct rows_room room;
    for (size_t i = 0; i < s->n_all; i++)
        n_new += s->is_new[i];
    if (n_new == 0)
        return 0;
    if (!rows_room_open(&room, 1, (int)hidden, s->group))
        return err_set(e, E_NOMEM, "self-test: no memory for a row");
    float *x = mem_aligned(3 * padded * sizeof(float));
    struct rng rng = rng_seed(1);
    for (size_t k = 0; k < hidden; k++)
        x[k] = (float)rng_normal(&rng);
    struct rows row = {.n_rows = 1, .cols = (int)hidden, .f32 = x, .f32_stride = padded};
    rows_quantise(&s->compute, &room, &row);
    int rc = test_new(s, n_new / most + 1, &row, x + padded, x + 2 * padded, e);
    mem_free(x);
    rows_room_close(&room);
    if (rc == 0)
        memset(s->is_new, 0, s->n_all);
    return rc;
}

/* ---- a wish -------------------------------------------------------------------------- */

static int check_room(const struct store *s, const struct wish *w, struct err *e)
{
    size_t room = s->options.memory_bytes / s->expert_bytes;
    if (w->n_wanted <= room)
        return 0;
    return err_set(
        e, E_BUSY, "%zu experts of %.1f MB are wanted, memory.bytes (%.1f MB) has room for %zu",
        w->n_wanted, (double)s->expert_bytes / 1e6, (double)s->options.memory_bytes / 1e6, room);
}

static bool fits_beside_old(const struct store *s, const struct wish *w)
{
    size_t n = w->n_wanted;
    for (size_t i = 0; i < s->n_all; i++)
        n += s->loaded[i] && !w->wanted[i];
    return n <= s->options.memory_bytes / s->expert_bytes;
}

/* 0, an error, or E_CANCELLED when a newer wish came: the next one goes on from there. */
static int serve(struct store *s, const struct wish *w, struct err *e)
{
    int rc = check_room(s, w, e);
    if (rc < 0)
        return rc;
    atomic_store(&s->n_wanted, (uint32_t)w->n_wanted);
    drop_unused(s, w);
    if (!fits_beside_old(s, w)) {
        atomic_store(&s->serving_version, 0);
        publish(s, w);
    }
    rc = load_missing(s, w, e);
    if (rc == 0)
        rc = self_test(s, SELF_TESTED, e);
    if (rc < 0)
        return rc;
    publish(s, w);
    atomic_store(&s->serving_version, w->version);
    return 0;
}

/* Blocks while the control thread has not taken older ones; it always does. */
static void tell(struct store *s, const struct wish *w, int code, const struct err *why)
{
    struct store_outcome *o = mem_alloc(sizeof(*o));
    o->version = w->version;
    o->code = code;
    o->why = *why;
    while (queue_push(s->outcomes, (void **)&o) == E_BUSY && !thread_should_stop(s->self))
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    mem_free(o);
}

static void grant(struct store *s, const struct wish *w)
{
    struct err e = {0};
    int64_t begun_ns = clock_now_ns();
    int rc = serve(s, w, &e);
    if (rc == E_CANCELLED)
        return;
    if (rc == E_BUSY)
        log_error("store.refused", "version=%" PRIu64 " why=%s", w->version,
                  log_quote(e.text).text);
    else if (rc < 0)
        log_error("store.failed", "version=%" PRIu64 " why=%s", w->version, log_quote(e.text).text);
    else
        log_info("store.ready", "version=%" PRIu64 " experts=%zu mb=%.1f seconds=%.1f", w->version,
                 w->n_wanted, (double)(w->n_wanted * s->expert_bytes) / 1e6,
                 (double)(clock_now_ns() - begun_ns) / CLOCK_S);
    tell(s, w, rc, &e);
}

/* ---- the thread ---------------------------------------------------------------------- */

static void set_up(struct store *s)
{
    s->compute = (struct compute){.kernels = s->options.kernels,
                                  .pool = pool_new(s->options.threads, POOL_FREE)};
    s->scratch = expert_scratch_new(1, 1, s->config->hidden_size, s->config->expert_size, s->group);
    s->loaded = mem_array(s->n_all, sizeof(*s->loaded));
    s->is_new = mem_array(s->n_all, 1);
}

static void tear_down(struct store *s)
{
    for (size_t i = 0; i < s->n_all; i++)
        if (s->loaded[i])
            unload(s, i);
    free_view(&s->lent);
    mem_free(s->loaded);
    mem_free(s->is_new);
    expert_scratch_free(&s->scratch);
    pool_free(&s->compute.pool);
}

/* Somebody got a wrong answer, or none: are the weights and the kernels still good? */
static void test_again(struct store *s)
{
    uint64_t asked = atomic_load(&s->test_asked);
    struct err e = {0};
    if (asked <= atomic_load(&s->tested))
        return;
    for (size_t i = 0; i < s->n_all; i++)
        s->is_new[i] = s->loaded[i] != NULL;
    s->is_testing_again = true;
    int rc = self_test(s, TESTED_AGAIN, &e);
    s->is_testing_again = false;
    if (rc < 0) {
        log_error("store.failed", "why=%s", log_quote(e.text).text);
        tell(s, &(struct wish){0}, rc, &e);
        memset(s->is_new, 0, s->n_all);
        atomic_store(&s->test_asked, 0); /* told once */
    } else {
        log_info("store.tested", "test=%" PRIu64, asked);
        atomic_store(&s->tested, asked);
    }
}

static void loader_main(struct thread *t, void *arg)
{
    struct store *s = arg;
    s->self = t;
    /* A node that loads more goes on serving; its pool's threads follow. */
    thread_yield_to_others();
    set_up(s);
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t)) {
        struct wish *w = queue_pop_wait(s->wishes, clock_now_ns() + WAIT_NS);
        test_again(s);
        if (!w || w == &s->wake)
            continue;
        if (!is_overtaken(s))
            grant(s, w);
        mem_free(w);
    }
    tear_down(s);
}

static void free_store(struct store **store)
{
    struct store *s = *store;
    *store = NULL;
    for (struct wish *w; (w = queue_pop(s->wishes));)
        if (w != &s->wake)
            mem_free(w);
    for (struct store_outcome *o; (o = queue_pop(s->outcomes));)
        mem_free(o);
    queue_free(&s->wishes);
    queue_free(&s->outcomes);
    mem_free(s);
}

int store_start(const struct store_options *o, struct store **out, struct err *e)
{
    *out = NULL;
    struct store *s = mem_alloc(sizeof(*s));
    s->options = *o;
    s->config = checkpoint_config(o->checkpoint);
    s->n_all = (size_t)config_expert_layers(s->config) * (size_t)s->config->n_experts;
    s->wishes = queue_new(MAX_WISHES);
    s->outcomes = queue_new(MAX_WISHES);
    enum weight_format format = FORMAT_NATIVE;
    int rc = load_expert_bytes(o->checkpoint, o->format, &s->expert_bytes, &format, e);
    s->group = format_group(format);
    if (rc == 0)
        rc = checkpoint_expert_bytes(o->checkpoint, &s->stored_bytes, e);
    if (rc == 0)
        rc = thread_start("loader", loader_main, s, &s->thread, e);
    if (rc < 0)
        free_store(&s);
    *out = s;
    return rc;
}

static void wake_loader(void *ud)
{
    struct store *s = ud;
    struct wish *wake = &s->wake;
    queue_push(s->wishes, (void **)&wake);
}

void store_stop(struct store **store)
{
    if (!*store)
        return;
    thread_stop(&(*store)->thread, wake_loader, *store);
    free_store(store);
}

int store_want(struct store *s, const struct wire_holdings *h, struct err *e)
{
    uint32_t n_layers = (uint32_t)config_expert_layers(s->config);
    uint32_t n_experts = (uint32_t)s->config->n_experts;
    if (h->n_layers != n_layers || h->n_experts != n_experts)
        return err_set(e, E_INVALID, "holdings of %u layers of %u experts, the model has %u of %u",
                       h->n_layers, h->n_experts, n_layers, n_experts);
    struct wish *w = mem_alloc(sizeof(*w) + s->n_all);
    w->wanted = (uint8_t *)(w + 1);
    w->version = h->version;
    for (uint32_t layer = 0; layer < n_layers; layer++) {
        const uint8_t *bits = h->bitmap + (size_t)layer * ((n_experts + 7) / 8);
        for (uint32_t i = 0; i < n_experts; i++) {
            uint8_t is_wanted = bits[i / 8] >> (i % 8) & 1;
            w->wanted[(size_t)layer * n_experts + i] = is_wanted;
            w->n_wanted += is_wanted;
        }
    }
    /* What nobody has looked at yet is overtaken anyway. */
    while (queue_push(s->wishes, (void **)&w) == E_BUSY)
        mem_free(queue_pop(s->wishes));
    return 0;
}

void store_test(struct store *s, uint64_t test)
{
    atomic_store(&s->test_asked, test);
}

int store_fd(const struct store *s)
{
    return queue_fd(s->outcomes);
}

bool store_take_outcome(struct store *s, struct store_outcome *out)
{
    struct store_outcome *o = queue_pop(s->outcomes);
    if (!o)
        return false;
    *out = *o;
    mem_free(o);
    return true;
}

void store_progress(const struct store *s, struct store_progress *out)
{
    *out = (struct store_progress){
        .held = atomic_load(&s->n_loaded),
        .wanted = atomic_load(&s->n_wanted),
        .held_bytes = atomic_load(&s->loaded_bytes),
        .read_bytes = atomic_load(&s->read_bytes),
        .serving_version = atomic_load(&s->serving_version),
        .tested = atomic_load(&s->tested),
    };
}
