/* tools/bench_grammar.c - `polymath bench grammar`: what it costs to hold an answer to a schema.
 *
 * Random answers along the masks, one after the other.  The first meets a grammar that nobody has used, the
 * others share what it found out, as requests with the same schema do. */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/grammar_tokens.h"
#include "tools/bench.h"
#include "tools/bench_words.h"

enum { MAX_TOKENS_EACH = 400, CACHE_BYTES = 256 << 20 };

static const struct {
    const char *name, *schema;
} cases[] = {
    {"any object", "{\"type\":\"object\"}"},
    {"record of 8",
     "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"mail\":{\"type\":"
     "\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0,\"maximum\":150},\"city\":{\"type\":"
     "\"string\"},\"active\":{\"type\":\"boolean\"},\"score\":{\"type\":\"number\"},\"tags\":{"
     "\"type\":\"array\",\"items\":{\"type\":\"string\"}},\"kind\":{\"enum\":[\"person\",\"team\","
     "\"robot\"]}},\"required\":[\"name\",\"mail\",\"age\",\"city\",\"active\",\"score\",\"tags\","
     "\"kind\"],\"additionalProperties\":false}"},
    {"tree by $ref",
     "{\"$ref\":\"#/$defs/n\",\"$defs\":{\"n\":{\"type\":\"object\",\"properties\":{\"label\":{"
     "\"type\":\"string\"},\"kids\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/n\"}}},"
     "\"required\":[\"label\",\"kids\"]}}}"},
    {"strings of 1 to 200",
     "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"minLength\":1,\"maxLength\":200},"
     "\"minItems\":3}"},
    {"patterns of 3 to 60",
     "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"pattern\":\"^[A-Za-z0-9 .,-]{3,60}$\"},"
     "\"minItems\":3}"},
};

struct walk {
    struct grammar_cache *cache;
    int vocab;
    int32_t stop;
    struct rng rng;
    double sum_ms, worst_ms;
    int n_tokens;
};

static bool has(const uint64_t *bits, int32_t id)
{
    return bits[id >> 6] >> (id & 63) & 1;
}

/* Any that is allowed, but an end where there can be one, now and then. */
static int32_t choose(struct walk *w, const uint64_t *bits)
{
    static const char closers[] = "\"}],";
    if (has(bits, w->stop))
        return w->stop;
    for (const char *c = closers; *c; c++)
        if (has(bits, *c) && rng_below(&w->rng, 8) == 0)
            return *c;
    int32_t id = (int32_t)rng_below(&w->rng, (uint64_t)w->vocab);
    while (!has(bits, id))
        id = id + 1 < w->vocab ? id + 1 : 0;
    return id;
}

static int answer(struct walk *w, struct str grammar, struct err *e)
{
    struct constraint *c;
    int32_t output[MAX_TOKENS_EACH];
    int rc = constraint_new(w->cache, grammar, &c, e);
    if (rc < 0)
        return rc;
    for (int n = 0; n < MAX_TOKENS_EACH; n++) {
        int64_t begun_ns = clock_now_ns();
        const uint64_t *bits = constraint_allow(c, output, n);
        double ms = (double)(clock_now_ns() - begun_ns) / CLOCK_MS;
        w->sum_ms += ms;
        w->worst_ms = ms > w->worst_ms ? ms : w->worst_ms;
        w->n_tokens++;
        output[n] = choose(w, bits);
        if (output[n] == w->stop)
            break;
    }
    constraint_free(&c);
    return 0;
}

struct figures {
    struct bench_series compile_us, first_ms, later_us, worst_ms;
};

static int measure(const struct token_list *l, int vocab, int32_t stop, const char *schema,
                   uint64_t seed, struct figures *f, struct err *e)
{
    struct walk w = {.cache = grammar_cache_new(l, CACHE_BYTES),
                     .vocab = vocab,
                     .stop = stop,
                     .rng = rng_seed(seed)};
    struct buf text = {0};
    struct constraint *c;
    buf_printf(&text, "{\"stops\":[%d],\"value\":%s}", stop, schema);
    int64_t begun_ns = clock_now_ns();
    int rc = constraint_new(w.cache, buf_str(&text), &c, e);
    if (rc == 0) {
        bench_series_add(&f->compile_us, (double)(clock_now_ns() - begun_ns) / 1e3);
        constraint_free(&c);
        rc = answer(&w, buf_str(&text), e);
    }
    if (rc == 0) {
        bench_series_add(&f->first_ms, w.sum_ms / w.n_tokens);
        bench_series_add(&f->worst_ms, w.worst_ms);
        w.sum_ms = 0;
        w.n_tokens = 0;
    }
    for (int i = 0; i < 20 && rc == 0; i++)
        rc = answer(&w, buf_str(&text), e);
    if (rc == 0)
        bench_series_add(&f->later_us, 1e3 * w.sum_ms / w.n_tokens);
    buf_fini(&text);
    grammar_cache_free(&w.cache);
    return rc;
}

static int run(const struct bench_options *o, const struct tokenizer *t, struct bench_report *r,
               struct err *e)
{
    int vocab = tokenizer_vocab_size(t), rc = 0;
    int64_t begun_ns = clock_now_ns();
    struct token_list *l = token_list_new(t, vocab);
    bench_report_number(r, "vocabulary", vocab);
    bench_report_number(r, "trie_ms", (double)(clock_now_ns() - begun_ns) / CLOCK_MS);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0] && rc == 0; i++) {
        struct figures f = {0};
        for (int k = 0; k < o->repeat && rc == 0; k++)
            rc = measure(l, vocab, vocab - 1, cases[i].schema, (uint64_t)k, &f, e);
        struct bench_metric metrics[] = {
            bench_metric_of("compile_us", "us", &f.compile_us, NULL, NULL),
            bench_metric_of("first_ms_per_token", "ms", &f.first_ms, NULL, NULL),
            bench_metric_of("first_worst_ms", "ms", &f.worst_ms, NULL, NULL),
            bench_metric_of("later_us_per_token", "us", &f.later_us, NULL, NULL)};
        if (rc == 0)
            bench_report_row(r, cases[i].name, metrics, 4);
    }
    token_list_free(&l);
    return rc;
}

int bench_grammar(const struct bench_options *o, struct err *e)
{
    struct tokenizer *t;
    struct bench_report report;
    int rc = bench_words_open(o->engine.model_dir, o->vocab ? o->vocab : BENCH_WORDS_VOCAB, &t, e);
    if (rc < 0)
        return rc;
    bench_report_begin(&report, o->as_json, stdout);
    rc = run(o, t, &report, e);
    bench_report_end(&report);
    tokenizer_free(&t);
    return rc;
}
