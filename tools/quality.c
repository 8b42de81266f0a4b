/* tools/quality.c - see quality.h: options and the report. */
#include "tools/quality.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "tools/bench_stats.h"

enum { DEFAULT_LENGTH = 512, MAX_IDS_BYTES = 1 << 28 };

struct quality_options {
    struct local_engine_options engine;
    struct format_set reference;
    const char *against, *format, *ids_path, *text_path;
    int64_t length;
    bool as_json, shows_scales;
};

static void usage(FILE *out)
{
    fputs("usage: polymath quality --model DIR --format F --against G (--ids FILE | --text FILE)\n"
          "       polymath quality --model DIR --scales\n\n"
          "Runs the same ids through the model in format G and then in F, and prints how far the\n"
          "answers are from each other: divergence of the logits (KL, in nats), agreement about\n"
          "the most likely token, experts chosen by both, and the relative error of the residual\n"
          "stream after each layer.\n\n"
          "  --against G        the reference, such as native or fp8 (default native)\n"
          "  --ids FILE         a sequence of token ids per line, commas or blanks between\n"
          "  --text FILE        the same from text, by the model's tokenizer\n"
          "  --length N         ids of a sequence with --text (default 512)\n"
          "  --scales           instead: the relative error that q8 and q4 leave on the weights\n"
          "                     themselves, with the scale of the largest and with the searched\n"
          "                     one, on samples of every kind of matrix\n"
          "  --json             the same as JSON\n" LOCAL_ENGINE_HELP,
          out);
}

enum { AGAINST = 'a', IDS = 'i', TEXT = 't', LENGTH = 'l', SCALES = 's', JSON = 'j', HELP = 'h' };
static const struct option options[] = {LOCAL_ENGINE_GETOPT,
                                        {"against", required_argument, NULL, AGAINST},
                                        {"ids", required_argument, NULL, IDS},
                                        {"text", required_argument, NULL, TEXT},
                                        {"length", required_argument, NULL, LENGTH},
                                        {"scales", no_argument, NULL, SCALES},
                                        {"json", no_argument, NULL, JSON},
                                        {"help", no_argument, NULL, HELP},
                                        {0}};

static int take(struct quality_options *o, int code, const char *value, struct err *e)
{
    switch (code) {
    case AGAINST:
        o->against = value;
        return 0;
    case IDS:
        o->ids_path = value;
        return 0;
    case TEXT:
        o->text_path = value;
        return 0;
    case LENGTH:
        return local_engine_integer("length", value, 1, 1 << 20, &o->length, e);
    case SCALES:
        o->shows_scales = true;
        return 0;
    case JSON:
        o->as_json = true;
        return 0;
    case LOCAL_ENGINE_FORMAT:
        o->format = value;
        return local_engine_take(&o->engine, code, value, e);
    default:
        return local_engine_take(&o->engine, code, value, e);
    }
}

static int check(struct quality_options *o, struct err *e)
{
    if (!o->engine.model_dir)
        return err_set(e, E_INVALID, "--model is needed");
    if (o->shows_scales)
        return 0;
    if (!o->format)
        return err_set(e, E_INVALID, "--format is needed: which format shall be looked at?");
    if (!o->ids_path == !o->text_path)
        return err_set(e, E_INVALID, "one of --ids and --text is needed");
    int rc = format_set_parse(o->against ? o->against : "native", &o->reference, e);
    return rc < 0 ? err_prefix(e, "--against") : 0;
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct quality_options *o, struct err *e)
{
    *o = (struct quality_options){.length = DEFAULT_LENGTH};
    local_engine_defaults(&o->engine);
    optind = 0;
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (code == HELP)
            return 1;
        if (code == '?')
            return err_set(e, E_INVALID, "%s: unknown option or missing value", argv[optind - 1]);
        int rc = take(o, code, optarg, e);
        if (rc < 0)
            return rc;
    }
    if (optind < argc)
        return err_set(e, E_INVALID, "%s: unexpected argument", argv[optind]);
    return check(o, e);
}

static int read_ids(const struct quality_options *o, struct quality_ids *ids, struct err *e)
{
    struct buf text = {0};
    const char *path = o->ids_path ? o->ids_path : o->text_path;
    int rc = buf_read_file(&text, path, MAX_IDS_BYTES, e);
    if (rc == 0 && o->ids_path)
        rc = quality_ids_parse(buf_str(&text), ids, e);
    else if (rc == 0)
        rc = quality_ids_from_text(buf_str(&text), o->engine.model_dir, (int)o->length, ids, e);
    buf_fini(&text);
    return rc < 0 ? err_prefix(e, "%s", path) : 0;
}

static struct bench_metric one(const char *key, const char *unit, double value)
{
    return (struct bench_metric){.key = key, .unit = unit, .value = {value, value, value}};
}

static void report(const struct quality_options *o, const struct quality_ids *ids,
                   const struct quality_stats *s)
{
    struct bench_report r;
    char text[FORMAT_SET_BYTES];
    bench_report_begin(&r, o->as_json, stdout);
    bench_report_text(&r, "model", o->engine.model_dir);
    bench_report_text(&r, "format", format_set_text(&o->engine.formats, text));
    bench_report_text(&r, "against", format_set_text(&o->reference, text));
    bench_report_number(&r, "sequences", (double)ids->n);
    bench_report_number(&r, "positions", (double)s->n_rows);
    bench_report_number(&r, "mean KL", quality_divergence_mean(s));
    bench_report_number(&r, "99th percentile KL", quality_divergence_quantile(s, 0.99));
    bench_report_number(&r, "top-1 agreement", quality_agreement(s));
    for (int layer = 0; layer < s->n_layers; layer++) {
        const struct quality_layer *l = &s->layers[layer];
        char name[32];
        snprintf(name, sizeof(name), "layer %d", layer);
        struct bench_metric metrics[3] = {
            one("relative_error", "relative error", quality_layer_error(l)),
            one("experts_shared", "of the experts shared", quality_layer_overlap(l)),
            one("sets_equal", "of the sets equal", quality_layer_equal_sets(l))};
        /* A dense layer chooses nothing. */
        bench_report_row(&r, name, metrics, l->n_slots > 0 ? 3 : 1);
    }
    bench_report_end(&r);
}

static int compare(const struct quality_options *o, struct err *e)
{
    struct quality_ids ids = {0};
    struct quality_stats stats = {0};
    int rc = read_ids(o, &ids, e);
    if (rc == 0)
        rc = quality_compare(&o->engine, &o->reference, &o->engine.formats, &ids, &stats, e);
    if (rc == 0)
        report(o, &ids, &stats);
    quality_ids_fini(&ids);
    quality_stats_fini(&stats);
    return rc;
}

int quality_main(int argc, char **argv)
{
    struct quality_options o;
    struct err e = {0};
    int parsed = parse(argc, argv, &o, &e), rc = parsed;
    if (parsed == 1) {
        usage(stdout);
        return 0;
    }
    if (rc == 0)
        rc = o.shows_scales ? quality_scales(o.engine.model_dir, o.engine.n_threads, o.as_json, &e)
                            : compare(&o, &e);
    if (rc < 0)
        fprintf(stderr, "polymath quality: %s\n", e.text);
    return parsed < 0 ? 2 : rc < 0 ? 1 : 0;
}
