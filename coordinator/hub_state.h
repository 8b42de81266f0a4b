/* coordinator/hub_state.h - the hub's state, shared by hub*.c and admin.c only. */
#pragma once

#include <jansson.h>

#include "base/clock.h"
#include "base/list.h"
#include "base/stats.h"
#include "coordinator/access.h"
#include "coordinator/config.h"
#include "coordinator/events.h"
#include "coordinator/http.h"
#include "coordinator/hub.h"
#include "coordinator/journal.h"
#include "coordinator/lending.h"
#include "coordinator/members.h"
#include "coordinator/openai.h"
#include "coordinator/placement.h"
#include "coordinator/prepare.h"
#include "coordinator/request.h"
#include "coordinator/sched.h"
#include "coordinator/ship.h"
#include "coordinator/token_log.h"
#include "coordinator/trace.h"
#include "coordinator/traffic.h"
#include "coordinator/work.h"
#include "rpc/auth.h"
#include "rpc/channel.h"
#include "rpc/server.h"

enum {
    HUB_AWAY_MS = 100, /* a tick that is later than this by so much says that the loop was away */
    HUB_TICK_MS = 25,  /* leases, deadlines, pings */
    HUB_PING_S = 15,   /* silence on a stream after which it gets a comment */
    HUB_UNREAD_BYTES = 1 << 20, /* of a stream; a client that lets more pile up is cut off */
    HUB_RETRY_AFTER_S = 2,
};

/* An HTTP exchange that waits for a request's answer, or reads it as it comes. */
struct hub_client {
    struct list link;
    struct hub_request *request;
    struct http_exchange *exchange;
    bool begun;      /* the stream's headers are out */
    bool ends;       /* what is held is the last of it */
    int status;      /* of an answer in one piece; 0: it is a stream */
    uint64_t *seen;  /* what it has from an earlier stream, request_read_seen(); NULL: nothing */
    struct buf held; /* not before the request is in the log */
    int64_t written_ns;
};

/* A request with its clients: one as a rule; none after a hang-up or a restart; several if it is
 * asked for again.  One that is kept can be asked for by its id or its key, also when it is over;
 * hub_request.c. */
struct hub_request {
    struct list link; /* in hub.requests, or in hub.kept once it is over */
    struct request request;
    struct list clients;
    int64_t received_ns, alone_ns;          /* since when nobody waits for it; 0: somebody does */
    int64_t started_ns, first_ns, token_ns; /* left the queue, first and newest token; 0: not yet */
    uint64_t token_seq;                     /* whose that was */
    char client_id[TRACE_ID_BYTES];         /* X-Request-Id as it came; "": none */
    bool is_kept, is_over;
    struct access_key *access; /* whose limits it counts against; NULL: nobody's, or over */
    uint64_t owner;            /* hash of the credentials that it came with */
    char *key;                 /* Idempotency-Key; NULL: none */
    struct buf body;
    uint64_t logged, shipped; /* where the journal has it, and the way to the standbys */
    uint64_t marked; /* where it has the newest token that cannot be computed again; 0: none */
    int64_t over_us; /* since 1970 */
    int retry_s;     /* of one that was refused; 0: no idea */
    struct hub_request *next; /* while the journal is read */
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
    struct wire_ladder_counters ladder; /* as it said last */
    struct wire_grammar_counters grammars;
    int64_t sent_ns; /* of the newest step, and what it consists of */
    uint32_t sent_rows, sent_seqs;
    uint64_t first_seqs[TRACE_STEP_SEQS];
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
    int64_t degraded;       /* requests of which experts were left out */
    int64_t prompt_tokens, output_tokens, steps, step_failures, step_rows;
    int64_t replays, replayed_tokens; /* sequences that moved, and what was fed again for it */
    int64_t handovers;                /* that went on at another side without waiting for that */
    int64_t attention_us, experts_us, head_us; /* where the steps' time went */
    int64_t router_us, sampling_us;            /* of attention_us; of head_us */
    int64_t two_lane_steps, lanes_saved_us;    /* of steps; by the trials that came before them */
    int64_t lanes_permille;                    /* as the latest step's reply says */
    int64_t joins, joins_refused, nodes_lost, nodes_distrusted;
    struct stats_histogram prepare_us, queue_us, first_token_us, token_gap_us, request_us;
    struct stats_histogram step_us, rows_of_step;
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
    struct lending lending;
    bool settled; /* all copies that are wanted are live */
    struct sched sched;
    struct list requests;          /* struct hub_request */
    struct list kept;              /* those that are over, oldest first */
    int64_t kept_bytes, log_bytes; /* of kept ones that are over; of all that the log must hold */
    struct journal *journal;       /* NULL: no state.dir, or it does not lead */
    struct hub_ship *ship;         /* NULL: there are no standbys with a log of their own */
    struct hub_follow *follow;     /* NULL: it leads, or knows nobody who does */
    struct list attentions;        /* struct hub_attention */
    struct preparer *preparer;
    struct list admissions; /* whose bodies are being read; hub_admit.c */
    int n_requests, n_admissions;
    uint64_t id_base, n_ids;
    uint64_t last_session; /* highest that any attention side has heard of */

    struct hub_leader *leader; /* NULL: no etcd.endpoints */
    bool leads;                /* always, without etcd; else see hub_leader.c */
    int64_t ticked_ns;
    enum hub_end end;
    char end_text[ERR_TEXT_BYTES];

    bool ready;
    char why_not[320]; /* if not ready */
    bool draining;
    int64_t drain_deadline_ns;
    struct hub_counters counters;
    struct work work;
    struct traffic traffic;
    struct events events;
    struct trace *trace; /* NULL: nobody has asked for one */
    struct http_exchange *trace_reader;
    int64_t trace_until_ns; /* 0: it is being written */
};

/* hub.c: an event for the scheduler, and what follows from it. */
void hub_event(struct hub *h, const struct sched_event *e);
/* What the loop does from here on, for hub.work; returns what it did before. */
enum work_kind hub_work(struct hub *h, enum work_kind kind);
/* Starts whatever steps can start. */
void hub_run(struct hub *h);
/* Is the cluster ready to work?  Call after anything that may change it. */
void hub_refresh(struct hub *h);

/* The loop stops; `e` may be NULL. */
void hub_end_with(struct hub *h, enum hub_end end, const struct err *e);

/* hub_leader.c: who leads. */
int hub_leader_open(struct hub *h, struct err *e);
/* After the log is closed: a standby leads from then on. */
void hub_leader_close(struct hub *h);
void hub_leader_tick(struct hub *h, int64_t now_ns);
/* Puts on record who is in step; false: could not.  Else hub_ship_recorded() follows. */
bool hub_leader_record(struct hub *h, const uint64_t *states, int n);
/* By which this coordinator is on record (coordinator/identity.h). */
uint64_t hub_leader_state(const struct hub *h);
void hub_ship_recorded(struct hub *h, bool is_done);
/* Why this one does nothing: for people. */
void hub_leader_why(const struct hub *h, char *text, size_t bytes);
/* Of another coordinator, that leads; "": none, or not known. */
const char *hub_leader_url(const struct hub *h);
/* Does it certainly lead at this moment? */
bool hub_leader_is_sure(const struct hub *h);
json_t *hub_leader_object(const struct hub *h);
/* What all coordinators have in common of which one at a time leads; "": there is no etcd. */
void hub_leader_label(const struct hub *h, char *text, size_t bytes);

/* hub_http.c: routes and small answers. */
int hub_http_open(struct hub *h, struct err *e);
void hub_count_bad(struct hub *h, const char *reason);
void hub_reply_error(struct http_exchange *x, const struct openai_error *e);
void hub_refuse(struct hub *h, struct http_exchange *x, const struct openai_error *e);
void hub_point_to_leader(struct hub *h, struct http_exchange *x);
struct access_key *hub_key_of(struct hub *h, const struct http_exchange *x);

/* hub_admit.c: requests on their way in. */
#define HUB_STREAMS "/v1/streams/"
int hub_admit_open(struct hub *h, struct err *e);
void hub_admit_close(struct hub *h);
/* true: its body was being read, and nothing comes of it. */
bool hub_admit_gone(struct hub *h, const struct http_exchange *x);
void hub_admit_generate(struct hub *h, struct http_exchange *x, const struct http_message *m);
void hub_admit_count_tokens(struct hub *h, struct http_exchange *x, const struct http_message *m);
void hub_admit_tokenize(struct hub *h, struct http_exchange *x, const struct http_message *m);
void hub_admit_detokenize(struct hub *h, struct http_exchange *x, const struct http_message *m);
void hub_admit_again(struct hub *h, struct http_exchange *x, const struct http_message *m);
/* Hands to the scheduler what is not over. */
void hub_submit(struct hub *h, struct hub_request *r, bool is_resumed);
/* Reads the body into the request, here and now. */
int hub_parse(const struct hub *h, struct str body, struct request *r, struct openai_error *e);

/* hub_request.c: requests and their clients. */
/* Takes `q` over, which is all-zero afterwards. */
struct hub_request *hub_request_new(struct hub *h, struct request *q);
void hub_request_free(struct hub *h, struct hub_request **r);
/* Whose sequence is it?  NULL: it is over. */
struct hub_request *hub_request_of(const struct hub *h, uint64_t seq);
struct hub_request *hub_request_by_id(const struct hub *h, uint64_t owner, const char *id);
struct hub_request *hub_request_by_key(const struct hub *h, uint64_t owner, const char *key);
/* Gives `x` the answer from after event `id` (NULL: from the beginning) on, now and as it comes; the whole
 * one if the request is no stream.  E_INVALID: there is no such event, and nothing is done. */
int hub_attach(struct hub *h, struct hub_request *r, struct http_exchange *x, const char *id);
/* X-Request-Id as the client gave it, or NULL; and the answer's: the same, or our own. */
const char *hub_client_id(const struct http_exchange *x);
void hub_name_answer(struct http_exchange *x, const struct request *q);
void hub_client_gone(struct hub *h, struct http_exchange *x);
/* The request is in the log: what its clients were not given yet goes out. */
void hub_request_release(struct hub *h, struct hub_request *r);
/* What its clients were to be given is forgotten; they have been given nothing yet. */
void hub_request_unsay(struct hub_request *r);
/* Nobody wants it any more. */
void hub_request_cancel(struct hub *h, struct hub_request *r);
void hub_request_fail(struct hub *h, struct hub_request *r, int code, const char *text);
/* One token that is known already, as if it had been sent; `choice` is one of r's. */
void hub_request_feed(struct hub *h, struct hub_request *r, struct request *choice,
                      const struct sampled *sampled, enum sched_finish finish);
/* The scheduler shall do no more for any of its choices. */
void hub_request_stop(struct hub *h, const struct hub_request *r);
/* Into the list of those that are over. */
void hub_request_keep(struct hub *h, struct hub_request *r, int64_t over_us);
void hub_request_tick(struct hub *h, int64_t now_ns);
void hub_request_close(struct hub *h);

/* hub_log.c: the token log on disk. */
int hub_log_open(struct hub *h, struct err *e);
void hub_log_close(struct hub *h);
/* Opens the journal of state.dir; `o` says whom to call. */
int hub_log_open_dir(struct hub *h, const struct journal_options *o, records_each *each, void *ud,
                     struct journal **out, struct err *e);
/* All that is live now, as records. */
void hub_log_snapshot(const struct hub *h, struct buf *snapshot);
void hub_log_tick(struct hub *h);
/* What waited for the log, or for the leadership, goes out. */
void hub_log_release(struct hub *h);
/* May a request of this size be admitted?  E_UNAVAILABLE: the log has stopped; E_BUSY: it is full. */
int hub_log_admits(const struct hub *h, size_t body_bytes, struct openai_error *e);
void hub_log_request(struct hub *h, struct hub_request *r);
void hub_log_token(struct hub *h, struct hub_request *r, const struct request *choice,
                   const struct sampled *sampled);
void hub_log_end(struct hub *h, const struct hub_request *r, enum token_log_outcome outcome);
/* Is it safe to tell a client about it? */
bool hub_log_has(const struct hub *h, const struct hub_request *r);
void hub_started(struct hub *h, uint64_t seq);
void hub_moved(struct hub *h, uint64_t seq, uint32_t side);
void hub_inherited(struct hub *h, uint64_t seq, uint32_t side);
void hub_token(struct hub *h, const struct sched_action *a);
void hub_failed(struct hub *h, const struct sched_action *a);

/* hub_ship.c: the leader's token log on its way to standbys. */
void hub_ship_open(struct hub *h);
void hub_ship_close(struct hub *h);
void hub_ship_tick(struct hub *h, int64_t now_ns);
/* Of a record that the journal was given; its position, for hub_ship_has(). */
uint64_t hub_ship_add(struct hub *h, uint8_t type, struct str payload);
/* Is it with all standbys that keep up? */
bool hub_ship_has(const struct hub *h, uint64_t position);
/* Cluster/Follow. */
void hub_ship_follow(void *ud, struct server_call *call, const struct server_request *r);
/* NULL: nothing is shipped. */
const struct ship *hub_ship(const struct hub *h);
json_t *hub_ship_object(const struct hub *h);

/* hub_follow.c: a standby copies the leader's log into its own state directory. */
/* From now on this leader's, as `self`.  An error: the directory cannot be used. */
struct etcd_leader;
int hub_follow_leader(struct hub *h, const struct etcd_leader *self, const char *name,
                      const char *endpoint, struct err *e);
json_t *hub_follow_object(const struct hub *h);
int64_t hub_follow_bytes(const struct hub *h);
/* The directory is free then; blocks. */
void hub_follow_close(struct hub *h);

/* hub_cluster.c: nodes. */
int hub_cluster_open(struct hub *h, struct err *e);
void hub_cluster_tick(struct hub *h, int64_t now_ns);
/* What an attention side says of the nodes' answers. */
void hub_cluster_judge(struct hub *h, const struct wire_step_reply *r);
/* Tells a node to hand over what it holds and end.  E_NOT_FOUND; E_PRECONDITION: an attention
 * side that nobody could take over from. */
int hub_cluster_drain(struct hub *h, const char *name, bool restart, struct err *e);

/* hub_attention.c: attention sides. */
void hub_attention_add(struct hub *h, const struct node *n);
void hub_attention_remove(struct hub *h, uint32_t node_id);
/* It says how many KV pages it has now. */
void hub_attention_pages(struct hub *h, uint32_t node_id, uint32_t pages);
/* Its sequences are handed over. */
void hub_attention_drain(struct hub *h, uint32_t node_id);
void hub_attention_tick(struct hub *h, int64_t now_ns);
/* Tells the scheduler which sides can be used now; `why` for those that cannot. */
void hub_attention_refresh(struct hub *h, const char *why);
void hub_attention_send(struct hub *h, uint32_t node_id, const struct wire_step *step);
void hub_attention_release(struct hub *h, uint32_t node_id, uint64_t seq);
void hub_attention_flush(struct hub *h);
void hub_attention_close(struct hub *h);

/* hub_watch.c: what a step's reply tells beside its tokens. */
void hub_watch_step(struct hub *h, struct hub_attention *a, const struct reply *r,
                    const struct wire_step_reply *step);

/* A line for whoever watches (events.h). */
#define hub_tell(h, level, kind, ...) \
    events_add(&(h)->events, clock_unix_us(), level, kind, __VA_ARGS__)

/* hub_trace.c: a recording of the next seconds. */
void hub_trace_ask(struct hub *h, struct http_exchange *x, const struct http_message *m);
bool hub_trace_is_on(const struct hub *h);
/* true: it was the reader of a trace, which is over now. */
bool hub_trace_gone(struct hub *h, const struct http_exchange *x);
void hub_trace_tick(struct hub *h, int64_t now_ns);
void hub_trace_close(struct hub *h);
void hub_trace_step(struct hub *h, const struct hub_attention *a, const struct reply *r,
                    const struct wire_step_report *report);
void hub_trace_request(struct hub *h, const struct hub_request *r);

/* hub_admin.c: what operators may do, and what their page asks for. */
void hub_admin_heat(struct hub *h, struct http_exchange *x, const struct http_message *m);
void hub_admin_events(struct hub *h, struct http_exchange *x, const struct http_message *m);
void hub_admin_drain(struct hub *h, struct http_exchange *x, const struct http_message *m);

/* admin.c: what operators see. */
void admin_health(const struct hub *h, struct buf *out);
void admin_ready(const struct hub *h, struct buf *out);
void admin_cluster(const struct hub *h, struct buf *out);
/* Load, copies and places of all experts; what happened after the event `after`. */
void admin_heat(const struct hub *h, struct buf *out);
void admin_events(const struct hub *h, uint64_t after, struct buf *out);

/* hub_metrics.c: all of it for Prometheus. */
void hub_write_metrics(const struct hub *h, struct buf *out);
