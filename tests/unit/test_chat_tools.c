#include "tools/chat_tools.h"

#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "tests/lib/test.h"

TEST(chat_tools_calculator_knows_arithmetic)
{
    static const struct {
        const char *expression;
        double value;
    } cases[] = {{"347 + 285", 632},      {"2 + 3 * 4", 14}, {"(2+3)*4", 20},
                 {"-3 - -2", -1},         {"10 / 4", 2.5},   {" 1.5*2 ", 3},
                 {"100 - 20 - 30", 50},   {"64/4/2", 8},     {"-(1+2)", -3},
                 {"9131 * 798", 7286538}, {".5", .5},        {"((((7))))", 7}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        double value = 0;
        CHECK_INT(chat_tools_calculate(cases[i].expression, &value, NULL), 0);
        CHECK(value == cases[i].value);
    }
}

TEST(chat_tools_calculator_refuses_all_else)
{
    static const char *const bad[] = {"",     " ",         "1 +", "2 2", "(1",
                                      "1)",   "a",         "1/0", "0/0", "1e999",
                                      "2**3", "system(1)", ".",   "--",  "1,000"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct err e = {0};
        double value = 0;
        CHECK_INT(chat_tools_calculate(bad[i], &value, &e), E_INVALID);
        CHECK(strstr(e.text, "expression"));
    }
    char deep[4096];
    memset(deep, '(', sizeof(deep) - 1);
    deep[sizeof(deep) - 1] = 0;
    double value = 0;
    CHECK_INT(chat_tools_calculate(deep, &value, NULL), E_INVALID);
}

static void runs(const char *name, const char *arguments, const char *answer)
{
    char *got = chat_tools_run(name, arguments, 1700000000); /* 2023-11-14 22:13:20 UTC */
    CHECK_STR(got, answer);
    mem_free(got);
}

TEST(chat_tools_answer_whatever_the_model_sends)
{
    runs("calculator", "{\"expression\": \"7397 * 435\"}", "3217695");
    runs("calculator", "{\"expression\": \"1/3\"}", "0.333333333333333");
    runs("calculator", "{\"expression\": 3}",
         "error: argument 'expression' is missing or no string");
    runs("calculator", "{", "error: argument 'expression' is missing or no string");
    runs("calculator", "{\"expression\": \"1+\"}",
         "error: expression: character 3 is not arithmetic");
    runs("rm", "{}", "error: there is no such tool");
    runs("clock", "{}", "error: argument 'city' is missing or no string");
    runs("clock", "{\"city\": \"../../etc\"}", "error: no time zone is known for this city");
    runs("clock", "{\"city\": \"\"}", "error: no time zone is known for this city");
}

TEST(chat_tools_clock_knows_cities)
{
    char *there = chat_tools_run("clock", "{\"city\": \"tokyo\"}", 1700000000);
    /* A machine without tzdata knows no city. */
    CHECK(strcmp(there, "07:13") == 0 ||
          strcmp(there, "error: no time zone is known for this city") == 0);
    mem_free(there);
}

TEST(chat_tools_are_described_as_openai_does)
{
    json_t *list = chat_tools_list();
    CHECK_INT(json_array_size(list), 2);
    for (size_t i = 0; i < 2; i++) {
        const json_t *function = json_object_get(json_array_get(list, i), "function");
        const char *wanted = json_string_value(json_array_get(
            json_object_get(json_object_get(function, "parameters"), "required"), 0));
        CHECK(wanted &&
              json_object_get(
                  json_object_get(json_object_get(function, "parameters"), "properties"), wanted));
    }
    json_decref(list);
}
