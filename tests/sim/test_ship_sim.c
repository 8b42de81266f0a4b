/* tests/sim/test_ship_sim.c - a leader's token log and those who copy it, in simulated time: answers are
 * lost, late or cut off, standbys are stopped, killed and start again with what their disks have,
 * disks are slow, the leader is followed by another.  Never is a client told of a record that a
 * standby in step, or on record as such, does not have on its disk; nothing waits longer than patience allows; a copy is
 * always a whole beginning of the log; and it is all of it soon after the faults end. */
#include "coordinator/follow.h"
#include "coordinator/records.h"
#include "coordinator/ship.h"

#include "base/clock.h"
#include "tests/lib/test.h"

enum { STANDBYS = 3, MAX_RECORDS = 40000, LIVE = 60 };
#define PATIENCE_NS (100 * CLOCK_MS)
#define STEP_NS (1 * CLOCK_MS)
#define DEADLINE_NS (1500 * CLOCK_MS)

/* Records are numbers.  A snapshot has the newest LIVE of them. */
struct standby {
    struct follow follow;
    uint64_t instance;
    uint32_t disk_first, disk_end; /* numbers on the disk; equal: none */
    int64_t down_ns, slow_ns;      /* until then it is dead; it does not answer */
    /* One question at a time: */
    bool is_asking, is_lost;
    int64_t asked_ns, arrives_ns, answered_ns; /* 0: not yet */
    uint64_t asked_stream, asked_offset;
    struct follow_answer answer;
    struct buf bytes;
    /* What is being written: */
    int64_t written_ns;
    bool is_replacing;
    struct buf writing;
};

struct world {
    struct rng rng;
    struct ship ship;
    int64_t now_ns;
    double trouble;
    struct standby standbys[STANDBYS];
    uint64_t n_instances;
    uint32_t n_records;
    uint64_t position[MAX_RECORDS]; /* behind the record of that number */
    int64_t appended_ns[MAX_RECORDS];
    uint32_t n_told;                          /* records that clients know of */
    uint32_t told_before[SHIP_MAX_STANDBYS];  /* it came in step, */
    uint64_t seen_in_step[SHIP_MAX_STANDBYS]; /* as this instance */
    /* Who is on record as in step, and what is being written. */
    bool keeps_record;
    uint64_t record[SHIP_MAX_STANDBYS], in_question[SHIP_MAX_STANDBYS];
    int n_record, n_in_question;
    int64_t record_at_ns; /* 0: nothing is */
    int64_t n_waited_ns, n_late, n_snapshots, n_deaths, n_recorded;
};

static bool chance(struct world *w, double p)
{
    return rng_unit(&w->rng) < p;
}

static int64_t up_to(struct world *w, int64_t ns)
{
    return (int64_t)rng_below(&w->rng, (uint64_t)ns + 1);
}

/* ---- records that are numbers ------------------------------------------------------------ */

/* Sizes differ, some are larger than a chunk. */
static struct str payload_of(uint32_t number)
{
    static char bytes[SHIP_CHUNK_BYTES + 100];
    memcpy(bytes, &number, sizeof number);
    size_t n = number % 997 == 0 ? sizeof bytes : 4 + number % 50;
    return (struct str){bytes, n};
}

struct numbers {
    uint32_t first, end;
};

static void read_number(void *ud, uint8_t type, struct str payload)
{
    struct numbers *n = ud;
    uint32_t number;
    CHECK_INT(type, 3);
    CHECK(payload.len >= sizeof number);
    memcpy(&number, payload.ptr, sizeof number);
    if (n->first == n->end)
        n->first = n->end = number;
    CHECK_INT(number, n->end); /* none is missing, none comes twice */
    n->end++;
}

static void snapshot(const struct world *w, struct buf *out)
{
    uint32_t first = w->n_records > LIVE ? w->n_records - LIVE : 0;
    for (uint32_t i = first; i < w->n_records; i++)
        records_put(out, 3, payload_of(i));
}

static void append(struct world *w)
{
    if (w->n_records == MAX_RECORDS)
        return;
    uint32_t number = w->n_records++;
    w->position[number] = ship_append(&w->ship, 3, payload_of(number), w->now_ns);
    w->appended_ns[number] = w->now_ns;
}

/* ---- a leader ------------------------------------------------------------------------------ */

static void lead(struct world *w)
{
    struct ship_config c = {.first_stream = rng_next(&w->rng),
                            .window_bytes = 600 << 10,
                            .patience_ns = PATIENCE_NS,
                            .hold_ns = 50 * CLOCK_MS,
                            .forget_ns = 3 * CLOCK_S,
                            .is_recorded = w->keeps_record};
    ship_fini(&w->ship);
    w->record_at_ns = 0;
    ship_init(&w->ship, &c);
    /* Of a record from before nobody can say that it is not there. */
    for (uint32_t i = 0; i < w->n_records; i++)
        w->position[i] = 0;
}

static struct standby *standby_of(struct world *w, uint64_t instance)
{
    for (int i = 0; i < STANDBYS; i++)
        if (w->standbys[i].instance == instance)
            return &w->standbys[i];
    return NULL;
}

/* Of its directory: as long as the world lasts. */
static uint64_t state_of(const struct world *w, const struct standby *b)
{
    return (uint64_t)(b - w->standbys) + 1;
}

static void send_answer(struct world *w, uint64_t instance, const struct ship_answer *a)
{
    struct standby *b = standby_of(w, instance);
    if (!b || !b->is_asking || b->answered_ns)
        return; /* its process is another one by now */
    buf_reset(&b->bytes);
    buf_append_str(&b->bytes, a->bytes);
    b->answer = (struct follow_answer){a->stream, a->offset, a->snapshot_bytes, {0}};
    b->answered_ns =
        w->now_ns + up_to(w, 3 * CLOCK_MS) + (chance(w, w->trouble) ? up_to(w, 400 * CLOCK_MS) : 0);
    b->is_lost |= chance(w, w->trouble);
}

static void take_question(struct world *w, struct standby *b)
{
    struct ship_question q = {.instance = b->instance,
                              .state = state_of(w, b),
                              .name = "standby",
                              .stream = b->asked_stream,
                              .offset = b->asked_offset};
    struct ship_answer a;
    enum ship_verdict v = ship_ask(&w->ship, &q, w->now_ns, &a);
    CHECK(v != SHIP_FULL && v != SHIP_TWIN); /* who comes again has its place */
    if (v == SHIP_SNAPSHOT) {
        struct buf all = {0};
        snapshot(w, &all);
        if (all.len == 0)
            records_put(&all, 3, payload_of(0));
        ship_begin(&w->ship, a.slot, &all, w->now_ns, &a);
        CHECK_INT(all.len, 0);
        w->n_snapshots++;
    }
    if (v != SHIP_HOLD)
        send_answer(w, b->instance, &a);
}

/* Who is in step has on its disk whatever clients have heard of since it is. */
static void tell_clients(struct world *w)
{
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++)
        if (!w->ship.standbys[i].in_step || w->ship.standbys[i].instance != w->seen_in_step[i]) {
            w->told_before[i] = w->n_told;
            w->seen_in_step[i] = w->ship.standbys[i].in_step ? w->ship.standbys[i].instance : 0;
        }
    while (w->n_told < w->n_records && ship_has(&w->ship, w->position[w->n_told])) {
        int64_t waited_ns = w->now_ns - w->appended_ns[w->n_told];
        CHECK(waited_ns <= (w->ship.config.is_recorded ? 4 : 1) * PATIENCE_NS + 2 * STEP_NS);
        if (waited_ns > w->n_waited_ns)
            w->n_waited_ns = waited_ns;
        w->n_told++;
    }
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        const struct ship_standby *s = &w->ship.standbys[i];
        const struct standby *b = s->instance ? standby_of(w, s->instance) : NULL;
        if (s->in_step && b && w->n_told > w->told_before[i])
            CHECK(b->disk_end >= w->n_told);
    }
}

/* Who is on record may lead next, and so has all that clients have heard of; also who is dead, and
 * comes back as what it is on record as. */
static void turn_record(struct world *w)
{
    if (w->record_at_ns && w->now_ns >= w->record_at_ns) {
        bool is_applied = !chance(w, w->trouble), is_heard = is_applied && !chance(w, w->trouble);
        if (is_applied) {
            memcpy(w->record, w->in_question, sizeof w->record);
            w->n_record = w->n_in_question;
        }
        w->record_at_ns = 0;
        ship_recorded(&w->ship, is_heard);
    }
    if (w->record_at_ns == 0) {
        int n = ship_unrecorded(&w->ship, w->in_question);
        w->n_in_question = n;
        w->record_at_ns = n < 0 ? 0 : w->now_ns + 1 + up_to(w, 10 * CLOCK_MS);
    }
    for (int i = 0; i < w->n_record; i++) {
        CHECK(w->standbys[w->record[i] - 1].disk_end >= w->n_told);
        w->n_recorded++;
    }
}

static void turn_leader(struct world *w)
{
    for (int n = chance(w, 0.02) ? 40 : chance(w, 0.3) ? 2 : 0; n > 0; n--)
        append(w);
    for (int i = 0; i < STANDBYS; i++) {
        struct standby *b = &w->standbys[i];
        if (b->is_asking && b->arrives_ns && w->now_ns >= b->arrives_ns) {
            b->arrives_ns = 0;
            take_question(w, b);
        }
    }
    struct ship_answer a;
    while (ship_next(&w->ship, w->now_ns, &a))
        send_answer(w, w->ship.standbys[a.slot].instance, &a);
    while (ship_tick(&w->ship, w->now_ns))
        w->n_late++;
    tell_clients(w);
    turn_record(w);
}

/* ---- standbys -------------------------------------------------------------------------------- */

static void ask(struct world *w, struct standby *b)
{
    b->is_asking = true;
    b->is_lost = chance(w, w->trouble);
    b->asked_ns = w->now_ns;
    b->answered_ns = 0;
    b->arrives_ns = w->now_ns + 1 + up_to(w, 2 * CLOCK_MS);
    b->asked_stream = b->follow.stream;
    b->asked_offset = b->follow.offset;
    if (b->is_lost && chance(w, 0.5))
        b->arrives_ns = INT64_MAX; /* the question, not the answer */
}

static void begin_writing(struct world *w, struct standby *b, struct str records, bool replaces)
{
    buf_reset(&b->writing);
    buf_append_str(&b->writing, records);
    b->is_replacing = replaces;
    b->written_ns = w->now_ns + up_to(w, 4 * CLOCK_MS) +
                    (chance(w, w->trouble / 2) ? up_to(w, 300 * CLOCK_MS) : 0);
}

static void finish_writing(struct standby *b)
{
    struct numbers n = {0};
    if (!b->is_replacing)
        n = (struct numbers){b->disk_first, b->disk_end};
    CHECK_INT(records_read(buf_str(&b->writing), read_number, &n).bytes, b->writing.len);
    b->disk_first = n.first;
    b->disk_end = n.end;
    b->written_ns = 0;
}

static void take_answer(struct world *w, struct standby *b)
{
    struct str records;
    b->is_asking = false;
    b->answer.bytes = buf_str(&b->bytes);
    enum follow_act act = follow_take(&b->follow, &b->answer, &records);
    if (act == FOLLOW_REPLACE || act == FOLLOW_APPEND)
        begin_writing(w, b, records, act == FOLLOW_REPLACE);
    follow_written(&b->follow, records);
}

/* What is on the disk stays; what was to be written may be there or not. */
static void die(struct world *w, struct standby *b)
{
    if (b->written_ns && chance(w, 0.5))
        finish_writing(b);
    follow_fini(&b->follow);
    b->instance = 0;
    b->is_asking = false;
    b->written_ns = 0;
    b->down_ns = w->now_ns + up_to(w, 2 * CLOCK_S);
    w->n_deaths++;
}

static void turn_standby(struct world *w, struct standby *b)
{
    if (b->down_ns > w->now_ns || b->slow_ns > w->now_ns)
        return;
    if (!b->instance)
        b->instance = ++w->n_instances;
    if (chance(w, w->trouble / 500)) {
        die(w, b);
        return;
    }
    if (chance(w, w->trouble / 300))
        b->slow_ns = w->now_ns + up_to(w, CLOCK_S);
    if (b->written_ns && w->now_ns >= b->written_ns)
        finish_writing(b);
    if (b->is_asking && b->answered_ns && w->now_ns >= b->answered_ns && !b->is_lost)
        take_answer(w, b);
    if (b->is_asking && w->now_ns - b->asked_ns > DEADLINE_NS)
        b->is_asking = false;
    if (!b->is_asking && !b->written_ns)
        ask(w, b);
}

static void run(struct world *w, int64_t for_ns)
{
    for (int64_t end_ns = w->now_ns + for_ns; w->now_ns < end_ns; w->now_ns += STEP_NS) {
        for (int i = 0; i < STANDBYS; i++)
            turn_standby(w, &w->standbys[i]);
        turn_leader(w);
        if (chance(w, w->trouble / 5000))
            lead(w);
    }
}

static void end(struct world *w)
{
    for (int i = 0; i < STANDBYS; i++) {
        follow_fini(&w->standbys[i].follow);
        buf_fini(&w->standbys[i].bytes);
        buf_fini(&w->standbys[i].writing);
    }
    ship_fini(&w->ship);
}

static struct world *begin(double trouble)
{
    static struct world w;
    w = (struct world){.rng = test_rng(), .trouble = trouble, .now_ns = CLOCK_S};
    lead(&w);
    append(&w);
    return &w;
}

/* ---- tests ------------------------------------------------------------------------------------- */

TEST(ship_sim_whatever_fails_what_clients_know_is_with_those_in_step)
{
    int64_t n_late = 0, n_snapshots = 0, n_deaths = 0, n_told = 0, n_recorded = 0;
    for (int i = 0; i < 12; i++) {
        struct world *w = begin(0);
        w->rng = rng_stream(test_seed(), (uint64_t)i);
        w->keeps_record = i % 2;
        lead(w);
        for (int k = 0; k < 4; k++) {
            w->trouble = 0.05 * k;
            run(w, 3 * CLOCK_S);
        }
        w->trouble = 0;
        run(w, 4 * CLOCK_S);
        CHECK_INT(ship_count(&w->ship, true), STANDBYS);
        for (int b = 0; b < STANDBYS; b++)
            CHECK(w->standbys[b].disk_end + 200 > w->n_records);
        CHECK(w->n_told + 200 > w->n_records);
        n_late += w->n_late, n_snapshots += w->n_snapshots, n_deaths += w->n_deaths;
        n_told += w->n_told, n_recorded += w->n_recorded;
        CHECK_INT(w->n_record, w->keeps_record ? STANDBYS : 0);
        end(w);
    }
    test_note("%lld records told, %lld times late, %lld snapshots, %lld deaths", (long long)n_told,
              (long long)n_late, (long long)n_snapshots, (long long)n_deaths);
    CHECK(n_recorded > 1000);
    CHECK(n_late > 10 && n_snapshots > 50 && n_deaths > 10);
}

TEST(ship_sim_without_faults_nothing_is_late_and_one_snapshot_each_is_enough)
{
    struct world *w = begin(0);
    run(w, 10 * CLOCK_S);
    CHECK_INT(w->n_late, 0);
    CHECK_INT(w->n_snapshots, STANDBYS);
    CHECK(w->n_waited_ns < PATIENCE_NS / 2);
    end(w);
}

/* ---- single turns --------------------------------------------------------------------------------- */

static struct ship one_in_step(struct ship_question *q, uint64_t *end_of_snapshot)
{
    struct ship s;
    struct ship_config c = {.first_stream = 7,
                            .window_bytes = 1000,
                            .patience_ns = 100,
                            .hold_ns = 1000,
                            .forget_ns = 5000};
    struct ship_answer a;
    struct buf all = {0};
    ship_init(&s, &c);
    *q = (struct ship_question){.instance = 1, .state = 5, .name = "b"};
    CHECK_INT(ship_ask(&s, q, 0, &a), SHIP_SNAPSHOT);
    records_put(&all, 1, STR("state"));
    *end_of_snapshot = all.len;
    ship_begin(&s, a.slot, &all, 0, &a);
    CHECK_INT(a.bytes.len, *end_of_snapshot);
    CHECK_INT(ship_count(&s, true), 0);
    q->stream = a.stream;
    q->offset = a.bytes.len;
    CHECK_INT(ship_ask(&s, q, 10, &a), SHIP_HOLD);
    CHECK_INT(ship_count(&s, true), 1);
    return s;
}

TEST(ship_waits_for_one_in_step_and_not_for_one_that_is_late)
{
    struct ship_question q;
    struct ship_answer a;
    uint64_t at;
    struct ship s = one_in_step(&q, &at);
    uint64_t p = ship_append(&s, 3, STR("x"), 1000);
    CHECK(!ship_has(&s, p));
    CHECK(ship_next(&s, 1000, &a));
    CHECK_INT(a.offset, at);
    CHECK(!ship_tick(&s, 1100));
    CHECK(!ship_has(&s, p));
    CHECK(ship_tick(&s, 1101));
    CHECK(!ship_tick(&s, 1101));
    CHECK(ship_has(&s, p));
    CHECK_INT(s.n_late, 1);
    /* It has that, late as it is; when it is in time again it counts again. */
    q.offset = at + a.bytes.len;
    CHECK_INT(ship_ask(&s, &q, 1500, &a), SHIP_HOLD);
    CHECK_INT(ship_count(&s, true), 0);
    CHECK(ship_next(&s, 2500, &a));
    CHECK_INT(a.bytes.len, 0);
    CHECK_INT(ship_ask(&s, &q, 2510, &a), SHIP_HOLD);
    CHECK_INT(ship_count(&s, true), 1);
    ship_fini(&s);
}

/* Nobody waits for what a standby was before its restart, and it has its old place. */
TEST(ship_knows_a_standby_again_by_its_directory)
{
    struct ship_question q;
    struct ship_answer a;
    uint64_t at, states[SHIP_MAX_STANDBYS];
    struct ship s = one_in_step(&q, &at);
    s.config.is_recorded = true;
    CHECK_INT(ship_unrecorded(&s, states), 1);
    CHECK_INT(states[0], 5);
    ship_recorded(&s, true);
    uint64_t p = ship_append(&s, 3, STR("x"), 20);
    CHECK(!ship_has(&s, p));
    q = (struct ship_question){.instance = 2, .state = 5, .name = "b"};
    CHECK_INT(ship_ask(&s, &q, 30, &a), SHIP_SNAPSHOT);
    CHECK_INT(a.slot, 0);
    CHECK_INT(ship_count(&s, false), 1);
    CHECK_INT(ship_count(&s, true), 0);
    /* What it has is not known yet, and it is on record: that comes first. */
    CHECK(!ship_has(&s, p));
    CHECK_INT(ship_unrecorded(&s, states), 0);
    ship_recorded(&s, true);
    CHECK(ship_has(&s, p));
    /* A copy of its directory, elsewhere: not while it lives. */
    q = (struct ship_question){.instance = 3, .state = 5, .name = "c"};
    CHECK_INT(ship_ask(&s, &q, 40, &a), SHIP_TWIN);
    CHECK_INT(a.slot, 0);
    CHECK_INT(s.standbys[0].instance, 2);
    CHECK_INT(ship_ask(&s, &q, 30 + 4 * 1000, &a), SHIP_SNAPSHOT);
    CHECK_INT(s.standbys[0].instance, 3);
    ship_fini(&s);
}

TEST(ship_begins_anew_where_bytes_are_gone_or_make_no_sense)
{
    struct ship_question q;
    struct ship_answer a;
    uint64_t at;
    struct ship s = one_in_step(&q, &at);
    for (int i = 0; i < 200; i++)
        ship_append(&s, 3, STR("0123456789"), 20);
    CHECK(s.window.len <= 2 * 1000 + 100);
    CHECK(ship_next(&s, 20, &a));
    CHECK_INT(a.stream, 0); /* it must ask for another one */
    CHECK_INT(ship_ask(&s, &q, 30, &a), SHIP_SNAPSHOT);
    ship_fini(&s);
    s = one_in_step(&q, &at);
    q.offset = at + 1;
    CHECK_INT(ship_ask(&s, &q, 30, &a), SHIP_SNAPSHOT);
    ship_fini(&s);
    s = one_in_step(&q, &at);
    q.offset = at - 1;
    CHECK_INT(ship_ask(&s, &q, 30, &a), SHIP_SNAPSHOT);
    CHECK_INT(ship_count(&s, true), 0);
    /* Those that have not asked for long are forgotten, others have room. */
    CHECK(!ship_tick(&s, 6000));
    CHECK_INT(ship_count(&s, false), 0);
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        q = (struct ship_question){
            .instance = (uint64_t)i + 10, .state = (uint64_t)i + 20, .name = "more"};
        CHECK_INT(ship_ask(&s, &q, 6000, &a), SHIP_SNAPSHOT);
    }
    q.instance = q.state = 99;
    CHECK_INT(ship_ask(&s, &q, 6000, &a), SHIP_FULL);
    ship_fini(&s);
}

TEST(follow_takes_nothing_that_does_not_fit)
{
    struct buf all = {0};
    struct follow f = {0};
    struct str records;
    records_put(&all, 1, STR("state"));
    size_t whole = all.len;
    records_put(&all, 3, STR("token"));
    struct follow_answer first = {5, 0, whole, {all.data, whole}};
    CHECK_INT(follow_take(&f, &first, &records), FOLLOW_REPLACE);
    CHECK_INT(records.len, whole);
    follow_written(&f, records);
    /* A record in two parts. */
    struct follow_answer part = {5, whole, whole, {all.data + whole, 5}};
    CHECK_INT(follow_take(&f, &part, &records), FOLLOW_ASK);
    part = (struct follow_answer){5, whole + 5, whole, {all.data + whole + 5, all.len - whole - 5}};
    CHECK_INT(follow_take(&f, &part, &records), FOLLOW_APPEND);
    CHECK_INT(records.len, all.len - whole);
    follow_written(&f, records);
    /* A gap; no stream; a snapshot that ends within a record; a spoilt record. */
    part.offset += 1000;
    CHECK_INT(follow_take(&f, &part, &records), FOLLOW_ANEW);
    CHECK_INT(f.stream, 0);
    CHECK_INT(follow_take(&f, &(struct follow_answer){0}, &records), FOLLOW_ANEW);
    first = (struct follow_answer){6, 0, whole + 3, {all.data, whole + 3}};
    CHECK_INT(follow_take(&f, &first, &records), FOLLOW_ANEW);
    all.data[whole - 1] ^= 1;
    first = (struct follow_answer){8, 0, whole, {all.data, whole}};
    CHECK_INT(follow_take(&f, &first, &records), FOLLOW_ANEW);
    CHECK_INT(f.n_restarts, 3);
    follow_fini(&f);
    buf_fini(&all);
}
