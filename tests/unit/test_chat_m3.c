/* tests/unit/test_chat_m3.c - MiniMax-M3's prompt, and what its output says. */
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "model/chat.h"
#include "model/output.h"
#include "model/tokenizer_write.h"
#include "tests/lib/test.h"

#define NS "]<]minimax[>["
#define SYSTEM(mode) \
    "]~!b[]~b]system\nYour model version is MiniMax-M3, developed by MiniMax. Knowledge cutoff: " \
    "January 2026. Founded in early 2022, MiniMax is a global AI foundation model company " \
    "committed to advancing the frontiers of AI towards AGI.\n\n<thinking_instructions>\nYou " \
    "have " \
    "a thinking capability that allows you to reason step by step before responding. When " \
    "thinking is enabled, wrap your reasoning in <mm:think></mm:think> tags before your " \
    "response. " \
    "When thinking is disabled, begin your response directly after the </mm:think> prefix. When " \
    "thinking is adaptive, decide on your own whether to think for the current turn.\n" mode \
    "\n</thinking_instructions>[e~[\n"
#define ENABLED \
    SYSTEM("Current thinking mode: enabled. You MUST think step by step before every response, " \
           "including after receiving function/tool results.")
#define DISABLED SYSTEM("Current thinking mode: disabled. Do not output any thinking process.")

static struct tokenizer *m3_tokenizer(void)
{
    struct tokenizer *t = NULL;
    struct err e = {0};
    if (tokenizer_write_family("tokenizer.json", MODEL_MINIMAX_M3, 900, &e) < 0 ||
        tokenizer_open(".", &t, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return t;
}

static json_t *json_of(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    CHECK(value != NULL);
    return value;
}

/* ---- the prompt ---- */

static void check_prompt(const struct chat_prompt *p, const char *want)
{
    struct tokenizer *t = m3_tokenizer();
    struct chat c;
    struct buf text = {0}, decoded = {0};
    struct tokens ids = {0};
    struct err e = {0};
    CHECK_INT(chat_render_text(CHAT_TEMPLATE_M3, p, &text, &e), 0);
    CHECK_STR(text.data, want);
    CHECK_INT(chat_init(&c, t, &e), 0);
    CHECK_INT(c.template, CHAT_TEMPLATE_M3);
    CHECK_INT(chat_render(&c, p, &ids, &e), 0);
    tokenizer_decode(t, ids.ids, ids.len, TOKENIZER_KEEP_SPECIAL, &decoded);
    CHECK_STR(decoded.data, want);
    buf_fini(&text);
    buf_fini(&decoded);
    tokens_fini(&ids);
    tokenizer_free(&t);
}

TEST(chat_m3_asks_with_thinking_on_and_off)
{
    struct chat_message hello = {.role = CHAT_USER, .content = STR("Hello")};
    struct chat_prompt p = {.messages = &hello, .n_messages = 1};
    check_prompt(&p, ENABLED "]~b]developer\nYou are a helpful assistant.[e~[\n"
                             "]~b]user\nHello[e~[\n]~b]ai\n<mm:think>");
    p.thinking = CHAT_THINKING_OFF;
    check_prompt(&p, DISABLED "]~b]developer\nYou are a helpful assistant.[e~[\n"
                              "]~b]user\nHello[e~[\n]~b]ai\n</mm:think>");
}

TEST(chat_m3_keeps_reasoning_and_nests_arguments)
{
    json_t *arguments = json_of("{\"city\": \"Oslo\", \"days\": [1, 2.5], \"deep\": {\"a\": null, "
                                "\"b\": true}, \"none\": null}");
    json_t *tools = json_of("[{\"type\": \"function\", \"function\": {\"name\": \"w\"}}]");
    struct chat_tool_call call = {.name = STR("weather"), .arguments = arguments};
    struct chat_message messages[] = {
        {.role = CHAT_SYSTEM, .content = STR("Be brief.")},
        {.role = CHAT_USER, .content = STR("Weather?")},
        {.role = CHAT_ASSISTANT,
         .reasoning = STR("look it up"),
         .content = STR("Wait."),
         .tool_calls = &call,
         .n_tool_calls = 1},
        {.role = CHAT_TOOL, .content = STR("rain")},
        {.role = CHAT_TOOL, .content = STR("sun")},
        {.role = CHAT_ASSISTANT, .content = STR("<mm:think>\nhm\n</mm:think>\nBoth.")},
        {.role = CHAT_ASSISTANT, .content = STR("No <mm:think> of mine")},
    };
    struct chat_prompt p = {
        .messages = messages, .n_messages = 7, .tools = tools, .ending = CHAT_AS_IT_IS};
    check_prompt(
        &p, ENABLED
        "]~b]developer\nBe brief.\n\n# Tools\nYou may call one or more tools to assist with the "
        "user query.\nHere are the tools available in JSONSchema format:\n\n<tools>\n"
        "<tool>{\"name\": \"w\"}</tool>\n</tools>\n\nTo call tools, wrap all invocations in a "
        "single " NS "<tool_call>" NS "</tool_call> block. Parameter values containing nested "
        "objects or arrays are recursively expanded into XML elements. Example:\n\n" NS
        "<tool_call>\n" NS "<invoke name=\"tool-name-1\">" NS "<param-1>value-1" NS "</param-1>" NS
        "<param-2>" NS "<item>" NS "<key-a>val-a" NS "</key-a>" NS "<key-b>val-b" NS "</key-b>" NS
        "</item>" NS "</param-2>" NS "</invoke>\n" NS "<invoke name=\"tool-name-2\">" NS
        "<param-1>value-1" NS "</param-1>" NS "</invoke>\n" NS "</tool_call>[e~[\n"
        "]~b]user\nWeather?[e~[\n"
        "]~b]ai\n<mm:think>look it up</mm:think>Wait." NS "<tool_call>\n" NS
        "<invoke name=\"weather\">" NS "<city>Oslo" NS "</city>" NS "<days>" NS "<item>1" NS
        "</item>" NS "<item>2.5" NS "</item>" NS "</days>" NS "<deep>" NS "<b>true" NS "</b>" NS
        "</deep>" NS "</invoke>\n" NS "</tool_call>[e~[\n"
        "]~b]tool\n<response>rain</response>\n<response>sun</response>[e~[\n"
        "]~b]ai\n<mm:think>hm</mm:think>Both.[e~[\n"
        "]~b]ai\n</mm:think>No <mm:think> of mine[e~[\n");
    json_decref(arguments);
    json_decref(tools);
}

/* ---- the output ---- */

static char *transcript(const struct output_events *said)
{
    static const char *const names[] = {"think", "say", "call", "args", "end", "error"};
    struct buf text = {0};
    for (size_t i = 0; i < said->n; i++) {
        struct str s = output_events_text(said, i);
        buf_printf(&text, "[%s%s%.*s]", names[said->list[i].kind], s.len ? " " : "", (int)s.len,
                   s.ptr);
    }
    char *copy = str_copy(buf_str(&text));
    buf_fini(&text);
    return copy;
}

/* One row: what the model says - its markers as tokens - and what comes out. */
static const struct {
    const char *output;
    enum output_place begins;
    enum output_ending ending;
    const char *want;
} rows[] = {
    {"I see.</mm:think>Good day.", OUTPUT_IN_REASONING, OUTPUT_STOPPED,
     "[think I see.][say Good day.]"},
    {"</mm:think>Hi <mm:think> there", OUTPUT_IN_CONTENT, OUTPUT_STOPPED,
     "[say Hi <mm:think> there]"},
    {"<mm:think>so</mm:think>yes", OUTPUT_IN_CONTENT, OUTPUT_STOPPED, "[think so][say yes]"},
    {"a</mm:think>b" NS "<tool_call>\n" NS "<invoke name=\"f\">" NS "<n>7" NS "</n>" NS "<s>7" NS
     "</s>" NS "<list>" NS "<item>1" NS "</item>" NS "<item>" NS "<k>v < w" NS "</k>" NS
     "</item>" NS "</list>" NS "</invoke>\n" NS "<invoke name=g>" NS "</invoke>\n" NS
     "</tool_call>\nmore",
     OUTPUT_IN_REASONING, OUTPUT_STOPPED,
     "[think a][say b][call f][args {\"n\": 7, \"s\": \"7\", \"list\": [1, {\"k\": \"v < w\"}]}]"
     "[end][call g][args {}][end][say more]"},
    {NS "<tool_call>" NS "<invoke name=\"f\">" NS "<s>a" NS "<b>1" NS "</b>c" NS "</s>" NS "<s>2" NS
        "</s>" NS "</invoke>" NS "</tool_call>",
     OUTPUT_IN_CONTENT, OUTPUT_STOPPED,
     "[call f][args {\"s\": {\"b\": 1, \"$text\": \"ac\"}}][end]"},
    {NS "<tool_call>" NS "<invoke name=\"f\">" NS "<s>half", OUTPUT_IN_CONTENT, OUTPUT_CUT,
     "[call f]"},
    {NS "<tool_call>" NS "<invoke name=\"f\">" NS "<s>x" NS "</t>" NS "</invoke>",
     OUTPUT_IN_CONTENT, OUTPUT_STOPPED, "[call f][error a tool call cannot be read]"},
    {"<tool_call>" NS "<invoke name=\"f\">" NS "</invoke></tool_call>", OUTPUT_IN_CONTENT,
     OUTPUT_STOPPED, "[call f][args {}][end]"},
    {"x" NS "y", OUTPUT_IN_CONTENT, OUTPUT_STOPPED, "[say x" NS "y]"},
    /* What the schema says of the parts. */
    {NS "<tool_call>" NS "<invoke name=\"f\">" NS "<o>" NS "<code>42" NS "</code>" NS "<list>" NS
        "<item>7" NS "</item>" NS "</list>" NS "<item>1" NS "</item>" NS "</o>" NS "</invoke>" NS
        "</tool_call>",
     OUTPUT_IN_CONTENT, OUTPUT_STOPPED,
     "[call f][args {\"o\": {\"code\": \"42\", \"list\": [\"7\"], \"item\": 1}}][end]"},
    {NS "<tool_call>" NS "<invoke name=\"f\">" NS "<o>" NS "<item>true" NS "</item>" NS "</o>" NS
        "<l>" NS "</l>" NS "</invoke>" NS "</tool_call>",
     OUTPUT_IN_CONTENT, OUTPUT_STOPPED, "[call f][args {\"o\": {\"item\": true}, \"l\": []}][end]"},
};

TEST(output_m3_reads_reasoning_content_and_nested_calls)
{
    struct tokenizer *t = m3_tokenizer();
    json_t *tools =
        json_of("[{\"type\": \"function\", \"function\": {\"name\": \"f\", "
                "\"parameters\": {\"type\": \"object\", \"properties\": {\"n\": "
                "{\"type\": \"integer\"}, \"s\": {\"type\": \"string\"}, \"l\": {\"type\": "
                "\"array\"}, \"o\": {\"type\": \"object\", \"properties\": {\"code\": "
                "{\"type\": \"string\"}, \"list\": {\"$ref\": \"#/$defs/l\"}}}}, "
                "\"$defs\": {\"l\": {\"type\": \"array\", \"items\": {\"type\": "
                "\"string\"}}}}}}]");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct output o;
        struct output_events said = {0};
        struct tokens ids = {0};
        CHECK_INT(tokenizer_encode(t, str_of(rows[i].output), TOKENIZER_WITH_MARKERS, &ids), 0);
        output_init(&o, t, rows[i].begins, tools);
        for (size_t k = 0; k < ids.len; k++)
            output_feed(&o, ids.ids[k], &said);
        output_finish(&o, rows[i].ending, &said);
        char *have = transcript(&said);
        CHECK_STR(have, rows[i].want);
        mem_free(have);
        output_fini(&o);
        output_events_fini(&said);
        tokens_fini(&ids);
    }
    json_decref(tools);
    tokenizer_free(&t);
}

/* Whatever tokens come, in any order: no crash, valid JSON in every call that ended. */
TEST(output_m3_bears_any_tokens)
{
    static const char *const pieces[] = {NS,           "<tool_call>", "</tool_call>",
                                         "<mm:think>", "</mm:think>", "<invoke name=\"f\">",
                                         "</invoke>",  "<s>",         "</s>",
                                         "<item>",     "</item>",     "7",
                                         "text",       "\n",          ">",
                                         "<"};
    struct tokenizer *t = m3_tokenizer();
    json_t *tools = json_of("[{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]");
    struct rng r = test_rng();
    for (int round = 0; round < 4000; round++) {
        struct output o;
        struct output_events said = {0};
        output_init(&o, t, OUTPUT_IN_CONTENT, tools);
        output_feed(&o, tokenizer_find(t, STR(NS)), &said);
        output_feed(&o, tokenizer_find(t, STR("<tool_call>")), &said);
        for (int n = (int)rng_below(&r, 40); n > 0; n--) {
            struct str piece = str_of(pieces[rng_below(&r, sizeof pieces / sizeof *pieces)]);
            int32_t id = tokenizer_find(t, piece);
            if (tokenizer_is_added(t, id))
                output_feed(&o, id, &said);
            else
                output_feed_text(&o, piece, &said);
        }
        output_finish(&o, OUTPUT_STOPPED, &said);
        for (size_t i = 0; i < said.n; i++) {
            if (said.list[i].kind != OUTPUT_ARGUMENTS)
                continue;
            struct str text = output_events_text(&said, i);
            json_t *v = json_loadb(text.ptr, text.len, JSON_REJECT_DUPLICATES, NULL);
            CHECK(json_is_object(v));
            json_decref(v);
        }
        output_fini(&o);
        output_events_fini(&said);
    }
    json_decref(tools);
    tokenizer_free(&t);
}
