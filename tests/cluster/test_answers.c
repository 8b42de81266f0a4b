/* tests/cluster/test_answers.c - requests through real processes: answers, streams, and
 * the promise of one answer whatever the cluster. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/kernels.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/http_client.h"

#define HELLO "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_tokens\":12"

/* Without keys everybody gets what is asked for. */
static void check_tiers(struct cluster *c)
{
    static const char *const cases[][2] = {
        {"", NULL},
        {",\"priority\":-2", NULL},
        {",\"service_tier\":\"auto\"", "default"},
        {",\"service_tier\":\"auto\",\"priority\":-2", "priority"},
        {",\"service_tier\":\"flex\"", "flex"},
        {",\"service_tier\":\"priority\"", "priority"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[256];
        snprintf(body, sizeof body, "%s,\"temperature\":0%s}", HELLO, cases[i][0]);
        json_t *root = cluster_ask_json(c, "/v1/chat/completions", body);
        const char *tier = json_string_value(cluster_at(root, "service_tier"));
        CHECK((tier == NULL) == (cases[i][1] == NULL));
        if (tier)
            CHECK_STR(tier, cases[i][1]);
        json_decref(root);
        root = cluster_ask_json(c, "/v1/messages", body);
        tier = json_string_value(cluster_at(root, "usage.service_tier"));
        CHECK((tier == NULL) == (cases[i][1] == NULL));
        if (tier)
            CHECK_STR(tier, strcmp(cases[i][1], "priority") == 0 ? "priority" : "standard");
        json_decref(root);
    }
    CHECK_INT(
        cluster_ask(c, "/v1/chat/completions", HELLO ",\"service_tier\":\"flex\",\"stream\":true}"),
        200);
    CHECK_HAS(c->answer.data, "\"service_tier\":\"flex\"");
    CHECK_INT(cluster_ask(c, "/v1/responses",
                          "{\"input\":\"x\",\"max_output_tokens\":2,"
                          "\"service_tier\":\"priority\"}"),
              200);
    CHECK_HAS(c->answer.data, "\"service_tier\":\"priority\"");
}

TEST(a_chat_is_answered)
{
    struct cluster c;
    cluster_start(&c, 2, 0, NULL);
    json_t *root = cluster_ask_json(&c, "/v1/chat/completions",
                                    HELLO ",\"temperature\":0,\"return_token_ids\":true}");
    CHECK_STR(json_string_value(cluster_at(root, "object")), "chat.completion");
    CHECK_STR(json_string_value(cluster_at(root, "choices.0.message.role")), "assistant");
    const char *reason = json_string_value(cluster_at(root, "choices.0.finish_reason"));
    CHECK(strcmp(reason, "length") == 0 || strcmp(reason, "stop") == 0);
    size_t n = json_array_size(cluster_at(root, "choices.0.token_ids"));
    CHECK(n > 0 && n <= 12);
    CHECK_INT(json_integer_value(cluster_at(root, "usage.completion_tokens")), n);
    CHECK(json_integer_value(cluster_at(root, "usage.prompt_tokens")) > 10);
    json_decref(root);
    check_tiers(&c);

    root = cluster_ask_json(&c, "/v1/models", NULL);
    CHECK_STR(json_string_value(cluster_at(root, "object")), "list");
    json_decref(root);
    CHECK_INT(cluster_ask(&c, "/health", NULL), 200);
    cluster_stop(&c);
}

/* The weights are made up, so only the grammar makes a call of it. */
static void check_forced_call_of_m3(struct cluster *c)
{
    json_t *root = cluster_ask_json(
        c, "/v1/chat/completions",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"go\"}]"
        ",\"temperature\":1,\"seed\":4,\"max_tokens\":600,\"parallel_tool_calls\":false,"
        "\"chat_template_kwargs\":{\"enable_thinking\":false},\"tool_choice\":\"required\","
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true,"
        "\"parameters\":{\"type\":\"object\",\"properties\":{\"unit\":{\"enum\":[\"C\",\"7\"]},"
        "\"deep\":{\"type\":\"object\",\"properties\":{\"ok\":{\"type\":\"boolean\"},\"list\":{"
        "\"type\":\"array\",\"items\":{\"enum\":[\"x\",\"7\"]},\"minItems\":2,\"maxItems\":2}},"
        "\"required\":[\"ok\",\"list\"],\"additionalProperties\":false}},\"required\":[\"unit\","
        "\"deep\"],\"additionalProperties\":false}}}]}");
    CHECK_STR(json_string_value(cluster_at(root, "choices.0.finish_reason")), "tool_calls");
    CHECK_INT(json_array_size(cluster_at(root, "choices.0.message.tool_calls")), 1);
    const char *text =
        json_string_value(cluster_at(root, "choices.0.message.tool_calls.0.function.arguments"));
    json_t *arguments = json_loads(text, 0, NULL);
    CHECK(json_is_string(cluster_at(arguments, "unit")));
    CHECK(json_is_boolean(cluster_at(arguments, "deep.ok")));
    CHECK(json_is_string(cluster_at(arguments, "deep.list.1")));
    CHECK_INT(json_array_size(cluster_at(arguments, "deep.list")), 2);
    json_decref(arguments);
    json_decref(root);
}

TEST(a_chat_of_m3_is_answered_and_an_image_is_refused)
{
    struct cluster c;
    cluster_use_preset("m3-tiny");
    cluster_start(&c, 2, 1, NULL);
    json_t *root = cluster_ask_json(&c, "/v1/chat/completions",
                                    HELLO ",\"temperature\":0,\"return_token_ids\":true}");
    CHECK_STR(json_string_value(cluster_at(root, "choices.0.message.role")), "assistant");
    CHECK(json_array_size(cluster_at(root, "choices.0.token_ids")) > 0);
    /* The template is M3's: a system block of its own, past what every row sees. */
    CHECK(json_integer_value(cluster_at(root, "usage.prompt_tokens")) > 200);
    json_decref(root);
    CHECK_INT(cluster_ask(&c, "/v1/chat/completions",
                          "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\","
                          "\"image_url\":{\"url\":\"data:,\"}}]}]}"),
              400);
    CHECK_HAS(c.answer.data, "image_url");
    CHECK_HAS(c.answer.data, "text only");
    check_forced_call_of_m3(&c);
    CHECK_INT(cluster_ask(&c, "/health", NULL), 200);
    cluster_stop(&c);
}

static int ask_with_prompt(struct cluster *c, int n_tokens)
{
    struct buf body = {0};
    buf_puts(&body, "{\"max_tokens\":4,\"prompt\":[7");
    for (int i = 1; i < n_tokens; i++)
        buf_printf(&body, ",%d", i % 700);
    buf_puts(&body, "]}");
    int status = cluster_ask(c, "/v1/completions", body.data);
    buf_fini(&body);
    return status;
}

/* Past memory, past the model: refused at once by the name of the field, and the next is served. */
TEST(contexts_of_m3_past_memory_and_past_the_model_are_refused)
{
    /* A page of 3 layers is 64 positions x (3 x 2 x 2 x 32 + 2 x 32) x 2 bytes: 56 KiB, or a little more
     * with what speeds up the index. */
    static const char *const small[] = {"attention.kv_bytes=300KiB", NULL};
    struct cluster c;
    cluster_use_preset("m3-tiny");
    cluster_start(&c, 1, 0, small);
    CHECK_INT(ask_with_prompt(&c, 400), 400);
    CHECK_HAS(c.answer.data, "context_length_exceeded");
    CHECK_HAS(c.answer.data, "\"param\":\"prompt\"");
    CHECK_HAS(c.answer.data, "the KV cache of this cluster holds");
    CHECK_HAS(c.answer.data, "attention.kv_bytes");
    CHECK_INT(ask_with_prompt(&c, 4096), 400);
    CHECK_HAS(c.answer.data, "the model's context is 4096 tokens");
    CHECK_INT(ask_with_prompt(&c, 200), 200);
    cluster_stop(&c);
}

/* What a streamed answer adds up to. */
struct streamed {
    struct buf text, ids;
    int n_chunks;
    bool done, aborted_after_first;
};

static bool on_line(void *ud, struct str line)
{
    struct streamed *s = ud;
    if (!str_has_prefix(line, STR("data: ")))
        return true;
    if (str_equal(line, STR("data: [DONE]"))) {
        s->done = true;
        return true;
    }
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, 0, NULL);
    CHECK(event);
    const char *keys[] = {"choices.0.delta.reasoning_content", "choices.0.delta.content"};
    for (int i = 0; i < 2; i++) {
        const char *part = json_string_value(cluster_at(event, keys[i]));
        buf_puts(&s->text, part ? part : "");
    }
    json_t *ids = cluster_at(event, "choices.0.token_ids");
    for (size_t i = 0; i < json_array_size(ids); i++)
        buf_printf(&s->ids, "%lld,", (long long)json_integer_value(json_array_get(ids, i)));
    json_decref(event);
    s->n_chunks++;
    return !s->aborted_after_first;
}

static int stream(struct cluster *c, const char *body, struct streamed *s)
{
    struct http_client *client = http_client_new();
    char *url = mem_format("%s/v1/chat/completions", c->url);
    struct buf answer = {0};
    int status = 0;
    int rc = http_exchange(
        client,
        &(struct http_exchange){
            .url = url, .body = body, .timeout_ns = 60 * CLOCK_S, .on_line = on_line, .ud = s},
        &status, &answer, NULL);
    mem_free(url);
    buf_fini(&answer);
    http_client_free(&client);
    return rc;
}

TEST(a_stream_adds_up_to_the_whole_answer)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    json_t *root =
        cluster_ask_json(&c, "/v1/chat/completions",
                         HELLO ",\"temperature\":0.8,\"seed\":5,\"return_token_ids\":true}");
    struct buf text = {0}, ids = {0};
    const char *keys[] = {"choices.0.message.reasoning_content", "choices.0.message.content"};
    for (int i = 0; i < 2; i++) {
        const char *part = json_string_value(cluster_at(root, keys[i]));
        buf_puts(&text, part ? part : "");
    }
    json_t *list = cluster_at(root, "choices.0.token_ids");
    for (size_t i = 0; i < json_array_size(list); i++)
        buf_printf(&ids, "%lld,", (long long)json_integer_value(json_array_get(list, i)));

    struct streamed s = {0};
    CHECK_INT(stream(&c,
                     HELLO ",\"temperature\":0.8,\"seed\":5,\"return_token_ids\":true,"
                           "\"stream\":true,\"stream_options\":{\"include_usage\":true}}",
                     &s),
              0);
    CHECK(s.done);
    CHECK(s.n_chunks > 2);
    CHECK_STR(s.ids.data, ids.data);
    CHECK_STR(s.text.data ? s.text.data : "", text.data ? text.data : "");
    json_decref(root);
    buf_fini(&text);
    buf_fini(&ids);
    buf_fini(&s.text);
    buf_fini(&s.ids);
    cluster_stop(&c);
}

TEST(a_client_that_hangs_up_stops_its_generation)
{
    struct cluster c;
    cluster_start(&c, 1, 0, NULL);
    struct streamed s = {.aborted_after_first = true};
    CHECK_INT(
        stream(&c,
               "{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"max_tokens\":3000,"
               "\"temperature\":1,\"logit_bias\":{\"0\":1},\"stream\":true}",
               &s),
        E_CANCELLED);
    cluster_wait_value(&c, "requests.running", 0, 10);
    buf_fini(&s.text);
    buf_fini(&s.ids);
    cluster_stop(&c);
}

/* Ids and logits hashes of one greedy continuation, as "ids;hashes". */
static void answer_of_cluster(struct cluster *c, const char *ids, struct buf *out)
{
    char *body = mem_format("{\"prompt\":[%s],\"max_tokens\":16,\"temperature\":0,"
                            "\"return_token_ids\":true,\"return_logits_hash\":true}",
                            ids);
    json_t *root = cluster_ask_json(c, "/v1/completions", body);
    json_t *tokens = cluster_at(root, "choices.0.token_ids");
    json_t *hashes = cluster_at(root, "choices.0.logits_hashes");
    CHECK(json_array_size(tokens) > 0);
    CHECK_INT(json_array_size(hashes), json_array_size(tokens));
    buf_reset(out);
    for (size_t i = 0; i < json_array_size(tokens); i++)
        buf_printf(out, "%s%lld", i ? "," : "",
                   (long long)json_integer_value(json_array_get(tokens, i)));
    buf_puts(out, ";");
    for (size_t i = 0; i < json_array_size(hashes); i++)
        buf_printf(out, "%s%s", i ? "," : "", json_string_value(json_array_get(hashes, i)));
    json_decref(root);
    mem_free(body);
}

/* The same from the oracle: one process, no network; `more` (NULL-terminated) are options. */
static void answer_of_oracle(const char *ids, const char *const *more, struct buf *out)
{
    const char *arguments[32] = {
        "generate",      "--model", cluster_model(),  "--ids",      ids, "--max-tokens", "16",
        "--temperature", "0",       "--print-hashes", "--print-ids"};
    for (int i = 0, n = 11; more[i]; i++)
        arguments[n++] = more[i];
    struct buf output = {0};
    int code = cluster_run("polymath", arguments, &output);
    if (code != 0)
        test_fail(__FILE__, __LINE__, "polymath generate ended with %d: %s", code, output.data);
    while (output.len > 0 && output.data[output.len - 1] == '\n')
        output.data[--output.len] = 0;
    char *last = strrchr(output.data, '\n');
    char *hashes = strstr(output.data, "hashes: ");
    CHECK(last && hashes);
    hashes += strlen("hashes: ");
    buf_reset(out);
    buf_printf(out, "%s;%.*s", last + 1, (int)strcspn(hashes, "\n"), hashes);
    buf_fini(&output);
}

static const char prompt[] = "5,17,9,200,31,7,7,7,112,45,99,101,300,12,8,250,77,64,3,1,2,150";

TEST_WITHIN(one_answer_whatever_the_cluster, 180)
{
    static const struct {
        int n_experts, n_attention;
        const char *settings[3];
    } shapes[] = {
        {1, 0, {0}},
        {2, 0, {"attention.lanes=2"}},
        {3, 0, {"attention.threads=2", "attention.lanes=2"}},
        {5, 0, {"attention.max_rows=7"}}, /* the prompt goes in chunks of seven rows */
        {2, 1, {0}},
        {3, 2, {0}},
    };
    static const char *const nothing[] = {NULL};
    struct buf want = {0}, got = {0};
    answer_of_oracle(prompt, nothing, &want);
    test_say("single process: %.16s... %s", strchr(want.data, ';') + 1, want.data);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct cluster c;
        cluster_start(&c, shapes[i].n_experts, shapes[i].n_attention, shapes[i].settings);
        answer_of_cluster(&c, prompt, &got);
        test_say("%d expert nodes, %d attn nodes: %.16s...", shapes[i].n_experts,
                 shapes[i].n_attention, strchr(got.data, ';') + 1);
        CHECK_STR(got.data, want.data);
        cluster_stop(&c);
        /* the next cluster starts with fresh logs */
        CHECK(system("rm -f *.log *.sock") == 0);
    }
    buf_fini(&want);
    buf_fini(&got);
}

/* 90 ids: the later half of its rows choose what they see (m3-tiny: beyond position 64). */
static const char long_prompt[] =
    "5,17,9,200,31,7,7,7,112,45,99,101,300,12,8,250,77,64,3,1,2,150,5,17,9,200,31,7,7,7,112,45,99,"
    "101,300,12,8,250,77,64,3,1,2,151,6,18,10,201,32,8,8,8,113,46,100,102,301,13,9,251,78,65,4,2,3,"
    "151,61,18,110,201,32,8,18,28,113,46,100,102,401,13,9,251,78,65,4,42,3,12";

TEST_WITHIN(one_answer_of_m3_whatever_the_cluster, 180)
{
    static const struct {
        int n_experts, n_attention;
        const char *settings[3], *node[2];
    } shapes[] = {
        {1, 0, {0}, {0}},
        {3, 0, {"attention.threads=2", "attention.lanes=2"}, {"weights.kernels=portable"}},
        {2, 0, {"attention.max_rows=7", "weights.kernels=portable"}, {0}},
        {2, 2, {0}, {"compute.threads=2"}},
    };
    static const char *const ways[][9] = {
        {NULL},
        {"--threads", "1", "--chunk", "1", NULL},
        {"--threads", "3", "--chunk", "77", "--kernels", "portable", NULL},
    };
    struct buf want = {0}, got = {0};
    cluster_use_preset("m3-tiny");
    answer_of_oracle(long_prompt, ways[0], &want);
    test_say("single process: %.16s... %s", strchr(want.data, ';') + 1, want.data);
    for (size_t i = 1; i < sizeof ways / sizeof *ways; i++) {
        answer_of_oracle(long_prompt, ways[i], &got);
        CHECK_STR(got.data, want.data);
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct cluster c;
        cluster_node_settings(shapes[i].node);
        cluster_start(&c, shapes[i].n_experts, shapes[i].n_attention, shapes[i].settings);
        answer_of_cluster(&c, long_prompt, &got);
        CHECK_STR(got.data, want.data);
        cluster_stop(&c);
        CHECK(system("rm -f *.log *.sock") == 0);
    }
    buf_fini(&want);
    buf_fini(&got);
}

/* What `polymath pack` makes of M3 is what a node would have made of the released folder. */
TEST_WITHIN(one_answer_of_packed_m3, 120)
{
    static const struct {
        const char *format, *settings[4];
    } ways[] = {
        {"q8", {"model.path=packed"}},
        {"experts=q4,attention=q8,head=bf16",
         {"weights.format=experts=q4,attention=q8,head=bf16", "weights.cache=cache"}},
    };
    struct buf output = {0}, want = {0}, got = {0};
    cluster_use_preset("m3-tiny");
    const char *const pack[] = {"pack", "--model", cluster_model(), "--format",
                                "q8",   "--out",   "packed",        NULL};
    if (cluster_run("polymath", pack, &output) != 0)
        test_fail(__FILE__, __LINE__, "polymath pack: %s", output.data);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const char *const options[] = {"--format", ways[i].format, NULL};
        struct cluster c;
        answer_of_oracle(long_prompt, options, &want);
        cluster_settings(ways[i].settings);
        cluster_start(&c, 2, (int)i, NULL);
        answer_of_cluster(&c, long_prompt, &got);
        CHECK_STR(got.data, want.data);
        cluster_stop(&c);
        CHECK(system("rm -f *.log *.sock") == 0);
    }
    buf_fini(&output);
    buf_fini(&want);
    buf_fini(&got);
}

/* ---- the hash test of numerics.md 7, in every format ---------------------------------- */

/* A sanitizer looks for something else than the bits, which the plain build compares in full. */
#define EVERY_THIRD (test_is_slow_build() ? 3 : 1)
#define EVERY_SECOND (test_is_slow_build() ? 2 : 1)

/* One process, every kernel level that runs here, thread counts and chunkings. */
static void compare_oracles(const char *format, const char *want)
{
    static const char *const ways[][2] = {{"1", "256"}, {"2", "1"}, {"2", "7"}, {"3", "64"}};
    struct buf got = {0};
    int n_levels = 0;
    for (const char *const *level = kernels_names(); *level; level++) {
        if (!kernels_named(*level))
            continue;
        n_levels++;
        for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i += EVERY_THIRD) {
            const char *const options[] = {"--format", format,    "--kernels", *level, "--threads",
                                           ways[i][0], "--chunk", ways[i][1],  NULL};
            answer_of_oracle(prompt, options, &got);
            if (strcmp(got.data, want) != 0)
                test_fail(__FILE__, __LINE__, "%s, %s, %s threads, chunks of %s: %s instead of %s",
                          format, *level, ways[i][0], ways[i][1], got.data, want);
        }
    }
    CHECK(n_levels > 0);
    test_say("%s: %d kernel levels give %.16s...", format, n_levels, strchr(want, ';') + 1);
    buf_fini(&got);
}

/* Other requests in the same batches, for as long as the one that counts. */
static const char others_body[] =
    "{\"prompt\":[3,1,4,1,5,9,2,6,5,3,5],\"max_tokens\":40,\"temperature\":1}";

/* Clusters whose processes differ in kernels and threads, alone and among other requests. */
static void compare_clusters(const char *format, const char *want)
{
    static const struct {
        int n_experts, n_attention;
        const char *side[4], *node[3];
    } shapes[] = {
        {1,
         0,
         {"attention.threads=2", "weights.kernels=portable", "attention.lanes=2"},
         {"compute.threads=2"}},
        {3, 0, {"attention.max_rows=7"}, {"weights.kernels=portable"}},
        {2, 1, {0}, {"compute.threads=2", "compute.cpus=all"}},
    };
    char *setting = mem_format("weights.format=%s", format);
    const char *const all[] = {setting, NULL};
    struct buf got = {0};
    cluster_settings(all);
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i += EVERY_SECOND) {
        struct cluster c;
        cluster_node_settings(shapes[i].node);
        cluster_start(&c, shapes[i].n_experts, shapes[i].n_attention, shapes[i].side);
        answer_of_cluster(&c, prompt, &got);
        CHECK_STR(got.data, want);
        pid_t others = cluster_ask_beside(&c, "/v1/completions", others_body);
        cluster_wait_value(&c, "requests.running", 1, 20);
        answer_of_cluster(&c, prompt, &got);
        CHECK(kill(others, SIGKILL) == 0 && waitpid(others, NULL, 0) == others);
        CHECK_STR(got.data, want);
        cluster_stop(&c);
        CHECK(system("rm -f *.log *.sock") == 0);
    }
    mem_free(setting);
    buf_fini(&got);
}

static void compare_everywhere(const char *format)
{
    const char *const options[] = {"--format", format, NULL};
    struct buf want = {0};
    answer_of_oracle(prompt, options, &want);
    compare_oracles(format, want.data);
    compare_clusters(format, want.data);
    buf_fini(&want);
}

TEST_WITHIN(one_answer_everywhere_in_q8, 240)
{
    compare_everywhere("q8");
}

TEST_WITHIN(one_answer_everywhere_in_q4, 240)
{
    compare_everywhere("q4");
}

TEST_WITHIN(one_answer_everywhere_in_fp8, 240)
{
    compare_everywhere("fp8,kv=f32");
}

TEST_WITHIN(one_answer_everywhere_in_a_mixture, 240)
{
    compare_everywhere("experts=q4,attention=q8,head=bf16,kv=int8");
}

/* Whoever joins with another format is told, and ends. */
TEST(a_node_of_another_format_is_refused)
{
    static const char *const q4[] = {"weights.format=q8,experts=q4", NULL};
    struct cluster c;
    cluster_node_settings(q4);
    cluster_launch(&c, 1, 0, NULL);
    int wait_status;
    CHECK(waitpid(c.processes[1].pid, &wait_status, 0) == c.processes[1].pid);
    c.processes[1].pid = 0;
    CHECK(WIFEXITED(wait_status));
    CHECK_INT(WEXITSTATUS(wait_status), 1);
    struct buf log = cluster_log("expert-0");
    CHECK_HAS(log.data, "weights.format: expert-0 uses experts=q4,attention=q8,head=q8,kv=bf16, "
                        "the coordinator native,kv=bf16");
    buf_fini(&log);
    json_t *root = cluster_ask_json(&c, "/cluster", NULL);
    CHECK_STR(json_string_value(cluster_at(root, "model.format")), "native,kv=bf16");
    json_decref(root);
    cluster_stop(&c);
}

/* Packed by hand or by the first start, mapped, copied or locked: what is stored is what
 * would have been made. */
TEST_WITHIN(one_answer_from_packed_weights, 240)
{
    static const struct {
        const char *format, *all[4], *node[3];
    } ways[] = {
        {"q8", {"model.path=packed"}, {0}},
        {"q8",
         {"model.path=packed", "weights.format=q8", "weights.verify=true"},
         {"weights.copy=true"}},
        {"q8", {"model.path=packed", "weights.lock=true"}, {0}},
        /* Nobody has it yet: all nodes want it at once. */
        {"q4", {"weights.format=q4", "weights.cache=cache"}, {0}},
        {"q4", {"weights.format=q4"}, {"weights.cache=cache"}},
        {"native", {NULL}, {"weights.cache=cache", "weights.verify=true"}},
    };
    const char *const pack[] = {"pack", "--model", cluster_model(), "--format",
                                "q8",   "--out",   "packed",        NULL};
    struct buf output = {0}, want = {0}, got = {0};
    int code = cluster_run("polymath", pack, &output);
    if (code != 0)
        test_fail(__FILE__, __LINE__, "polymath pack ended with %d: %s", code, output.data);
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        const char *const options[] = {"--format", ways[i].format, NULL};
        struct cluster c;
        answer_of_oracle(prompt, options, &want);
        cluster_settings(ways[i].all);
        cluster_node_settings(ways[i].node);
        cluster_start(&c, 2, 0, NULL);
        answer_of_cluster(&c, prompt, &got);
        CHECK_STR(got.data, want.data);
        cluster_stop(&c);
        CHECK(system("rm -f *.log *.sock") == 0);
    }
    buf_fini(&output);
    buf_fini(&want);
    buf_fini(&got);
}

TEST(a_packed_model_in_another_format_is_refused_by_name)
{
    const char *const pack[] = {"pack", "--model", cluster_model(), "--format",
                                "q8",   "--out",   "packed",        NULL};
    struct buf output = {0};
    CHECK_INT(cluster_run("polymath", pack, &output), 0);
    static const char *const programs[][2] = {{"expert_node", "node.name=x"},
                                              {"attn_node", "node.name=x"},
                                              {"coordinator", "http.port=0"}};
    for (int i = 0; i < 3; i++) {
        const char *const arguments[] = {"--set", programs[i][1],
                                         "--set", "model.path=packed",
                                         "--set", "weights.format=experts=q4",
                                         NULL};
        buf_reset(&output);
        CHECK_INT(cluster_run(programs[i][0], arguments, &output), 1);
        CHECK_HAS(output.data, "packed with experts=q8");
        CHECK_HAS(output.data, "experts=q4 was asked for");
    }
    buf_fini(&output);
}

TEST(cpus_that_are_not_there_are_refused_by_name)
{
    static const char *const programs[] = {"expert_node", "attn_node", "coordinator"};
    char *model = mem_format("model.path=%s", cluster_model());
    struct buf output = {0};
    for (int i = 0; i < 3; i++) {
        const char *const arguments[] = {"--set", model, "--set", "compute.cpus=4095", NULL};
        buf_reset(&output);
        CHECK_INT(cluster_run(programs[i], arguments, &output), 1);
        CHECK_HAS(output.data,
                  "compute.cpus: CPU 4095 is not among those that this process may use");
    }
    buf_fini(&output);
    mem_free(model);
}
