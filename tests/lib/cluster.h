/* tests/lib/cluster.h - a cluster of the real programs on this machine, for tests.
 *
 * Processes run in the test's own directory over ipc sockets, the HTTP port is any free
 * one, and each writes NAME.log there.  Every wait has a deadline and fails the test. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/buf.h"

enum { CLUSTER_MAX_PROCESSES = 16 };

struct cluster_process {
    char name[32], program[32];
    pid_t pid; /* 0: not running */
};

/* Owner: the test. */
struct cluster {
    const char *model;
    int n_processes, n_lives; /* of the coordinator */
    char *coordinator_settings[32];
    struct cluster_process processes[CLUSTER_MAX_PROCESSES];
    char url[64];
    struct buf answer; /* of the latest exchange */
    int status;
};

/* Directory of a small random checkpoint (256 experts, top-8), made once per build. */
const char *cluster_model(void);
/* For the rest of this test: a model of this preset of `polymath synth` instead. */
void cluster_use_preset(const char *preset);

/* Runs PROGRAM with arguments (NULL-terminated, without argv[0]) to its end; its stdout and
 * stderr come together in `output`.  Returns the exit code, or 128 + the signal. */
int cluster_run(const char *program, const char *const *arguments, struct buf *output);

/* --set values of every process that this test starts from now on; NULL-terminated, borrowed;
 * NULL: none. */
void cluster_settings(const char *const *settings);
/* The same for nodes alone, after those. */
void cluster_node_settings(const char *const *settings);

/* Starts the coordinator (embedded attention unless n_attention > 0) and nodes expert-0..,
 * attn-0..; `settings` are further --set values of the coordinator, NULL-terminated or NULL.
 * Returns when /ready answers 200. */
void cluster_start(struct cluster *c, int n_experts, int n_attention, const char *const *settings);
/* As above without waiting for /ready; the HTTP server answers. */
void cluster_launch(struct cluster *c, int n_experts, int n_attention, const char *const *settings);
/* Starts one more node, or the one of that name again after its death. */
void cluster_start_node(struct cluster *c, const char *program, const char *name);
/* Likewise an attn_node that lends; `kv_bytes` as "2MiB". */
void cluster_start_lender(struct cluster *c, const char *name, const char *kv_bytes);
void cluster_kill(struct cluster *c, const char *name, int signal_number);
/* One that waits for the death of the first, with the same state directory; nodes must have been
 * told of both (cluster_node_settings()). */
void cluster_start_standby(struct cluster *c);
/* Until it serves; the cluster is then at its URL. */
void cluster_wait_takeover(struct cluster *c);
/* A further coordinator, with the settings of the first and then these; its URL into `url`. */
void cluster_start_another(struct cluster *c, const char *name, const char *const *settings,
                           char url[64]);
/* The coordinator again after its death, as it was started; at another URL. */
void cluster_start_coordinator(struct cluster *c);
void cluster_wait_ready(struct cluster *c, int seconds);
void cluster_wait_not_ready(struct cluster *c, int seconds);
/* Until `what` of /cluster (a dotted path such as "requests.running") is `value`. */
void cluster_wait_value(struct cluster *c, const char *what, long long value, int seconds);
/* Until the coordinator has taken this many prompts' tokens, in all, whether or not they still run. */
void cluster_wait_prompt_tokens(struct cluster *c, long long n);
/* A sample of /metrics by its whole name, labels included; fails the test if there is none. */
double cluster_metric(struct cluster *c, const char *name);
/* Until it is no more than this: what clients leave is noticed in a moment, not at once. */
void cluster_wait_metric(struct cluster *c, const char *name, double most);
/* SIGTERM to all; every process must end with exit code 0. */
void cluster_stop(struct cluster *c);

/* One exchange; status and answer are in the cluster.  body NULL: GET. */
int cluster_ask(struct cluster *c, const char *path, const char *body);
/* The same, but 0 for a connection that broke. */
int cluster_try(struct cluster *c, const char *path, const char *body);
/* The same, parsed; the caller decrefs.  Fails the test unless the status is 200. */
json_t *cluster_ask_json(struct cluster *c, const char *path, const char *body);
/* A process that asks the same again and again, so that others share steps with it; the caller ends it. */
pid_t cluster_ask_beside(const struct cluster *c, const char *path, const char *body);
/* A value by dotted path ("choices.0.message.content"); NULL if absent.  Borrowed. */
json_t *cluster_at(json_t *root, const char *path);
/* Whole text of NAME.log; buf_fini() it. */
struct buf cluster_log(const char *name);
/* Until NAME.log holds `text`.  What lasts for a moment only is waited for like this: a poll may miss it. */
void cluster_wait_log(const char *name, const char *text);
/* The `endpoint=` value of a log line that holds `event`; waits for it.  Into `out`. */
void cluster_endpoint(const char *name, const char *event, char *out, size_t bytes);
