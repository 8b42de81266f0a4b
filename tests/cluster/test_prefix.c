/* tests/cluster/test_prefix.c - prompts that begin alike, through real processes: what is kept
 * costs steps and rows, never a bit of an answer. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

/* A prompt of n ids, the same for the same seed up to where it ends. */
static void put_prompt(struct buf *out, int n, uint64_t seed)
{
    struct rng r = rng_stream(seed, 0);
    for (int i = 0; i < n; i++)
        buf_printf(out, "%s%d", i ? "," : "", (int)rng_below(&r, 250));
}

static long long metric(struct cluster *c, const char *name)
{
    CHECK_INT(cluster_ask(c, "/metrics", NULL), 200);
    char *line = mem_format("\npolymath_%s ", name);
    const char *at = strstr(c->answer.data, line);
    CHECK(at);
    long long value = atoll(at + strlen(line));
    mem_free(line);
    return value;
}

/* Ids and hashes of a seeded answer to that prompt; its cached tokens. */
static long long ask(struct cluster *c, const char *prompt, int max_tokens, struct buf *out)
{
    char *body =
        mem_format("{\"prompt\":[%s],\"max_tokens\":%d,\"temperature\":0.9,\"seed\":11,"
                   "\"ignore_eos\":true,\"return_token_ids\":true,\"return_logits_hash\":true}",
                   prompt, max_tokens);
    json_t *root = cluster_ask_json(c, "/v1/completions", body);
    static const char *const parts[] = {"choices.0.token_ids", "choices.0.logits_hashes"};
    buf_reset(out);
    for (int i = 0; i < 2; i++) {
        json_t *list = cluster_at(root, parts[i]);
        CHECK(json_array_size(list) > 0);
        char *text = json_dumps(list, JSON_COMPACT);
        buf_puts(out, text);
        free(text);
    }
    long long cached =
        json_integer_value(cluster_at(root, "usage.prompt_tokens_details.cached_tokens"));
    json_decref(root);
    mem_free(body);
    return cached;
}

TEST_WITHIN(a_prompt_that_was_seen_costs_one_step, 180)
{
    enum { ANSWER = 8 };
    const int n_prompt = test_is_slow_build() ? 1012 : 4084;
    struct cluster c;
    struct buf prompt = {0}, first = {0}, second = {0}, without = {0};
    put_prompt(&prompt, n_prompt, 1);
    cluster_start(&c, 1, 0, NULL);
    CHECK_INT(ask(&c, prompt.data, ANSWER, &first), 0);
    long long steps = metric(&c, "steps_total"), rows = metric(&c, "step_rows_total");
    CHECK(steps >= n_prompt / 256 + ANSWER);
    long long cached = ask(&c, prompt.data, ANSWER, &second);
    steps = metric(&c, "steps_total") - steps;
    rows = metric(&c, "step_rows_total") - rows;
    test_say("again: %lld tokens cached, %lld steps, %lld rows", cached, steps, rows);
    CHECK_INT(cached, n_prompt / 64 * 64);
    CHECK(steps <= ANSWER + 1); /* the first token with the first step, within two */
    CHECK_INT(rows, n_prompt - cached + ANSWER - 1);
    CHECK_INT(metric(&c, "prefix_cached_tokens_total"), cached);
    CHECK_STR(second.data, first.data);
    cluster_stop(&c);
    CHECK(system("rm -f *.log *.sock") == 0);
    static const char *const off[] = {"attention.prefix_cache=false", NULL};
    cluster_start(&c, 1, 0, off);
    CHECK_INT(ask(&c, prompt.data, ANSWER, &without), 0);
    CHECK_STR(without.data, first.data);
    cluster_stop(&c);
    buf_fini(&prompt);
    buf_fini(&first);
    buf_fini(&second);
    buf_fini(&without);
}

static long long chat(struct cluster *c, const char *more, long long *prompt_tokens)
{
    char *body =
        mem_format("{\"messages\":[{\"role\":\"system\",\"content\":\"%0200d\"},{\"role\":\"user\","
                   "\"content\":\"%0150d\"}%s],\"max_tokens\":4,\"temperature\":0}",
                   7, 8, more);
    json_t *root = cluster_ask_json(c, "/v1/chat/completions", body);
    *prompt_tokens = json_integer_value(cluster_at(root, "usage.prompt_tokens"));
    long long cached =
        json_integer_value(cluster_at(root, "usage.prompt_tokens_details.cached_tokens"));
    json_decref(root);
    mem_free(body);
    return cached;
}

/* The template drops the reasoning of earlier turns: what is before it is found again. */
TEST_WITHIN(an_agent_keeps_the_pages_up_to_its_last_user_message, 120)
{
    struct cluster c;
    long long first, next, none;
    cluster_start(&c, 1, 0, NULL);
    CHECK_INT(chat(&c, "", &first), 0);
    CHECK(first > 128);
    long long cached = chat(&c,
                            ",{\"role\":\"assistant\",\"content\":\"Yes.\",\"reasoning_content\":"
                            "\"so long a thought that it would move all that is behind it\"},"
                            "{\"role\":\"user\",\"content\":\"And now?\"}",
                            &next);
    test_say("%lld tokens, then %lld of which %lld were cached", first, next, cached);
    CHECK(next > first);
    CHECK(cached >= (first - 16) / 64 * 64); /* less the opening of the answer */
    CHECK_INT(chat(&c, "", &none), first / 64 * 64 < first ? first / 64 * 64 : first - 64);
    cluster_stop(&c);
}

/* More sequences than pages: some make place and are fed again, and nobody can tell. */
TEST_WITHIN(answers_are_the_same_when_kv_pages_run_out, 180)
{
    enum { CLIENTS = 6, PROMPT = 150, ANSWER = 180 };
    static const char *const small[] = {"attention.kv_bytes=700KiB", "attention.max_seqs=6", NULL};
    struct cluster c;
    struct buf prompts[CLIENTS] = {0}, alone[CLIENTS] = {0};
    pid_t pids[CLIENTS];
    cluster_start(&c, 1, 0, NULL);
    for (int i = 0; i < CLIENTS; i++) {
        put_prompt(&prompts[i], PROMPT, (uint64_t)i % 3); /* of two each */
        ask(&c, prompts[i].data, ANSWER, &alone[i]);
    }
    cluster_stop(&c);
    CHECK(system("rm -f *.log *.sock") == 0);
    cluster_start(&c, 1, 0, small);
    for (int i = 0; i < CLIENTS; i++) {
        pids[i] = fork();
        CHECK(pids[i] >= 0);
        if (pids[i] > 0)
            continue;
        struct cluster mine = c;
        struct buf got = {0};
        mine.answer = (struct buf){0};
        ask(&mine, prompts[i].data, ANSWER, &got);
        _exit(strcmp(got.data, alone[i].data) == 0 ? 0 : 3);
    }
    for (int i = 0; i < CLIENTS; i++) {
        int status = -1;
        CHECK_INT(waitpid(pids[i], &status, 0), pids[i]);
        CHECK_INT(status, 0);
    }
    long long preempted = metric(&c, "requests_preempted_total");
    test_say("%lld sequences made place", preempted);
    CHECK(preempted > 0);
    cluster_stop(&c);
    for (int i = 0; i < CLIENTS; i++) {
        buf_fini(&prompts[i]);
        buf_fini(&alone[i]);
    }
}

/* Guesses change how many steps an answer takes, and nothing else. */
TEST_WITHIN(answers_are_the_same_with_and_without_guesses, 180)
{
    enum { ANSWER = 120, SEEDS = 3 };
    static const char *const off[] = {"schedule.speculation=0", NULL};
    static const char *const temperatures[] = {"0", "0.3", "1"};
    struct buf plain[SEEDS] = {0}, guessed = {0};
    long long steps[2];
    for (int on = 0; on < 2; on++) {
        struct cluster c;
        cluster_start(&c, 2, on, on ? NULL : off);
        for (int i = 0; i < SEEDS; i++) {
            /* Token 7 is made likely, so that the answer repeats itself as lists and code do. */
            char *body = mem_format(
                "{\"prompt\":[7,7,7,8,9,10,7,7,7,8,9],\"max_tokens\":%d,\"temperature\":%s,"
                "\"seed\":%d,\"logit_bias\":{\"7\":%d,\"8\":%d},\"ignore_eos\":true,"
                "\"return_token_ids\":true,\"return_logits_hash\":true}",
                ANSWER, temperatures[i], i, 6 + i, 5 + i);
            json_t *root = cluster_ask_json(&c, "/v1/completions", body);
            struct buf *out = on ? &guessed : &plain[i];
            buf_reset(out);
            static const char *const parts[] = {"choices.0.token_ids", "choices.0.logits_hashes"};
            for (int k = 0; k < 2; k++) {
                char *text = json_dumps(cluster_at(root, parts[k]), JSON_COMPACT);
                buf_puts(out, text);
                free(text);
            }
            CHECK_INT(json_array_size(cluster_at(root, parts[0])), ANSWER);
            if (on)
                CHECK_STR(guessed.data, plain[i].data);
            json_decref(root);
            mem_free(body);
        }
        steps[on] = metric(&c, "steps_total");
        long long drafted = metric(&c, "draft_tokens_total"),
                  came_true = metric(&c, "draft_accepted_tokens_total");
        test_say("%lld steps, %lld tokens guessed, %lld came true", steps[on], drafted, came_true);
        CHECK(on ? came_true > 0 : drafted == 0);
        cluster_stop(&c);
        CHECK(system("rm -f *.log *.sock") == 0);
    }
    CHECK(steps[1] < steps[0]);
    for (int i = 0; i < SEEDS; i++)
        buf_fini(&plain[i]);
    buf_fini(&guessed);
}
