/* tools/http_client.c - HTTP over libcurl. */
#include "tools/http_client.h"

#include <curl/curl.h>
#include <jansson.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/safe_file.h"

struct http_client {
    CURL *curl;
    struct buf line;
    char *key_header; /* NULL: none */
    char error[CURL_ERROR_SIZE];
};

struct receiving {
    struct http_client *client;
    const struct http_exchange *exchange;
    struct buf *answer;
    bool refused;
};

struct http_client *http_client_new(void)
{
    struct http_client *c = mem_alloc(sizeof *c);
    must_zero(curl_global_init(CURL_GLOBAL_DEFAULT));
    c->curl = curl_easy_init();
    must(c->curl);
    return c;
}

void http_client_free(struct http_client **client)
{
    struct http_client *c = *client;
    if (!c)
        return;
    curl_easy_cleanup(c->curl);
    curl_global_cleanup();
    buf_fini(&c->line);
    if (c->key_header)
        explicit_bzero(c->key_header, strlen(c->key_header));
    mem_free(c->key_header);
    mem_free(c);
    *client = NULL;
}

int http_client_use_key(struct http_client *c, const char *path, struct err *e)
{
    struct buf text = {0};
    int rc = safe_file_read(path, SAFE_FILE_SECRET, &text, e);
    size_t len = rc == 0 ? strcspn(text.data, " \t\r\n") : 0;
    if (rc == 0 && (len == 0 || len != strlen(text.data) - strspn(text.data + len, " \t\r\n")))
        rc = err_set(e, E_INVALID, "%s: expected an API key and nothing else", path);
    if (rc == 0) {
        mem_free(c->key_header);
        c->key_header = mem_format("Authorization: Bearer %.*s", (int)len, text.data);
    }
    if (text.data)
        explicit_bzero(text.data, text.size);
    buf_fini(&text);
    return rc;
}

const char *http_client_key_header(const struct http_client *c)
{
    return c->key_header;
}

/* Hands out the whole lines that have arrived. */
static bool take_lines(struct receiving *r)
{
    struct buf *pending = &r->client->line;
    size_t start = 0;
    for (size_t i = 0; i < pending->len; i++) {
        if (pending->data[i] != '\n')
            continue;
        size_t len = i - start;
        if (len > 0 && pending->data[i - 1] == '\r')
            len--;
        if (!r->exchange->on_line(r->exchange->ud, (struct str){pending->data + start, len}))
            return false;
        start = i + 1;
    }
    buf_drop(pending, start);
    return true;
}

static size_t on_data(char *data, size_t size, size_t count, void *ud)
{
    struct receiving *r = ud;
    size_t bytes = size * count;
    long status = 0;
    curl_easy_getinfo(r->client->curl, CURLINFO_RESPONSE_CODE, &status);
    if (!r->exchange->on_line || status != 200) {
        buf_append(r->answer, data, bytes);
        return bytes;
    }
    buf_append(&r->client->line, data, bytes);
    if (!take_lines(r)) {
        r->refused = true;
        return 0;
    }
    return bytes;
}

/* Called by libcurl about once a second, and whenever something moves. */
static int on_progress(void *ud, curl_off_t to_get, curl_off_t got, curl_off_t to_put,
                       curl_off_t put)
{
    (void)to_get;
    (void)got;
    (void)to_put;
    (void)put;
    struct receiving *r = ud;
    r->refused |= *r->exchange->is_cancelled;
    return r->refused;
}

static int code_of(CURLcode rc, const struct receiving *r)
{
    if (r->refused)
        return E_CANCELLED;
    switch (rc) {
    case CURLE_OK:
        return 0;
    case CURLE_OPERATION_TIMEDOUT:
        return E_DEADLINE;
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return E_UNAVAILABLE;
    default:
        return E_IO;
    }
}

int http_exchange(struct http_client *c, const struct http_exchange *x, int *status,
                  struct buf *answer, struct err *e)
{
    struct receiving r = {.client = c, .exchange = x, .answer = answer};
    struct curl_slist *headers = NULL;
    int64_t timeout_ns = x->timeout_ns ? x->timeout_ns : 10 * CLOCK_S;

    buf_reset(&c->line);
    buf_reset(answer);
    c->error[0] = 0;
    curl_easy_reset(c->curl);
    curl_easy_setopt(c->curl, CURLOPT_URL, x->url);
    curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, c->error);
    curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->curl, CURLOPT_PROXY, ""); /* clusters are reached directly */
    curl_easy_setopt(c->curl, CURLOPT_TIMEOUT_MS, (long)(timeout_ns / CLOCK_MS));
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, &r);
    if (c->key_header)
        headers = curl_slist_append(headers, c->key_header);
    for (int i = 0; x->headers && x->headers[i]; i++)
        headers = curl_slist_append(headers, x->headers[i]);
    if (x->body) {
        headers = curl_slist_append(headers, "Content-Type: application/json");
        headers = curl_slist_append(headers, "Expect:");
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, x->body);
    }
    if (headers)
        curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers);
    if (x->is_cancelled) {
        curl_easy_setopt(c->curl, CURLOPT_NOPROGRESS, 0L);
        curl_easy_setopt(c->curl, CURLOPT_XFERINFOFUNCTION, on_progress);
        curl_easy_setopt(c->curl, CURLOPT_XFERINFODATA, &r);
    }
    CURLcode curl_rc = curl_easy_perform(c->curl);
    curl_slist_free_all(headers);
    int rc = code_of(curl_rc, &r);
    if (rc < 0)
        return err_set(e, rc, "%s: %s", x->url,
                       c->error[0] ? c->error : curl_easy_strerror(curl_rc));
    long code = 0;
    curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &code);
    *status = (int)code;
    return 0;
}

void http_error_text(const struct buf *answer, int status, struct err *e)
{
    json_t *root = json_loadb(answer->data ? answer->data : "", answer->len, 0, NULL);
    const char *text =
        json_string_value(json_object_get(json_object_get(root, "error"), "message"));
    if (text)
        err_set(e, E_UNKNOWN, "HTTP %d: %s", status, text);
    else
        err_set(e, E_UNKNOWN, "HTTP %d: %.200s", status, answer->data ? answer->data : "");
    json_decref(root);
}
