/* attn_node/pace.c - see pace.h. */
#include "attn_node/pace.h"

#include <stddef.h>

#include "base/must.h"

enum {
    AVERAGE_OVER = 8,    /* samples that the average remembers, about */
    STEPS_PER_MEAN = 16, /* of the percentile: one step up is a sixteenth of the usual time */
    STEP_MIN_NS = 1000,
    BUDGET_MAX_CALLS = 32, /* that may be saved up */
};

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int class_of(int n_routes)
{
    must(n_routes > 0);
    int class = 31 - __builtin_clz((unsigned)n_routes);
    return class < PACE_CLASSES ? class : PACE_CLASSES - 1;
}

/* The percentile goes up 19 small steps where it goes down one, so that it comes to rest where
 * one sample in twenty lies above.  Steps are parts of the percentile itself where that is far above
 * the average: a node that was slow for a while is not waited for much longer than that. */
static void move_p95(struct pace_class *c, int64_t took_ns)
{
    int64_t of_ns = c->p95_ns / 2 > c->usual_ns ? c->p95_ns / 2 : c->usual_ns;
    int64_t step_ns = of_ns / STEPS_PER_MEAN;
    if (step_ns < STEP_MIN_NS)
        step_ns = STEP_MIN_NS;
    if (took_ns > c->p95_ns)
        c->p95_ns += step_ns * 19 / 20;
    else
        c->p95_ns -= step_ns / 20;
    if (c->p95_ns < c->usual_ns)
        c->p95_ns = c->usual_ns;
}

static bool is_young(const struct pace_class *c)
{
    return c->n_samples < AVERAGE_OVER;
}

static void learn(struct pace_class *c, int64_t took_ns)
{
    c->n_samples += c->n_samples < UINT32_MAX;
    c->usual_ns += (took_ns - c->usual_ns) / (is_young(c) ? c->n_samples : AVERAGE_OVER);
    if (is_young(c)) /* the first are about a process that has just begun */
        c->p95_ns = 2 * c->usual_ns;
    else
        move_p95(c, took_ns);
}

void pace_take(struct pace *p, int n_routes, int64_t took_ns)
{
    struct pace_class *c = &p->classes[class_of(n_routes)];
    if (took_ns < 0)
        took_ns = 0;
    c->answers_ns += (took_ns - c->answers_ns) / (c->n_samples > 0 ? AVERAGE_OVER : 1);
    learn(c, took_ns);
}

void pace_take_at_least(struct pace *p, int n_routes, int64_t waited_ns)
{
    if (waited_ns > pace_usual_ns(p, n_routes))
        learn(&p->classes[class_of(n_routes)], waited_ns);
}

/* The class itself, or the nearest with history; `*factor` is what its times are worth here:
 * twice the routes take at most twice the time, and half of them up to the same. */
static const struct pace_class *find_class(const struct pace *p, int n_routes, int64_t *factor)
{
    int own = class_of(n_routes);
    *factor = 1;
    for (int far = 0; far < PACE_CLASSES; far++) {
        if (own + far < PACE_CLASSES && p->classes[own + far].n_samples > 0)
            return &p->classes[own + far];
        if (far <= own && p->classes[own - far].n_samples > 0) {
            *factor = (int64_t)1 << far;
            return &p->classes[own - far];
        }
    }
    return NULL;
}

int64_t pace_usual_ns(const struct pace *p, int n_routes)
{
    int64_t factor;
    const struct pace_class *c = find_class(p, n_routes, &factor);
    return c ? c->usual_ns * factor : 0;
}

int64_t pace_deadline_ns(const struct pace *p, const struct pace_limits *l, int n_routes)
{
    int64_t factor;
    const struct pace_class *c = find_class(p, n_routes, &factor);
    if (!c)
        return l->max_ns;
    int64_t usual_ns = c->usual_ns * factor, floor_ns = c->p95_ns * factor * 3 / 2;
    int64_t deadline_ns = least(4 * usual_ns, l->max_ns);
    /* Beyond the limit only where answers to such parcels really come so late: those that never
     * came would make it longer and longer. */
    bool is_slow = c->answers_ns > l->max_ns / 2 && factor == 1 && !is_young(c);
    floor_ns = least(floor_ns, is_slow ? 4 * c->answers_ns : l->max_ns);
    if (deadline_ns < floor_ns)
        deadline_ns = floor_ns;
    return deadline_ns > l->min_ns ? deadline_ns : l->min_ns;
}

int64_t pace_hedge_ns(const struct pace *p, const struct pace_limits *l, int n_routes)
{
    int64_t factor;
    const struct pace_class *c = find_class(p, n_routes, &factor);
    if (!c)
        return l->max_ns;
    int64_t hedge_ns = c->p95_ns > 2 * c->usual_ns ? c->p95_ns : 2 * c->usual_ns;
    hedge_ns *= factor;
    return hedge_ns > l->min_hedge_ns ? hedge_ns : l->min_hedge_ns;
}

void pace_earn(struct pace_budget *b, int n_calls)
{
    int64_t most = BUDGET_MAX_CALLS * 100, now = b->hundredths + (int64_t)b->percent * n_calls;
    b->hundredths = (int)(now < most ? now : most);
}

bool pace_may_spend(const struct pace_budget *b)
{
    return b->hundredths >= 100;
}

void pace_spend(struct pace_budget *b, int n_calls)
{
    must(n_calls >= 0 && n_calls <= INT32_MAX / 200);
    b->hundredths -= 100 * n_calls;
}
