/* tools/loadtest_run.c - see loadtest_run.h. */
#include "tools/loadtest_run.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file_limit.h"
#include "base/list.h"
#include "base/mem.h"
#include "base/must.h"

enum { MAX_SECONDS = 86400, LINE_BYTES = 1 << 20 };
#define LATE_NS (20 * CLOCK_MS)

struct flight {
    struct list link;
    struct run *run;
    CURL *easy;
    struct loadtest_request plan;
    struct buf body, line;
    int64_t begun_ns, first_ns, last_ns;
    float worst_gap_ms;
    int n_tokens;
    bool is_done, leaves;
    char error[256];
};

struct run {
    const struct loadtest_options *o;
    struct loadtest_result *out;
    CURLM *multi;
    struct curl_slist *headers;
    char *url;
    struct list flights, idle; /* idle ones keep their handle and its connection */
    int n_open;
    int n_answering; /* that have had their first token, of all ever begun */
    bool is_all_begun, is_one_over;
    uint64_t n_begun;
    int64_t begun_ns, next_ns, told_ns, n_over;
};

void loadtest_result_fini(struct loadtest_result *r)
{
    mem_free(r->samples);
    mem_free(r->gaps_ms);
    mem_free(r->tokens_by_second);
    *r = (struct loadtest_result){0};
}

/* ---- what comes --------------------------------------------------------------------------- */

static void count_tokens(struct run *r, int64_t now_ns, int n)
{
    struct loadtest_result *out = r->out;
    int64_t second = (now_ns - r->begun_ns) / CLOCK_S;
    if (second >= MAX_SECONDS)
        return;
    while (out->n_seconds <= second) {
        if (out->n_seconds == out->seconds_room) {
            out->seconds_room = out->seconds_room ? 2 * out->seconds_room : 64;
            out->tokens_by_second =
                mem_resize(out->tokens_by_second, (size_t)out->seconds_room * sizeof(int64_t));
        }
        out->tokens_by_second[out->n_seconds++] = 0;
    }
    out->tokens_by_second[second] += n;
}

static void keep_gap(struct loadtest_result *out, float ms)
{
    if (out->n_gaps == out->gaps_room) {
        out->gaps_room = out->gaps_room ? 2 * out->gaps_room : 4096;
        out->gaps_ms = mem_resize(out->gaps_ms, (size_t)out->gaps_room * sizeof(float));
    }
    out->gaps_ms[out->n_gaps++] = ms;
}

static void take_tokens(struct flight *f, int n)
{
    int64_t now_ns = clock_now_ns();
    if (f->first_ns) {
        float ms = (float)(now_ns - f->last_ns) / CLOCK_MS;
        keep_gap(f->run->out, ms);
        if (ms > f->worst_gap_ms)
            f->worst_gap_ms = ms;
    } else {
        f->first_ns = now_ns;
        f->run->n_answering++;
    }
    f->last_ns = now_ns;
    f->n_tokens += n;
    count_tokens(f->run, now_ns, n);
}

/* How many ids an event has, without parsing the rest of it: the client must not be what is
 * measured. */
static int ids_of(struct str line)
{
    size_t at = str_find(line, STR("\"token_ids\":["));
    if (at >= line.len)
        return 0;
    int n = 0;
    for (at += sizeof "\"token_ids\":[" - 1; at < line.len && line.ptr[at] != ']'; at++)
        n += line.ptr[at] >= '0' && line.ptr[at] <= '9' &&
             (line.ptr[at - 1] < '0' || line.ptr[at - 1] > '9');
    return n;
}

/* false: the client leaves. */
static bool take_line(struct flight *f, struct str line)
{
    if (!str_has_prefix(line, STR("data:")))
        return true;
    if (str_has_prefix(line, STR("data: [DONE]"))) {
        f->is_done = true;
        return true;
    }
    if (str_has_prefix(line, STR("data: {\"error\""))) {
        snprintf(f->error, sizeof f->error, "%.*s", (int)line.len - 6, line.ptr + 6);
        return true;
    }
    int n = ids_of(line);
    if (n > 0)
        take_tokens(f, n);
    f->leaves = f->plan.leaves_after > 0 && f->n_tokens >= f->plan.leaves_after;
    return !f->leaves;
}

static size_t on_data(char *data, size_t size, size_t count, void *ud)
{
    struct flight *f = ud;
    size_t bytes = size * count, start = 0;
    buf_append(&f->line, data, bytes);
    for (size_t i = f->line.len - bytes; i < f->line.len; i++) {
        if (f->line.data[i] != '\n')
            continue;
        if (!take_line(f, (struct str){f->line.data + start, i - start}))
            return 0;
        start = i + 1;
    }
    buf_drop(&f->line, start);
    return f->line.len < LINE_BYTES ? bytes : 0;
}

/* ---- begin and end ------------------------------------------------------------------------ */

static struct flight *new_flight(struct run *r)
{
    struct list *l = list_pop_front(&r->idle);
    if (l)
        return LIST_ITEM(l, struct flight, link);
    struct flight *f = mem_alloc(sizeof *f);
    list_init(&f->link);
    f->run = r;
    f->easy = curl_easy_init();
    must(f->easy);
    curl_easy_setopt(f->easy, CURLOPT_URL, r->url);
    curl_easy_setopt(f->easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(f->easy, CURLOPT_PROXY, ""); /* clusters are reached directly */
    curl_easy_setopt(f->easy, CURLOPT_HTTPHEADER, r->headers);
    curl_easy_setopt(f->easy, CURLOPT_TIMEOUT_MS, (long)(r->o->timeout_ns / CLOCK_MS));
    curl_easy_setopt(f->easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(f->easy, CURLOPT_WRITEDATA, f);
    curl_easy_setopt(f->easy, CURLOPT_PRIVATE, f);
    return f;
}

static void begin_one(struct run *r)
{
    struct flight *f = new_flight(r);
    uint64_t index = r->n_begun++;
    loadtest_plan(&r->o->load, index, &f->plan);
    loadtest_body(&r->o->load, index, &f->body);
    buf_reset(&f->line);
    f->begun_ns = clock_now_ns();
    f->first_ns = f->last_ns = 0;
    f->worst_gap_ms = 0;
    f->n_tokens = 0;
    f->is_done = f->leaves = false;
    f->error[0] = 0;
    curl_easy_setopt(f->easy, CURLOPT_POSTFIELDS, f->body.data);
    list_push_back(&r->flights, &f->link);
    r->n_open++;
    if (r->n_open > r->out->most_open)
        r->out->most_open = r->n_open;
    must(curl_multi_add_handle(r->multi, f->easy) == CURLM_OK);
}

static enum loadtest_outcome judge(struct flight *f, CURLcode rc, int status)
{
    if (f->leaves)
        return LOADTEST_LEFT;
    if (status == 429)
        return LOADTEST_BUSY;
    if (rc == CURLE_OK && status == 200 && f->is_done && !f->error[0] && f->n_tokens > 0)
        return LOADTEST_OK;
    if (f->error[0])
        return LOADTEST_FAILED;
    if (rc != CURLE_OK)
        snprintf(f->error, sizeof f->error, "%s", curl_easy_strerror(rc));
    else
        snprintf(f->error, sizeof f->error, "HTTP %d: %.*s", status,
                 (int)(f->line.len < 200 ? f->line.len : 200), f->line.data ? f->line.data : "");
    return LOADTEST_FAILED;
}

static void end_one(struct run *r, struct flight *f, CURLcode rc)
{
    struct loadtest_result *out = r->out;
    int64_t now_ns = clock_now_ns();
    long status = 0;
    curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
    struct loadtest_sample s = {.outcome = judge(f, rc, (int)status),
                                .status = (int)status,
                                .n_prompt = f->plan.n_prompt,
                                .n_tokens = f->n_tokens,
                                .begin_s = (float)(f->begun_ns - r->begun_ns) / CLOCK_S,
                                .worst_gap_ms = f->worst_gap_ms,
                                .whole_ms = (float)(now_ns - f->begun_ns) / CLOCK_MS};
    if (f->first_ns)
        s.first_ms = (float)(f->first_ns - f->begun_ns) / CLOCK_MS;
    if (s.outcome == LOADTEST_FAILED && !out->error[0])
        snprintf(out->error, sizeof out->error, "%s", f->error);
    if (out->n_samples == out->samples_room) {
        out->samples_room = out->samples_room ? 2 * out->samples_room : 256;
        out->samples = mem_resize(out->samples, (size_t)out->samples_room * sizeof *out->samples);
    }
    out->samples[out->n_samples++] = s;
    curl_multi_remove_handle(r->multi, f->easy);
    list_remove(&f->link);
    list_push_back(&r->idle, &f->link);
    r->n_open--;
    r->n_over++;
}

static void free_flights(struct run *r, struct list *from)
{
    for (struct list *l; (l = list_pop_front(from));) {
        struct flight *f = LIST_ITEM(l, struct flight, link);
        if (from == &r->flights)
            curl_multi_remove_handle(r->multi, f->easy);
        curl_easy_cleanup(f->easy);
        buf_fini(&f->body);
        buf_fini(&f->line);
        mem_free(f);
    }
}

/* ---- the loop ------------------------------------------------------------------------------- */

static bool may_begin(const struct run *r, int64_t now_ns)
{
    const struct loadtest_options *o = r->o;
    if (o->n_requests > 0 && r->n_begun >= (uint64_t)o->n_requests)
        return false;
    return o->run_ns == 0 || now_ns < r->begun_ns + o->run_ns;
}

/* Begins what is due; returns when the next one is, or CLOCK_NEVER. */
static int64_t begin_due(struct run *r, int64_t now_ns)
{
    const struct loadtest_options *o = r->o;
    while (may_begin(r, now_ns)) {
        if (o->load.rate == 0) {
            if (r->n_open >= o->n_clients)
                return CLOCK_NEVER;
        } else {
            if (now_ns < r->next_ns)
                return r->next_ns;
            if (r->n_open >= o->max_open)
                return CLOCK_NEVER;
            r->out->n_late += now_ns - r->next_ns > LATE_NS;
            struct loadtest_request next;
            loadtest_plan(&o->load, r->n_begun + 1, &next);
            r->next_ns += next.gap_ns;
        }
        begin_one(r);
    }
    return CLOCK_NEVER;
}

static void take_ended(struct run *r)
{
    int left;
    for (CURLMsg *m; (m = curl_multi_info_read(r->multi, &left));) {
        if (m->msg != CURLMSG_DONE)
            continue;
        char *private = NULL;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &private);
        end_one(r, (struct flight *)(void *)private, m->data.result);
    }
}

/* Who has said so is told at the turn's end, so that a callback may take its time. */
static void tell_moments(struct run *r)
{
    const struct loadtest_options *o = r->o;
    if (!r->is_all_begun && r->n_answering == o->n_clients) {
        r->is_all_begun = true;
        if (o->all_begun)
            o->all_begun(o->ud);
    } else if (r->is_all_begun && !r->is_one_over && r->n_over > 0) {
        r->is_one_over = true;
        if (o->one_over)
            o->one_over(o->ud);
    }
}

static int turn_until_over(struct run *r, struct err *e)
{
    const struct loadtest_options *o = r->o;
    for (;;) {
        int running;
        int64_t now_ns = clock_now_ns();
        int64_t next_ns = begin_due(r, now_ns);
        if (curl_multi_perform(r->multi, &running) != CURLM_OK)
            return err_set(e, E_IO, "libcurl's multi interface failed");
        take_ended(r);
        tell_moments(r);
        if (r->n_open == 0 && !may_begin(r, clock_now_ns()))
            return 0;
        if (o->progress && now_ns - r->told_ns >= CLOCK_S) {
            r->told_ns = now_ns;
            if (!o->progress(o->ud, now_ns - r->begun_ns, r->n_over, r->n_open))
                return 0;
        }
        int64_t wait_ns = next_ns == CLOCK_NEVER ? CLOCK_S : next_ns - clock_now_ns();
        int wait_ms = wait_ns <= 0 ? 0 : wait_ns > CLOCK_S ? 1000 : (int)(wait_ns / CLOCK_MS) + 1;
        if (o->load.rate == 0 && r->n_open < o->n_clients && may_begin(r, now_ns))
            continue;
        curl_multi_poll(r->multi, NULL, 0, wait_ms, NULL);
    }
}

int loadtest_run(const struct loadtest_options *o, struct loadtest_result *out, struct err *e)
{
    must(o->n_requests > 0 || o->run_ns > 0);
    *out = (struct loadtest_result){0};
    file_limit_raise();
    struct run r = {.o = o, .out = out, .multi = curl_multi_init(), .begun_ns = clock_now_ns()};
    must(r.multi);
    list_init(&r.flights);
    list_init(&r.idle);
    r.next_ns = r.told_ns = r.begun_ns;
    r.url = mem_format("%s/v1/completions", o->url);
    r.headers = curl_slist_append(NULL, "Content-Type: application/json");
    r.headers = curl_slist_append(r.headers, "Expect:");
    if (o->key_header)
        r.headers = curl_slist_append(r.headers, o->key_header);
    curl_multi_setopt(r.multi, CURLMOPT_MAXCONNECTS,
                      (long)(o->load.rate > 0 ? o->max_open : o->n_clients));
    int rc = turn_until_over(&r, e);
    out->elapsed_ns = clock_now_ns() - r.begun_ns;
    free_flights(&r, &r.flights);
    free_flights(&r, &r.idle);
    curl_multi_cleanup(r.multi);
    curl_slist_free_all(r.headers);
    mem_free(r.url);
    return rc;
}
