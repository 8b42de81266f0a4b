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

static int start(const struct arguments *a, int out_fd, pid_t *pid, struct err *e)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out_fd, STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int failed = posix_spawnp(pid, a->argv[0], &actions, NULL, a->argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return failed ? err_set_errno(e, failed, "%s", a->argv[0]) : 0;
}

/* Runs a program to its end; what it wrote to its standard output goes to `out`. */
static int run(const struct arguments *a, struct buf *out, struct err *e)
{
    int ends[2], status = 0;
    pid_t pid;
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_set_errno(e, errno, "pipe");
    int rc = start(a, ends[1], &pid, e);
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
    int rc = run(&a, &text, e);
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
    int rc = run(&a, &text, e);
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
