/* tests/unit/test_anthropic.c - the Messages API: bodies to the same prompts as OpenAI's, answers whole and in
 * events, and every refusal. */
#include "coordinator/anthropic.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tests/unit/dialect_stage.h"

static int ask(const char *body)
{
    begin_request(REQUEST_MESSAGES);
    return anthropic_parse(&model, str_of(body), &r, &error);
}

static json_t *reply(void)
{
    buf_reset(&out);
    anthropic_write_reply(&model, &r, &out);
    json_t *v = json_loads(out.data, 0, NULL);
    CHECK(v != NULL);
    return v;
}

#define HEAD "{\"model\": \"tiny\", \"max_tokens\": 900, "
#define USER "{\"role\": \"user\", \"content\": \"x\"}"
#define TOOLS \
    "\"tools\": [{\"name\": \"f\", \"description\": \"d\", \"input_schema\": {\"type\": " \
    "\"object\", " \
    "\"properties\": {\"a\": {\"type\": \"integer\"}, \"b\": {\"type\": \"string\"}}}}]"
#define CALLS \
    "let me\n</think>\n\nWell\n<minimax:tool_call>\n<invoke name=\"f\">\n" \
    "<parameter name=\"a\">2</parameter>\n<parameter name=\"b\">\"3\"</parameter>\n</invoke>\n" \
    "<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>"

TEST(anthropic_system_and_texts_are_rendered)
{
    begin(4000);
    CHECK_INT(ask(HEAD "\"system\": [{\"type\": \"text\", \"text\": \"Be \", \"cache_control\": "
                       "{\"type\": \"ephemeral\"}}, {\"type\": \"text\", \"text\": \"brief.\"}], "
                       "\"metadata\": {\"user_id\": \"u\"}, \"messages\": [{\"role\": \"user\", "
                       "\"content\": [{\"type\": \"text\", \"text\": \"1+1?\"}]}]}"),
              0);
    struct buf text = prompt_text();
    CHECK_STR(text.data, "]~!b[]~b]system\nBe brief.[e~[\n]~b]user\n1+1?[e~[\n]~b]ai\n<think>\n");
    CHECK_INT(r.max_tokens, 900);
    CHECK_INT(ask(HEAD "\"system\": \"S\", \"thinking\": {\"type\": \"disabled\"}, \"messages\": "
                       "[" USER "]}"),
              0);
    buf_fini(&text);
    text = prompt_text();
    CHECK_STR(text.data, "]~!b[]~b]system\nS[e~[\n]~b]user\nx[e~[\n]~b]ai\n<think>\n</think>\n\n");
    buf_fini(&text);
    finish();
}

/* Results come back in any order, and a message of results alone is no new turn: the thinking stays. */
TEST(anthropic_tool_turns_are_rendered_as_openai_ones)
{
    begin(4000);
    CHECK_INT(
        ask(HEAD
            "\"messages\": [" USER
            ", {\"role\": \"assistant\", \"content\": [{\"type\": \"thinking\", \"thinking\": "
            "\"hm\", \"signature\": \"s\"}, {\"type\": \"text\", \"text\": \"Well\"}, "
            "{\"type\": \"tool_use\", \"id\": \"t1\", \"name\": \"f\", \"input\": {\"a\": 2}}, "
            "{\"type\": \"tool_use\", \"id\": \"t2\", \"name\": \"f\", \"input\": {}}]}, "
            "{\"role\": \"user\", \"content\": [{\"type\": \"tool_result\", \"tool_use_id\": "
            "\"t2\", \"content\": [{\"type\": \"text\", \"text\": \"second\"}]}, {\"type\": "
            "\"tool_result\", \"tool_use_id\": \"t1\", \"content\": \"first\"}]}], " TOOLS "}"),
        0);
    struct buf text = prompt_text();
    CHECK_HAS(text.data, "<tool>{\"name\": \"f\", \"description\": \"d\", \"parameters\": {");
    CHECK_HAS(text.data, "]~b]ai\n<think>\nhm\n</think>\n\nWell\n<minimax:tool_call>\n<invoke "
                         "name=\"f\">\n<parameter name=\"a\">2</parameter>\n</invoke>\n<invoke "
                         "name=\"f\">\n</invoke>\n</minimax:tool_call>[e~[\n]~b]tool\n"
                         "<response>first</response>\n<response>second</response>[e~[\n]~b]ai\n");
    buf_fini(&text);
    finish();
}

TEST(anthropic_reply_has_blocks)
{
    begin(4000);
    CHECK_INT(ask(HEAD "\"messages\": [" USER "], " TOOLS "}"), 0);
    say(CALLS, SCHED_STOP);
    json_t *v = reply();
    CHECK_STR(json_string_value(cluster_at(v, "id")), "msg_0000000000000007");
    CHECK_STR(json_string_value(cluster_at(v, "type")), "message");
    CHECK_STR(json_string_value(cluster_at(v, "role")), "assistant");
    CHECK_INT(json_array_size(cluster_at(v, "content")), 4);
    CHECK_STR(json_string_value(cluster_at(v, "content.0.thinking")), "let me");
    CHECK_STR(json_string_value(cluster_at(v, "content.0.signature")), "msg_0000000000000007");
    CHECK_STR(json_string_value(cluster_at(v, "content.1.text")), "Well");
    CHECK_STR(json_string_value(cluster_at(v, "content.2.type")), "tool_use");
    CHECK_STR(json_string_value(cluster_at(v, "content.2.id")), "toolu_000000000000000700000000");
    CHECK_INT(json_integer_value(cluster_at(v, "content.2.input.a")), 2);
    CHECK_STR(json_string_value(cluster_at(v, "content.2.input.b")), "\"3\"");
    CHECK_INT(json_object_size(cluster_at(v, "content.3.input")), 0);
    CHECK_STR(json_string_value(cluster_at(v, "stop_reason")), "tool_use");
    CHECK(json_is_null(cluster_at(v, "stop_sequence")));
    CHECK_INT(json_integer_value(cluster_at(v, "usage.input_tokens")), r.prompt.len);
    CHECK_INT(json_integer_value(cluster_at(v, "usage.output_tokens")), r.output.len);
    json_decref(v);
    finish();
}

/* Nobody shall run half a call. */
TEST(anthropic_reply_leaves_out_a_call_that_was_cut)
{
    begin(4000);
    CHECK_INT(ask(HEAD "\"messages\": [" USER "], " TOOLS "}"), 0);
    say("hm\n</think>\n\n\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"b\">cut",
        SCHED_LENGTH);
    json_t *v = reply();
    CHECK_INT(json_array_size(cluster_at(v, "content")), 1);
    CHECK_STR(json_string_value(cluster_at(v, "stop_reason")), "max_tokens");
    json_decref(v);
    finish();
}

TEST(anthropic_names_the_stop_sequence)
{
    begin(4000);
    CHECK_INT(ask(HEAD "\"messages\": [" USER "], \"stop_sequences\": [\"zz\", \"END\"], "
                       "\"thinking\": {\"type\": \"disabled\"}}"),
              0);
    say("one END two", SCHED_STOP);
    json_t *v = reply();
    CHECK_STR(json_string_value(cluster_at(v, "content.0.text")), "one ");
    CHECK_STR(json_string_value(cluster_at(v, "stop_reason")), "stop_sequence");
    CHECK_STR(json_string_value(cluster_at(v, "stop_sequence")), "END");
    json_decref(v);
    finish();
}

/* ---- events: put together as a client does, they are the whole reply ----------------------- */

struct client {
    json_t *message, *open;
    struct buf input; /* of the open call */
    int n_stops;
};

static void append(json_t *o, const char *key, const char *text)
{
    struct buf all = {0};
    buf_puts(&all, json_string_value(json_object_get(o, key)));
    buf_puts(&all, text);
    json_object_set_new(o, key, json_string(all.data ? all.data : ""));
    buf_fini(&all);
}

static void take(struct client *c, const json_t *root)
{
    json_t *v = json_deep_copy(root);
    const char *type = json_string_value(json_object_get(v, "type"));
    CHECK(!c->n_stops || !strcmp(type, "message_stop"));
    if (strcmp(type, "message_start") == 0) {
        CHECK(!c->message);
        c->message = json_incref(json_object_get(v, "message"));
    } else if (strcmp(type, "content_block_start") == 0) {
        json_t *content = json_object_get(c->message, "content");
        CHECK(!c->open);
        CHECK_INT(json_integer_value(json_object_get(v, "index")), json_array_size(content));
        c->open = json_object_get(v, "content_block");
        json_array_append(content, c->open);
        buf_reset(&c->input);
    } else if (strcmp(type, "content_block_delta") == 0) {
        json_t *delta = json_object_get(v, "delta"), *text;
        static const char *const fields[] = {"text", "thinking", "signature"};
        for (int i = 0; i < 3; i++)
            if ((text = json_object_get(delta, fields[i])))
                append(c->open, fields[i], json_string_value(text));
        if ((text = json_object_get(delta, "partial_json")))
            buf_puts(&c->input, json_string_value(text));
    } else if (strcmp(type, "content_block_stop") == 0) {
        if (c->input.len > 0)
            json_object_set_new(c->open, "input", json_loads(c->input.data, 0, NULL));
        CHECK(c->open);
        c->open = NULL;
    } else if (strcmp(type, "message_delta") == 0) {
        json_object_update(c->message, json_object_get(v, "delta"));
        json_object_set(c->message, "usage", json_object_get(v, "usage"));
        c->n_stops++;
    } else {
        CHECK(strcmp(type, "ping") == 0 || strcmp(type, "message_stop") == 0);
    }
    json_decref(v);
}

static void take_all(struct client *c, const char *text)
{
    for (const char *p = text; (p = strstr(p, "data: ")); p++) {
        json_t *v = json_loadb(p + 6, strcspn(p + 6, "\n"), 0, NULL);
        CHECK(v != NULL);
        take(c, v);
        json_decref(v);
    }
}

static void check_stream(const char *text, size_t per_send)
{
    struct client c = {0};
    struct tokens ids = ids_of(text);
    CHECK_INT(ask(HEAD "\"stream\": true, \"messages\": [" USER "], " TOOLS "}"), 0);
    for (size_t i = 0; i < ids.len; i++) {
        bool last = i + 1 == ids.len;
        token(ids.ids[i], last ? SCHED_STOP : SCHED_GOES_ON);
        if (!last && (i + 1) % per_send != 0)
            continue;
        buf_reset(&out);
        anthropic_write_events(&model, &r, &out);
        request_sent(&r);
        take_all(&c, out.data ? out.data : "");
    }
    CHECK_INT(c.n_stops, 1);
    json_t *streamed = c.message;
    CHECK_INT(ask(HEAD "\"messages\": [" USER "], " TOOLS "}"), 0);
    say(text, SCHED_STOP);
    json_t *whole = reply();
    if (!json_equal(streamed, whole))
        test_fail(__FILE__, __LINE__, "%s\n%s", json_dumps(streamed, 0), json_dumps(whole, 0));
    json_decref(whole);
    json_decref(streamed);
    buf_fini(&c.input);
    tokens_fini(&ids);
}

TEST(anthropic_events_are_the_reply_in_pieces)
{
    begin(4000);
    for (size_t per_send = 1; per_send < 40; per_send += 3) {
        check_stream(CALLS, per_send);
        check_stream("just thinking", per_send);
        check_stream("a\n</think>\n\nthe answer", per_send);
        check_stream("straight in<minimax:tool_call>\n<invoke name=\"f\">\n<parameter "
                     "name=\"b\">v</parameter>\n</invoke>\n</minimax:tool_call>",
                     per_send);
    }
    finish();
}

TEST(anthropic_events_have_one_id_for_each_token)
{
    begin(4000);
    CHECK_INT(ask(HEAD "\"stream\": true, \"messages\": [" USER "]}"), 0);
    token('a', SCHED_GOES_ON);
    anthropic_write_events(&model, &r, &out);
    CHECK_HAS(out.data, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{");
    CHECK_HAS(out.data, "event: ping\n");
    CHECK_STR(strstr(out.data, "event: content_block_delta"),
              "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
              "\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"a\"}}\nid: 1\n\n");
    CHECK(strstr(out.data, "id: ") == strstr(out.data, "id: 1\n") ||
          strstr(out.data, "\nid: ") == strstr(out.data, "\nid: 1\n"));
    buf_reset(&out);
    r.seen = 1;
    anthropic_write_events(&model, &r, &out);
    CHECK_INT(out.len, 0);
    openai_error_of(&error, E_UNAVAILABLE, "gone");
    anthropic_write_error_event(&error, &r, &out);
    CHECK_STR(out.data, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":"
                        "\"overloaded_error\",\"message\":\"gone\"}}\nid: 2\n\n");
    finish();
}

TEST(anthropic_counts_tokens)
{
    begin(4000);
    CHECK_INT(ask(HEAD "\"messages\": [" USER "]}"), 0);
    size_t want = r.prompt.len;
    request_fini(&r);
    request_init(&r, REQUEST_MESSAGES, 7, 100);
    CHECK_INT(anthropic_parse_count(&model, STR("{\"messages\": [" USER "]}"), &r, &error), 0);
    CHECK_INT(r.prompt.len, want);
    finish();
}

struct refusal {
    const char *body, *param, *part;
};

TEST(anthropic_refuses_with_the_field)
{
#define AFTER_CALL \
    HEAD "\"messages\": [" USER ", {\"role\": \"assistant\", \"content\": [{\"type\": " \
         "\"tool_use\", \"id\": \"t1\", \"name\": \"f\", \"input\": {}}]}, {\"role\": \"user\", " \
         "\"content\": [{\"type\": \"tool_result\", \"tool_use_id\": "
    static const struct refusal list[] = {
        {"[]", "", "a JSON object"},
        {"{\"messages\": [" USER "]}", "max_tokens", "required"},
        {"{\"max_tokens\": 0, \"messages\": [" USER "]}", "max_tokens", "between"},
        {HEAD "\"messages\": []}", "messages", "at least one"},
        {HEAD "\"x\": 1}", "messages", "required"},
        {HEAD "\"messages\": [7]}", "messages[0]", "an object"},
        {HEAD "\"messages\": [{\"role\": \"system\", \"content\": \"x\"}]}", "messages[0]",
         "\"system\""},
        {HEAD "\"messages\": [{\"role\": \"user\"}]}", "messages[0].content", "missing"},
        {HEAD "\"messages\": [{\"role\": \"user\", \"content\": []}]}", "messages[0].content",
         "empty"},
        {HEAD "\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}",
         "messages[0].content[0]", "\"image\""},
        {HEAD "\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]}",
         "messages[0].content[0]", "text must be a string"},
        {HEAD "\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"tool_use\"}]}]}",
         "messages[0].content[0]", "not supported here"},
        {HEAD "\"messages\": [" USER ", {\"role\": \"assistant\", \"content\": \"He\"}]}",
         "messages", "the last one must be the user's"},
        {AFTER_CALL "\"t9\"}]}]}", "messages", "\"t9\""},
        {AFTER_CALL "\"t1\"}, {\"type\": \"tool_result\", \"tool_use_id\": \"t1\"}]}]}", "messages",
         "two results"},
        {HEAD "\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"tool_result\", "
              "\"tool_use_id\": \"t\"}]}]}",
         "messages", ""},
        {HEAD "\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": "
              "\"a\"}, {\"type\": \"tool_result\", \"tool_use_id\": \"t\"}]}]}",
         "messages[0].content[1]", "before"},
        {HEAD "\"system\": 3, \"messages\": [" USER "]}", "system", "text blocks"},
        {HEAD "\"tools\": [{\"type\": \"web_search_20250305\", \"name\": \"w\"}], \"messages\": "
              "[" USER "]}",
         "tools[0]", "web_search"},
        {HEAD "\"tools\": [{\"name\": \"f\"}], \"messages\": [" USER "]}", "tools[0]",
         "input_schema"},
        {HEAD "\"thinking\": {\"type\": \"much\"}, \"messages\": [" USER "]}", "thinking",
         "adaptive"},
        {HEAD "\"temperature\": 3, \"messages\": [" USER "]}", "temperature", "between"},
        {"{\"model\": \"gpt\", \"max_tokens\": 3, \"messages\": [" USER "]}", "model", "gpt"},
    };
    begin(4000);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        test_note("%s", list[i].body);
        CHECK_INT(ask(list[i].body), E_INVALID);
        CHECK_STR(error.param, list[i].param);
        CHECK_HAS(error.message, list[i].part);
        buf_reset(&out);
        anthropic_write_error(&error, &out);
        json_t *v = json_loads(out.data, 0, NULL);
        CHECK_STR(json_string_value(cluster_at(v, "type")), "error");
        CHECK_STR(json_string_value(cluster_at(v, "error.type")),
                  error.status == 404 ? "not_found_error" : "invalid_request_error");
        json_decref(v);
    }
    finish();
}
