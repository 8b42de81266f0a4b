/* tests/unit/test_sched.c - the timetable, one story each; tests/sim/ plays random ones. */
#include "tests/unit/sched_world.h"

TEST(sched_runs_a_prompt_in_chunks_and_then_token_by_token)
{
    begin(8);
    side_up(1, 100, 4, 8);
    submit(7, 10, 3);
    tick(0);
    CHECK(find(SCHED_STARTED) != NULL);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_tokens, 4);
    CHECK_INT(s->seqs[0].position, 0);
    CHECK_INT(s->seqs[0].n_prompt, 10);
    CHECK(s->seqs[0].sampling == &SAMPLING);
    CHECK(!s->seqs[0].sample);
    CHECK_INT(s->tokens[3], 13);
    answer(0);
    CHECK_INT(got.n, 0);
    tick(0);
    s = find(SCHED_SEND)->step;
    CHECK_INT(s->seqs[0].position, 4);
    CHECK(s->seqs[0].sampling == NULL);
    answer(0);
    tick(0);
    s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_tokens, 2);
    CHECK(s->seqs[0].sample);
    answer(50);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 50);
    CHECK_INT(find(SCHED_TOKEN)->finish, SCHED_GOES_ON);
    tick(0);
    s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_tokens, 1);
    CHECK_INT(s->tokens[0], 50);
    CHECK_INT(s->seqs[0].position, 10);
    answer(51);
    tick(0);
    answer(52);
    CHECK_INT(find(SCHED_TOKEN)->finish, SCHED_LENGTH);
    CHECK_INT(find(SCHED_RELEASE)->seq, 7);
    tick(0);
    CHECK_INT(got.n, 0);
    CHECK_INT(sched.n_running, 0);
    finish();
}

TEST(sched_stops_at_the_end_of_sequence)
{
    begin(8);
    side_up(1, 100, 16, 8);
    submit(7, 3, 10);
    tick(0);
    answer(99);
    CHECK_INT(find(SCHED_TOKEN)->finish, SCHED_STOP);
    CHECK_INT(count(SCHED_RELEASE), 1);
    finish();
}

TEST(sched_mixes_decoding_and_prompts_in_one_step)
{
    begin(8);
    side_up(1, 100, 8, 8);
    submit(1, 3, 10);
    tick(0);
    answer(5);
    submit(2, 10, 10);
    tick(0);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_seqs, 2);
    CHECK_INT(s->seqs[0].seq, 1);
    CHECK_INT(s->seqs[0].n_tokens, 1);
    CHECK_INT(s->seqs[1].seq, 2);
    CHECK_INT(s->seqs[1].n_tokens, 7);
    finish();
}

TEST(sched_has_one_step_in_flight_per_side)
{
    begin(8);
    side_up(1, 100, 8, 8);
    submit(1, 3, 10);
    tick(0);
    CHECK_INT(count(SCHED_SEND), 1);
    submit(2, 3, 10);
    tick(0);
    CHECK_INT(count(SCHED_SEND), 0);
    CHECK_INT(count(SCHED_STARTED), 1);
    finish();
}

TEST(sched_lets_the_youngest_make_place_when_pages_run_out)
{
    begin(8);
    side_up(1, 4, 16, 8); /* 16 tokens */
    submit(1, 3, 10);     /* 12 tokens: 3 pages, 1 at first */
    submit(2, 3, 10);
    submit(3, 10, 4); /* 3 pages at once, and one more to go on */
    submit(4, 1, 1);  /* fits, but nobody overtakes */
    tick(0);
    CHECK_INT(count(SCHED_STARTED), 2);
    int fed_again = 0;
    for (int i = 0; i < 60 && sched.n_running + sched.n_queued > 0; i++) {
        answer(5);
        tick(0);
        fed_again += count(SCHED_MOVED);
        CHECK(count(SCHED_MOVED) == 0 || find(SCHED_MOVED)->seq == 2);
    }
    CHECK_INT(sched.n_running + sched.n_queued, 0);
    CHECK_INT(sched.n_preempted, 1);
    CHECK_INT(fed_again, 1);
    CHECK_INT(outputs[1].len, 10);
    CHECK_INT(outputs[2].len, 10);
    CHECK_INT(outputs[3].len, 4);
    finish();
}

/* One that came from a key, of a class. */
static void submit_as(uint64_t seq, uint64_t key, uint32_t share, int priority, int64_t now_ns)
{
    event(&(struct sched_event){.kind = SCHED_SUBMIT,
                                .now_ns = now_ns,
                                .submit = {.seq = seq,
                                           .prompt = PROMPT,
                                           .output = &outputs[seq],
                                           .n_prompt = 8,
                                           .max_tokens = 4,
                                           .key = key,
                                           .share = share,
                                           .priority = priority,
                                           .sampling = &SAMPLING,
                                           .deadline_ns = INT64_MAX}});
}

TEST(sched_serves_higher_classes_first_and_raises_those_that_wait)
{
    begin(8);
    sched.config.aging_ns = 100;
    side_up(1, 100, 8, 1);
    submit_as(1, 0, 1, 5, 0);
    tick(0);
    answer(5);
    submit_as(2, 0, 1, 2, 0);
    submit_as(3, 0, 1, 5, 0);
    submit_as(4, 0, 1, 3, 250); /* not in time to overtake what has waited */
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 1});
    tick(0);
    CHECK_INT(find(SCHED_STARTED)->seq, 3);
    answer(5);
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 3});
    tick(260);
    CHECK_INT(find(SCHED_STARTED)->seq, 2);
    finish();
}

TEST(sched_lets_a_higher_class_take_the_place_of_a_lower_one)
{
    begin(8);
    side_up(1, 100, 8, 1);
    submit_as(1, 0, 1, 4, 0);
    tick(0);
    answer(5);
    submit_as(2, 0, 1, 5, 0);
    tick(0);
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    CHECK_INT(find(SCHED_STARTED)->seq, 2);
    for (int i = 0; i < 4; i++) {
        answer(6);
        tick(0);
    }
    CHECK_INT(find(SCHED_MOVED)->seq, 1);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_tokens, 8); /* of nine that are known: the budget */
    finish();
}

TEST(sched_shares_rows_between_keys)
{
    begin(100);
    side_up(1, 100, 16, 1);
    int started[2] = {0};
    bool waits[9] = {0};
    uint64_t last = 0;
    /* Key 1 has the first four sequences; key 2 the others, and twice the share. */
    for (int i = 0; i < 60; i++) {
        if (last) {
            answer(5);
            event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = last});
        }
        for (uint64_t seq = 1; seq <= 8; seq++)
            if (!waits[seq]) {
                outputs[seq].len = 0;
                submit_as(seq, seq <= 4 ? 1 : 2, seq <= 4 ? 1 : 2, 5, 0);
                waits[seq] = true;
            }
        tick(0);
        last = find(SCHED_STARTED)->seq;
        waits[last] = false;
        started[last > 4]++;
    }
    CHECK_INT(started[0] + started[1], 60);
    CHECK(started[1] >= 38 && started[1] <= 42);
    finish();
}

TEST(sched_says_no_to_what_would_wait_too_long)
{
    begin(100);
    sched.config.queue_ns = 25 * 1000000000LL;
    side_up(1, 100, 8, 1);
    for (uint64_t i = 1; i < 3; i++) { /* each takes ten seconds */
        int64_t now_ns = (int64_t)i * 10000000000LL;
        submit_as(i, 0, 1, 5, now_ns);
        tick(now_ns);
        for (int k = 0; k < 4; k++) {
            const struct sched_action *a = find(SCHED_SEND);
            struct wire_step_sample sample = {.seq = i, .sampled.token = 5};
            struct wire_step_reply reply = {
                .step = a->step->step, .n_samples = 1, .samples = &sample};
            event(&(struct sched_event){.kind = SCHED_STEP_DONE,
                                        .now_ns = k < 3 ? now_ns : now_ns + 10000000000LL,
                                        .side.id = 1,
                                        .step = reply.step,
                                        .reply = &reply});
            tick(now_ns);
        }
        CHECK_INT(sched.n_running, 0);
    }
    int64_t now_ns = 30000000000LL;
    submit_as(3, 0, 1, 5, now_ns);
    tick(now_ns);
    submit_as(4, 0, 1, 5, now_ns);
    submit_as(5, 0, 1, 5, now_ns);
    CHECK_INT(got.n, 0);
    submit_as(6, 0, 1, 5, now_ns); /* two before it, and the one that runs */
    CHECK_INT(find(SCHED_FAIL)->code, E_BUSY);
    CHECK_INT(find(SCHED_FAIL)->retry_s, 6);
    CHECK_HAS(find(SCHED_FAIL)->text, "about 30 s");
    submit_as(7, 0, 1, 6, now_ns); /* a higher class would not wait */
    CHECK_INT(got.n, 0);
    finish();
}

TEST(sched_does_not_let_one_key_fill_the_queue)
{
    begin(4);
    side_up(1, 100, 8, 1);
    submit_as(1, 7, 1, 5, 0);
    tick(0);
    for (uint64_t i = 2; i < 5; i++)
        submit_as(i, 7, 1, 5, 0);
    CHECK_INT(got.n, 0);
    submit_as(5, 7, 1, 5, 0);
    CHECK_INT(find(SCHED_FAIL)->code, E_BUSY);
    CHECK(find(SCHED_FAIL)->retry_s >= 1);
    submit_as(6, 8, 1, 5, 0);
    CHECK_INT(got.n, 0);
    finish();
}

TEST(sched_keeps_to_its_budget_of_rows)
{
    begin(8);
    sched.config.step_rows = 6;
    sched.config.prompt_rows = 2;
    side_up(1, 100, 16, 8);
    submit(1, 10, 10);
    tick(0);
    CHECK_INT(find(SCHED_SEND)->step->n_tokens, 6); /* nobody decodes */
    answer(5);
    tick(0);
    answer(5);
    submit(2, 10, 10);
    tick(0);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_tokens, 3);
    CHECK_INT(s->seqs[1].n_tokens, 2);
    finish();
}

TEST(sched_refuses_what_can_never_fit)
{
    begin(8);
    side_up(1, 4, 16, 8);
    CHECK_INT(sched_capacity_tokens(&sched), 16);
    submit(1, 10, 8); /* 17 tokens are fed */
    CHECK_INT(find(SCHED_FAIL)->code, E_RANGE);
    CHECK_HAS(find(SCHED_FAIL)->text, "16 tokens");
    submit(2, 10, 7);
    CHECK_INT(got.n, 0);
    finish();
}

TEST(sched_answers_a_full_queue)
{
    begin(2);
    side_up(1, 100, 8, 1);
    submit(1, 3, 10);
    tick(0);
    submit(2, 3, 10);
    submit(3, 3, 10);
    CHECK_INT(got.n, 0);
    submit(4, 3, 10);
    CHECK_INT(find(SCHED_FAIL)->code, E_BUSY);
    CHECK_INT(find(SCHED_FAIL)->seq, 4);
    finish();
}

TEST(sched_refuses_without_a_side)
{
    begin(2);
    submit(1, 3, 10);
    CHECK_INT(find(SCHED_FAIL)->code, E_UNAVAILABLE);
    finish();
}

/* Fails the step in `got`. */
static void break_step(int64_t now_ns, int code, const char *text)
{
    const struct sched_action *a = find(SCHED_SEND);
    CHECK(a != NULL);
    event(&(struct sched_event){.kind = SCHED_STEP_FAILED,
                                .now_ns = now_ns,
                                .side.id = a->side,
                                .step = a->step->step,
                                .code = code,
                                .text = text});
}

/* Ticks until something is sent; says when. */
static int64_t tick_until_sent(int64_t now_ns)
{
    for (int i = 0; i < 1000; i++, now_ns += 1000000) {
        tick(now_ns);
        if (find(SCHED_SEND))
            return now_ns;
    }
    test_fail(__FILE__, __LINE__, "nothing is sent");
}

static void submit_late(uint64_t seq, uint32_t n_prompt, uint32_t max_tokens)
{
    event(&(struct sched_event){.kind = SCHED_SUBMIT,
                                .submit = {.seq = seq,
                                           .prompt = PROMPT,
                                           .output = &outputs[seq],
                                           .n_prompt = n_prompt,
                                           .max_tokens = max_tokens,
                                           .sampling = &SAMPLING,
                                           .deadline_ns = INT64_MAX}});
}

TEST(sched_tries_a_step_again_that_may_succeed_later)
{
    begin(8);
    sched.config.patience_ns = 1000000000;
    side_up(1, 100, 8, 8);
    submit_late(1, 3, 10);
    tick(0);
    answer(5);
    tick(0);
    uint64_t step = find(SCHED_SEND)->step->step;
    break_step(0, E_UNAVAILABLE, "expert node e1 is gone");
    CHECK_INT(got.n, 0); /* nobody hears of it */
    tick(0);
    CHECK_INT(got.n, 0); /* and not at once */
    int64_t now_ns = tick_until_sent(0);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK(s->step > step);
    CHECK_INT(s->seqs[0].position, 3);
    CHECK_INT(s->tokens[0], 5);
    break_step(now_ns, E_UNAVAILABLE, "expert node e1 is gone");
    int64_t later_ns = tick_until_sent(now_ns);
    CHECK(later_ns - now_ns > now_ns); /* with growing pauses */
    answer(6);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 6);
    finish();
}

TEST(sched_gives_up_on_steps_that_never_succeed)
{
    begin(8);
    sched.config.patience_ns = 900000000;
    side_up(1, 100, 8, 8);
    submit_late(1, 3, 10);
    int n = 0;
    int64_t now_ns = 0;
    for (; now_ns <= 900000000; now_ns += 1000000) {
        tick(now_ns);
        if (find(SCHED_FAIL))
            break;
        if (find(SCHED_SEND)) {
            break_step(now_ns, E_UNAVAILABLE, "expert node e1 is gone");
            n++;
        }
    }
    CHECK_INT(now_ns, 900000000);
    CHECK(n > 5 && n < 20); /* pauses that grow */
    const struct sched_action *failed = find(SCHED_FAIL);
    CHECK(failed);
    CHECK_INT(failed->code, E_UNAVAILABLE);
    CHECK_HAS(failed->text, "expert node e1 is gone");
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    CHECK_INT(sched.n_running, 0);
    finish();
}

TEST(sched_fails_the_sequences_of_a_step_that_is_refused)
{
    begin(8);
    side_up(1, 100, 8, 8);
    submit(1, 3, 10);
    tick(0);
    const struct sched_action sent = *find(SCHED_SEND);
    uint64_t step = sent.step->step;
    submit(2, 3, 10);
    event(&(struct sched_event){.kind = SCHED_STEP_FAILED,
                                .side.id = 1,
                                .step = step,
                                .code = E_INVALID,
                                .text = "token 7 of 5"});
    CHECK_INT(count(SCHED_FAIL), 1);
    CHECK_INT(find(SCHED_FAIL)->seq, 1);
    CHECK_STR(find(SCHED_FAIL)->text, "token 7 of 5");
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    finish();
}

TEST(sched_replays_what_does_not_stand_where_it_should)
{
    begin(8);
    sched.config.patience_ns = INT64_MAX;
    side_up(1, 100, 8, 8);
    submit_late(1, 3, 10);
    tick(0);
    answer(5);
    tick(0);
    answer(6);
    tick(0);
    break_step(0, E_PRECONDITION, "position 4, the KV cache ends at 5");
    CHECK_INT(count(SCHED_FAIL), 0);
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    tick_until_sent(0);
    CHECK_INT(count(SCHED_STARTED), 0);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->seqs[0].position, 0);
    CHECK_INT(s->seqs[0].n_prompt, 3); /* not 5: penalties count the output only */
    CHECK(s->seqs[0].sampling == &SAMPLING);
    CHECK(s->seqs[0].sample);
    CHECK_INT(s->n_tokens, 5);
    static const int32_t want[] = {10, 11, 12, 5, 6};
    CHECK_BYTES(s->tokens, want, sizeof want);
    answer(7);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 7);
    tick_until_sent(0);
    s = find(SCHED_SEND)->step;
    CHECK_INT(s->seqs[0].position, 5);
    CHECK_INT(s->tokens[0], 7);
    finish();
}

TEST(sched_does_not_replay_for_ever)
{
    begin(8);
    sched.config.patience_ns = INT64_MAX;
    side_up(1, 100, 8, 8);
    submit_late(1, 3, 10);
    int64_t now_ns = 0;
    int n = 0;
    for (; n < 100; n++) {
        now_ns = tick_until_sent(now_ns);
        break_step(now_ns, E_PRECONDITION, "position 0");
        if (find(SCHED_FAIL))
            break;
    }
    CHECK_INT(n, 8);
    CHECK_INT(find(SCHED_FAIL)->code, E_PRECONDITION);
    finish();
}

/* What was sent to that side; 0: nothing. */
static uint64_t step_to(uint32_t side)
{
    for (int i = 0; i < got.n; i++)
        if (got.items[i].kind == SCHED_SEND && got.items[i].side == side)
            return got.items[i].step->step;
    return 0;
}

TEST(sched_leaves_a_side_that_fails_while_another_does_well)
{
    begin(8);
    sched.config.patience_ns = INT64_MAX;
    side_up(1, 100, 8, 8);
    submit_late(1, 3, 10);
    tick(0);
    struct sched_event broken = {
        .kind = SCHED_STEP_FAILED, .side.id = 1, .step = step_to(1), .code = E_UNAVAILABLE};
    side_up(2, 100, 8, 8);
    submit_late(2, 3, 10);
    struct wire_step_sample sample = {.seq = 2, .sampled.token = 5};
    struct wire_step_reply reply = {.n_samples = 1, .samples = &sample};
    struct sched_event done = {.kind = SCHED_STEP_DONE, .side.id = 2, .reply = &reply};
    event(&broken);
    CHECK_INT(got.n, 0);
    int n_failures = 1;
    for (int64_t now_ns = 1; n_failures < 3; now_ns += 1000000) {
        tick(now_ns);
        broken.step = step_to(1);
        done.step = reply.step = step_to(2);
        broken.now_ns = done.now_ns = now_ns;
        if (done.step)
            event(&done);
        if (!broken.step)
            continue;
        event(&broken);
        n_failures++;
        CHECK_INT(count(SCHED_RELEASE), n_failures == 3);
    }
    tick(10000000);
    CHECK_INT(find(SCHED_MOVED)->seq, 1);
    CHECK_INT(find(SCHED_MOVED)->side, 2);
    finish();
}

TEST(sched_spreads_by_load_memory_and_speed)
{
    begin(8);
    side_up(1, 100, 8, 8);
    side_up(2, 100, 8, 8);
    submit(1, 3, 10);
    submit(2, 3, 10);
    submit(3, 10, 90); /* a quarter of the memory of the side that gets it */
    submit(4, 3, 10);
    tick(0);
    CHECK_INT(sched_side_seqs(&sched, 1), 2);
    CHECK_INT(sched_side_seqs(&sched, 2), 2);
    /* Equal numbers now; the one with more memory left gets the next. */
    const struct sched_action *third = NULL;
    for (int i = 0; i < got.n; i++)
        if (got.items[i].kind == SCHED_STARTED && got.items[i].seq == 3)
            third = &got.items[i];
    CHECK(third != NULL);
    uint32_t fuller = third->side;
    submit(5, 3, 10);
    tick(0);
    CHECK_INT(find(SCHED_STARTED)->seq, 5);
    CHECK(find(SCHED_STARTED)->side != fuller);
    finish();
}

TEST(sched_gives_a_slow_side_less)
{
    begin(64);
    side_up(1, 1000, 8, 32);
    submit(1, 1, 100);
    tick(0);
    const struct sched_action *a = find(SCHED_SEND);
    struct wire_step_sample sample = {.seq = 1, .sampled.token = 5};
    struct wire_step_reply reply = {.step = a->step->step, .n_samples = 1, .samples = &sample};
    struct sched_event done = {
        .kind = SCHED_STEP_DONE, .side.id = 1, .step = reply.step, .reply = &reply};
    done.now_ns = 400; /* below a microsecond nothing is slow */
    event(&done);
    side_up(2, 1000, 8, 32);
    sched.config.patience_ns = INT64_MAX;
    submit(2, 1, 100); /* on 2, the empty one */
    tick(400);
    for (int i = 0; i < got.n; i++)
        if (got.items[i].kind == SCHED_SEND && got.items[i].side == 2) {
            sample.seq = 2;
            reply.step = got.items[i].step->step;
        }
    done.side.id = 2;
    done.step = reply.step;
    done.now_ns = 9400; /* 9 us against less than one */
    event(&done);
    uint32_t before = sched_side_seqs(&sched, 2);
    for (uint64_t seq = 3; seq < 9; seq++)
        submit_late(seq, 1, 100);
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 1});
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 2});
    tick(9400);
    CHECK_INT(before, 1);
    CHECK(sched_side_seqs(&sched, 1) > 2 * sched_side_seqs(&sched, 2));
    finish();
}

TEST(sched_keeps_the_pages_of_a_cancelled_sequence_until_its_step_is_over)
{
    begin(8);
    side_up(1, 2, 8, 8);
    submit(1, 3, 6);
    tick(0);
    const struct sched_action sent = *find(SCHED_SEND);
    uint64_t step = sent.step->step;
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 1});
    CHECK_INT(got.n, 0);
    submit(2, 3, 6);
    tick(0);
    CHECK_INT(got.n, 0);
    struct wire_step_sample sample = {.seq = 1, .sampled.token = 5};
    struct wire_step_reply reply = {.step = step, .n_samples = 1, .samples = &sample};
    event(&(struct sched_event){
        .kind = SCHED_STEP_DONE, .side.id = 1, .step = step, .reply = &reply});
    CHECK_INT(got.n, 1);
    CHECK_INT(find(SCHED_RELEASE)->seq, 1);
    tick(0);
    CHECK_INT(find(SCHED_SEND)->step->seqs[0].seq, 2);
    finish();
}

TEST(sched_does_not_trust_an_answer_that_does_not_fit)
{
    begin(8);
    side_up(1, 100, 8, 8);
    submit(1, 3, 10);
    tick(0);
    uint64_t step = find(SCHED_SEND)->step->step;
    struct wire_step_sample sample = {.seq = 2, .sampled.token = 5};
    struct wire_step_reply reply = {.step = step, .n_samples = 1, .samples = &sample};
    struct sched_event e = {
        .kind = SCHED_STEP_DONE, .side.id = 1, .step = step + 1, .reply = &reply};
    event(&e);
    CHECK_INT(got.n, 0); /* another step's: nobody's */
    e.step = step;
    event(&e);
    CHECK_INT(count(SCHED_TOKEN), 0);
    CHECK_INT(find(SCHED_RELEASE)->seq, 1); /* it is replayed */
    CHECK_INT(sched.n_running, 1);
    finish();
}

TEST(sched_fails_one_sequence_with_unusable_output_alone)
{
    begin(8);
    side_up(1, 100, 8, 8);
    submit(1, 3, 10);
    submit(2, 3, 10);
    tick(0);
    uint64_t step = find(SCHED_SEND)->step->step;
    struct wire_step_sample samples[] = {{.seq = 1, .code = E_CORRUPT},
                                         {.seq = 2, .sampled.token = 5}};
    struct wire_step_reply reply = {.step = step, .n_samples = 2, .samples = samples};
    event(&(struct sched_event){
        .kind = SCHED_STEP_DONE, .side.id = 1, .step = step, .reply = &reply});
    CHECK_INT(find(SCHED_FAIL)->seq, 1);
    CHECK_INT(find(SCHED_TOKEN)->seq, 2);
    CHECK_INT(sched.n_running, 1);
    finish();
}

TEST(sched_fails_what_is_too_late_wherever_it_is)
{
    begin(8);
    side_up(1, 100, 8, 1);
    submit(1, 3, 10);
    submit(2, 3, 10);
    tick(0);
    tick(999);
    CHECK_INT(got.n, 0);
    tick(1000);
    CHECK_INT(count(SCHED_FAIL), 2);
    CHECK_INT(got.items[0].code, E_DEADLINE);
    CHECK_INT(sched.n_running + sched.n_queued, 0);
    finish();
}

TEST(sched_replays_the_sequences_of_a_side_that_is_gone)
{
    begin(8);
    side_up(1, 100, 8, 1);
    side_up(2, 200, 8, 2);
    submit(1, 3, 10); /* on 2, the roomier */
    tick(0);
    CHECK_INT(find(SCHED_STARTED)->side, 2);
    answer(5);
    submit(2, 3, 10); /* on 1 */
    tick(0);
    submit(3, 3, 10); /* on 2 */
    submit(4, 3, 10); /* waits */
    tick(0);
    CHECK_INT(sched.n_queued, 1);
    struct sched_event down = {
        .kind = SCHED_SIDE_DOWN, .side.id = 1, .code = E_UNAVAILABLE, .text = "gone"};
    event(&down);
    CHECK_INT(got.n, 0); /* there is nobody to be told anything */
    tick(0);
    CHECK_INT(got.n, 0); /* 2 is full */
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 3});
    down.side.id = 2;
    event(&down);
    CHECK_INT(got.n, 0);
    side_up(3, 100, 8, 2);
    tick(0);
    CHECK_INT(count(SCHED_MOVED), 2); /* before the one that waits */
    CHECK_INT(count(SCHED_STARTED), 0);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_seqs, 2);
    CHECK_INT(s->seqs[0].seq, 1);
    CHECK_INT(s->seqs[0].n_tokens, 4);
    CHECK_INT(s->seqs[0].n_prompt, 3);
    CHECK_INT(s->tokens[3], 5);
    CHECK_INT(s->seqs[1].seq, 2);
    CHECK_INT(s->seqs[1].n_tokens, 3);
    finish();
}

TEST(sched_waits_for_a_side_as_long_as_its_patience)
{
    begin(8);
    side_up(1, 100, 8, 1);
    submit(1, 3, 10);
    submit(2, 3, 10);
    tick(0);
    event(&(struct sched_event){
        .kind = SCHED_SIDE_DOWN, .side.id = 1, .code = E_UNAVAILABLE, .text = "its host burns"});
    tick(10);
    tick(10 + PATIENCE_NS - 1);
    CHECK_INT(got.n, 0);
    submit(3, 3, 10); /* whoever comes now is told at once */
    CHECK_INT(find(SCHED_FAIL)->seq, 3);
    tick(10 + PATIENCE_NS);
    CHECK_INT(count(SCHED_FAIL), 2);
    CHECK_INT(got.items[0].code, E_UNAVAILABLE);
    CHECK_HAS(got.items[0].text, "its host burns");
    CHECK_INT(sched.n_running + sched.n_queued, 0);
    finish();
}

TEST(sched_resumes_what_an_earlier_coordinator_began)
{
    begin(0); /* no queue: it was admitted before */
    tokens_push(&outputs[1], 5);
    tokens_push(&outputs[1], 6);
    event(&(struct sched_event){.kind = SCHED_SUBMIT,
                                .submit = {.seq = 1,
                                           .prompt = PROMPT,
                                           .output = &outputs[1],
                                           .is_resumed = true,
                                           .n_prompt = 3,
                                           .max_tokens = 3,
                                           .sampling = &SAMPLING,
                                           .deadline_ns = 10 * PATIENCE_NS}});
    tick(9 * PATIENCE_NS); /* nobody has joined yet */
    CHECK_INT(got.n, 0);
    side_up(1, 100, 8, 1);
    tick(9 * PATIENCE_NS);
    CHECK_INT(count(SCHED_STARTED), 1);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_tokens, 5);
    CHECK_INT(s->tokens[4], 6);
    answer(7);
    CHECK_INT(find(SCHED_TOKEN)->finish, SCHED_LENGTH); /* the third of three */
    finish();
}

TEST(sched_takes_turns_when_there_are_more_sequences_than_rows)
{
    begin(8);
    side_up(1, 100, 2, 8);
    for (uint64_t i = 1; i <= 3; i++) {
        submit(i, 1, 50);
        tick(0);
        answer(5);
    }
    int served[4] = {0};
    for (int i = 0; i < 30; i++) {
        tick(0);
        const struct wire_step *s = find(SCHED_SEND)->step;
        for (uint32_t k = 0; k < s->n_seqs; k++)
            served[s->seqs[k].seq]++;
        answer(5);
    }
    CHECK_INT(served[1], 20);
    CHECK_INT(served[2], 20);
    CHECK_INT(served[3], 20);
    finish();
}

TEST(sched_lets_prompts_in_although_every_row_could_decode)
{
    begin(8);
    side_up(1, 100, 2, 8);
    submit(1, 1, 50);
    tick(0);
    answer(5);
    submit(2, 1, 50);
    tick(0);
    answer(5);
    submit(3, 2, 50);
    tick(0);
    const struct wire_step *s = find(SCHED_SEND)->step;
    CHECK_INT(s->n_seqs, 2);
    CHECK_INT(s->seqs[1].seq, 3);
    finish();
}

/* What was let in because of borrowed pages goes on elsewhere when they are gone. */
TEST(sched_follows_what_a_side_has_borrowed)
{
    begin(8);
    side_up(1, 3, 16, 8);
    side_up(2, 8, 16, 8);
    submit(1, 10, 4); /* four pages in its life */
    tick(0);
    CHECK_INT(find(SCHED_STARTED)->side, 2);
    answer(50);
    side_pages(1, 20);
    CHECK_INT(sched_capacity_tokens(&sched), 80);
    side_pages(2, 3);
    tick(0);
    CHECK_INT(find(SCHED_RELEASE)->side, 2);
    CHECK_INT(find(SCHED_MOVED)->side, 1);
    CHECK_INT(find(SCHED_SEND)->side, 1);
    answer(51);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 51);
    submit(2, 40, 40);
    CHECK(!find(SCHED_FAIL));
    submit(3, 40, 42);
    CHECK_INT(find(SCHED_FAIL)->code, E_RANGE);
    finish();
}

TEST(sched_takes_pages_away_between_steps_from_the_last_in_line)
{
    begin(8);
    side_up(1, 20, 16, 8);
    submit(1, 4, 5);
    submit(2, 4, 5);
    submit(3, 4, 5);
    tick(0);
    CHECK_INT(count(SCHED_STARTED), 3);
    struct sched_actions in_flight = got;
    got = (struct sched_actions){0};
    side_pages(1, 2); /* two for each life */
    CHECK_INT(count(SCHED_RELEASE), 0);
    tick(0);
    CHECK_INT(count(SCHED_RELEASE), 0);
    sched_actions_fini(&got);
    got = in_flight;
    answer(50);
    tick(0);
    CHECK_INT(count(SCHED_RELEASE), 2);
    CHECK_INT(got.items[0].seq, 3);
    CHECK_INT(sched_side_seqs(&sched, 1), 1);
    CHECK_INT(find(SCHED_SEND)->step->seqs[0].seq, 1);
    side_pages(77, 5); /* nobody's */
    side_pages(1, 0);
    finish();
}

TEST(sched_fails_what_no_side_can_hold_any_more)
{
    begin(8);
    side_up(1, 20, 16, 8);
    submit(1, 10, 20);
    tick(0);
    answer(50);
    side_pages(1, 3);
    tick(10);
    CHECK_INT(count(SCHED_RELEASE), 1);
    CHECK(!find(SCHED_FAIL) && !find(SCHED_SEND));
    tick(9 + PATIENCE_NS);
    CHECK(!find(SCHED_FAIL));
    side_pages(1, 20); /* in time */
    tick(11 + PATIENCE_NS);
    CHECK_INT(find(SCHED_MOVED)->side, 1);
    answer(51);
    side_pages(1, 3);
    tick(12 + PATIENCE_NS);
    tick(13 + PATIENCE_NS);
    tick(13 + 2 * PATIENCE_NS);
    CHECK_INT(find(SCHED_FAIL)->code, E_UNAVAILABLE);
    CHECK_HAS(find(SCHED_FAIL)->text, "could hold");
    finish();
}
