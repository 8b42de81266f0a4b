/* tests/unit/test_mem.c - allocation, arenas and the guard that forbids it. */
#include "base/mem.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/must.h"
#include "base/thread.h"
#include "tests/lib/test.h"

TEST(mem_blocks_are_zeroed_and_aligned)
{
    static const size_t sizes[] = {0, 1, 63, 64, 4097, (2 << 20) - 1, 2 << 20, (5 << 20) + 1};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *a = mem_aligned(sizes[i]), *b = mem_try_aligned(sizes[i]);
        CHECK(a && b && (uintptr_t)a % MEM_ALIGN == 0 && (uintptr_t)b % MEM_ALIGN == 0);
        size_t padded = sizes[i] / MEM_ALIGN * MEM_ALIGN;
        for (size_t j = 0; j < sizes[i]; j++)
            CHECK(a[j] == 0 && b[j] == 0);
        memset(a, 1, padded);
        mem_free(a);
        mem_free(b);
    }
    char *c = mem_array(3, 5);
    for (int i = 0; i < 15; i++)
        CHECK_INT(c[i], 0);
    c = mem_resize(c, 1000);
    memset(c, 7, 1000);
    mem_free(c);
    mem_free(NULL);
}

TEST(mem_weights_are_zeroed_runs_at_huge_page_boundaries)
{
    /* Below, at, and just below a multiple of a huge page; the last takes its tail whole. */
    static const size_t sizes[] = {1, 4096, 2 << 20, (2 << 20) + 1, ((size_t)256 << 20) - 100};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *a = mem_weights(sizes[i]), *b = mem_weights(sizes[i]);
        CHECK(a && b && a != b);
        CHECK((uintptr_t)a % (2 << 20) == 0 && (uintptr_t)b % (2 << 20) == 0);
        const size_t last = sizes[i] - 1, middle = last / 2;
        CHECK(a[0] == 0 && a[middle] == 0 && a[last] == 0);
        a[0] = a[middle] = a[last] = 1;
        mem_weights_free(a, sizes[i]);
        b[last] = 1;
        mem_weights_free(b, sizes[i]);
    }
    mem_weights_free(NULL, 10);
    CHECK(!mem_weights(0));
    CHECK(!mem_weights(SIZE_MAX));
    CHECK(!mem_weights((size_t)1 << 60));
}

TEST(mem_strings_are_copies)
{
    char *a = mem_string("abc"), *b = mem_format("%s-%d", a, 7);
    CHECK_STR(a, "abc");
    CHECK_STR(b, "abc-7");
    mem_free(a);
    mem_free(b);
}

TEST(mem_products_and_sums_are_exact_or_refused)
{
    size_t out = 42;
    CHECK(!mem_mul(SIZE_MAX, 2, &out) && out == 42);
    CHECK(!mem_add(SIZE_MAX, 1, &out) && out == 42);
    CHECK(!mem_mul(1ULL << 32, 1ULL << 32, &out) && out == 42);
    CHECK(mem_mul(1ULL << 32, (1ULL << 32) - 1, &out) && out == 0xffffffff00000000ULL);
    CHECK(mem_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    CHECK_INT(mem_round_up(0, 64), 0);
    CHECK_INT(mem_round_up(65, 64), 128);
}

TEST(mem_sizes_from_outside_are_refused_not_fatal)
{
    CHECK(mem_try_aligned(SIZE_MAX) == NULL);
    CHECK(mem_try_aligned(SIZE_MAX - MEM_ALIGN) == NULL);
    CHECK(mem_try_aligned((size_t)1 << 50) == NULL);
    CHECK(mem_available_bytes() > 0);
}

static void overflow_array(void *ud)
{
    (void)ud;
    mem_array(SIZE_MAX / 2, 4);
}

static void exhaust(void *ud)
{
    (void)ud;
    mem_aligned((size_t)1 << 50);
}

TEST(mem_exhaustion_says_so_and_exits)
{
    struct test_end end = test_run_apart(overflow_array, NULL);
    CHECK_INT(end.exit_status, 1);
    CHECK_HAS(end.output, "out of memory");
    end = test_run_apart(exhaust, NULL);
    CHECK_INT(end.exit_status, 1);
    CHECK_HAS(end.output, "1125899906842624 bytes");
}

static void allocate_under_guard(void *ud)
{
    mem_guard_begin("step 81");
    struct buf b = {0};
    if (ud)
        buf_putc(&b, 'x');
    mem_guard_end();
}

TEST(mem_guard_stops_an_allocation_and_names_the_phase)
{
    struct test_end end = test_run_apart(allocate_under_guard, &end);
    CHECK_INT(end.signal, SIGABRT);
    CHECK_HAS(end.output, "while 'step 81' runs");
    CHECK_HAS(end.output, "mem.c:");
    end = test_run_apart(allocate_under_guard, NULL);
    CHECK_INT(end.exit_status, 0);
}

static void stay_under_guard(struct thread *t, void *arg)
{
    (void)arg;
    mem_guard_begin("step");
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t))
        sched_yield();
    mem_guard_end();
}

TEST(mem_guard_binds_its_own_thread_only)
{
    struct thread *t = NULL;
    CHECK_INT(thread_start("guarded", stay_under_guard, NULL, &t, NULL), 0);
    char *made = mem_string("other");
    thread_stop(&t, NULL, NULL);
    CHECK_STR(made, "other");
    mem_free(made);
}

static void fail_must(void *ud)
{
    must(ud != NULL && "the sky holds");
}

TEST(must_names_the_expression_and_place)
{
    struct test_end end = test_run_apart(fail_must, NULL);
    CHECK_INT(end.signal, SIGABRT);
    CHECK_HAS(end.output, "the sky holds");
    CHECK_HAS(end.output, "test_mem.c");
    CHECK_HAS(end.output, "fail_must");
}
