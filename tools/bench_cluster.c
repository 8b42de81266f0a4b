/* tools/bench_cluster.c - what a cluster on this machine costs: one stream's decode through a
 * coordinator and expert nodes of one core each, in turn with our single process on the same
 * cores (`polymath generate`), and if asked for with another engine's cluster: its llama-bench with
 * servers that the caller has started.
 *
 * The cluster stays up over all rounds and sleeps while the single process computes; nothing spins. */
#include "tools/bench_cluster.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tools/bench_peer.h"
#include "tools/bench_stats.h"
#include "tools/chaos_run.h"
#include "tools/chaos_watch.h"
#include "tools/http_client.h"
#include "tools/loadtest_server.h"

enum { READY_S = 1800, TELL_S = 2, ANSWER_S = 180, DEFAULT_TOKENS = 128, DEFAULT_ROUNDS = 5 };

struct contest {
    const char *model, *format;
    int nodes, replicas, tokens, rounds;
    char replicas_setting[48];
    struct local_cluster cluster;
    struct chaos_prompt prompt;
    struct bench_series single, clustered, peers;
    struct bench_peer peer; /* program NULL: none */
    const char *rpc;
    char *peer_args;
};

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: polymath bench cluster --model DIR [OPTION]...\n\n"
        "One stream's decode through a cluster of this machine, an expert node to a core, in\n"
        "turn with the single process on as many cores.\n\n"
        "  --model DIR   checkpoint, best one with the model's true sizes\n"
        "  --format F    as for polymath up\n"
        "  --nodes N     expert nodes, and threads of the single process (2)\n"
        "  --replicas R  copies of each expert (1).  With one, the node that has more of a "
        "token's\n"
        "                experts reads longer than the others; with as many as nodes, all read\n"
        "                the same, as the threads of a process do\n"
        "  --tokens N    of each answer (%d)\n"
        "  --rounds N    of each (%d)\n\n"
        "In the same rounds, the same model in another engine's cluster on this machine:\n\n"
        "  --llama-bench PROGRAM  llama.cpp's, built with RPC\n"
        "  --model-gguf FILE      what polymath synth --gguf wrote of the same model\n"
        "  --rpc HOST:PORT,...    its servers, which run: one to a core, as our nodes do\n"
        "                         (taskset -c 0 ggml-rpc-server -t 1 -p PORT).  llama-bench sends\n"
        "                         them the whole model in every round\n",
        DEFAULT_TOKENS, DEFAULT_ROUNDS);
}

/* ---- the cluster --------------------------------------------------------------------------- */

static bool is_ready(struct local_cluster *r, struct http_client *http, struct err *why)
{
    const char *url = local_cluster_url(r);
    if (url)
        return loadtest_server_is_ready(http, url, why) == 0;
    err_set(why, E_UNAVAILABLE, "the coordinator starts");
    return false;
}

/* One that ends now will not come back. */
static int all_run(struct local_cluster *r, struct err *e)
{
    for (int i = 0; i < r->n_processes; i++) {
        struct local_process *p = &r->processes[i];
        if (waitpid(p->pid, NULL, WNOHANG) != p->pid)
            continue;
        p->pid = 0;
        local_cluster_print_log_tail(p);
        return err_set(e, E_UNAVAILABLE, "%s has ended; the lines above say why", p->name);
    }
    return 0;
}

/* Large models take minutes to load, so what is waited for is said now and then. */
static int wait_ready(struct local_cluster *r, struct err *e)
{
    struct http_client *http = http_client_new();
    int64_t begun_ns = clock_now_ns(), told_ns = begun_ns;
    struct err why = {0};
    int rc = 0;
    while (rc == 0 && !is_ready(r, http, &why)) {
        int64_t now_ns = clock_now_ns();
        rc = all_run(r, e);
        if (rc == 0 && now_ns - begun_ns > READY_S * CLOCK_S)
            rc = err_set(e, E_DEADLINE, "not ready after %d s: %s", READY_S, why.text);
        if (now_ns - told_ns > TELL_S * CLOCK_S) {
            told_ns = now_ns;
            fprintf(stderr, "bench: %lld s: %s\n", (long long)((now_ns - begun_ns) / CLOCK_S),
                    why.text);
        }
        clock_sleep_until(now_ns + 50 * CLOCK_MS);
    }
    http_client_free(&http);
    return rc;
}

int bench_cluster_up(struct local_cluster *r, struct err *e)
{
    r->host = "127.0.0.1";
    r->death_signal = SIGKILL;
    int rc = local_cluster_open(r, NULL, e);
    if (rc < 0)
        return rc;
    local_cluster_set(r, "expert_node.memory.read_bytes_s=10GiB");
    local_cluster_plan(r);
    for (int i = 0; i < r->n_processes && rc == 0; i++)
        rc = local_cluster_start(r, &r->processes[i], e);
    return rc < 0 ? rc : wait_ready(r, e);
}

/* Until every expert has its copies. */
static int wait_copies(struct contest *c, struct err *e)
{
    struct http_client *http = http_client_new();
    int64_t deadline_ns = clock_now_ns() + READY_S * CLOCK_S, tell_ns = clock_now_ns();
    pid_t pids[LOCAL_CLUSTER_MAX_PROCESSES];
    struct chaos_crew crew = {.replicas = c->replicas, .pids = pids, .has_embedded = true};
    for (int i = 1; i < c->cluster.n_processes; i++)
        pids[crew.n_pids++] = c->cluster.processes[i].pid;
    int rc = 0;
    while (rc == 0 && !chaos_watch_is_whole(http, local_cluster_url(&c->cluster), &crew)) {
        int64_t now_ns = clock_now_ns();
        if (now_ns >= deadline_ns)
            rc = err_set(e, E_DEADLINE, "not all copies are there after %d s", READY_S);
        if (now_ns >= tell_ns + TELL_S * CLOCK_S) {
            fprintf(stderr, "bench cluster: copies are loaded\n");
            tell_ns = now_ns;
        }
        clock_sleep_until(now_ns + 50 * CLOCK_MS);
    }
    http_client_free(&http);
    return rc;
}

static int start(struct contest *c, struct err *e)
{
    c->cluster = (struct local_cluster){
        .model = c->model, .format = c->format, .n_experts = c->nodes, .threads = 1};
    local_cluster_set(&c->cluster, "coordinator.attention.kv_bytes=256MiB");
    /* No guesses, which the single process does not make either. */
    local_cluster_set(&c->cluster, "coordinator.schedule.speculation=0");
    snprintf(c->replicas_setting, sizeof c->replicas_setting, "coordinator.placement.replicas=%d",
             c->replicas);
    local_cluster_set(&c->cluster, c->replicas_setting);
    int rc = bench_cluster_up(&c->cluster, e);
    return rc < 0 || c->replicas == 1 ? rc : wait_copies(c, e);
}

/* From the first token to the last. */
static int decode_cluster(struct contest *c, double *tokens_s, struct err *e)
{
    struct chaos_load_options o = {.urls = {local_cluster_url(&c->cluster)},
                                   .n_urls = 1,
                                   .prompts = &c->prompt,
                                   .n_prompts = 1,
                                   .n_clients = 1,
                                   .n_rounds = 1,
                                   .timeout_ns = ANSWER_S * CLOCK_S};
    struct chaos_load *load;
    int n, rc = chaos_load_start(&o, &load, e);
    if (rc < 0)
        return rc;
    while (!chaos_load_is_over(load))
        clock_sleep_until(clock_now_ns() + 10 * CLOCK_MS);
    struct chaos_stream *streams = chaos_load_end(&load, CHAOS_FINISH, &n);
    const struct chaos_stream *s = &streams[0];
    if (!s->is_complete || s->n_tokens < 2)
        rc = err_set(e, E_UNAVAILABLE, "the cluster: %s", s->error);
    else
        *tokens_s = (double)(s->n_tokens - 1) * CLOCK_S /
                    (double)(s->times_ns[s->n_tokens - 1] - s->times_ns[0]);
    for (int i = 0; i < n; i++)
        chaos_stream_fini(&streams[i]);
    mem_free(streams);
    return rc;
}

/* ---- the single process --------------------------------------------------------------------- */

static int decode_single(struct contest *c, double *tokens_s, struct err *e)
{
    char *program = mem_format("%s/polymath", c->cluster.bin_dir);
    char tokens[16], threads[16];
    struct buf ids = {0}, out = {0};
    for (int i = 0; i < c->prompt.n_ids; i++)
        buf_printf(&ids, "%s%d", i ? "," : "", (int)c->prompt.ids[i]);
    snprintf(tokens, sizeof tokens, "%d", c->tokens);
    snprintf(threads, sizeof threads, "%d", c->nodes);
    const char *argv[] = {program,   "generate",      "--model", c->model,       "--ids",
                          ids.data,  "--threads",     threads,   "--max-tokens", tokens,
                          "--stats", "--temperature", "0",       NULL,           NULL,
                          NULL};
    if (c->format) {
        argv[13] = "--format";
        argv[14] = c->format;
    }
    int rc = 0, code = chaos_program(argv, &out);
    /* a random model says any character, NUL too */
    size_t at = str_find(buf_str(&out), STR("decode: "));
    if (code != 0 || at == SIZE_MAX ||
        sscanf(out.data + at, "decode: %*d tokens in %*f s, %lf", tokens_s) != 1)
        rc = err_set(e, E_IO, "polymath generate: %.300s", out.data ? out.data : "");
    buf_fini(&ids);
    buf_fini(&out);
    mem_free(program);
    return rc;
}

/* ---- another engine's cluster --------------------------------------------------------------- */

static int decode_peer(struct contest *c, double *tokens_s, struct err *e)
{
    struct bench_peer_sample sample;
    if (!c->peer.program)
        return 0;
    int rc = bench_peer_run(&c->peer, &sample, e);
    if (rc < 0)
        return err_prefix(e, "--llama-bench");
    *tokens_s = sample.decode;
    return 0;
}

/* ---- all -------------------------------------------------------------------------------------- */

static void print(const char *name, const struct bench_series *s)
{
    struct bench_summary v = bench_summarise(s);
    printf("%-32s %8.1f tok/s  [%.1f..%.1f]\n", name, v.median, v.least, v.most);
}

static int run(struct contest *c, struct err *e)
{
    int rc = start(c, e);
    for (int i = 0; i <= c->rounds && rc == 0; i++) { /* the first warms up */
        double single = 0, clustered = 0, peer = 0;
        rc = decode_single(c, &single, e);
        if (rc == 0)
            rc = decode_cluster(c, &clustered, e);
        if (rc < 0 || i == 0)
            continue;
        rc = decode_peer(c, &peer, e);
        bench_series_add(&c->single, single);
        bench_series_add(&c->clustered, clustered);
        bench_series_add(&c->peers, peer);
        fprintf(stderr, "bench cluster: round %d of %d: %.1f, %.1f tok/s", i, c->rounds, single,
                clustered);
        if (c->peer.program)
            fprintf(stderr, ", the other engine %.1f tok/s", peer);
        fputc('\n', stderr);
    }
    return rc;
}

static void print_ratio(const char *name, const struct bench_series *a,
                        const struct bench_series *b)
{
    struct bench_series ratio = bench_ratio(a, b);
    struct bench_summary v = bench_summarise(&ratio);
    printf("%-32s %8.2f        [%.2f..%.2f]\n", name, v.median, v.least, v.most);
}

static void print_all(const struct contest *c)
{
    char name[48];
    snprintf(name, sizeof name, "single process, %d threads", c->nodes);
    print(name, &c->single);
    snprintf(name, sizeof name, "cluster, %d expert nodes%s", c->nodes,
             c->replicas > 1 ? ", copies" : "");
    print(name, &c->clustered);
    if (c->peer.program)
        print("the other engine's cluster", &c->peers);
    print_ratio("cluster / single process", &c->clustered, &c->single);
    if (c->peer.program)
        print_ratio("cluster / the other engine's", &c->clustered, &c->peers);
}

/* All three of the other engine's options, or none. */
static bool take_peer(struct contest *c)
{
    struct bench_peer *p = &c->peer;
    if (!p->program && !p->model && !c->rpc)
        return true;
    if (!p->program || !p->model || !c->rpc || strchr(c->rpc, ' '))
        return false;
    c->peer_args = mem_format("-ngl 99 --rpc %s", c->rpc);
    p->more_args = c->peer_args;
    p->threads = 1;
    p->tokens = c->tokens;
    return true;
}

static bool take_count(const char *text, int least, int most, int *out)
{
    char *end;
    long n = strtol(text, &end, 10);
    *out = (int)n;
    return *text && !*end && n >= least && n <= most;
}

int bench_cluster_main(int argc, char **argv)
{
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"format", required_argument, NULL, 'f'},
                                            {"nodes", required_argument, NULL, 'n'},
                                            {"replicas", required_argument, NULL, 'c'},
                                            {"tokens", required_argument, NULL, 't'},
                                            {"rounds", required_argument, NULL, 'r'},
                                            {"llama-bench", required_argument, NULL, 'l'},
                                            {"model-gguf", required_argument, NULL, 'g'},
                                            {"rpc", required_argument, NULL, 'p'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    static struct contest c;
    struct err e = {0};
    bool fine = true;
    c = (struct contest){
        .nodes = 2, .replicas = 1, .tokens = DEFAULT_TOKENS, .rounds = DEFAULT_ROUNDS};
    optind = 1;
    for (int o; fine && (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'h') {
            usage(stdout);
            return 0;
        }
        fine = o != '?';
        if (o == 'm')
            c.model = optarg;
        if (o == 'f')
            c.format = optarg;
        if (o == 'l')
            c.peer.program = optarg;
        if (o == 'g')
            c.peer.model = optarg;
        if (o == 'p')
            c.rpc = optarg;
        if (o == 'n')
            fine = take_count(optarg, 1, 32, &c.nodes);
        if (o == 'c')
            fine = take_count(optarg, 1, 4, &c.replicas);
        if (o == 't')
            fine = take_count(optarg, 2, 4096, &c.tokens);
        if (o == 'r')
            fine = take_count(optarg, 1, BENCH_MAX_REPEAT, &c.rounds);
    }
    if (!fine || !c.model || c.replicas > c.nodes || optind < argc || !take_peer(&c)) {
        usage(stderr);
        return 2;
    }
    chaos_prompts_make(&c.prompt, 1, c.tokens, 1);
    int rc = run(&c, &e);
    if (rc == 0)
        print_all(&c);
    local_cluster_stop(&c.cluster);
    local_cluster_close(&c.cluster, LOCAL_CLUSTER_DROP_LOGS);
    if (rc < 0)
        fprintf(stderr, "polymath bench cluster: %s\n", e.text);
    mem_free(c.peer_args);
    return rc < 0 ? 1 : 0;
}
