/* tools/forecast.c - see forecast.h. */
#include "tools/forecast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attn_node/choice.h"
#include "base/clock.h"
#include "base/mem.h"
#include "coordinator/placement_plan.h"

#define TWO_LANES_WIN 0.97 /* as attn_node/lane_trial.h has it: LANE_TRIAL_PERCENT */

enum { COPIES = WIRE_MAX_REPLICAS, NOBODY = PLACEMENT_NOBODY, OBSERVED_TOKENS = 2000 };

/* ---- the cluster ------------------------------------------------------------------------- */

static void join_nodes(struct forecast *f)
{
    const struct plan_hosts *h = f->hosts;
    struct rng r = rng_stream(f->options.seed, 1);
    int n = 0;
    for (int i = 0; i < h->n_hosts; i++) {
        const struct plan_host *host = &h->hosts[i];
        double speed = host->read_bytes_s / host->nodes;
        double most = host->node_bytes_s > 0 ? host->node_bytes_s : speed;
        for (int k = 0; k < host->nodes; k++, n++) {
            struct placement_newcomer new = {
                .table.node_id = (uint32_t)n + 1,
                .host = host->name,
                .rack = host->rack,
                .capacity =
                    (int64_t)((double)host->memory_bytes / host->nodes / f->model->expert_bytes),
                .speed = speed,
                .threads = 1};
            snprintf(new.table.name, sizeof new.table.name, "%s/%d", host->name, k);
            placement_join(&f->placement, &new, 1);
            bool is_slow = rng_unit(&r) < f->options.straggler_share;
            f->host_of[n] = i;
            f->bytes_s[n] =
                most * f->options.efficiency * (is_slow ? f->options.straggler_speed : 1);
        }
    }
}

/* What nodes say of themselves; who is slower than that is not known. */
static void set_costs(struct forecast *f)
{
    uint64_t *said = mem_array((size_t)f->n_nodes, sizeof *said);
    for (int i = 0; i < f->n_nodes && !f->options.ignores_speed; i++)
        said[i] = f->placement.nodes[i].table.read_bytes_s;
    choice_costs(said, f->n_nodes, f->cost);
    mem_free(said);
}

/* What the routers of a running cluster would have told. */
static void observe(struct forecast *f)
{
    const struct plan_model *m = f->model;
    size_t slots = (size_t)OBSERVED_TOKENS / 20 * (size_t)m->top_k;
    size_t n_total = (size_t)m->n_layers * (size_t)m->n_experts;
    uint16_t *experts = mem_array((size_t)m->n_layers * slots, sizeof *experts);
    uint16_t *counts = mem_array(n_total, sizeof *counts);
    struct rng r = rng_stream(f->options.seed, 2);
    for (int part = 0; part < 20; part++) {
        trace_draw(f->trace, &r, OBSERVED_TOKENS / 20, experts);
        memset(counts, 0, n_total * sizeof *counts);
        for (size_t layer = 0; layer < (size_t)m->n_layers; layer++)
            for (size_t k = 0; k < slots; k++)
                counts[layer * (size_t)m->n_experts + experts[layer * slots + k]]++;
        placement_observe(&f->placement, counts);
    }
    mem_free(experts);
    mem_free(counts);
}

/* As if everything that is wanted were loaded: who may be asked for what. */
static void list_holders(struct forecast *f)
{
    f->n_copies = 0;
    f->n_copies_least = COPIES;
    f->n_copies_most = 0;
    for (int64_t i = 0; i < f->placement.n_total; i++) {
        const uint16_t *want = f->placement.experts[i].want;
        int n = 0;
        while (n < COPIES && want[n] != NOBODY)
            n++;
        /* The first one is somebody else from expert to expert, as in placement_table(). */
        for (int k = 0; k < COPIES; k++)
            f->holders[i * COPIES + k] = k < n ? want[(k + i) % n] : CHOICE_NOBODY;
        f->n_copies += n;
        f->n_copies_least = n < f->n_copies_least ? n : f->n_copies_least;
        f->n_copies_most = n > f->n_copies_most ? n : f->n_copies_most;
    }
}

int forecast_open(const struct plan_model *m, const struct plan_hosts *h, struct trace *t,
                  const struct forecast_options *o, struct forecast *f, struct err *e)
{
    struct placement_config c = {.n_layers = (uint32_t)m->n_layers,
                                 .n_experts = (uint32_t)m->n_experts,
                                 .replicas = o->replicas,
                                 .first_version = 1};
    size_t n = (size_t)h->n_nodes;
    *f = (struct forecast){.options = *o, .model = m, .hosts = h, .trace = t, .n_nodes = (int)n};
    placement_init(&f->placement, &c);
    f->host_of = mem_array(n, sizeof *f->host_of);
    f->bytes_s = mem_array(n, sizeof *f->bytes_s);
    f->is_lost = mem_array(n, sizeof *f->is_lost);
    f->holders = mem_array((size_t)f->placement.n_total * COPIES, sizeof *f->holders);
    f->cost = mem_array(n, sizeof *f->cost);
    f->choice = choice_new(m->n_experts);
    join_nodes(f);
    set_costs(f);
    observe(f);
    int64_t begun_ns = clock_now_ns();
    placement_plan(&f->placement);
    f->plan_ms = (double)(clock_now_ns() - begun_ns) / 1e6;
    list_holders(f);
    int64_t room = 0;
    for (int i = 0; i < f->placement.n_nodes; i++)
        room += f->placement.nodes[i].capacity;
    if (f->n_copies_least > 0)
        return 0;
    int rc = err_set(e, E_NOMEM,
                     "%s %s: its %lld experts take %.1f GiB, these machines have memory for %lld "
                     "of them; take more memory or fewer bits (--format)",
                     m->name, m->format, (long long)f->placement.n_total,
                     (double)f->placement.n_total * m->expert_bytes / (1 << 30), (long long)room);
    forecast_close(f);
    return rc;
}

void forecast_close(struct forecast *f)
{
    placement_fini(&f->placement);
    choice_free(&f->choice);
    mem_free(f->cost);
    mem_free(f->host_of);
    mem_free(f->bytes_s);
    mem_free(f->is_lost);
    mem_free(f->holders);
    *f = (struct forecast){0};
}

/* ---- a step ------------------------------------------------------------------------------ */

/* What lasts from layer to layer of a run. */
struct bench_of_steps {
    struct rng rng;
    uint16_t *experts; /* [n_layers][n_tokens * top_k] */
    int32_t *slots;
    int *load, *rows, *last_row; /* [n_nodes] */
    int *host_load;              /* [n_hosts] experts that its memory is read for */
    uint8_t *standing;
    double *times, *times_of_two; /* [n_steps] ms */
    struct rng lane_rng;
    double *experts_ns, *network_ns; /* [n_layers][2] of lanes */
};

struct round_time {
    double experts_ns, network_ns;
};

static double jitter(struct forecast *f, struct rng *r)
{
    return f->options.jitter_ns > 0 ? -f->options.jitter_ns * log(1 - rng_unit(r)) : 0;
}

/* The round of a layer for n_tokens whose routes these are: adds to `sum`. */
static struct round_time run_round(struct forecast *f, struct bench_of_steps *b, int layer,
                                   const uint16_t *experts, int n_tokens, struct rng *r,
                                   struct forecast_step *sum)
{
    const struct plan_model *m = f->model;
    int n_slots = n_tokens * m->top_k, n_hit = 0, most = 0, distinct = 0, n_present = 0;
    memset(b->load, 0, (size_t)f->n_nodes * sizeof *b->load);
    struct choice_question q = {.experts = experts,
                                .slots = b->slots,
                                .n_slots = n_slots,
                                .holders =
                                    f->holders + (size_t)layer * (size_t)m->n_experts * COPIES,
                                .n_replicas = COPIES,
                                .standing = b->standing,
                                .worst = STANDING_DOUBTFUL,
                                .load = b->load,
                                .cost = f->cost};
    sum->n_missing += choice_make(f->choice, &q);
    for (int i = 0; i < f->n_nodes; i++) {
        b->rows[i] = 0;
        b->last_row[i] = -1;
        n_present += !f->is_lost[i];
    }
    memset(b->host_load, 0, (size_t)f->hosts->n_hosts * sizeof *b->host_load);
    for (int i = 0; i < f->n_nodes; i++)
        b->host_load[f->host_of[i]] += b->load[i];
    double out_bytes = 0, back_bytes = 0, slowest_ns = 0, experts_ns = 0, wire = 0, trip = 0;
    int n_routes = 0;
    for (int s = 0; s < n_slots; s++) {
        uint16_t node = choice_of(f->choice, experts[s]);
        if (node == CHOICE_NOBODY)
            continue;
        n_routes++;
        b->rows[node] += b->last_row[node] != s / m->top_k;
        b->last_row[node] = s / m->top_k;
    }
    for (int i = 0; i < f->n_nodes; i++) {
        if (b->rows[i] == 0)
            continue;
        const struct plan_host *host = &f->hosts->hosts[f->host_of[i]];
        double read_ns = 1e9 * b->load[i] * m->expert_bytes / f->bytes_s[i];
        double host_ns = 1e9 * b->host_load[f->host_of[i]] * m->expert_bytes /
                         (host->read_bytes_s * f->options.efficiency);
        read_ns = read_ns > host_ns ? read_ns : host_ns;
        double out = plan_model_row_out_bytes(m, b->rows[i], 0);
        double back = plan_model_row_back_bytes(m, b->rows[i]);
        double late = host->round_trip_ns + jitter(f, r);
        double all = read_ns + late + 1e9 * (out + back) / host->wire_bytes_s;
        if (all > slowest_ns) {
            slowest_ns = all;
            experts_ns = read_ns;
            trip = all - read_ns;
        }
        n_hit++;
        out_bytes += out;
        back_bytes += back;
        distinct += b->load[i];
        most = b->load[i] > most ? b->load[i] : most;
        wire = wire > 0 && wire < host->wire_bytes_s ? wire : host->wire_bytes_s;
    }
    out_bytes += plan_model_row_out_bytes(m, 0, n_routes) - plan_model_row_out_bytes(m, 0, 0);
    /* The attention side's own link carries what all nodes send and get; both directions at once. */
    double own = out_bytes > back_bytes ? out_bytes : back_bytes;
    double own_ns = wire > 0 ? 1e9 * own / wire / f->options.n_sides : 0;
    double network_ns = own_ns > trip ? own_ns : trip;
    network_ns += n_hit > 1 ? f->options.fan_out_ns * (n_hit - 1) : 0;
    sum->network_ms += network_ns / 1e6;
    sum->experts_ms += experts_ns / 1e6;
    sum->wire_bytes += out_bytes + back_bytes;
    sum->slowest += most;
    sum->distinct += distinct;
    sum->balance += distinct > 0 ? (double)most * n_present / distinct : 1;
    return (struct round_time){experts_ns, network_ns};
}

/* ---- two lanes --------------------------------------------------------------------------- */

double forecast_two_lanes_ns(int n_layers, const double *attention_ns, const double *experts_ns,
                             const double *network_ns)
{
    double attention_free = 0, experts_free = 0, done[2] = {0, 0};
    for (int layer = 0; layer < n_layers; layer++)
        for (int lane = 0; lane < 2; lane++) {
            int i = 2 * layer + lane;
            double begun = attention_free > done[lane] ? attention_free : done[lane];
            attention_free = begun + attention_ns[lane];
            double asked = attention_free + network_ns[i] / 2;
            experts_free = (asked > experts_free ? asked : experts_free) + experts_ns[i];
            done[lane] = experts_free + network_ns[i] / 2;
        }
    return done[0] > done[1] ? done[0] : done[1];
}

/* The same step in two lanes, whose routes have been drawn. */
static double two_lanes_ms(struct forecast *f, struct bench_of_steps *b, int n_tokens,
                           double context)
{
    const struct plan_model *m = f->model;
    struct forecast_step ignored = {0};
    int rows[2] = {n_tokens / 2, n_tokens - n_tokens / 2};
    double attention_ns[2], speed = f->options.attention_bytes_s * f->options.efficiency;
    for (int lane = 0; lane < 2; lane++) {
        double of_side = ceil((double)rows[lane] / f->options.n_sides);
        attention_ns[lane] = 1e9 *
                             (plan_model_attention_bytes(m, of_side, context) - m->head_bytes) /
                             speed / m->n_layers;
    }
    for (int layer = 0; layer < m->n_layers; layer++)
        for (int lane = 0; lane < 2; lane++) {
            size_t first = ((size_t)layer * (size_t)n_tokens + (lane ? (size_t)rows[0] : 0)) *
                           (size_t)m->top_k;
            struct round_time t =
                run_round(f, b, layer, b->experts + first, rows[lane], &b->lane_rng, &ignored);
            b->experts_ns[2 * layer + lane] = t.experts_ns;
            b->network_ns[2 * layer + lane] = t.network_ns;
        }
    return (forecast_two_lanes_ns(m->n_layers, attention_ns, b->experts_ns, b->network_ns) +
            1e9 * m->head_bytes / speed) /
           1e6;
}

/* ---- steps ------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

void forecast_run(struct forecast *f, int n_tokens, double context, int n_steps,
                  struct forecast_step *out)
{
    const struct plan_model *m = f->model;
    size_t n = (size_t)f->n_nodes, n_slots = (size_t)n_tokens * (size_t)m->top_k;
    struct bench_of_steps b = {
        .rng = rng_stream(f->options.seed, 3 + (uint64_t)n_tokens),
        .experts = mem_array((size_t)m->n_layers * n_slots, sizeof *b.experts),
        .slots = mem_array(n_slots, sizeof *b.slots),
        .load = mem_array(n, sizeof *b.load),
        .rows = mem_array(n, sizeof *b.rows),
        .last_row = mem_array(n, sizeof *b.last_row),
        .host_load = mem_array((size_t)f->hosts->n_hosts, sizeof *b.host_load),
        .standing = mem_array(n, sizeof *b.standing),
        .times = mem_array((size_t)n_steps, sizeof *b.times),
        .times_of_two = mem_array((size_t)n_steps, sizeof *b.times_of_two),
        .lane_rng = rng_stream(f->options.seed, 4 + ((uint64_t)n_tokens << 32)),
        .experts_ns = mem_array(2 * (size_t)m->n_layers, sizeof *b.experts_ns),
        .network_ns = mem_array(2 * (size_t)m->n_layers, sizeof *b.network_ns),
    };
    for (size_t s = 0; s < n_slots; s++)
        b.slots[s] = (int32_t)s;
    for (size_t i = 0; i < n; i++)
        b.standing[i] = f->is_lost[i] ? STANDING_AWAY : STANDING_GOOD;
    double of_side = ceil((double)n_tokens / f->options.n_sides);
    double attention_ms = 1e3 * plan_model_attention_bytes(m, of_side, context) /
                          (f->options.attention_bytes_s * f->options.efficiency);
    bool can_two = of_side >= 2 && f->options.lanes != 1;
    double two_ms = 0;
    *out = (struct forecast_step){.lanes = 1};
    for (int step = 0; step < n_steps; step++) {
        double before = out->network_ms + out->experts_ms;
        trace_draw(f->trace, &b.rng, n_tokens, b.experts);
        for (int layer = 0; layer < m->n_layers; layer++)
            run_round(f, &b, layer, b.experts + (size_t)layer * n_slots, n_tokens, &b.rng, out);
        b.times[step] = attention_ms + out->network_ms + out->experts_ms - before;
        b.times_of_two[step] = can_two ? two_lanes_ms(f, &b, n_tokens, context) : 0;
        two_ms += b.times_of_two[step] / n_steps;
    }
    double layers = (double)n_steps * m->n_layers;
    out->attention_ms = attention_ms;
    out->network_ms /= n_steps;
    out->experts_ms /= n_steps;
    out->step_ms = out->attention_ms + out->network_ms + out->experts_ms;
    out->two_lanes = can_two ? two_ms / out->step_ms : 0;
    if (can_two && (f->options.lanes == 2 || out->two_lanes < TWO_LANES_WIN)) {
        out->lanes = 2;
        out->hidden_ms = out->step_ms - two_ms;
        out->step_ms = two_ms;
    }
    double *times = out->lanes == 2 ? b.times_of_two : b.times;
    qsort(times, (size_t)n_steps, sizeof *times, by_value);
    out->p99_ms = times[(int)(0.99 * (n_steps - 1))];
    out->tokens_s = 1e3 * n_tokens / out->step_ms;
    out->wire_bytes /= (double)n_steps * n_tokens;
    out->slowest /= layers;
    out->distinct /= layers;
    out->balance /= layers;
    mem_free(b.experts);
    mem_free(b.slots);
    mem_free(b.load);
    mem_free(b.rows);
    mem_free(b.last_row);
    mem_free(b.host_load);
    mem_free(b.standing);
    mem_free(b.times);
    mem_free(b.times_of_two);
    mem_free(b.experts_ns);
    mem_free(b.network_ns);
}

/* ---- losses ------------------------------------------------------------------------------ */

void forecast_lose_host(struct forecast *f, int host, bool is_lost)
{
    for (int i = 0; i < f->n_nodes; i++)
        if (f->host_of[i] == host)
            f->is_lost[i] = is_lost;
}

int64_t forecast_uncovered(const struct forecast *f)
{
    int64_t n = 0;
    for (int64_t i = 0; i < f->placement.n_total; i++) {
        bool is_there = false;
        for (int k = 0; k < COPIES && f->holders[i * COPIES + k] != CHOICE_NOBODY; k++)
            is_there |= !f->is_lost[f->holders[i * COPIES + k]];
        n += !is_there;
    }
    return n;
}

int64_t forecast_lost_copies(const struct forecast *f)
{
    int64_t n = 0;
    for (int64_t i = 0; i < f->placement.n_total * COPIES; i++)
        n += f->holders[i] != CHOICE_NOBODY && f->is_lost[f->holders[i]];
    return n;
}
