/* tests/unit/test_cpus.c - lists of CPUs, keeping a process on its own, pinning threads. */
#include "base/cpus.h"

#include <sched.h>
#include <stdio.h>

#include "base/mem.h"
#include "base/thread.h"
#include "engine/pool.h"
#include "tests/lib/test.h"

TEST(cpus_lists_come_back_in_one_form)
{
    static const char *const cases[][2] = {
        {"", ""},         {"0", "0"}, {"0-3", "0-3"}, {"3,1,2", "1-3"}, {"8,0-3,2-4", "0-4,8"},
        {"4095", "4095"},
    };
    static struct cpus c;
    char text[64];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CHECK_INT(cpus_parse(cases[i][0], &c, NULL), 0);
        CHECK_STR(cpus_text(&c, text, sizeof(text)), cases[i][1]);
    }
    CHECK_INT(cpus_parse("0-9,11", &c, NULL), 0);
    CHECK_INT(c.n, 11);
    CHECK_INT(c.ids[10], 11);
    /* What does not fit is cut, and says so. */
    CHECK_STR(cpus_text(&c, text, 8), "0-9,11");
    CHECK_STR(cpus_text(&c, text, 7), "0-9,11");
    CHECK_STR(cpus_text(&c, text, 6), "...");
    CHECK_INT(cpus_parse("0,2,4,6", &c, NULL), 0);
    CHECK_STR(cpus_text(&c, text, 7), "0,2...");
}

TEST(cpus_lists_that_are_none_are_refused)
{
    static const char *const bad[] = {
        "all of them", "-1",  "1-",   "3-1", "1,", ",1", "1,,2", "4096", "0-99999999999999999999",
        "1 2",         "0x1", "1-2-3"};
    static struct cpus c;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err e = {0};
        CHECK_INT(cpus_parse(bad[i], &c, &e), E_INVALID);
        CHECK_HAS(e.text, bad[i]);
        CHECK_INT(cpus_check(bad[i], NULL), E_INVALID);
    }
    CHECK_INT(cpus_check("all", NULL), 0);
}

static int count_allowed(void)
{
    cpu_set_t set;
    CHECK_INT(sched_getaffinity(0, sizeof(set), &set), 0);
    return CPU_COUNT(&set);
}

TEST(cpus_take_keeps_the_process_on_its_list)
{
    struct err e = {0};
    int n = cpus_of_process()->n;
    int last = cpus_of_process()->ids[n - 1];
    char list[16], text[64];
    CHECK_INT(cpus_take("", &e), 0);
    CHECK(!cpus_are_own());
    /* A CPU that no machine has, or that is not ours. */
    CHECK_INT(cpus_take("4095", &e), E_RANGE);
    CHECK_HAS(e.text, "CPU 4095 is not among those that this process may use (");
    CHECK_HAS(e.text, cpus_text(cpus_of_process(), text, sizeof(text)));
    CHECK(!cpus_are_own());
    CHECK_INT(count_allowed(), n);
    snprintf(list, sizeof(list), "%d", last);
    CHECK_INT(cpus_take(list, &e), 0);
    CHECK(cpus_are_own());
    CHECK_INT(count_allowed(), 1);
    CHECK_INT(thread_cpu_count(), 1);
    CHECK_INT(cpus_of_process()->ids[0], last);
    CHECK_INT(sched_getcpu(), last);
    CHECK_INT(pool_pinning_here(), POOL_PIN_CPUS);
}

TEST(cpus_all_promises_without_moving_anybody)
{
    struct err e = {0};
    int n = count_allowed();
    CHECK_INT(pool_pinning_here(), POOL_FREE);
    CHECK_INT(cpus_take("all", &e), 0);
    CHECK(cpus_are_own());
    CHECK_INT(count_allowed(), n);
}

struct seen {
    int n_allowed;
};

static void look(struct thread *t, void *arg)
{
    struct seen *s = arg;
    s->n_allowed = count_allowed();
    thread_ready(t, 0, NULL);
}

TEST(cpus_a_thread_of_a_pinned_one_is_free)
{
    int n = cpus_of_process()->n;
    struct seen s = {0};
    struct thread *t = NULL;
    cpus_pin_thread(n + 1); /* modulo their number */
    CHECK(cpus_is_thread_pinned());
    CHECK_INT(count_allowed(), 1);
    CHECK_INT(sched_getcpu(), cpus_of_process()->ids[1 % n]);
    CHECK_INT(cpus_of_process()->n, n);
    CHECK_INT(thread_start("free", look, &s, &t, NULL), 0);
    thread_stop(&t, NULL, NULL);
    CHECK_INT(s.n_allowed, n);
    cpus_free_thread();
    CHECK(!cpus_is_thread_pinned());
    CHECK_INT(count_allowed(), n);
}
