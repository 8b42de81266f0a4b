/* tools/bench.h - `polymath bench`: how fast this machine runs our loops, beside what the
 * machine can do and beside other engines.
 *
 *   bench kernels      each inner loop alone
 *   bench attention    one layer's attention over a full cache
 *   bench decode       tokens one by one, through the whole model
 *   bench prefill      a prompt, through the whole model
 *   bench batch        many streams at once, and where a step's time goes (bench_batch.h)
 *   bench rpc          a call to nodes and back, beside bare TCP (bench_rpc.h)
 *   bench grammar      masks of answers that are held to a schema
 *   bench tokenizer    text to tokens and back
 *   bench against      both, in turn with another engine's own benchmark
 *
 * Owner: the main thread. */
#pragma once

#include "tools/bench_probe.h"
#include "tools/bench_stats.h"
#include "tools/local_engine.h"

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int bench_main(int argc, char **argv);

enum { BENCH_MAX_LIST = 16 };
struct bench_list {
    int n;
    int values[BENCH_MAX_LIST];
};
/* "1,16,64"; E_INVALID names the option. */
int bench_list_parse(const char *option, const char *text, int64_t least, struct bench_list *out,
                     struct err *e);

struct bench_options {
    struct local_engine_options engine; /* model, kernels, threads, chunk */
    const char *formats;                /* as given, or NULL */
    const char *geometry;
    const char *kinds, *cache, *svg, *scores; /* of bench attention */
    const char *text_file;                    /* of bench tokenizer */
    bool all_kernels, as_json;
    int vocab, experts, batch, tokens, prompt, repeat;
    struct bench_list rows, depths;
    const char *llama_bench, *model_gguf, *peer_args;
};

/* What every benchmark measures with. */
struct bench {
    const struct bench_options *options;
    struct compute compute;
    struct bench_probe *probe;
    struct bench_report report;
};
/* For one kernel table; the report has begun.  E_NOMEM. */
int bench_open(struct bench *b, const struct bench_options *o, const struct kernels *kernels,
               struct err *e);
void bench_close(struct bench *b);

/* One thing to measure.  The body runs once per pass; what one pass reads and computes is
 * known beforehand. */
struct bench_case {
    const char *name;
    void (*body)(void *ud);
    void *ud;
    double bytes; /* 0: not bound by reading */
    double ops;   /* 0: not bound by arithmetic */
    enum bench_arithmetic_kind kind;
    bool shows_time; /* milliseconds per pass */
    bool is_serial;  /* runs on one thread: no ceiling of all threads beside it */
    /* One more figure, asked for after the last pass; NULL or false: none. */
    bool (*more)(void *ud, struct bench_metric *out);
};
/* A pass to warm up, then `repeat` repetitions of a tenth of a second or more - one, where a pass
 * takes five seconds -, each right after the probes.  Returns the median milliseconds of a pass. */
double bench_case_run(struct bench *b, const struct bench_case *c);
/* Which probe bounds a weight format. */
enum bench_arithmetic_kind bench_kind_of(enum weight_format f);

int bench_kernels(const struct bench_options *o, struct err *e);
int bench_attention(const struct bench_options *o, struct err *e);
int bench_decode(const struct bench_options *o, struct err *e);
int bench_prefill(const struct bench_options *o, struct err *e);
int bench_against(const struct bench_options *o, struct err *e);
int bench_grammar(const struct bench_options *o, struct err *e);
int bench_tokenizer(const struct bench_options *o, struct err *e);
