/* coordinator/http.h - the HTTP library behind one narrow interface (step 1 of a token's
 * path, and the very end of step 14).
 *
 * An exchange is one request and its answer.  The handler gets it when the whole body is
 * there and answers now or later, in one piece or as a stream.  Sizes, times and the number
 * of connections are bounded here; what a body means is not known here.
 *
 * Beyond max_connections some more are let in, whose requests are refused with 503 and who must send them
 * at once; whoever comes then waits in the kernel's queue for one of these to end.
 *
 * A client that hangs up is noticed within HTTP_WATCH_MS, also while its exchange waits for
 * an answer; a client that closes only its sending half counts as gone, because the two
 * cannot be told apart.
 *
 * Owner: coordinator loop; nothing here blocks. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "rpc/loop.h"

enum { HTTP_WATCH_MS = 50 };

struct http;
struct http_exchange;

/* Borrowed until the handler returns. */
struct http_message {
    const char *method, *path; /* path without query, percent-decoded */
    struct str body;
};

struct http_options {
    const char *host; /* address to bind */
    int port;         /* 0: any free one */
    size_t max_body_bytes;
    int max_connections;
    int64_t idle_timeout_ns;
    /* Header and body each must have come within this time: a client that sends byte after byte holds a
     * connection no longer than that. */
    int64_t request_ns;
    /* A request has come.  It must be answered in the end, unless on_gone comes first. */
    void (*on_request)(void *ud, struct http_exchange *x, const struct http_message *m);
    /* The headers of a request have come: 0, or the status with which it is refused at once, and
     * why (static); headers for that answer may be added.  NULL: all are taken. */
    int (*admit)(void *ud, struct http_exchange *x, const char *path, const char **why);
    /* The client is gone before the answer was complete; x is invalid after this. */
    void (*on_gone)(void *ud, struct http_exchange *x);
    /* The body for a request that is refused before anyone saw it; `body` is empty. */
    void (*on_refused)(void *ud, const struct http_exchange *x, int status, const char *why,
                       struct buf *body);
    void *ud;
    struct work *work; /* coordinator/work.h; borrowed; NULL: nobody counts */
};

/* E_EXISTS: the port is in use; E_INVALID: no such address. */
int http_open(struct loop *l, const struct http_options *o, struct http **out, struct err *e);
/* Ends every connection; on_gone is not called any more. */
void http_close(struct http **h);
/* "http://127.0.0.1:8080", with the real port. */
const char *http_url(const struct http *h);
int http_port(const struct http *h);
/* No new connections from now on; those that are open go on. */
void http_stop_accepting(struct http *h);

/* The owner's own pointer, NULL at first. */
void http_set_user(struct http_exchange *x, void *user);
void *http_user(const struct http_exchange *x);
/* A header of the request (its name in any case), or NULL; valid until the answer is complete. */
const char *http_request_header(const struct http_exchange *x, const char *name);
/* Path without query, percent-decoded; valid as long. */
const char *http_path(const struct http_exchange *x);
/* A value of the path's query ("?name=value"), or NULL; valid as long. */
const char *http_query(const struct http_exchange *x, const char *name);
/* A header of the answer, before the answer begins; text is copied. */
void http_add_header(struct http_exchange *x, const char *name, const char *value);

/* The whole answer; x is invalid afterwards. */
void http_reply(struct http_exchange *x, int status, const char *content_type, struct str body);
/* An answer in pieces.  http_stream_write() returns how many bytes the client has not taken
 * yet; http_stream_end() makes x invalid, and what was written still goes out. */
void http_stream_begin(struct http_exchange *x, int status, const char *content_type);
size_t http_stream_write(struct http_exchange *x, struct str data);
void http_stream_end(struct http_exchange *x);
/* Cuts the connection; x is invalid afterwards. */
void http_abort(struct http_exchange *x);

struct http_counters {
    int64_t connections, requests, refused, hung_up;
    int64_t open; /* connections now */
};
void http_count(const struct http *h, struct http_counters *out);
