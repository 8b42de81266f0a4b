/* tools/bench_tokenizer.c - `polymath bench tokenizer`: megabytes per second that one core encodes and decodes. */
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "tools/bench.h"
#include "tools/bench_words.h"

enum { TEXT_BYTES = 4 << 20, LINE_BYTES = 10 << 20 };

struct text {
    const char *name;
    struct buf bytes;
};

static int measure(const struct bench_options *o, const struct tokenizer *t, const struct text *x,
                   struct bench_report *r, struct err *e)
{
    struct bench_series encode = {0}, decode = {0}, per_token = {0};
    struct tokens ids = {0};
    struct buf back = {0};
    int rc = 0;
    for (int i = 0; i < o->repeat && rc == 0; i++) {
        tokens_reset(&ids);
        buf_reset(&back);
        int64_t begun_ns = clock_now_ns();
        rc = tokenizer_encode(t, buf_str(&x->bytes), TOKENIZER_PLAIN, &ids);
        int64_t encoded_ns = clock_now_ns();
        tokenizer_decode(t, ids.ids, ids.len, TOKENIZER_KEEP_SPECIAL, &back);
        int64_t decoded_ns = clock_now_ns();
        double megabytes = (double)x->bytes.len / 1e6;
        if (rc == 0 && !str_equal(buf_str(&back), buf_str(&x->bytes)))
            rc = err_set(e, E_CORRUPT, "%s does not come back as it was", x->name);
        bench_series_add(&encode, megabytes / ((double)(encoded_ns - begun_ns) / 1e9));
        bench_series_add(&decode, megabytes / ((double)(decoded_ns - encoded_ns) / 1e9));
        bench_series_add(&per_token, (double)x->bytes.len / (double)(ids.len ? ids.len : 1));
    }
    struct bench_metric metrics[] = {
        bench_metric_of("encode_mb_s", "MB/s", &encode, NULL, NULL),
        bench_metric_of("decode_mb_s", "MB/s", &decode, NULL, NULL),
        bench_metric_of("bytes_per_token", "bytes/token", &per_token, NULL, NULL)};
    if (rc == 0)
        bench_report_row(r, x->name, metrics, 3);
    tokens_fini(&ids);
    buf_fini(&back);
    return rc;
}

static void fill(struct buf *b, const char *unit, size_t bytes)
{
    while (b->len < bytes)
        buf_puts(b, unit);
}

static int run(const struct bench_options *o, const struct tokenizer *t, struct bench_report *r,
               struct err *e)
{
    struct text texts[] = {{.name = "mixed text"},
                           {.name = "1 MB of one letter"},
                           {.name = "10 MB of one letter"},
                           {.name = "10 MB of one mark"},
                           {.name = "10 MB of spaces"}};
    enum { N_TEXTS = sizeof texts / sizeof texts[0] };
    int rc = 0;
    if (o->text_file) {
        texts[0].name = o->text_file;
        rc = buf_read_file(&texts[0].bytes, o->text_file, TOKENIZER_TEXT_LIMIT_BYTES, e);
    } else {
        bench_words_text(t, TEXT_BYTES, &texts[0].bytes);
    }
    fill(&texts[1].bytes, "a", LINE_BYTES / 10);
    fill(&texts[2].bytes, "a", LINE_BYTES);
    fill(&texts[3].bytes, "-", LINE_BYTES);
    fill(&texts[4].bytes, " ", LINE_BYTES);
    bench_report_number(r, "vocabulary", tokenizer_vocab_size(t));
    for (int i = 0; i < N_TEXTS; i++) {
        if (rc == 0)
            rc = measure(o, t, &texts[i], r, e);
        buf_fini(&texts[i].bytes);
    }
    return rc;
}

int bench_tokenizer(const struct bench_options *o, struct err *e)
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
