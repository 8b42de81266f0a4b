/* tests/unit/test_access.c - API keys: their file, who is let in, and limits in simulated time. */
#include "coordinator/access.h"

#include <stdio.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/safe_file.h"
#include "tests/lib/test.h"

static void write_keys(const struct api_key_line *lines, int n)
{
    struct buf text = {0};
    struct err e = {0};
    buf_puts(&text, "# clients\n\n");
    for (int i = 0; i < n; i++)
        api_key_print(&lines[i], &text);
    if (safe_file_replace("keys", SAFE_FILE_PUBLIC, buf_str(&text), &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    buf_fini(&text);
}

static struct api_key_line make_line(const char *name, struct api_key_limits limits,
                                     char key[API_KEY_TEXT_BYTES])
{
    struct api_key_line line = {.limits = limits};
    snprintf(line.name, sizeof line.name, "%s", name);
    api_key_make(&line, key);
    return line;
}

static struct access *open_access(void)
{
    struct access *a;
    struct err e = {0};
    if (access_open("keys", 0, &a, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return a;
}

TEST(api_keys_come_back_from_their_file)
{
    char keys[3][API_KEY_TEXT_BYTES];
    struct api_key_line in[] = {
        make_line("alice", (struct api_key_limits){60, 100000, 4, 7, 9, 3, false}, keys[0]),
        make_line("ops", (struct api_key_limits){.priority = 5, .is_admin = true}, keys[1]),
        make_line("b.c-d_e", (struct api_key_limits){.streams = 1}, keys[2]),
    };
    struct buf text = {0};
    for (int i = 0; i < 3; i++)
        api_key_print(&in[i], &text);
    struct api_key_line *out;
    int n;
    struct err e = {0};
    CHECK_INT(api_key_parse(buf_str(&text), "keys", &out, &n, &e), 0);
    CHECK_INT(n, 3);
    for (int i = 0; i < 3; i++) {
        uint8_t hash[API_KEY_HASH_BYTES];
        CHECK_STR(out[i].name, in[i].name);
        CHECK_BYTES(out[i].hash, in[i].hash, API_KEY_HASH_BYTES);
        CHECK_INT(out[i].limits.requests_per_minute, in[i].limits.requests_per_minute);
        CHECK_INT(out[i].limits.tokens_per_minute, in[i].limits.tokens_per_minute);
        CHECK_INT(out[i].limits.streams, in[i].limits.streams);
        CHECK_INT(out[i].limits.priority, in[i].limits.priority);
        CHECK_INT(out[i].limits.max_priority, in[i].limits.max_priority);
        CHECK_INT(out[i].limits.share, in[i].limits.share > 0 ? in[i].limits.share : 1);
        CHECK(out[i].limits.is_admin == in[i].limits.is_admin);
        api_key_hash(str_of(keys[i]), hash);
        CHECK_BYTES(hash, in[i].hash, API_KEY_HASH_BYTES);
        CHECK_INT(strlen(keys[i]), 46);
        CHECK(!strstr(text.data, keys[i])); /* only its hash is kept */
    }
    mem_free(out);
    buf_fini(&text);
}

/* SHA-256 of "abc", FIPS 180-2, appendix B.1. */
TEST(api_key_hash_is_sha_256)
{
    static const uint8_t want[API_KEY_HASH_BYTES] = {
        0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
        0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
        0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    uint8_t got[API_KEY_HASH_BYTES];
    api_key_hash(STR("abc"), got);
    CHECK_BYTES(got, want, sizeof want);
}

TEST(a_request_gets_as_much_priority_as_its_key_may_have)
{
    struct access_key plain = {.line.limits = {.priority = 4}};
    struct access_key high = {.line.limits = {.priority = 4, .max_priority = 6}};
    static const struct {
        int raise, plain, high, open;
    } cases[] = {{0, 4, 4, 5}, {1, 4, 5, 6}, {9, 4, 6, 9}, {-1, 3, 3, 4}, {-9, 0, 0, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK_INT(access_priority(&plain, cases[i].raise), cases[i].plain);
        CHECK_INT(access_priority(&high, cases[i].raise), cases[i].high);
        CHECK_INT(access_priority(NULL, cases[i].raise), cases[i].open);
    }
}

TEST(api_key_files_name_the_bad_line)
{
#define HEX "00000000000000000000000000000000000000000000000000000000000000"
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"# x\nalice\n", "line 2: alice: expected sha256"},
        {"alice sha256:" HEX "\n", "line 1: alice: expected sha256"},
        {"alice sha256:" HEX "0g\n", "expected sha256"},
        {"alice sha256:" HEX "0000\n", "expected sha256"},
        {"alice md5:" HEX "00\n", "expected sha256"},
        {"a/b sha256:" HEX "00\n", "is no name"},
        {"alice sha256:" HEX "00 requests\n", "\"requests\" is none of"},
        {"alice sha256:" HEX "00 requests=-1\n", "is none of"},
        {"alice sha256:" HEX "00 requests=1x\n", "is none of"},
        {"alice sha256:" HEX "00 tokens=99999999999999999999\n", "is none of"},
        {"alice sha256:" HEX "00 priority=10\n", "is none of"},
        {"alice sha256:" HEX "00 max_priority=10\n", "is none of"},
        {"alice sha256:" HEX "00 share=0\n", "is none of"},
        {"alice sha256:" HEX "00\nalice sha256:" HEX "01\n", "line 2: the name alice is there"},
        {"alice sha256:" HEX "00\nbob sha256:" HEX "00\n", "line 2: bob has the key of alice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct api_key_line *out;
        int n;
        struct err e = {0};
        CHECK_INT(api_key_parse(str_of(cases[i].text), "keys", &out, &n, &e), E_INVALID);
        CHECK(!out && n == 0);
        CHECK_HAS(e.text, "keys line");
        CHECK_HAS(e.text, cases[i].why);
    }
#undef HEX
}

TEST(access_knows_paths)
{
    CHECK_INT(access_level_of("/health"), ACCESS_OPEN);
    CHECK_INT(access_level_of("/ready"), ACCESS_OPEN);
    CHECK_INT(access_level_of("/healthy"), ACCESS_CLIENT);
    CHECK_INT(access_level_of("/health/x"), ACCESS_CLIENT);
    CHECK_INT(access_level_of("/v1/chat/completions"), ACCESS_CLIENT);
    CHECK_INT(access_level_of("/metrics"), ACCESS_ADMIN);
    CHECK_INT(access_level_of("/cluster"), ACCESS_ADMIN);
    CHECK_INT(access_level_of("/admin"), ACCESS_ADMIN);
    CHECK_INT(access_level_of("/admin/drain"), ACCESS_ADMIN);
    CHECK_INT(access_level_of("/administer"), ACCESS_CLIENT);
    CHECK_INT(access_level_of("/debug/trace"), ACCESS_ADMIN);
    CHECK_INT(access_level_of("/admin/heat"), ACCESS_ADMIN);
    CHECK_INT(access_level_of("/"), ACCESS_OPEN);
    CHECK_INT(access_level_of("/web/style.css"), ACCESS_OPEN);
    CHECK_INT(access_level_of("/web"), ACCESS_CLIENT);
    CHECK_INT(access_level_of(""), ACCESS_CLIENT);
}

TEST(access_without_a_file_is_free)
{
    struct access *a;
    struct err e = {0};
    CHECK_INT(access_open("", 0, &a, &e), 0);
    CHECK(!access_has_keys(a));
    struct access_key *k = access_find(a, "Bearer x", NULL);
    CHECK(!k);
    CHECK_INT(access_status(a, k, ACCESS_ADMIN), 0);
    int64_t retry_s;
    CHECK_INT(access_begin(k, 0, &retry_s, &e), 0);
    access_end(&k, 5, 0);
    access_tick(a, CLOCK_S);
    access_close(&a);
    CHECK_INT(access_open("nowhere", 0, &a, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "security.api_keys_file: nowhere");
    CHECK(!a);
}

TEST(access_finds_the_key_in_either_header)
{
    char alice[API_KEY_TEXT_BYTES], ops[API_KEY_TEXT_BYTES], bearer[80];
    struct api_key_line lines[] = {
        make_line("alice", (struct api_key_limits){0}, alice),
        make_line("ops", (struct api_key_limits){.is_admin = true}, ops)};
    write_keys(lines, 2);
    struct access *a = open_access();
    snprintf(bearer, sizeof bearer, "bearer %s", alice);
    struct access_key *k = access_find(a, bearer, NULL);
    CHECK_STR(k->line.name, "alice");
    CHECK_STR(access_find(a, NULL, ops)->line.name, "ops");
    CHECK_STR(access_find(a, "Basic xyz", ops)->line.name, "ops");
    CHECK(!access_find(a, alice, NULL)); /* without its word */
    CHECK(!access_find(a, "Bearer ", NULL));
    CHECK(!access_find(a, NULL, ""));
    CHECK(!access_find(a, NULL, NULL));
    alice[20] = alice[20] == 'a' ? 'b' : 'a';
    CHECK(!access_find(a, NULL, alice));
    CHECK_INT(access_status(a, NULL, ACCESS_OPEN), 0);
    CHECK_INT(access_status(a, NULL, ACCESS_CLIENT), 401);
    CHECK_INT(access_status(a, k, ACCESS_CLIENT), 0);
    CHECK_INT(access_status(a, k, ACCESS_ADMIN), 403);
    CHECK_INT(access_status(a, access_find(a, NULL, ops), ACCESS_ADMIN), 0);
    struct access_counters c;
    access_count(a, &c);
    CHECK_INT(c.unknown, 1);
    CHECK_INT(c.denied, 1);
    CHECK_INT(c.n_keys, 2);
    access_close(&a);
}

static int try(struct access_key *k, int64_t now_ns, int64_t *retry_s)
{
    struct err e = {0};
    return access_begin(k, now_ns, retry_s, &e);
}

TEST(access_counts_requests_per_minute)
{
    char key[API_KEY_TEXT_BYTES];
    struct api_key_line line =
        make_line("a", (struct api_key_limits){.requests_per_minute = 6}, key);
    write_keys(&line, 1);
    struct access *a = open_access();
    struct access_key *k = access_find(a, NULL, key);
    int64_t retry_s, now_ns = 0;
    for (int i = 0; i < 6; i++) { /* a minute's worth at once */
        struct access_key *one = k;
        CHECK_INT(try(k, now_ns, &retry_s), 0);
        access_end(&one, 100, now_ns);
    }
    CHECK_INT(try(k, now_ns, &retry_s), E_BUSY);
    CHECK_INT(retry_s, 10);
    CHECK_INT(try(k, 9 * CLOCK_S, &retry_s), E_BUSY);
    CHECK_INT(retry_s, 1);
    CHECK_INT(try(k, 10 * CLOCK_S + CLOCK_MS, &retry_s), 0);
    CHECK_INT(try(k, 10 * CLOCK_S + CLOCK_MS, &retry_s), E_BUSY);
    /* A long rest gives a minute's worth, not more. */
    now_ns = 3600 * CLOCK_S;
    int n = 0;
    while (try(k, now_ns, &retry_s) == 0)
        n++;
    CHECK_INT(n, 6);
    CHECK_INT(k->n_limited, 4);
    access_close(&a);
}

TEST(access_counts_tokens_per_minute_afterwards)
{
    char key[API_KEY_TEXT_BYTES];
    struct api_key_line line =
        make_line("a", (struct api_key_limits){.tokens_per_minute = 60}, key);
    write_keys(&line, 1);
    struct access *a = open_access();
    struct access_key *k = access_find(a, NULL, key), *one = k;
    int64_t retry_s;
    CHECK_INT(try(k, 0, &retry_s), 0);
    access_end(&one, 90, 0); /* owes half a minute */
    CHECK_INT(try(k, 0, &retry_s), E_BUSY);
    CHECK_INT(retry_s, 31);
    CHECK_INT(try(k, 30 * CLOCK_S, &retry_s), E_BUSY);
    CHECK_INT(try(k, 31 * CLOCK_S + CLOCK_MS, &retry_s), 0);
    CHECK_INT(k->n_tokens, 90);
    access_close(&a);
}

TEST(access_counts_what_runs)
{
    char key[API_KEY_TEXT_BYTES];
    struct api_key_line line = make_line("a", (struct api_key_limits){.streams = 2}, key);
    write_keys(&line, 1);
    struct access *a = open_access();
    struct access_key *k = access_find(a, NULL, key), *first = k, *second = k;
    int64_t retry_s;
    CHECK_INT(try(k, 0, &retry_s), 0);
    CHECK_INT(try(k, 0, &retry_s), 0);
    CHECK_INT(try(k, 0, &retry_s), E_BUSY);
    CHECK_INT(retry_s, 1);
    access_end(&first, 1, 0);
    CHECK(!first);
    CHECK_INT(try(k, 0, &retry_s), 0);
    access_end(&second, 1, 0);
    access_close(&a);
}

/* Looks twice: a file that has just changed may be half written. */
static void let_it_see(struct access *a, int64_t *now_ns)
{
    for (int i = 0; i < 2; i++)
        access_tick(a, *now_ns += CLOCK_S);
}

TEST(access_follows_its_file)
{
    char alice[API_KEY_TEXT_BYTES], bob[API_KEY_TEXT_BYTES];
    struct api_key_line lines[] = {
        make_line("alice", (struct api_key_limits){.requests_per_minute = 1}, alice),
        make_line("bob", (struct api_key_limits){0}, bob)};
    write_keys(lines, 1);
    struct access *a = open_access();
    struct access_key *k = access_find(a, NULL, alice), *running = k;
    int64_t now_ns = 0, retry_s;
    CHECK_INT(try(k, now_ns, &retry_s), 0);
    CHECK(!access_find(a, NULL, bob));

    write_keys(lines, 2); /* what alice has used stays used */
    let_it_see(a, &now_ns);
    CHECK(access_find(a, NULL, bob));
    CHECK(access_find(a, NULL, alice) == k);
    CHECK_INT(try(k, now_ns, &retry_s), E_BUSY);

    struct err e = {0};
    CHECK_INT(safe_file_replace("keys", SAFE_FILE_PUBLIC, STR("nonsense\n"), &e), 0);
    let_it_see(a, &now_ns);
    CHECK(access_find(a, NULL, bob) && access_find(a, NULL, alice));

    write_keys(&lines[1], 1); /* alice is gone, but what she has running may end */
    let_it_see(a, &now_ns);
    CHECK(!access_find(a, NULL, alice));
    access_end(&running, 10, now_ns);
    struct access_counters c;
    access_count(a, &c);
    CHECK_INT(c.n_keys, 1);
    access_close(&a);
}
