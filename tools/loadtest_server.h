/* tools/loadtest_server.h - what the coordinator says of itself (/metrics) around a load test. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "tools/http_client.h"

struct loadtest_server {
    bool is_known; /* false: the rest says nothing */
    double resident_bytes, connections, running, queued, cancelled, failed;
};
/* A value of the text of /metrics by its whole name with labels; 0 if it is not there. */
double loadtest_server_value(const char *text, const char *name);
/* From the text of /metrics. */
void loadtest_server_parse(const char *text, struct loadtest_server *out);
/* E_DENIED: it needs an admin's key. */
int loadtest_server_read(struct http_client *http, const char *url, struct loadtest_server *out,
                         struct err *e);
/* Until nothing runs or waits there and no more than `connections` are open; E_DEADLINE. */
int loadtest_server_settle(struct http_client *http, const char *url, double connections,
                           int64_t deadline_ns, struct loadtest_server *out, struct err *e);
/* E_UNAVAILABLE, and why, unless the cluster takes requests. */
int loadtest_server_is_ready(struct http_client *http, const char *url, struct err *e);
