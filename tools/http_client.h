/* tools/http_client.h - HTTP requests of the command line tools and the cluster tests,
 * over libcurl.  Blocking, with deadlines. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

struct http_client;
struct http_client *http_client_new(void);
void http_client_free(struct http_client **c);
/* Every exchange from now on shows the API key that the file holds (`polymath keys api new ... >FILE`).
 * The errors of safe_file_read(): others must not be able to read it. */
int http_client_use_key(struct http_client *c, const char *path, struct err *e);
/* The header line that shows it, or NULL; valid as long as the client. */
const char *http_client_key_header(const struct http_client *c);

struct http_exchange {
    const char *url;
    const char *body;   /* NULL: GET; else POST as application/json */
    int64_t timeout_ns; /* for the whole exchange; 0: 10 s */
    /* further lines of the header ("Name: value"), NULL-terminated; NULL: none */
    const char *const *headers;
    /* Once true, the exchange ends with E_CANCELLED within a second; NULL: never. */
    const _Atomic bool *is_cancelled;
    /* Called for every line of the answer as it arrives (without its line feed), for
     * streams; the body is then not kept.  Returning false aborts the exchange, which
     * ends with E_CANCELLED. */
    bool (*on_line)(void *ud, struct str line);
    void *ud;
};

/* 0 whatever the HTTP status; E_UNAVAILABLE: no connection; E_DEADLINE; E_CANCELLED; E_IO:
 * the connection broke before the end. */
int http_exchange(struct http_client *c, const struct http_exchange *x, int *status,
                  struct buf *answer, struct err *e);

/* "error.message" of an OpenAI-style error body, or the start of the body. */
void http_error_text(const struct buf *answer, int status, struct err *e);
