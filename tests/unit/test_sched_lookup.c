/* tests/unit/test_sched_lookup.c - guesses from a sequence's own text, and what a step makes of them. */
#include "coordinator/sched_lookup.h"

#include "tests/unit/sched_world.h"

static const int32_t SONG[] = {1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3};
enum { SONG_TOKENS = sizeof SONG / sizeof SONG[0] };

static uint32_t guess(struct lookup *l, uint32_t n, uint32_t cost_permille, int32_t *out)
{
    struct lookup_text t = {.prompt = SONG, .output = SONG + 4, .n_prompt = 4, .n_output = n - 4};
    return lookup_guess(l, &t, 8, cost_permille, out);
}

TEST(lookup_guesses_what_followed_the_same_words)
{
    struct lookup l = {0};
    int32_t out[8];
    CHECK_INT(guess(&l, SONG_TOKENS - 1, 0, out), 0); /* "8 1 2" is new */
    CHECK_INT(guess(&l, SONG_TOKENS, 0, out), 4);
    for (int i = 0; i < 4; i++)
        CHECK_INT(out[i], 4 + i);
    lookup_learn(&l, 4, 4);
    CHECK_INT(guess(&l, SONG_TOKENS, 0, out), 8); /* longer, up to where the text ends */
    CHECK_INT(out[7], 3);
    lookup_learn(&l, 8, 0);
    lookup_learn(&l, 4, 0);
    CHECK_INT(guess(&l, SONG_TOKENS, 0, out), 2);
    lookup_fini(&l);
}

TEST(lookup_is_silent_while_it_does_not_pay)
{
    struct lookup l = {0};
    int32_t out[8];
    int n_guesses = 0;
    for (int i = 0; i < 1000; i++) {
        uint32_t n = guess(&l, SONG_TOKENS, 300, out);
        n_guesses += n > 0;
        lookup_learn(&l, n, 0);
    }
    CHECK(n_guesses < 20);
    int before = n_guesses;
    for (int i = 0; i < 600; i++) { /* now it would */
        uint32_t n = guess(&l, SONG_TOKENS, 300, out);
        n_guesses += n > 0;
        lookup_learn(&l, n, n);
    }
    CHECK(n_guesses - before > 200);
    lookup_fini(&l);
}

TEST(lookup_compares_tokens_in_a_long_text)
{
    enum { LONG = 20000 };
    static int32_t text[LONG];
    struct rng r = test_rng();
    struct lookup l = {0};
    int32_t out[8];
    int n_guesses = 0;
    for (int i = 0; i < LONG; i++)
        text[i] = (int32_t)rng_below(&r, 12);
    for (uint32_t n = 4; n < LONG; n += 1 + (uint32_t)rng_below(&r, 3)) {
        struct lookup_text t = {.prompt = text, .output = text, .n_prompt = n};
        uint32_t k = lookup_guess(&l, &t, 8, 0, out);
        if (k == 0)
            continue;
        n_guesses++;
        bool found = false; /* it followed those three tokens somewhere */
        for (uint32_t i = 3; i + k <= n && !found; i++)
            found = memcmp(text + i - 3, text + n - 3, 3 * sizeof text[0]) == 0 &&
                    memcmp(text + i, out, k * sizeof out[0]) == 0;
        CHECK(found);
        lookup_learn(&l, k, k > 1 ? k / 2 : k);
    }
    CHECK(n_guesses > 1000);
    lookup_fini(&l);
}

/* ---- in steps --------------------------------------------------------------------------------- */

/* A prompt that repeats itself, and its answer so far: the next step has guesses. */
static struct sched_action begin_guessing(uint32_t max_tokens)
{
    static const int32_t again[] = {21, 22, 23, 24, 25, 26, 21, 22};
    begin(8);
    sched.config.draft_tokens = 3;
    event(&(struct sched_event){.kind = SCHED_SIDE_UP,
                                .side = {.id = 1,
                                         .pages = 100,
                                         .page_tokens = 64,
                                         .max_rows = 16,
                                         .max_seqs = 8,
                                         .takes_drafts = true}});
    event(&(struct sched_event){.kind = SCHED_SUBMIT,
                                .submit = {.seq = 1,
                                           .prompt = again,
                                           .output = &outputs[1],
                                           .n_prompt = 8,
                                           .max_tokens = max_tokens,
                                           .sampling = &SAMPLING,
                                           .stop_ids = EOS,
                                           .n_stop_ids = 1,
                                           .deadline_ns = 1000}});
    tick(0);
    answer(23);
    tick(0);
    return *find(SCHED_SEND);
}

static void answer_with(const struct sched_action *sent, const int32_t *tokens, uint32_t n)
{
    struct wire_step_sample samples[8] = {0};
    for (uint32_t i = 0; i < n; i++)
        samples[i] = (struct wire_step_sample){.seq = 1, .sampled.token = tokens[i]};
    struct wire_step_reply reply = {.step = sent->step->step, .n_samples = n, .samples = samples};
    event(&(struct sched_event){
        .kind = SCHED_STEP_DONE, .side.id = 1, .step = sent->step->step, .reply = &reply});
}

TEST(sched_takes_what_came_true_and_goes_on_behind_it)
{
    struct sched_action sent = begin_guessing(20);
    static const int32_t want[] = {23, 24, 25, 26}, came[] = {24, 25, 77};
    CHECK_INT(sent.step->seqs[0].n_draft, 3);
    CHECK_INT(sent.step->n_tokens, 4);
    CHECK_BYTES(sent.step->tokens, want, sizeof want);
    answer_with(&sent, came, 3);
    CHECK_INT(count(SCHED_TOKEN), 3);
    CHECK_INT(sched.n_drafted, 3);
    CHECK_INT(sched.n_draft_true, 2);
    tick(0);
    const struct wire_step *m = find(SCHED_SEND)->step;
    CHECK_INT(m->seqs[0].position, 11);
    CHECK_INT(m->tokens[0], 77);
    CHECK_INT(m->seqs[0].n_draft, 0); /* nothing to go by */
    finish();
}

TEST(sched_ends_where_it_should_although_more_came_true)
{
    struct sched_action sent = begin_guessing(20);
    sched.config.draft_tokens = 0;
    static const int32_t stop[] = {24, 99};
    answer_with(&sent, stop, 2);
    CHECK_INT(count(SCHED_TOKEN), 2);
    CHECK_INT(got.items[1].finish, SCHED_STOP);
    CHECK_INT(count(SCHED_RELEASE), 1);
    CHECK_INT(sched.n_running, 0);
    finish();
    sent = begin_guessing(3);
    CHECK_INT(sent.step->seqs[0].n_draft, 1); /* one of the two that may come is sampled anyway */
    finish();
}

TEST(sched_does_not_trust_guesses_that_cannot_have_come_true)
{
    static const int32_t other[] = {24, 77, 26}, few[] = {24, 25};
    struct sched_action sent = begin_guessing(20);
    answer_with(&sent, other, 3); /* goes on behind one that did not */
    CHECK_INT(count(SCHED_TOKEN), 0);
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    finish();
    sent = begin_guessing(20);
    answer_with(&sent, few, 2); /* ends although it did */
    CHECK_INT(count(SCHED_TOKEN), 0);
    finish();
}
