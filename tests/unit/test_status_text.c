/* tests/unit/test_status_text.c - what `polymath status` makes of an answer of /cluster. */
#include "tools/status_text.h"

#include <string.h>

#include "base/mem.h"
#include "tests/lib/test.h"

/* A cluster with these nodes, coordinator of build "one". */
static char *cluster_of(const char *nodes, const char *more)
{
    return mem_format("{\"model\":{\"name\":\"m\", \"format\":\"q8\", \"combine\":\"node\", "
                      "\"fingerprint\":\"f\"},"
                      "\"ready\":true, \"epoch\":7, \"version\":\"one\", \"coverage\":{\"live\":4, "
                      "\"experts\":8},"
                      "\"placement\":{\"replicas\":2, \"copies\":8, \"settled\":true}, "
                      "\"requests\":{\"running\":3},"
                      "\"nodes\":[%s]%s}",
                      nodes, more);
}

#define EXPERT(name, host, rack, build) \
    "{\"name\":\"" name "\", \"role\":\"expert\", \"state\":\"ready\", \"host\":\"" host \
    "\", \"rack\":\"" rack "\", \"build\":\"" build \
    "\", \"experts_held\":3, \"experts_wanted\":4," \
    "\"held_bytes\":3221225472, \"read_bytes_s\":80000000000, \"heartbeat_age_ms\":12}"
#define ATTENTION(name, build) \
    "{\"name\":\"" name \
    "\", \"role\":\"attention\", \"state\":\"draining\", \"host\":\"a\", \"rack\":" \
    "\"\", \"build\":\"" build "\", \"kv_pages_free\":1024}"
#define GONE(name, build) \
    "{\"name\":\"" name \
    "\", \"role\":\"expert\", \"state\":\"gone\", \"host\":\"a\", \"rack\":\"\"," \
    "\"build\":\"" build "\"}"

static struct buf text_of(const char *nodes, const char *more)
{
    struct buf out = {0};
    char *json = cluster_of(nodes, more);
    json_t *root = json_loads(json, 0, NULL);
    CHECK(root != NULL);
    status_text(root, &out);
    json_decref(root);
    mem_free(json);
    return out;
}

static void check_says(const char *nodes, const char *more, const char *what)
{
    struct buf out = text_of(nodes, more);
    CHECK_HAS(out.data, what);
    buf_fini(&out);
}

static void check_does_not_say(const char *nodes, const char *more, const char *what)
{
    struct buf out = text_of(nodes, more);
    if (strstr(out.data, what))
        test_fail(__FILE__, __LINE__, "says '%s': %s", what, out.data);
    buf_fini(&out);
}

/* Of the line with `what`: its characters, not its bytes. */
static int columns_with(const struct buf *text, const char *what)
{
    const char *at = strstr(text->data, what);
    int n = 0;
    CHECK(at);
    while (at > text->data && at[-1] != '\n')
        at--;
    for (; *at && *at != '\n'; at++)
        n += ((unsigned char)*at & 0xc0) != 0x80;
    return n;
}

TEST(status_shows_each_nodes_host_and_rack)
{
    check_says(EXPERT("e0", "alpha", "r1", "one") "," ATTENTION("att", "one"), "",
               "\n  node  role       state     host   rack  experts/KV   memory  GB/s  seen ms\n"
               "  e0    expert     ready     alpha  r1    3/4         3.0 GiB  80.0       12\n"
               "  att   attention  draining  a            1024 free         -     -        0\n");
    /* No rack anywhere: no column for it. */
    check_does_not_say(ATTENTION("att", "one"), "", "rack");
    check_says("", "", "epoch 7, experts 4 of 8 placed");
}

TEST(status_says_who_runs_which_build_where_they_differ)
{
    static const char two[] = EXPERT("e0", "a", "", "one") "," EXPERT(
        "e1", "b", "", "two") "," EXPERT("e2", "c", "", "two") "," GONE("e3", "three");
    check_says(two, "",
               "  2 builds run, as in a rolling upgrade:\n"
               "    A one, this coordinator, e0\n"
               "    B two, e1, e2\n");
    check_says(two, "", "  3/4         3.0 GiB  80.0       12  A\n");
    check_says(two, "", "  3/4         3.0 GiB  80.0       12  B\n");
    check_does_not_say(EXPERT("e0", "a", "", "one") "," GONE("e3", "three"), "", "build");
    /* The coordinator alone is behind. */
    check_says(EXPERT("e0", "a", "", "two"), "", "    A one, this coordinator\n    B two, e0\n");
    check_says(EXPERT("e0", "a", "", ""), "", "    B not told, e0\n");
}

TEST(status_names_few_of_many_nodes_and_takes_many_builds)
{
    struct buf nodes = {0};
    for (int i = 0; i < 60; i++)
        buf_printf(&nodes,
                   "%s{\"name\":\"a-node-of-number-%d\", \"state\":\"ready\", \"build\":\"%s%d\"}",
                   i ? "," : "", i, i < 30 ? "two" : "b", i < 30 ? 0 : i);
    struct buf out = text_of(nodes.data, "");
    CHECK_HAS(out.data, "  26 builds run");
    CHECK_HAS(out.data, "a-node-of-number-11 and 18 more\n");
    CHECK_HAS(out.data, "  ?\n");
    for (const char *at = out.data; *at; at += strcspn(at, "\n") + 1)
        CHECK((int)strcspn(at, "\n") <= STATUS_TEXT_COLUMNS);
    buf_fini(&out);
    buf_fini(&nodes);
}

TEST(status_is_narrow_whatever_names_are)
{
    static const char host[] = "m\\u00fcnchen-with-a-long-name-and-then-some.example.org";
    char *nodes = mem_format(
        "{\"name\":\"%s-node\\u001b[2J\", \"role\":\"attention\", \"state\":\"quarantined\", "
        "\"host\":\"%s\","
        "\"rack\":\"%s-rack\", \"build\":\"x\", \"kv_pages_free\":123456, "
        "\"heartbeat_age_ms\":123456},"
        "{\"name\":\"b\", \"role\":\"expert\", \"state\":\"ready\", \"held_bytes\":1098437885952}",
        host, host, host);
    struct buf out = text_of(nodes, "");
    CHECK_INT(columns_with(&out, "experts/KV"), STATUS_TEXT_COLUMNS);
    CHECK_HAS(out.data, "m\303\274nchen");
    CHECK_HAS(out.data, "1023.0 GiB");
    CHECK(!strchr(out.data, '\033'));
    CHECK_HAS(out.data, "~");
    buf_fini(&out);
    mem_free(nodes);
}

TEST(status_tells_how_far_the_token_log_is)
{
    check_does_not_say("", "", "token log");
    check_says(
        "",
        ",\"token_log\":{\"records\":1240, \"on_record\":1234, \"bytes\":1258291,"
        "\"max_bytes\":67108864, \"synced\":true}",
        "  token log on disk: 1234 of 1240 records since the start, 1.2 MiB of at most 64.0 MiB\n");
    check_says("", ",\"token_log\":{\"stopped\":\"disk full\"}",
               "  the token log has stopped: disk full\n");
    static const char standbys[] =
        ",\"leadership\":{\"role\":\"leader\", \"etcd\":\"ok\", \"leader\":\"c\", "
        "\"leader_url\":\"u\","
        "\"standbys\":[{\"name\":\"s1\", \"in_step\":true, \"has_bytes\":2048, \"lag_bytes\":0},"
        "{\"name\":\"s2\", \"in_step\":false, \"has_bytes\":1024, \"lag_bytes\":500}]}";
    check_says("", standbys, "  this coordinator: leader; leader: c u; etcd: ok\n");
    check_says("", standbys, "  standby s1: in step, has 2.0 KiB, which is all of the token log\n");
    check_says("", standbys,
               "  standby s2: catching up, has 1.0 KiB of 1.5 KiB of the token log\n");
    check_says("",
               ",\"leadership\":{\"role\":\"standby\", \"etcd\":\"ok\", \"copy\":{\"leader\":\"c\","
               "\"bytes\":300, \"age_ms\":40}}",
               "  copies the token log of c: 300 B so far, last heard of 40 ms ago\n");
}
