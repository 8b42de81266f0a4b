/* tools/load.c - see tools/load.h.
 *
 * First the files are read with read(2) by one thread, as dd would: that is the rate to
 * compare with, and it leaves what fits in the page cache.  With --cold both begin without
 * the files in the page cache. */
#include "tools/load.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "engine/load.h"
#include "tools/local_engine.h"

enum { PIECE_BYTES = 4 << 20 };

struct load_verb {
    struct local_engine_options engine;
    bool is_cold;
};

struct measured {
    double bytes, seconds;
};

static void usage(FILE *out)
{
    fputs(
        "usage: polymath load --model DIR [OPTION]...\n\n"
        "Reads the model's weight files as dd would, then makes every expert ready as a node\n"
        "does, and prints both rates and the resident set.\n\n"
        "  --cold             drop the files from the page cache before each of the two\n"
        "                     (what is not yet on the disk stays: sync first)\n" LOCAL_ENGINE_HELP,
        out);
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct load_verb *o, struct err *e)
{
    enum { COLD = 'c', HELP = 'h' };
    static const struct option options[] = {LOCAL_ENGINE_GETOPT,
                                            {"cold", no_argument, NULL, COLD},
                                            {"help", no_argument, NULL, HELP},
                                            {0}};
    *o = (struct load_verb){0};
    local_engine_defaults(&o->engine);
    optind = 0;
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        int rc = 0;
        if (code == COLD)
            o->is_cold = true;
        else if (code == HELP)
            return 1;
        else if (code == '?')
            return err_set(e, E_INVALID, "%s: unknown option or missing value", argv[optind - 1]);
        else
            rc = local_engine_take(&o->engine, code, optarg, e);
        if (rc < 0)
            return rc;
    }
    if (optind < argc)
        return err_set(e, E_INVALID, "%s: unexpected argument", argv[optind]);
    if (!o->engine.model_dir)
        return err_set(e, E_INVALID, "--model is needed");
    return 0;
}

/* ---- the files ---- */

static bool has_suffix(const char *name, const char *suffix)
{
    size_t len = strlen(name), suffix_len = strlen(suffix);
    return len > suffix_len && strcmp(name + len - suffix_len, suffix) == 0;
}

static int read_file(int fd, void *piece, double *bytes)
{
    for (;;) {
        ssize_t n = read(fd, piece, PIECE_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : 0;
        *bytes += (double)n;
    }
}

enum visit { VISIT_READ, VISIT_DROP };

static int visit_file(int dir_fd, const char *name, enum visit what, void *piece, double *bytes,
                      struct err *e)
{
    int failed = 0, fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "%s", name);
    if (what == VISIT_READ)
        failed = read_file(fd, piece, bytes);
    else
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    return failed ? err_set_errno(e, failed, "%s: read", name) : 0;
}

static int visit_files(const char *dir, enum visit what, struct measured *m, struct err *e)
{
    int rc = 0;
    DIR *entries = opendir(dir);
    if (!entries)
        return err_set_errno(e, errno, "%s", dir);
    void *piece = mem_aligned(PIECE_BYTES);
    int64_t began_ns = clock_now_ns();
    *m = (struct measured){0};
    for (struct dirent *entry = readdir(entries); entry && rc == 0; entry = readdir(entries))
        if (has_suffix(entry->d_name, ".safetensors") || has_suffix(entry->d_name, ".packed"))
            rc = visit_file(dirfd(entries), entry->d_name, what, piece, &m->bytes, e);
    m->seconds = (double)(clock_now_ns() - began_ns) / CLOCK_S;
    closedir(entries);
    mem_free(piece);
    return rc;
}

static int probe(const struct load_verb *o, struct measured *m, struct err *e)
{
    const char *dir = o->engine.model_dir;
    struct measured dropped;
    int rc = o->is_cold ? visit_files(dir, VISIT_DROP, &dropped, e) : 0;
    if (rc == 0)
        rc = visit_files(dir, VISIT_READ, m, e);
    if (rc == 0 && o->is_cold)
        rc = visit_files(dir, VISIT_DROP, &dropped, e);
    return rc;
}

/* ---- the experts ---- */

static double resident_bytes(void)
{
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%*d %ld", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* Of all threads, in the system too: what a busy machine does not change much. */
static double cpu_seconds(void)
{
    struct rusage u = {0};
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int load_all(struct checkpoint *c, const struct load_options *l, struct measured *m,
                    struct measured *stored, struct err *e)
{
    const struct model_config *config = checkpoint_config(c);
    int n = config_expert_layers(config) * config->n_experts;
    size_t *which = mem_array((size_t)n, sizeof *which), bytes = 0;
    struct expert *experts = mem_array((size_t)n, sizeof *experts);
    struct expert **out = mem_array((size_t)n, sizeof(struct expert *));
    for (int i = 0; i < n; i++) {
        which[i] = (size_t)i;
        out[i] = &experts[i];
    }
    int rc = checkpoint_expert_bytes(c, &bytes, e);
    int64_t began_ns = clock_now_ns();
    double began_cpu_s = cpu_seconds();
    if (rc == 0)
        rc = load_experts(l, which, n, out, e);
    double cpu_s = cpu_seconds() - began_cpu_s;
    m->seconds = stored->seconds = (double)(clock_now_ns() - began_ns) / CLOCK_S;
    stored->bytes = (double)bytes * n;
    if (rc == 0) {
        double resident = resident_bytes();
        for (int i = 0; i < n; i++)
            m->bytes += (double)expert_bytes(&experts[i]);
        printf("experts: %d, %.2f GB in %.2f s: %.2f GB/s, of what is stored %.2f GB/s\n", n,
               m->bytes / 1e9, m->seconds, m->bytes / 1e9 / m->seconds,
               stored->bytes / 1e9 / stored->seconds);
        printf("CPU time: %.2f s, %.2f GB per second of one CPU\n", cpu_s, m->bytes / 1e9 / cpu_s);
        printf("resident: %.2f GB, %.3f times the experts (and %.0f MB beyond)\n", resident / 1e9,
               resident / m->bytes, (resident - m->bytes) / 1e6);
    }
    for (int i = 0; i < n; i++)
        load_release(c, which[i], &experts[i]);
    mem_free(which);
    mem_free(experts);
    mem_free(out);
    return rc;
}

static int measure(const struct load_verb *o, struct err *e)
{
    const struct local_engine_options *g = &o->engine;
    struct checkpoint *c = NULL;
    struct format_set formats = g->formats;
    struct measured read = {0}, made = {0}, stored = {0};
    struct compute compute = {.kernels = g->kernels ? kernels_named(g->kernels) : kernels_best()};
    int n_threads = g->n_threads ? g->n_threads : thread_cpu_count();
    int rc = probe(o, &read, e);
    if (rc == 0)
        printf("read(2), one thread: %.2f GB in %.2f s: %.2f GB/s\n", read.bytes / 1e9,
               read.seconds, read.bytes / 1e9 / read.seconds);
    int64_t began_ns = clock_now_ns();
    if (rc == 0)
        rc = checkpoint_open_with(g->model_dir, &g->checkpoint, &c, e);
    if (rc == 0)
        rc = checkpoint_formats(c, &formats, e);
    if (rc < 0)
        goto out;
    printf("opened in %.3f s; %d threads\n", (double)(clock_now_ns() - began_ns) / CLOCK_S,
           n_threads);
    compute.pool = pool_new(n_threads, POOL_FREE);
    struct load_options l = {.checkpoint = c, .format = formats.experts, .compute = &compute};
    rc = load_all(c, &l, &made, &stored, e);
    if (rc == 0)
        printf("ratio to read(2), by bytes stored: %.2f\n",
               stored.bytes / stored.seconds / (read.bytes / read.seconds));
    pool_free(&compute.pool);
out:
    checkpoint_close(&c);
    return rc;
}

int load_main(int argc, char **argv)
{
    struct err e = {0};
    struct load_verb o;
    int parsed = parse(argc, argv, &o, &e), rc = parsed;
    if (parsed == 1) {
        usage(stdout);
        return 0;
    }
    if (rc == 0)
        rc = measure(&o, &e);
    if (rc < 0)
        fprintf(stderr, "polymath load: %s\n", e.text);
    return parsed < 0 ? 2 : rc < 0 ? 1 : 0;
}
