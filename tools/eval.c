/* tools/eval.c - `polymath eval demo`: the held-out tasks through a running cluster.
 *
 * Every line of a task file is one greedy request; an answer counts if it is exactly the
 * expected one.  One request at a time: what is measured is the model, not the speed. */
#include "tools/eval.h"

#include <dirent.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"
#include "tools/http_client.h"
#include "tools/recall.h"

enum { MAX_TOKENS = 400, MAX_FILE_BYTES = 64 << 20 };
static const int64_t timeout_ns = 300 * (int64_t)1000000000;
static const char demo_tasks[] = "models/demo/evaluation";

struct eval {
    const char *url, *tasks, *key_file;
    int64_t limit; /* items of each file; 0: all */
    double require_percent;
    bool verbose;
    struct http_client *client;
    int64_t n_right, n_all;
};

static void usage(FILE *out)
{
    fputs("usage: polymath eval demo [--url URL] [--tasks PATH] [OPTION]...\n"
          "       polymath eval recall --model DIR [OPTION]...   (its own --help)\n\n"
          "Asks a running cluster the held-out tasks of the demo model, greedily, and prints the\n"
          "share of exactly right answers of each task.\n\n"
          "  --url URL      the coordinator (default http://127.0.0.1:8080)\n"
          "  --key FILE     holds an API key, mode 0600\n"
          "  --tasks PATH   a .jsonl file or a folder of them (default models/demo/evaluation)\n"
          "  --limit N      only the first N items of each file\n"
          "  --require PCT  exit code 1 if a task is below this many percent\n"
          "  --verbose      print every wrong answer\n"
          "\nExit code: 0, 1 not reachable, malformed tasks or below --require, 2 misused.\n",
          out);
}

/* ---- comparing -------------------------------------------------------------------------- */

static bool same_call(const json_t *want, const json_t *call)
{
    const json_t *function = json_object_get(call, "function");
    const char *name = json_string_value(json_object_get(function, "name"));
    const char *wanted = json_string_value(json_object_get(want, "name"));
    const char *text = json_string_value(json_object_get(function, "arguments"));
    if (!name || !wanted || !text || strcmp(name, wanted) != 0)
        return false;
    json_t *arguments = json_loads(text, 0, NULL);
    bool same = arguments && json_equal(arguments, json_object_get(want, "arguments"));
    json_decref(arguments);
    return same;
}

/* The calls as the model writes them. */
static void append_calls(const json_t *calls, struct buf *out)
{
    const json_t *call, *value;
    const char *key;
    size_t i;

    buf_puts(out, "<minimax:tool_call>\n");
    json_array_foreach(calls, i, call)
    {
        json_t *arguments = json_object_get(call, "arguments");
        const char *name = json_string_value(json_object_get(call, "name"));
        buf_printf(out, "<invoke name=\"%s\">\n", name ? name : "");
        json_object_foreach(arguments, key, value)
        {
            char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);
            buf_printf(out, "<parameter name=\"%s\">%s</parameter>\n", key,
                       text ? text : json_string_value(value));
            free(text);
        }
        buf_puts(out, "</invoke>\n");
    }
    buf_puts(out, "</minimax:tool_call>");
}

/* A server that does not split calls off shows them at the end of the content. */
static bool calls_in_content(const json_t *wanted, const char *content)
{
    struct buf text = {0};
    append_calls(wanted, &text);
    while (content && *content == '\n')
        content++;
    bool same = content && str_equal(buf_str(&text), str_of(content));
    buf_fini(&text);
    return same;
}

bool eval_matches(const json_t *expect, const json_t *message)
{
    const json_t *wanted = json_object_get(expect, "tool_calls");
    const json_t *calls = json_object_get(message, "tool_calls");
    if (json_array_size(wanted) > 0 && json_array_size(calls) == 0)
        return calls_in_content(wanted, json_string_value(json_object_get(message, "content")));
    if (json_array_size(wanted) != json_array_size(calls))
        return false;
    for (size_t i = 0; i < json_array_size(wanted); i++)
        if (!same_call(json_array_get(wanted, i), json_array_get(calls, i)))
            return false;
    if (json_array_size(wanted) > 0)
        return true;
    const char *want = json_string_value(json_object_get(expect, "content"));
    const char *have = json_string_value(json_object_get(message, "content"));
    return want && have && strcmp(want, have) == 0;
}

/* ---- asking ----------------------------------------------------------------------------- */

/* The request's body; free() it. */
static char *body_of(const json_t *item)
{
    json_t *body = json_pack("{s:O, s:f, s:i}", "messages", json_object_get(item, "messages"),
                             "temperature", 0.0, "max_tokens", MAX_TOKENS);
    const json_t *tools = json_object_get(item, "tools");
    must(body);
    if (tools) {
        json_t *copy = json_deep_copy(tools);
        must(copy);
        must_zero(json_object_set_new(body, "tools", copy));
    }
    char *text = json_dumps(body, JSON_COMPACT);
    must(text);
    json_decref(body);
    return text;
}

static void print_wrong(const json_t *item, const json_t *message)
{
    char *want = json_dumps(json_object_get(item, "expect"), JSON_COMPACT);
    char *have = message ? json_dumps(message, JSON_COMPACT) : NULL;
    printf("  expected %s\n  answered %s\n", want ? want : "-", have ? have : "-");
    free(want);
    free(have);
}

/* Asks one item; true into *right if the answer is the expected one. */
static int ask(struct eval *v, const json_t *item, bool *right, struct err *e)
{
    struct buf answer = {0};
    char *url = mem_format("%s/v1/chat/completions", v->url), *body = body_of(item);
    int status = 0;
    json_t *root = NULL;
    struct http_exchange x = {.url = url, .body = body, .timeout_ns = timeout_ns};
    int rc = http_exchange(v->client, &x, &status, &answer, e);

    if (rc == 0 && status != 200) {
        http_error_text(&answer, status, e);
        rc = e->code;
    }
    if (rc == 0 && !(root = json_loadb(answer.data, answer.len, 0, NULL)))
        rc = err_set(e, E_CORRUPT, "%s: the answer is not JSON", url);
    if (rc == 0) {
        const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
        const json_t *message = json_object_get(choice, "message");
        *right = eval_matches(json_object_get(item, "expect"), message);
        if (v->verbose && !*right)
            print_wrong(item, message);
    }
    json_decref(root);
    buf_fini(&answer);
    free(body);
    mem_free(url);
    return rc;
}

/* ---- files ------------------------------------------------------------------------------ */

/* One line of a task file. */
static int run_line(struct eval *v, struct str line, bool *right, struct err *e)
{
    json_t *item = json_loadb(line.ptr, line.len, 0, NULL);
    int rc = 0;

    if (!json_is_array(json_object_get(item, "messages")) ||
        !json_is_object(json_object_get(item, "expect")))
        rc = err_set(e, E_CORRUPT, "no object with messages and expect");
    else
        rc = ask(v, item, right, e);
    json_decref(item);
    return rc;
}

static struct str name_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct str name = str_of(slash ? slash + 1 : path);
    if (name.len > 6 && strcmp(name.ptr + name.len - 6, ".jsonl") == 0)
        name.len -= 6;
    return name;
}

/* Asks all items of a file and prints its line; *below is set if it misses --require. */
static int run_file(struct eval *v, const char *path, bool *below, struct err *e)
{
    struct buf text = {0};
    struct str name = name_of(path);
    int64_t n_all = 0, n_right = 0;
    int rc = buf_read_file(&text, path, MAX_FILE_BYTES, e);

    for (size_t at = 0; rc == 0 && at < text.len && (v->limit == 0 || n_all < v->limit);) {
        const char *start = text.data + at, *end = memchr(start, '\n', text.len - at);
        size_t len = end ? (size_t)(end - start) : text.len - at;
        bool right = false;
        at += len + 1;
        if (len == 0)
            continue;
        rc = run_line(v, (struct str){start, len}, &right, e);
        if (rc < 0)
            rc = err_prefix(e, "%s: item %lld", path, (long long)n_all + 1);
        n_all++;
        n_right += right;
    }
    if (rc == 0) {
        double percent = n_all > 0 ? 100.0 * (double)n_right / (double)n_all : 0;
        printf("%-16.*s %6.1f %%   %lld of %lld\n", (int)name.len, name.ptr, percent,
               (long long)n_right, (long long)n_all);
        fflush(stdout);
        *below = *below || percent < v->require_percent;
        v->n_all += n_all;
        v->n_right += n_right;
    }
    buf_fini(&text);
    return rc;
}

static int is_task_file(const struct dirent *d)
{
    size_t len = strlen(d->d_name);
    return len > 6 && strcmp(d->d_name + len - 6, ".jsonl") == 0;
}

static int run_all(struct eval *v, bool *below, struct err *e)
{
    struct dirent **list = NULL;
    int n = scandir(v->tasks, &list, is_task_file, alphasort), rc = 0;

    if (n < 0)
        return run_file(v, v->tasks, below, e);
    if (n == 0)
        rc = err_set(e, E_NOT_FOUND, "%s: no .jsonl files", v->tasks);
    for (int i = 0; i < n; i++) {
        char *path = mem_format("%s/%s", v->tasks, list[i]->d_name);
        if (rc == 0)
            rc = run_file(v, path, below, e);
        mem_free(path);
        free(list[i]);
    }
    free(list);
    return rc;
}

/* ---- command line ----------------------------------------------------------------------- */

static bool parse_number(const char *text, double most, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == 0 && *out >= 0 && *out <= most;
}

/* Fills v; 0, or the exit code + 1. */
static int parse(struct eval *v, int argc, char **argv)
{
    static const struct option options[] = {
        {"url", required_argument, NULL, 'u'},     {"key", required_argument, NULL, 'k'},
        {"tasks", required_argument, NULL, 't'},   {"limit", required_argument, NULL, 'l'},
        {"require", required_argument, NULL, 'r'}, {"verbose", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},          {0}};
    double number = 0;
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        bool good = true;
        switch (o) {
        case 'u':
            v->url = optarg;
            break;
        case 'k':
            v->key_file = optarg;
            break;
        case 't':
            v->tasks = optarg;
            break;
        case 'l':
            good = parse_number(optarg, 1e9, &number);
            v->limit = (int64_t)number;
            break;
        case 'r':
            good = parse_number(optarg, 100, &v->require_percent);
            break;
        case 'v':
            v->verbose = true;
            break;
        case 'h':
            usage(stdout);
            return 1;
        default:
            return 3;
        }
        if (!good) {
            fprintf(stderr, "polymath eval: '%s' is no number in range\n", optarg);
            return 3;
        }
    }
    if (optind + 1 != argc || strcmp(argv[optind], "demo") != 0) {
        fputs("polymath eval: say which tasks: polymath eval demo, or polymath eval recall\n",
              stderr);
        return 3;
    }
    return 0;
}

int eval_main(int argc, char **argv)
{
    struct eval v = {.url = "http://127.0.0.1:8080", .tasks = demo_tasks};
    struct err e = {0};
    bool below = false;
    if (argc > 1 && strcmp(argv[1], "recall") == 0)
        return recall_main(argc, argv);
    int stop = parse(&v, argc, argv);
    if (stop > 0)
        return stop - 1;

    v.client = http_client_new();
    int rc = v.key_file ? http_client_use_key(v.client, v.key_file, &e) : 0;
    if (rc == 0)
        rc = run_all(&v, &below, &e);
    http_client_free(&v.client);
    if (rc < 0) {
        fprintf(stderr, "polymath eval: %s\n", e.text);
        return 1;
    }
    printf("%-16s %6.1f %%   %lld of %lld\n", "all",
           v.n_all > 0 ? 100.0 * (double)v.n_right / (double)v.n_all : 0, (long long)v.n_right,
           (long long)v.n_all);
    return below ? 1 : 0;
}
