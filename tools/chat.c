/* tools/chat.c - `polymath chat`: a terminal client, streaming, with line editing. */
#include "tools/chat.h"

#include <editline/readline.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "tools/chat_tools.h"
#include "tools/http_client.h"

/* Answers in a row that may each call tools before one must end. */
#define MAX_TOOL_ROUNDS 8

struct chat {
    const char *base_url, *once, *key_file;
    double temperature; /* < 0: the model's own */
    int max_tokens;
    bool thinking, colours;
    json_t *messages, *tools; /* tools: NULL without --tools */
    struct http_client *http;

    /* the answer in progress */
    struct buf content, reasoning, failure;
    json_t *calls; /* as an assistant message holds them */
    bool in_reasoning;
    int n_tokens;
    int64_t asked_ns, first_ns;
};

/* Ctrl-C during an answer ends the answer, not the program. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

static void usage(FILE *out)
{
    fputs("usage: polymath chat [OPTION]...\n\n"
          "Talks to a running cluster.  Lines from a pipe are asked one after another.\n\n"
          "  --url URL          the coordinator (default http://127.0.0.1:8080)\n"
          "  --key FILE         holds an API key, mode 0600\n"
          "  --system TEXT      system message\n"
          "  --once TEXT        ask this, print the answer, end\n"
          "  --max-tokens N     at most so many tokens an answer (default 1024)\n"
          "  --temperature T    0 = greedy (default: the model's own)\n"
          "  --no-thinking      ask for an answer without reasoning\n"
          "  --tools            let the model call a calculator and a clock, which run here\n"
          "\nIn the chat: /reset forgets the conversation, /quit or Ctrl-D ends,\n"
          "Ctrl-C stops an answer.\n",
          out);
}

static json_t *add_message(struct chat *c, const char *role, const char *content)
{
    json_t *m = json_pack("{s:s, s:s}", "role", role, "content", content);
    json_array_append_new(c->messages, m);
    return m;
}

/* The answer in progress becomes a message of the conversation. */
static void add_answer(struct chat *c)
{
    json_t *m = add_message(c, "assistant", c->content.len > 0 ? c->content.data : "");
    if (c->reasoning.len > 0)
        json_object_set_new(m, "reasoning_content", json_string(c->reasoning.data));
    if (json_array_size(c->calls) > 0)
        json_object_set_new(m, "tool_calls", json_deep_copy(c->calls));
}

static void print_part(struct chat *c, const char *text, bool reasoning)
{
    if (c->first_ns == 0)
        c->first_ns = clock_now_ns();
    if (reasoning != c->in_reasoning) {
        if (c->colours)
            fputs(reasoning ? "\033[2m" : "\033[0m", stdout);
        if (!reasoning)
            fputs("\n\n", stdout);
        c->in_reasoning = reasoning;
    }
    buf_puts(reasoning ? &c->reasoning : &c->content, text);
    fputs(text, stdout);
    fflush(stdout);
}

/* A piece of the call at its "index": the first names the function, all add to its arguments. */
static void take_call(struct chat *c, const json_t *piece)
{
    size_t at = (size_t)json_integer_value(json_object_get(piece, "index"));
    const json_t *function = json_object_get(piece, "function");
    const char *id = json_string_value(json_object_get(piece, "id"));
    const char *name = json_string_value(json_object_get(function, "name"));
    const char *more = json_string_value(json_object_get(function, "arguments"));
    if (at == json_array_size(c->calls) && id && name)
        json_array_append_new(c->calls,
                              json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", id, "type", "function",
                                        "function", "name", name, "arguments", ""));
    json_t *mine = json_object_get(json_array_get(c->calls, at), "function");
    if (!mine || !more)
        return;
    char *whole = mem_format("%s%s", json_string_value(json_object_get(mine, "arguments")), more);
    json_object_set_new(mine, "arguments", json_string(whole));
    mem_free(whole);
}

/* One server-sent event. */
static void take_event(struct chat *c, const json_t *event)
{
    const char *failure =
        json_string_value(json_object_get(json_object_get(event, "error"), "message"));
    if (failure)
        buf_puts(&c->failure, failure);
    json_t *usage_object = json_object_get(event, "usage");
    if (json_is_object(usage_object))
        c->n_tokens = (int)json_integer_value(json_object_get(usage_object, "completion_tokens"));
    const json_t *delta =
        json_object_get(json_array_get(json_object_get(event, "choices"), 0), "delta");
    const char *reasoning = json_string_value(json_object_get(delta, "reasoning_content"));
    const char *content = json_string_value(json_object_get(delta, "content"));
    if (reasoning && *reasoning)
        print_part(c, reasoning, true);
    if (content && *content)
        print_part(c, content, false);
    size_t i;
    const json_t *piece;
    json_array_foreach(json_object_get(delta, "tool_calls"), i, piece) take_call(c, piece);
}

static bool on_line(void *ud, struct str line)
{
    struct chat *c = ud;
    if (interrupted)
        return false;
    if (!str_has_prefix(line, STR("data: ")) || str_equal(line, STR("data: [DONE]")))
        return true;
    json_t *event = json_loadb(line.ptr + 6, line.len - 6, 0, NULL);
    if (event)
        take_event(c, event);
    json_decref(event);
    return true;
}

static char *request_body(const struct chat *c)
{
    json_t *body = json_pack("{s:O, s:b, s:{s:b}, s:i}", "messages", c->messages, "stream", 1,
                             "stream_options", "include_usage", 1, "max_tokens", c->max_tokens);
    if (c->temperature >= 0)
        json_object_set_new(body, "temperature", json_real(c->temperature));
    if (!c->thinking)
        json_object_set_new(body, "chat_template_kwargs", json_pack("{s:b}", "enable_thinking", 0));
    if (c->tools)
        json_object_set(body, "tools", c->tools);
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

static void print_speed(const struct chat *c)
{
    int64_t now = clock_now_ns();
    double first_s = (double)(c->first_ns - c->asked_ns) / 1e9;
    double rest_s = (double)(now - c->first_ns) / 1e9;
    if (!c->colours || c->n_tokens < 2 || c->first_ns == 0)
        return;
    printf("\033[2m[%d tokens, first after %.2f s, then %.1f tokens/s]\033[0m\n", c->n_tokens,
           first_s, rest_s > 0 ? (c->n_tokens - 1) / rest_s : 0.0);
}

/* Asks with the conversation so far and takes the answer into it; false if it failed. */
static bool answer(struct chat *c)
{
    struct err e = {0};
    struct buf body = {0};
    char *request = request_body(c);
    char *url = mem_format("%s/v1/chat/completions", c->base_url);
    struct http_exchange x = {.url = url,
                              .body = request,
                              .timeout_ns = 24LL * 3600 * CLOCK_S,
                              .on_line = on_line,
                              .ud = c};
    int status = 0;

    buf_reset(&c->content);
    buf_reset(&c->reasoning);
    buf_reset(&c->failure);
    json_array_clear(c->calls);
    c->in_reasoning = false;
    c->n_tokens = 0;
    c->first_ns = 0;
    c->asked_ns = clock_now_ns();
    interrupted = 0;
    int rc = http_exchange(c->http, &x, &status, &body, &e);
    if (c->in_reasoning && c->colours)
        fputs("\033[0m", stdout);
    fputc('\n', stdout);
    if (rc == 0 && status != 200) {
        http_error_text(&body, status, &e);
        rc = e.code;
    } else if (rc == 0 && c->failure.len > 0) {
        rc = err_set(&e, E_UNKNOWN, "%s", c->failure.data);
    }
    if (rc == E_CANCELLED)
        puts("(stopped)");
    else if (rc < 0)
        fprintf(stderr, "polymath chat: %s\n", e.text);
    else
        print_speed(c);
    if (c->content.len > 0 || json_array_size(c->calls) > 0)
        add_answer(c);
    free(request);
    mem_free(url);
    buf_fini(&body);
    return rc == 0 || rc == E_CANCELLED;
}

/* Runs what the answer called and adds what came out to the conversation. */
static void run_calls(struct chat *c)
{
    size_t i;
    const json_t *call;
    json_array_foreach(c->calls, i, call)
    {
        const json_t *function = json_object_get(call, "function");
        const char *name = json_string_value(json_object_get(function, "name"));
        const char *arguments = json_string_value(json_object_get(function, "arguments"));
        char *result = chat_tools_run(name, arguments, clock_unix_us() / 1000000);
        printf("%s[%s %s -> %s]%s\n", c->colours ? "\033[36m" : "", name, arguments, result,
               c->colours ? "\033[0m" : "");
        json_object_set(add_message(c, "tool", result), "tool_call_id",
                        json_object_get(call, "id"));
        mem_free(result);
    }
}

static bool ask(struct chat *c, const char *text)
{
    size_t before = json_array_size(c->messages);
    add_message(c, "user", text);
    bool fine = answer(c);
    for (int i = 0; fine && c->tools && !interrupted && json_array_size(c->calls) > 0; i++) {
        if (i == MAX_TOOL_ROUNDS) {
            fprintf(stderr, "polymath chat: %d answers in a row called tools; asked no further\n",
                    i);
            break;
        }
        run_calls(c);
        fine = answer(c);
    }
    /* A question that failed is forgotten with all that followed it. */
    while (!fine && json_array_size(c->messages) > before)
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
    return fine;
}

/* false: end. */
static bool take_line(struct chat *c, const char *line)
{
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0)
        return false;
    if (strcmp(line, "/help") == 0) {
        puts("/reset forgets the conversation, /quit ends, Ctrl-C stops an answer");
    } else if (strcmp(line, "/reset") == 0) {
        size_t keep =
            json_array_size(c->messages) > 0 &&
            strcmp(json_string_value(json_object_get(json_array_get(c->messages, 0), "role")),
                   "system") == 0;
        while (json_array_size(c->messages) > keep)
            json_array_remove(c->messages, json_array_size(c->messages) - 1);
        puts("(forgotten)");
    } else if (*line) {
        ask(c, line);
    }
    return true;
}

static int talk_in_terminal(struct chat *c)
{
    using_history();
    for (;;) {
        char *line = readline("> ");
        if (!line)
            break;
        if (*line)
            add_history(line);
        bool more = take_line(c, line);
        free(line);
        if (!more)
            break;
    }
    puts("");
    return 0;
}

static int talk_in_pipe(struct chat *c)
{
    char *line = NULL;
    size_t size = 0;
    bool fine = true;
    while (fine && getline(&line, &size, stdin) >= 0) {
        line[strcspn(line, "\n")] = 0;
        if (*line)
            fine = ask(c, line);
    }
    free(line);
    return fine ? 0 : 1;
}

/* -1: go on; else the exit code. */
static int parse_options(struct chat *c, int argc, char **argv)
{
    static const struct option options[] = {{"url", required_argument, NULL, 'u'},
                                            {"key", required_argument, NULL, 'k'},
                                            {"system", required_argument, NULL, 's'},
                                            {"once", required_argument, NULL, 'o'},
                                            {"max-tokens", required_argument, NULL, 'n'},
                                            {"temperature", required_argument, NULL, 't'},
                                            {"no-thinking", no_argument, NULL, 'N'},
                                            {"tools", no_argument, NULL, 'T'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        char *end = NULL;
        switch (o) {
        case 'u':
            c->base_url = optarg;
            break;
        case 'k':
            c->key_file = optarg;
            break;
        case 's':
            add_message(c, "system", optarg);
            break;
        case 'o':
            c->once = optarg;
            break;
        case 'n':
            c->max_tokens = (int)strtol(optarg, &end, 10);
            break;
        case 't':
            c->temperature = strtod(optarg, &end);
            break;
        case 'N':
            c->thinking = false;
            break;
        case 'T':
            if (!c->tools)
                c->tools = chat_tools_list();
            break;
        case 'h':
            usage(stdout);
            return 0;
        default:
            return 2;
        }
        if (end && (*end || end == optarg)) {
            fprintf(stderr, "polymath chat: '%s' is not a number\n", optarg);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "polymath chat: unexpected argument '%s'\n", argv[optind]);
        return 2;
    }
    return -1;
}

int chat_main(int argc, char **argv)
{
    struct chat c = {.base_url = "http://127.0.0.1:8080",
                     .temperature = -1,
                     .max_tokens = 1024,
                     .thinking = true,
                     .colours = isatty(STDOUT_FILENO) == 1};
    c.messages = json_array();
    c.calls = json_array();
    int code = parse_options(&c, argc, argv);
    if (code < 0) {
        c.http = http_client_new();
        struct sigaction action = {.sa_handler = on_interrupt};
        sigaction(SIGINT, &action, NULL);
        struct err e = {0};
        if (c.key_file && http_client_use_key(c.http, c.key_file, &e) < 0) {
            fprintf(stderr, "polymath chat: %s\n", e.text);
            code = 1;
        } else if (c.once)
            code = ask(&c, c.once) ? 0 : 1;
        else if (isatty(STDIN_FILENO))
            code = talk_in_terminal(&c);
        else
            code = talk_in_pipe(&c);
        http_client_free(&c.http);
    }
    json_decref(c.messages);
    json_decref(c.calls);
    json_decref(c.tools);
    buf_fini(&c.content);
    buf_fini(&c.reasoning);
    buf_fini(&c.failure);
    return code;
}
