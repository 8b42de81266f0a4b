/* tests/unit/test_sched_heir.c - sequences leave a side that goes, without a pause; tests/sim/ plays
 * random histories of it. */
#include "tests/unit/sched_world.h"

/* The newest step of each side, as it was sent. */
static struct {
    uint64_t step; /* 0: none is in flight */
    uint32_t n_seqs, n_tokens;
    struct wire_step_seq seqs[8];
} steps[3];

static void pass(int64_t now_ns)
{
    tick(now_ns);
    for (int i = 0; i < got.n; i++) {
        const struct wire_step *s = got.items[i].step;
        if (got.items[i].kind != SCHED_SEND)
            continue;
        steps[got.items[i].side].step = s->step;
        steps[got.items[i].side].n_seqs = s->n_seqs;
        steps[got.items[i].side].n_tokens = s->n_tokens;
        memcpy(steps[got.items[i].side].seqs, s->seqs, s->n_seqs * sizeof *s->seqs);
    }
}

static void finish_step(uint32_t side, int32_t token)
{
    struct wire_step_sample samples[8];
    struct wire_step_reply reply = {.step = steps[side].step, .samples = samples};
    CHECK(reply.step != 0);
    for (uint32_t i = 0; i < steps[side].n_seqs; i++)
        if (steps[side].seqs[i].sample)
            samples[reply.n_samples++] =
                (struct wire_step_sample){.seq = steps[side].seqs[i].seq, .sampled.token = token};
    steps[side].step = 0;
    event(&(struct sched_event){
        .kind = SCHED_STEP_DONE, .side.id = side, .step = reply.step, .reply = &reply});
}

static void leave(uint32_t side)
{
    event(&(struct sched_event){.kind = SCHED_SIDE_LEAVING, .side.id = side});
}

/* Sequence 1 decodes on side 1, which is to go, and side 2 is there. */
static void begin_leaving(uint32_t n_prompt)
{
    memset(steps, 0, sizeof steps);
    begin(8);
    side_up(1, 100, 64, 8);
    submit(1, n_prompt, 20);
    pass(0);
    finish_step(1, 50);
    side_up(2, 100, 24, 8);
    leave(1);
    CHECK(sched_has_heirs(&sched, 1));
    pass(1);
    CHECK_INT(steps[1].seqs[0].position, n_prompt);
    CHECK_INT(steps[2].seqs[0].position, 0);
    CHECK_INT(count(SCHED_MOVED), 0);
}

static void check_goes_on_at(uint32_t position)
{
    CHECK_INT(sched_side_seqs(&sched, 1), 0);
    CHECK_INT(sched_side_seqs(&sched, 2), 1);
    pass(2);
    CHECK_INT(steps[1].step, 0);
    CHECK_INT(steps[2].n_tokens, 1);
    CHECK_INT(steps[2].seqs[0].position, position);
    CHECK(steps[2].seqs[0].sample);
    finish_step(2, 60);
    CHECK_INT(find(SCHED_TOKEN)->side, 2);
    finish();
}

TEST(sched_heir_is_first_with_the_next_token)
{
    begin_leaving(6);
    CHECK_INT(steps[2].n_tokens, 7);
    CHECK(steps[2].seqs[0].sample);
    finish_step(2, 51);
    CHECK_INT(find(SCHED_INHERITED)->side, 2);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 51);
    CHECK_INT(count(SCHED_RELEASE), 0); /* its step there is still in flight */
    finish_step(1, 51);
    CHECK_INT(count(SCHED_TOKEN), 0); /* that is known */
    CHECK_INT(find(SCHED_RELEASE)->side, 1);
    check_goes_on_at(7);
}

TEST(sched_heir_follows_when_the_old_side_is_first)
{
    begin_leaving(6);
    finish_step(1, 51);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 51);
    pass(2);
    CHECK_INT(steps[1].step, 0); /* the heir is about to take over */
    finish_step(2, 51);
    CHECK_INT(count(SCHED_TOKEN), 0);
    CHECK_INT(find(SCHED_INHERITED)->seq, 1);
    CHECK_INT(find(SCHED_RELEASE)->side, 1);
    check_goes_on_at(7);
}

TEST(sched_heir_is_fed_in_chunks_while_the_old_side_decodes)
{
    begin_leaving(40);
    int32_t next = 51;
    for (int i = 0; count(SCHED_INHERITED) == 0; i++) {
        CHECK(i < 4);
        if (steps[1].step) {
            finish_step(1, next++);
            CHECK_INT(count(SCHED_TOKEN), 1);
        }
        finish_step(2, next);
        if (count(SCHED_INHERITED) == 0)
            pass(2);
    }
    CHECK_INT(outputs[1].len, next - 50);
    check_goes_on_at(40 + (uint32_t)outputs[1].len - 1);
}

static const struct wire_step_seq *in_step(uint32_t side, uint64_t seq)
{
    for (uint32_t i = 0; steps[side].step != 0 && i < steps[side].n_seqs; i++)
        if (steps[side].seqs[i].seq == seq)
            return &steps[side].seqs[i];
    return NULL;
}

/* Two sequences on a side that leaves; the other side takes 24 rows at a time, so that the short one is
 * known there long before the other, of n_long. */
static void begin_leaving_two(uint32_t n_long)
{
    memset(steps, 0, sizeof steps);
    begin(8);
    side_up(1, 200, 512, 8);
    submit(1, 6, 100);
    submit(2, n_long, 100);
    pass(0);
    finish_step(1, 50);
    side_up(2, 200, 24, 8);
    leave(1);
}

/* One step of each side, the new one's first; which sequences it closes. */
static bool closes_in_step(uint64_t seq, int64_t now_ns)
{
    pass(now_ns);
    const struct wire_step_seq *q = in_step(2, seq);
    bool closes = q && q->sample;
    if (steps[2].step != 0)
        finish_step(2, 60);
    if (steps[1].step != 0)
        finish_step(1, 60);
    return closes;
}

TEST(sched_heirs_wait_for_others_that_have_far_to_go)
{
    begin_leaving_two(60);
    /* 7 and 17 of 61 rows, then 44 and one or two for the first, which could go with each of them. */
    for (int i = 0; i < 3; i++) {
        CHECK(!closes_in_step(1, 1 + i));
        CHECK_INT(sched_side_seqs(&sched, 1), 2);
    }
    /* Together, in a step of a few rows. */
    CHECK(closes_in_step(1, 4));
    CHECK_INT(sched_side_seqs(&sched, 1), 0);
    CHECK(steps[2].n_tokens < 8);
    finish();
}

TEST(sched_heirs_do_not_wait_for_ever)
{
    begin_leaving_two(500);
    int n = 0;
    while (!closes_in_step(1, 1 + n))
        CHECK(++n < 12);
    CHECK(n > 4); /* about 21 would be needed for the other one */
    CHECK_INT(sched_side_seqs(&sched, 1), 1);
    finish();
}

TEST(sched_heir_goes_on_from_where_it_is_when_the_old_side_dies)
{
    begin_leaving(40);
    event(&(struct sched_event){.kind = SCHED_SIDE_DOWN, .side.id = 1, .code = E_UNAVAILABLE});
    CHECK_INT(find(SCHED_INHERITED)->side, 2);
    finish_step(2, 51);
    pass(2);
    CHECK_INT(steps[2].seqs[0].position, 24);
    CHECK_INT(steps[2].n_tokens, 17);
    CHECK(steps[2].seqs[0].sample);
    finish_step(2, 51);
    CHECK_INT(find(SCHED_TOKEN)->sampled->token, 51);
    finish();
}

TEST(sched_heir_that_fails_leaves_the_sequence_where_it_is)
{
    begin_leaving(40);
    event(&(struct sched_event){.kind = SCHED_SIDE_DOWN, .side.id = 2, .code = E_UNAVAILABLE});
    CHECK(!sched_has_heirs(&sched, 1));
    finish_step(1, 51);
    CHECK_INT(find(SCHED_TOKEN)->finish, SCHED_GOES_ON);
    pass(2);
    CHECK_INT(steps[1].seqs[0].position, 41);
    finish();
}

TEST(sched_heir_ends_with_its_sequence)
{
    begin_leaving(40);
    event(&(struct sched_event){.kind = SCHED_CANCEL, .seq = 1});
    CHECK_INT(got.n, 0);
    finish_step(2, 51);
    CHECK_INT(find(SCHED_RELEASE)->side, 2);
    finish_step(1, 51);
    CHECK_INT(find(SCHED_RELEASE)->side, 1);
    CHECK_INT(sched.n_running, 0);
    pass(2);
    CHECK_INT(got.n, 0);
    finish();
}

TEST(sched_gives_a_leaving_side_nothing_new)
{
    begin_leaving(6);
    submit(2, 6, 5);
    finish_step(1, 51);
    finish_step(2, 51);
    pass(2);
    CHECK_INT(find(SCHED_STARTED)->side, 2);
    finish();
}
