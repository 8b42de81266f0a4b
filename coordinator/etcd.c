/* coordinator/etcd.c - see etcd.h.
 *
 * A job goes to the thread, and comes back with its outcome; while it is out the thread owns it, and
 * the connection at all times. */
#include "coordinator/etcd.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/queue.h"
#include "base/safe_file.h"
#include "base/thread.h"

enum { MAX_TOKEN_BYTES = 4096, UNAUTHENTICATED = 16 };
#define LOG_IN_NS (10 * CLOCK_S)

struct job {
    const char *path;
    json_t *body, *answer;
    int64_t deadline_ns;
    etcd_done *done;
    void *ud;
    struct err e;
};

/* What only the thread touches, once it runs. */
struct connection {
    CURL *curl;
    struct curl_slist *headers;
    char *endpoints[ETCD_MAX_ENDPOINTS];
    int n_endpoints, at;
    char *password, *token;
    struct buf received;
    char curl_text[CURL_ERROR_SIZE];
    bool is_too_long, has_answered;
    struct thread *thread;
};

struct etcd {
    struct etcd_options options;
    struct loop *loop;
    struct thread *thread;
    struct queue *jobs, *done;
    struct job wake;
    int n_under_way;
    struct connection connection;
    char why_lost[ERR_TEXT_BYTES];
};

/* ---- options ------------------------------------------------------------------------- */

static bool is_loopback(struct str host)
{
    return str_has_prefix(host, STR("127.")) || str_has_prefix(host, STR("localhost:")) ||
           str_has_prefix(host, STR("[::1]:"));
}

static int check_endpoint(struct str one, bool has_password, struct err *e)
{
    static const struct str http = {"http://", 7}, https = {"https://", 8};
    bool is_secure = str_has_prefix(one, https);
    if (!is_secure && !str_has_prefix(one, http))
        return err_set(e, E_INVALID, "\"%.*s\" is not http://HOST:PORT or https://HOST:PORT",
                       (int)one.len, one.ptr);
    struct str host = {one.ptr + (is_secure ? 8 : 7), one.len - (is_secure ? 8 : 7)};
    if (host.len == 0 || host.len > 200 || memchr(host.ptr, '/', host.len) ||
        memchr(host.ptr, '@', host.len))
        return err_set(e, E_INVALID, "\"%.*s\" is not a host and a port", (int)one.len, one.ptr);
    if (has_password && !is_secure && !is_loopback(host))
        return err_set(e, E_INVALID,
                       "%.*s: a password would cross the network for anybody to read: use https, "
                       "or write out security.insecure = true",
                       (int)one.len, one.ptr);
    return 0;
}

/* Calls `each` for every endpoint of the list. */
static int walk(const char *list, struct connection *into, bool has_password, struct err *e)
{
    int n = 0;
    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        struct str one = {at, strcspn(at, ",")};
        if (n++ == ETCD_MAX_ENDPOINTS)
            return err_set(e, E_INVALID, "more than %d endpoints", ETCD_MAX_ENDPOINTS);
        int rc = check_endpoint(one, has_password, e);
        if (rc < 0)
            return rc;
        if (into)
            into->endpoints[into->n_endpoints++] = str_copy(one);
    }
    return 0;
}

int etcd_check(const struct etcd_options *o, bool may_be_open, struct err *e)
{
    int rc = walk(o->endpoints, NULL, o->user[0] && !may_be_open, e);
    if (rc < 0)
        return err_prefix(e, "etcd.endpoints");
    if (!o->user[0] != !o->password_file[0])
        return err_set(e, E_INVALID, "etcd.user and etcd.password_file belong together");
    if (!o->cert_file[0] != !o->key_file[0])
        return err_set(e, E_INVALID, "etcd.cert_file and etcd.key_file belong together");
    return 0;
}

static int read_password(struct etcd *c, struct err *e)
{
    struct buf text = {0};
    if (!c->options.password_file[0])
        return 0;
    int rc = safe_file_read(c->options.password_file, SAFE_FILE_SECRET, &text, e);
    if (rc == 0)
        c->connection.password = str_copy((struct str){text.data, strcspn(text.data, "\r\n")});
    buf_fini(&text);
    return rc < 0 ? err_prefix(e, "etcd.password_file") : 0;
}

/* libcurl would say so only when it connects, again and again. */
static int check_files(const struct etcd_options *o, struct err *e)
{
    const struct {
        const char *option, *path;
    } files[] = {{"etcd.ca_file", o->ca_file},
                 {"etcd.cert_file", o->cert_file},
                 {"etcd.key_file", o->key_file}};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        if (files[i].path[0] && access(files[i].path, R_OK) < 0)
            return err_set(e, E_INVALID, "%s: %.200s: %s", files[i].option, files[i].path,
                           strerror(errno));
    return 0;
}

/* ---- one exchange, on the thread ------------------------------------------------------- */

static size_t on_bytes(char *data, size_t size, size_t n, void *ud)
{
    struct connection *k = ud;
    k->is_too_long = k->received.len + size * n > ETCD_MAX_ANSWER_BYTES;
    if (k->is_too_long)
        return 0;
    buf_append(&k->received, data, size * n);
    return size * n;
}

/* Ends a wait when the program does. */
static int on_progress(void *ud, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct connection *k = ud;
    (void)a, (void)b, (void)c, (void)d;
    return k->thread && thread_should_stop(k->thread);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "";
}

/* What to do about an etcd that refuses, by what it or its gateway says. */
static const struct {
    const char *says, *remedy;
} remedies[] = {
    {"user name is empty", "this etcd has users: name one in etcd.user, with etcd.password_file"},
    {"invalid user ID or password",
     "etcd.user does not exist or is not the one whose password etcd.password_file holds (etcdctl "
     "user passwd NAME sets it)"},
    {"authentication is not enabled", "this etcd has no users: leave etcd.user and "
                                      "etcd.password_file empty (or: etcdctl auth enable)"},
    {"permission denied",
     "the role of etcd.user must read and write below etcd.prefix (etcdctl role grant-permission "
     "ROLE readwrite PREFIX --prefix=true)"},
    {"CommonName of client",
     "an etcd with users takes a certificate here only if its subject has no common name: make "
     "etcd.cert_file without CN (-subj /O=NAME)"},
    {"client sent an HTTP request to an HTTPS server", "write https:// in etcd.endpoints"},
};

static const char *remedy_of(const char *says)
{
    for (size_t i = 0; i < sizeof remedies / sizeof remedies[0]; i++)
        if (strstr(says, remedies[i].says))
            return remedies[i].remedy;
    return NULL;
}

static bool never_left(CURLcode rc)
{
    return rc == CURLE_COULDNT_CONNECT || rc == CURLE_COULDNT_RESOLVE_HOST ||
           rc == CURLE_OPERATION_TIMEDOUT;
}

/* The same for connections that never came about. */
static const char *remedy_of_curl(const struct connection *k, CURLcode rc)
{
    bool is_secure = strncmp(k->endpoints[k->at], "https://", 8) == 0;
    if (rc == CURLE_PEER_FAILED_VERIFICATION || rc == CURLE_SSL_CACERT_BADFILE)
        return "etcd.ca_file must be the certificate that signs this etcd's, which must "
               "name the host in etcd.endpoints";
    if (rc == CURLE_SSL_CERTPROBLEM)
        return "etcd.cert_file and etcd.key_file must be a PEM certificate and the key to it";
    if (k->has_answered || k->is_too_long || never_left(rc))
        return NULL;
    if (rc == CURLE_SSL_CONNECT_ERROR && !strstr(k->curl_text, "alert"))
        return "without TLS at that port write http:// in etcd.endpoints";
    /* The refusal of a client's certificate comes after the handshake: as an alert, or as a connection
     * that breaks somewhere. */
    return is_secure
               ? "etcd may take only certificates that its --trusted-ca-file signs: such a one "
                 "belongs into etcd.cert_file, its key into etcd.key_file"
               : "with TLS at that port write https:// in etcd.endpoints";
}

static void note_refusal(struct connection *k, CURLcode rc, struct err *e)
{
    const char *why = k->is_too_long    ? "the answer is too long"
                      : k->curl_text[0] ? k->curl_text
                                        : curl_easy_strerror(rc);
    const char *remedy = remedy_of_curl(k, rc);
    err_set(e, rc == CURLE_OPERATION_TIMEDOUT ? E_DEADLINE : E_UNAVAILABLE, "%s: %.200s%s%s",
            k->endpoints[k->at], why, remedy ? ": " : "", remedy ? remedy : "");
}

/* The gateway's errors: {"error": TEXT, "code": gRPC's number}, or a line of text. */
static int read_answer(struct connection *k, long status, json_t **out, struct err *e)
{
    json_error_t why;
    json_t *root = json_loadb(k->received.data ? k->received.data : "", k->received.len,
                              JSON_REJECT_DUPLICATES, &why);
    if (status == 200 && json_is_object(root) && !json_object_get(root, "error")) {
        *out = root;
        return 0;
    }
    long long number = (long long)json_integer_value(json_object_get(root, "code"));
    buf_append(&k->received, "", 1);
    const char *says = root ? text_of(root, "error") : k->received.data;
    const char *remedy = remedy_of(says);
    if (status == 200 && !root)
        err_set(e, E_CORRUPT, "the answer is not JSON (%.100s)", why.text);
    else if (status == 401 || number == UNAUTHENTICATED)
        err_set(e, E_UNAUTHENTICATED, "%.200s", says);
    else
        err_set(e, number > 0 && number < UNAUTHENTICATED ? -(int)number : E_UNAVAILABLE,
                "HTTP %ld: %.*s%s%s", status, (int)strcspn(says, "\r\n"), says, remedy ? ": " : "",
                remedy ? remedy : "");
    json_decref(root);
    return e->code;
}

static void set_up(struct connection *k, const char *url, const char *body, int64_t left_ns)
{
    long left_ms = (long)(left_ns / CLOCK_MS) + 1;
    buf_reset(&k->received);
    k->curl_text[0] = '\0';
    k->is_too_long = false;
    curl_easy_setopt(k->curl, CURLOPT_URL, url);
    curl_easy_setopt(k->curl, CURLOPT_POSTFIELDS, body);
    curl_easy_setopt(k->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    curl_easy_setopt(k->curl, CURLOPT_TIMEOUT_MS, left_ms);
    /* So that the next endpoint has its turn, too. */
    curl_easy_setopt(k->curl, CURLOPT_CONNECTTIMEOUT_MS,
                     k->n_endpoints > 1 ? left_ms / 2 + 1 : left_ms);
    curl_slist_free_all(k->headers);
    k->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (k->token) {
        char *header = mem_format("Authorization: %s", k->token);
        k->headers = curl_slist_append(k->headers, header);
        mem_free(header);
    }
    curl_easy_setopt(k->curl, CURLOPT_HTTPHEADER, k->headers);
}

/* At whatever endpoint takes it.  What may have been done is not sent twice. */
static int exchange(struct connection *k, const char *path, const char *body, int64_t deadline_ns,
                    json_t **out, struct err *e)
{
    for (int tries = 0; tries < k->n_endpoints; tries++) {
        int64_t left_ns = deadline_ns - clock_now_ns();
        if (left_ns <= 0)
            return err_set(e, E_DEADLINE, "%s did not answer in time", k->endpoints[k->at]);
        char *url = mem_format("%s%s", k->endpoints[k->at], path);
        *e = (struct err){0};
        set_up(k, url, body, left_ns);
        CURLcode rc = curl_easy_perform(k->curl);
        mem_free(url);
        long status = 0;
        double connected_s = 0;
        curl_easy_getinfo(k->curl, CURLINFO_RESPONSE_CODE, &status);
        curl_easy_getinfo(k->curl, CURLINFO_CONNECT_TIME, &connected_s);
        if (rc == CURLE_OK && read_answer(k, status, out, e) != E_UNAVAILABLE)
            return e->code;
        k->has_answered |= rc == CURLE_OK;
        if (rc != CURLE_OK)
            note_refusal(k, rc, e);
        k->at = (k->at + 1) % k->n_endpoints;
        if (rc == CURLE_OK || !never_left(rc) || connected_s > 0)
            return e->code;
    }
    return e->code;
}

/* etcd hashes passwords slowly on purpose (bcrypt: 0.1 s of CPU, which on a busy host is many times
 * that), and a request's time is a fraction of a lease: a log-in that were given up with it would never
 * come about. */
static int64_t log_in_deadline_ns(const struct connection *k, int64_t deadline_ns)
{
    int64_t patient_ns = clock_now_ns() + LOG_IN_NS;
    return k->thread && patient_ns > deadline_ns ? patient_ns : deadline_ns;
}

static int log_in(struct connection *k, const char *user, int64_t deadline_ns, struct err *e)
{
    json_t *answer = NULL, *o = json_pack("{ss,ss}", "name", user, "password", k->password);
    if (!o)
        return err_set(e, E_INVALID, "etcd.user or its password is not UTF-8");
    char *body = json_dumps(o, JSON_COMPACT);
    int rc = exchange(k, "/v3/auth/authenticate", body, deadline_ns, &answer, e);
    const char *token = text_of(answer, "token");
    if (rc == 0 && (!token[0] || strlen(token) > MAX_TOKEN_BYTES || strpbrk(token, "\r\n")))
        rc = err_set(e, E_CORRUPT, "/v3/auth/authenticate gave no token");
    if (rc == 0)
        k->token = mem_string(token);
    free(body);
    json_decref(o);
    json_decref(answer);
    return rc < 0 ? err_prefix(e, "log in as %s", user) : 0;
}

static void do_job(struct etcd *c, struct job *job)
{
    struct connection *k = &c->connection;
    char *body = json_dumps(job->body, JSON_COMPACT);
    must(body);
    for (int tries = 0; tries < 2; tries++) {
        job->e = (struct err){0};
        int rc = 0;
        if (k->password && !k->token)
            rc = log_in(k, c->options.user, log_in_deadline_ns(k, job->deadline_ns), &job->e);
        if (rc == 0)
            rc = exchange(k, job->path, body, job->deadline_ns, &job->answer, &job->e);
        if (rc != E_UNAUTHENTICATED || !k->token)
            break;
        mem_free(k->token);
        k->token = NULL;
    }
    free(body);
}

static void client_main(struct thread *t, void *arg)
{
    struct etcd *c = arg;
    c->connection.thread = t;
    thread_ready(t, 0, NULL);
    while (!thread_should_stop(t)) {
        struct job *job = queue_pop_wait(c->jobs, clock_now_ns() + CLOCK_S);
        if (!job || job == &c->wake)
            continue;
        do_job(c, job);
        must_zero(queue_push(c->done, (void **)&job));
    }
}

/* ---- on the loop -------------------------------------------------------------------------- */

static void free_job(struct job *job)
{
    json_decref(job->body);
    json_decref(job->answer);
    mem_free(job);
}

static void note(struct etcd *c, const struct err *e)
{
    if (e->code == 0) {
        if (c->why_lost[0])
            log_info("etcd.answers", "endpoints=%s", log_quote(c->options.endpoints).text);
        c->why_lost[0] = '\0';
        return;
    }
    if (!c->why_lost[0])
        log_warn("etcd.lost", "why=%s", log_quote(e->text).text);
    snprintf(c->why_lost, sizeof c->why_lost, "%s", e->text[0] ? e->text : err_text(e->code));
}

static void on_done(void *ud, int64_t now_ns)
{
    struct etcd *c = ud;
    (void)now_ns;
    struct job *job = queue_pop(c->done);
    if (!job)
        return;
    c->n_under_way--;
    note(c, &job->e);
    job->done(job->ud, job->e.code, job->e.code < 0 ? NULL : job->answer, job->e.text);
    free_job(job);
}

int etcd_post(struct etcd *c, const char *path, json_t *body, int64_t timeout_ns, etcd_done *done,
              void *ud)
{
    must(body);
    if (c->n_under_way == ETCD_MAX_UNDER_WAY) {
        json_decref(body);
        return E_BUSY;
    }
    struct job *job = mem_alloc(sizeof *job);
    *job = (struct job){.path = path,
                        .body = body,
                        .deadline_ns = clock_now_ns() + timeout_ns,
                        .done = done,
                        .ud = ud};
    c->n_under_way++;
    must_zero(queue_push(c->jobs, (void **)&job));
    return 0;
}

const char *etcd_why_lost(const struct etcd *c)
{
    return c->why_lost[0] ? c->why_lost : NULL;
}

static void wake(void *ud)
{
    struct etcd *c = ud;
    struct job *job = &c->wake;
    queue_push(c->jobs, (void **)&job);
}

static void stop_thread(struct etcd *c)
{
    if (!c->thread)
        return;
    thread_stop(&c->thread, wake, c);
    c->connection.thread = NULL;
    loop_remove_fd(c->loop, queue_fd(c->done));
    struct queue *queues[] = {c->jobs, c->done};
    for (int i = 0; i < 2; i++)
        for (struct job *job; (job = queue_pop(queues[i]));)
            if (job != &c->wake)
                free_job(job);
    c->n_under_way = 0;
}

void etcd_post_last(struct etcd *c, const char *path, json_t *body, int64_t timeout_ns)
{
    stop_thread(c);
    struct job job = {.path = path, .body = body, .deadline_ns = clock_now_ns() + timeout_ns};
    do_job(c, &job);
    json_decref(job.body);
    json_decref(job.answer);
}

static int open_curl(struct etcd *c, struct err *e)
{
    const struct etcd_options *o = &c->options;
    CURL *curl = c->connection.curl = curl_easy_init();
    if (!curl)
        return err_set(e, E_NOMEM, "libcurl cannot be initialised");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &c->connection);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, c->connection.curl_text);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &c->connection);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    if (o->ca_file[0])
        curl_easy_setopt(curl, CURLOPT_CAINFO, o->ca_file);
    if (o->cert_file[0])
        curl_easy_setopt(curl, CURLOPT_SSLCERT, o->cert_file);
    if (o->key_file[0])
        curl_easy_setopt(curl, CURLOPT_SSLKEY, o->key_file);
    return 0;
}

int etcd_open(struct loop *l, const struct etcd_options *o, struct etcd **out, struct err *e)
{
    struct etcd *c = mem_alloc(sizeof *c);
    *out = NULL;
    c->options = *o;
    c->loop = l;
    int rc = walk(o->endpoints, &c->connection, false, e);
    if (rc == 0)
        rc = check_files(o, e);
    if (rc == 0)
        rc = read_password(c, e);
    if (rc == 0)
        rc = open_curl(c, e);
    if (rc == 0) {
        c->jobs = queue_new(ETCD_MAX_UNDER_WAY + 1);
        c->done = queue_new(ETCD_MAX_UNDER_WAY);
        loop_add_fd(l, queue_fd(c->done), on_done, c);
        rc = thread_start("etcd", client_main, c, &c->thread, e);
        if (rc < 0)
            loop_remove_fd(l, queue_fd(c->done));
    }
    if (rc < 0)
        etcd_close(&c);
    *out = c;
    return rc;
}

void etcd_close(struct etcd **etcd)
{
    struct etcd *c = *etcd;
    *etcd = NULL;
    if (!c)
        return;
    stop_thread(c);
    struct connection *k = &c->connection;
    for (int i = 0; i < k->n_endpoints; i++)
        mem_free(k->endpoints[i]);
    curl_slist_free_all(k->headers);
    curl_easy_cleanup(k->curl);
    buf_fini(&k->received);
    mem_free(k->password);
    mem_free(k->token);
    if (c->jobs) {
        queue_free(&c->jobs);
        queue_free(&c->done);
    }
    mem_free(c);
}
