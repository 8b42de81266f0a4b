/* tests/unit/test_choices.c - requests for several answers: how they are read, numbered, streamed and added up. */
#include <jansson.h>
#include <stdio.h>

#include "coordinator/dialect.h"
#include "tests/unit/dialect_stage.h"

static int ask(enum request_kind kind, const char *body)
{
    begin_request(kind);
    int rc = dialect_parse(&model, str_of(body), &r, &error);
    if (rc == 0) {
        r.max_tokens = 10;
        request_repeat(&r, 10, r.sampling.seed);
        for (struct request *c = &r; c; c = c->next)
            request_started(c);
    }
    return rc;
}

static struct request *choice(int i)
{
    return request_choice(&r, r.seq + (uint64_t)i);
}

static void letter(int i, char c, float logprob, enum sched_finish finish_)
{
    struct sampled s = {.token = c, .logprob = logprob};
    request_token(choice(i), &s, finish_);
}

static json_t *reply(void)
{
    buf_reset(&out);
    dialect_write_reply(&model, &r, &out);
    json_t *v = json_loads(out.data, 0, NULL);
    CHECK(v != NULL);
    return v;
}

static const char *text_of(json_t *v, size_t i)
{
    json_t *c = json_array_get(json_object_get(v, "choices"), i);
    CHECK_INT(json_integer_value(json_object_get(c, "index")), i);
    return json_string_value(json_object_get(c, "text"));
}

static long long used(json_t *v, const char *what)
{
    return json_integer_value(json_object_get(json_object_get(v, "usage"), what));
}

TEST(choices_of_each_prompt_have_the_seeds_that_follow)
{
    begin(200);
    CHECK_INT(ask(REQUEST_COMPLETION,
                  "{\"prompt\": [[1, 2, 3], [4]], \"n\": 2, \"best_of\": 3, \"seed\": 40}"),
              0);
    CHECK_INT(r.n_choices, 6);
    for (int i = 0; i < 6; i++) {
        struct request *c = choice(i);
        CHECK_INT(c->index, i);
        CHECK_INT(c->sampling.seed, 40 + i % 3);
        CHECK_INT(c->prompt.len, i < 3 ? 3 : 1);
        CHECK(c->sampling.logprobs); /* to know which is best */
    }
    CHECK(choice(6) == NULL && request_choice(&r, r.seq - 1) == NULL);
    CHECK_INT(request_prompt_tokens(&r), 4);
    finish();
}

TEST(choices_add_up_to_one_answer)
{
    begin(200);
    CHECK_INT(ask(REQUEST_COMPLETION, "{\"prompt\": [[1, 2], \"hi\"], \"n\": 2, \"echo\": true, "
                                      "\"stop\": \"x\"}"),
              0);
    letter(2, 'c', 0, SCHED_GOES_ON);
    letter(0, 'a', 0, SCHED_GOES_ON);
    letter(0, 'x', 0, SCHED_GOES_ON); /* each choice stops by itself */
    CHECK(choice(0)->state == REQUEST_DONE && !request_is_over(&r));
    letter(1, 'b', 0, SCHED_LENGTH);
    letter(3, 'd', 0, SCHED_LENGTH);
    CHECK(!request_is_done(&r));
    letter(2, 'c', 0, SCHED_LENGTH);
    CHECK(request_is_done(&r));
    choice(0)->n_cached = 1;
    choice(1)->n_cached = 2; /* of a prompt that is counted once */
    json_t *v = reply();
    CHECK_STR(text_of(v, 0), "\x01\x02"
                             "a");
    CHECK_STR(text_of(v, 1), "\x01\x02"
                             "b");
    CHECK_STR(text_of(v, 2), "hicc");
    CHECK_STR(text_of(v, 3), "hid");
    CHECK_INT(used(v, "prompt_tokens"), 2 + (long long)choice(2)->prompt.len);
    CHECK_INT(used(v, "completion_tokens"), 6);
    json_t *details = json_object_get(json_object_get(v, "usage"), "prompt_tokens_details");
    CHECK_INT(json_integer_value(json_object_get(details, "cached_tokens")), 1);
    json_decref(v);
    finish();
}

TEST(best_of_gives_the_likeliest_first)
{
    begin(200);
    CHECK_INT(ask(REQUEST_COMPLETION, "{\"prompt\": [1], \"n\": 2, \"best_of\": 3}"), 0);
    letter(0, 'a', -3, SCHED_LENGTH);
    letter(1, 'b', -2, SCHED_GOES_ON); /* longer, and likelier per token */
    letter(1, 'b', -2, SCHED_LENGTH);
    letter(2, 'c', -1, SCHED_LENGTH);
    json_t *v = reply();
    CHECK_INT(json_array_size(json_object_get(v, "choices")), 2);
    CHECK_STR(text_of(v, 0), "c");
    CHECK_STR(text_of(v, 1), "bb");
    CHECK_INT(used(v, "completion_tokens"), 4); /* all that was generated */
    json_decref(v);
    finish();
}

/* What the events since the last call are, without their JSON: "id index" each. */
static const char *events(void)
{
    static char line[512];
    size_t n = 0;
    line[0] = '\0';
    buf_reset(&out);
    dialect_write_events(&model, &r, &out);
    request_sent(&r);
    for (const char *p = out.data; p && (p = strstr(p, "id: ")); p += 4) {
        const char *index = strstr(p, "\"index\":"), *end = strstr(p, "\n\n");
        bool has_index = index && index < end;
        n += (size_t)snprintf(line + n, sizeof line - n, "%.*s=%.1s ", (int)strcspn(p + 4, "\n"),
                              p + 4, has_index ? index + 8 : "-");
    }
    return line;
}

TEST(choices_stream_with_ids_that_say_where_each_is)
{
    begin(200);
    const char *body = "{\"prompt\": [1], \"n\": 2, \"stream\": true, "
                       "\"stream_options\": {\"include_usage\": true}}";
    CHECK_INT(ask(REQUEST_COMPLETION, body), 0);
    CHECK_STR(events(), "");
    letter(1, 'b', 0, SCHED_GOES_ON);
    CHECK_STR(events(), "0.1=1 ");
    letter(0, 'a', 0, SCHED_LENGTH);
    CHECK_STR(events(), "1.1=0 ");
    letter(1, 'c', 0, SCHED_LENGTH);
    CHECK_STR(events(), "1.2=1 1.2.1=- 1.2.2=- ");
    CHECK_HAS(out.data, "[DONE]");
    CHECK_STR(events(), "");

    /* A reader who knows the first token of the second one gets the rest, whatever comes first. */
    uint64_t seen[3];
    CHECK_INT(ask(REQUEST_COMPLETION, body), 0);
    CHECK(request_read_seen(&r, "0.1", seen));
    request_set_seen(&r, seen);
    letter(0, 'a', 0, SCHED_LENGTH);
    CHECK_STR(events(), "1.1=0 ");
    letter(1, 'b', 0, SCHED_GOES_ON);
    CHECK_STR(events(), "");
    letter(1, 'c', 0, SCHED_LENGTH);
    CHECK_STR(events(), "1.2=1 1.2.1=- 1.2.2=- ");

    CHECK(request_read_seen(&r, "1.2.1", seen) && seen[2] == 1);
    static const char *const bad[] = {
        "", "1", "1.", ".1", "1.2.3.4", "1.a", "1.-2", "1..2", "1.1234567890123456789"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(!request_read_seen(&r, bad[i], seen));
    finish();
}

TEST(chat_choices_each_have_a_message_of_their_own)
{
    begin(200);
    CHECK_INT(
        ask(REQUEST_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"n\": 3}"),
        0);
    for (int i = 0; i < 3; i++) {
        letter(i, (char)('a' + i), 0, SCHED_GOES_ON); /* reasoning */
        struct sampled s = {.token = tokenizer_find(words, STR("</think>"))};
        request_token(choice(i), &s, SCHED_GOES_ON);
        letter(i, (char)('k' + i), 0, SCHED_LENGTH);
    }
    json_t *v = reply();
    for (int i = 0; i < 3; i++) {
        json_t *c = json_array_get(json_object_get(v, "choices"), (size_t)i);
        json_t *m = json_object_get(c, "message");
        char want[2] = {(char)('k' + i), 0}, why[2] = {(char)('a' + i), 0};
        CHECK_STR(json_string_value(json_object_get(m, "content")), want);
        CHECK_STR(json_string_value(json_object_get(m, "reasoning_content")), why);
    }
    json_t *details = json_object_get(json_object_get(v, "usage"), "completion_tokens_details");
    CHECK_INT(json_integer_value(json_object_get(details, "reasoning_tokens")), 6);
    json_decref(v);
    CHECK_INT(ask(REQUEST_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], "
                                "\"best_of\": 2}"),
              E_INVALID);
    CHECK_STR(error.param, "best_of");
    finish();
}

TEST(suffix_is_put_behind_the_gap_with_the_markers_of_infill)
{
    begin(200);
    CHECK_INT(ask(REQUEST_COMPLETION, "{\"prompt\": \"a<fim_middle>\", \"suffix\": \"b\"}"), 0);
    struct buf text = prompt_text();
    CHECK_STR(text.data, "<fim_prefix>a<fim_middle><fim_suffix>b<fim_middle>");
    buf_fini(&text);
    /* What the client's text spells is no marker. */
    int n_middles = 0;
    for (size_t i = 0; i < r.prompt.len; i++)
        n_middles += r.prompt.ids[i] == tokenizer_find(words, STR("<fim_middle>"));
    CHECK_INT(n_middles, 1);
    model.tokenizer = NULL;
    CHECK_INT(ask(REQUEST_COMPLETION, "{\"prompt\": \"a\", \"suffix\": \"b\"}"), E_INVALID);
    CHECK_STR(error.param, "suffix");
    CHECK_HAS(error.message, "no infill format");
    finish();
}

TEST(urgency_comes_from_the_tier_or_from_a_number)
{
    static const struct {
        const char *body;
        int raise;
    } cases[] = {
        {"{\"prompt\": [1]}", 0},
        {"{\"prompt\": [1], \"service_tier\": \"auto\", \"priority\": 2}", -2},
        {"{\"prompt\": [1], \"service_tier\": \"priority\"}", 9},
        {"{\"prompt\": [1], \"service_tier\": \"flex\", \"priority\": 0}", -9},
        {"{\"prompt\": [1], \"priority\": -3}", 3},
        {"{\"prompt\": [1], \"priority\": 2000000000}", -9},
    };
    begin(200);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK_INT(ask(REQUEST_COMPLETION, cases[i].body), 0);
        CHECK_INT(r.raise, cases[i].raise);
    }
    static const char *const bad[] = {
        "{\"prompt\": [1], \"service_tier\": \"flex\", \"priority\": -1}",
        "{\"prompt\": [1], \"service_tier\": \"gold\"}",
        "{\"prompt\": [1], \"service_tier\": 5}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK_INT(ask(REQUEST_COMPLETION, bad[i]), E_INVALID);
        CHECK_STR(error.param, "service_tier");
    }
    CHECK_INT(ask(REQUEST_MESSAGES, "{\"max_tokens\": 5, \"service_tier\": \"standard_only\", "
                                    "\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}"),
              0);
    CHECK_INT(ask(REQUEST_RESPONSES, "{\"input\": \"x\", \"service_tier\": \"flex\"}"), 0);
    CHECK_INT(r.raise, -9);
    finish();
}
