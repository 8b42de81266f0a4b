/* tests/sim/test_leader_sim.c - coordinators and an etcd in simulated time: requests and answers are
 * delayed, lost and overtaken, coordinators are stopped, killed and cut off, etcd goes away and comes
 * back, clocks run at different rates.  Never do two act as the leader at one moment; nobody goes on
 * as if nothing had been after somebody else has led; and somebody leads again soon once etcd
 * answers. */
#include "coordinator/leader.h"

#include <string.h>

#include "base/clock.h"
#include "tests/lib/test.h"

enum { MAX_COORDINATORS = 4, MAX_EVENTS = 256, TTL_S = 2 };
#define TTL_NS (TTL_S * CLOCK_S)
#define STEP_NS (1 * CLOCK_MS)

struct coordinator {
    struct leader leader;
    double rate;       /* of its clock */
    int64_t paused_ns; /* until then it does nothing; all times but `leader`'s are the world's */
    int64_t cut_ns;    /* until then nothing reaches etcd from it, or it from etcd */
    int64_t down_ns;   /* until then it is dead */
    int64_t timeout_at_ns; /* of the request under way */
    struct leader_request under_way;
    bool acts; /* told to lead */
    uint64_t led_term;
};

struct event {
    int64_t at_ns;
    bool is_answer;
    int who;
    uint64_t instance;
    struct leader_request request;
    struct leader_answer answer;
};

struct etcd {
    int64_t down_ns;
    uint64_t revision;
    int64_t leases[4096]; /* end of each; 0: none */
    int n_leases;
    struct leader_keys keys;
    uint64_t in_step; /* the instance that is on record as having the whole log; 0: none */
};

struct world {
    struct rng rng;
    int64_t now_ns;
    int n;
    struct coordinator coordinators[MAX_COORDINATORS];
    struct etcd etcd;
    struct event events[MAX_EVENTS];
    int n_events;
    double loss;
    int64_t delay_most_ns;
    uint64_t n_instances;
    uint64_t leads[4096]; /* instance that led in the n-th turn */
    int n_leads;
    int n_resumed, n_stepped_down, n_suspended;
    uint64_t seed;
};

static bool chance(struct world *w, double p)
{
    return rng_unit(&w->rng) < p;
}

static int64_t up_to(struct world *w, int64_t ns)
{
    return (int64_t)rng_below(&w->rng, (uint64_t)ns + 1);
}

static int64_t clock_of(const struct world *w, const struct coordinator *c)
{
    return (int64_t)((double)w->now_ns * c->rate);
}

static void be_born(struct world *w, struct coordinator *c)
{
    struct leader_config config = {.instance = ++w->n_instances, .lease_ns = TTL_NS};
    leader_init(&c->leader, &config, clock_of(w, c));
    c->acts = false;
    c->timeout_at_ns = INT64_MAX;
}

/* ---- etcd ------------------------------------------------------------------------------- */

static bool holds(const struct etcd *s, int64_t lease, int64_t now_ns)
{
    return lease > 0 && lease <= s->n_leases && now_ns < s->leases[lease - 1];
}

static void expire(struct etcd *s, int64_t now_ns)
{
    if (s->keys.holder && !holds(s, s->keys.lease, now_ns))
        s->keys.holder = 0, s->keys.lease = 0;
}

static struct leader_answer apply(struct world *w, const struct event *e)
{
    struct etcd *s = &w->etcd;
    const struct leader_request *r = &e->request;
    struct leader_answer a = {.number = r->number, .lease = r->lease, .ttl_ns = TTL_NS};
    expire(s, w->now_ns);
    switch (r->ask) {
    case LEADER_LOOK:
        break;
    case LEADER_GRANT:
        CHECK(s->n_leases < 4096);
        s->leases[s->n_leases] = w->now_ns + TTL_NS;
        a.lease = ++s->n_leases;
        break;
    case LEADER_KEEP:
        if (holds(s, r->lease, w->now_ns))
            s->leases[r->lease - 1] = w->now_ns + TTL_NS;
        else
            a.outcome = LEADER_NO;
        break;
    case LEADER_TAKE:
        if (!holds(s, r->lease, w->now_ns)) {
            a.outcome = LEADER_FAILED; /* "requested lease not found" */
        } else if (s->keys.holder || (r->term && r->term != s->keys.term)) {
            a.outcome = LEADER_NO;
        } else {
            s->keys = (struct leader_keys){.holder = e->instance,
                                           .lease = r->lease,
                                           .last = e->instance,
                                           .term = ++s->revision};
        }
        break;
    }
    a.keys = s->keys;
    a.keys.others_have_more = s->in_step != 0 && s->in_step != e->instance;
    return a;
}

/* ---- messages --------------------------------------------------------------------------- */

static void post(struct world *w, struct event e)
{
    if (chance(w, w->loss))
        return;
    CHECK(w->n_events < MAX_EVENTS);
    e.at_ns = w->now_ns + up_to(w, w->delay_most_ns);
    w->events[w->n_events++] = e;
}

static void turn_of(struct world *w, struct coordinator *c, enum leader_turn turn)
{
    uint64_t instance = c->leader.config.instance;
    switch (turn) {
    case LEADER_GO_ON:
        return;
    case LEADER_LEAD:
        CHECK(!c->acts);
        c->acts = true;
        CHECK(w->n_leads < 4096);
        w->leads[w->n_leads++] = instance;
        return;
    case LEADER_SUSPEND:
        CHECK(c->acts);
        c->acts = false;
        w->n_suspended++;
        return;
    case LEADER_RESUME:
        CHECK(!c->acts);
        c->acts = true;
        w->n_resumed++;
        /* Nobody has led since. */
        CHECK_INT(w->leads[w->n_leads - 1], instance);
        return;
    case LEADER_STEP_DOWN:
        w->n_stepped_down++;
        CHECK_INT(c->leader.state, LEADER_OVER);
        be_born(w, c);
        return;
    }
}

static bool is_cut(const struct world *w, int who)
{
    return w->now_ns < w->coordinators[who].cut_ns || w->now_ns < w->etcd.down_ns;
}

static void deliver(struct world *w, struct event e)
{
    struct coordinator *c = &w->coordinators[e.who];
    if (is_cut(w, e.who))
        return;
    if (!e.is_answer) {
        e.answer = apply(w, &e);
        e.is_answer = true;
        post(w, e);
        return;
    }
    if (w->now_ns < c->down_ns || e.instance != c->leader.config.instance)
        return;
    if (w->now_ns < c->paused_ns) { /* it lies in the socket */
        e.at_ns = c->paused_ns;
        CHECK(w->n_events < MAX_EVENTS);
        w->events[w->n_events++] = e;
        return;
    }
    turn_of(w, c, leader_tick(&c->leader, clock_of(w, c)));
    turn_of(w, c, leader_answer(&c->leader, &e.answer, clock_of(w, c)));
}

static void deliver_due(struct world *w)
{
    for (int i = 0; i < w->n_events;) {
        if (w->events[i].at_ns > w->now_ns) {
            i++;
            continue;
        }
        struct event e = w->events[i];
        w->events[i] = w->events[--w->n_events];
        deliver(w, e);
    }
}

/* ---- coordinators ------------------------------------------------------------------------- */

static void run(struct world *w, int who)
{
    struct coordinator *c = &w->coordinators[who];
    struct leader_request r;
    if (w->now_ns < c->down_ns || w->now_ns < c->paused_ns)
        return;
    int64_t mine_ns = clock_of(w, c);
    turn_of(w, c, leader_tick(&c->leader, mine_ns));
    if (w->now_ns >= c->timeout_at_ns) {
        struct leader_answer a = {.number = c->under_way.number, .outcome = LEADER_FAILED};
        c->timeout_at_ns = INT64_MAX;
        turn_of(w, c, leader_answer(&c->leader, &a, mine_ns));
    }
    if (!leader_ask(&c->leader, mine_ns, &r))
        return;
    CHECK(r.timeout_ns > 0 && r.timeout_ns <= TTL_NS);
    c->under_way = r;
    c->timeout_at_ns = w->now_ns + r.timeout_ns;
    post(w, (struct event){.who = who, .instance = c->leader.config.instance, .request = r});
}

/* One that is stopped would act on when it goes on, but for its clock. */
static int count_acting(const struct world *w)
{
    int n = 0;
    for (int i = 0; i < w->n; i++) {
        const struct coordinator *c = &w->coordinators[i];
        n += w->now_ns >= c->down_ns && leader_is_sure(&c->leader, clock_of(w, c));
    }
    return n;
}

/* Whoever leads puts on record now and then who has its log. */
static void say_who_follows(struct world *w)
{
    const struct coordinator *heir = &w->coordinators[rng_below(&w->rng, (uint64_t)w->n)];
    for (int i = 0; i < w->n; i++) {
        const struct coordinator *c = &w->coordinators[i];
        bool acts = w->now_ns >= c->down_ns && leader_is_sure(&c->leader, clock_of(w, c));
        if (acts && w->etcd.keys.holder == c->leader.config.instance && chance(w, 0.001))
            w->etcd.in_step = heir->leader.config.instance;
    }
}

static void step(struct world *w)
{
    w->now_ns += STEP_NS;
    deliver_due(w);
    for (int i = 0; i < w->n; i++) {
        struct coordinator *c = &w->coordinators[i];
        if (c->down_ns && w->now_ns >= c->down_ns) {
            c->down_ns = 0;
            be_born(w, c);
        }
        run(w, i);
    }
    say_who_follows(w);
    if (count_acting(w) > 1)
        test_fail(__FILE__, __LINE__, "cluster %llu: two lead at %lld ms",
                  (unsigned long long)w->seed, (long long)(w->now_ns / CLOCK_MS));
}

static void do_harm(struct world *w, double how_often)
{
    struct coordinator *c = &w->coordinators[rng_below(&w->rng, (uint64_t)w->n)];
    if (!chance(w, how_often * STEP_NS / CLOCK_S))
        return;
    switch (rng_below(&w->rng, 5)) {
    case 0:
        c->paused_ns = w->now_ns + up_to(w, 3 * TTL_NS);
        break;
    case 1:
        c->cut_ns = w->now_ns + up_to(w, 3 * TTL_NS);
        break;
    case 2:
        c->down_ns = w->now_ns + 1 + up_to(w, TTL_NS);
        break;
    case 3: /* leases are extended when it is back */
        w->etcd.down_ns = w->now_ns + up_to(w, 2 * TTL_NS);
        for (int i = 0; i < w->etcd.n_leases; i++)
            if (holds(&w->etcd, i + 1, w->now_ns))
                w->etcd.leases[i] = w->etcd.down_ns + TTL_NS;
        break;
    case 4:
        w->delay_most_ns = up_to(w, chance(w, 0.2) ? TTL_NS : TTL_NS / 20);
        w->loss = chance(w, 0.3) ? 0.3 : 0.02;
        break;
    }
}

static void begin(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng = rng_seed(seed);
    w->n = 2 + (int)rng_below(&w->rng, MAX_COORDINATORS - 1);
    w->loss = 0.02;
    w->delay_most_ns = 10 * CLOCK_MS;
    w->now_ns = CLOCK_S;
    for (int i = 0; i < w->n; i++) {
        w->coordinators[i].rate = 0.96 + 0.08 * rng_unit(&w->rng);
        be_born(w, &w->coordinators[i]);
    }
}

/* No trouble any more; how long until somebody leads. */
static int64_t time_to_lead(struct world *w)
{
    w->loss = 0;
    w->delay_most_ns = 10 * CLOCK_MS;
    w->etcd.down_ns = 0;
    for (int i = 0; i < w->etcd.n_leases; i++) /* it is back earlier than it was going to be */
        if (w->etcd.leases[i] > w->now_ns + TTL_NS)
            w->etcd.leases[i] = w->now_ns + TTL_NS;
    for (int i = 0; i < w->n; i++) {
        struct coordinator *c = &w->coordinators[i];
        c->paused_ns = c->cut_ns = 0;
    }
    int64_t from_ns = w->now_ns;
    while (count_acting(w) == 0) {
        step(w);
        if (w->now_ns - from_ns > 20 * TTL_NS)
            test_fail(__FILE__, __LINE__, "cluster %llu: nobody leads for 20 leases",
                      (unsigned long long)w->seed);
    }
    return w->now_ns - from_ns;
}

enum { CLUSTERS = 1000 };

TEST_WITHIN(never_do_two_lead_and_somebody_leads_soon, 120)
{
    static struct world w;
    struct rng seeds = test_rng();
    int64_t longest_ns = 0;
    int n_leads = 0, n_resumed = 0, n_stepped_down = 0, n_suspended = 0;
    for (int k = 0; k < CLUSTERS; k++) {
        uint64_t seed = rng_next(&seeds);
        begin(&w, seed);
        double how_often = rng_unit(&w.rng) * 3;
        int64_t end_ns = w.now_ns + 30 * CLOCK_S;
        while (w.now_ns < end_ns) {
            do_harm(&w, how_often);
            step(&w);
        }
        int64_t took_ns = time_to_lead(&w);
        longest_ns = took_ns > longest_ns ? took_ns : longest_ns;
        n_leads += w.n_leads;
        n_resumed += w.n_resumed;
        n_stepped_down += w.n_stepped_down;
        n_suspended += w.n_suspended;
    }
    test_say(
        "%d clusters of 2 to %d: %d leads, %d suspended, %d resumed, %d stepped down; once all "
        "is well somebody leads within %lld ms of a lease of %d ms",
        CLUSTERS, MAX_COORDINATORS, n_leads, n_suspended, n_resumed, n_stepped_down,
        (long long)(longest_ns / CLOCK_MS), TTL_S * 1000);
    CHECK(n_leads > CLUSTERS && n_resumed > 100 && n_stepped_down > 100);
    /* A dead one's lease ends, which its last request, TTL_NS late, may have renewed; a standby looks, and
     * three requests are answered. */
    /* Who is not in step lets others go first for a lease, by a clock that may be slow. */
    CHECK(longest_ns < 3 * TTL_NS + TTL_NS / 2);
}

/* Without trouble the first one leads, and goes on. */
TEST(one_leads_for_ever_when_nothing_happens)
{
    static struct world w;
    begin(&w, test_seed());
    w.loss = 0;
    for (int i = 0; i < 60000; i++)
        step(&w);
    CHECK_INT(w.n_leads, 1);
    CHECK_INT(w.n_suspended, 0);
}

/* The one in step leads next, however late it looks; if it is dead, too, another one does. */
TEST(who_is_in_step_leads_next_unless_it_is_dead)
{
    static struct world w;
    for (int k = 0; k < 200; k++) {
        begin(&w, test_seed() + (uint64_t)k);
        w.n = MAX_COORDINATORS;
        for (int i = 0; i < w.n; i++) {
            w.coordinators[i].rate = 0.96 + 0.08 * rng_unit(&w.rng);
            be_born(&w, &w.coordinators[i]);
        }
        w.loss = 0;
        time_to_lead(&w);
        int first = 0, heir;
        while (!leader_is_sure(&w.coordinators[first].leader, clock_of(&w, &w.coordinators[first])))
            first++;
        heir = (first + 1 + (int)rng_below(&w.rng, MAX_COORDINATORS - 1)) % MAX_COORDINATORS;
        bool is_dead = k % 2;
        w.etcd.in_step = w.coordinators[heir].leader.config.instance;
        w.coordinators[first].down_ns = w.now_ns + 100 * TTL_NS;
        if (is_dead)
            w.coordinators[heir].down_ns = w.now_ns + 100 * TTL_NS;
        else
            w.coordinators[heir].paused_ns = w.now_ns + TTL_NS + TTL_NS / 2;
        int64_t from_ns = w.now_ns;
        uint64_t in_step = w.etcd.in_step;
        while (count_acting(&w) == 0) {
            step(&w);
            CHECK(w.now_ns - from_ns < 3 * TTL_NS);
        }
        CHECK_INT(w.etcd.keys.holder == in_step, !is_dead);
    }
}

/* Its key is deleted by an operator: somebody takes it, and it is not led by two for longer than
 * it takes to look. */
TEST(who_finds_its_key_gone_leads_no_more)
{
    static struct world w;
    begin(&w, test_seed());
    w.loss = 0;
    time_to_lead(&w);
    uint64_t first = w.etcd.keys.holder;
    w.etcd.keys.holder = 0;
    int64_t both_ns = 0;
    for (int i = 0; i < 5000; i++) {
        w.now_ns += STEP_NS;
        deliver_due(&w);
        for (int k = 0; k < w.n; k++)
            run(&w, k);
        both_ns += count_acting(&w) > 1 ? STEP_NS : 0;
    }
    CHECK(w.etcd.keys.holder != 0);
    CHECK(w.etcd.keys.holder != first || w.n_suspended > 0);
    CHECK(both_ns < TTL_NS / 2);
    CHECK_INT(count_acting(&w), 1);
}
