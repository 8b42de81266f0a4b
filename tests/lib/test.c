/* tests/lib/test.c - runs the registered tests, each in a process group of its own.
 *
 * The parent has one thread and never runs a test itself.  A child reports through a page
 * shared with its parent, so a test that calls exit(0) half-way has not passed; its exit
 * status still counts, because the sanitizers speak through it.  Output goes to an
 * unnamed file that the parent prints if it is wanted.  Whatever a test leaves running is
 * killed with its group, whatever it leaves on disk goes with its directory. */
#include "tests/lib/test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/must.h"
#include "base/thread.h"

enum { MAX_TESTS = 8192, MAX_JOBS = 64, SLOW_FACTOR = 4, SHOWN_OUTPUT_BYTES = 64 << 10 };

/* What a child tells its parent; the first word counts. */
enum verdict { VERDICT_NONE, VERDICT_FINISHED, VERDICT_SKIPPED, VERDICT_FAILED };
struct report {
    _Atomic int verdict;
    char cause[256]; /* of the first failed check: place and message */
};

struct running {
    const struct test_case *test; /* NULL: the slot is free */
    pid_t pid;
    int output_fd, say_fd;
    int64_t started_ns, deadline_ns;
    bool is_overdue;
    struct report *report;
    char dir[64];
};

static const struct {
    const char *name;
    bool is_serial;
} suites[] = {{"unit", false}, {"kernel", false}, {"sim", false},
              {"fuzz", false}, {"cluster", true}, {"reference", true}};
enum { N_SUITES = sizeof(suites) / sizeof(suites[0]) };

static struct test_case *registered;
static const struct test_case *chosen[MAX_TESTS];
static bool has_failed[MAX_TESTS]; /* as chosen */
static int n_chosen;

static struct {
    uint64_t seed;
    int jobs;
    bool is_list, is_verbose;
    const char *filters[MAX_TESTS], *exceptions[MAX_TESTS];
    int n_filters, n_exceptions;
} options;

static char bin_dir[PATH_MAX], source_dir[PATH_MAX];
static struct running slots[MAX_JOBS];
static int n_passed, n_failed, n_skipped;
static int n_started;

/* Set in the child only. */
static const struct test_case *current;
static struct report *current_report;
static int current_say_fd = -1;

/* OpenBLAS may have started threads before the first fork; it stops them around fork(2),
 * which ThreadSanitizer cannot know. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "die_after_fork=0";
}

/* libconfig 1.5 leaks the strings that its parser holds when it meets a syntax error. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libconfig.so";
}

void test_register(struct test_case *t)
{
    t->next = registered;
    registered = t;
}

/* The folder below the last "tests/" of the file's path. */
static int suite_of(const struct test_case *t)
{
    const char *at = t->file;
    for (const char *p = at; (p = strstr(p, "tests/")) != NULL; p++)
        at = p + strlen("tests/");
    size_t len = strcspn(at, "/");
    for (int i = 0; i < N_SUITES; i++)
        if (strlen(suites[i].name) == len && strncmp(suites[i].name, at, len) == 0)
            return i;
    fprintf(stderr, "%s: not in a folder of a known suite\n", t->file);
    exit(2);
}

static int compare_tests(const void *a, const void *b)
{
    const struct test_case *x = *(const struct test_case *const *)a;
    const struct test_case *y = *(const struct test_case *const *)b;
    if (suite_of(x) != suite_of(y))
        return suite_of(x) - suite_of(y);
    int by_file = strcmp(x->file, y->file);
    return by_file ? by_file : strcmp(x->name, y->name);
}

/* A filter is a suite, or a part of a test's name as it is printed ("unit/buf_"). */
static bool is_meant(const struct test_case *t, const char *filter)
{
    const char *suite = suites[suite_of(t)].name;
    char printed[256];
    snprintf(printed, sizeof(printed), "%s/%s", suite, t->name);
    return strcmp(filter, suite) == 0 || strstr(t->name, filter) ||
           (strchr(filter, '/') && strstr(printed, filter));
}

static bool is_chosen(const struct test_case *t)
{
    for (int i = 0; i < options.n_exceptions; i++)
        if (is_meant(t, options.exceptions[i]))
            return false;
    for (int i = 0; i < options.n_filters; i++)
        if (is_meant(t, options.filters[i]))
            return true;
    return options.n_filters == 0;
}

/* ---- What a test calls ---- */

uint64_t test_seed(void)
{
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */
    for (const char *p = current ? current->name : ""; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 0x100000001b3ULL;
    struct rng r = rng_stream(options.seed, hash);
    return rng_next(&r);
}

struct rng test_rng(void)
{
    return rng_seed(test_seed());
}

static bool set_verdict(enum verdict v)
{
    int none = VERDICT_NONE;
    return current_report &&
           atomic_compare_exchange_strong(&current_report->verdict, &none, (int)v);
}

__attribute__((format(printf, 3, 0))) static void write_line(int fd, const char *prefix,
                                                             const char *format, va_list args)
{
    char line[4096];
    int n = snprintf(line, sizeof(line), "%s", prefix);
    int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, args);
    if (m > 0)
        n += m;
    if (n > (int)sizeof(line) - 2)
        n = (int)sizeof(line) - 2;
    line[n++] = '\n';
    if (write(fd, line, (size_t)n) < 0)
        perror("test report");
}

_Noreturn void test_skip(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_line(current_say_fd, "", format, args);
    va_end(args);
    set_verdict(VERDICT_SKIPPED);
    fflush(NULL);
    _exit(0);
}

_Noreturn void test_fail(const char *file, int line, const char *format, ...)
{
    char place[PATH_MAX + 32];
    snprintf(place, sizeof(place), "%s:%d: ", file, line);
    fflush(NULL);
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    write_line(STDERR_FILENO, place, format, args);
    va_end(args);
    if (set_verdict(VERDICT_FAILED)) {
        char *cause = current_report->cause;
        int n = snprintf(cause, sizeof(current_report->cause), "%s", place);
        if (n < (int)sizeof(current_report->cause))
            vsnprintf(cause + n, sizeof(current_report->cause) - (size_t)n, format, again);
    }
    va_end(again);
    _exit(1);
}

void test_note(const char *format, ...)
{
    fflush(stdout);
    va_list args;
    va_start(args, format);
    write_line(STDERR_FILENO, "note: ", format, args);
    va_end(args);
}

void test_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    write_line(current_say_fd, "", format, args);
    va_end(args);
}

const char *test_bin_dir(void)
{
    return bin_dir;
}

const char *test_source_dir(void)
{
    return source_dir;
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define TEST_BUILT_SLOW 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
#define TEST_BUILT_SLOW 1
#endif

#ifdef TEST_BUILT_SLOW
bool test_is_slow_build(void)
{
    return true;
}
#else
static bool is_under_valgrind(void)
{
    FILE *f = fopen("/proc/self/maps", "re");
    if (!f)
        return false;
    char line[PATH_MAX + 128];
    bool found = false;
    while (!found && fgets(line, sizeof(line), f))
        found = strstr(line, "vgpreload_") != NULL;
    fclose(f);
    return found;
}

bool test_is_slow_build(void)
{
    static int answer = -1;
    if (answer < 0)
        answer = is_under_valgrind();
    return answer;
}
#endif

void test_check_bytes(const char *file, int line, const char *what, const void *got,
                      const void *want, size_t bytes)
{
    const unsigned char *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++)
        if (g[i] != w[i])
            test_fail(file, line, "%s differs at byte %zu of %zu: 0x%02x, expected 0x%02x", what, i,
                      bytes, g[i], w[i]);
}

/* A file in memory for the output of several writers.  Appending, because only then do
 * writes of two threads to a shared descriptor never land on one another. */
static int capture_open(const char *name)
{
    int fd = memfd_create(name, MFD_CLOEXEC);
    must(fd >= 0 && fcntl(fd, F_SETFL, O_APPEND) == 0);
    return fd;
}

struct test_end test_run_apart(void (*body)(void *ud), void *ud)
{
    struct test_end end = {0};
    int fd = capture_open("apart");
    fflush(NULL);
    pid_t pid = fork();
    must(pid >= 0);
    if (pid == 0) {
        current_report = NULL; /* dying is what is asked of it */
        dup2(fd, STDOUT_FILENO);
        dup2(fd, STDERR_FILENO);
        body(ud);
        fflush(NULL);
        _exit(0);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        must(errno == EINTR);
    end.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    end.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    ssize_t n = pread(fd, end.output, sizeof(end.output) - 1, 0);
    end.output[n > 0 ? n : 0] = '\0';
    close(fd);
    test_note("apart: signal %d, exit status %d, output: %s", end.signal, end.exit_status,
              end.output);
    return end;
}

/* ---- One child ---- */

static int remove_entry(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    if (remove(path) < 0)
        fprintf(stderr, "remove %s: %s\n", path, strerror(errno));
    return 0;
}

static void remove_tree(const char *dir)
{
    nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static _Noreturn void run_child(const struct running *r, pid_t parent)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    struct rlimit no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);

    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(null, STDIN_FILENO);
    dup2(r->output_fd, STDOUT_FILENO);
    dup2(r->output_fd, STDERR_FILENO);
    setvbuf(stdout, NULL, _IOLBF, 0);
    current = r->test;
    current_report = r->report;
    current_say_fd = r->say_fd;
    if (chdir(r->dir) < 0)
        test_fail(__FILE__, __LINE__, "chdir %s: %s", r->dir, strerror(errno));
    r->test->run();
    set_verdict(VERDICT_FINISHED);
    exit(0); /* not _exit: the leak check runs on the way out */
}

static void start(struct running *r, const struct test_case *t)
{
    *r = (struct running){.test = t, .report = r->report};
    atomic_store(&r->report->verdict, VERDICT_NONE);
    r->report->cause[0] = '\0';
    snprintf(r->dir, sizeof(r->dir), "/tmp/polymath-test-%d-XXXXXX", n_started++);
    must(mkdtemp(r->dir) != NULL);
    r->output_fd = capture_open("output");
    r->say_fd = capture_open("say");
    int limit_s = t->timeout_s * (test_is_slow_build() ? SLOW_FACTOR : 1);
    r->started_ns = clock_now_ns();
    r->deadline_ns = r->started_ns + limit_s * CLOCK_S;
    fflush(NULL);
    pid_t parent = getpid();
    r->pid = fork();
    must(r->pid >= 0);
    if (r->pid == 0)
        run_child(r, parent);
    setpgid(r->pid, r->pid); /* both sides do it, so that neither is too late */
}

/* Prints what lies in fd, each line indented; the end of it if it is long. */
static void show(int fd)
{
    off_t size = lseek(fd, 0, SEEK_END);
    off_t from = size > SHOWN_OUTPUT_BYTES ? size - SHOWN_OUTPUT_BYTES : 0;
    FILE *f = size > 0 && lseek(fd, from, SEEK_SET) >= 0 ? fdopen(dup(fd), "r") : NULL;
    if (!f)
        return;
    bool at_start = true;
    for (int c; (c = fgetc(f)) != EOF; at_start = c == '\n') {
        if (at_start)
            fputs("      ", stdout);
        putchar(c);
    }
    if (!at_start)
        putchar('\n');
    fclose(f);
}

/* The outcome in words: NULL for passed and skipped. */
static const char *failure_of(const struct running *r, int status, char *text, size_t size)
{
    int verdict = atomic_load(&r->report->verdict);
    if (r->is_overdue)
        snprintf(text, size, "timed out after %lld s",
                 (long long)((r->deadline_ns - r->started_ns) / CLOCK_S));
    else if (WIFSIGNALED(status))
        snprintf(text, size, "killed by signal SIG%s", sigabbrev_np(WTERMSIG(status)));
    else if (verdict == VERDICT_FAILED)
        snprintf(text, size, "%.*s", (int)strcspn(r->report->cause, "\n"), r->report->cause);
    else if (WEXITSTATUS(status) != 0)
        snprintf(text, size, "exit status %d", WEXITSTATUS(status));
    else if (verdict == VERDICT_NONE)
        snprintf(text, size, "left before its end");
    else
        return NULL;
    return text;
}

static void finish(struct running *r, int status)
{
    char text[sizeof(r->report->cause)];
    const char *failure = failure_of(r, status, text, sizeof(text));
    bool is_skipped = !failure && atomic_load(&r->report->verdict) == VERDICT_SKIPPED;
    const char *word = failure ? "FAIL" : is_skipped ? "skip" : "pass";
    double seconds = (double)(clock_now_ns() - r->started_ns) / CLOCK_S;
    printf("%s  %s/%s  %.2f s%s%s\n", word, suites[suite_of(r->test)].name, r->test->name, seconds,
           failure ? ": " : "", failure ? failure : "");
    if (failure || options.is_verbose)
        show(r->output_fd);
    show(r->say_fd);
    fflush(stdout);
    n_failed += failure != NULL;
    for (int i = 0; i < n_chosen; i++)
        has_failed[i] |= failure && chosen[i] == r->test;
    n_skipped += is_skipped;
    n_passed += !failure && !is_skipped;
    close(r->output_fd);
    close(r->say_fd);
    remove_tree(r->dir);
    r->test = NULL;
}

/* ---- The run ---- */

/* Ends what has ended or is overdue.  The group is killed before its leader is reaped:
 * until then its number cannot be given to anybody else. */
static int reap(void)
{
    int n_running = 0;
    for (int i = 0; i < MAX_JOBS; i++) {
        struct running *r = &slots[i];
        if (!r->test)
            continue;
        if (clock_now_ns() >= r->deadline_ns && !r->is_overdue) {
            siginfo_t ended = {0};
            r->is_overdue = waitid(P_PID, (id_t)r->pid, &ended, WEXITED | WNOWAIT | WNOHANG) == 0 &&
                            ended.si_pid == 0;
            if (r->is_overdue)
                kill(-r->pid, SIGKILL);
        }
        siginfo_t info = {0};
        must_zero(waitid(P_PID, (id_t)r->pid, &info, WEXITED | WNOWAIT | WNOHANG));
        if (info.si_pid == 0) {
            n_running++;
            continue;
        }
        kill(-r->pid, SIGKILL);
        int status = 0;
        must(waitpid(r->pid, &status, 0) == r->pid);
        finish(r, status);
    }
    return n_running;
}

static _Noreturn void give_up(int signal_number)
{
    for (int i = 0; i < MAX_JOBS; i++) {
        if (!slots[i].test)
            continue;
        kill(-slots[i].pid, SIGKILL);
        waitpid(slots[i].pid, NULL, 0);
        remove_tree(slots[i].dir);
    }
    fprintf(stderr, "interrupted by SIG%s\n", sigabbrev_np(signal_number));
    exit(1);
}

/* Until a child ends, a deadline passes, or somebody wants us to stop. */
static void wait_for_something(const sigset_t *watched)
{
    int64_t next_ns = CLOCK_NEVER;
    for (int i = 0; i < MAX_JOBS; i++)
        if (slots[i].test && !slots[i].is_overdue && slots[i].deadline_ns < next_ns)
            next_ns = slots[i].deadline_ns;
    int left_ms = clock_left_ms(next_ns, clock_now_ns(), 1000);
    struct timespec left = {.tv_sec = left_ms / 1000, .tv_nsec = left_ms % 1000 * CLOCK_MS};
    int got = sigtimedwait(watched, NULL, &left);
    if (got == SIGINT || got == SIGTERM || got == SIGHUP)
        give_up(got);
}

static void run_all(bool is_serial, int jobs, const sigset_t *watched)
{
    int next = 0, n_running = 0;
    for (;;) {
        while (next < n_chosen && suites[suite_of(chosen[next])].is_serial != is_serial)
            next++;
        if (next < n_chosen && n_running < jobs) {
            int slot = 0;
            while (slots[slot].test)
                slot++;
            start(&slots[slot], chosen[next++]);
            n_running++;
            continue;
        }
        if (n_running == 0)
            return;
        wait_for_something(watched);
        n_running = reap();
    }
}

static bool holds_sources(const char *dir)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof(path), "%s/tests/lib/test.h", dir);
    return access(path, F_OK) == 0;
}

/* The root is where this is run, or above the program. */
static void find_dirs(void)
{
    ssize_t n = readlink("/proc/self/exe", bin_dir, sizeof(bin_dir) - 1);
    must(n > 0);
    bin_dir[n] = '\0';
    *strrchr(bin_dir, '/') = '\0';
    if (getcwd(source_dir, sizeof(source_dir)) && holds_sources(source_dir))
        return;
    snprintf(source_dir, sizeof(source_dir), "%s", bin_dir);
    for (char *slash; !holds_sources(source_dir); *slash = '\0') {
        slash = strrchr(source_dir, '/');
        if (!slash) {
            fprintf(stderr, "run this in the repository's root\n");
            exit(2);
        }
    }
}

static _Noreturn void misuse(const char *why)
{
    fprintf(stderr,
            "%s\nusage: tests [SUITE | NAME-PART]... [--except SUITE | NAME-PART]... [--seed N] "
            "[--list] [--jobs N] [--verbose]\n",
            why);
    exit(2);
}

static uint64_t parse_number(const char *text, uint64_t least, uint64_t most)
{
    char *end = NULL;
    errno = 0;
    uint64_t value = text ? strtoull(text, &end, 0) : 0;
    if (!text || end == text || *end || errno || value < least || value > most)
        misuse("an option's number is missing or out of bounds");
    return value;
}

static void parse_arguments(int argc, char **argv)
{
    options.seed = rng_entropy();
    options.jobs = thread_cpu_count();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seed") == 0)
            options.seed = parse_number(argv[++i], 0, UINT64_MAX);
        else if (strcmp(argv[i], "--jobs") == 0)
            options.jobs = (int)parse_number(argv[++i], 1, MAX_JOBS);
        else if (strcmp(argv[i], "--except") == 0 && i + 1 < argc &&
                 options.n_exceptions < MAX_TESTS)
            options.exceptions[options.n_exceptions++] = argv[++i];
        else if (strcmp(argv[i], "--list") == 0)
            options.is_list = true;
        else if (strcmp(argv[i], "--verbose") == 0)
            options.is_verbose = true;
        else if (argv[i][0] == '-')
            misuse("unknown option");
        else if (options.n_filters < MAX_TESTS)
            options.filters[options.n_filters++] = argv[i];
    }
    if (options.jobs > MAX_JOBS)
        options.jobs = MAX_JOBS;
}

static void choose_tests(void)
{
    for (const struct test_case *t = registered; t; t = t->next) {
        if (!is_chosen(t))
            continue;
        must(n_chosen < MAX_TESTS);
        chosen[n_chosen++] = t;
    }
    qsort(chosen, (size_t)n_chosen, sizeof(chosen[0]), compare_tests);
    for (int i = 0; i < options.n_filters; i++) {
        const struct test_case *t = registered;
        while (t && !is_meant(t, options.filters[i]))
            t = t->next;
        if (!t) {
            fprintf(stderr, "'%s': ", options.filters[i]);
            misuse("no test has such a name");
        }
    }
}

int main(int argc, char **argv)
{
    parse_arguments(argc, argv);
    choose_tests();
    if (options.is_list) {
        for (int i = 0; i < n_chosen; i++)
            printf("%s/%s\n", suites[suite_of(chosen[i])].name, chosen[i]->name);
        return 0;
    }
    find_dirs();
    printf("seed %llu\n", (unsigned long long)options.seed);
    struct report *reports = mmap(NULL, MAX_JOBS * sizeof(*reports), PROT_READ | PROT_WRITE,
                                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(reports != MAP_FAILED);
    for (int i = 0; i < MAX_JOBS; i++)
        slots[i].report = &reports[i];
    sigset_t watched;
    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGINT);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGHUP);
    must_zero(sigprocmask(SIG_BLOCK, &watched, NULL));
    run_all(false, options.jobs, &watched);
    run_all(true, 1, &watched);
    for (int i = 0; i < n_chosen; i++)
        if (has_failed[i])
            printf("failed: %s/%s\n", suites[suite_of(chosen[i])].name, chosen[i]->name);
    printf("%d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed > 0;
}
