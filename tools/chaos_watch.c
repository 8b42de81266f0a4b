/* tools/chaos_watch.c - see chaos_watch.h. */
#include "tools/chaos_watch.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

static long long number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* Copies of experts that can be used, and whether anything is still to come. */
struct census {
    long long live, wanted;
    long long epoch;
    int n_ready, n_crew, n_experts, n_idle; /* idle: an expert node that has got nothing yet */
    int n_behind;                           /* attention sides with an older table */
};

static bool is_of(const struct chaos_crew *crew, long long pid)
{
    for (int i = 0; i < crew->n_pids; i++)
        if (crew->pids[i] == pid)
            return true;
    return false;
}

static void count_node(const json_t *node, const struct chaos_crew *crew, struct census *c)
{
    const char *role = json_string_value(json_object_get(node, "role"));
    const char *state = json_string_value(json_object_get(node, "state"));
    if (!role || !state || strcmp(state, "ready") != 0)
        return;
    c->n_ready++;
    c->n_crew += is_of(crew, number(node, "pid"));
    if (strcmp(role, "context") == 0)
        return; /* it has no table */
    if (strcmp(role, "expert") != 0) {
        c->n_behind += number(node, "epoch") < c->epoch;
        return;
    }
    c->n_experts++;
    c->n_idle += number(node, "experts_wanted") == 0;
    c->live += number(node, "experts_live");
    c->wanted += number(node, "experts_wanted");
}

bool chaos_is_whole(struct str text, const struct chaos_crew *crew)
{
    json_t *root = json_loadb(text.ptr, text.len, 0, NULL);
    const json_t *coverage = json_object_get(root, "coverage");
    const json_t *nodes = json_object_get(root, "nodes");
    struct census c = {.epoch = number(root, "epoch")};
    for (size_t i = 0; i < json_array_size(nodes); i++)
        count_node(json_array_get(nodes, i), crew, &c);
    long long experts = number(coverage, "experts");
    int copies = crew->replicas < c.n_experts ? crew->replicas : c.n_experts;
    bool whole = json_is_true(json_object_get(root, "ready")) && experts > 0 && c.n_behind == 0 &&
                 json_is_true(json_object_get(json_object_get(root, "placement"), "settled")) &&
                 number(coverage, "live") == experts && c.n_crew == crew->n_pids &&
                 c.n_ready == c.n_crew + crew->has_embedded && c.n_idle == 0 &&
                 c.live >= experts * copies && c.live == c.wanted;
    json_decref(root);
    return whole;
}

static bool get(struct http_client *http, const char *url, const char *path, struct buf *answer)
{
    char *whole = mem_format("%s%s", url, path);
    int status = 0;
    struct http_exchange x = {.url = whole, .timeout_ns = CLOCK_S};
    bool fine = http_exchange(http, &x, &status, answer, NULL) == 0 && status == 200;
    mem_free(whole);
    return fine;
}

bool chaos_is_in_step(struct str text)
{
    json_t *root = json_loadb(text.ptr, text.len, 0, NULL);
    const json_t *standbys = json_object_get(root, "standbys");
    size_t n = json_array_size(standbys);
    bool all = n > 0;
    for (size_t i = 0; i < n; i++)
        all &= json_is_true(json_object_get(json_array_get(standbys, i), "recorded"));
    json_decref(root);
    return all;
}

bool chaos_watch_is_in_step(struct http_client *http, const char *url)
{
    struct buf answer = {0};
    bool is = get(http, url, "/health", &answer) && chaos_is_in_step(buf_str(&answer));
    buf_fini(&answer);
    return is;
}

bool chaos_watch_is_whole(struct http_client *http, const char *url, const struct chaos_crew *crew)
{
    struct buf answer = {0};
    bool whole = get(http, url, "/cluster", &answer) && chaos_is_whole(buf_str(&answer), crew);
    buf_fini(&answer);
    return whole;
}

/* The number from `at` to the line's end. */
static long long value_of(struct str line, size_t at)
{
    char text[32];
    snprintf(text, sizeof text, "%.*s", (int)(line.len - at), line.ptr + at);
    return strtoll(text, NULL, 10);
}

long long chaos_metric(struct str text, const char *word)
{
    long long sum = -1;
    while (text.len > 0) {
        const char *feed = memchr(text.ptr, '\n', text.len);
        struct str line = {text.ptr, feed ? (size_t)(feed - text.ptr) : text.len};
        struct str name = {line.ptr, 0};
        while (name.len < line.len && line.ptr[name.len] != '{' && line.ptr[name.len] != ' ')
            name.len++;
        size_t space = line.len;
        while (space > 0 && line.ptr[space - 1] != ' ')
            space--;
        if (line.len > 0 && line.ptr[0] != '#' && space > 0 &&
            str_find(name, str_of(word)) != SIZE_MAX && str_find(name, STR("_total")) != SIZE_MAX)
            sum = (sum < 0 ? 0 : sum) + value_of(line, space);
        text.ptr += line.len + (feed != NULL);
        text.len -= line.len + (feed != NULL);
    }
    return sum;
}

void chaos_watch_metrics(struct http_client *http, const char *url, struct buf *out)
{
    char *path = mem_format("%s/metrics", url);
    int status = 0;
    struct http_exchange x = {.url = path, .timeout_ns = 2 * CLOCK_S};
    if (http_exchange(http, &x, &status, out, NULL) < 0 || status != 200)
        buf_reset(out);
    mem_free(path);
}
