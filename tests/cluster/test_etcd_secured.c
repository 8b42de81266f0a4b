/* tests/cluster/test_etcd_secured.c - an etcd with TLS, client certificates and users: a coordinator
 * that has all of it leads, and whoever lacks a part is told which option is wrong. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "coordinator/etcd.h"
#include "tests/lib/cluster.h"
#include "tests/lib/etcd.h"
#include "tests/lib/test.h"

/* Two authorities; etcd's certificate, ours, one with a common name, and one of the other authority. */
static const char make_certificates[] =
    "set -e; exec 2>openssl.log\n"
    "new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'\n"
    "for a in ca other; do openssl req -x509 $new -keyout $a.key -out $a.pem -days 2 -subj /CN=$a; "
    "done\n"
    "printf 'subjectAltName=IP:127.0.0.1\\n' >names\n"
    "leaf() { openssl req $new -keyout $1.key -out $1.csr -subj $2\n"
    "  openssl x509 -req -in $1.csr -CA $3.pem -CAkey $3.key -CAcreateserial -days 2 -extfile "
    "names \\\n"
    "    -out $1.pem; }\n"
    "leaf server /O=etcd ca; leaf client /O=polymath ca; leaf named /CN=polymath ca\n"
    "leaf stranger /O=polymath other\n";

static void write_password(const char *path, const char *password)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && dprintf(fd, "%s\n", password) > 0);
    close(fd);
}

struct got {
    bool is_done;
    int code;
    char why[ERR_TEXT_BYTES];
};

static void on_done(void *ud, int code, const json_t *answer, const char *why)
{
    struct got *g = ud;
    (void)answer;
    g->is_done = true;
    g->code = code;
    snprintf(g->why, sizeof g->why, "%s", why);
}

/* One exchange by a client of its own. */
static struct got ask(const struct etcd_options *o, const char *path, const char *body)
{
    struct loop *loop;
    struct etcd *c;
    struct err e = {0};
    struct got g = {0};
    CHECK_INT(loop_open(&loop, NULL), 0);
    if (etcd_open(loop, o, &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_INT(etcd_post(c, path, json_loads(body, 0, NULL), 10 * CLOCK_S, on_done, &g), 0);
    while (!g.is_done)
        loop_turn(loop, clock_now_ns() + 50 * CLOCK_MS);
    etcd_close(&c);
    loop_close(&loop);
    return g;
}

/* base64 of /polymath/x, of /other, and of /polymath to its end. */
static const char range[] = "{\"key\":\"L3BvbHltYXRoL3g=\"}";
static const char range_elsewhere[] = "{\"key\":\"L290aGVy\"}";
static const char grant[] =
    "{\"name\":\"role\",\"perm\":{\"permType\":\"READWRITE\",\"key\":\"L3BvbHltYXRo\","
    "\"range_end\":\"L3BvbHltYXRp\"}}";

static void make_users(const struct etcd_options *o)
{
    static const char *const steps[][2] = {
        {"/v3/auth/user/add", "{\"name\":\"root\",\"password\":\"of root\"}"},
        {"/v3/auth/role/add", "{\"name\":\"root\"}"},
        {"/v3/auth/user/grant", "{\"user\":\"root\",\"role\":\"root\"}"},
        {"/v3/auth/user/add", "{\"name\":\"polymath\",\"password\":\"se cret\"}"},
        {"/v3/auth/role/add", "{\"name\":\"role\"}"},
        {"/v3/auth/role/grant", grant},
        {"/v3/auth/user/grant", "{\"user\":\"polymath\",\"role\":\"role\"}"},
        {"/v3/auth/enable", "{}"}};
    int64_t deadline_ns = clock_now_ns() + 30 * CLOCK_S;
    struct got g;
    while ((g = ask(o, "/v3/kv/range", range)).code < 0) {
        if (clock_now_ns() > deadline_ns)
            test_fail(__FILE__, __LINE__, "etcd does not answer: %s", g.why);
        clock_sleep_until(clock_now_ns() + 20 * CLOCK_MS);
    }
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        if ((g = ask(o, steps[i][0], steps[i][1])).code < 0)
            test_fail(__FILE__, __LINE__, "%s: %s", steps[i][0], g.why);
}

static void begin(struct local_etcd *t, struct etcd_options *right)
{
    if (access("/usr/bin/openssl", X_OK) != 0)
        test_skip("openssl is missing");
    CHECK_INT(system(make_certificates), 0);
    write_password("password", "se cret");
    write_password("wrong", "open sesame");
    etcd_begin_secured(t);
    *right = (struct etcd_options){t->url, "ca.pem", "client.pem", "client.key", "", ""};
    make_users(right);
    right->user = "polymath";
    right->password_file = "password";
}

static void check_refused(struct etcd_options o, const char *body, const char *option,
                          const char *remedy)
{
    struct got g = ask(&o, "/v3/kv/range", body);
    CHECK(g.code < 0);
    CHECK_HAS(g.why, option);
    CHECK_HAS(g.why, remedy);
}

TEST(etcd_with_keys_and_users_takes_who_has_all_and_tells_others_what_is_wrong)
{
    struct local_etcd t;
    struct etcd_options right, o;
    begin(&t, &right);
    struct got g = ask(&right, "/v3/kv/range", range);
    CHECK_STR(g.why, "");
    CHECK_INT(g.code, 0);

    o = right, o.ca_file = "other.pem";
    check_refused(o, range, "etcd.ca_file", "signs this etcd's");
    o = right, o.ca_file = ""; /* the system's */
    check_refused(o, range, "etcd.ca_file", "signs this etcd's");
    o = right, o.cert_file = o.key_file = "";
    check_refused(o, range, "etcd.cert_file", "--trusted-ca-file");
    o = right, o.cert_file = "stranger.pem", o.key_file = "stranger.key";
    check_refused(o, range, "etcd.cert_file", "--trusted-ca-file");
    o = right, o.cert_file = "named.pem", o.key_file = "named.key";
    check_refused(o, range, "etcd.cert_file", "without CN");
    o = right, o.key_file = "server.key";
    check_refused(o, range, "etcd.key_file", "the key to it");
    o = right, o.password_file = "wrong";
    check_refused(o, range, "etcd.password_file", "user passwd");
    o = right, o.user = "nobody";
    check_refused(o, range, "etcd.user", "does not exist");
    o = right, o.user = o.password_file = "";
    check_refused(o, range, "etcd.user", "etcd.password_file");
    check_refused(right, range_elsewhere, "etcd.prefix", "grant-permission");
    char plain[64];
    snprintf(plain, sizeof plain, "http://127.0.0.1:%d", t.client_port);
    o = right, o.endpoints = plain;
    check_refused(o, range, "etcd.endpoints", "https://");

    struct loop *loop;
    struct etcd *c;
    struct err e = {0};
    CHECK_INT(loop_open(&loop, NULL), 0);
    o = right, o.ca_file = "absent.pem";
    CHECK_INT(etcd_open(loop, &o, &c, &e), E_INVALID);
    CHECK_HAS(e.text, "etcd.ca_file: absent.pem");
    loop_close(&loop);
    etcd_end(&t);
}

TEST_WITHIN(a_coordinator_leads_through_an_etcd_with_keys_and_users, 180)
{
    static struct cluster cluster;
    static char endpoints[96], url[64];
    struct local_etcd t;
    struct etcd_options right;
    begin(&t, &right);
    snprintf(endpoints, sizeof endpoints, "etcd.endpoints=%s", t.url);
    const char *const settings[] = {endpoints,
                                    "etcd.lease_ms=5000",
                                    "etcd.ca_file=ca.pem",
                                    "etcd.cert_file=client.pem",
                                    "etcd.key_file=client.key",
                                    "etcd.user=polymath",
                                    "etcd.password_file=password",
                                    NULL};
    cluster_start(&cluster, 1, 0, settings);
    cluster_wait_log("coordinator", "ev=leader.leads");
    json_t *health = cluster_ask_json(&cluster, "/health", NULL);
    CHECK_STR(json_string_value(json_object_get(health, "role")), "leader");
    json_decref(health);
    /* One with a wrong password neither leads nor dies. */
    const char *const second[] = {"cluster.listen=ipc://second.sock", "node.name=second",
                                  "etcd.password_file=wrong", NULL};
    cluster_start_another(&cluster, "second", second, url);
    cluster_wait_log("second", "etcd.password_file");
    struct buf log = cluster_log("second");
    CHECK(!strstr(log.data, "ev=leader.leads"));
    CHECK(!strstr(log.data, "sesame"));
    buf_fini(&log);
    cluster_stop(&cluster);
    etcd_end(&t);
}
