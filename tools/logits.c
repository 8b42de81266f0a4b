/* tools/logits.c - see tools/logits.h. */
#include "tools/logits.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/local_engine.h"

struct logits_options {
    struct local_engine_options engine;
    const char *ids, *out_path;
};

static void usage(FILE *out)
{
    fputs("usage: polymath logits --model DIR --ids LIST --out FILE [OPTION]...\n\n"
          "Runs the ids through the model in this process and writes the logits of every\n"
          "position: [number of ids, vocabulary] float32, little-endian.\n\n"
          "  --ids LIST         token ids with commas between\n"
          "  --out FILE         where to write\n" LOCAL_ENGINE_HELP,
          out);
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct logits_options *o, struct err *e)
{
    enum { IDS = 'i', OUT = 'o', HELP = 'h' };
    static const struct option options[] = {LOCAL_ENGINE_GETOPT,
                                            {"ids", required_argument, NULL, IDS},
                                            {"out", required_argument, NULL, OUT},
                                            {"help", no_argument, NULL, HELP},
                                            {0}};
    *o = (struct logits_options){0};
    local_engine_defaults(&o->engine);
    optind = 0;
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        int rc = 0;
        if (code == IDS)
            o->ids = optarg;
        else if (code == OUT)
            o->out_path = optarg;
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
    if (!o->engine.model_dir || !o->ids || !o->out_path)
        return err_set(e, E_INVALID, "--model, --ids and --out are needed");
    return 0;
}

static int write_rows(struct local_engine *g, const struct tokens *ids, FILE *file, struct err *e)
{
    size_t vocab = (size_t)g->config->vocab_size;
    for (size_t at = 0; at < ids->len;) {
        size_t left = ids->len - at, chunk = (size_t)g->chunk_rows;
        size_t n = left < chunk ? left : chunk;
        const float *logits;
        int rc = local_engine_step(g, ids->ids + at, (int)n, LOCAL_ENGINE_ALL_LOGITS, &logits, e);
        if (rc < 0)
            return rc;
        if (fwrite(logits, vocab * sizeof(*logits), n, file) != n)
            return err_set_errno(e, errno, "write");
        at += n;
    }
    return 0;
}

static int write_logits(const struct logits_options *o, const struct tokens *ids, struct err *e)
{
    struct local_engine g;
    FILE *file = NULL;
    int rc = local_engine_open(&g, &o->engine, e);
    if (rc == 0)
        rc = local_engine_load(&g, &o->engine, (int64_t)ids->len, e);
    if (rc < 0)
        goto out;
    file = fopen(o->out_path, "wb");
    if (!file) {
        rc = err_set_errno(e, errno, "open %s", o->out_path);
        goto out;
    }
    struct stat st;
    bool is_regular = fstat(fileno(file), &st) == 0 && S_ISREG(st.st_mode);
    rc = write_rows(&g, ids, file, e);
    if (fclose(file) != 0 && rc == 0)
        rc = err_set_errno(e, errno, "write %s", o->out_path);
    /* Half a file would be taken for a short list; a device or a pipe is not ours to remove. */
    if (rc < 0 && is_regular)
        (void)unlink(o->out_path);
out:
    local_engine_close(&g);
    return rc;
}

int logits_main(int argc, char **argv)
{
    struct err e = {0};
    struct logits_options o;
    struct tokens ids = {0};
    int parsed = parse(argc, argv, &o, &e);
    if (parsed == 1) {
        usage(stdout);
        return 0;
    }
    int rc = parsed;
    if (rc == 0)
        rc = parsed = local_engine_ids(o.ids, &ids, &e);
    if (rc == 0)
        rc = write_logits(&o, &ids, &e);
    if (rc < 0)
        fprintf(stderr, "polymath logits: %s\n", e.text);
    tokens_fini(&ids);
    return parsed < 0 ? 2 : rc < 0 ? 1 : 0;
}
