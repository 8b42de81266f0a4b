/* tests/unit/test_token_log.c - records come back as they were written; cut or damaged ones do not
 * come back as something else than a record. */
#include "coordinator/token_log.h"

#include "tests/lib/test.h"

typedef bool read_any(struct str payload);

static bool read_request(struct str p)
{
    struct token_log_request r;
    return token_log_read_request(p, &r);
}

static bool read_token(struct str p)
{
    struct token_log_token t;
    bool good = token_log_read_token(p, &t);
    CHECK(!good || (t.sampled.n_top >= 0 && t.sampled.n_top <= SAMPLING_MAX_TOP &&
                    t.sampled.token >= 0 && t.finish <= SCHED_LENGTH));
    return good;
}

static bool read_end(struct str p)
{
    struct token_log_end e;
    bool good = token_log_read_end(p, &e);
    CHECK(!good || (e.outcome <= TOKEN_LOG_FORGOTTEN && e.code <= 0));
    return good;
}

static bool read_model(struct str p)
{
    struct token_log_model m;
    return token_log_read_model(p, &m);
}

/* Every prefix is refused (but the record of an earlier version, if there is one), in a block of its own
 * size so that reading too far shows; changed bytes are survived. */
static void damage_but(const struct buf *record, size_t earlier_bytes, read_any *read)
{
    struct rng r = test_rng();
    CHECK(read(buf_str(record)));
    for (size_t n = 0; n < record->len; n++) {
        struct buf part = {0};
        buf_append(&part, record->data, n);
        struct str exact = {part.data ? part.data : "", n};
        CHECK(read(exact) == (n > 0 && n == earlier_bytes));
        buf_fini(&part);
    }
    for (int i = 0; i < 2000; i++) {
        struct buf bad = {0};
        buf_append_str(&bad, buf_str(record));
        for (int k = 0; k < 3; k++)
            bad.data[rng_below(&r, bad.len)] = (char)rng_next(&r);
        read(buf_str(&bad));
        buf_fini(&bad);
    }
}

static void damage(const struct buf *record, read_any *read)
{
    damage_but(record, 0, read);
}

TEST(token_log_request_comes_back)
{
    struct token_log_request in = {.seq = 0x1122334455667788u,
                                   .owner = 7,
                                   .kind = REQUEST_CHAT,
                                   .created_s = 1700000000,
                                   .seed = UINT64_MAX,
                                   .prompt_hash = 99,
                                   .max_tokens = 4096,
                                   .key = STR("a key"),
                                   .body = STR("{\"messages\":[]}")};
    struct token_log_request out;
    struct buf record = {0};
    token_log_write_request(&in, &record);
    CHECK(token_log_read_request(buf_str(&record), &out));
    CHECK(out.seq == in.seq && out.owner == 7 && out.kind == REQUEST_CHAT);
    CHECK(out.created_s == in.created_s && out.seed == in.seed && out.prompt_hash == 99);
    CHECK_INT(out.max_tokens, 4096);
    CHECK(str_equal(out.key, in.key) && str_equal(out.body, in.body));
    damage(&record, read_request);
    buf_fini(&record);
}

TEST(token_log_token_comes_back)
{
    struct token_log_token in = {.seq = 5, .index = 17, .finish = SCHED_LENGTH, .is_full = true};
    in.sampled =
        (struct sampled){.token = 200000, .logprob = -0.25f, .logits_hash = 42, .n_top = 2};
    in.sampled.top[0].token = 3;
    in.sampled.top[1].logprob = -8.5f;
    struct token_log_token out;
    struct buf record = {0};
    token_log_write_token(&in, &record);
    CHECK(token_log_read_token(buf_str(&record), &out));
    CHECK_INT(out.index, 17);
    CHECK_INT(out.finish, SCHED_LENGTH);
    CHECK_BYTES(&out.sampled, &in.sampled, sizeof in.sampled);
    damage(&record, read_token);
    buf_reset(&record);
    in.is_full = false;
    token_log_write_token(&in, &record);
    CHECK(token_log_read_token(buf_str(&record), &out));
    CHECK_INT(out.sampled.token, 200000);
    CHECK_INT(out.sampled.n_top, 0);
    CHECK_INT(record.len, 18); /* what each token of most answers costs */
    damage(&record, read_token);
    buf_reset(&record);
    in.index = 0;
    in.choice = 5;
    in.n_cached = 128;
    token_log_write_token(&in, &record);
    CHECK(token_log_read_token(buf_str(&record), &out));
    CHECK_INT(out.choice, 5);
    CHECK_INT(out.n_cached, 128);
    CHECK(!out.is_degraded);
    damage_but(&record, 18, read_token);
    size_t unmarked = record.len;
    in.is_degraded = true;
    buf_reset(&record);
    token_log_write_token(&in, &record);
    CHECK(token_log_read_token(buf_str(&record), &out) && out.is_degraded);
    CHECK_INT(record.len, unmarked + 1);
    /* Later ones of a single answer, too. */
    in.index = 9;
    in.choice = 0;
    buf_reset(&record);
    token_log_write_token(&in, &record);
    CHECK(token_log_read_token(buf_str(&record), &out) && out.is_degraded);
    CHECK_INT(out.choice, 0);
    buf_fini(&record);
}

TEST(token_log_end_and_model_come_back)
{
    struct token_log_end end = {.seq = 5,
                                .outcome = TOKEN_LOG_FAILED,
                                .n_tokens = 3,
                                .unix_us = 1700000000000000,
                                .code = -14,
                                .text = STR("node e1 is gone")};
    struct token_log_end out;
    struct buf record = {0};
    token_log_write_end(&end, &record);
    CHECK(token_log_read_end(buf_str(&record), &out));
    CHECK_INT(out.code, -14);
    CHECK_INT(out.n_tokens, 3);
    CHECK_INT(out.outcome, TOKEN_LOG_FAILED);
    CHECK(str_equal(out.text, end.text) && out.unix_us == end.unix_us);
    damage(&record, read_end);
    buf_reset(&record);
    struct token_log_model model = {
        .fingerprint = 1, .formats = STR("q8,kv=bf16"), .combine = STR("fixed")};
    struct token_log_model back;
    token_log_write_model(&model, &record);
    CHECK(token_log_read_model(buf_str(&record), &back));
    CHECK(str_equal(back.formats, model.formats) && str_equal(back.combine, model.combine));
    damage(&record, read_model);
    buf_fini(&record);
}
