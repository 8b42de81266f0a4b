/* tests/unit/test_members.c - who may join, who is alive. */
#include "coordinator/members.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/version.h"
#include "tests/lib/test.h"

static struct members members;
static struct err err;

static struct format_set formats(const char *text)
{
    struct format_set s;
    CHECK_INT(format_set_parse(text, &s, NULL), 0);
    return s;
}

static void begin(void)
{
    struct members_config c = {.fingerprint = 0xabc,
                               .formats = formats("fp8"),
                               .combine = COMBINE_FIXED,
                               .lease_ns = CLOCK_S};
    members_init(&members, &c);
}

static struct wire_join joiner(const char *name, uint64_t incarnation)
{
    struct wire_join j = {.role = NODE_EXPERT,
                          .incarnation = incarnation,
                          .protocol_version = POLYMATH_PROTOCOL_VERSION,
                          .fingerprint = 0xabc,
                          .formats = formats("fp8"),
                          .combine = COMBINE_FIXED};
    snprintf(j.name, sizeof j.name, "%s", name);
    snprintf(j.endpoint, sizeof j.endpoint, "tcp://127.0.0.1:%llu",
             (unsigned long long)(5000 + incarnation));
    snprintf(j.host, sizeof j.host, "h");
    return j;
}

static struct members_joined joined;
static int join(const char *name, uint64_t incarnation, int64_t now_ns)
{
    struct wire_join j = joiner(name, incarnation);
    err = (struct err){0};
    return members_join(&members, &j, now_ns, &joined, &err);
}

TEST(members_give_every_process_its_own_id)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    CHECK(joined.is_new);
    uint32_t a = joined.node->id;
    CHECK(a != 0);
    CHECK_INT(join("b", 2, 0), 0);
    CHECK(joined.node->id != a);
    CHECK_INT(members_count(&members, NODE_EXPERT), 2);
    CHECK_INT(members_count(&members, NODE_ATTENTION), 0);
    members_fini(&members);
}

TEST(members_take_a_repeated_join_as_one)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    uint32_t id = joined.node->id;
    CHECK_INT(join("a", 1, 10), 0);
    CHECK(!joined.is_new);
    CHECK_INT(joined.node->id, id);
    CHECK_INT(members_count(&members, NODE_EXPERT), 1);
    members_fini(&members);
}

TEST(members_refuse_another_model_and_name_the_field)
{
    begin();
    struct wire_join j = joiner("a", 1);
    j.fingerprint = 0xdef;
    CHECK_INT(members_join(&members, &j, 0, &joined, &err), E_PRECONDITION);
    CHECK_HAS(err.text, "fingerprint");
    CHECK_HAS(err.text, "0000000000000def");
    CHECK_HAS(err.text, "0000000000000abc");
    j = joiner("a", 1);
    /* One part that differs is enough. */
    j.formats = formats("fp8,experts=q4");
    CHECK_INT(members_join(&members, &j, 0, &joined, &err), E_PRECONDITION);
    CHECK_HAS(err.text, "weights.format: a uses experts=q4,attention=fp8,head=fp8,kv=bf16, "
                        "the coordinator fp8,kv=bf16");
    j.formats = formats("fp8,kv=int8");
    CHECK_INT(members_join(&members, &j, 0, &joined, &err), E_PRECONDITION);
    CHECK_HAS(err.text, "weights.format: a uses fp8,kv=int8, the coordinator fp8,kv=bf16");
    j = joiner("a", 1);
    j.combine = COMBINE_NODE;
    CHECK_INT(members_join(&members, &j, 0, &joined, &err), E_PRECONDITION);
    CHECK_HAS(err.text, "weights.combine: a uses node, the coordinator fixed");
    j = joiner("a", 1);
    j.protocol_version++;
    CHECK_INT(members_join(&members, &j, 0, &joined, &err), E_PRECONDITION);
    CHECK_HAS(err.text, "protocol_version");
    CHECK_INT(members.n_nodes, 0);
    members_fini(&members);
}

TEST(members_keep_a_live_name_from_another_process)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    CHECK_INT(join("a", 2, CLOCK_MS), E_EXISTS);
    CHECK_HAS(err.text, "\"a\"");
    /* Once the lease is over the name is free. */
    CHECK(members_expire(&members, 2 * CLOCK_S) != NULL);
    CHECK_INT(join("a", 2, 2 * CLOCK_S), 0);
    CHECK(joined.is_new);
    CHECK_INT(joined.gone_id, 0);
    CHECK_INT(members.n_nodes, 1);
    members_fini(&members);
}

TEST(members_replace_a_process_that_lost_its_address)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    uint32_t before = joined.node->id;
    struct wire_join j = joiner("a", 1);
    j.incarnation = 99;
    CHECK_INT(members_join(&members, &j, 1, &joined, &err), 0);
    CHECK(joined.is_new);
    CHECK_INT(joined.gone_id, before);
    CHECK(joined.node->id != before);
    members_fini(&members);
}

TEST(members_live_by_their_lease)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    uint32_t a = joined.node->id;
    CHECK_INT(join("b", 2, 0), 0);
    struct wire_heartbeat beat = {.node_id = a, .incarnation = 1, .state = NODE_READY, .epoch = 7};
    struct node *n;
    CHECK_INT(members_heartbeat(&members, &beat, 900 * CLOCK_MS, &n), 0);
    CHECK_INT(n->state, NODE_READY);
    CHECK_INT(n->last.epoch, 7);
    CHECK(members_expire(&members, CLOCK_S) == NULL);
    n = members_expire(&members, CLOCK_S + 1);
    CHECK(n != NULL);
    CHECK_STR(n->join.name, "b");
    CHECK(members_expire(&members, CLOCK_S + 1) == NULL);
    CHECK(members_find(&members, a) != NULL);
    CHECK(members_find(&members, n->id) == NULL);
    /* A report of the dead brings nobody back. */
    beat = (struct wire_heartbeat){.node_id = n->id, .incarnation = 2, .state = NODE_READY};
    CHECK_INT(members_heartbeat(&members, &beat, CLOCK_S + 2, &n), E_NOT_FOUND);
    members_fini(&members);
}

TEST(members_hear_only_the_process_that_joined)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    uint32_t a = joined.node->id;
    struct node *n;
    struct wire_heartbeat beat = {.node_id = a, .incarnation = 2, .state = NODE_READY};
    CHECK_INT(members_heartbeat(&members, &beat, 1, &n), E_NOT_FOUND);
    struct wire_leave leave = {.node_id = a, .incarnation = 2};
    CHECK_INT(members_leave(&members, &leave, &n), E_NOT_FOUND);
    CHECK(members_find(&members, a) != NULL);
    leave.incarnation = 1;
    CHECK_INT(members_leave(&members, &leave, &n), 0);
    CHECK(members_find(&members, a) == NULL);
    members_fini(&members);
}

TEST(members_forget_the_long_gone)
{
    begin();
    for (int i = 0; i < 1000; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%d", i);
        CHECK_INT(join(name, (uint64_t)i + 1, i), 0);
        struct wire_leave leave = {.node_id = joined.node->id, .incarnation = (uint64_t)i + 1};
        struct node *n;
        CHECK_INT(members_leave(&members, &leave, &n), 0);
    }
    CHECK(members.n_nodes < 100);
    members_fini(&members);
}

/* ---- trust ----------------------------------------------------------------------------- */

static uint32_t trusted_one(void)
{
    begin();
    CHECK_INT(join("a", 1, 0), 0);
    return joined.node->id;
}

static bool judge(uint32_t id, bool is_wrong, bool is_silent, uint64_t side_epoch, int64_t now_ns)
{
    struct members_opinion o = {.node_id = id,
                                .incarnation = 1,
                                .is_wrong = is_wrong,
                                .is_silent = is_silent,
                                .side_epoch = side_epoch,
                                .epoch = 10};
    return members_judge(&members, &o, now_ns);
}

/* It passes whatever test it was asked for. */
static void pass(uint32_t id, int64_t now_ns)
{
    struct node *n = members_find(&members, id);
    struct wire_heartbeat h = {
        .node_id = id, .incarnation = 1, .state = NODE_READY, .tested = n->test};
    CHECK_INT(members_heartbeat(&members, &h, now_ns, &n), 0);
}

TEST(members_quarantine_who_answers_wrongly_until_it_passed_a_test)
{
    uint32_t id = trusted_one();
    struct node *n = members_find(&members, id);
    CHECK(judge(id, true, false, 10, CLOCK_S));
    CHECK_INT(n->trust, NODE_QUARANTINED);
    CHECK(n->test > 0);
    CHECK(!judge(id, true, false, 10, CLOCK_S)); /* once */
    CHECK(members_forgive(&members, 11, 100 * CLOCK_S) == NULL);
    pass(id, 2 * CLOCK_S);
    CHECK(members_forgive(&members, 11, 2 * CLOCK_S - 1) == NULL);
    CHECK(members_forgive(&members, 11, 2 * CLOCK_S) == n);
    CHECK_INT(n->trust, NODE_TRUSTED);
    CHECK(members_forgive(&members, 11, 2 * CLOCK_S) == NULL);
    /* A side that has not heard of it yet speaks of the past. */
    CHECK(!judge(id, true, false, 11, 3 * CLOCK_S));
    CHECK(judge(id, true, false, 12, 3 * CLOCK_S));
    members_fini(&members);
}

TEST(members_wait_longer_with_every_time)
{
    uint32_t id = trusted_one();
    struct node *n = members_find(&members, id);
    int64_t now_ns = CLOCK_S, pause_ns = MEMBERS_PAUSE_NS;
    for (int i = 0; i < 4; i++) {
        CHECK(judge(id, true, false, 1000, now_ns));
        CHECK_INT(n->until_ns - now_ns, pause_ns);
        now_ns = n->until_ns;
        pass(id, now_ns);
        CHECK(members_forgive(&members, 11, now_ns) == n);
        pause_ns *= 2;
    }
    /* Long ago is forgotten. */
    now_ns += MEMBERS_PAUSE_MAX_NS + 1;
    CHECK(judge(id, true, false, 1000, now_ns));
    CHECK_INT(n->until_ns - now_ns, MEMBERS_PAUSE_NS);
    members_fini(&members);
}

/* An attention side beats and names the processes whose connections broke. */
static void side_beats(uint32_t id, const uint64_t *broken, uint32_t n, int64_t now_ns)
{
    struct node *node;
    struct wire_heartbeat h = {.node_id = id, .incarnation = 9, .state = NODE_READY, .n_broken = n};
    for (uint32_t i = 0; i < n; i++)
        h.broken[i] = broken[i];
    CHECK_INT(members_heartbeat(&members, &h, now_ns, &node), 0);
}

TEST(members_whose_connection_broke_have_one_heartbeat_left)
{
    struct err e = {0};
    begin();
    members.config.missed_ns = 300 * CLOCK_MS;
    CHECK_INT(join("a", 1, 0), 0);
    struct node *a = joined.node;
    /* A context node as well as an expert node. */
    struct wire_join lends = joiner("b", 2);
    lends.role = NODE_CONTEXT;
    CHECK_INT(members_join(&members, &lends, 0, &joined, &e), 0);
    struct node *b = joined.node;
    CHECK_INT(members_count(&members, NODE_CONTEXT), 1);
    struct wire_join side_joins = joiner("side", 9);
    side_joins.role = NODE_ATTENTION;
    CHECK_INT(members_join(&members, &side_joins, 0, &joined, &e), 0);
    uint32_t side = joined.node->id;
    const uint64_t broken[] = {2, 1};
    side_beats(side, broken, 2, 200 * CLOCK_MS);
    pass(a->id, 250 * CLOCK_MS); /* it lives: whatever broke, it was not the process */
    CHECK(members_expire(&members, 300 * CLOCK_MS) == NULL);
    CHECK(members_expire(&members, 301 * CLOCK_MS) == b);
    CHECK(b->is_missed);
    CHECK(members_expire(&members, 550 * CLOCK_MS) == NULL);
    /* Nobody misses it any more: its lease is as long as anybody's. */
    side_beats(side, NULL, 0, 550 * CLOCK_MS);
    CHECK(members_expire(&members, 250 * CLOCK_MS + CLOCK_S) == NULL);
    side_beats(side, NULL, 0, CLOCK_S);
    CHECK(members_expire(&members, 251 * CLOCK_MS + CLOCK_S) == a);
    CHECK(!a->is_missed);
    members_fini(&members);
}

TEST(members_suspect_who_is_silent_for_long)
{
    uint32_t id = trusted_one();
    struct node *n = members_find(&members, id);
    CHECK(!judge(id, false, true, 10, CLOCK_S));
    CHECK(!judge(id, false, true, 10, CLOCK_S + MEMBERS_PATIENCE_NS - 1));
    CHECK(!judge(id, false, false, 10, CLOCK_S + MEMBERS_PATIENCE_NS - 1)); /* it answers */
    CHECK(!judge(id, false, true, 10, 3 * CLOCK_S));
    CHECK(judge(id, false, true, 10, 3 * CLOCK_S + MEMBERS_PATIENCE_NS));
    CHECK_INT(n->trust, NODE_SUSPECT);
    /* Of another process of that name, or of nobody. */
    struct members_opinion other = {.node_id = id, .incarnation = 2, .is_wrong = true};
    CHECK(!members_judge(&members, &other, 9 * CLOCK_S));
    other.node_id = id + 7;
    CHECK(!members_judge(&members, &other, 9 * CLOCK_S));
    members_fini(&members);
}

TEST(nobody_is_expelled_for_what_the_coordinator_did_not_hear)
{
    struct members_joined got;
    begin();
    struct wire_join j = joiner("a", 1);
    CHECK_INT(members_join(&members, &j, 0, &got, &err), 0);
    members_extend(&members, 5 * CLOCK_S);
    CHECK(!members_expire(&members, 6 * CLOCK_S));
    CHECK(members_expire(&members, 6 * CLOCK_S + 1) == got.node);
    members_fini(&members);
}
