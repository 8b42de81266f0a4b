/* rpc/server.h - the server's side: one bound endpoint, dispatch by generated service
 * descriptors, health and reflection built in (protocol.md 1 and 2).
 *
 * Bad frames cost their sender INVALID_ARGUMENT and a counter; unknown methods
 * UNIMPLEMENTED; calls beyond a peer's share RESOURCE_EXHAUSTED, so that others do not notice
 * it.  With keys a peer whose key is not let in (any more) gets PERMISSION_DENIED.  Owner: the thread that opened it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/blob.h"
#include "base/buf.h"
#include "base/err.h"
#include "rpc/link.h"
#include "rpc/wire.h"

enum { SERVER_MAX_PAYLOADS = 6 };

/* A call in progress.  A handler answers it now or keeps the pointer and answers later,
 * on the same thread; exactly one final answer each. */
struct server_call;

/* What the caller sent; borrowed until the handler returns.  A handler that answers later
 * copies what it needs. */
struct server_request {
    struct str message;
    int n_payloads;
    struct frame payloads[SERVER_MAX_PAYLOADS];
    int64_t deadline_ns; /* on our clock; CLOCK_NEVER if none */
    uint64_t trace_id;
    int64_t received_ns;
    int n_metadata;
    const struct wire_metadata *metadata;
    const char *key; /* that the caller proved (rpc/auth.h); "": the connection has no keys */
};
typedef void server_handler(void *ud, struct server_call *call, const struct server_request *r);

struct server_options {
    const char *endpoint;
    const char *name;       /* for log lines; copied */
    size_t max_frame_bytes; /* 0 = 256 MiB */
    int max_calls;          /* open at a time; more are answered RESOURCE_EXHAUSTED; 0 = 256 */
    int max_peer_calls;     /* of one peer; 0: half of max_calls */
    struct auth *auth;      /* borrowed until server_close(); NULL: no keys */
};
struct server;
int server_open(const struct server_options *o, struct server **out, struct err *e);
/* Open calls are answered UNAVAILABLE. */
void server_close(struct server **s);
const char *server_endpoint(const struct server *s);

/* `handlers` are in the order of the service's methods in its .proto file; NULL entries
 * answer UNIMPLEMENTED.  Copied. */
void server_add(struct server *s, enum wire_service service, server_handler *const *handlers,
                void *ud);
/* What Health/Check answers and Health/Watch streams, for the server as a whole. */
void server_set_serving(struct server *s, bool serving);

/* Receives and dispatches everything that waits. */
void server_process(struct server *s, int64_t now_ns);
struct link *server_link(struct server *s);

/* Final answers.  The call is gone afterwards (*call set to NULL).  If the peer has gone
 * the answer is dropped and counted. */
struct server_answer {
    const struct buf *message; /* NULL: empty */
    struct blob *const *payloads;
    int n_payloads;
    uint64_t queue_us, compute_us;
    int n_metadata; /* trailing metadata, at most WIRE_MAX_METADATA */
    const struct wire_metadata *metadata;
};
void server_reply(struct server_call **call, const struct server_answer *a);
void server_fail(struct server_call **call, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* One item of a stream; E_UNAVAILABLE when the peer is gone or cancelled: then finish. */
int server_stream_item(struct server_call *call, const struct server_answer *a);
/* The caller cancelled, its deadline passed or it disconnected: work may stop. */
bool server_call_is_cancelled(const struct server_call *call);

struct server_counters {
    int64_t calls, failures, bad_frames, unknown_methods, dropped_answers;
    int64_t refused_peers; /* calls of peers whose key is not let in */
    int64_t over_share;    /* calls beyond a peer's share */
};
void server_count(const struct server *s, struct server_counters *out);

struct loop;
void server_attach(struct server *s, struct loop *l);
void server_detach(struct server *s, struct loop *l);
