/* tools/chaos_load.c - see chaos_load.h. */
#include "tools/chaos_load.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/stats.h"
#include "base/thread.h"
#include "tools/http_client.h"

enum { ID_BYTES = 64 };

struct client {
    struct chaos_load *load;
    int index;
    struct thread *thread;
    struct http_client *http;
    int url; /* whom it asks */
    struct chaos_stream *streams;
    int n_streams, room;
    struct stats_counter n_tokens;
    _Atomic bool is_over;
};

struct chaos_load {
    struct chaos_load_options options;
    struct client clients[CHAOS_MAX_CLIENTS];
    _Atomic bool should_end, is_aborted;
};

/* One request while its lines arrive. */
struct reading {
    struct client *client;
    struct chaos_stream *stream;
    char id[ID_BYTES];
    char next_event_id[ID_BYTES], event_id[ID_BYTES]; /* of the event that arrives; of the last */
};

void chaos_prompts_make(struct chaos_prompt *prompts, int n, int max_tokens, uint64_t seed)
{
    for (int i = 0; i < n; i++) {
        struct rng r = rng_stream(seed, (uint64_t)i);
        struct chaos_prompt *p = &prompts[i];
        *p = (struct chaos_prompt){.max_tokens = max_tokens,
                                   .temperature = i % 2 ? 0.8 : 0,
                                   .seed = rng_below(&r, 1u << 30),
                                   .n_ids = 3 + (int)rng_below(&r, CHAOS_PROMPT_TOKENS - 3)};
        /* ids that every vocabulary has */
        for (int k = 0; k < p->n_ids; k++)
            p->ids[k] = 5 + (int32_t)rng_below(&r, 240);
    }
}

/* ---- one stream -------------------------------------------------------------------------- */

static void copy_text(char *out, size_t bytes, const char *text)
{
    snprintf(out, bytes, "%.*s", (int)bytes - 1, text);
}

static void take_error(struct reading *r, const json_t *error)
{
    const char *text = json_string_value(json_object_get(error, "message"));
    copy_text(r->stream->error, sizeof r->stream->error, text ? text : "an error without a text");
}

static void take_chunk(struct reading *r, const json_t *root, int64_t now_ns)
{
    const char *id = json_string_value(json_object_get(root, "id"));
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *ids = json_object_get(choice, "token_ids");
    if (id)
        copy_text(r->id, sizeof r->id, id);
    for (size_t i = 0; i < json_array_size(ids); i++)
        chaos_stream_token(r->stream, (int32_t)json_integer_value(json_array_get(ids, i)), now_ns);
    stats_add(&r->client->n_tokens, (int64_t)json_array_size(ids));
}

static bool on_line(void *ud, struct str line)
{
    struct reading *r = ud;
    int64_t now_ns = clock_now_ns();
    if (str_has_prefix(line, STR("id:"))) {
        size_t skip = line.len > 3 && line.ptr[3] == ' ' ? 4 : 3;
        snprintf(r->next_event_id, sizeof r->next_event_id, "%.*s", (int)(line.len - skip),
                 line.ptr + skip);
    }
    if (!str_has_prefix(line, STR("data: ")))
        return true;
    copy_text(r->event_id, sizeof r->event_id, r->next_event_id);
    if (str_equal(line, STR("data: [DONE]"))) {
        r->stream->is_complete = r->stream->error[0] == 0;
        return true;
    }
    /* a random model says any character, NUL too */
    json_t *root = json_loadb(line.ptr + 6, line.len - 6, JSON_ALLOW_NUL, NULL);
    const json_t *error = json_object_get(root, "error");
    if (error)
        take_error(r, error);
    else if (root)
        take_chunk(r, root, now_ns);
    else
        copy_text(r->stream->error, sizeof r->stream->error, "an event that is no JSON");
    json_decref(root);
    return true;
}

static char *body_of(const struct chaos_prompt *p)
{
    struct buf b = {0};
    buf_printf(&b,
               "{\"max_tokens\":%d,\"temperature\":%g,\"seed\":%llu,\"ignore_eos\":true,"
               "\"stream\":true,\"return_token_ids\":true,\"prompt\":[",
               p->max_tokens, p->temperature, (unsigned long long)p->seed);
    for (int i = 0; i < p->n_ids; i++)
        buf_printf(&b, "%s%d", i ? "," : "", (int)p->ids[i]);
    buf_puts(&b, "]}");
    return b.data;
}

/* One POST, or GET of what is left.  Sets the stream's error if it ended badly; false: asking
 * again is of no use. */
static bool exchange(struct reading *r, const char *body, const char *key, int64_t timeout_ns)
{
    const struct chaos_load *l = r->client->load;
    const char *base = l->options.urls[r->client->url];
    bool resumes = r->id[0] != 0;
    char *url = resumes ? mem_format("%s/v1/streams/%s", base, r->id)
                        : mem_format("%s/v1/completions", base);
    char *line = resumes ? mem_format("Last-Event-ID: %s", r->event_id)
                         : mem_format("Idempotency-Key: %s", key);
    const char *const headers[] = {line, NULL};
    struct http_exchange x = {.url = url,
                              .body = resumes ? NULL : body,
                              .timeout_ns = timeout_ns,
                              .headers = headers,
                              .is_cancelled = &l->is_aborted,
                              .on_line = on_line,
                              .ud = r};
    struct buf answer = {0};
    struct err e = {0};
    int status = 0;
    r->stream->error[0] = 0;
    int rc = http_exchange(r->client->http, &x, &status, &answer, &e);
    if (rc == 0 && status != 200)
        http_error_text(&answer, status, &e);
    if (rc == 0 && status == 503 && l->options.refusal && strstr(e.text, l->options.refusal))
        r->stream->n_refusals++;
    /* what came after the end of a stream that is complete is nobody's loss */
    if (!r->stream->is_complete && !r->stream->error[0] && (rc < 0 || status != 200)) {
        struct str text = str_of(e.text);
        size_t prefix = strlen(url) + 2;
        bool has_url = str_has_prefix(text, str_of(url)) && text.len > prefix;
        copy_text(r->stream->error, sizeof r->stream->error, e.text + (has_url ? prefix : 0));
    }
    buf_fini(&answer);
    mem_free(line);
    mem_free(url);
    return !r->stream->is_complete && (rc < 0 || status == 200 || status >= 500);
}

static struct chaos_stream *new_stream(struct client *c, int prompt)
{
    if (c->n_streams == c->room) {
        c->room = c->room ? 2 * c->room : 16;
        c->streams = mem_resize(c->streams, (size_t)c->room * sizeof *c->streams);
    }
    struct chaos_stream *s = &c->streams[c->n_streams++];
    *s = (struct chaos_stream){.prompt = prompt, .began_ns = clock_now_ns()};
    return s;
}

static void play(struct client *c, int prompt)
{
    const struct chaos_load *l = c->load;
    struct reading r = {.client = c, .stream = new_stream(c, prompt)};
    int64_t deadline_ns = r.stream->began_ns + l->options.timeout_ns;
    char *body = body_of(&l->options.prompts[prompt]);
    char *key = mem_format("chaos-%llx-%d-%d", (unsigned long long)r.stream->began_ns, c->index,
                           c->n_streams);
    for (;;) {
        bool may_go_on = exchange(&r, body, key, deadline_ns - clock_now_ns());
        if (!may_go_on || l->options.patience == CHAOS_TRY_ONCE || l->is_aborted)
            break;
        int64_t again_ns = clock_now_ns() + 50 * CLOCK_MS;
        if (again_ns > deadline_ns)
            break;
        r.stream->n_resumes++;
        c->url = (c->url + 1) % l->options.n_urls;
        clock_sleep_until(again_ns);
    }
    r.stream->ended_ns = clock_now_ns();
    mem_free(body);
    mem_free(key);
}

/* ---- all clients --------------------------------------------------------------------------- */

/* Client i plays prompts i, i + clients, ... and begins again. */
static void client_main(struct thread *t, void *arg)
{
    struct client *c = arg;
    const struct chaos_load *l = c->load;
    const struct chaos_load_options *o = &l->options;
    thread_ready(t, 0, NULL);
    int64_t most = o->n_rounds ? (int64_t)o->n_rounds * o->n_prompts : INT64_MAX;
    for (int64_t i = c->index; i < most && !l->should_end; i += o->n_clients) {
        play(c, (int)(i % o->n_prompts));
        /* a cluster that refuses at once is not asked thousands of times a second */
        if (!c->streams[c->n_streams - 1].is_complete && !l->should_end)
            clock_sleep_until(clock_now_ns() + 50 * CLOCK_MS);
    }
    c->is_over = true;
}

int chaos_load_start(const struct chaos_load_options *o, struct chaos_load **out, struct err *e)
{
    struct chaos_load *l = mem_alloc(sizeof *l);
    l->options = *o;
    for (int i = 0; i < o->n_clients; i++) {
        struct client *c = &l->clients[i];
        c->load = l;
        c->index = i;
        c->http = http_client_new();
    }
    int rc = 0;
    for (int i = 0; i < o->n_clients && rc == 0 && o->key_path; i++)
        rc = http_client_use_key(l->clients[i].http, o->key_path, e);
    for (int i = 0; i < o->n_clients && rc == 0; i++)
        rc = thread_start("client", client_main, &l->clients[i], &l->clients[i].thread, e);
    if (rc < 0) {
        int n;
        mem_free(chaos_load_end(&l, CHAOS_ABORT, &n));
        return rc;
    }
    *out = l;
    return 0;
}

bool chaos_load_is_over(const struct chaos_load *l)
{
    for (int i = 0; i < l->options.n_clients; i++)
        if (!l->clients[i].is_over)
            return false;
    return true;
}

int64_t chaos_load_tokens(const struct chaos_load *l)
{
    int64_t n = 0;
    for (int i = 0; i < l->options.n_clients; i++)
        n += stats_read(&l->clients[i].n_tokens);
    return n;
}

void chaos_load_finish(struct chaos_load *l)
{
    l->should_end = true;
}

struct chaos_stream *chaos_load_end(struct chaos_load **load, enum chaos_load_how how, int *n)
{
    struct chaos_load *l = *load;
    chaos_load_finish(l);
    l->is_aborted = how == CHAOS_ABORT;
    *n = 0;
    for (int i = 0; i < l->options.n_clients; i++) {
        struct client *c = &l->clients[i];
        if (c->thread)
            thread_stop(&c->thread, NULL, NULL);
        http_client_free(&c->http);
        *n += c->n_streams;
    }
    struct chaos_stream *all = mem_array((size_t)*n + 1, sizeof *all);
    for (int i = 0, at = 0; i < l->options.n_clients; i++) {
        struct client *c = &l->clients[i];
        if (c->n_streams > 0)
            memcpy(all + at, c->streams, (size_t)c->n_streams * sizeof *all);
        at += c->n_streams;
        mem_free(c->streams);
    }
    mem_free(l);
    *load = NULL;
    return all;
}
