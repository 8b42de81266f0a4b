/* coordinator/hub_state.h - the hub's state, shared by hub*.c and admin.c only. */
#pragma once

#include "base/list.h"
#include "base/stats.h"
#include "coordinator/access.h"
#include "coordinator/config.h"
#include "coordinator/http.h"
#include "coordinator/hub.h"
#include "coordinator/members.h"
#include "coordinator/openai.h"
#include "coordinator/placement.h"
#include "coordinator/request.h"
#include "coordinator/sched.h"
#include "rpc/auth.h"
#include "rpc/channel.h"
#include "rpc/server.h"

enum {
    HUB_TICK_MS = 25,           /* leases, deadlines, pings */
    HUB_PING_S = 15,            /* silence on a stream after which it gets a comment */
    HUB_UNREAD_BYTES = 1 << 20, /* of a stream; a client that lets more pile up is cut off */
    HUB_RETRY_AFTER_S = 2,
};

/* A request with its client. */
struct hub_request {
    struct list link;
    struct request request;
    struct http_exchange *exchange;
    struct access_key *key; /* whose request it is; NULL: nobody's */
    bool begun;             /* the stream's headers are out */
    int64_t received_ns, written_ns;
};

/* An attention side and the channel to it; hub_attention.c. */
struct hub_attention {
    struct list link;
    struct hub *hub;
    uint32_t node_id;
    struct channel *channel;
    bool describing, described, stepping, closing;
    int64_t describe_again_ns;
    struct wire_attention_description description;
    uint64_t step, session;
    uint32_t kv_pages_free;
    uint64_t *releases; /* to be said with the next flush */
    size_t n_releases, releases_room;
};

enum hub_outcome { HUB_OK, HUB_FAILED, HUB_CANCELLED, HUB_REFUSED, HUB_OUTCOMES };
enum { HUB_MAX_REASONS = 24 };

struct hub_counters {
    int64_t outcomes[HUB_OUTCOMES];
    struct {
        const char *name; /* static */
        int64_t n;
    } bad[HUB_MAX_REASONS]; /* bad requests by reason */
    int64_t prompt_tokens, output_tokens, steps, step_failures, step_rows;
    int64_t replays, replayed_tokens; /* sequences that moved, and what was fed again for it */
    int64_t attention_us, experts_us, head_us; /* where the steps' time went */
    int64_t joins, joins_refused, nodes_lost;
    struct stats_histogram first_token_us, request_us, step_us;
};

struct hub {
    const struct coordinator_config *config;
    struct auth *auth;        /* NULL: no keys */
    uint64_t callers_version; /* of the attention sides' keys; 0: no keys */
    struct loop *loop;
    struct loop_timer tick;
    struct http *http;
    struct access *access;
    struct server *servers[2]; /* cluster.listen, and inproc for the embedded side */

    struct model_config model_config;
    uint64_t fingerprint;
    struct format_set formats; /* as the checkpoint resolves them */
    char *model_name;
    struct tokenizer *tokenizer;
    struct chat chat;
    struct openai_model model;
    int stop_ids[MODEL_MAX_EOS + 1], n_stop_ids;

    struct members members;
    struct placement placement;
    struct sched sched;
    struct list requests;   /* struct hub_request */
    struct list attentions; /* struct hub_attention */
    int n_requests;
    uint64_t id_base, n_ids;
    uint64_t last_session; /* highest that any attention side has heard of */

    bool ready;
    char why_not[256]; /* if not ready */
    bool draining;
    int64_t drain_deadline_ns;
    struct hub_counters counters;
};

/* hub.c: an event for the scheduler, and what follows from it. */
void hub_event(struct hub *h, const struct sched_event *e);
/* Starts whatever steps can start. */
void hub_run(struct hub *h);
/* Is the cluster ready to work?  Call after anything that may change it. */
void hub_refresh(struct hub *h);

/* hub_http.c: clients. */
int hub_http_open(struct hub *h, struct err *e);
void hub_http_tick(struct hub *h, int64_t now_ns);
void hub_started(struct hub *h, uint64_t seq);
void hub_moved(struct hub *h, uint64_t seq, uint32_t side);
void hub_token(struct hub *h, uint64_t seq, const struct sampled *sampled,
               enum sched_finish finish);
void hub_failed(struct hub *h, uint64_t seq, int code, const char *text);

/* hub_cluster.c: nodes. */
int hub_cluster_open(struct hub *h, struct err *e);
void hub_cluster_tick(struct hub *h, int64_t now_ns);

/* hub_attention.c: attention sides. */
void hub_attention_add(struct hub *h, const struct node *n);
void hub_attention_remove(struct hub *h, uint32_t node_id);
void hub_attention_tick(struct hub *h, int64_t now_ns);
/* Tells the scheduler which sides can be used now; `why` for those that cannot. */
void hub_attention_refresh(struct hub *h, const char *why);
void hub_attention_send(struct hub *h, uint32_t node_id, const struct wire_step *step);
void hub_attention_release(struct hub *h, uint32_t node_id, uint64_t seq);
void hub_attention_flush(struct hub *h);
void hub_attention_close(struct hub *h);

/* admin.c: what operators see. */
void admin_ready(const struct hub *h, struct buf *out);
void admin_cluster(const struct hub *h, struct buf *out);
void admin_metrics(const struct hub *h, struct buf *out);
