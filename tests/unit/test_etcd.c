/* tests/unit/test_etcd.c - what is asked of etcd and what is made of its answers, hostile ones too; a
 * client whose etcd is not there, or never answers, gets its answer in time. */
#include "coordinator/etcd.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "coordinator/etcd_keys.h"
#include "tests/lib/test.h"

static const struct etcd_leader self = {.instance = 0xabc,
                                        .state = 0xaaa,
                                        .name = "first",
                                        .url = "http://h:1",
                                        .cluster = "tcp://h:2"};

static int read_answer(const char *text, enum leader_ask ask, struct leader_answer *a,
                       struct etcd_leader *holder)
{
    struct leader_request r = {.ask = ask, .number = 7, .lease = 99};
    uint64_t cluster = 0;
    struct err e = {0};
    json_t *v = json_loads(text, 0, NULL);
    CHECK(v);
    int rc = etcd_answer_of(v, &r, &self, a, holder, &cluster, &e);
    json_decref(v);
    return rc;
}

TEST(etcd_answers_about_leases)
{
    struct leader_answer a;
    struct etcd_leader holder;
    CHECK_INT(read_answer("{\"ID\":\"99\",\"TTL\":\"5\"}", LEADER_GRANT, &a, &holder), 0);
    CHECK_INT(a.lease, 99);
    CHECK_INT(a.ttl_ns, 5 * CLOCK_S);
    CHECK_INT(a.number, 7);
    CHECK_INT(read_answer("{\"result\":{\"ID\":\"99\",\"TTL\":\"5\"}}", LEADER_KEEP, &a, &holder),
              0);
    CHECK_INT(a.outcome, LEADER_DONE);
    /* Without a time to live it has ended. */
    CHECK_INT(read_answer("{\"result\":{\"ID\":\"99\"}}", LEADER_KEEP, &a, &holder), 0);
    CHECK_INT(a.outcome, LEADER_NO);
    CHECK_INT(read_answer("{}", LEADER_KEEP, &a, &holder), E_CORRUPT);
    CHECK_INT(read_answer("{\"ID\":\"99\",\"TTL\":\"-5\"}", LEADER_GRANT, &a, &holder), E_CORRUPT);
    CHECK_INT(read_answer("{\"ID\":[],\"TTL\":{}}", LEADER_GRANT, &a, &holder), E_CORRUPT);
}

/* What a leader says of who is in step is read by those who look. */
static void check_in_step(void)
{
    static const uint64_t others[] = {0xdef, 0x123}, with_self[] = {0xdef, 0xaaa};
    const struct {
        const uint64_t *states;
        int n;
        int led_at; /* this directory led last, in this term; 0: another */
        bool others_have_more;
    } cases[] = {
        {others, 2, 0, true},
        {with_self, 2, 0, false},
        {others, 0, 0, false},
        /* It wrote the list; or that is an earlier leader's. */
        {others, 2, 7, false},
        {others, 2, 9, true},
    };
    /* {"instance": 1 and 2 in 16 digits, "state": aaa and bbb likewise} */
    static const char
        led[] = "eyJpbnN0YW5jZSI6IjAwMDAwMDAwMDAwMDAwMDEiLCJzdGF0ZSI6IjAwMDAwMDAwMDAwMDBhYWEifQ==",
        other[] =
            "eyJpbnN0YW5jZSI6IjAwMDAwMDAwMDAwMDAwMDIiLCJzdGF0ZSI6IjAwMDAwMDAwMDAwMDBiYmIifQ==";
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *store = etcd_store_in_step("p", 7, cases[i].states, cases[i].n);
        json_t *put =
            json_object_get(json_array_get(json_object_get(store, "success"), 0), "request_put");
        const char *value = json_string_value(json_object_get(put, "value"));
        char *last =
            mem_format("{\"mod_revision\":\"%d\",\"value\":\"%s\"}",
                       cases[i].led_at ? cases[i].led_at : 7, cases[i].led_at ? led : other);
        char *text = mem_format("{\"header\":{\"revision\":\"12\"},\"responses\":[{},"
                                "{\"response_range\":{\"kvs\":[%s]}},{\"response_range\":{\"kvs\":["
                                "{\"mod_revision\":\"8\",\"value\":\"%s\"}]}}]}",
                                last, value);
        mem_free(last);
        struct leader_answer a;
        struct etcd_leader holder;
        CHECK_INT(read_answer(text, LEADER_LOOK, &a, &holder), 0);
        CHECK_INT(a.keys.others_have_more, cases[i].others_have_more);
        mem_free(text);
        json_decref(store);
    }
}

TEST(etcd_answers_about_keys)
{
    struct leader_answer a;
    struct etcd_leader holder;
    /* {"instance":"0000000000000def","name":"n","url":"u","cluster":"c"} */
    static const char held[] =
        "{\"header\":{\"cluster_id\":\"5\",\"revision\":\"12\"},\"succeeded\":true,\"responses\":["
        "{\"response_range\":{\"kvs\":[{\"lease\":\"44\",\"mod_revision\":\"9\",\"value\":\"%s\"}]}"
        "},"
        "{\"response_range\":{\"kvs\":[{\"mod_revision\":\"9\",\"value\":\"%s\"}]}}]}";
    static const char value[] =
        "eyJpbnN0YW5jZSI6IjAwMDAwMDAwMDAwMDBkZWYiLCJuYW1lIjoibiIsInVybCI6InUi"
        "LCJjbHVzdGVyIjoiYyJ9";
    char *text = mem_format(held, value, value);
    CHECK_INT(read_answer(text, LEADER_LOOK, &a, &holder), 0);
    CHECK_INT(a.outcome, LEADER_DONE);
    CHECK_INT(a.keys.holder, 0xdef);
    CHECK_INT(a.keys.lease, 44);
    CHECK_INT(a.keys.last, 0xdef);
    CHECK_INT(a.keys.term, 9);
    CHECK_STR(holder.name, "n");
    CHECK(!a.keys.others_have_more);
    mem_free(text);
    check_in_step();
    /* Taken: the revision is the term, and the holder is who asked. */
    CHECK_INT(read_answer("{\"header\":{\"revision\":\"12\"},\"succeeded\":true}", LEADER_TAKE, &a,
                          &holder),
              0);
    CHECK_INT(a.keys.term, 12);
    CHECK_INT(a.keys.holder, 0xabc);
    /* Refused, and nobody there any more. */
    CHECK_INT(read_answer("{\"header\":{\"revision\":\"12\"}}", LEADER_TAKE, &a, &holder), 0);
    CHECK_INT(a.outcome, LEADER_NO);
    CHECK_INT(a.keys.holder, 0);
    static const char *const bad[] = {"AAAA", "%%%", "", "e30="};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        text = mem_format(held, bad[i], bad[i]);
        CHECK_INT(read_answer(text, LEADER_LOOK, &a, &holder), E_CORRUPT);
        mem_free(text);
    }
    CHECK_INT(read_answer("{}", LEADER_LOOK, &a, &holder), E_CORRUPT);
}

/* Any part of an answer may be anything. */
TEST(etcd_answers_that_were_tampered_with_are_refused_or_read)
{
    static const char good[] =
        "{\"header\":{\"revision\":\"12\"},\"responses\":[{\"response_range\":{\"kvs\":[{\"lease\":"
        "\"44\",\"mod_revision\":\"9\",\"value\":\"eyJpbnN0YW5jZSI6IjAwMDAwMDAwMDAwMDBkZWYifQ==\"}]"
        "}}],"
        "\"kvs\":[{\"key\":\"L3Avbm9kZXMvYQ==\",\"value\":\"eyJob3N0IjoiaCIsImhvbGRzIjoiQUE9PSJ9\"}"
        "]}";
    struct rng rng = test_rng();
    int n_read = 0;
    for (int k = 0; k < 20000; k++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (int i = 0; i < 3; i++)
            text[rng_below(&rng, sizeof good - 1)] = (char)(' ' + rng_below(&rng, 95));
        json_t *v = json_loads(text, 0, NULL);
        if (!v)
            continue;
        struct leader_request r = {.ask = (enum leader_ask)rng_below(&rng, 4)};
        struct leader_answer a;
        struct etcd_leader holder;
        struct err e = {0};
        uint64_t cluster;
        n_read += etcd_answer_of(v, &r, &self, &a, &holder, &cluster, &e) == 0;
        json_decref(v);
    }
    CHECK(n_read > 0);
}

struct seen {
    int n;
    uint8_t holds[3];
    char name[16];
};

static void on_node(void *ud, const struct etcd_node *n)
{
    struct seen *s = ud;
    s->n++;
    snprintf(s->name, sizeof s->name, "%s", n->name);
    memcpy(s->holds, n->holds, sizeof s->holds);
    CHECK_INT(n->capacity, 77);
    CHECK_STR(n->host, "h");
}

/* What a store puts is what a fetch would give. */
TEST(etcd_gives_back_a_placement)
{
    static const uint8_t holds[3] = {1, 0, 255};
    struct etcd_placement p = {
        .version = 1795409857389, .fingerprint = 5, .n_layers = 3, .n_experts = 8};
    struct etcd_node nodes[2] = {
        {.name = "expert-0", .host = "h", .capacity = 77, .holds = holds, .holds_bytes = 3},
        {.name = "gone"}};
    json_t *body = etcd_store("/p", 9, &p, nodes, 2), *kvs = json_array(), *op;
    size_t i;
    json_array_foreach(json_object_get(body, "success"), i, op)
    {
        json_t *put = json_object_get(op, "request_put");
        if (put)
            json_array_append(kvs, put);
    }
    json_t *answer = json_pack("{so}", "kvs", kvs);
    struct seen s = {0};
    struct etcd_placement got;
    CHECK_INT(etcd_read_placement(answer, "/p", 3, &got, on_node, &s), 0);
    CHECK_INT(s.n, 1);
    CHECK_STR(s.name, "expert-0");
    CHECK_BYTES(s.holds, holds, 3);
    CHECK_INT(got.version, p.version);
    CHECK_INT(got.n_layers, 3);
    CHECK_INT(got.fingerprint, 5);
    /* Another model's bitmap is no node's. */
    CHECK_INT(etcd_read_placement(answer, "/p", 4, &got, on_node, &s), 1);
    CHECK_INT(s.n, 1);
    json_decref(answer);
    json_decref(body);
}

/* ---- the client ------------------------------------------------------------------------------ */

struct got {
    int n, code;
    char why[200];
};

static void on_done(void *ud, int code, const json_t *answer, const char *why)
{
    struct got *g = ud;
    CHECK(code == 0 || !answer);
    g->n++;
    g->code = code;
    snprintf(g->why, sizeof g->why, "%s", why);
}

static void ask_once(const char *endpoints, struct got *g)
{
    struct loop *loop;
    struct etcd *c;
    struct err e = {0};
    struct etcd_options o = {endpoints, "", "", "", "", ""};
    *g = (struct got){0};
    CHECK_INT(loop_open(&loop, NULL), 0);
    CHECK_INT(etcd_open(loop, &o, &c, &e), 0);
    int64_t from_ns = clock_now_ns();
    CHECK_INT(etcd_post(c, "/v3/kv/range", json_object(), 200 * CLOCK_MS, on_done, g), 0);
    while (g->n == 0) {
        CHECK(clock_now_ns() - from_ns < 20 * CLOCK_S);
        loop_turn(loop, clock_now_ns() + 50 * CLOCK_MS);
    }
    CHECK(etcd_why_lost(c));
    etcd_close(&c);
    loop_close(&loop);
}

static int listen_somewhere(char *endpoint, size_t bytes)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&a, size) == 0 && listen(fd, 8) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&a, &size) == 0);
    snprintf(endpoint, bytes, "http://127.0.0.1:%d", ntohs(a.sin_port));
    return fd;
}

TEST(etcd_that_is_not_there_costs_no_more_than_the_time_allowed)
{
    char silent[64], both[160];
    struct got g;
    int fd = listen_somewhere(silent, sizeof silent);
    ask_once(silent, &g);
    CHECK_INT(g.code, E_DEADLINE);
    close(fd);
    ask_once(silent, &g);
    CHECK(g.code == E_UNAVAILABLE || g.code == E_DEADLINE);
    CHECK_HAS(g.why, silent);
    snprintf(both, sizeof both, "%s,%s", silent, silent);
    ask_once(both, &g);
    CHECK(g.code < 0);
}

TEST(etcd_options_are_checked)
{
    struct etcd_options o = {"http://127.0.0.1:2379,https://b:2379", "", "", "", "", ""};
    struct err e = {0};
    CHECK_INT(etcd_check(&o, false, &e), 0);
    o.endpoints = "b:2379";
    CHECK_INT(etcd_check(&o, false, &e), E_INVALID);
    CHECK_HAS(e.text, "etcd.endpoints");
    o.endpoints = "http://b:2379";
    o.user = "u";
    CHECK_INT(etcd_check(&o, false, &e), E_INVALID);
    CHECK_HAS(e.text, "password");
    CHECK_INT(etcd_check(&o, true, &e), E_INVALID); /* a user without a password's file */
    o.password_file = "p";
    CHECK_INT(etcd_check(&o, true, &e), 0);
    o.endpoints = "https://b:2379";
    CHECK_INT(etcd_check(&o, false, &e), 0);
    o.cert_file = "c";
    CHECK_INT(etcd_check(&o, false, &e), E_INVALID);
}
