/* tests/unit/test_context.c - contexts that lie in several places: the bits of one host, the books of
 * pages, and what a place says to a side that makes no sense. */
#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "engine/context.h"
#include "engine/far.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/synth.h"

enum { VOCAB = 400, N_TOKENS = 1100, MAX_SEQS = 4, SPAN = KV_SPAN_PAGES, N_FAR = 2 };

static void write_m3(const char *dir)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    CHECK_INT(synth_preset("m3-tiny", &o.config, &e), 0);
    o.config.vocab_size = VOCAB;
    o.dir = dir;
    o.is_forced = true;
    if (synth_write(&o, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

/* Other places, in the same process. */
struct places {
    struct context *at[N_FAR];
    struct pool *pools[N_FAR];
    struct context_candidate *candidates[N_FAR]; /* of the choice that was asked for */
    int n_calls, fails_at, code;
    const struct model_config *config;
};

static int note_call(struct places *p)
{
    return ++p->n_calls == p->fails_at ? p->code : 0;
}

static int begin(void *ud, int lane, int place, const struct context_plan *plan)
{
    struct places *p = ud;
    struct err e = {0};
    int rc = context_begin(p->at[place - 1], lane, plan, &e);
    if (rc < 0)
        test_fail(__FILE__, __LINE__, "place %d: %s", place, e.text);
    return note_call(p);
}

static int choose(void *ud, int lane, int place, const struct context_rows *rows)
{
    struct places *p = ud;
    struct err e = {0};
    const struct sparse_config *s = &p->config->sparse;
    size_t n = context_counts(p->at[place - 1], lane).choosing;
    mem_free(p->candidates[place - 1]);
    p->candidates[place - 1] =
        mem_array(n * (size_t)(s->n_heads * (s->top_k - 1)), sizeof(struct context_candidate));
    struct context_rows r = *rows;
    r.candidates = p->candidates[place - 1];
    if (context_choose(p->at[place - 1], lane, &r, &e) < 0)
        test_fail(__FILE__, __LINE__, "place %d: %s", place, e.text);
    return note_call(p);
}

static int chosen(void *ud, int lane, int place, struct context_candidate *to)
{
    struct places *p = ud;
    const struct sparse_config *s = &p->config->sparse;
    size_t n = context_counts(p->at[place - 1], lane).choosing;
    memcpy(to, p->candidates[place - 1], n * (size_t)(s->n_heads * (s->top_k - 1)) * sizeof(*to));
    return note_call(p);
}

static int attend(void *ud, int lane, int place, const struct context_rows *rows)
{
    struct places *p = ud;
    struct err e = {0};
    if (context_attend(p->at[place - 1], lane, rows, &e) < 0)
        test_fail(__FILE__, __LINE__, "place %d: %s", place, e.text);
    return note_call(p);
}

static const struct far_ops far_ops = {begin, choose, chosen, attend};

static void open_places(struct places *p, struct tiny_model *m, const int *n_pages, int max_rows)
{
    struct err e = {0};
    size_t page = kv_page_bytes(m->config, m->formats.kv);
    *p = (struct places){.config = m->config};
    for (int i = 0; i < N_FAR; i++) {
        p->pools[i] = pool_new(1 + i, POOL_FREE);
        struct compute c = {m->compute.kernels, p->pools[i]};
        struct context_options o = {.kv = m->formats.kv,
                                    .kv_bytes = (int64_t)((size_t)n_pages[i + 1] * page),
                                    .max_rows = max_rows,
                                    .max_seqs = MAX_SEQS};
        if (context_open(m->config, &o, c, &p->at[i], &e) < 0)
            test_fail(__FILE__, __LINE__, "%s", e.text);
        CHECK_INT(context_pages(p->at[i]), n_pages[i + 1]);
    }
    kv_close(&m->kv);
    CHECK_INT(kv_open(m->config, m->formats.kv, (size_t)n_pages[0] * page, &m->kv, &e), 0);
    CHECK_INT(forward_set_far(m->forward, &far_ops, p, m->kv, MAX_SEQS, &e), 0);
    for (int i = 0; i < N_FAR; i++)
        kv_add_place(m->kv, n_pages[i + 1]);
}

static void close_places(struct places *p)
{
    for (int i = 0; i < N_FAR; i++) {
        context_close(&p->at[i]);
        mem_free(p->candidates[i]);
        pool_free(&p->pools[i]);
    }
}

static void make_tokens(int32_t *tokens, int n, uint64_t seed)
{
    struct rng r = rng_stream(seed, 1);
    for (int i = 0; i < n; i++)
        tokens[i] = (int32_t)rng_below(&r, VOCAB - 60);
}

/* `pages` NULL: all of it here. */
static float *logits_of(const char *dir, const struct tiny_model_options *o, int chunk,
                        const int *n_pages)
{
    struct tiny_model m;
    struct places p;
    struct kv_seq seq = {0};
    int32_t tokens[N_TOKENS];
    make_tokens(tokens, N_TOKENS, 5);
    float *logits = mem_array((size_t)N_TOKENS * VOCAB, sizeof *logits);
    tiny_model_open(&m, dir, o);
    if (n_pages)
        open_places(&p, &m, n_pages, o->max_rows);
    tiny_model_run(&m, &seq, tokens, N_TOKENS, chunk, logits);
    if (n_pages)
        CHECK(p.n_calls > 0);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
    if (n_pages)
        close_places(&p);
    return logits;
}

/* M2's heads are of a size that rows are padded to. */
static void check_split(bool is_m3, const char *format)
{
    static const struct {
        int chunk, n_pages[1 + N_FAR];
        bool has_two_lanes;
    } ways[] = {{512, {SPAN, SPAN, SPAN}, false},
                {200, {SPAN + 3, 2 * SPAN, SPAN}, true},
                {333, {2, SPAN, 2 * SPAN}, false}};
    struct tiny_model_options o = {.max_rows = 512, .n_threads = 2, .format = format};
    if (is_m3)
        write_m3("model");
    else
        tiny_model_write("model", 2, 7);
    float *want = logits_of("model", &o, 400, NULL);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        o.has_two_lanes = ways[i].has_two_lanes;
        float *got = logits_of("model", &o, ways[i].chunk, ways[i].n_pages);
        CHECK_BYTES(got, want, (size_t)N_TOKENS * VOCAB * sizeof *got);
        mem_free(got);
    }
    mem_free(want);
}

TEST_WITHIN(context_in_three_places_has_the_bits_of_one, 60)
{
    check_split(false, "native");
    check_split(false, "q8,kv=int8");
}

TEST_WITHIN(context_in_three_places_has_the_bits_of_one_with_chosen_blocks, 60)
{
    check_split(true, "native");
    check_split(true, "f32,kv=f32");
}

/* Whatever call of a place fails, the step fails with its code and has moved nothing; the next one is as
 * if there had been none. */
TEST_WITHIN(context_a_place_that_fails_ends_the_step, 60)
{
    enum { N = 600, LAST = 40 };
    static const int n_pages[] = {SPAN, SPAN, SPAN};
    struct tiny_model_options o = {.max_rows = 512};
    struct tiny_model m;
    struct places p;
    struct kv_seq seq = {0};
    int32_t tokens[N + LAST];
    make_tokens(tokens, N + LAST, 9);
    write_m3("model");
    float *want = mem_array((size_t)LAST * VOCAB, sizeof *want), *all = mem_array(N * VOCAB, 4);
    tiny_model_open(&m, "model", &o);
    open_places(&p, &m, n_pages, o.max_rows);
    tiny_model_run(&m, &seq, tokens, N, 300, all);
    int before = p.n_calls;
    tiny_model_run(&m, &seq, tokens + N, LAST, LAST, want);
    int n_calls = p.n_calls - before;
    CHECK(n_calls >= 8); /* begin, and for each of four layers at least one */
    for (int i = 1; i <= n_calls; i++) {
        kv_truncate(m.kv, &seq, N);
        CHECK_INT(kv_reserve(m.kv, &seq, N + LAST), 0);
        struct step_seq s = {.kv = &seq, .position = N, .n_tokens = LAST, .tokens = tokens + N};
        struct step step = {.n_seqs = 1, .seqs = &s};
        const float *got;
        int n_got;
        p.fails_at = p.n_calls + i;
        p.code = E_UNAVAILABLE;
        CHECK_INT(forward_step(m.forward, m.kv, &step, &moe_local_ops, m.moe, &got, &n_got),
                  E_UNAVAILABLE);
        CHECK_INT(seq.length, N);
    }
    kv_truncate(m.kv, &seq, N);
    tiny_model_run(&m, &seq, tokens + N, LAST, LAST, all);
    CHECK_BYTES(all, want, (size_t)LAST * VOCAB * sizeof *want);
    kv_truncate(m.kv, &seq, 0);
    tiny_model_close(&m);
    close_places(&p);
    mem_free(want);
    mem_free(all);
}

/* ---- what a place is told ---- */

struct told {
    struct context_part parts[2];
    struct context_group groups[2];
    int32_t pages[16];
    uint32_t n_parts, n_groups;
    const char *why; /* what the answer says; NULL: it is taken */
};

TEST(context_refuses_plans_that_do_not_fit_together)
{
    static const struct told all[] = {
        {{{0, 0, 2}}, {{0, 16, 0, false, true}}, {0, 1}, 1, 1, NULL},
        {{{0, 2, 1}}, {{0, 4, 140, true, true}}, {2}, 1, 1, NULL},
        {{{0, 3, 5}}, {{0, 16, 512, true, false}}, {3, 4, 5, 6, 7}, 1, 1, NULL},
        {{{4, 0, 1}}, {{0, 1, 0, false, true}}, {0}, 1, 1, "sequence 4, there is room for 4"},
        {{{1, 0, 1}, {1, 0, 1}}, {{0, 1, 0, false, true}}, {0, 1}, 2, 1, "sequence 1 comes twice"},
        {{{2, 1, 1}}, {{0, 1, 0, false, true}}, {0}, 1, 1, "1 pages kept of 0"},
        {{{2, 0, 9}}, {{0, 1, 0, false, true}}, {0}, 1, 1, "9 new of 8"},
        {{{2, 0, 0xffffffff}}, {{0, 1, 0, false, true}}, {0}, 1, 1, "new of 8"},
        {{{2, 0, 1}}, {{0, 1, 0, false, true}}, {8}, 1, 1, "page 8 of 8"},
        {{{2, 0, 1}}, {{0, 1, 0, false, true}}, {-1}, 1, 1, "page -1 of 8"},
        {{{2, 0, 1}}, {{1, 1, 0, false, true}}, {0}, 1, 1, "a group of part 1 of 1"},
        {{{2, 0, 1}}, {{0, 0, 0, false, true}}, {0}, 1, 1, "a group of 0 rows"},
        {{{2, 0, 1}}, {{0, 17, 0, false, true}}, {0}, 1, 1, "a group of 17 rows"},
        {{{2, 0, 1}}, {{0, 2, 15, false, true}}, {0}, 1, 1, "a group of 2 rows at position 15"},
        {{{2, 0, 1}}, {{0, 1, 64, false, true}}, {0}, 1, 1, "position 64 of a part of 1 pages"},
        {{{2, 0, 1}}, {{0, 1, 64, false, false}}, {0}, 1, 1, "position 64 of a part of 1 pages"},
        {{{0, 8, 0}}, {{0, 1, 511, true, false}}, {0}, 1, 1, "position 511 of a part of 8 pages"},
        {{{0, 8, 0}}, {{0, 1, 0xfffffff0, true, false}}, {0}, 1, 1, "position 4294967280"},
        {{{0, 8, 0}, {1, 0, 1}},
         {{1, 1, 0, false, true}, {0, 1, 0, false, true}},
         {0},
         2,
         2,
         "not in order"},
    };
    struct tiny_model_options o = {.max_rows = 32};
    static const int n_pages[] = {SPAN, SPAN, SPAN};
    struct tiny_model m;
    struct places p;
    write_m3("model");
    tiny_model_open(&m, "model", &o);
    open_places(&p, &m, n_pages, o.max_rows);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct err e = {0};
        struct context_plan plan = {.n_parts = all[i].n_parts,
                                    .n_groups = all[i].n_groups,
                                    .parts = all[i].parts,
                                    .pages = all[i].pages,
                                    .groups = all[i].groups};
        int rc = context_begin(p.at[0], 0, &plan, &e);
        CHECK_INT(rc, all[i].why ? E_INVALID : 0);
        if (all[i].why)
            CHECK_HAS(e.text, all[i].why);
        CHECK_INT((int)context_counts(p.at[0], 0).rows,
                  all[i].why ? 0 : (int)all[i].groups[0].n_rows);
    }
    tiny_model_close(&m);
    close_places(&p);
}

TEST(context_refuses_calls_that_do_not_fit_the_rows)
{
    struct tiny_model_options o = {.max_rows = 32};
    static const int n_pages[] = {SPAN, SPAN, SPAN};
    struct tiny_model m;
    struct places p;
    struct err e = {0};
    float *room = mem_array(1 << 16, sizeof *room);
    write_m3("model");
    tiny_model_open(&m, "model", &o);
    open_places(&p, &m, n_pages, o.max_rows);
    uint32_t sparse_layer = (uint32_t)m.config->n_layers - 1;
    struct context_rows r = {.layer = sparse_layer, .index_q = room, .q = room, .o = room};
    CHECK_INT(context_attend(p.at[0], 0, &r, &e), E_PRECONDITION); /* nobody comes by */
    static const struct context_part part = {0, 0, SPAN};
    static const struct context_group group = {0, 1, 512, true, false};
    static const int32_t pages[SPAN] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct context_plan plan = {1, 1, &part, pages, &group};
    CHECK_INT(context_begin(p.at[0], 0, &plan, &e), 0);
    r.layer = (uint32_t)m.config->n_layers;
    CHECK_INT(context_attend(p.at[0], 0, &r, &e), E_INVALID);
    CHECK_HAS(e.text, "layer 4 of 4");
    r.layer = 0;
    CHECK_INT(context_choose(p.at[0], 0, &r, &e), E_INVALID);
    CHECK_HAS(e.text, "nothing is to be chosen");
    r.layer = sparse_layer;
    CHECK_INT(context_attend(p.at[0], 0, &r, &e), E_INVALID);
    CHECK_HAS(e.text, "chosen blocks are missing");
    int32_t blocks[256];
    int n = m.config->n_kv_heads * m.config->sparse.top_k;
    for (int i = 0; i < n; i++)
        blocks[i] = i % m.config->sparse.top_k;
    r.blocks = blocks;
    blocks[n - 1] = 1 << 30;
    CHECK_INT(context_attend(p.at[0], 0, &r, &e), E_INVALID);
    CHECK_HAS(e.text, "is none, or out of order");
    r.layer = 0;
    CHECK_INT(context_attend(p.at[0], 0, &r, &e), E_INVALID);
    CHECK_HAS(e.text, "where every key is seen");
    r.k = room;
    CHECK_INT(context_attend(p.at[0], 0, &r, &e), E_INVALID);
    CHECK_HAS(e.text, "do not come with what belongs to them");
    tiny_model_close(&m);
    close_places(&p);
    mem_free(room);
}

/* ---- the books ---- */

static struct kv *open_books(int here, int there)
{
    struct model_config c;
    struct err e = {0};
    struct kv *kv;
    CHECK_INT(synth_preset("m3-tiny", &c, &e), 0);
    CHECK_INT(kv_open(&c, KV_BF16, (size_t)here * kv_page_bytes(&c, KV_BF16), &kv, &e), 0);
    kv_add_place(kv, there);
    return kv;
}

static void check_part(const struct kv *kv, const struct kv_seq *s, int place, int first, int end)
{
    struct kv_part p = kv_part(kv, s, place);
    CHECK_INT(p.first, first);
    CHECK_INT(p.end, end);
}

TEST(context_goes_on_elsewhere_at_the_end_of_a_chunk)
{
    struct kv *kv = open_books(2 * SPAN + 3, SPAN);
    struct kv_seq a = {0}, b = {0}, c = {0};
    CHECK_INT(kv_pages_total(kv), 3 * SPAN); /* three pages are no span */
    CHECK_INT(kv_reserve(kv, &a, 1), 0);
    CHECK_INT(kv_pages_free(kv), 2 * SPAN); /* the rest of its span is promised */
    CHECK_INT(kv_reserve(kv, &b, 3 * 64), 0);
    CHECK_INT(kv_pages_free(kv), SPAN);
    CHECK_INT(kv_reserve(kv, &c, 1), 0);
    check_part(kv, &c, 0, 0, 0);
    check_part(kv, &c, 1, 0, 1);
    CHECK_INT(kv_pages_free(kv), 0);
    /* Within their spans all of them may grow. */
    CHECK_INT(kv_reserve(kv, &a, 512), 0);
    CHECK_INT(kv_reserve(kv, &b, 512), 0);
    CHECK_INT(kv_reserve(kv, &c, 512), 0);
    CHECK_INT(kv_reserve(kv, &a, 513), E_BUSY);
    kv_truncate(kv, &c, 0);
    CHECK_INT(kv_reserve(kv, &a, 600), 0);
    check_part(kv, &a, 0, 0, SPAN);
    check_part(kv, &a, 1, SPAN, SPAN + 2);
    CHECK_INT(kv_page_there(kv, &a, SPAN) < SPAN, 1);
    /* What it gives back of a span stays promised to it. */
    kv_truncate(kv, &a, 513);
    CHECK_INT(kv_reserve(kv, &c, 1), E_BUSY);
    kv_truncate(kv, &a, 512);
    CHECK_INT(kv_reserve(kv, &c, 1), 0);
    /* It has passed this host: what becomes free here is of no use to it. */
    kv_truncate(kv, &c, 0);
    CHECK_INT(kv_reserve(kv, &a, 1024), 0);
    kv_truncate(kv, &b, 0);
    CHECK_INT(kv_reserve(kv, &a, 1025), E_PRECONDITION);
    kv_truncate(kv, &a, 0);
    CHECK_INT(kv_pages_free(kv), 3 * SPAN);
    kv_drop_places(kv);
    CHECK_INT(kv_pages_total(kv), 2 * SPAN + 3);
    kv_close(&kv);
}

/* What was kept is found wherever it lies; a part of a span of which the rest has no room is left. */
TEST(context_is_found_again_in_all_places)
{
    enum { N = 1000 };
    struct kv *kv = open_books(SPAN, 2 * SPAN);
    struct kv_seq a = {0}, b = {0}, c = {0};
    int32_t tokens[N + 24];
    make_tokens(tokens, N + 24, 3);
    CHECK_INT(kv_reserve(kv, &a, N), 0);
    a.length = N;
    kv_keep(kv, &a, 1, tokens);
    CHECK_INT(kv_pages_kept(kv), N / 64);
    CHECK_INT(kv_adopt(kv, &b, 1, tokens, N), N / 64 * 64); /* while the other has it */
    check_part(kv, &b, 1, SPAN, N / 64);
    CHECK_INT(kv_pages_free(kv), 0); /* seven: one is promised to its span */
    CHECK_INT(kv_reserve(kv, &b, N), 0);
    kv_truncate(kv, &a, 0);
    kv_truncate(kv, &b, 0);
    CHECK_INT(kv_pages_free(kv), 3 * SPAN);
    CHECK_INT(kv_adopt(kv, &a, 1, tokens, N), N / 64 * 64); /* when nobody has */
    kv_truncate(kv, &a, 0);
    /* Of the second span's eight pages seven are kept; two others take what is left there, so its rest has
     * no room. */
    CHECK_INT(kv_adopt(kv, &a, 1, tokens, N), N / 64 * 64);
    CHECK_INT(kv_reserve(kv, &c, 512), 0);
    CHECK_INT(kv_pages_free(kv), 0);
    CHECK_INT(kv_adopt(kv, &b, 1, tokens, N), 512);
    check_part(kv, &b, 1, SPAN, SPAN);
    kv_truncate(kv, &a, 0);
    kv_truncate(kv, &b, 0);
    kv_truncate(kv, &c, 0);
    kv_forget(kv);
    CHECK_INT(kv_pages_kept(kv), 0);
    kv_drop_places(kv);
    kv_close(&kv);
}

/* The same tokens computed at the same time in two places: one of them is kept. */
TEST(context_that_lies_in_another_place_already_is_not_kept_again)
{
    struct kv *kv = open_books(SPAN, SPAN);
    struct kv_seq a = {0}, b = {0};
    int32_t tokens[512];
    make_tokens(tokens, 512, 4);
    CHECK_INT(kv_reserve(kv, &a, 512), 0);
    CHECK_INT(kv_reserve(kv, &b, 512), 0);
    a.length = b.length = 512;
    kv_keep(kv, &a, 1, tokens);
    kv_keep(kv, &b, 1, tokens);
    check_part(kv, &a, 0, 0, SPAN);
    check_part(kv, &b, 1, 0, SPAN);
    CHECK_INT(kv_pages_kept(kv), SPAN);
    kv_truncate(kv, &a, 0);
    kv_truncate(kv, &b, 0);
    CHECK_INT(kv_adopt(kv, &a, 1, tokens, 512), 512);
    check_part(kv, &a, 0, 0, SPAN);
    kv_truncate(kv, &a, 0);
    kv_close(&kv);
}
