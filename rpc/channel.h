/* rpc/channel.h - the client's side of calls to one server: ids, deadlines, cancellation,
 * streaming, status (protocol.md 1).
 *
 * Every call is answered exactly once through its callback (a stream: any number of items,
 * then exactly one end): by the reply, by E_DEADLINE, by E_UNAVAILABLE when the peer's
 * connection breaks, or by E_CANCELLED.  Late replies are recognised by call id, dropped
 * and counted.  Owner: the thread that opened it. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/blob.h"
#include "base/buf.h"
#include "base/err.h"
#include "rpc/link.h"
#include "rpc/wire.h"

enum { CHANNEL_MAX_PAYLOADS = 6 };

/* Borrowed for the duration of the callback. */
struct reply {
    uint64_t call_id;
    int code;           /* 0 or E_*, as the server gave it or as the channel found it */
    const char *text;   /* for people; "" if code is 0 */
    bool last;          /* false for an item of a stream that goes on */
    struct str message; /* the method's protobuf reply: for wire_*_decode() */
    int n_payloads;
    struct frame payloads[CHANNEL_MAX_PAYLOADS];
    uint64_t queue_us, compute_us; /* the server's own timings */
    int n_metadata;                /* trailing metadata of the answer */
    const struct wire_metadata *metadata;
};
typedef void reply_callback(void *ud, const struct reply *r);

struct call {
    const char *method;        /* "polymath.v1.Expert/Forward" */
    const struct buf *message; /* protobuf request: from wire_*_encode() */
    struct blob *const *payloads;
    int n_payloads;
    int64_t deadline_ns; /* CLOCK_NEVER is refused (must) except for streams */
    bool stream;
    uint64_t trace_id;
    int n_metadata; /* keys and values beside the message, at most WIRE_MAX_METADATA */
    const struct wire_metadata *metadata;
    reply_callback *done;
    void *ud;
};

struct channel;
struct channel_options {
    const char *endpoint;
    const char *peer_name;  /* for log lines and error texts; copied */
    int max_calls;          /* open at a time; 0 = 64 */
    struct auth *auth;      /* rpc/auth.h, borrowed until channel_close(); NULL: no keys */
    const char *server_key; /* with keys, over tcp: whom to expect there */
};
/* Dials in the background; reconnects for ever. */
int channel_open(const struct channel_options *o, struct channel **out, struct err *e);
/* Ends open calls with E_CANCELLED through their callbacks. */
void channel_close(struct channel **c);

/* Sends.  Returns 0 and the id; or, without ever calling back: E_UNAVAILABLE (not
 * connected), E_BUSY (too many calls, or the high-water mark). */
int channel_call(struct channel *c, const struct call *call, uint64_t *call_id);
/* Tells the server, and ends the call with E_CANCELLED now; unknown ids are ignored. */
void channel_cancel(struct channel *c, uint64_t call_id);

/* Takes what came, expires deadlines, notices disconnects; runs callbacks. */
void channel_process(struct channel *c, int64_t now_ns);
/* The earliest deadline of an open call or of something to do, or CLOCK_NEVER. */
int64_t channel_deadline_ns(const struct channel *c);
bool channel_is_connected(const struct channel *c);
const char *channel_peer_name(const struct channel *c);

/* For synchronous owners (the engine thread): waits on several channels and processes
 * them, until something was processed, extra_fd is readable, or the deadline. */
void channel_wait(struct channel *const *channels, int n, int extra_fd, int64_t deadline_ns,
                  int64_t spin_ns);

struct channel_counters {
    int64_t calls, replies, failures, late_replies, bad_frames;
};
void channel_count(const struct channel *c, struct channel_counters *out);

/* For loop owners: processes on every turn that concerns it, and on deadlines. */
struct loop;
void channel_attach(struct channel *c, struct loop *l);
void channel_detach(struct channel *c, struct loop *l);
