/* tools/pack.c - see tools/pack.h. */
#include "tools/pack.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/thread.h"
#include "engine/pack.h"
#include "tools/local_engine.h"
#include "tools/progress.h"

enum { MAX_THREADS = 1024 };

static void usage(FILE *out)
{
    fputs("usage: polymath pack --model DIR --format F --out DIR [OPTION]...\n\n"
          "Writes the model in the form that the kernels read, so that a node opens it without\n"
          "converting anything.  Interrupted, it goes on where it stopped.\n\n"
          "  --model DIR        the checkpoint\n"
          "  --format F         " FORMAT_SET_HELP "\n"
          "                     (" FORMAT_CHOICES "; kv is not packed)\n"
          "  --out DIR          where to write; made if it is not there\n"
          "  --threads N        threads (default: all CPUs)\n"
          "  --verify           read everything again and compare the hashes\n"
          "  --force            replace a packing of another model or format\n",
          out);
}

static int take_formats(const char *text, struct format_set *out, struct err *e)
{
    int rc = format_set_parse(text, out, e);
    return rc < 0 ? err_prefix(e, "--format") : 0;
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct pack_options *o, struct err *e)
{
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'}, {"format", required_argument, NULL, 'f'},
        {"out", required_argument, NULL, 'o'},   {"threads", required_argument, NULL, 't'},
        {"verify", no_argument, NULL, 'v'},      {"force", no_argument, NULL, 'F'},
        {"help", no_argument, NULL, 'h'},        {0}};
    bool has_format = false;
    optind = 0;
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        int64_t n = 0;
        int rc = 0;
        if (code == 'm')
            o->model_dir = optarg;
        else if (code == 'o')
            o->out_dir = optarg;
        else if (code == 'v')
            o->verifies = true;
        else if (code == 'F')
            o->is_forced = true;
        else if (code == 'h')
            return 1;
        else if (code == 'f')
            has_format = (rc = take_formats(optarg, &o->formats, e)) == 0;
        else if (code == 't')
            rc = local_engine_integer("threads", optarg, 1, MAX_THREADS, &n, e);
        else
            return err_set(e, E_INVALID, "%s: unknown option or missing value", argv[optind - 1]);
        if (rc < 0)
            return rc;
        if (n > 0)
            o->n_threads = (int)n;
    }
    if (optind < argc)
        return err_set(e, E_INVALID, "%s: unexpected argument", argv[optind]);
    if (!o->model_dir || !o->out_dir || !has_format)
        return err_set(e, E_INVALID, "--model, --format and --out are needed");
    return 0;
}

static void show(void *ud, int64_t done_bytes, int64_t total_bytes)
{
    struct progress *p = ud;
    p->total = total_bytes;
    progress_add(p, done_bytes - p->done);
}

static void report(const struct pack_options *o, const struct pack_result *r, int64_t began_ns)
{
    char formats[96];
    double seconds = (double)(clock_now_ns() - began_ns) / CLOCK_S;
    snprintf(formats, sizeof formats, "experts=%s,attention=%s,head=%s",
             format_name(r->formats.experts), format_name(r->formats.attention),
             format_name(r->formats.head));
    if (r->was_whole)
        printf("%s holds this packing already: %s, %.1f MB%s\n", o->out_dir, formats,
               (double)r->bytes / 1e6, o->verifies ? ", every hash is right" : "");
    else
        printf("%s: %s, %.1f MB in %d packed files (%d kept from before), %.1f s, %.0f MB/s%s\n",
               o->out_dir, formats, (double)r->bytes / 1e6, r->n_files, r->n_kept, seconds,
               (double)r->bytes / 1e6 / seconds, o->verifies ? ", every hash is right" : "");
}

int pack_main(int argc, char **argv)
{
    struct err e = {0};
    struct pack_result result;
    struct pack_options o = {.kernels = kernels_best(), .n_threads = thread_cpu_count()};
    struct progress progress;
    int64_t began_ns = clock_now_ns();
    int parsed = parse(argc, argv, &o, &e), rc = parsed;
    if (parsed == 1) {
        usage(stdout);
        return 0;
    }
    if (rc == 0) {
        /* A limit on the size of files is an error of write(2), not the end. */
        (void)signal(SIGXFSZ, SIG_IGN);
        progress_begin(&progress, "pack", 1, PROGRESS_BYTES);
        o.progress = show;
        o.progress_ud = &progress;
        rc = pack_make(&o, &result, &e);
        progress_end(&progress);
    }
    if (rc < 0)
        fprintf(stderr, "polymath pack: %s\n", e.text);
    else
        report(&o, &result, began_ns);
    return parsed < 0 ? 2 : rc < 0 ? 1 : 0;
}
