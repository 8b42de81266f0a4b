/* attn_node/pace.h - how long a node usually takes: when an answer is late, and when it is
 * worth asking somebody else as well (step 9; cluster.md 4).
 *
 * For each class of parcel size (powers of two of the routes in it) a moving average and a
 * moving 95th percentile.  A class without history borrows from its neighbours.  Times are
 * passed in: pure, no clock, no allocation.
 *
 * Owner: engine thread, one per node. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { PACE_CLASSES = 16 };

struct pace_class {
    int64_t usual_ns, p95_ns;
    int64_t answers_ns; /* the average of those answers that came */
    uint32_t n_samples; /* 0: no history */
};
/* All-zero is a node that nothing is known of. */
struct pace {
    struct pace_class classes[PACE_CLASSES];
};

struct pace_limits {
    int64_t min_ns, max_ns; /* between them lies the deadline, 20 and 500 ms by default */
    int64_t min_hedge_ns;   /* nobody is asked twice before */
};

/* An answer to a parcel of n_routes took so long. */
void pace_take(struct pace *p, int n_routes, int64_t took_ns);
/* None has come in this time: counts where that is more than usual. */
void pace_take_at_least(struct pace *p, int n_routes, int64_t waited_ns);
/* Moving average, 0 without any history. */
int64_t pace_usual_ns(const struct pace *p, int n_routes);
/* Four times the usual time within the limits; but never below one and a half times the p95,
 * so that a node that has always been slow is not late.  max_ns without any history. */
int64_t pace_deadline_ns(const struct pace *p, const struct pace_limits *l, int n_routes);
/* The p95, at least twice the usual time; max_ns without any history. */
int64_t pace_hedge_ns(const struct pace *p, const struct pace_limits *l, int n_routes);

/* A share of extra calls. */
struct pace_budget {
    int percent;
    int hundredths; /* of calls: earned and not spent; negative: a debt */
};
void pace_earn(struct pace_budget *b, int n_calls);
bool pace_may_spend(const struct pace_budget *b);
/* Calls that were made; may leave a debt, which the next ones pay. */
void pace_spend(struct pace_budget *b, int n_calls);
