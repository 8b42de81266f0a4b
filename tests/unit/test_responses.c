/* tests/unit/test_responses.c - the Responses API: items to the same prompts as chat's, answers whole and in events,
 * and every refusal. */
#include "coordinator/responses.h"

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
    begin_request(REQUEST_RESPONSES);
    return responses_parse(&model, str_of(body), &r, &error);
}

static json_t *reply(void)
{
    buf_reset(&out);
    responses_write_reply(&model, &r, &out);
    json_t *v = json_loads(out.data, 0, NULL);
    CHECK(v != NULL);
    return v;
}

#define TOOLS \
    "\"tools\": [{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"type\": " \
    "\"object\", " \
    "\"properties\": {\"a\": {\"type\": \"integer\"}, \"b\": {\"type\": \"string\"}}}}]"
#define CALLS \
    "let me\n</think>\n\nWell\n<minimax:tool_call>\n<invoke name=\"f\">\n" \
    "<parameter name=\"a\">2</parameter>\n<parameter name=\"b\">\"3\"</parameter>\n</invoke>\n" \
    "<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>"

TEST(responses_items_are_rendered_as_messages)
{
    begin(4000);
    CHECK_INT(
        ask("{\"input\": \"hi\", \"instructions\": \"S\", \"reasoning\": {\"effort\": \"none\"}, "
            "\"max_output_tokens\": 9, \"store\": true, \"metadata\": {}}"),
        0);
    struct buf text = prompt_text();
    CHECK_STR(text.data, "]~!b[]~b]system\nS[e~[\n]~b]user\nhi[e~[\n]~b]ai\n<think>\n</think>\n\n");
    CHECK_INT(r.max_tokens, 9);
    buf_fini(&text);
    CHECK_INT(
        ask("{\"instructions\": \"S\", \"input\": [{\"role\": \"developer\", \"content\": \"D\"}, "
            "{\"type\": \"message\", \"role\": \"user\", \"content\": [{\"type\": \"input_text\", "
            "\"text\": \"x\"}]}, {\"type\": \"reasoning\", \"id\": \"rs\", \"summary\": [], "
            "\"content\": "
            "[{\"type\": \"reasoning_text\", \"text\": \"hm\"}]}, {\"type\": \"message\", "
            "\"role\": "
            "\"assistant\", \"content\": [{\"type\": \"output_text\", \"text\": \"Well\", "
            "\"annotations\": "
            "[]}]}, {\"type\": \"function_call\", \"call_id\": \"c1\", \"name\": \"f\", "
            "\"arguments\": "
            "\"{\\\"a\\\": 2}\"}, {\"type\": \"function_call\", \"call_id\": \"c2\", \"name\": "
            "\"f\", "
            "\"arguments\": \"{}\"}, {\"type\": \"function_call_output\", \"call_id\": \"c2\", "
            "\"output\": "
            "\"second\"}, {\"type\": \"function_call_output\", \"call_id\": \"c1\", \"output\": "
            "[{\"type\": \"input_text\", \"text\": \"first\"}]}], " TOOLS "}"),
        0);
    text = prompt_text();
    CHECK_HAS(text.data, "]~b]system\nS\n\nD\n\n# Tools");
    CHECK_HAS(text.data, "]~b]ai\n<think>\nhm\n</think>\n\nWell\n<minimax:tool_call>\n<invoke "
                         "name=\"f\">\n<parameter name=\"a\">2</parameter>\n</invoke>\n<invoke "
                         "name=\"f\">\n</invoke>\n</minimax:tool_call>[e~[\n]~b]tool\n"
                         "<response>first</response>\n<response>second</response>[e~[\n]~b]ai\n");
    buf_fini(&text);
    finish();
}

TEST(responses_reply_has_items)
{
    begin(4000);
    CHECK_INT(ask("{\"input\": \"x\", " TOOLS "}"), 0);
    r.max_tokens = 900;
    say(CALLS, SCHED_STOP);
    json_t *v = reply();
    CHECK_STR(json_string_value(cluster_at(v, "status")), "completed");
    CHECK_INT(json_array_size(cluster_at(v, "output")), 4);
    CHECK_STR(json_string_value(cluster_at(v, "output.0.type")), "reasoning");
    CHECK_STR(json_string_value(cluster_at(v, "output.0.content.0.text")), "let me");
    CHECK_STR(json_string_value(cluster_at(v, "output.1.content.0.text")), "Well");
    CHECK_STR(json_string_value(cluster_at(v, "output.2.type")), "function_call");
    CHECK_STR(json_string_value(cluster_at(v, "output.2.call_id")),
              "call_000000000000000700000000");
    CHECK_STR(json_string_value(cluster_at(v, "output.2.arguments")),
              "{\"a\": 2, \"b\": \"\\\"3\\\"\"}");
    CHECK_STR(json_string_value(cluster_at(v, "output.3.arguments")), "{}");
    CHECK_INT(json_integer_value(cluster_at(v, "usage.output_tokens")), r.output.len);
    CHECK(json_integer_value(cluster_at(v, "usage.output_tokens_details.reasoning_tokens")) > 0);
    json_decref(v);
    CHECK_INT(ask("{\"input\": \"x\"}"), 0);
    r.max_tokens = 900;
    say("hm\n</think>\n\nand th", SCHED_LENGTH);
    v = reply();
    CHECK_STR(json_string_value(cluster_at(v, "status")), "incomplete");
    CHECK_STR(json_string_value(cluster_at(v, "output.0.status")), "completed");
    CHECK_STR(json_string_value(cluster_at(v, "output.1.status")), "incomplete");
    json_decref(v);
    finish();
}

TEST(responses_reply_repeats_what_was_asked)
{
    begin(4000);
    CHECK_INT(ask("{\"input\": \"x\", \"instructions\": \"S\", \"metadata\": {\"a\": \"1\"}, "
                  "\"parallel_tool_calls\": false, \"tool_choice\": \"auto\", \"truncation\": "
                  "null, " TOOLS "}"),
              0);
    r.max_tokens = 900;
    say("hm\n</think>\n\nWell", SCHED_STOP);
    json_t *v = reply();
    CHECK_STR(json_string_value(cluster_at(v, "instructions")), "S");
    CHECK_STR(json_string_value(cluster_at(v, "metadata.a")), "1");
    CHECK(json_is_false(cluster_at(v, "parallel_tool_calls")));
    CHECK_STR(json_string_value(cluster_at(v, "tools.0.name")), "f");
    CHECK_STR(json_string_value(cluster_at(v, "truncation")), "disabled");
    CHECK_STR(json_string_value(cluster_at(v, "text.format.type")), "text");
    CHECK(json_is_null(cluster_at(v, "reasoning.effort")));
    json_decref(v);
    finish();
}

/* To a client that comes back the same is said, from the request alone. */
TEST(responses_begin_again_from_the_request)
{
    struct request first, again;
    struct buf before = {0};
    begin(4000);
    CHECK_INT(ask("{\"stream\": true, \"input\": \"x\", \"instructions\": \"S\", " TOOLS "}"), 0);
    r.max_tokens = 900;
    struct tokens ids = ids_of(CALLS);
    for (int round = 0; round < 2; round++) {
        buf_reset(&out);
        for (size_t i = 0; i < ids.len; i++) {
            token(ids.ids[i], i + 1 == ids.len ? SCHED_STOP : SCHED_GOES_ON);
            responses_write_events(&model, &r, &out);
            request_sent(&r);
        }
        if (round == 0) {
            buf_append_str(&before, buf_str(&out));
            request_again(&r, &again);
            first = r;
            r = again;
            request_started(&r);
        }
    }
    CHECK_STR(out.data, before.data);
    request_fini(&first);
    buf_fini(&before);
    tokens_fini(&ids);
    finish();
}

/* Every item as its deltas say it, as its last event says it, and as the last event of all says it. */
static void check_stream(const char *text, size_t per_send)
{
    struct tokens ids = ids_of(text);
    json_t *done = json_array(), *final = NULL;
    struct buf deltas = {0};
    json_int_t last = -1;
    int n_added = 0;
    CHECK_INT(ask("{\"stream\": true, \"input\": \"x\", " TOOLS "}"), 0);
    r.max_tokens = 900;
    for (size_t i = 0; i < ids.len; i++) {
        bool ends = i + 1 == ids.len;
        token(ids.ids[i], ends ? SCHED_STOP : SCHED_GOES_ON);
        if (!ends && (i + 1) % per_send != 0)
            continue;
        buf_reset(&out);
        responses_write_events(&model, &r, &out);
        request_sent(&r);
        for (const char *p = out.data; p && (p = strstr(p, "data: ")); p++) {
            json_t *v = json_loadb(p + 6, strcspn(p + 6, "\n"), 0, NULL);
            const char *type = json_string_value(json_object_get(v, "type"));
            CHECK(json_integer_value(json_object_get(v, "sequence_number")) > last && !final);
            last = json_integer_value(json_object_get(v, "sequence_number"));
            if (strstr(type, ".delta"))
                buf_puts(&deltas, json_string_value(json_object_get(v, "delta")));
            n_added += strcmp(type, "response.output_item.added") == 0;
            if (strcmp(type, "response.output_item.done") == 0) {
                json_t *item = json_object_get(v, "item"),
                       *said = cluster_at(item, "content.0.text");
                CHECK_INT(json_integer_value(json_object_get(v, "output_index")),
                          json_array_size(done));
                said = said ? said : json_object_get(item, "arguments");
                CHECK_STR(deltas.data, json_string_value(said));
                buf_reset(&deltas);
                json_array_append(done, item);
            } else if (strcmp(type, "response.completed") == 0) {
                final = json_incref(cluster_at(v, "response.output"));
            }
            json_decref(v);
        }
    }
    CHECK_INT(n_added, json_array_size(done));
    CHECK(json_equal(final, done));
    CHECK_INT(ask("{\"input\": \"x\", " TOOLS "}"), 0);
    r.max_tokens = 900;
    say(text, SCHED_STOP);
    json_t *whole = reply();
    CHECK(json_equal(json_object_get(whole, "output"), done));
    json_decref(whole);
    json_decref(final);
    json_decref(done);
    buf_fini(&deltas);
    tokens_fini(&ids);
}

TEST(responses_events_are_the_reply_in_pieces)
{
    begin(4000);
    for (size_t per_send = 1; per_send < 40; per_send += 3) {
        check_stream(CALLS, per_send);
        check_stream("just thinking", per_send);
        check_stream("a\n</think>\n\nthe answer", per_send);
    }
    finish();
}

TEST(responses_refuse_with_the_field)
{
    static const struct {
        const char *body, *param, *part;
    } list[] = {
        {"{}", "input", "at least one item"},
        {"{\"input\": []}", "input", "at least one"},
        {"{\"input\": [3]}", "input[0]", "an object"},
        {"{\"input\": [{\"type\": \"item_reference\", \"id\": \"x\"}]}", "input[0]",
         "item_reference"},
        {"{\"input\": [{\"role\": \"robot\", \"content\": \"x\"}]}", "input[0]", "\"robot\""},
        {"{\"input\": [{\"role\": \"user\"}]}", "input[0].content", "a string or an array"},
        {"{\"input\": [{\"role\": \"user\", \"content\": [{\"type\": \"input_image\"}]}]}",
         "input[0].content", "input_image"},
        {"{\"input\": [{\"type\": \"function_call\", \"name\": \"f\", \"call_id\": \"c\", "
         "\"arguments\": \"[\"}]}",
         "input[0]", "JSON text of an object"},
        {"{\"input\": [{\"type\": \"function_call_output\", \"call_id\": \"c\", \"output\": "
         "\"r\"}]}",
         "messages", ""},
        {"{\"input\": \"x\", \"previous_response_id\": \"r\"}", "previous_response_id",
         "keeps no responses"},
        {"{\"input\": \"x\", \"background\": true}", "background", "not supported"},
        {"{\"input\": \"x\", \"instructions\": 5}", "instructions", "a string"},
        {"{\"input\": \"x\", \"tools\": [{\"type\": \"file_search\"}]}", "tools[0]", "file_search"},
        {"{\"input\": \"x\", \"tool_choice\": \"required\"}", "tool_choice", "there are none"},
        {"{\"input\": \"x\", \"text\": {\"format\": {\"type\": \"json_schema\"}}}", "text.format",
         "schema is missing"},
        {"{\"input\": \"x\", \"max_output_tokens\": 0}", "max_output_tokens", "between"},
    };
    begin(4000);
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        test_note("%s", list[i].body);
        CHECK_INT(ask(list[i].body), E_INVALID);
        CHECK_STR(error.param, list[i].param);
        CHECK_HAS(error.message, list[i].part);
    }
    finish();
}
