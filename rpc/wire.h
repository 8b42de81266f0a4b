/* rpc/wire.h - every message as a plain C struct; sizes and limits.
 *
 * No protobuf type appears here: wire_*.c turns structs into frames and back, and all
 * validation of outside data happens there.  Decoders believe nothing: counts, ids and
 * the product of sizes are checked in 64 bits before anything is read.  A decoder returns
 * 0 or E_INVALID with the reason in `e` (which may be NULL).
 *
 * Encoders write the protobuf message into `message` and bulk data into blobs that the
 * caller sends as payload frames; decoders get the same back as `str` and frames. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/blob.h"
#include "base/buf.h"
#include "base/err.h"
#include "model/format.h"
#include "model/sampling.h"
#include "rpc/link.h"

enum wire_service {
    WIRE_CLUSTER,
    WIRE_EXPERT,
    WIRE_ATTENTION,
    WIRE_HEALTH,
    WIRE_REFLECTION,
    WIRE_CONTEXT,
    WIRE_SERVICES
};

/* Methods in the order of the .proto files. */
enum {
    CLUSTER_JOIN,
    CLUSTER_HEARTBEAT,
    CLUSTER_HOLDINGS,
    CLUSTER_TABLE, /* request: empty */
    CLUSTER_LEAVE,
    CLUSTER_CALLERS, /* request: empty */
    CLUSTER_LOAD,    /* reply: empty */
    CLUSTER_FOLLOW,  /* of a standby coordinator */
    CLUSTER_METHODS
};
enum { EXPERT_FORWARD, EXPERT_DESCRIBE, EXPERT_METHODS };
enum { ATTENTION_STEP, ATTENTION_RELEASE, ATTENTION_DESCRIBE, ATTENTION_METHODS };
enum { CONTEXT_OPEN, CONTEXT_BEGIN, CONTEXT_CHOOSE, CONTEXT_ATTEND, CONTEXT_METHODS };

/* "polymath.v1.Expert/Forward"; static storage. */
const char *wire_method(enum wire_service service, int method);

enum {
    WIRE_NAME_BYTES = 64,
    WIRE_TEXT_BYTES = 128,
    WIRE_STATUS_TEXT_BYTES = 512,
    WIRE_MAX_NODES = 4096,
    WIRE_MAX_LAYERS = 4096,
    WIRE_MAX_EXPERTS = 65535,
    WIRE_MAX_ROWS = 65536,
    WIRE_MAX_SEQS = 4096
};

/* ---- Cluster: every node <-> coordinator (rpc/wire_cluster.c) ---------------------- */

enum node_role { NODE_EXPERT, NODE_ATTENTION, NODE_CONTEXT };
enum node_state { NODE_JOINING, NODE_LOADING, NODE_READY, NODE_DRAINING, NODE_GONE };
/* What the coordinator thinks of a node's answers: SUSPECT missed deadlines, QUARANTINED gave a
 * wrong or non-finite answer. */
enum node_trust { NODE_TRUSTED, NODE_SUSPECT, NODE_QUARANTINED };
const char *node_role_name(enum node_role r);
const char *node_state_name(enum node_state s);
const char *node_trust_name(enum node_trust t);

struct wire_join {
    enum node_role role;
    char name[WIRE_NAME_BYTES];                        /* unique in the cluster */
    char endpoint[LINK_ENDPOINT_BYTES];                /* of its data service, as others dial it */
    char host[WIRE_NAME_BYTES], rack[WIRE_NAME_BYTES]; /* rack "": the host is its own */
    uint32_t pid, threads;
    uint64_t incarnation; /* random per process start */
    uint32_t protocol_version;
    uint64_t fingerprint; /* checkpoint_fingerprint() */
    struct format_set formats;
    enum combine_mode combine;
    char kernels[WIRE_NAME_BYTES], build[WIRE_TEXT_BYTES];
    uint64_t memory_bytes;           /* room for experts, or KV pages */
    uint64_t expert_bytes;           /* of one packed expert */
    uint32_t max_rows;               /* of one Forward or Step */
    char public_key[KEY_TEXT_BYTES]; /* "": no keys */
    uint64_t read_bytes_s;           /* how fast it reads experts from memory; 0: not known */
    bool borrows;                    /* memory that others lend (attention) */
};
struct wire_join_reply {
    uint32_t node_id; /* never 0 */
    uint64_t epoch;
    uint32_t heartbeat_ms, lease_ms;
};

enum { WIRE_MAX_BROKEN = 32 };
struct wire_heartbeat {
    uint32_t node_id;
    uint64_t incarnation;
    enum node_state state;
    uint64_t epoch;            /* table installed (attention) */
    uint64_t holdings_version; /* wholly loaded and self-tested (expert) */
    uint32_t experts_held, experts_wanted;
    uint64_t held_bytes;
    uint64_t tested; /* newest self-test that was passed (expert) */
    uint32_t n_broken;
    uint64_t broken[WIRE_MAX_BROKEN]; /* incarnations of nodes whose connection broke (attention) */
    uint32_t kv_pages; /* that it has now, also of others; 0: as described (attention, context) */
};
struct wire_heartbeat_reply {
    uint64_t epoch;            /* newest table */
    uint64_t holdings_version; /* newest for this node */
    uint64_t callers_version;  /* newest list of callers; 0: the cluster has no keys */
    bool drain;                /* hand over what you hold, then end */
    bool restart;              /* ... so as to be started again */
    bool may_leave;            /* to a draining node: nobody needs what you hold any more */
    uint64_t test;             /* newest self-test that is asked for; 0: none */
};

/* What one expert node shall hold. */
struct wire_holdings_request {
    uint32_t node_id;
};
struct wire_holdings {
    uint64_t version;
    uint32_t n_layers, n_experts;
    const uint8_t *bitmap; /* [n_layers][(n_experts + 7) / 8], bit e%8 of byte e/8 */
};
/* Who holds what and may be asked: the immutable table of one epoch. */
struct wire_table_node {
    uint32_t node_id;
    char name[WIRE_NAME_BYTES], endpoint[LINK_ENDPOINT_BYTES];
    uint64_t incarnation;
    uint32_t max_rows;
    char public_key[KEY_TEXT_BYTES]; /* "": none */
    uint64_t read_bytes_s;           /* how fast it reads experts; 0: not known */
};
/* A node that lends memory to one attention side. */
struct wire_table_context {
    uint32_t node_id;
    char name[WIRE_NAME_BYTES], endpoint[LINK_ENDPOINT_BYTES];
    uint64_t incarnation;
    char public_key[KEY_TEXT_BYTES]; /* "": none */
    uint32_t borrower;               /* node id, never 0 */
};
enum { WIRE_NO_HOLDER = 0xffff, WIRE_MAX_REPLICAS = 4 };
struct wire_table {
    uint64_t epoch;
    uint32_t n_layers, n_experts, n_nodes;
    uint32_t n_replicas; /* 1 .. WIRE_MAX_REPLICAS: places for each expert */
    const struct wire_table_node *nodes;
    /* [n_layers][n_experts][n_replicas]: indices into nodes, no node twice, WIRE_NO_HOLDER
     * from behind the last; any of them may be asked. */
    const uint16_t *holders;
    uint32_t n_contexts; /* at most WIRE_MAX_NODES */
    const struct wire_table_context *contexts;
};
/* The n_replicas places of one expert. */
static inline const uint16_t *wire_table_holders(const struct wire_table *t, uint32_t layer,
                                                 uint32_t expert)
{
    return t->holders + ((size_t)layer * t->n_experts + expert) * t->n_replicas;
}
/* 0, or E_INVALID: shape, counts and every expert's places are as said above. */
int wire_table_check(const struct wire_table *t, struct err *e);
/* Whom an expert node lets in beside the coordinator: the attention sides' keys. */
struct wire_callers {
    uint64_t version;
    uint32_t n_keys; /* at most WIRE_MAX_NODES */
    const char (*keys)[KEY_TEXT_BYTES];
};
/* What an attention side's router chose since its last report. */
struct wire_load {
    uint32_t node_id;
    uint64_t incarnation;
    uint32_t n_layers, n_experts;
    const uint16_t *counts; /* [n_layers][n_experts], at most 65535 */
};
struct wire_leave {
    uint32_t node_id;
    uint64_t incarnation;
    char reason[WIRE_TEXT_BYTES];
};

/* A standby coordinator asks for what follows in the leader's token log (coordinator/ship.h). */
struct wire_follow {
    uint64_t instance; /* not 0 */
    uint64_t state; /* likewise: of its state directory; decoded as the instance where it was 0 */
    char name[WIRE_NAME_BYTES];
    uint64_t stream, offset;
};
struct wire_follow_reply {
    uint64_t stream, offset, snapshot_bytes;
    struct str bytes; /* the payload; borrowed */
};

void wire_join_encode(const struct wire_join *m, struct buf *message);
int wire_join_decode(struct str message, struct wire_join *out, struct err *e);
void wire_join_reply_encode(const struct wire_join_reply *m, struct buf *message);
int wire_join_reply_decode(struct str message, struct wire_join_reply *out, struct err *e);
void wire_heartbeat_encode(const struct wire_heartbeat *m, struct buf *message);
int wire_heartbeat_decode(struct str message, struct wire_heartbeat *out, struct err *e);
void wire_heartbeat_reply_encode(const struct wire_heartbeat_reply *m, struct buf *message);
int wire_heartbeat_reply_decode(struct str message, struct wire_heartbeat_reply *out,
                                struct err *e);
void wire_holdings_request_encode(const struct wire_holdings_request *m, struct buf *message);
int wire_holdings_request_decode(struct str message, struct wire_holdings_request *out,
                                 struct err *e);
/* The bitmap and the table travel as one payload frame each. */
void wire_holdings_encode(const struct wire_holdings *m, struct buf *message,
                          struct blob **payload);
/* `bitmap` of out points into an allocation that the caller frees with mem_free(). */
int wire_holdings_decode(struct str message, const struct frame *payloads, int n_payloads,
                         struct wire_holdings *out, uint8_t **bitmap, struct err *e);
void wire_table_encode(const struct wire_table *m, struct buf *message, struct blob **payload);
/* Everything in one allocation, freed with mem_free(); checked as by wire_table_check(). */
int wire_table_decode(struct str message, const struct frame *payloads, int n_payloads,
                      struct wire_table **out, struct err *e);
void wire_callers_encode(const struct wire_callers *m, struct buf *message);
/* Everything in one allocation, freed with mem_free(). */
int wire_callers_decode(struct str message, struct wire_callers **out, struct err *e);
void wire_load_encode(const struct wire_load *m, struct buf *message, struct blob **payload);
/* `counts` of out points into an allocation that the caller frees with mem_free(). */
int wire_load_decode(struct str message, const struct frame *payloads, int n_payloads,
                     struct wire_load *out, uint16_t **counts, struct err *e);
void wire_leave_encode(const struct wire_leave *m, struct buf *message);
int wire_leave_decode(struct str message, struct wire_leave *out, struct err *e);
void wire_follow_encode(const struct wire_follow *m, struct buf *message);
int wire_follow_decode(struct str message, struct wire_follow *out, struct err *e);
void wire_follow_reply_encode(const struct wire_follow_reply *m, struct buf *message,
                              struct blob **payload);
/* `bytes` of out lie in the payload. */
int wire_follow_reply_decode(struct str message, const struct frame *payloads, int n_payloads,
                             struct wire_follow_reply *out, struct err *e);

/* ---- Expert: attention side -> expert_node (rpc/wire_expert.c) --------------------- */

/* One Forward: each row once per node, however many of its experts live there.
 * Payloads: [0] routes: uint16 n_routes_of_row[n_rows], int16 exponents[n_rows],
 * uint16 experts[n_routes], float weights[n_routes]; [1] rows: with group 0 float
 * [n_rows, hidden]; otherwise int8 [n_rows, hidden], then float scales [n_rows, groups], one
 * per `group` columns (engine/rows.h). */
struct wire_forward {
    uint64_t fingerprint, epoch, step;
    uint32_t layer, lane, n_rows, hidden, n_routes;
    uint32_t group; /* format_group() of the experts */
    enum combine_mode mode;
};
/* `routes` is packed by wire_forward_pack_routes(); rows are the caller's blob. */
void wire_forward_encode(const struct wire_forward *m, struct buf *message);
size_t wire_forward_routes_bytes(uint32_t n_rows, uint32_t n_routes);
/* Of payload 1; false if that does not fit in size_t. */
bool wire_forward_rows_bytes(const struct wire_forward *m, size_t *out);
/* Scales of one row; 0 with group 0. */
uint32_t wire_forward_groups(const struct wire_forward *m);
void wire_forward_pack_routes(const struct wire_forward *m, const int32_t *first_route,
                              const int16_t *exponents, const uint16_t *experts,
                              const float *weights, void *out);
/* What the worker may accept; everything else is refused. */
struct wire_forward_limits {
    uint64_t fingerprint;
    uint32_t n_layers, n_experts, hidden, max_rows, max_top_k, group;
};
int wire_forward_decode(struct str message, const struct frame *payloads, int n_payloads,
                        const struct wire_forward_limits *limits, struct wire_forward *out,
                        struct err *e);
/* After a successful decode: copies the routes into the caller's aligned arrays
 * (first_route [n_rows + 1], exponents [n_rows], experts and weights [n_routes]).
 * E_INVALID: a row without routes or with more than max_top_k, an expert out of range or
 * twice in a row, a weight that is not finite. */
int wire_forward_unpack_routes(const struct wire_forward *m, const struct frame *routes,
                               const struct wire_forward_limits *limits, int32_t *first_route,
                               int16_t *exponents, uint16_t *experts, float *weights,
                               struct err *e);
/* Where rows go: f32 with group 0, the rest otherwise; strides in elements, columns past
 * `hidden` are left alone.  `sums` are computed here: nobody is believed about them. */
struct wire_rows {
    float *f32;
    int8_t *q8;
    float *scales;
    int32_t *sums;
    size_t f32_stride, q8_stride, scale_stride;
};
/* After a successful decode.  E_INVALID: a -128, which the kernels' arithmetic has no room
 * for, or a scale that is negative or infinite (NaN is legal: it marks a row that was not
 * finite). */
int wire_forward_unpack_rows(const struct wire_forward *m, const struct frame *rows,
                             const struct wire_rows *to, struct err *e);

/* Reply payload: int32 [n_rows, hidden], float [n_routes, hidden] or uint16 [n_rows, hidden]. */
enum { WIRE_MAX_OVERFLOW = 4096 };
struct wire_forward_reply {
    uint64_t step;
    uint32_t layer, lane, n_rows;
    enum combine_mode mode;
    uint32_t n_overflow; /* mode fixed: rows (of this parcel) to be asked again */
    uint32_t overflow_rows[WIRE_MAX_OVERFLOW];
};
void wire_forward_reply_encode(const struct wire_forward_reply *m, struct buf *message);
/* `expect` is the request that it answers; the payload's size is checked against it. */
int wire_forward_reply_decode(struct str message, const struct frame *payloads, int n_payloads,
                              const struct wire_forward *expect, struct wire_forward_reply *out,
                              struct err *e);

/* Describe: what an expert node is and holds (request is empty). */
struct wire_expert_description {
    char name[WIRE_NAME_BYTES];
    uint64_t fingerprint, holdings_version, held_bytes;
    uint32_t experts_held, n_layers, n_experts, protocol_version;
    struct format_set formats;
    enum combine_mode combine;
    char kernels[WIRE_NAME_BYTES], build[WIRE_TEXT_BYTES];
};
void wire_expert_description_encode(const struct wire_expert_description *m, struct buf *message);
int wire_expert_description_decode(struct str message, struct wire_expert_description *out,
                                   struct err *e);

/* ---- Attention: coordinator -> attention side (rpc/wire_attention.c) --------------- */

struct wire_step_seq {
    uint64_t seq;
    uint32_t position, n_tokens;
    bool sample;                     /* the last row's token is wanted */
    uint32_t n_prompt;               /* with `sampling`: length of the whole prompt */
    const struct sampling *sampling; /* with the first chunk (position 0) only, else NULL */
    uint32_t n_ahead; /* with the first chunk: more tokens that are known, for what the cache has */
    uint32_t
        n_draft; /* n_tokens - 1 guesses behind one token; 0: none.  One sample more than came true */
};
/* Payload [0]: int32 tokens, seq after seq, n_tokens and n_ahead of each; n_tokens of the step counts
 * rows.  A sequence appears once in a step.
 * `session` is the coordinator's hold on the side, higher each time that it takes (or again takes)
 * the side over: at a higher one the side forgets all sequences, a lower one is refused. */
struct wire_step {
    uint64_t step, session;
    uint32_t n_seqs, n_tokens;
    const struct wire_step_seq *seqs;
    const int32_t *tokens;
};
void wire_step_encode(const struct wire_step *m, struct buf *message, struct blob **payload);
struct wire_step_limits {
    uint32_t max_rows, max_seqs, vocab_size, max_positions;
};
/* Everything in one allocation, freed with mem_free(). */
int wire_step_decode(struct str message, const struct frame *payloads, int n_payloads,
                     const struct wire_step_limits *limits, struct wire_step **out, struct err *e);

struct wire_step_sample {
    uint64_t seq;
    int code; /* 0, or E_* if this sequence alone failed (non-finite logits) */
    struct sampled sampled;
};
/* What was done about trouble with expert nodes, since the attention side started. */
struct wire_ladder_counters {
    uint64_t calls;      /* Forward calls in all */
    uint64_t retries;    /* of these, asked elsewhere after a failure or a deadline */
    uint64_t lates;      /* deadlines that passed */
    uint64_t hedges;     /* calls made because another was slow */
    uint64_t hedge_wins; /* of these, answered first */
    uint64_t waits;      /* layers that waited for an expert that was nowhere */
    uint64_t left_out;   /* selections that were left out (degraded mode) */
    uint64_t checks;     /* answers that a replica was asked for as well */
    uint64_t mismatches; /* of these, with other bits */
    uint64_t not_finite; /* answers refused for a NaN or an infinity */
};
/* Of the grammars that answers were held to, since the attention side started. */
struct wire_grammar_counters {
    uint64_t compiled, shared, refused; /* sequences, by where their grammar came from */
    uint64_t masks_asked, masks_made;
    uint64_t bytes, kept; /* now */
};
enum wire_standing {
    WIRE_STANDING_GOOD,
    WIRE_STANDING_SUSPECT, /* until it answers a probe */
    WIRE_STANDING_AWAY,    /* not connected */
    WIRE_STANDING_WRONG,   /* gave a wrong answer: quarantine it */
    WIRE_STANDINGS
};
const char *wire_standing_name(enum wire_standing s);
/* One expert node, as an attention side sees it. */
struct wire_node_health {
    uint32_t node_id;
    uint64_t incarnation;
    enum wire_standing standing;
    uint64_t failovers; /* parcels asked elsewhere because of it */
    uint64_t lates;     /* of these, because of a deadline */
    uint64_t wrongs;    /* wrong answers */
    uint64_t usual_us;  /* of a small parcel */
};
/* A sequence that began with this step: what the cache had of its tokens. */
struct wire_step_opened {
    uint64_t seq;
    uint32_t n_cached; /* at least 1 */
};
struct wire_step_reply {
    uint64_t step, epoch;
    uint32_t n_samples;
    const struct wire_step_sample *samples;     /* in order of the step's seqs with `sample` */
    uint64_t attention_us, experts_us, head_us; /* where the step's time went */
    uint64_t router_us, sampling_us;            /* of attention_us; of head_us */
    uint32_t lanes;                             /* that the step had: 1 or 2 */
    uint32_t
        lanes_permille; /* time of two lanes to one, when such steps were last tried; 0: not yet */
    uint32_t kv_pages_free;
    bool degraded; /* experts were left out: every answer of this step is to be marked */
    struct wire_ladder_counters ladder;
    struct wire_grammar_counters grammars;
    uint32_t n_nodes; /* at most WIRE_MAX_NODES: those that something is to be said about */
    const struct wire_node_health *nodes;
    uint32_t n_opened; /* in order of the step's seqs */
    const struct wire_step_opened *opened;
    /* 0, or E_*: the step failed, of which the call itself says nothing, so that what is known
     * of the nodes gets through; there are no samples then. */
    int code;
    char text[WIRE_STATUS_TEXT_BYTES];
};
void wire_step_reply_encode(const struct wire_step_reply *m, struct buf *message);
/* One allocation, freed with mem_free(). */
int wire_step_reply_decode(struct str message, struct wire_step_reply **out, struct err *e);

/* Payload 0 of a step's reply, now and then and whenever the step is traced (rpc/wire_report.c).
 * Numbers are of the time since the side's last report. */
struct wire_node_traffic {
    uint32_t node_id; /* never 0 */
    uint64_t incarnation;
    uint64_t calls;     /* answered well */
    uint64_t failovers; /* parcels asked elsewhere because of it */
    uint64_t hedges, retries;
    uint64_t sent_bytes, received_bytes;    /* payloads */
    uint64_t call_us, queue_us, compute_us; /* of calls answered well; the last two as it says */
};
struct wire_layer_time {
    uint32_t layer;
    uint64_t rounds, rows, attention_us, experts_us;
};
enum wire_span_kind {
    WIRE_SPAN_ATTENTION,
    WIRE_SPAN_ROUND, /* scatter to the end of gather */
    WIRE_SPAN_CALL,
    WIRE_SPAN_HEAD,
    WIRE_SPANS
};
struct wire_span {
    enum wire_span_kind kind;
    uint32_t layer, lane;
    uint32_t node_id;             /* of a call */
    uint64_t begin_us, length_us; /* since the step began */
    uint64_t queue_us, compute_us;
    uint32_t rows;
    uint64_t bytes;
    bool is_failed;
};
enum { WIRE_MAX_SPANS = 16384 };
struct wire_step_report {
    uint32_t n_nodes;  /* at most WIRE_MAX_NODES */
    uint32_t n_layers; /* entries, at most WIRE_MAX_LAYERS */
    uint32_t n_spans;
    const struct wire_node_traffic *nodes;
    const struct wire_layer_time *layers;
    const struct wire_span *spans;
    uint64_t spans_lost;
};
void wire_step_report_encode(const struct wire_step_report *m, struct buf *payload);
/* One allocation, freed with mem_free().  E_INVALID: too many of something, a node or a kind that
 * does not exist, a span whose parts are longer than itself or than a day. */
int wire_step_report_decode(struct str payload, struct wire_step_report **out, struct err *e);

/* Release: forget these sequences; unknown ones are fine, as are those of an older session.
 * Empty reply. */
struct wire_release {
    uint32_t n_seqs;
    const uint64_t *seqs;
    uint64_t session;
};
void wire_release_encode(const struct wire_release *m, struct buf *message);
int wire_release_decode(struct str message, struct wire_release **out, struct err *e);

/* Describe (request is empty). */
struct wire_attention_description {
    char name[WIRE_NAME_BYTES];
    uint64_t fingerprint, epoch;
    uint64_t session; /* the highest that it has heard of */
    uint32_t kv_pages_total, kv_pages_free, page_tokens, max_rows, max_seqs, max_positions;
    uint32_t protocol_version;
    struct format_set formats;
    enum combine_mode combine;
    bool keeps_prefixes; /* it takes n_ahead */
    bool takes_drafts;   /* it takes n_draft */
    char kernels[WIRE_NAME_BYTES], build[WIRE_TEXT_BYTES];
};
void wire_attention_description_encode(const struct wire_attention_description *m,
                                       struct buf *message);
int wire_attention_description_decode(struct str message, struct wire_attention_description *out,
                                      struct err *e);

/* ---- Context: attention side -> attention host that lends (rpc/wire_context.c) -------- */

/* What engine/context.h has, on the wire (proto/context.proto has the payloads' shapes).  A caller
 *   opens:    wire_context_open_encode();
 *   begins:   wire_context_begin_encode(), which makes the payload of pages, or NULL;
 *   chooses:  wire_context_call_encode(); payloads of its own in this order, as blobs that it fills:
 *             [wire_context_writes_bytes()] wire_context_index_q_bytes();
 *   attends:  likewise: [wire_context_writes_bytes()] wire_context_q_bytes()
 *             [wire_context_blocks_bytes(), where that is not 0] [wire_context_states_bytes()].
 * Writes are one behind the other, as are states and o. */
enum { WIRE_CONTEXT_LANES = 2, WIRE_CONTEXT_GROUP_ROWS = 16 };

struct wire_context_open {
    uint64_t fingerprint;
    enum kv_format kv;
    uint32_t protocol_version, max_rows; /* of one step: 1 .. WIRE_MAX_ROWS */
    char owner[WIRE_NAME_BYTES];
};
void wire_context_open_encode(const struct wire_context_open *m, struct buf *message);
int wire_context_open_decode(struct str message, struct wire_context_open *out, struct err *e);
struct wire_context_open_reply {
    uint64_t session; /* never 0 */
    uint32_t pages, page_tokens, max_seqs;
};
void wire_context_open_reply_encode(const struct wire_context_open_reply *m, struct buf *message);
int wire_context_open_reply_decode(struct str message, struct wire_context_open_reply *out,
                                   struct err *e);

struct wire_context_part {
    uint32_t seq, n_kept, n_new;
};
struct wire_context_group {
    uint32_t part, n_rows, position;
    bool chooses, ends;
};
struct wire_context_begin {
    uint64_t session, step;
    uint32_t lane, n_parts, n_groups;
    const struct wire_context_part *parts;
    const int32_t *pages; /* [sum of n_new] */
    const struct wire_context_group *groups;
};
/* *payload is NULL if there are no pages. */
void wire_context_begin_encode(const struct wire_context_begin *m, struct buf *message,
                               struct blob **payload);
struct wire_context_limits {
    uint32_t max_rows, max_seqs, n_pages;
};
/* One allocation, freed with mem_free().  Counts, indices and every page are checked; what a part's list
 * was before, and where rows may lie, is engine/context.h's. */
int wire_context_begin_decode(struct str message, const struct frame *payloads, int n_payloads,
                              const struct wire_context_limits *limits,
                              struct wire_context_begin **out, struct err *e);

/* Choose and Attend. */
struct wire_context_call {
    uint64_t session, step;
    uint32_t lane, layer;
    bool has_writes;
    bool has_states; /* of Attend alone */
};
void wire_context_call_encode(const struct wire_context_call *m, struct buf *message);
/* Its payloads come next, when it is known whose call it is. */
int wire_context_call_decode(struct str message, struct wire_context_call *out, struct err *e);

/* Sizes of the model, of which payloads' sizes are made. */
struct wire_context_model {
    uint32_t n_layers;
    uint32_t n_full_layers; /* those behind have sparse attention; n_layers: none has */
    uint32_t n_heads, n_kv_heads, head_dim;
    uint32_t index_heads, index_dim, top_k;
};
/* Rows of a lane, as announced by Begin; at most WIRE_MAX_ROWS each. */
struct wire_context_counts {
    uint32_t rows, ending, choosing;
};
struct wire_context_counts wire_context_count(const struct wire_context_begin *m);
size_t wire_context_writes_bytes(const struct wire_context_model *m,
                                 const struct wire_context_counts *n, uint32_t layer);
size_t wire_context_index_q_bytes(const struct wire_context_model *m,
                                  const struct wire_context_counts *n);
size_t wire_context_candidates_bytes(const struct wire_context_model *m,
                                     const struct wire_context_counts *n);
size_t wire_context_q_bytes(const struct wire_context_model *m,
                            const struct wire_context_counts *n);
/* 0 in a layer that sees everything. */
size_t wire_context_blocks_bytes(const struct wire_context_model *m,
                                 const struct wire_context_counts *n, uint32_t layer);
/* States alone, and with o. */
size_t wire_context_state_bytes(const struct wire_context_model *m,
                                const struct wire_context_counts *n);
size_t wire_context_states_bytes(const struct wire_context_model *m,
                                 const struct wire_context_counts *n);

/* A call's payloads as they lie in the frames, which may be misaligned; NULL: not there. */
struct wire_context_rows {
    const void *writes, *index_q, *q, *blocks, *states;
};
/* The payloads of a decoded call: E_INVALID if their number or one of their sizes is not what model
 * and counts make it, if there is nothing to write or to choose, or if the layer does not exist.  What
 * lies in them is not looked at: any float is legal. */
int wire_context_choose_payloads(const struct wire_context_call *m, const struct frame *payloads,
                                 int n_payloads, const struct wire_context_model *model,
                                 const struct wire_context_counts *counts,
                                 struct wire_context_rows *out, struct err *e);
int wire_context_attend_payloads(const struct wire_context_call *m, const struct frame *payloads,
                                 int n_payloads, const struct wire_context_model *model,
                                 const struct wire_context_counts *counts,
                                 struct wire_context_rows *out, struct err *e);

/* Answers: the message is empty, payload 0 is the server's blob. */
struct wire_context_candidate {
    float score;
    int32_t block; /* -1: there are no more */
};
/* To `out` [choosing, index_heads, top_k - 1].  E_INVALID: a wrong size, or a list with a block that is
 * not below its row's n_blocks [choosing], that stands twice, or that stands behind the end. */
int wire_context_choose_reply_decode(const struct frame *payloads, int n_payloads,
                                     const struct wire_context_model *model,
                                     const struct wire_context_counts *counts,
                                     const int32_t *n_blocks, struct wire_context_candidate *out,
                                     struct err *e);
/* *out lies in the payload, maybe misaligned: wire_context_states_bytes() of it. */
int wire_context_attend_reply_decode(const struct frame *payloads, int n_payloads,
                                     const struct wire_context_model *model,
                                     const struct wire_context_counts *counts, const void **out,
                                     struct err *e);

/* ---- Call headers, health and reflection (rpc/wire_call.c) -------------------------- */

enum { WIRE_METHOD_BYTES = 96, WIRE_MAX_METADATA = 16 };
enum { WIRE_FLAG_CANCEL = 1, WIRE_FLAG_STREAM = 2, WIRE_FLAG_LAST = 4 };
struct wire_metadata {
    char key[WIRE_NAME_BYTES], value[WIRE_TEXT_BYTES];
};
struct wire_call_header {
    uint32_t version, flags;
    uint64_t call_id, trace_id;
    char method[WIRE_METHOD_BYTES];
    uint64_t deadline_us; /* remaining; 0 = none */
    uint32_t n_metadata;
    struct wire_metadata metadata[WIRE_MAX_METADATA];
};
struct wire_reply_header {
    uint32_t version, flags;
    uint64_t call_id;
    int code; /* E_*; gRPC's number on the wire */
    char text[WIRE_STATUS_TEXT_BYTES];
    uint64_t queue_us, compute_us;
    uint32_t n_metadata;
    struct wire_metadata metadata[WIRE_MAX_METADATA];
};
void wire_call_header_encode(const struct wire_call_header *m, struct buf *out);
int wire_call_header_decode(struct str frame, struct wire_call_header *out, struct err *e);
void wire_reply_header_encode(const struct wire_reply_header *m, struct buf *out);
int wire_reply_header_decode(struct str frame, struct wire_reply_header *out, struct err *e);

struct wire_health {
    bool serving;
};
void wire_health_encode(const struct wire_health *m, struct buf *message);
int wire_health_decode(struct str message, struct wire_health *out, struct err *e);
enum { HEALTH_CHECK, HEALTH_WATCH };
/* Reflection/List: names of methods, "polymath.v1.Expert/Forward", one after another. */
enum { WIRE_MAX_LISTED = 64 };
struct wire_listing {
    uint32_t n_methods;
    char methods[WIRE_MAX_LISTED][WIRE_METHOD_BYTES];
};
void wire_listing_encode(const struct wire_listing *m, struct buf *message);
int wire_listing_decode(struct str message, struct wire_listing *out, struct err *e);
enum { REFLECTION_LIST };

/* The generated descriptor's view of a service, for dispatch. */
int wire_service_methods(enum wire_service service);
/* E_NOT_FOUND if the name is none of ours. */
int wire_method_find(const char *name, enum wire_service *service, int *method);
bool wire_method_is_stream(enum wire_service service, int method);
