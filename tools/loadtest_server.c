/* tools/loadtest_server.c - see loadtest_server.h. */
#include "tools/loadtest_server.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

double loadtest_server_value(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = text; (at = strstr(at, name)); at += n)
        if ((at == text || at[-1] == '\n') && at[n] == ' ')
            return strtod(at + n, NULL);
    return 0;
}

void loadtest_server_parse(const char *text, struct loadtest_server *out)
{
    *out = (struct loadtest_server){
        .resident_bytes = loadtest_server_value(text, "process_resident_memory_bytes"),
        .connections = loadtest_server_value(text, "polymath_http_connections_open"),
        .running = loadtest_server_value(text, "polymath_requests_running"),
        .queued = loadtest_server_value(text, "polymath_requests_queued"),
        .cancelled = loadtest_server_value(text, "polymath_requests_total{outcome=\"cancelled\"}"),
        .failed = loadtest_server_value(text, "polymath_requests_total{outcome=\"failed\"}"),
    };
    out->is_known = out->resident_bytes > 0;
}

int loadtest_server_read(struct http_client *http, const char *url, struct loadtest_server *out,
                         struct err *e)
{
    char *whole = mem_format("%s/metrics", url);
    struct http_exchange x = {.url = whole};
    struct buf answer = {0};
    int status = 0;
    *out = (struct loadtest_server){0};
    int rc = http_exchange(http, &x, &status, &answer, e);
    if (rc == 0 && status != 200) {
        http_error_text(&answer, status, e);
        rc = status == 401 || status == 403 ? E_DENIED : E_UNKNOWN;
    }
    if (rc == 0) {
        buf_putc(&answer, '\0');
        loadtest_server_parse(answer.data, out);
    }
    buf_fini(&answer);
    mem_free(whole);
    return rc;
}

int loadtest_server_is_ready(struct http_client *http, const char *url, struct err *e)
{
    char *whole = mem_format("%s/ready", url);
    struct http_exchange x = {.url = whole};
    struct buf answer = {0};
    int status = 0;
    int rc = http_exchange(http, &x, &status, &answer, e);
    if (rc == 0 && status != 200)
        rc = err_set(e, E_UNAVAILABLE, "the cluster is not ready: %.*s",
                     (int)(answer.len < 160 ? answer.len : 160), answer.data ? answer.data : "");
    buf_fini(&answer);
    mem_free(whole);
    return rc;
}

int loadtest_server_settle(struct http_client *http, const char *url, double connections,
                           int64_t deadline_ns, struct loadtest_server *out, struct err *e)
{
    for (;;) {
        int rc = loadtest_server_read(http, url, out, e);
        bool is_quiet = out->running == 0 && out->queued == 0;
        if (rc < 0 || (is_quiet && out->connections <= connections))
            return rc;
        if (clock_now_ns() >= deadline_ns)
            return err_set(e, E_DEADLINE,
                           "%g requests still run and %g still wait there, with %g connections",
                           out->running, out->queued, out->connections);
        clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
    }
}
