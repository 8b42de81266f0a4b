/* tests/unit/test_openai.c - bodies to requests, requests to answers, and every refusal. */
#include "coordinator/openai.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "model/grammar.h"
#include "tests/lib/test.h"
#include "tests/unit/dialect_stage.h"

static int completion(const char *body)
{
    begin_request(REQUEST_COMPLETION);
    return openai_parse_completion(&model, str_of(body), &r, &error);
}

static int talk(const char *body)
{
    begin_request(REQUEST_CHAT);
    return openai_parse_chat(&model, str_of(body), &r, &error);
}

static void scored_token(int32_t id, enum sched_finish finish_)
{
    struct sampled s = {.token = id,
                        .logprob = -0.5f,
                        .logits_hash = 0xab,
                        .n_top = 1,
                        .top = {{.token = id, .logprob = -0.5f}}};
    if (r.state == REQUEST_RECEIVED) {
        r.max_tokens = 10;
        request_queued(&r);
        request_started(&r);
    }
    request_token(&r, &s, finish_);
}

static json_t *parse(const char *text)
{
    json_error_t e;
    json_t *v = json_loads(text, 0, &e);
    if (!v)
        test_fail(__FILE__, __LINE__, "%s in %s", e.text, text);
    return v;
}

/* Member `path` ("choices.0.text") of v; borrowed. */
static json_t *at(json_t *v, const char *path)
{
    char part[64];
    while (v && *path) {
        size_t n = strcspn(path, ".");
        snprintf(part, sizeof part, "%.*s", (int)n, path);
        v = json_is_array(v) ? json_array_get(v, (size_t)atoi(part)) : json_object_get(v, part);
        path += n + (path[n] == '.');
    }
    return v;
}

TEST(openai_completion_takes_ids_and_text)
{
    begin(200);
    CHECK_INT(completion("{\"prompt\": [1, 2, 899], \"max_tokens\": 5}"), 0);
    CHECK_INT(r.prompt.len, 3);
    CHECK_INT(r.prompt.ids[2], 899);
    CHECK_INT(r.max_tokens, 5);
    CHECK_INT(completion("{\"prompt\": \"hi\"}"), 0);
    CHECK(r.prompt.len > 0);
    CHECK_INT(r.max_tokens, 0);
    CHECK_INT(completion("{\"prompt\": [\"hi\"]}"), 0);
    CHECK_INT(completion("{\"prompt\": [[4, 5]]}"), 0);
    CHECK_INT(r.prompt.len, 2);
    finish();
}

TEST(openai_sampling_comes_from_the_request_or_the_model)
{
    begin(200);
    CHECK_INT(completion("{\"prompt\": [1]}"), 0);
    CHECK_NEAR(r.sampling.temperature, 1.0, 0);
    CHECK_NEAR(r.sampling.top_p, 0.95, 1e-6); /* float */
    CHECK_INT(r.sampling.top_k, 40);
    CHECK_INT(
        completion(
            "{\"prompt\": [1], \"temperature\": 0, \"top_p\": 0.5, \"top_k\": -1, "
            "\"min_p\": 0.25, \"repetition_penalty\": 1.5, \"frequency_penalty\": -1, "
            "\"presence_penalty\": 2, \"seed\": -3, \"logit_bias\": {\"7\": -100, \"8\": 1.5},"
            "\"stop\": [\"a\", \"b\"], \"return_token_ids\": true, "
            "\"return_logits_hash\": true, \"logprobs\": 3, \"stream\": true, "
            "\"stream_options\": {\"include_usage\": true}}"),
        0);
    CHECK_NEAR(r.sampling.temperature, 0, 0);
    CHECK_NEAR(r.sampling.top_p, 0.5, 0);
    CHECK_INT(r.sampling.top_k, 0);
    CHECK_NEAR(r.sampling.min_p, 0.25, 0);
    CHECK_NEAR(r.sampling.repetition_penalty, 1.5, 0);
    CHECK_NEAR(r.sampling.frequency_penalty, -1, 0);
    CHECK_NEAR(r.sampling.presence_penalty, 2, 0);
    CHECK_INT(r.sampling.seed, (uint64_t)-3);
    CHECK_INT(r.sampling.n_bias, 2);
    CHECK_INT(r.sampling.bias[0].token, 7);
    CHECK_INT(r.text_of.n_stops, 2);
    CHECK(r.wants_token_ids && r.sampling.logits_hash && r.streams && r.wants_usage);
    CHECK(r.wants_logprobs && r.sampling.logprobs);
    CHECK_INT(r.sampling.n_top, 3);
    /* null is the same as absent. */
    CHECK_INT(completion("{\"prompt\": [1], \"stop\": null, \"seed\": null, \"top_p\": null}"), 0);
    finish();
}

TEST(openai_draws_another_seed_for_each_request_without_one)
{
    begin(200);
    CHECK_INT(completion("{\"prompt\": [1]}"), 0);
    uint64_t first = r.sampling.seed;
    CHECK_INT(completion("{\"prompt\": [1]}"), 0);
    CHECK(r.sampling.seed != first);
    finish();
}

struct refusal {
    const char *body, *param, *part; /* of the message */
};

static void check_refusals(const struct refusal *all, size_t n, int (*parse_body)(const char *))
{
    for (size_t i = 0; i < n; i++) {
        test_note("%s", all[i].body);
        CHECK_INT(parse_body(all[i].body), E_INVALID);
        CHECK(error.status >= 400 && error.status < 500);
        CHECK_STR(error.param, all[i].param);
        CHECK_HAS(error.message, all[i].part);
        CHECK(error.reason && error.reason[0]);
        buf_reset(&out);
        openai_write_error(&error, &out);
        json_t *v = parse(out.data);
        CHECK_STR(json_string_value(at(v, "error.message")), error.message);
        CHECK(json_is_string(at(v, "error.type")));
        CHECK(at(v, "error.param") && at(v, "error.code"));
        json_decref(v);
    }
}
#define CHECK_REFUSALS(list, parse_body) \
    check_refusals(list, sizeof(list) / sizeof(list)[0], parse_body)

TEST(openai_completion_refuses_with_the_field)
{
    static const struct refusal list[] = {
        {"", "", "not valid JSON"},
        {"{\"prompt\": [1]", "", "line 1, column 14"},
        {"{\"prompt\": [1]} x", "", "not valid JSON"},
        {"{\"prompt\": \"\xff\"}", "", "not valid JSON"},
        {"{\"prompt\": [1], \"prompt\": [2]}", "", "duplicate"},
        {"[1]", "", "must be a JSON object, not an array"},
        {"{}", "prompt", "prompt is missing"},
        {"{\"prompt\": null}", "prompt", "missing"},
        {"{\"prompt\": 5}", "prompt", "not an integer"},
        {"{\"prompt\": \"\"}", "prompt", "empty"},
        {"{\"prompt\": []}", "prompt", "empty"},
        {"{\"prompt\": [[]]}", "prompt", "empty"},
        {"{\"prompt\": [\"a\", 5]}", "prompt", "array of these"},
        {"{\"prompt\": [[1], []]}", "prompt", "empty"},
        {"{\"prompt\": [1, 900]}", "prompt", "prompt[1] is 900"},
        {"{\"prompt\": [-1]}", "prompt", "prompt[0] is -1"},
        {"{\"prompt\": [1, 1.5]}", "prompt", "prompt[1] must be a token id"},
        {"{\"prompt\": [1, \"a\"]}", "prompt", "prompt[1]"},
        {"{\"prompt\": [99999999999]}", "prompt", "99999999999"},
        {"{\"prompt\": [1], \"max_tokens\": 0}", "max_tokens", "between 1 and 200, not 0"},
        {"{\"prompt\": [1], \"max_tokens\": -1}", "max_tokens", "-1"},
        {"{\"prompt\": [1], \"max_tokens\": 201}", "max_tokens", "201"},
        {"{\"prompt\": [1], \"max_tokens\": 1.5}", "max_tokens", "an integer, not a number"},
        {"{\"prompt\": [1], \"max_tokens\": \"9\"}", "max_tokens", "not a string"},
        {"{\"prompt\": [1], \"temperature\": -0.1}", "temperature", "between 0 and 2"},
        {"{\"prompt\": [1], \"temperature\": 2.1}", "temperature", "between 0 and 2"},
        {"{\"prompt\": [1], \"temperature\": NaN}", "", "not valid JSON"},
        {"{\"prompt\": [1], \"temperature\": 1e999}", "", "not valid JSON"},
        {"{\"prompt\": [1], \"top_p\": 1.01}", "top_p", "between 0 and 1"},
        {"{\"prompt\": [1], \"top_k\": -2}", "top_k", "between -1"},
        {"{\"prompt\": [1], \"min_p\": 2}", "min_p", "between 0 and 1"},
        {"{\"prompt\": [1], \"repetition_penalty\": 0}", "repetition_penalty", "between"},
        {"{\"prompt\": [1], \"frequency_penalty\": 3}", "frequency_penalty", "between -2 and 2"},
        {"{\"prompt\": [1], \"presence_penalty\": true}", "presence_penalty", "not a boolean"},
        {"{\"prompt\": [1], \"seed\": \"x\"}", "seed", "an integer"},
        {"{\"prompt\": [1], \"stream_options\": {}}", "stream_options", "stream: true"},
        {"{\"prompt\": [1], \"max_tokens\": 5, \"max_completion_tokens\": 6}", "max_tokens",
         "contradict"},
        {"{\"prompt\": [1], \"n\": 0}", "n", "between 1 and 128"},
        {"{\"prompt\": [1], \"n\": 129}", "n", "between 1 and 128"},
        {"{\"prompt\": [1], \"n\": \"2\"}", "n", "string"},
        {"{\"prompt\": [1], \"best_of\": 2, \"n\": 3}", "best_of", "at least n (3)"},
        {"{\"prompt\": [1], \"best_of\": 2, \"stream\": true}", "best_of", "streamed"},
        {"{\"prompt\": [[1], [2]], \"n\": 65}", "prompt", "at most 128"},
        {"{\"prompt\": [1], \"echo\": true, \"logprobs\": 1}", "echo", "log-prob"},
        {"{\"prompt\": [1], \"echo\": 1}", "echo", "must be"},
        {"{\"prompt\": \"a\", \"echo\": true, \"suffix\": \"b\"}", "echo", "suffix"},
        {"{\"prompt\": [1], \"suffix\": \"x\"}", "suffix", "text"},
        {"{\"prompt\": \"a\", \"suffix\": 5}", "suffix", "string"},
        {"{\"prompt\": [1], \"stream\": \"yes\"}", "stream", "true or false"},
        {"{\"prompt\": [1], \"stream_options\": 1}", "stream_options", "an object"},
        {"{\"prompt\": [1], \"stop\": [\"a\",\"b\",\"c\",\"d\",\"e\"]}", "stop", "5 strings"},
        {"{\"prompt\": [1], \"stop\": [\"\"]}", "stop", "1 to"},
        {"{\"prompt\": [1], \"stop\": [1]}", "stop", "not an integer"},
        {"{\"prompt\": [1], \"stop\": {}}", "stop", "not an object"},
        {"{\"prompt\": [1], \"logit_bias\": []}", "logit_bias", "an object"},
        {"{\"prompt\": [1], \"logit_bias\": {\"900\": 1}}", "logit_bias", "\"900\""},
        {"{\"prompt\": [1], \"logit_bias\": {\"x\": 1}}", "logit_bias", "\"x\""},
        {"{\"prompt\": [1], \"logit_bias\": {\"1\": 101}}", "logit_bias", "-100 and 100"},
        {"{\"prompt\": [1], \"logit_bias\": {\"1\": \"a\"}}", "logit_bias", "-100 and 100"},
        {"{\"prompt\": [1], \"logprobs\": 21}", "logprobs", "between 0 and 20"},
        {"{\"prompt\": [1], \"response_format\": {\"type\": \"json_object\"}}", "response_format",
         "not supported"},
        {"{\"prompt\": [1], \"model\": 4}", "model", "a string"},
    };
    begin(200);
    CHECK_REFUSALS(list, completion);
    finish();
}

TEST(openai_refuses_unlimited_nesting)
{
    begin(200);
    struct buf body = {0};
    for (int i = 0; i < 100000; i++)
        buf_puts(&body, "{\"prompt\":");
    CHECK_INT(completion(body.data), E_INVALID);
    CHECK_HAS(error.message, "depth");
    buf_fini(&body);
    finish();
}

TEST(openai_refuses_a_prompt_over_the_context)
{
    begin(200);
    struct buf body = {0};
    buf_puts(&body, "{\"prompt\": [1");
    for (int i = 1; i < 199; i++)
        buf_puts(&body, ",1");
    size_t len = body.len;
    buf_puts(&body, "]}");
    CHECK_INT(completion(body.data), 0); /* 199, and one place for the answer */
    body.len = len;
    buf_puts(&body, ",1]}");
    CHECK_INT(completion(body.data), E_INVALID);
    CHECK_HAS(error.message, "200 tokens; the model's context is 200");
    CHECK_STR(error.code, "context_length_exceeded");
    buf_fini(&body);
    finish();
}

TEST(openai_knows_the_model_by_name_base_name_or_silence)
{
    begin(200);
    CHECK_INT(completion("{\"prompt\": [1], \"model\": \"org/tiny\"}"), 0);
    CHECK_INT(completion("{\"prompt\": [1], \"model\": \"tiny\"}"), 0);
    CHECK_INT(completion("{\"prompt\": [1], \"model\": \"\"}"), 0);
    CHECK_INT(completion("{\"prompt\": [1], \"model\": \"gpt-4\"}"), E_INVALID);
    CHECK_INT(error.status, 404);
    CHECK_STR(error.code, "model_not_found");
    CHECK_HAS(error.message, "org/tiny");
    finish();
}

TEST(openai_chat_renders_the_template)
{
    begin(200);
    CHECK_INT(talk("{\"messages\": [{\"role\": \"system\", \"content\": \"Be brief.\"}, {\"role\": "
                   "\"user\", \"content\": [{\"type\": \"text\", \"text\": \"1+1\"}, "
                   "{\"type\": \"text\", \"text\": \"?\"}]}], \"max_completion_tokens\": 9}"),
              0);
    struct buf text = {0};
    tokenizer_decode(words, r.prompt.ids, r.prompt.len, TOKENIZER_KEEP_SPECIAL, &text);
    CHECK_STR(text.data, "]~!b[]~b]system\nBe brief.[e~[\n]~b]user\n1+1?[e~[\n]~b]ai\n<think>\n");
    CHECK_INT(r.max_tokens, 9);
    CHECK(r.text_of.splits);
    CHECK_INT(talk("{\"messages\": [{\"role\": \"developer\", \"content\": \"x\"}, {\"role\": "
                   "\"user\", \"content\": \"y\"}], "
                   "\"chat_template_kwargs\": {\"enable_thinking\": false}}"),
              0);
    buf_reset(&text);
    tokenizer_decode(words, r.prompt.ids, r.prompt.len, TOKENIZER_KEEP_SPECIAL, &text);
    CHECK_HAS(text.data, "system\nx[e~[");
    CHECK_HAS(text.data, "</think>\n\n");
    CHECK_INT(r.text_of.output.place, OUTPUT_IN_CONTENT);
    buf_fini(&text);
    finish();
}

TEST(openai_chat_takes_tool_calls_and_results)
{
    begin(200);
    config.max_positions = 4000; /* the tools text is long */
    CHECK_INT(
        talk("{\"messages\": [{\"role\": \"user\", \"content\": \"w\"}, {\"role\": \"assistant\", "
             "\"content\": null, \"reasoning_content\": \"hm\", \"tool_calls\": [{\"id\": \"c\", "
             "\"type\": \"function\", \"function\": {\"name\": \"f\", \"arguments\": "
             "\"{\\\"a\\\": 2}\"}}]}, {\"role\": \"tool\", \"tool_call_id\": \"c\", "
             "\"content\": \"ok\"}], \"tools\": [{\"type\": \"function\", \"function\": {\"name\": "
             "\"f\", \"parameters\": {}}}]}"),
        0);
    struct buf text = {0};
    tokenizer_decode(words, r.prompt.ids, r.prompt.len, TOKENIZER_KEEP_SPECIAL, &text);
    CHECK_HAS(text.data, "<invoke name=\"f\">\n<parameter name=\"a\">2</parameter>");
    CHECK_HAS(text.data, "<tool>{\"name\": \"f\"");
    CHECK_HAS(text.data, "<think>\nhm\n</think>");
    CHECK_HAS(text.data, "<response>ok</response>");
    buf_fini(&text);
    finish();
}

#define TOOLS \
    "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": " \
    "{\"properties\": {\"a\": {\"type\": \"integer\"}, \"b\": {\"type\": \"string\"}}}}}]"
#define USER "{\"role\": \"user\", \"content\": \"x\"}"
TEST(openai_chat_refuses_with_the_field)
{
    static const struct refusal list[] = {
        {"{}", "messages", "missing"},
        {"{\"messages\": []}", "messages", "empty"},
        {"{\"messages\": {}}", "messages", "an array, not an object"},
        {"{\"messages\": [1]}", "messages[0]", "an object"},
        {"{\"messages\": [{}]}", "messages[0]", "role must be a string"},
        {"{\"messages\": [" USER ", {\"role\": \"robot\", \"content\": \"x\"}]}", "messages[1]",
         "\"robot\""},
        {"{\"messages\": [{\"role\": \"user\"}]}", "messages[0].content", "missing"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": 3}]}", "messages[0].content",
         "not an integer"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
         "messages[0].content[0]", "text only"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"text\": \"x\"}]}]}",
         "messages[0].content[0]", "no type"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]}",
         "messages[0].content[0]", "text must be a string"},
        {"{\"messages\": [" USER ", {\"role\": \"assistant\", \"tool_calls\": [{\"function\": "
         "{\"name\": \"f\", \"arguments\": \"{\"}}]}]}",
         "messages[1].tool_calls[0]", "not valid JSON"},
        {"{\"messages\": [" USER ", {\"role\": \"assistant\", \"tool_calls\": [{\"function\": "
         "{\"name\": \"f\", \"arguments\": \"[1]\"}}]}]}",
         "messages[1].tool_calls[0]", "must be an object"},
        {"{\"messages\": [" USER ", {\"role\": \"assistant\", \"tool_calls\": [7]}]}",
         "messages[1].tool_calls[0]", "name must be a string"},
        {"{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}", "messages", ""},
        {"{\"messages\": [" USER "], \"tools\": {}}", "tools", "an array"},
        {"{\"messages\": [" USER "], \"tools\": [1]}", "messages", ""},
        {"{\"messages\": [" USER "], \"tool_choice\": \"required\"}", "tool_choice",
         "there are none"},
        {"{\"messages\": [" USER "], \"tool_choice\": \"any\"}", "tool_choice", "required"},
        {"{\"messages\": [" USER "], \"tool_choice\": {\"type\": \"function\", \"function\": "
         "{\"name\": \"g\"}}, " TOOLS "}",
         "tool_choice", "no tool \"g\""},
        {"{\"messages\": [" USER "], \"response_format\": {\"type\": \"xml\"}}", "response_format",
         "json_schema"},
        {"{\"messages\": [" USER "], \"response_format\": {\"type\": \"json_schema\"}}",
         "response_format", "the schema is missing"},
        {"{\"messages\": [" USER "], \"response_format\": {\"type\": \"json_schema\", "
         "\"json_schema\": {\"schema\": {\"properties\": {\"a\": {\"$dynamicRef\": \"#\"}}}}}}",
         "response_format", "schema #/properties/a/$dynamicRef: "},
        {"{\"messages\": [" USER "], \"response_format\": {\"type\": \"json_object\"}, "
         "\"ignore_eos\": true}",
         "ignore_eos", "contradict"},
        {"{\"messages\": [" USER "], \"top_logprobs\": 2}", "top_logprobs", "logprobs: true"},
        {"{\"messages\": [" USER "], \"logprobs\": 2}", "logprobs", "true or false"},
        {"{\"messages\": [" USER "], \"chat_template_kwargs\": 1}", "chat_template_kwargs",
         "an object"},
    };
    begin(200);
    CHECK_REFUSALS(list, talk);
    finish();
}

static struct grammar *grammar(void)
{
    struct err e = {0};
    struct grammar *g;
    CHECK(r.sampling.grammar && r.sampling.grammar == r.grammar);
    CHECK_INT(grammar_compile(str_of(r.grammar), &g, &e), 0);
    return g;
}

static bool takes(const char *text)
{
    struct grammar *g = grammar();
    struct tokens ids = {0};
    uint32_t state = grammar_start(g);
    CHECK_INT(tokenizer_encode(words, str_of(text), TOKENIZER_WITH_MARKERS, &ids), 0);
    for (size_t i = 0; i < ids.len; i++) {
        struct str bytes = tokenizer_token_bytes(words, ids.ids[i]);
        if (tokenizer_is_added(words, ids.ids[i]))
            state = grammar_marker(g, state, ids.ids[i]);
        for (size_t k = 0; k < bytes.len && !tokenizer_is_added(words, ids.ids[i]); k++)
            state = grammar_byte(g, state, (unsigned char)bytes.ptr[k]);
    }
    bool all = grammar_accepts(g, state);
    tokens_fini(&ids);
    grammar_free(&g);
    return all;
}

#define CALL(arguments) \
    "<minimax:tool_call>\n<invoke name=\"f\">\n" arguments "</invoke>\n</minimax:tool_call>"
#define NUMBER_OF_A(v) "<parameter name=\"a\">" v "</parameter>\n"

TEST(openai_answers_of_a_certain_form_have_a_grammar)
{
    begin(4000);
    CHECK_INT(talk("{\"messages\": [" USER "]}"), 0);
    CHECK(!r.sampling.grammar);
    CHECK_INT(talk("{\"messages\": [" USER "], \"response_format\": {\"type\": \"json_object\"}}"),
              0);
    CHECK(takes("hm\n</think>\n\n{\"a\": 1}"));
    CHECK(!takes("{\"a\": 1}") && !takes("hm\n</think>\n\n[1]"));
    CHECK_INT(talk("{\"messages\": [" USER "], \"response_format\": {\"type\": \"json_schema\", "
                   "\"json_schema\": {\"name\": \"x\", \"strict\": true, \"schema\": {\"enum\": "
                   "[1, 2]}}}, \"chat_template_kwargs\": {\"enable_thinking\": false}}"),
              0);
    CHECK(takes("2") && !takes("3") && !takes("h</think>2"));
    CHECK_INT(talk("{\"messages\": [" USER "], \"tool_choice\": \"required\", " TOOLS "}"), 0);
    CHECK(takes("h</think>\n\n\n" CALL(NUMBER_OF_A("3"))));
    CHECK(takes("h</think>" CALL("")));
    CHECK(!takes("h</think>\n\nno") && !takes("h</think>" CALL(NUMBER_OF_A("x"))));
    CHECK_INT(talk("{\"messages\": [" USER "], \"parallel_tool_calls\": false, " TOOLS "}"), 0);
    CHECK(takes("h</think>no") && takes("h</think>so" CALL(NUMBER_OF_A("x"))));
    CHECK(!takes("h</think>" CALL("") CALL("")));
    finish();
}

TEST(openai_tokenize_and_back)
{
    begin(200);
    CHECK_INT(openai_tokenize(&model, STR("{\"prompt\": \"a<think>\"}"), &out, &error), 0);
    json_t *v = parse(out.data);
    CHECK_INT(json_integer_value(at(v, "count")), 2);
    CHECK_INT(json_integer_value(at(v, "tokens.1")), tokenizer_find(words, STR("<think>")));
    json_decref(v);
    buf_reset(&out);
    CHECK_INT(openai_tokenize(&model, STR("{\"prompt\": \"a<think>\", \"markers\": false}"), &out,
                              &error),
              0);
    v = parse(out.data);
    CHECK(json_integer_value(at(v, "count")) > 2);
    json_decref(v);
    buf_reset(&out);
    CHECK_INT(openai_tokenize(&model, STR("{\"messages\": [" USER "]}"), &out, &error), 0);
    CHECK_INT(talk("{\"messages\": [" USER "]}"), 0);
    v = parse(out.data);
    CHECK_INT(json_integer_value(at(v, "count")), r.prompt.len);
    json_decref(v);
    buf_reset(&out);
    CHECK_INT(openai_detokenize(&model, STR("{\"tokens\": [97, 255]}"), &out, &error), 0);
    CHECK_STR(out.data, "{\"prompt\":\"a\xef\xbf\xbd\"}");
    CHECK_INT(openai_detokenize(&model, STR("{\"tokens\": [-1]}"), &out, &error), E_INVALID);
    CHECK_HAS(error.message, "tokens[0]");
    CHECK_INT(openai_detokenize(&model, STR("{\"tokens\": 5}"), &out, &error), E_INVALID);
    CHECK_INT(openai_tokenize(&model, STR("{}"), &out, &error), E_INVALID);
    CHECK_STR(error.param, "prompt");
    finish();
}

TEST(openai_without_a_tokenizer_serves_ids_only)
{
    begin(200);
    model.tokenizer = NULL;
    model.chat = NULL;
    CHECK_INT(talk("{\"messages\": [" USER "]}"), E_INVALID);
    CHECK_HAS(error.message, "/v1/completions");
    CHECK_INT(completion("{\"prompt\": \"hi\"}"), E_INVALID);
    CHECK_HAS(error.message, "token ids");
    CHECK_INT(completion("{\"prompt\": [1], \"stop\": \"x\"}"), E_INVALID);
    CHECK_INT(completion("{\"prompt\": [1], \"return_token_ids\": true}"), 0);
    scored_token(4, SCHED_LENGTH);
    openai_write_reply(&model, &r, &out);
    json_t *v = parse(out.data);
    CHECK_STR(json_string_value(at(v, "choices.0.text")), "");
    CHECK_INT(json_integer_value(at(v, "choices.0.token_ids.0")), 4);
    json_decref(v);
    finish();
}

TEST(openai_reply_of_a_completion)
{
    begin(200);
    CHECK_INT(completion("{\"prompt\": [1, 2], \"return_token_ids\": true, "
                         "\"return_logits_hash\": true, \"logprobs\": 1}"),
              0);
    scored_token('h', SCHED_GOES_ON);
    scored_token('i', SCHED_STOP); /* the end has no text */
    openai_write_reply(&model, &r, &out);
    json_t *v = parse(out.data);
    CHECK_STR(json_string_value(at(v, "object")), "text_completion");
    CHECK_STR(json_string_value(at(v, "model")), "org/tiny");
    CHECK_STR(json_string_value(at(v, "choices.0.text")), "h");
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "stop");
    CHECK_INT(json_array_size(at(v, "choices.0.token_ids")), 2);
    CHECK_STR(json_string_value(at(v, "choices.0.logits_hashes.1")), "00000000000000ab");
    CHECK_NEAR(json_real_value(at(v, "choices.0.logprobs.token_logprobs.0")), -0.5, 0);
    CHECK_STR(json_string_value(at(v, "choices.0.logprobs.tokens.0")), "h");
    CHECK_INT(json_integer_value(at(v, "choices.0.logprobs.text_offset.1")), 1);
    CHECK_INT(json_integer_value(at(v, "usage.prompt_tokens")), 2);
    CHECK_INT(json_integer_value(at(v, "usage.completion_tokens")), 2);
    CHECK_INT(json_integer_value(at(v, "usage.total_tokens")), 4);
    json_decref(v);
    finish();
}

TEST(openai_reply_of_a_chat_splits_reasoning)
{
    begin(200);
    CHECK_INT(talk("{\"messages\": [" USER "], \"logprobs\": true, \"top_logprobs\": 1}"), 0);
    scored_token('w', SCHED_GOES_ON);
    scored_token(tokenizer_find(words, STR("</think>")), SCHED_GOES_ON);
    scored_token('o', SCHED_GOES_ON);
    scored_token('k', SCHED_LENGTH);
    openai_write_reply(&model, &r, &out);
    json_t *v = parse(out.data);
    CHECK_STR(json_string_value(at(v, "object")), "chat.completion");
    CHECK_STR(json_string_value(at(v, "choices.0.message.content")), "ok");
    CHECK_STR(json_string_value(at(v, "choices.0.message.reasoning_content")), "w");
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "length");
    CHECK_INT(json_array_size(at(v, "choices.0.logprobs.content")), 4);
    CHECK_STR(json_string_value(at(v, "choices.0.logprobs.content.2.top_logprobs.0.token")), "o");
    CHECK_INT(json_integer_value(at(v, "choices.0.logprobs.content.2.bytes.0")), 'o');
    json_decref(v);
    finish();
}

/* The JSON of the n-th event in `out`; NULL after the last. */
static json_t *event(int n)
{
    const char *p = out.data ? strstr(out.data, "data: ") : NULL;
    for (; p && n > 0; n--)
        p = strstr(p + 1, "data: ");
    if (!p || strncmp(p, "data: {", 7) != 0)
        return NULL;
    const char *end = strstr(p, "\n\n");
    CHECK(end != NULL);
    json_t *v = json_loadb(p + 6, (size_t)(end - p - 6), 0, NULL);
    CHECK(v != NULL);
    return v;
}

TEST(openai_events_carry_what_is_new)
{
    begin(200);
    CHECK_INT(talk("{\"messages\": [" USER "], \"stream\": true, \"stream_options\": "
                   "{\"include_usage\": true}, \"return_token_ids\": true, "
                   "\"chat_template_kwargs\": {\"enable_thinking\": false}}"),
              0);
    scored_token('a', SCHED_GOES_ON);
    openai_write_events(&model, &r, &out);
    json_t *v = event(0);
    CHECK_STR(json_string_value(at(v, "object")), "chat.completion.chunk");
    CHECK_STR(json_string_value(at(v, "choices.0.delta.role")), "assistant");
    CHECK_STR(json_string_value(at(v, "choices.0.delta.content")), "a");
    CHECK(json_is_null(at(v, "choices.0.finish_reason")));
    CHECK(json_is_null(at(v, "usage")));
    json_decref(v);
    request_sent(&r);
    buf_reset(&out);
    scored_token('b', SCHED_GOES_ON);
    scored_token('c', SCHED_LENGTH);
    openai_write_events(&model, &r, &out);
    v = event(0);
    CHECK(at(v, "choices.0.delta.role") == NULL);
    CHECK_STR(json_string_value(at(v, "choices.0.delta.content")), "bc");
    CHECK_INT(json_array_size(at(v, "choices.0.token_ids")), 2);
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "length");
    json_decref(v);
    v = event(1);
    CHECK_INT(json_array_size(at(v, "choices")), 0);
    CHECK_INT(json_integer_value(at(v, "usage.completion_tokens")), 3);
    json_decref(v);
    CHECK_HAS(out.data, "id: 3\ndata: {");
    CHECK_HAS(out.data, "id: 4\ndata: {"); /* usage */
    CHECK_HAS(out.data, "id: 5\ndata: [DONE]\n\n");
    /* For whoever has seen some of them. */
    struct buf all = out;
    out = (struct buf){0};
    r.seen = 3;
    openai_write_events(&model, &r, &out);
    CHECK_STR(out.data, strstr(all.data, "id: 4"));
    buf_reset(&out);
    r.seen = 5;
    openai_write_events(&model, &r, &out);
    CHECK_INT(out.len, 0);
    buf_fini(&all);
    finish();
}

/* The model says this, markers as tokens and everything else byte by byte. */
static void say_scored(const char *text, enum sched_finish finish_)
{
    struct tokens ids = {0};
    CHECK_INT(tokenizer_encode(words, str_of(text), TOKENIZER_WITH_MARKERS, &ids), 0);
    for (size_t i = 0; i < ids.len; i++)
        scored_token(ids.ids[i], SCHED_GOES_ON);
    tokens_fini(&ids);
    scored_token(chat_end_id(&chat), finish_);
}

#define CALLS \
    "let me\n</think>\n\nWell\n<minimax:tool_call>\n<invoke name=\"f\">\n" \
    "<parameter name=\"a\">2</parameter>\n<parameter name=\"b\">\"3\"</parameter>\n</invoke>\n" \
    "<invoke name=\"g\">\n</invoke>\n</minimax:tool_call>"

TEST(openai_reply_holds_tool_calls)
{
    begin(4000);
    CHECK_INT(talk("{\"messages\": [" USER "], " TOOLS "}"), 0);
    say_scored(CALLS, SCHED_STOP);
    openai_write_reply(&model, &r, &out);
    json_t *v = parse(out.data), *message = at(v, "choices.0.message");
    CHECK_STR(json_string_value(at(message, "content")), "Well");
    CHECK_STR(json_string_value(at(message, "reasoning_content")), "let me");
    CHECK_INT(json_array_size(at(message, "tool_calls")), 2);
    CHECK_STR(json_string_value(at(message, "tool_calls.0.id")), "call_000000000000000700000000");
    CHECK_STR(json_string_value(at(message, "tool_calls.0.type")), "function");
    CHECK(!at(message, "tool_calls.0.index"));
    CHECK_STR(json_string_value(at(message, "tool_calls.0.function.name")), "f");
    CHECK_STR(json_string_value(at(message, "tool_calls.0.function.arguments")),
              "{\"a\": 2, \"b\": \"\\\"3\\\"\"}");
    CHECK_STR(json_string_value(at(message, "tool_calls.1.function.arguments")), "{}");
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "tool_calls");
    json_decref(v);
    finish();
}

TEST(openai_tool_call_without_content_has_null)
{
    begin(4000);
    CHECK_INT(talk("{\"messages\": [" USER "], " TOOLS "}"), 0);
    say_scored(
        "hm\n</think>\n\n\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"b\">cut",
        SCHED_LENGTH);
    openai_write_reply(&model, &r, &out);
    json_t *v = parse(out.data);
    CHECK(json_is_null(at(v, "choices.0.message.content")));
    /* Cut short: no JSON, so that nobody runs it. */
    CHECK_STR(json_string_value(at(v, "choices.0.message.tool_calls.0.function.arguments")),
              "{\"b\": \"cut");
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "length");
    json_decref(v);
    finish();
}

TEST(openai_without_tools_a_call_is_content)
{
    begin(4000);
    CHECK_INT(talk("{\"messages\": [" USER "], \"tool_choice\": \"none\", " TOOLS "}"), 0);
    say_scored(CALLS, SCHED_STOP);
    openai_write_reply(&model, &r, &out);
    json_t *v = parse(out.data);
    CHECK_HAS(json_string_value(at(v, "choices.0.message.content")),
              "Well\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter");
    CHECK(!at(v, "choices.0.message.tool_calls"));
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "stop");
    json_decref(v);
    finish();
}

/* What a client puts together from the pieces of call `index`. */
struct pieces {
    struct buf name, arguments;
    int n_ids;
};

static void take_pieces(json_t *delta, int index, struct pieces *p)
{
    json_t *call;
    size_t i;
    json_array_foreach(at(delta, "tool_calls"), i, call)
    {
        const char *name = json_string_value(at(call, "function.name"));
        CHECK(json_is_integer(at(call, "index")));
        if (json_integer_value(at(call, "index")) != index)
            continue;
        p->n_ids += json_is_string(at(call, "id"));
        buf_puts(&p->name, name ? name : "");
        buf_puts(&p->arguments, json_string_value(at(call, "function.arguments")));
    }
}

TEST(openai_events_stream_tool_calls)
{
    begin(4000);
    CHECK_INT(talk("{\"messages\": [" USER "], \"stream\": true, " TOOLS "}"), 0);
    struct tokens ids = {0};
    struct pieces first = {0}, second = {0};
    int n_events = 0;
    CHECK_INT(tokenizer_encode(words, STR(CALLS), TOKENIZER_WITH_MARKERS, &ids), 0);
    tokens_push(&ids, chat_end_id(&chat));
    for (size_t i = 0; i < ids.len; i++) {
        scored_token(ids.ids[i], i + 1 < ids.len ? SCHED_GOES_ON : SCHED_STOP);
        buf_reset(&out);
        openai_write_events(&model, &r, &out);
        request_sent(&r);
        if (out.len == 0)
            continue;
        json_t *v = event(0);
        n_events++;
        take_pieces(at(v, "choices.0.delta"), 0, &first);
        take_pieces(at(v, "choices.0.delta"), 1, &second);
        CHECK(r.state != REQUEST_DONE ||
              strcmp(json_string_value(at(v, "choices.0.finish_reason")), "tool_calls") == 0);
        json_decref(v);
    }
    CHECK_INT(r.state, REQUEST_DONE);
    CHECK(n_events > 5);
    CHECK_STR(first.name.data, "f");
    CHECK_STR(first.arguments.data, "{\"a\": 2, \"b\": \"\\\"3\\\"\"}");
    CHECK_STR(second.name.data, "g");
    CHECK_STR(second.arguments.data, "{}");
    CHECK_INT(first.n_ids, 1);
    CHECK_INT(second.n_ids, 1);
    buf_fini(&first.name);
    buf_fini(&first.arguments);
    buf_fini(&second.name);
    buf_fini(&second.arguments);
    tokens_fini(&ids);
    finish();
}

TEST(openai_events_wait_for_something_to_say)
{
    begin(200);
    CHECK_INT(completion("{\"prompt\": [1], \"stream\": true, \"stop\": \"xyz\"}"), 0);
    scored_token('a', SCHED_GOES_ON);
    openai_write_events(&model, &r, &out);
    CHECK(out.len > 0);
    request_sent(&r);
    buf_reset(&out);
    scored_token('x', SCHED_GOES_ON);
    openai_write_events(&model, &r, &out);
    CHECK_INT(out.len, 0);
    scored_token('y', SCHED_GOES_ON);
    scored_token('z', SCHED_GOES_ON);
    CHECK_INT(r.state, REQUEST_DONE);
    openai_write_events(&model, &r, &out);
    json_t *v = event(0);
    CHECK_STR(json_string_value(at(v, "choices.0.text")), "");
    CHECK_STR(json_string_value(at(v, "choices.0.finish_reason")), "stop");
    json_decref(v);
    finish();
}

TEST(openai_maps_our_codes_to_statuses)
{
    static const struct {
        int code, status;
    } cases[] = {{E_BUSY, 429},     {E_UNAVAILABLE, 503}, {E_DEADLINE, 504}, {E_RANGE, 400},
                 {E_INTERNAL, 500}, {E_CORRUPT, 500},     {E_CANCELLED, 503}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        openai_error_of(&error, cases[i].code, "why");
        CHECK_INT(error.status, cases[i].status);
        CHECK_STR(error.message, "why");
    }
    openai_error_of(&error, E_BUSY, "");
    CHECK_STR(error.message, "resource exhausted");
}
