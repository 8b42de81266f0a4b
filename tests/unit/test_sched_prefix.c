/* tests/unit/test_sched_prefix.c - the timetable and what attention sides keep of sequences. */
#include "tests/unit/sched_world.h"

static void side_up_that_keeps(uint32_t id, uint32_t max_rows)
{
    event(&(struct sched_event){.kind = SCHED_SIDE_UP,
                                .side = {.id = id,
                                         .pages = 100,
                                         .page_tokens = 4,
                                         .max_rows = max_rows,
                                         .max_seqs = 8,
                                         .keeps_prefixes = true}});
}

/* Answers the step to `side` in `sent`: the first of its sequences had n_cached tokens. */
static void answer_cached(const struct sched_action *sent, uint32_t n_cached, uint32_t n_samples)
{
    static struct wire_step_sample samples[8];
    const struct wire_step *m = sent->step;
    struct wire_step_opened opened = {.seq = m->seqs[0].seq, .n_cached = n_cached};
    for (uint32_t i = 0; i < n_samples; i++)
        samples[i] = (struct wire_step_sample){.seq = m->seqs[i].seq, .sampled.token = 5};
    struct wire_step_reply reply = {.step = m->step,
                                    .n_samples = n_samples,
                                    .samples = samples,
                                    .n_opened = n_cached > 0,
                                    .opened = &opened};
    event(&(struct sched_event){
        .kind = SCHED_STEP_DONE, .side.id = sent->side, .step = m->step, .reply = &reply});
}

TEST(sched_gives_all_tokens_at_the_beginning_and_goes_on_where_the_side_stands)
{
    begin(8);
    side_up_that_keeps(1, 4);
    submit(1, 10, 3);
    tick(0);
    const struct wire_step *m = find(SCHED_SEND)->step;
    CHECK_INT(m->n_tokens, 4);
    CHECK_INT(m->seqs[0].n_ahead, 6);
    CHECK(m->seqs[0].sample);
    CHECK_BYTES(m->tokens, PROMPT, 10 * sizeof PROMPT[0]);
    struct sched_action sent = *find(SCHED_SEND);
    answer_cached(&sent, 4, 0); /* from an earlier coordinator's time */
    CHECK_INT(count(SCHED_TOKEN), 0);
    tick(0);
    m = find(SCHED_SEND)->step;
    CHECK_INT(m->seqs[0].position, 8);
    CHECK_INT(m->seqs[0].n_ahead, 0);
    CHECK_INT(m->n_tokens, 2);
    answer(5);
    CHECK_INT(find(SCHED_TOKEN)->n_cached, 4);
    CHECK_INT(sched.n_cached_tokens, 4);
    finish();
}

TEST(sched_needs_one_step_for_a_prompt_that_its_side_has)
{
    begin(8);
    side_up_that_keeps(1, 4);
    submit(1, 10, 1);
    for (int i = 0; i < 3; i++) {
        tick(0);
        struct sched_action sent = *find(SCHED_SEND);
        answer_cached(&sent, 0, i == 2);
    }
    CHECK_INT(find(SCHED_TOKEN)->finish, SCHED_LENGTH);
    submit(2, 10, 1);
    tick(0);
    struct sched_action sent = *find(SCHED_SEND);
    CHECK_INT(sent.step->n_tokens, 2); /* two pages of four are expected: no budget is wasted */
    CHECK_INT(sent.step->seqs[0].n_ahead, 8);
    answer_cached(&sent, 8, 1);
    CHECK_INT(find(SCHED_TOKEN)->n_cached, 8);
    finish();
}

TEST(sched_forgets_what_a_side_turns_out_not_to_have)
{
    begin(8);
    side_up_that_keeps(1, 16);
    for (uint64_t seq = 1; seq < 5; seq++) {
        submit(seq, 10, 1);
        tick(0);
        struct sched_action sent = *find(SCHED_SEND);
        CHECK_INT(sent.step->n_tokens, seq == 1 ? 10 : 2);
        bool is_gone = seq == 3;
        answer_cached(&sent, seq == 1 ? 0 : is_gone ? 4 : 8, !is_gone);
        if (!is_gone)
            continue;
        tick(0);
        CHECK_INT(find(SCHED_SEND)->step->seqs[0].position, 6);
        answer(5);
    }
    CHECK_INT(sched.n_running, 0);
    finish();
}

TEST(sched_prefers_the_side_that_has_the_beginning_unless_it_is_crowded)
{
    begin(32);
    side_up_that_keeps(1, 16);
    submit(1, 10, 1);
    tick(0);
    struct sched_action sent = *find(SCHED_SEND);
    answer_cached(&sent, 0, 1);
    side_up_that_keeps(2, 16);
    submit(2, 3, 50);
    tick(0);
    uint32_t other = find(SCHED_STARTED)->side;
    submit(3, 3, 50);
    tick(0);
    CHECK(find(SCHED_STARTED)->side != other); /* one on each */
    submit(4, 10, 20);
    submit(5, 10, 20);
    tick(0);
    CHECK_INT(count(SCHED_STARTED), 2);
    for (int i = 0; i < got.n; i++)
        if (got.items[i].kind == SCHED_STARTED)
            CHECK_INT(got.items[i].side, 1);
    for (uint64_t seq = 6; seq < 10; seq++)
        submit(seq, 10, 20);
    tick(0);
    CHECK(sched_side_seqs(&sched, 2) > 1);
    CHECK(sched_side_seqs(&sched, 1) > sched_side_seqs(&sched, 2));
    finish();
}

TEST(sched_lets_who_begins_alike_wait_for_the_first)
{
    begin(8);
    side_up_that_keeps(1, 6);
    submit(1, 10, 5);
    submit(2, 10, 5);
    tick(0);
    CHECK_INT(find(SCHED_SEND)->step->n_seqs, 1);
    struct sched_action sent = *find(SCHED_SEND);
    answer_cached(&sent, 0, 0);
    tick(0);
    sent = *find(SCHED_SEND);
    CHECK_INT(sent.step->n_seqs, 1);
    CHECK_INT(sent.step->n_tokens, 4);
    answer_cached(&sent, 0, 1);
    tick(0);
    const struct wire_step *m = find(SCHED_SEND)->step;
    CHECK_INT(m->n_seqs, 2);
    CHECK_INT(m->seqs[1].seq, 2);
    CHECK_INT(m->seqs[1].n_tokens, 2);
    finish();
}

TEST(sched_does_not_trust_a_side_that_has_more_than_there_is)
{
    begin(8);
    side_up_that_keeps(1, 4);
    submit(1, 10, 3);
    tick(0);
    struct sched_action sent = *find(SCHED_SEND);
    answer_cached(&sent, 10, 1);
    CHECK_INT(count(SCHED_TOKEN), 0);
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    finish();
}
