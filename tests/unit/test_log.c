/* tests/unit/test_log.c - whole lines, one write each, that cannot be forged. */
#include "base/log.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/thread.h"
#include "tests/lib/test.h"

static void log_plain(void *ud)
{
    log_init("expert 2", LOG_INFO);
    log_info("store.ready", "epoch=%d name=%s", 4, (const char *)ud);
    log_debug("step.done", "n=%d", 1);
    log_error("disk.full", "why=%s", log_quote("a \"b\"\nts=forged").text);
}

TEST(log_lines_have_time_level_node_and_event)
{
    struct test_end end = test_run_apart(log_plain, "x\nts=forged");
    int year, month, day, hour, minute, second, us, n = 0;
    int got = sscanf(end.output,
                     "ts=%4d-%2d-%2dT%2d:%2d:%2d.%6dZ lvl=info node=expert_2 ev=store.ready%n",
                     &year, &month, &day, &hour, &minute, &second, &us, &n);
    CHECK_INT(got, 7);
    CHECK(n > 0 && year >= 2024);
    CHECK_HAS(end.output, " epoch=4 name=x?ts=forged\n");
    CHECK_HAS(end.output, "lvl=error node=expert_2 ev=disk.full why=\"a \\\"b\\\"\\nts=forged\"\n");
    CHECK(strstr(end.output, "step.done") == NULL);
    int lines = 0;
    for (const char *p = end.output; *p; p++)
        lines += *p == '\n';
    CHECK_INT(lines, 2);
}

static void log_long(void *ud)
{
    char text[6000];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_info("long", "x=%s%s", text, (const char *)ud);
}

TEST(log_long_lines_are_cut_and_say_so)
{
    struct test_end end = test_run_apart(log_long, "");
    size_t len = strlen(end.output);
    CHECK(len > 4000 && len <= 4096);
    CHECK_STR(end.output + len - strlen("aaa cut=true\n"), "aaa cut=true\n");
}

/* Warns until the clock's second changes (the limiter's window), then exactly once more. */
static void log_flood(void *ud)
{
    int *n_calls = ud;
    int64_t over_ns = ((clock_now_ns() + 500 * CLOCK_MS) / CLOCK_S + 1) * CLOCK_S;
    for (bool is_over = false; !is_over; ++*n_calls) {
        is_over = clock_now_ns() >= over_ns;
        log_warn("flood", "n=%d", *n_calls);
    }
    fprintf(stderr, "calls=%d\n", *n_calls);
}

TEST(log_warnings_are_limited_and_own_up)
{
    int n_calls = 0, lines = 0, held = 0, n = 0;
    struct test_end end = test_run_apart(log_flood, &n_calls);
    for (const char *p = end.output; (p = strstr(p, "ev=flood")) != NULL; p++)
        lines++;
    for (const char *p = end.output; (p = strstr(p, "held_back=")) != NULL; p++, held += n)
        CHECK_INT(sscanf(p, "held_back=%d", &n), 1);
    const char *calls = strstr(end.output, "calls=");
    CHECK(calls && sscanf(calls, "calls=%d", &n_calls) == 1);
    /* Two windows if the 500 ms reach into a second one, then the last line, and the one
     * before it if the second changed between the test's look at the clock and the log's. */
    CHECK(lines >= 11 && lines <= 10 + 10 + 2);
    CHECK(held > 0);
    CHECK_INT(lines + held, n_calls);
}

static void log_many(struct thread *t, void *arg)
{
    thread_ready(t, 0, NULL);
    for (int i = 0; i < 20; i++)
        log_info("many", "who=%s end", (const char *)arg);
}

static void log_from_threads(void *ud)
{
    (void)ud;
    char names[3][4] = {"aaa", "bbb", "ccc"};
    struct thread *t[3];
    for (int i = 0; i < 3; i++)
        CHECK_INT(thread_start("log", log_many, names[i], &t[i], NULL), 0);
    for (int i = 0; i < 3; i++)
        thread_stop(&t[i], NULL, NULL);
}

TEST(log_lines_of_threads_do_not_mix)
{
    struct test_end end = test_run_apart(log_from_threads, NULL);
    int lines = 0;
    for (char *line = end.output, *next; (next = strchr(line, '\n')) != NULL; line = next + 1) {
        *next = '\0';
        CHECK(strncmp(line, "ts=", 3) == 0);
        CHECK_STR(line + strlen(line) - 4, " end");
        CHECK(strstr(line + 1, "ts=") == NULL);
        lines++;
    }
    CHECK_INT(lines, 60);
}

TEST(log_quote_escapes_and_fits)
{
    CHECK_STR(log_quote("a\tb\x01\\").text, "\"a\\x09b\\x01\\\\\"");
    CHECK_STR(log_quote(NULL).text, "\"\"");
    char text[3 * LOG_QUOTE_BYTES];
    memset(text, '\x02', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    struct log_quoted q = log_quote(text);
    size_t len = strlen(q.text);
    CHECK(len < LOG_QUOTE_BYTES && len > LOG_QUOTE_BYTES - 10);
    CHECK_STR(q.text + len - 5, "\\x02\"");
}

TEST(log_levels_parse)
{
    enum log_level level = LOG_INFO;
    CHECK(log_level_parse("debug", &level) && level == LOG_DEBUG);
    CHECK(!log_level_parse("loud", &level) && level == LOG_DEBUG);
    CHECK(!log_level_parse(NULL, &level));
}
