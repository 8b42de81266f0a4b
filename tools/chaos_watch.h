/* tools/chaos_watch.h - what a cluster says about itself while it is disturbed. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

#include "base/buf.h"
#include "tools/http_client.h"

/* Who shall be there. */
struct chaos_crew {
    int replicas;
    const pid_t *pids; /* of the nodes' processes */
    int n_pids;
    bool has_embedded; /* and the coordinator's own attention side */
};
/* /cluster: every expert has `replicas` live holders (as many as there are nodes, if fewer),
 * nothing is still to be loaded, every attention side knows so, requests are accepted, the crew and
 * nobody else is ready, and every expert node has its share. */
bool chaos_watch_is_whole(struct http_client *http, const char *url, const struct chaos_crew *crew);
/* The same of a /cluster body. */
bool chaos_is_whole(struct str cluster_json, const struct chaos_crew *crew);

/* /health of a leader: there are standbys, and all have its whole token log, on record in etcd. */
bool chaos_watch_is_in_step(struct http_client *http, const char *url);
/* The same of a /health body. */
bool chaos_is_in_step(struct str health_json);

/* Sum of the counters of a /metrics text whose name has `word` in it; -1: there is none. */
long long chaos_metric(struct str metrics, const char *word);
/* The whole text of /metrics; empty if it does not answer. */
void chaos_watch_metrics(struct http_client *http, const char *url, struct buf *out);
