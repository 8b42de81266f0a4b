/* tools/bench_words.c - see bench_words.h. */
#include "tools/bench_words.h"

#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "model/pretokenize.h"
#include "model/utf8.h"
#include "model/vocab.h"

enum { FIRST_MERGED = 256, N_MARKERS = 64, MAX_BYTES = 16 };
enum pool { LETTERS, WORDS, MARKS, DIGITS, CHINESE, N_POOLS };

struct maker {
    struct rng rng;
    struct vocab vocab;
    struct tokens pools[N_POOLS];
    struct buf merges; /* as in the file */
    int32_t n;
};

static void put_mapped(struct str bytes, struct buf *out)
{
    for (size_t i = 0; i < bytes.len; i++) {
        int32_t c = vocab_char_of_byte((unsigned char)bytes.ptr[i]);
        if (c == '"' || c == '\\')
            buf_putc(out, '\\');
        utf8_append(out, c);
    }
}

/* The token of both together, new or known; -1 if it would be too long. */
static int32_t join(struct maker *m, int32_t left, int32_t right)
{
    struct str a = vocab_bytes(&m->vocab, left), b = vocab_bytes(&m->vocab, right);
    struct buf both = {0};
    buf_append_str(&both, a);
    buf_append_str(&both, b);
    int32_t id = vocab_find(&m->vocab, buf_str(&both));
    if (both.len > MAX_BYTES || (id < 0 && m->n == m->vocab.n_ids)) {
        buf_fini(&both);
        return -1;
    }
    if (id < 0) {
        buf_puts(&m->merges, m->n > FIRST_MERGED ? ",[\"" : "[\"");
        put_mapped(a, &m->merges);
        buf_puts(&m->merges, "\",\"");
        put_mapped(b, &m->merges);
        buf_puts(&m->merges, "\"]");
        id = m->n++;
        must_zero(vocab_add(&m->vocab, id, buf_str(&both), VOCAB_MERGED));
    }
    buf_fini(&both);
    return id;
}

/* Early ones come often, as in language. */
static int32_t pick(struct rng *r, const struct tokens *pool)
{
    double u = rng_unit(r);
    return pool->ids[(size_t)(u * u * u * (double)pool->len)];
}

static void grow_pool(struct maker *m, enum pool into, enum pool left, enum pool right)
{
    int32_t before = m->n;
    int32_t id = join(m, pick(&m->rng, &m->pools[left]), pick(&m->rng, &m->pools[right]));
    if (id >= before)
        tokens_push(&m->pools[into], id);
}

static void add_character(struct maker *m)
{
    struct buf c = {0};
    utf8_append(&c, 0x4e00 + (int32_t)rng_below(&m->rng, 5000));
    int32_t id = join(m, (unsigned char)c.data[0], (unsigned char)c.data[1]), before = m->n;
    if (id >= 0)
        id = join(m, id, (unsigned char)c.data[2]);
    if (id >= before)
        tokens_push(&m->pools[CHINESE], id);
    buf_fini(&c);
}

static void add_some(struct maker *m)
{
    uint64_t what = rng_below(&m->rng, 100);
    if (what < 45)
        grow_pool(m, WORDS, WORDS, LETTERS);
    else if (what < 75)
        grow_pool(m, LETTERS, LETTERS, LETTERS);
    else if (what < 84)
        grow_pool(m, MARKS, MARKS, MARKS);
    else if (what < 85 && m->pools[DIGITS].len < 1000)
        grow_pool(m, DIGITS, DIGITS, DIGITS);
    else if (what < 88 || m->pools[CHINESE].len < 100)
        add_character(m);
    else
        grow_pool(m, CHINESE, CHINESE, CHINESE);
}

static void make_words(struct maker *m, int vocab_size)
{
    static const char letters[] = "etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ";
    static const char marks[] = " \n.,\"'-():;{}[]=_/*<>#!?&|+\\\t%$@^~`";
    m->rng = rng_seed(1);
    vocab_init(&m->vocab, vocab_size - N_MARKERS, (size_t)vocab_size);
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        must_zero(vocab_add(&m->vocab, byte, (struct str){&c, 1}, VOCAB_MERGED));
    }
    m->n = FIRST_MERGED;
    for (const char *c = letters; *c; c++)
        tokens_push(&m->pools[LETTERS], *c);
    for (const char *c = marks; *c; c++)
        tokens_push(&m->pools[MARKS], *c);
    for (char c = '0'; c <= '9'; c++)
        tokens_push(&m->pools[DIGITS], c);
    tokens_push(&m->pools[WORDS], ' ');
    while (m->n < m->vocab.n_ids)
        add_some(m);
}

static void write_json(const struct maker *m, struct buf *out)
{
    struct buf pattern = {0};
    for (const char *p = pretokenize_pattern(); *p; p++) {
        if (*p == '\\' || *p == '"')
            buf_putc(&pattern, '\\');
        buf_putc(&pattern, *p);
    }
    buf_puts(out, "{\"added_tokens\":[");
    for (int i = 0; i < N_MARKERS; i++)
        buf_printf(out, "%s{\"id\":%d,\"content\":\"<marker %d>\",\"special\":false}", i ? "," : "",
                   m->vocab.n_ids + i, i);
    buf_printf(out,
               "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
               "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"%s\"},\"behavior\":\"Isolated\","
               "\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
               "\"trim_offsets\":true,\"use_regex\":false}]},\"decoder\":{\"type\":\"ByteLevel\"},"
               "\"model\":{\"type\":\"BPE\",\"vocab\":{",
               pattern.data);
    for (int32_t id = 0; id < m->n; id++) {
        buf_puts(out, id ? ",\"" : "\"");
        put_mapped(vocab_bytes(&m->vocab, id), out);
        buf_printf(out, "\":%d", id);
    }
    buf_printf(out, "},\"merges\":[%s]}}", m->merges.data);
    buf_fini(&pattern);
}

int bench_words_open(const char *model_dir, int vocab_size, struct tokenizer **out, struct err *e)
{
    if (model_dir)
        return tokenizer_open(model_dir, out, e);
    if (vocab_size < 1000 || vocab_size > BENCH_WORDS_VOCAB)
        return err_set(e, E_INVALID, "a vocabulary of %d: from 1000 to %d can be made", vocab_size,
                       BENCH_WORDS_VOCAB);
    struct maker m = {0};
    struct buf json = {0};
    make_words(&m, vocab_size);
    write_json(&m, &json);
    int rc = tokenizer_parse(buf_str(&json), "made-up vocabulary", out, e);
    buf_fini(&json);
    buf_fini(&m.merges);
    for (int i = 0; i < N_POOLS; i++)
        tokens_fini(&m.pools[i]);
    vocab_fini(&m.vocab);
    return rc;
}

static void put_some(const struct tokenizer *t, const struct tokens *pool, struct rng *r,
                     struct buf *out)
{
    if (pool->len > 0)
        buf_append_str(out, tokenizer_token_bytes(t, pick(r, pool)));
}

/* What a token is, by its first byte. */
static enum pool pool_of(struct str bytes)
{
    unsigned char c = (unsigned char)bytes.ptr[0];
    if (c >= 0xe4 && c <= 0xe9 && bytes.len >= 3)
        return CHINESE;
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z')
        return LETTERS;
    if (c >= '0' && c <= '9')
        return DIGITS;
    c = bytes.len > 1 ? (unsigned char)bytes.ptr[1] | 0x20 : 0;
    return bytes.ptr[0] == ' ' && c >= 'a' && c <= 'z' ? WORDS : MARKS;
}

void bench_words_text(const struct tokenizer *t, size_t bytes, struct buf *out)
{
    struct tokens pools[N_POOLS] = {0};
    struct rng r = rng_seed(2);
    size_t end = out->len + bytes;
    for (int32_t id = 0; id < tokenizer_vocab_size(t); id++) {
        struct str text = tokenizer_token_bytes(t, id);
        int32_t c;
        bool is_whole = text.len > 0 && utf8_decode(text, 0, &c) > 0;
        if (is_whole && (unsigned char)text.ptr[0] >= '\t' && !tokenizer_is_added(t, id))
            tokens_push(&pools[pool_of(text)], id);
    }
    while (out->len < end) {
        uint64_t kind = rng_below(&r, 10);
        for (int i = 0; i < 40; i++) {
            bool is_prose = kind < 6, is_code = kind >= 6 && kind < 9;
            put_some(t, &pools[is_prose || is_code ? WORDS : CHINESE], &r, out);
            if (rng_below(&r, is_code ? 2 : 8) == 0)
                put_some(t, &pools[MARKS], &r, out);
            if (rng_below(&r, 4) == 0)
                put_some(t, &pools[kind < 9 ? LETTERS : CHINESE], &r, out);
            if (rng_below(&r, 20) == 0)
                put_some(t, &pools[DIGITS], &r, out);
        }
        buf_puts(out, kind < 6 ? ".\n" : "\n    ");
    }
    for (int i = 0; i < N_POOLS; i++)
        tokens_fini(&pools[i]);
}
