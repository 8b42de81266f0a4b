/* tests/lib/test.h - the one test harness.
 *
 *   TEST(queue_gives_back_in_order) { ... CHECK_INT(queue_len(q), 2); ... }
 *
 * A test registers itself; its suite is the folder of its file (unit, kernel, sim, fuzz,
 * cluster, reference).  Each runs in a forked child with its own temporary directory as
 * the working directory and a time limit, so a crash or a hang fails one test only.
 * A failed CHECK prints both values and ends the test.
 *
 *   tests [SUITE | NAME-PART]... [--except SUITE | NAME-PART]... [--seed N] [--list] [--jobs N]
 *         [--verbose]
 *
 * Suites `unit`, `kernel`, `sim` and `fuzz` run side by side; `cluster` and `reference`
 * one after another.  Ends with "N passed, N failed, N skipped". */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/rng.h"

struct test_case {
    const char *name, *file;
    void (*run)(void);
    int timeout_s;
    struct test_case *next;
};
void test_register(struct test_case *t);

#define TEST(name_) TEST_WITHIN(name_, 60)
/* A test with its own time limit in seconds; sanitizer and valgrind builds get four times that. */
#define TEST_WITHIN(name_, seconds) \
    static void test_run_##name_(void); \
    __attribute__((constructor)) static void test_add_##name_(void) \
    { \
        static struct test_case t = { \
            .name = #name_, .file = __FILE__, .run = test_run_##name_, .timeout_s = (seconds)}; \
        test_register(&t); \
    } \
    static void test_run_##name_(void)

/* The run's seed (printed at the start, --seed repeats it), mixed with the test's name. */
uint64_t test_seed(void);
struct rng test_rng(void);

/* Ends the test as skipped: something outside the project is missing.  Says what. */
_Noreturn void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A line in the report of this test, shown with --verbose or if it fails. */
void test_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A line that is always shown: hashes and figures that a reader of the log wants. */
void test_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Directory of this build's programs, absolute ("…/build/release/bin"), and of the
 * repository's root. */
const char *test_bin_dir(void);
const char *test_source_dir(void);
/* true in builds whose code runs many times slower (asan, tsan, valgrind, debug). */
bool test_is_slow_build(void);

/* Runs body(ud) in a process of its own that is expected to die, and says how it ended:
 * `signal` (0 if none), `exit_status` (-1 if a signal, 0 if the body returned), output. */
struct test_end {
    int signal, exit_status;
    char output[8192];
};
struct test_end test_run_apart(void (*body)(void *ud), void *ud);

#define CHECK(condition) \
    ((condition) ? (void)0 : test_fail(__FILE__, __LINE__, "%s is false", #condition))
#define CHECK_INT(got, want) \
    do { \
        long long got_ = (long long)(got), want_ = (long long)(want); \
        if (got_ != want_) \
            test_fail(__FILE__, __LINE__, "%s is %lld, expected %lld", #got, got_, want_); \
    } while (0)
#define CHECK_STR(got, want) \
    do { \
        const char *got_ = (got), *want_ = (want); \
        if (!got_ || strcmp(got_, want_) != 0) \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #got, \
                      got_ ? got_ : "(null)", want_); \
    } while (0)
#define CHECK_HAS(text, part) \
    do { \
        const char *text_ = (text), *part_ = (part); \
        if (!text_ || !strstr(text_, part_)) \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", expected it to hold \"%s\"", #text, \
                      text_ ? text_ : "(null)", part_); \
    } while (0)
/* |got - want| <= tolerance; the reason for the tolerance belongs in a comment beside it. */
#define CHECK_NEAR(got, want, tolerance) \
    do { \
        double got_ = (got), want_ = (want), tol_ = (tolerance); \
        if (!(got_ - want_ <= tol_ && want_ - got_ <= tol_)) \
            test_fail(__FILE__, __LINE__, "%s is %.9g, expected %.9g +- %.3g", #got, got_, want_, \
                      tol_); \
    } while (0)
/* Equal bytes; names the first that differs. */
#define CHECK_BYTES(got, want, bytes) test_check_bytes(__FILE__, __LINE__, #got, got, want, bytes)
void test_check_bytes(const char *file, int line, const char *what, const void *got,
                      const void *want, size_t bytes);
