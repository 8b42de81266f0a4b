/* tests/unit/test_journal.c - what was durable comes back, whatever was cut off, filled up or broken;
 * and only one process has it. */
#include "coordinator/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"

struct world {
    struct loop *loop;
    struct journal *journal;
    struct buf read; /* "type:payload;" of every record */
    int n_read, n_durable, n_stopped;
    char why[200];
    struct err e;
};

static void on_record(void *ud, uint8_t type, struct str payload)
{
    struct world *w = ud;
    w->n_read++;
    buf_printf(&w->read, "%d:%.*s;", type, (int)payload.len, payload.ptr);
}

static void on_durable(void *ud)
{
    struct world *w = ud;
    w->n_durable++;
}

static void on_stopped(void *ud, const char *why)
{
    struct world *w = ud;
    w->n_stopped++;
    snprintf(w->why, sizeof w->why, "%s", why);
}

static int open_journal(struct world *w, int64_t max_bytes)
{
    struct journal_options o = {.dir = "state",
                                .holder = "coordinator test, process 1 on here",
                                .syncs = true,
                                .delay_ns = CLOCK_MS,
                                .max_bytes = max_bytes,
                                .on_durable = on_durable,
                                .on_stopped = on_stopped,
                                .ud = w};
    *w = (struct world){0};
    CHECK_INT(loop_open(&w->loop, NULL), 0);
    return journal_open(&o, on_record, w, &w->journal, &w->e);
}

/* Opens it, checks what is in it, and begins a new file that holds `snapshot`. */
static void start(struct world *w, int64_t max_bytes, const char *expected, const char *snapshot)
{
    if (open_journal(w, max_bytes) < 0)
        test_fail(__FILE__, __LINE__, "%s", w->e.text);
    CHECK_STR(w->read.data ? w->read.data : "", expected);
    struct buf s = {0};
    if (snapshot)
        records_put(&s, 9, str_of(snapshot));
    CHECK_INT(journal_start(w->journal, w->loop, &s, &w->e), 0);
    buf_fini(&s);
}

static void finish(struct world *w)
{
    journal_close(&w->journal);
    loop_close(&w->loop);
    buf_fini(&w->read);
}

static void wait_durable(struct world *w, uint64_t position)
{
    int64_t deadline_ns = clock_now_ns() + 20 * CLOCK_S;
    while (journal_durable(w->journal) < position) {
        CHECK(clock_now_ns() < deadline_ns);
        loop_turn(w->loop, deadline_ns);
    }
}

static void wait_stopped(struct world *w)
{
    int64_t deadline_ns = clock_now_ns() + 20 * CLOCK_S;
    while (w->n_stopped == 0) {
        CHECK(clock_now_ns() < deadline_ns);
        loop_turn(w->loop, deadline_ns);
    }
}

TEST(journal_gives_back_what_was_appended)
{
    struct world w;
    start(&w, 1 << 20, "", "begin");
    CHECK_INT(journal_append(w.journal, 1, STR("one")), 1);
    CHECK_INT(journal_append(w.journal, 2, STR("")), 2);
    CHECK_INT(journal_durable(w.journal), 0);
    wait_durable(&w, 2);
    CHECK_INT(w.n_durable, 1); /* both with one write */
    journal_append(w.journal, 3, STR("three"));
    finish(&w); /* writes the rest */
    start(&w, 1 << 20, "9:begin;1:one;2:;3:three;", "again");
    finish(&w);
    start(&w, 1 << 20, "9:again;", NULL);
    finish(&w);
    start(&w, 1 << 20, "", NULL);
    finish(&w);
}

TEST(journal_belongs_to_one_process)
{
    struct world w, other;
    start(&w, 1 << 20, "", "begin");
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_INT(open_journal(&other, 1 << 20), E_BUSY);
        CHECK_HAS(other.e.text, "in use by coordinator test, process 1 on here");
        CHECK(other.journal == NULL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK_INT(status, 0);
    finish(&w);
    start(&w, 1 << 20, "9:begin;", NULL);
    finish(&w);
}

static struct buf file_of(const char *path)
{
    struct buf b = {0};
    CHECK_INT(buf_read_file(&b, path, 1 << 26, NULL), 0);
    return b;
}

static void write_bytes(const char *path, const char *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

/* Cut after every byte: the whole records before the cut come back, and nothing else. */
TEST(journal_survives_a_cut_at_every_byte)
{
    struct world w;
    static const char *const parts[] = {"9:begin;", "1:one;", "2:second;", "3:3;"};
    start(&w, 1 << 20, "", "begin");
    journal_append(w.journal, 1, STR("one"));
    journal_append(w.journal, 2, STR("second"));
    journal_append(w.journal, 3, STR("3"));
    finish(&w);
    struct buf whole = file_of("state/journal.1");
    size_t ends[] = {8 + 9 + 5, 8 + 9 + 5 + 9 + 3, 8 + 9 + 5 + 9 + 3 + 9 + 6, whole.len};
    for (size_t n = 8; n <= whole.len; n++) {
        char expected[64] = "";
        for (int i = 0; i < 4; i++)
            if (n >= ends[i])
                strncat(expected, parts[i], sizeof expected - strlen(expected) - 1);
        CHECK(system("rm -f state/journal.*") == 0);
        write_bytes("state/journal.1", whole.data, n);
        start(&w, 1 << 20, expected, NULL);
        finish(&w);
    }
    CHECK(system("rm -f state/journal.*") == 0);
    write_bytes("state/journal.1", whole.data, 7);
    CHECK_INT(open_journal(&w, 1 << 20), E_CORRUPT);
    loop_close(&w.loop);
    buf_fini(&whole);
}

/* Any byte changed: the records before it come back; that one and what follows do not. */
TEST(journal_notices_every_changed_byte)
{
    struct world w;
    start(&w, 1 << 20, "", "begin");
    journal_append(w.journal, 1, STR("one"));
    journal_append(w.journal, 2, STR("second"));
    finish(&w);
    struct buf whole = file_of("state/journal.1");
    for (size_t i = 8; i < whole.len; i++) {
        CHECK(system("rm -f state/journal.*") == 0);
        whole.data[i] ^= 0x20;
        write_bytes("state/journal.1", whole.data, whole.len);
        whole.data[i] ^= 0x20;
        const char *expected = i < 22 ? "" : i < 34 ? "9:begin;" : "9:begin;1:one;";
        start(&w, 1 << 20, expected, NULL);
        finish(&w);
    }
    buf_fini(&whole);
}

TEST(journal_ignores_leftovers)
{
    struct world w;
    start(&w, 1 << 20, "", "begin");
    finish(&w);
    write_bytes("state/journal.0000", "x", 1);
    write_bytes("state/journal.9.new", "half of the ne", 14);
    write_bytes("state/journal.x", "x", 1);
    start(&w, 1 << 20, "9:begin;", "second");
    finish(&w);
    struct stat st;
    CHECK(stat("state/journal.9.new", &st) < 0);
    CHECK(stat("state/journal.1", &st) < 0);
    CHECK(stat("state/journal.2", &st) == 0);
    CHECK_INT(st.st_mode & 077, 0); /* prompts are nobody else's business */
}

TEST(journal_is_rewritten)
{
    struct world w;
    start(&w, 4000, "", "begin");
    uint64_t last = 0;
    CHECK(!journal_wants_rewrite(w.journal));
    for (int i = 0; i < 30; i++)
        last = journal_append(w.journal, 1, STR("a record of some forty bytes, all told..."));
    wait_durable(&w, last);
    CHECK(journal_wants_rewrite(w.journal));
    journal_append(w.journal, 2, STR("not written yet"));
    struct buf snapshot = {0};
    records_put(&snapshot, 9, STR("all of it"));
    journal_rewrite(w.journal, &snapshot);
    CHECK(snapshot.data == NULL);
    last = journal_append(w.journal, 3, STR("after"));
    wait_durable(&w, last);
    CHECK(!journal_wants_rewrite(w.journal));
    CHECK(journal_bytes(w.journal) < 200);
    finish(&w);
    /* What was pending comes after the snapshot that has it already: twice is allowed. */
    start(&w, 4000, "9:all of it;2:not written yet;3:after;", NULL);
    finish(&w);
}

TEST(journal_stops_at_its_limit_until_it_is_rewritten)
{
    struct world w;
    start(&w, 1000, "", "begin");
    uint64_t last = journal_append(w.journal, 1, STR("durable"));
    wait_durable(&w, last);
    char big[990] = "";
    memset(big, 'x', sizeof big - 1);
    uint64_t blocked = journal_append(w.journal, 2, str_of(big));
    wait_stopped(&w);
    CHECK_HAS(w.why, "state.max_bytes");
    CHECK_HAS(journal_why_stopped(w.journal), "state.max_bytes");
    CHECK_INT(journal_durable(w.journal), last);
    journal_append(w.journal, 3, STR("later"));
    finish(&w);
    (void)blocked;
    start(&w, 1000, "9:begin;1:durable;", NULL);
    finish(&w);
}

/* A disk that is full: what is durable stays, what was written in part goes, and when there is room
 * again the log goes on. */
TEST(journal_survives_a_full_disk)
{
    struct world w;
    signal(SIGXFSZ, SIG_IGN);
    start(&w, 1 << 20, "", "begin");
    wait_durable(&w, journal_append(w.journal, 1, STR("durable")));
    struct rlimit small = {.rlim_cur = 50, .rlim_max = RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    uint64_t blocked = journal_append(w.journal, 2, STR("a record that does not fit any more"));
    wait_stopped(&w);
    CHECK_HAS(w.why, "write the token log");
    CHECK(journal_durable(w.journal) < blocked);
    struct stat st;
    CHECK(stat("state/journal.1", &st) == 0);
    CHECK_INT(st.st_size, 8 + 9 + 5 + 9 + 7);
    journal_append(w.journal, 3, STR("meanwhile"));
    small.rlim_cur = RLIM_INFINITY;
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0);
    wait_durable(&w, blocked + 1);
    CHECK(journal_why_stopped(w.journal) == NULL);
    CHECK_INT(w.n_stopped, 1);
    finish(&w);
    start(&w, 1 << 20, "9:begin;1:durable;2:a record that does not fit any more;3:meanwhile;",
          NULL);
    finish(&w);
}

TEST(journal_says_where_it_cannot_write)
{
    struct world w;
    write_bytes("state", "a file", 6);
    CHECK(open_journal(&w, 1000) < 0);
    CHECK_HAS(w.e.text, "open state");
    loop_close(&w.loop);
}

/* ---- a successor while the predecessor lives ------------------------------------------------- */

static int open_led(struct world *w, const char *holder)
{
    struct journal_options o = {.dir = "state",
                                .holder = holder,
                                .led_through = ", led through X",
                                .syncs = true,
                                .delay_ns = CLOCK_MS,
                                .max_bytes = 1 << 20,
                                .on_durable = on_durable,
                                .on_stopped = on_stopped,
                                .ud = w};
    *w = (struct world){0};
    CHECK_INT(loop_open(&w->loop, NULL), 0);
    int rc = journal_open(&o, on_record, w, &w->journal, &w->e);
    struct buf s = {0};
    if (rc == 0)
        rc = journal_start(w->journal, w->loop, &s, &w->e);
    return rc;
}

TEST(journal_of_a_stopped_leader_spoils_nothing)
{
    struct world old, young, third;
    CHECK_INT(open_led(&old, "coordinator a, led through X"), 0);
    journal_append(old.journal, 1, STR("told"));
    wait_durable(&old, 1);

    CHECK_INT(open_led(&young, "coordinator b, led through X"), 0);
    CHECK_STR(young.read.data, "1:told;");
    journal_append(young.journal, 1, STR("new"));
    wait_durable(&young, 1);

    /* It goes on: what it appends is not durable, and it cannot put a file of its own in place. */
    journal_append(old.journal, 1, STR("late"));
    wait_stopped(&old);
    CHECK_HAS(old.why, "another coordinator");
    CHECK_INT(journal_durable(old.journal), 1);
    struct buf s = {0};
    records_put(&s, 2, STR("spoilt"));
    journal_rewrite(old.journal, &s);
    for (int i = 0; i < 20; i++)
        loop_turn(old.loop, clock_now_ns() + 10 * CLOCK_MS);
    finish(&old);

    /* Who is not led through the same etcd is still refused, by name. */
    CHECK_INT(open_journal(&third, 1 << 20), E_BUSY);
    CHECK_HAS(third.e.text, "coordinator b");
    finish(&third);
    finish(&young);
    start(&third, 1 << 20, "1:new;", NULL);
    finish(&third);
}
