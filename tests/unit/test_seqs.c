/* tests/unit/test_seqs.c - a step is all or nothing: lengths, pages and places move when it
 * completes, and only then. */
#include "attn_node/seqs.h"

#include "base/mem.h"
#include "tests/lib/test.h"

enum { MAX_SEQS = 4, PAGES = 6 };

static const struct model_config config = {.hidden_size = 8,
                                           .n_layers = 1,
                                           .n_heads = 2,
                                           .n_kv_heads = 1,
                                           .head_dim = 4,
                                           .rotary_dim = 2,
                                           .vocab_size = 300,
                                           .max_positions = 1024};

struct world {
    struct kv *kv;
    struct seqs *seqs;
    struct step_seq out[MAX_SEQS + 1];
    struct err e;
    int32_t tokens[1024];
};

static void open_world_that(struct world *w, bool keeps)
{
    *w = (struct world){0};
    CHECK_INT(kv_open(&config, KV_BF16, PAGES * kv_page_bytes(&config, KV_BF16), &w->kv, &w->e), 0);
    CHECK_INT(kv_pages_total(w->kv), PAGES);
    w->seqs = seqs_new(w->kv, MAX_SEQS, keeps, 99);
    for (int i = 0; i < 1024; i++)
        w->tokens[i] = i % 300;
}

static void open_world(struct world *w)
{
    open_world_that(w, false);
}

static void close_world(struct world *w)
{
    seqs_free(&w->seqs);
    CHECK_INT(kv_pages_free(w->kv), PAGES);
    kv_close(&w->kv);
}

static int begin(struct world *w, const struct wire_step_seq *seqs, uint32_t n)
{
    struct wire_step step = {.step = 1, .n_seqs = n, .seqs = seqs, .tokens = w->tokens};
    w->e = (struct err){0};
    return seqs_begin(w->seqs, &step, w->out, &w->e);
}

/* What forward_step() does to lengths. */
static void finish(struct world *w, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        w->out[i].kv->length += w->out[i].n_tokens;
    seqs_commit(w->seqs, true);
}

static void run_one(struct world *w, uint64_t seq, uint32_t position, uint32_t n_tokens)
{
    struct wire_step_seq s = {.seq = seq, .position = position, .n_tokens = n_tokens};
    CHECK_INT(begin(w, &s, 1), 0);
    finish(w, 1);
}

TEST(seqs_are_cleared_all_at_once)
{
    struct world w;
    open_world(&w);
    for (uint64_t seq = 1; seq <= MAX_SEQS; seq++)
        run_one(&w, seq, 0, 3);
    CHECK_INT(seqs_count(w.seqs), MAX_SEQS);
    seqs_clear(w.seqs);
    CHECK_INT(seqs_count(w.seqs), 0);
    CHECK_INT(kv_pages_free(w.kv), PAGES);
    struct wire_step_seq s = {.seq = 1, .position = 3, .n_tokens = 1};
    CHECK_INT(begin(&w, &s, 1), E_PRECONDITION);
    run_one(&w, 1, 0, 3);
    close_world(&w);
}

TEST(seqs_follow_their_positions)
{
    struct world w;
    open_world(&w);
    struct sampling hot = {.temperature = 0.5f, .seed = 9};
    struct wire_step_seq s = {
        .seq = 7, .n_tokens = 10, .sample = true, .n_prompt = 8, .sampling = &hot};
    CHECK_INT(begin(&w, &s, 1), 0);
    CHECK_INT(w.out[0].position, 0);
    CHECK(!w.out[0].no_logits);
    CHECK(seqs_sampling(w.seqs, 0)->temperature == 0.5f);
    CHECK_INT(seqs_history(w.seqs, 0).n_tokens, 10);
    CHECK_INT(seqs_history(w.seqs, 0).n_prompt, 8);
    finish(&w, 1);
    s = (struct wire_step_seq){.seq = 7, .position = 10, .n_tokens = 1};
    CHECK_INT(begin(&w, &s, 1), 0);
    CHECK(w.out[0].no_logits);
    struct sample_history h = seqs_history(w.seqs, 0);
    CHECK_INT(h.n_tokens, 11);
    CHECK_INT(h.tokens[9], 9);
    CHECK_INT(h.tokens[10], 0);
    CHECK(seqs_sampling(w.seqs, 0)->temperature == 0.5f);
    finish(&w, 1);
    s.position = 20;
    CHECK_INT(begin(&w, &s, 1), E_PRECONDITION);
    CHECK_HAS(w.e.text, "sequence 7");
    CHECK_HAS(w.e.text, "position 20");
    CHECK_HAS(w.e.text, "ends at 11");
    s = (struct wire_step_seq){.seq = 8, .position = 5, .n_tokens = 1};
    CHECK_INT(begin(&w, &s, 1), E_PRECONDITION);
    CHECK_HAS(w.e.text, "ends at 0");
    CHECK_INT(seqs_count(w.seqs), 1);
    close_world(&w);
}

TEST(seqs_roll_back_a_step_whole)
{
    struct world w;
    open_world(&w);
    run_one(&w, 1, 0, 60);
    CHECK_INT(kv_pages_free(w.kv), PAGES - 1);
    struct wire_step_seq both[] = {{.seq = 1, .position = 60, .n_tokens = 70},
                                   {.seq = 2, .position = 0, .n_tokens = 100}};
    CHECK_INT(begin(&w, both, 2), 0);
    CHECK_INT(kv_pages_free(w.kv), PAGES - 5);
    CHECK_INT(seqs_history(w.seqs, 0).n_tokens, 130);
    seqs_roll_back(w.seqs);
    CHECK_INT(kv_pages_free(w.kv), PAGES - 1);
    CHECK_INT(seqs_count(w.seqs), 1);
    /* The same step again, as if nothing had been. */
    CHECK_INT(begin(&w, both, 2), 0);
    finish(&w, 2);
    CHECK_INT(w.out[0].kv->length, 130);
    run_one(&w, 2, 100, 1);
    close_world(&w);
}

TEST(seqs_without_pages_or_places_are_refused_whole)
{
    struct world w;
    open_world(&w);
    run_one(&w, 1, 0, 64);
    struct wire_step_seq two[] = {{.seq = 1, .position = 64, .n_tokens = 64},
                                  {.seq = 2, .position = 0, .n_tokens = 64 * 5}};
    CHECK_INT(begin(&w, two, 2), E_BUSY);
    CHECK_HAS(w.e.text, "sequence 2");
    CHECK_INT(kv_pages_free(w.kv), PAGES - 1);
    CHECK_INT(seqs_count(w.seqs), 1);
    for (uint64_t seq = 2; seq <= MAX_SEQS; seq++)
        run_one(&w, seq, 0, 1);
    struct wire_step_seq more = {.seq = 99, .n_tokens = 1};
    CHECK_INT(begin(&w, &more, 1), E_BUSY);
    seqs_release(w.seqs, 3);
    seqs_release(w.seqs, 3);
    CHECK_INT(begin(&w, &more, 1), 0);
    seqs_roll_back(w.seqs);
    CHECK_INT(seqs_count(w.seqs), MAX_SEQS - 1);
    close_world(&w);
}

TEST(seqs_restart_at_position_zero)
{
    struct world w;
    open_world(&w);
    run_one(&w, 5, 0, 200);
    CHECK_INT(kv_pages_free(w.kv), PAGES - 4);
    run_one(&w, 5, 0, 3);
    CHECK_INT(kv_pages_free(w.kv), PAGES - 1);
    CHECK_INT(seqs_count(w.seqs), 1);
    run_one(&w, 5, 3, 1);
    /* A restart that fails leaves nothing behind. */
    struct wire_step_seq s = {.seq = 5, .n_tokens = 10};
    CHECK_INT(begin(&w, &s, 1), 0);
    seqs_roll_back(w.seqs);
    CHECK_INT(seqs_count(w.seqs), 0);
    CHECK_INT(kv_pages_free(w.kv), PAGES);
    close_world(&w);
}

TEST(seqs_refuse_hostile_steps)
{
    struct world w;
    open_world(&w);
    run_one(&w, 1, 0, 2);
    struct wire_step_seq twice[] = {{.seq = 1, .position = 2, .n_tokens = 1},
                                    {.seq = 1, .position = 2, .n_tokens = 1}};
    CHECK_INT(begin(&w, twice, 2), E_INVALID);
    CHECK_HAS(w.e.text, "twice");
    struct wire_step_seq opened_twice[] = {{.seq = 3, .n_tokens = 1}, {.seq = 3, .n_tokens = 1}};
    CHECK_INT(begin(&w, opened_twice, 2), E_INVALID);
    CHECK_INT(seqs_count(w.seqs), 1);
    struct wire_step_seq empty = {.seq = 1, .position = 2};
    CHECK_INT(begin(&w, &empty, 1), E_INVALID);
    struct wire_step_seq far = {.seq = 1, .position = UINT32_MAX, .n_tokens = 2};
    CHECK_INT(begin(&w, &far, 1), E_INVALID);
    struct wire_step_seq long_one = {.seq = 1, .position = 2, .n_tokens = UINT32_MAX};
    CHECK_INT(begin(&w, &long_one, 1), E_INVALID);
    run_one(&w, 1, 2, 1);
    close_world(&w);
}

TEST(seqs_survive_random_lives)
{
    struct rng r = test_rng();
    struct world w;
    open_world(&w);
    int length[MAX_SEQS + 2] = {0};
    for (int i = 0; i < 3000; i++) {
        uint64_t seq = 1 + rng_below(&r, MAX_SEQS + 1);
        uint32_t n = 1 + (uint32_t)rng_below(&r, 80);
        struct wire_step_seq s = {.seq = seq, .position = (uint32_t)length[seq], .n_tokens = n};
        switch (rng_below(&r, 4)) {
        case 0:
            seqs_release(w.seqs, seq);
            length[seq] = 0;
            break;
        case 1:
            if (begin(&w, &s, 1) == 0)
                seqs_roll_back(w.seqs);
            break;
        default:
            if (begin(&w, &s, 1) == 0) {
                finish(&w, 1);
                length[seq] += (int)n;
                CHECK_INT(w.out[0].kv->length, length[seq]);
            }
        }
        int pages = 0, open = 0;
        for (int k = 1; k <= MAX_SEQS + 1; k++) {
            pages += (length[k] + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
            open += length[k] > 0;
        }
        CHECK_INT(kv_pages_free(w.kv), PAGES - pages);
        CHECK_INT(seqs_count(w.seqs), open);
    }
    close_world(&w);
}

static struct wire_step_seq opening(uint64_t seq, uint32_t rows, uint32_t ahead)
{
    return (struct wire_step_seq){
        .seq = seq, .n_tokens = rows, .n_ahead = ahead, .n_prompt = rows + ahead, .sample = true};
}

TEST(seqs_begin_behind_what_the_cache_has_of_them)
{
    struct world w;
    open_world_that(&w, true);
    struct wire_step_seq first = opening(1, 150, 0), second = opening(2, 30, 170);
    CHECK_INT(begin(&w, &first, 1), 0);
    CHECK(!w.out[0].no_logits);
    finish(&w, 1);
    CHECK_INT(kv_pages_kept(w.kv), 2);
    int free_before = kv_pages_free(w.kv);
    CHECK_INT(begin(&w, &second, 1), 0);
    CHECK_INT(w.out[0].position, 128);
    CHECK_INT(w.out[0].n_tokens, 30); /* of 200 that are known */
    CHECK(w.out[0].tokens == w.tokens + 128);
    CHECK(w.out[0].no_logits);
    CHECK_INT(seqs_history(w.seqs, 0).n_tokens, 158);
    CHECK_INT(free_before - kv_pages_free(w.kv), 1);
    finish(&w, 1);
    seqs_release(w.seqs, 1);
    run_one(&w, 2, 158, 42); /* goes on as any other */
    seqs_release(w.seqs, 2);
    CHECK_INT(kv_pages_free(w.kv), PAGES);
    CHECK_INT(kv_pages_kept(w.kv), 3);
    close_world(&w);
}

TEST(seqs_compute_the_last_token_even_if_the_cache_has_all)
{
    struct world w;
    open_world_that(&w, true);
    struct wire_step_seq first = opening(1, 128, 0), second = opening(2, 1, 127);
    CHECK_INT(begin(&w, &first, 1), 0);
    finish(&w, 1);
    CHECK_INT(begin(&w, &second, 1), 0);
    CHECK_INT(w.out[0].position, 64);
    CHECK_INT(w.out[0].n_tokens, 1);
    CHECK(w.out[0].no_logits);
    seqs_roll_back(w.seqs); /* as if it had never been */
    second = opening(2, 100, 28);
    CHECK_INT(begin(&w, &second, 1), 0);
    CHECK_INT(w.out[0].n_tokens, 64); /* fewer than it may */
    CHECK(!w.out[0].no_logits);
    finish(&w, 1);
    CHECK_INT(kv_pages_kept(w.kv), 2); /* its second page is the first one's */
    CHECK_INT(kv_pages_free(w.kv), PAGES - 2);
    close_world(&w);
}

TEST(seqs_need_kept_pages_and_get_them)
{
    struct world w;
    open_world_that(&w, true);
    struct wire_step_seq first = opening(1, 64 * PAGES, 0), second = opening(2, 64 * PAGES, 0);
    CHECK_INT(begin(&w, &first, 1), 0);
    finish(&w, 1);
    seqs_release(w.seqs, 1);
    CHECK_INT(kv_pages_kept(w.kv), PAGES);
    w.tokens[64] = 299; /* differs from the second page on */
    CHECK_INT(begin(&w, &second, 1), 0);
    CHECK_INT(w.out[0].position, 64);
    finish(&w, 1);
    CHECK_INT(kv_pages_kept(w.kv), PAGES);
    struct wire_step_seq third = opening(3, 1, 0);
    CHECK_INT(begin(&w, &third, 1), E_BUSY); /* those of a sequence are not given away */
    close_world(&w);
}

TEST(seqs_keep_nothing_that_is_in_doubt)
{
    struct world w;
    open_world_that(&w, true);
    struct wire_step_seq first = opening(1, 128, 0), second = opening(2, 128, 0);
    CHECK_INT(begin(&w, &first, 1), 0);
    w.out[0].kv->length += 128;
    seqs_commit(w.seqs, false);
    CHECK_INT(kv_pages_kept(w.kv), 0);
    run_one(&w, 1, 128, 64); /* what follows is no better */
    CHECK_INT(kv_pages_kept(w.kv), 0);
    CHECK_INT(begin(&w, &second, 1), 0);
    CHECK_INT(w.out[0].position, 0);
    finish(&w, 1);
    CHECK_INT(kv_pages_kept(w.kv), 2);
    seqs_clear_all(w.seqs);
    CHECK_INT(kv_pages_kept(w.kv), 0);
    CHECK_INT(kv_pages_free(w.kv), PAGES);
    CHECK_INT(begin(&w, &second, 1), 0);
    CHECK_INT(w.out[0].position, 0);
    seqs_roll_back(w.seqs);
    close_world(&w);
}

TEST(seqs_end_behind_the_guesses_that_came_true)
{
    struct world w;
    open_world_that(&w, true);
    run_one(&w, 1, 0, 62);
    struct wire_step_seq guesses = {
        .seq = 1, .position = 62, .n_tokens = 4, .n_draft = 3, .sample = true};
    int free_before = kv_pages_free(w.kv);
    CHECK_INT(begin(&w, &guesses, 1), 0);
    CHECK(w.out[0].all_logits);
    CHECK_INT(kv_pages_free(w.kv), free_before - 1);
    w.out[0].kv->length += 4;
    seqs_cut(w.seqs, 0, 2);
    seqs_commit(w.seqs, true);
    CHECK_INT(kv_pages_free(w.kv), free_before);
    CHECK_INT(kv_pages_kept(w.kv), 1); /* the page is full all the same */
    guesses.position = 66;
    CHECK_INT(begin(&w, &guesses, 1), E_PRECONDITION);
    run_one(&w, 1, 64, 1);
    guesses = (struct wire_step_seq){.seq = 1, .position = 65, .n_tokens = 3, .n_draft = 1};
    CHECK_INT(begin(&w, &guesses, 1), E_INVALID);
    close_world(&w);
}
