/* tools/bench_peer.c - see bench_peer.h. */
#include "tools/bench_peer.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/must.h"

enum { MAX_ARGS = 64, NUMBER_BYTES = 32 };

extern char **environ;

struct arguments {
    char *argv[MAX_ARGS + 1];
    int n;
};

static void add_argument(struct arguments *a, const char *text, size_t len)
{
    if (a->n < MAX_ARGS)
        a->argv[a->n++] = str_copy((struct str){text, len});
}

static void add_text(struct arguments *a, const char *text)
{
    add_argument(a, text, strlen(text));
}

static void add_number(struct arguments *a, const char *option, int value)
{
    char text[NUMBER_BYTES];
    snprintf(text, sizeof(text), "%d", value);
    add_text(a, option);
    add_text(a, text);
}

static void add_words(struct arguments *a, const char *text)
{
    while (text && *text) {
        size_t len = strcspn(text, " ");
        if (len > 0)
            add_argument(a, text, len);
        text += len + (text[len] == ' ');
    }
}

static void free_arguments(struct arguments *a)
{
    for (int i = 0; i < a->n; i++)
        mem_free(a->argv[i]);
}

static int read_all(int fd, struct buf *out, struct err *e)
{
    char chunk[4096];
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof(chunk));
        if (n == 0)
            return 0;
        if (n < 0 && errno != EINTR)
            return err_set_errno(e, errno, "read the peer's output");
        if (n > 0)
            buf_append(out, chunk, (size_t)n);
    }
}

/* llama-batched-bench writes its table to one or the other, depending on its age. */
enum errors { DROP_ERRORS, WITH_ERRORS };

static int start(const struct arguments *a, enum errors errors, int out_fd, pid_t *pid,
                 struct err *e)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out_fd, STDOUT_FILENO);
    if (errors == WITH_ERRORS)
        posix_spawn_file_actions_adddup2(&actions, out_fd, STDERR_FILENO);
    else
        posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawnp(pid, a->argv[0], &actions, NULL, a->argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return failed ? err_set_errno(e, failed, "%s", a->argv[0]) : 0;
}

/* Runs a program to its end; what it wrote goes to `out`. */
static int run(const struct arguments *a, enum errors errors, struct buf *out, struct err *e)
{
    int ends[2], status = 0;
    pid_t pid;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_set_errno(e, errno, "pipe");
    int rc = start(a, errors, ends[1], &pid, e);
    close(ends[1]);
    if (rc < 0) {
        close(ends[0]);
        return rc;
    }
    rc = read_all(ends[0], out, e);
    close(ends[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (rc == 0 && WIFSIGNALED(status))
        rc = err_set(e, E_UNAVAILABLE, "%s: ended by signal %d", a->argv[0], WTERMSIG(status));
    else if (rc == 0 && WEXITSTATUS(status) != 0)
        rc = err_set(e, E_UNAVAILABLE, "%s: exit status %d; run it by hand to see why", a->argv[0],
                     WEXITSTATUS(status));
    return rc;
}

int bench_peer_look(struct bench_peer *p, struct err *e)
{
    struct arguments a = {0};
    struct buf text = {0};
    add_text(&a, p->program);
    add_text(&a, "--help");
    int rc = run(&a, DROP_ERRORS, &text, e);
    p->has_depth = str_find(buf_str(&text), STR("--n-depth")) != SIZE_MAX;
    p->has_gp = str_find(buf_str(&text), STR("-gp <")) != SIZE_MAX;
    free_arguments(&a);
    buf_fini(&text);
    return rc;
}

int bench_peer_run(const struct bench_peer *p, struct bench_peer_sample *out, struct err *e)
{
    struct arguments a = {0};
    struct buf text = {0};
    add_text(&a, p->program);
    add_text(&a, "-m");
    add_text(&a, p->model);
    add_number(&a, "-t", p->threads);
    add_words(&a, "-r 1 -o json");
    if (p->depth > 0 && !p->has_depth) {
        char pair[2 * NUMBER_BYTES];
        snprintf(pair, sizeof(pair), "%d,%d", p->depth, p->tokens);
        add_words(&a, "-p 0 -n 0 -gp");
        add_text(&a, pair);
    } else {
        add_number(&a, "-p", p->prompt);
        add_number(&a, "-n", p->tokens);
        if (p->depth > 0)
            add_number(&a, "-d", p->depth);
    }
    add_words(&a, p->more_args);
    int rc = run(&a, DROP_ERRORS, &text, e);
    if (rc == 0)
        rc = bench_peer_parse(buf_str(&text), out, e);
    free_arguments(&a);
    buf_fini(&text);
    return rc;
}

static void take_entry(const json_t *entry, struct bench_peer_sample *out)
{
    json_int_t prompt = json_integer_value(json_object_get(entry, "n_prompt"));
    json_int_t tokens = json_integer_value(json_object_get(entry, "n_gen"));
    const json_t *samples = json_object_get(entry, "samples_ts");
    const json_t *sample = json_array_size(samples) > 0 ? json_array_get(samples, 0)
                                                        : json_object_get(entry, "avg_ts");
    double rate = json_number_value(sample);
    if (tokens > 0)
        out->decode = rate;
    else if (prompt > 0)
        out->prefill = rate;
    const char *commit = json_string_value(json_object_get(entry, "build_commit"));
    snprintf(out->build, sizeof(out->build), "%.40s (%lld)", commit ? commit : "?",
             (long long)json_integer_value(json_object_get(entry, "build_number")));
}

int bench_peer_parse(struct str text, struct bench_peer_sample *out, struct err *e)
{
    json_error_t error;
    *out = (struct bench_peer_sample){0};
    size_t at = str_find(text, STR("[\n"));
    if (at == SIZE_MAX)
        return err_set(e, E_CORRUPT, "the peer printed no JSON list");
    json_t *root = json_loadb(text.ptr + at, text.len - at, JSON_DISABLE_EOF_CHECK, &error);
    if (!json_is_array(root)) {
        json_decref(root);
        return err_set(e, E_CORRUPT, "the peer's JSON: line %d: %s", error.line, error.text);
    }
    for (size_t i = 0; i < json_array_size(root); i++)
        take_entry(json_array_get(root, i), out);
    json_decref(root);
    return out->decode > 0 || out->prefill > 0
               ? 0
               : err_set(e, E_CORRUPT, "the peer's JSON has no speed in it");
}

/* ---- llama-batched-bench ------------------------------------------------------------------ */

int bench_peer_batches(const struct bench_peer *p, const int *streams, int n, double *tokens_s,
                       struct err *e)
{
    struct arguments a = {0};
    struct buf text = {0}, list = {0};
    int most = 0;
    must(n >= 1 && n <= BENCH_PEER_MAX_BATCHES);
    for (int i = 0; i < n; i++) {
        buf_printf(&list, "%s%d", i ? "," : "", streams[i]);
        most = streams[i] > most ? streams[i] : most;
    }
    buf_putc(&list, '\0');
    add_text(&a, p->program);
    add_text(&a, "-m");
    add_text(&a, p->model);
    add_number(&a, "-t", p->threads);
    add_number(&a, "-npp", p->prompt);
    add_number(&a, "-ntg", p->tokens);
    add_text(&a, "-npl");
    add_text(&a, list.data);
    add_number(&a, "-c", most * (p->prompt + p->tokens));
    add_words(&a, p->more_args);
    int rc = run(&a, WITH_ERRORS, &text, e);
    if (rc == 0)
        rc = bench_peer_parse_batches(buf_str(&text), streams, n, tokens_s, e);
    free_arguments(&a);
    buf_fini(&text);
    buf_fini(&list);
    return rc;
}

/* "|    16 |     32 |    4 |    192 |    0.226 |   282.89 |    1.142 |   112.06 | ...": prompt, tokens,
 * streams, cache, seconds and rate of the prompts, seconds and rate of decoding. */
static bool read_batch(const char *line, int *streams, double *tokens_s)
{
    double cache, prompt_s, prompt_rate, decode_s;
    return sscanf(line, "|%*d |%*d |%d |%lf |%lf |%lf |%lf |%lf", streams, &cache, &prompt_s,
                  &prompt_rate, &decode_s, tokens_s) == 6 &&
           *tokens_s > 0;
}

int bench_peer_parse_batches(struct str text, const int *streams, int n, double *tokens_s,
                             struct err *e)
{
    memset(tokens_s, 0, (size_t)n * sizeof(*tokens_s));
    while (text.len > 0) {
        size_t len = str_find(text, STR("\n"));
        struct str rest = {0};
        if (len == SIZE_MAX)
            len = text.len;
        else
            rest = (struct str){text.ptr + len + 1, text.len - len - 1};
        char *line = str_copy((struct str){text.ptr, len});
        int batch;
        double rate;
        bool is_row = read_batch(line, &batch, &rate);
        for (int i = 0; is_row && i < n; i++)
            if (streams[i] == batch)
                tokens_s[i] = rate;
        mem_free(line);
        text = rest;
    }
    for (int i = 0; i < n; i++)
        if (!(tokens_s[i] > 0))
            return err_set(e, E_CORRUPT, "the peer's table has no row of %d streams", streams[i]);
    return 0;
}
