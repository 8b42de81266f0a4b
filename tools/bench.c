/* tools/bench.c - see bench.h: options, and how a case is measured. */
#include "tools/bench.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "base/version.h"
#include "tools/bench_batch.h"
#include "tools/bench_cluster.h"
#include "tools/bench_rpc.h"

#define REPETITION_NS (100 * CLOCK_MS)
#define LONG_PASS_NS (5.0 * 1000 * CLOCK_MS)
enum { DEFAULT_REPEAT = 5, DEFAULT_TOKENS = 32, DEFAULT_PROMPT = 512, MAX_TOKENS = 1 << 20 };

/* ---- measuring ---- */

int bench_open(struct bench *b, const struct bench_options *o, const struct kernels *kernels,
               struct err *e)
{
    int n_threads = o->engine.n_threads ? o->engine.n_threads : thread_cpu_count();
    *b = (struct bench){.options = o, .compute = {.kernels = kernels}};
    b->compute.pool = pool_new(n_threads, POOL_PIN_CPUS);
    b->probe = bench_probe_open(b->compute.pool, kernels->name);
    if (!b->probe) {
        pool_free(&b->compute.pool);
        return err_set(e, E_NOMEM, "no memory for the read probe's buffer");
    }
    bench_report_begin(&b->report, o->as_json, stdout);
    bench_report_text(&b->report, "version", version_string());
    bench_report_text(&b->report, "kernels", kernels->name);
    bench_report_number(&b->report, "threads", pool_threads(b->compute.pool));
    return 0;
}

void bench_close(struct bench *b)
{
    bench_report_end(&b->report);
    bench_probe_close(&b->probe);
    pool_free(&b->compute.pool);
}

static double time_passes(const struct bench_case *c, long passes)
{
    int64_t begun_ns = clock_now_ns();
    for (long i = 0; i < passes; i++)
        c->body(c->ud);
    return (double)(clock_now_ns() - begun_ns) / (double)passes;
}

/* Twice: the first pass touches memory and starts threads.  0: one is long enough. */
static long passes_of(const struct bench_case *c)
{
    double ns = time_passes(c, 1);
    if (ns >= LONG_PASS_NS)
        return 0;
    ns = time_passes(c, 1);
    return ns >= REPETITION_NS ? 1 : (long)(REPETITION_NS / (ns + 1)) + 1;
}

enum bench_arithmetic_kind bench_kind_of(enum weight_format f)
{
    return f == FORMAT_Q8 ? BENCH_Q8 : f == FORMAT_Q4 ? BENCH_Q4 : BENCH_F32;
}

double bench_case_run(struct bench *b, const struct bench_case *c)
{
    struct bench_series reads = {0}, rates = {0}, milliseconds = {0}, read_peak = {0}, peak = {0};
    long passes = passes_of(c);
    int repeat = passes == 0 ? 1 : b->options->repeat;
    passes = passes == 0 ? 1 : passes;
    for (int i = 0; i < repeat; i++) {
        if (!c->is_serial && c->bytes > 0)
            bench_series_add(&read_peak, bench_probe_read_gb_s(b->probe));
        if (!c->is_serial && c->ops > 0)
            bench_series_add(&peak, bench_probe_gop_s(b->probe, c->kind));
        double ns = time_passes(c, passes);
        bench_series_add(&reads, c->bytes / ns);
        bench_series_add(&rates, c->ops / ns);
        bench_series_add(&milliseconds, ns / CLOCK_MS);
    }
    struct bench_metric metrics[4];
    int n = 0;
    if (c->shows_time)
        metrics[n++] = bench_metric_of("ms", "ms", &milliseconds, NULL, NULL);
    if (c->bytes > 0)
        metrics[n++] = bench_metric_of("gb_s", "GB/s", &reads, c->is_serial ? NULL : "read",
                                       c->is_serial ? NULL : &read_peak);
    if (c->ops > 0)
        metrics[n++] = bench_metric_of("gop_s", "GOP/s", &rates,
                                       c->is_serial ? NULL : bench_probe_name(b->probe, c->kind),
                                       c->is_serial ? NULL : &peak);
    if (c->more && c->more(c->ud, &metrics[n]))
        n++;
    bench_report_row(&b->report, c->name, metrics, n);
    return bench_summarise(&milliseconds).median;
}

/* ---- options ---- */

int bench_list_parse(const char *option, const char *text, int64_t least, struct bench_list *out,
                     struct err *e)
{
    *out = (struct bench_list){0};
    for (const char *at = text;; at++) {
        char *end;
        errno = 0;
        long long value = strtoll(at, &end, 10);
        if (end == at || errno || (*end && *end != ',') || value < least || value > MAX_TOKENS)
            return err_set(e, E_INVALID,
                           "--%s %s: expected whole numbers from %lld to %d with commas between",
                           option, text, (long long)least, MAX_TOKENS);
        if (out->n == BENCH_MAX_LIST)
            return err_set(e, E_INVALID, "--%s %s: more than %d numbers", option, text,
                           BENCH_MAX_LIST);
        out->values[out->n++] = (int)value;
        at = end;
        if (!*at)
            return 0;
    }
}

enum {
    OPT_KERNELS = 256,
    OPT_FORMAT,
    OPT_THREADS,
    OPT_REPEAT,
    OPT_JSON,
    OPT_HELP,
    OPT_ROWS,
    OPT_EXPERTS,
    OPT_DEPTH,
    OPT_MODEL,
    OPT_GEOMETRY,
    OPT_VOCAB,
    OPT_BATCH,
    OPT_TOKENS,
    OPT_PROMPT,
    OPT_LLAMA_BENCH,
    OPT_MODEL_GGUF,
    OPT_PEER_ARGS,
    OPT_COPY,
    OPT_KIND,
    OPT_CACHE,
    OPT_SVG,
    OPT_TEXT,
    OPT_SCORES
};
static const struct option long_options[] = {
    {"kernels", required_argument, NULL, OPT_KERNELS},
    {"format", required_argument, NULL, OPT_FORMAT},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"repeat", required_argument, NULL, OPT_REPEAT},
    {"json", no_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, OPT_HELP},
    {"rows", required_argument, NULL, OPT_ROWS},
    {"experts", required_argument, NULL, OPT_EXPERTS},
    {"depth", required_argument, NULL, OPT_DEPTH},
    {"model", required_argument, NULL, OPT_MODEL},
    {"geometry", required_argument, NULL, OPT_GEOMETRY},
    {"vocab", required_argument, NULL, OPT_VOCAB},
    {"batch", required_argument, NULL, OPT_BATCH},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"prompt", required_argument, NULL, OPT_PROMPT},
    {"llama-bench", required_argument, NULL, OPT_LLAMA_BENCH},
    {"model-gguf", required_argument, NULL, OPT_MODEL_GGUF},
    {"peer-args", required_argument, NULL, OPT_PEER_ARGS},
    {"copy", no_argument, NULL, OPT_COPY},
    {"kind", required_argument, NULL, OPT_KIND},
    {"cache", required_argument, NULL, OPT_CACHE},
    {"svg", required_argument, NULL, OPT_SVG},
    {"scores", required_argument, NULL, OPT_SCORES},
    {"text", required_argument, NULL, OPT_TEXT},
    {0},
};

#define HELP_MODEL \
    "  --model DIR          a checkpoint or a packed directory\n" \
    "  --copy               of a packed directory: copy weights into huge pages\n" \
    "  --geometry NAME      random weights in memory instead: m2-tiny, m2-mini, m2-layers-N,\n" \
    "                       m3-tiny, m3-layer\n" \
    "  --vocab N            vocabulary of --geometry (12800 gives the head of 4 layers the " \
    "share\n" \
    "                       that it has in the whole M2)\n" \
    "  --format F           " FORMAT_SET_HELP "\n"

/* One benchmark: its name, its options with their help, its function. */
struct verb {
    const char *name, *summary;
    int takes[24]; /* option codes beside those that every benchmark has; 0 ends */
    const char *help;
    int (*run)(const struct bench_options *o, struct err *e);
};
static const struct verb verbs[] = {
    {"kernels",
     "each inner loop alone, beside this machine's ceilings",
     {OPT_ROWS, OPT_EXPERTS, OPT_FORMAT},
     "  --format LIST        weight formats with commas between (default q8,q4,fp8,bf16)\n"
     "  --rows LIST          rows of a product (default 1,16,64)\n"
     "  --experts N          experts of M2's size to hold (default: what half the memory holds,\n"
     "                       at most 256)\n",
     bench_kernels},
    {"attention",
     "one layer's attention over a full cache",
     {OPT_DEPTH, OPT_PROMPT, OPT_GEOMETRY, OPT_KIND, OPT_CACHE, OPT_SVG, OPT_SCORES},
     "  --geometry NAME      the heads of m2 (default) or m3\n"
     "  --kind LIST          full: every key; m3's: msa: MiniMax Sparse Attention; scan: the same\n"
     "                       without bounds; window: the last blocks instead of the best "
     "(default:\n"
     "                       full, of m3 full,msa,window, in turn over one cache)\n"
     "  --cache F            only this one of " KV_FORMAT_CHOICES " (default: each)\n"
     "  --depth LIST         positions in the cache (default 4096,16384)\n"
     "  --prompt N           rows of a prefill step (default 512; 1: decoding only)\n"
     "  --scores NAME        of m3's index keys: realistic (default: topics and words), "
     "adversarial\n"
     "                       (all but alike: no bound tells one block from another)\n"
     "  --svg FILE           also a plot: milliseconds over positions\n"
     "\nWhere msa runs beside scan, or beside full at positions that see everything, both also "
     "run\n"
     "in turn, on the same rows: the median of the ratios with its 95 % interval, the ratio of\n"
     "the sums (msa begins anew: what it tries in vain is in there), and whether bits are equal.\n",
     bench_attention},
    {"decode",
     "tokens one by one through the whole model",
     {OPT_MODEL, OPT_COPY, OPT_GEOMETRY, OPT_VOCAB, OPT_FORMAT, OPT_DEPTH, OPT_BATCH, OPT_TOKENS},
     HELP_MODEL "  --depth LIST         positions in the cache before the first token (default 0)\n"
                "  --batch N            sequences side by side (default 1)\n"
                "  --tokens N           tokens of each sequence per repetition (default 32)\n",
     bench_decode},
    {"prefill",
     "a prompt through the whole model",
     {OPT_MODEL, OPT_COPY, OPT_GEOMETRY, OPT_VOCAB, OPT_FORMAT, OPT_DEPTH, OPT_PROMPT},
     HELP_MODEL "  --depth LIST         positions in the cache before the prompt (default 0)\n"
                "  --prompt N           tokens of the prompt, one step (default 512)\n",
     bench_prefill},
    {"against",
     "decode and prefill in turn with another engine's llama-bench",
     {OPT_MODEL, OPT_COPY, OPT_GEOMETRY, OPT_VOCAB, OPT_FORMAT, OPT_TOKENS, OPT_PROMPT,
      OPT_LLAMA_BENCH, OPT_MODEL_GGUF, OPT_PEER_ARGS, OPT_DEPTH},
     "  --llama-bench PATH   the peer's program (llama.cpp's or ik_llama.cpp's)\n"
     "  --model-gguf FILE    the peer's model; polymath synth --gguf writes the same synthetic "
     "one\n"
     "  --peer-args TEXT     more of its options, such as \"-fa 1 -fmoe 1\"\n" HELP_MODEL
     "  --depth N            positions in the cache beforehand (the peer must know -d, or -gp for\n"
     "                       decoding only; default 0)\n"
     "  --prompt N           tokens of the prompt (default 512)\n"
     "  --tokens N           tokens to decode (default 32)\n",
     bench_against},
    {"grammar",
     "what it costs to hold answers to JSON schemas",
     {OPT_VOCAB, OPT_MODEL},
     "  --model DIR          whose tokenizer.json (default: a made-up vocabulary)\n"
     "  --vocab N            size of the made-up one (default 200064)\n",
     bench_grammar},
    {"tokenizer",
     "text to tokens and back, on one core",
     {OPT_VOCAB, OPT_MODEL, OPT_TEXT},
     "  --model DIR          whose tokenizer.json (default: a made-up vocabulary)\n"
     "  --vocab N            size of the made-up one (default 200064)\n"
     "  --text FILE          instead of made-up text\n",
     bench_tokenizer},
};
enum { N_VERBS = sizeof(verbs) / sizeof(verbs[0]) };
static const char common_help[] =
    "  --threads N          default: one per CPU that this process may use\n"
    "  --kernels NAME       inner loops (default: the best of this CPU; kernels: also \"all\")\n"
    "  --repeat N           repetitions, each right after the probes (default 5)\n"
    "  --json               the same as JSON\n"
    "  --help               this text\n";

static void usage(FILE *out)
{
    fprintf(out, "usage: polymath bench WHAT [OPTION]...\n\n");
    for (int i = 0; i < N_VERBS; i++)
        fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
    fprintf(out,
            "  rpc        round trips and bytes of a call without its experts, beside bare TCP\n"
            "  batch      many streams at once through a cluster of this machine, beside a peer\n"
            "  cluster    decode through a cluster of this machine, beside the single process\n"
            "\nEvery figure is the median of its repetitions, [smallest..largest] beside it.\n"
            "\"0.93 of read\" is its share of what this machine reads at most, measured right\n"
            "before each repetition; \"of vpdpbusd\" that of the arithmetic alone.\n"
            "\npolymath bench WHAT --help tells the options.\n");
}

static bool takes(const struct verb *v, int code)
{
    if (code <= OPT_HELP && code != OPT_FORMAT)
        return true;
    for (int i = 0; v->takes[i]; i++)
        if (v->takes[i] == code)
            return true;
    return false;
}

static int take_int(const char *option, const char *text, int64_t most, int *out, struct err *e)
{
    int64_t value;
    int rc = local_engine_integer(option, text, 1, most, &value, e);
    if (rc == 0)
        *out = (int)value;
    return rc;
}

static int take_kernels(struct bench_options *o, const char *name, struct err *e)
{
    o->all_kernels = strcmp(name, "all") == 0;
    return o->all_kernels ? 0 : local_engine_take(&o->engine, LOCAL_ENGINE_KERNELS, name, e);
}

static int take_option(struct bench_options *o, int code, const char *value, struct err *e)
{
    switch (code) {
    case OPT_KERNELS:
        return take_kernels(o, value, e);
    case OPT_FORMAT:
        o->formats = value;
        return 0;
    case OPT_THREADS:
        return local_engine_take(&o->engine, LOCAL_ENGINE_THREADS, value, e);
    case OPT_REPEAT:
        return take_int("repeat", value, BENCH_MAX_REPEAT, &o->repeat, e);
    case OPT_JSON:
        o->as_json = true;
        return 0;
    case OPT_ROWS:
        return bench_list_parse("rows", value, 1, &o->rows, e);
    case OPT_EXPERTS:
        return take_int("experts", value, MODEL_MAX_EXPERTS, &o->experts, e);
    case OPT_DEPTH:
        return bench_list_parse("depth", value, 0, &o->depths, e);
    case OPT_MODEL:
        o->engine.model_dir = value;
        return 0;
    case OPT_COPY:
        return local_engine_take(&o->engine, LOCAL_ENGINE_COPY, NULL, e);
    case OPT_GEOMETRY:
        o->geometry = value;
        return 0;
    case OPT_KIND:
        o->kinds = value;
        return 0;
    case OPT_CACHE:
        o->cache = value;
        return 0;
    case OPT_TEXT:
        o->text_file = value;
        return 0;
    case OPT_SCORES:
        o->scores = value;
        return 0;
    case OPT_SVG:
        o->svg = value;
        return 0;
    case OPT_VOCAB:
        return take_int("vocab", value, INT_MAX / 2, &o->vocab, e);
    case OPT_BATCH:
        return take_int("batch", value, 4096, &o->batch, e);
    case OPT_TOKENS:
        return take_int("tokens", value, MAX_TOKENS, &o->tokens, e);
    case OPT_PROMPT:
        return take_int("prompt", value, 8192, &o->prompt, e);
    case OPT_LLAMA_BENCH:
        o->llama_bench = value;
        return 0;
    case OPT_MODEL_GGUF:
        o->model_gguf = value;
        return 0;
    default:
        o->peer_args = value;
        return 0;
    }
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, const struct verb *v, struct bench_options *o,
                 struct err *e)
{
    *o = (struct bench_options){.batch = 1, .tokens = DEFAULT_TOKENS, .repeat = DEFAULT_REPEAT};
    local_engine_defaults(&o->engine);
    optind = 0;
    opterr = 0;
    for (int code, at; (code = getopt_long(argc, argv, "", long_options, &at)) != -1;) {
        if (code == '?')
            return err_set(e, E_INVALID, "%s: unknown option or missing value; see --help",
                           argv[optind - 1]);
        if (code == OPT_HELP)
            return 1;
        if (!takes(v, code))
            return err_set(e, E_INVALID, "--%s is no option of bench %s; see --help",
                           long_options[at].name, v->name);
        int rc = take_option(o, code, optarg, e);
        if (rc < 0)
            return rc;
    }
    if (optind < argc)
        return err_set(e, E_INVALID, "%s: unexpected argument", argv[optind]);
    if (o->all_kernels && v->run != bench_kernels)
        return err_set(e, E_INVALID, "--kernels all: only bench kernels runs every level in turn");
    bool needs_model = v->takes[0] == OPT_MODEL;
    if (needs_model && !o->engine.model_dir == !o->geometry)
        return err_set(e, E_INVALID, "one of --model and --geometry is needed");
    if (v->run == bench_against && (!o->llama_bench || !o->model_gguf))
        return err_set(e, E_INVALID, "--llama-bench and --model-gguf are needed");
    return 0;
}

static const struct verb *find_verb(const char *name)
{
    for (int i = 0; i < N_VERBS; i++)
        if (strcmp(verbs[i].name, name) == 0)
            return &verbs[i];
    return NULL;
}

int bench_main(int argc, char **argv)
{
    struct bench_options options;
    struct err e = {0};
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0)) {
        usage(stdout);
        return 0;
    }
    /* It measures processes, not loops of this one. */
    if (argc >= 2 && strcmp(argv[1], "rpc") == 0)
        return bench_rpc_main(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "cluster") == 0)
        return bench_cluster_main(argc - 1, argv + 1);
    if (argc >= 2 && strcmp(argv[1], "batch") == 0)
        return bench_batch_main(argc - 1, argv + 1);
    const struct verb *v = argc >= 2 ? find_verb(argv[1]) : NULL;
    if (!v) {
        if (argc >= 2)
            fprintf(stderr, "polymath bench: unknown benchmark '%s'\n\n", argv[1]);
        usage(stderr);
        return 2;
    }
    int parsed = parse(argc - 1, argv + 1, v, &options, &e);
    if (parsed == 1) {
        printf("usage: polymath bench %s [OPTION]...\n\n%s.\n\n%s%s", v->name, v->summary, v->help,
               common_help);
        return 0;
    }
    int rc = parsed < 0 ? parsed : v->run(&options, &e);
    if (rc < 0)
        fprintf(stderr, "polymath bench %s: %s\n", v->name, e.text);
    return parsed < 0 || rc == E_INVALID ? 2 : rc < 0 ? 1 : 0;
}
