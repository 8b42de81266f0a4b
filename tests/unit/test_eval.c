/* tests/unit/test_eval.c - what `polymath eval` counts as a right answer. */
#include <jansson.h>

#include "tests/lib/test.h"
#include "tools/eval.h"

static bool matches(const char *expect_text, const char *message_text)
{
    json_t *expect = json_loads(expect_text, 0, NULL);
    json_t *message = json_loads(message_text, 0, NULL);
    CHECK(expect != NULL && message != NULL);
    bool same = eval_matches(expect, message);
    json_decref(expect);
    json_decref(message);
    return same;
}

TEST(eval_wants_the_exact_text)
{
    CHECK(matches("{\"content\":\"7\"}", "{\"content\":\"7\"}"));
    CHECK(!matches("{\"content\":\"7\"}", "{\"content\":\"7.\"}"));
    CHECK(!matches("{\"content\":\"7\"}", "{\"content\":null}"));
    CHECK(!matches("{}", "{}"));
    CHECK(!matches("{\"content\":\"7\"}", "{\"content\":\"7\",\"tool_calls\":[{}]}"));
}

TEST(eval_compares_calls_by_name_and_value)
{
    static const char want[] =
        "{\"tool_calls\":[{\"name\":\"f\",\"arguments\":{\"a\":1,\"b\":\"x\"}}]}";
    CHECK(matches(want, "{\"tool_calls\":[{\"function\":{\"name\":\"f\","
                        "\"arguments\":\"{\\\"b\\\":\\\"x\\\",\\\"a\\\":1}\"}}]}"));
    CHECK(!matches(want, "{\"tool_calls\":[{\"function\":{\"name\":\"g\","
                         "\"arguments\":\"{\\\"b\\\":\\\"x\\\",\\\"a\\\":1}\"}}]}"));
    CHECK(!matches(want, "{\"tool_calls\":[{\"function\":{\"name\":\"f\","
                         "\"arguments\":\"{\\\"b\\\":\\\"x\\\",\\\"a\\\":\\\"1\\\"}\"}}]}"));
    CHECK(!matches(want, "{\"content\":\"f\"}"));
    CHECK(!matches(want, "{\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{\"}}]}"));
    CHECK(!matches(want, "{\"tool_calls\":[7]}"));
}

TEST(eval_reads_calls_in_the_content)
{
    static const char want[] = "{\"tool_calls\":[{\"name\":\"f\",\"arguments\":{\"a\":1}}]}";
    CHECK(matches(want, "{\"content\":\"\\n<minimax:tool_call>\\n<invoke name=\\\"f\\\">\\n"
                        "<parameter name=\\\"a\\\">1</parameter>\\n</invoke>\\n"
                        "</minimax:tool_call>\"}"));
    CHECK(!matches(want, "{\"content\":\"\\n<minimax:tool_call>\\n<invoke name=\\\"f\\\">\\n"
                         "<parameter name=\\\"a\\\">2</parameter>\\n</invoke>\\n"
                         "</minimax:tool_call>\"}"));
}
