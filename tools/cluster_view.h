/* tools/cluster_view.h - a running cluster as its coordinator's /cluster tells it, for the
 * commands that change something and wait for what comes of it. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/err.h"
#include "tools/http_client.h"

struct cluster_view {
    struct http_client *http;
    const char *url; /* of the coordinator; borrowed */
    json_t *root;    /* the latest answer; NULL before the first */
};

/* `key`: file with an admin's API key, or NULL. */
int cluster_view_open(struct cluster_view *v, const char *url, const char *key, struct err *e);
void cluster_view_close(struct cluster_view *v);
/* Asks again. */
int cluster_view_read(struct cluster_view *v, struct err *e);
/* The node of this name that is not gone, or NULL; borrowed until the next read. */
const json_t *cluster_view_node(const struct cluster_view *v, const char *name);
/* Ready, and every copy that is wanted is live. */
bool cluster_view_is_settled(const struct cluster_view *v);
long long cluster_view_number(const json_t *object, const char *key);
const char *cluster_view_text(const json_t *object, const char *key);

/* Tells a node to hand over what it holds and end (to be started again). */
enum cluster_view_end { CLUSTER_VIEW_STAY_AWAY, CLUSTER_VIEW_RESTART };
int cluster_view_drain(struct cluster_view *v, const char *name, enum cluster_view_end end,
                       struct err *e);
