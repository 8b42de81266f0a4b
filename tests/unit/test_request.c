/* tests/unit/test_request.c - a request's steps, and what it keeps of its tokens. */
#include "coordinator/request.h"

#include "base/err.h"
#include "tests/lib/test.h"

static struct request r;

static void begin(void)
{
    request_init(&r, REQUEST_COMPLETION, 0x1234, 99);
    tokens_push(&r.prompt, 1);
    r.max_tokens = 5;
    stream_init(&r.text_of, NULL);
}

static bool token(int32_t id, enum sched_finish finish)
{
    struct sampled s = {.token = id, .logits_hash = (uint64_t)id * 10};
    return request_token(&r, &s, finish);
}

TEST(request_goes_from_received_to_done)
{
    begin();
    CHECK_STR(r.id, "cmpl-0000000000001234");
    CHECK_INT(r.state, REQUEST_RECEIVED);
    request_queued(&r);
    CHECK_INT(r.state, REQUEST_QUEUED);
    request_started(&r);
    CHECK_INT(r.state, REQUEST_PREFILL);
    CHECK(!token(7, SCHED_GOES_ON));
    CHECK_INT(r.state, REQUEST_DECODE);
    CHECK(token(8, SCHED_LENGTH));
    CHECK_INT(r.state, REQUEST_DONE);
    CHECK_INT(r.finish, SCHED_LENGTH);
    CHECK_INT(r.output.len, 2);
    CHECK(request_is_over(&r));
    request_fini(&r);
}

TEST(request_keeps_samples_only_when_asked)
{
    begin();
    request_queued(&r);
    request_started(&r);
    token(7, SCHED_GOES_ON);
    CHECK(r.samples == NULL);
    request_fini(&r);
    begin();
    r.sampling.logits_hash = true;
    request_queued(&r);
    request_started(&r);
    for (int i = 0; i < 100; i++)
        token(i, SCHED_GOES_ON);
    CHECK_INT(r.samples[99].logits_hash, 990);
    request_fini(&r);
}

TEST(request_fails_from_any_step_with_a_reason)
{
    begin();
    request_queued(&r);
    request_failed(&r, E_UNAVAILABLE, "node e1 is gone");
    CHECK_INT(r.state, REQUEST_FAILED);
    CHECK_STR(r.error, "node e1 is gone");
    request_fini(&r);
    begin();
    request_failed(&r, E_DEADLINE, "");
    CHECK_STR(r.error, "deadline exceeded");
    request_fini(&r);
}

static void finish_twice(void *ud)
{
    (void)ud;
    begin();
    request_queued(&r);
    request_started(&r);
    token(7, SCHED_STOP);
    token(8, SCHED_STOP);
}

TEST(request_ends_once)
{
    struct test_end end = test_run_apart(finish_twice, NULL);
    CHECK(end.signal != 0);
    CHECK_HAS(end.output, "REQUEST_DECODE");
}
