/* coordinator/journal.c - see journal.h.
 *
 * One job at a time goes to the writer thread: append a batch, or replace the file.  While it is
 * out the thread owns `file`; the loop owns everything else.  Records: coordinator/records.h. */
#include "coordinator/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/thread.h"

enum { MAGIC_BYTES = 8, NAME_BYTES = 64, RETRY_MS = 1000, HOLDER_BYTES = 640 };
static const char magic[MAGIC_BYTES] = "PMJRNL1\n";
/* A rewrite that failed is not tried again at once. */
#define REWRITE_AGAIN_NS (5 * CLOCK_S)

struct file {
    int dir_fd, fd;
    uint64_t generation;
    int64_t bytes; /* whole records */
    bool syncs;
    int64_t max_bytes;
};

struct job {
    const struct buf *data;
    bool is_rewrite;
    struct err e; /* what came of it */
};

struct journal {
    struct journal_options options;
    char *dir, *holder, *led_through;
    int lock_fd;
    struct file file; /* the writer's while a job is out */
    struct loop *loop;
    struct loop_timer timer;
    struct thread *writer;
    struct queue *jobs, *done;
    struct job job, wake;
    bool is_out;

    struct buf pending, batch, snapshot; /* batch: out, or failed and to be tried again */
    bool has_snapshot;
    uint64_t appended, batch_end, snapshot_end, durable, n_rewrites;
    int64_t bytes, first_bytes; /* of the file: now, and when it was begun */
    int64_t no_rewrite_before_ns;
    bool is_stopped;
    char why[ERR_TEXT_BYTES];
};

/* ---- files: by the writer, and at start ---------------------------------------------- */

static int write_all(int fd, const struct buf *data, struct err *e)
{
    for (size_t at = 0; at < data->len;) {
        ssize_t n = write(fd, data->data + at, data->len - at);
        if (n < 0 && errno != EINTR)
            return err_set_errno(e, errno, "write the token log");
        if (n > 0)
            at += (size_t)n;
    }
    return 0;
}

static int sync_fd(const struct file *f, int fd, struct err *e)
{
    if (f->syncs && fdatasync(fd) < 0)
        return err_set_errno(e, errno, "sync the token log");
    return 0;
}

static bool has_name(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 && st.st_nlink > 0;
}

static void append_batch(struct file *f, struct job *job)
{
    if (f->bytes + (int64_t)job->data->len > f->max_bytes) {
        err_set(&job->e, E_BUSY, "the token log has %lld bytes, state.max_bytes allows %lld",
                (long long)f->bytes, (long long)f->max_bytes);
        return;
    }
    if (write_all(f->fd, job->data, &job->e) < 0 || sync_fd(f, f->fd, &job->e) < 0) {
        /* What was written in part goes; whoever reads would cut it off, too. */
        if (ftruncate(f->fd, f->bytes) < 0 || lseek(f->fd, f->bytes, SEEK_SET) < 0)
            log_warn("journal.untidy", "why=%s", log_quote(strerror(errno)).text);
        return;
    }
    if (!has_name(f->fd)) {
        err_set(&job->e, E_ABORTED, "another coordinator has taken over the token log");
        return;
    }
    f->bytes += (int64_t)job->data->len;
}

static void name_of(char name[NAME_BYTES], uint64_t generation, const char *suffix)
{
    snprintf(name, NAME_BYTES, "journal.%" PRIu64 "%s", generation, suffix);
}

static int write_file(struct file *f, const char *name, const struct buf *data, int *out,
                      struct err *e)
{
    int fd = openat(f->dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set_errno(e, errno, "create %s", name);
    struct buf head = {0};
    buf_append(&head, magic, MAGIC_BYTES);
    int rc = write_all(fd, &head, e);
    buf_fini(&head);
    if (rc == 0)
        rc = write_all(fd, data, e);
    if (rc == 0)
        rc = sync_fd(f, fd, e);
    if (rc < 0)
        close(fd);
    else
        *out = fd;
    return rc;
}

/* The new file is whole before it has its name, and the old one goes after that.  link(), because it
 * never takes the place of a successor's file. */
static void replace_file(struct file *f, struct job *job)
{
    char fresh[NAME_BYTES], name[NAME_BYTES], old[NAME_BYTES];
    char suffix[32];
    snprintf(suffix, sizeof suffix, ".%d.new", (int)getpid());
    name_of(fresh, f->generation + 1, suffix);
    name_of(name, f->generation + 1, "");
    name_of(old, f->generation, "");
    int fd = -1;
    int rc = write_file(f, fresh, job->data, &fd, &job->e);
    bool is_linked = rc == 0 && linkat(f->dir_fd, fresh, f->dir_fd, name, 0) == 0;
    if (rc == 0 && !is_linked)
        rc = err_set_errno(&job->e, errno, "give %s its name", fresh);
    unlinkat(f->dir_fd, fresh, 0);
    if (rc == 0 && f->syncs && fsync(f->dir_fd) < 0)
        rc = err_set_errno(&job->e, errno, "sync the directory of the token log");
    if (rc < 0) {
        if (is_linked)
            unlinkat(f->dir_fd, name, 0);
        if (fd >= 0)
            close(fd);
        return;
    }
    if (f->fd >= 0)
        close(f->fd);
    unlinkat(f->dir_fd, old, 0);
    f->fd = fd;
    f->generation++;
    f->bytes = MAGIC_BYTES + (int64_t)job->data->len;
}

static void do_job(struct file *f, struct job *job)
{
    job->e = (struct err){0};
    if (job->is_rewrite)
        replace_file(f, job);
    else
        append_batch(f, job);
}

static void writer_main(struct thread *t, void *arg)
{
    struct journal *j = arg;
    thread_ready(t, 0, NULL);
    for (;;) {
        struct job *job = queue_pop_wait(j->jobs, clock_now_ns() + CLOCK_S);
        if (job == &j->job) {
            do_job(&j->file, job);
            must_zero(queue_push(j->done, (void **)&job));
        } else if (thread_should_stop(t)) {
            return;
        }
    }
}

/* ---- jobs, on the loop ------------------------------------------------------------------ */

static void set_timer(struct journal *j, int64_t after_ns)
{
    loop_set_timer(j->loop, &j->timer, clock_now_ns() + after_ns);
}

/* The next thing to be written, if there is one; false: nothing. */
static bool next_job(struct journal *j)
{
    if (j->has_snapshot) {
        j->job = (struct job){.data = &j->snapshot, .is_rewrite = true};
        return true;
    }
    if (j->batch.len == 0) {
        struct buf empty = j->batch;
        j->batch = j->pending;
        j->pending = empty;
        j->batch_end = j->appended;
    }
    j->job = (struct job){.data = &j->batch};
    return j->batch.len > 0;
}

static void flush(struct journal *j)
{
    if (j->is_out || !next_job(j))
        return;
    struct job *job = &j->job;
    j->is_out = true;
    must_zero(queue_push(j->jobs, (void **)&job));
}

static void on_timer(void *ud, int64_t now_ns)
{
    (void)now_ns;
    flush(ud);
}

static void finish_rewrite(struct journal *j)
{
    j->has_snapshot = false;
    if (j->job.e.code < 0) {
        j->no_rewrite_before_ns = clock_now_ns() + REWRITE_AGAIN_NS;
        log_warn("journal.rewrite_failed", "why=%s", log_quote(j->job.e.text).text);
    } else {
        j->first_bytes = j->file.bytes;
        j->n_rewrites++;
        if (j->snapshot_end > j->durable)
            j->durable = j->snapshot_end;
        log_info("journal.rewritten", "bytes=%lld", (long long)j->file.bytes);
    }
    buf_fini(&j->snapshot);
}

static void finish_append(struct journal *j)
{
    if (j->job.e.code < 0) {
        bool is_new = !j->is_stopped;
        j->is_stopped = true;
        snprintf(j->why, sizeof j->why, "%s", j->job.e.text);
        if (!is_new)
            return;
        log_error("journal.stopped", "dir=%s why=%s", log_quote(j->dir).text,
                  log_quote(j->why).text);
        j->options.on_stopped(j->options.ud, j->why);
        return;
    }
    if (j->is_stopped)
        log_info("journal.goes_on", "dir=%s", log_quote(j->dir).text);
    j->is_stopped = false;
    buf_reset(&j->batch);
    if (j->batch_end > j->durable)
        j->durable = j->batch_end;
}

static void finish_job(struct journal *j)
{
    j->is_out = false;
    j->bytes = j->file.bytes;
    if (j->job.is_rewrite)
        finish_rewrite(j);
    else
        finish_append(j);
}

static void on_done(void *ud, int64_t now_ns)
{
    struct journal *j = ud;
    (void)now_ns;
    if (!queue_pop(j->done))
        return;
    uint64_t before = j->durable;
    finish_job(j);
    if (j->durable > before)
        j->options.on_durable(j->options.ud);
    if (j->job.e.code < 0 && !j->has_snapshot)
        set_timer(j, RETRY_MS * CLOCK_MS);
    else
        flush(j); /* what has come meanwhile has waited long enough */
}

uint64_t journal_append(struct journal *j, uint8_t type, struct str payload)
{
    records_put(&j->pending, type, payload);
    if (!j->is_out && !j->is_stopped && j->timer.deadline_ns == CLOCK_NEVER)
        set_timer(j, j->options.delay_ns);
    return ++j->appended;
}

uint64_t journal_durable(const struct journal *j)
{
    return j->durable;
}

uint64_t journal_appended(const struct journal *j)
{
    return j->appended;
}

const char *journal_why_stopped(const struct journal *j)
{
    return j->is_stopped ? j->why : NULL;
}

bool journal_is_idle(const struct journal *j)
{
    return !j->is_out && !j->has_snapshot && j->batch.len == 0 && j->pending.len == 0;
}

uint64_t journal_rewrites(const struct journal *j)
{
    return j->n_rewrites;
}

int64_t journal_bytes(const struct journal *j)
{
    return j->bytes;
}

bool journal_wants_rewrite(const struct journal *j)
{
    int64_t grown = j->bytes - j->first_bytes;
    return !j->has_snapshot && grown > j->options.max_bytes / 4 &&
           clock_now_ns() >= j->no_rewrite_before_ns;
}

void journal_rewrite(struct journal *j, struct buf *snapshot)
{
    must(!j->has_snapshot);
    j->snapshot = *snapshot;
    *snapshot = (struct buf){0};
    j->has_snapshot = true;
    j->snapshot_end = j->appended;
    flush(j);
}

/* ---- opening and closing ----------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), n_end = strlen(end);
    return n_end > 0 && n >= n_end && strcmp(text + n - n_end, end) == 0;
}

/* A lock of our own in its place; what the holder keeps is one on a file without a name. */
static int replace_lock(struct journal *j, struct err *e)
{
    char fresh[NAME_BYTES];
    snprintf(fresh, sizeof fresh, "lock.%d", (int)getpid());
    close(j->lock_fd);
    j->lock_fd = openat(j->file.dir_fd, fresh, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (j->lock_fd < 0 || flock(j->lock_fd, LOCK_EX | LOCK_NB) < 0 ||
        renameat(j->file.dir_fd, fresh, j->file.dir_fd, "lock") < 0)
        return err_set_errno(e, errno, "%s/%s", j->dir, fresh);
    return 0;
}

static int take_lock(struct journal *j, struct err *e)
{
    j->lock_fd = openat(j->file.dir_fd, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (j->lock_fd < 0)
        return err_set_errno(e, errno, "%s/lock", j->dir);
    if (flock(j->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return has_name(j->lock_fd) ? 0 : err_set(e, E_BUSY, "%s has just been taken", j->dir);
    char holder[HOLDER_BYTES] = "";
    ssize_t n = read(j->lock_fd, holder, sizeof holder - 1);
    holder[n > 0 ? strcspn(holder, "\n") : 0] = '\0';
    if (!ends_with(holder, j->led_through))
        return err_set(e, E_BUSY, "%s is in use by %s", j->dir, holder[0] ? holder : "somebody");
    log_warn("journal.taken_over", "dir=%s from=%s", log_quote(j->dir).text,
             log_quote(holder).text);
    return replace_lock(j, e);
}

static int lock_dir(struct journal *j, struct err *e)
{
    int rc = take_lock(j, e);
    if (rc < 0)
        return rc;
    if (ftruncate(j->lock_fd, 0) < 0 || dprintf(j->lock_fd, "%s\n", j->holder) < 0)
        return err_set_errno(e, errno, "%s/lock", j->dir);
    return 0;
}

/* journal.N: its N; 0: something else. */
static uint64_t generation_of(const char *name)
{
    static const char prefix[] = "journal.";
    if (strncmp(name, prefix, sizeof prefix - 1) != 0)
        return 0;
    const char *digits = name + sizeof prefix - 1;
    if (!digits[0] || digits[strspn(digits, "0123456789")] || strlen(digits) > 18)
        return 0;
    return strtoull(digits, NULL, 10);
}

enum { KEEP_NEWEST, FIND_NEWEST };

/* The newest generation; older ones and half-written new ones are leftovers. */
static int find_newest(struct journal *j, uint64_t *newest, struct err *e)
{
    int fd = openat(j->file.dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (!d)
        return err_set_errno(e, errno, "read %s", j->dir);
    *newest = 0;
    for (int pass = FIND_NEWEST; pass >= KEEP_NEWEST; pass--) {
        rewinddir(d);
        for (const struct dirent *entry; (entry = readdir(d));) {
            uint64_t n = generation_of(entry->d_name);
            size_t len = strlen(entry->d_name);
            bool is_half = len > 4 && strncmp(entry->d_name, "journal.", 8) == 0 &&
                           strcmp(entry->d_name + len - 4, ".new") == 0;
            if (pass == FIND_NEWEST && n > *newest)
                *newest = n;
            else if (pass == KEEP_NEWEST && ((n > 0 && n < *newest) || is_half))
                unlinkat(j->file.dir_fd, entry->d_name, 0);
        }
    }
    closedir(d);
    return 0;
}

static int read_bytes(struct journal *j, struct str data, records_each *each, void *ud,
                      struct err *e)
{
    /* A file gets its name when it is whole, so its beginning is there. */
    if (data.len < MAGIC_BYTES || memcmp(data.ptr, magic, MAGIC_BYTES) != 0)
        return err_set(e, E_CORRUPT, "%s/journal.%" PRIu64 " is no token log of this version",
                       j->dir, j->file.generation);
    struct str records = {data.ptr + MAGIC_BYTES, data.len - MAGIC_BYTES};
    size_t good = records_read(records, each, ud).bytes;
    if (good < records.len)
        log_warn("journal.damaged", "dir=%s bytes=%zu cut_off=%zu", log_quote(j->dir).text,
                 data.len, records.len - good);
    log_info("journal.opened", "dir=%s bytes=%zu", log_quote(j->dir).text, data.len);
    return 0;
}

static int read_journal(struct journal *j, records_each *each, void *ud, struct err *e)
{
    int rc = find_newest(j, &j->file.generation, e);
    if (rc < 0 || j->file.generation == 0)
        return rc;
    char name[NAME_BYTES];
    name_of(name, j->file.generation, "");
    struct stat st;
    int fd = openat(j->file.dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        rc = err_set_errno(e, errno, "%s/%s", j->dir, name);
    } else if (st.st_size == 0) {
        rc = read_bytes(j, (struct str){"", 0}, each, ud, e);
    } else {
        void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED) {
            rc = err_set_errno(e, errno, "map %s/%s", j->dir, name);
        } else {
            rc = read_bytes(j, (struct str){data, (size_t)st.st_size}, each, ud, e);
            munmap(data, (size_t)st.st_size);
        }
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

int journal_open(const struct journal_options *o, records_each *each, void *ud,
                 struct journal **out, struct err *e)
{
    *out = NULL;
    if (mkdir(o->dir, 0700) < 0 && errno != EEXIST)
        return err_set_errno(e, errno, "make %s", o->dir);
    int dir_fd = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return err_set_errno(e, errno, "open %s", o->dir);
    struct journal *j = mem_alloc(sizeof *j);
    j->options = *o;
    j->options.holder = j->options.led_through = NULL; /* the caller's again */
    j->holder = mem_string(o->holder);
    j->led_through = mem_string(o->led_through ? o->led_through : "");
    j->dir = mem_string(o->dir);
    j->lock_fd = -1;
    j->timer = (struct loop_timer){.deadline_ns = CLOCK_NEVER, .cb = on_timer, .ud = j};
    j->file =
        (struct file){.dir_fd = dir_fd, .fd = -1, .syncs = o->syncs, .max_bytes = o->max_bytes};
    int rc = lock_dir(j, e);
    if (rc == 0)
        rc = read_journal(j, each, ud, e);
    if (rc < 0)
        journal_close(&j);
    *out = j;
    return rc;
}

int journal_start(struct journal *j, struct loop *l, const struct buf *snapshot, struct err *e)
{
    must(!j->writer);
    struct job job = {.data = snapshot, .is_rewrite = true};
    do_job(&j->file, &job);
    if (job.e.code < 0)
        return err_set(e, job.e.code, "%s: %s", j->dir, job.e.text);
    j->bytes = j->first_bytes = j->file.bytes;
    j->loop = l;
    j->jobs = queue_new(2);
    j->done = queue_new(1);
    loop_add_fd(l, queue_fd(j->done), on_done, j);
    return thread_start("journal", writer_main, j, &j->writer, e);
}

static void wake_writer(void *ud)
{
    struct journal *j = ud;
    struct job *wake = &j->wake;
    queue_push(j->jobs, (void **)&wake);
}

/* The writer has ended its job; the rest is done here. */
static void write_rest(struct journal *j)
{
    if (queue_pop(j->done))
        finish_job(j);
    /* A job that it never took is still to be done. */
    while (queue_pop(j->jobs))
        ;
    j->is_out = false;
    j->has_snapshot = false;
    while (next_job(j)) {
        do_job(&j->file, &j->job);
        finish_job(j);
        if (j->is_stopped)
            return;
    }
}

void journal_close(struct journal **journal)
{
    struct journal *j = *journal;
    *journal = NULL;
    if (!j)
        return;
    if (j->writer)
        thread_stop(&j->writer, wake_writer, j);
    if (j->jobs) {
        loop_remove_fd(j->loop, queue_fd(j->done));
        write_rest(j);
        queue_free(&j->jobs);
        queue_free(&j->done);
    }
    if (j->timer.added)
        loop_remove_timer(j->loop, &j->timer);
    if (j->file.fd >= 0)
        close(j->file.fd);
    if (j->lock_fd >= 0)
        close(j->lock_fd);
    close(j->file.dir_fd);
    buf_fini(&j->pending);
    buf_fini(&j->batch);
    buf_fini(&j->snapshot);
    mem_free(j->holder);
    mem_free(j->led_through);
    mem_free(j->dir);
    mem_free(j);
}
