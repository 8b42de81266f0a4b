/* coordinator/access.c - see access.h. */
#include "coordinator/access.h"

#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/safe_file.h"
#include "base/signals.h"

#define LOOK_EVERY_NS (CLOCK_S / 2)
#define MINUTE_NS (60 * CLOCK_S)

struct access {
    char *path; /* NULL: no keys */
    struct list keys;
    int n_keys;
    int64_t look_ns;
    uint64_t stamp, seen_stamp; /* of the file as read, and as it was at the last look */
    int n_hangups;
    struct access_counters counters;
};

enum access_level access_level_of(const char *path)
{
    static const char *const open[] = {"/health", "/ready", "/"};
    static const char *const admin[] = {"/metrics", "/cluster", "/admin", "/debug"};
    for (size_t i = 0; i < sizeof open / sizeof open[0]; i++)
        if (strcmp(path, open[i]) == 0)
            return ACCESS_OPEN;
    if (strncmp(path, "/web/", 5) == 0) /* they hold nothing, and ask for the key themselves */
        return ACCESS_OPEN;
    for (size_t i = 0; i < sizeof admin / sizeof admin[0]; i++) {
        size_t n = strlen(admin[i]);
        if (strncmp(path, admin[i], n) == 0 && (path[n] == '\0' || path[n] == '/'))
            return ACCESS_ADMIN;
    }
    return ACCESS_CLIENT;
}

/* ---- the file ------------------------------------------------------------------------------ */

static void forget(struct access_key *k)
{
    list_remove(&k->link);
    mem_free(k);
}

static struct access_key *find_line(struct access *a, const struct api_key_line *line)
{
    for (struct list *l = a->keys.next; l != &a->keys; l = l->next) {
        struct access_key *k = LIST_ITEM(l, struct access_key, link);
        if (strcmp(k->line.name, line->name) == 0 && api_key_hash_equal(k->line.hash, line->hash))
            return k;
    }
    return NULL;
}

/* A key that was there keeps what it has used. */
static void take_line(struct access *a, const struct api_key_line *line, int64_t now_ns)
{
    struct access_key *k = find_line(a, line);
    if (!k) {
        k = mem_alloc(sizeof *k);
        k->filled_ns = now_ns;
        k->request_room = (double)line->limits.requests_per_minute;
        k->token_room = (double)line->limits.tokens_per_minute;
    } else {
        list_remove(&k->link);
    }
    k->line = *line;
    k->is_gone = false;
    list_push_back(&a->keys, &k->link);
}

static int read_file(struct access *a, int64_t now_ns, struct err *e)
{
    struct api_key_line *lines = NULL;
    int n = 0;
    uint64_t stamp = safe_file_stamp(a->path);
    int rc = api_key_read(a->path, &lines, &n, e);
    if (rc < 0)
        return rc;
    for (struct list *l = a->keys.next; l != &a->keys; l = l->next)
        LIST_ITEM(l, struct access_key, link)->is_gone = true;
    for (int i = 0; i < n; i++)
        take_line(a, &lines[i], now_ns);
    for (struct list *l = a->keys.next, *next; l != &a->keys; l = next) {
        next = l->next;
        struct access_key *k = LIST_ITEM(l, struct access_key, link);
        if (k->is_gone && k->n_running == 0)
            forget(k);
    }
    a->n_keys = n;
    a->stamp = a->seen_stamp = stamp; /* taken before: a later change is seen the next time */
    mem_free(lines);
    return 0;
}

int access_open(const char *path, int64_t now_ns, struct access **out, struct err *e)
{
    struct access *a = mem_alloc(sizeof *a);
    list_init(&a->keys);
    int rc = 0;
    if (path && path[0]) {
        a->path = mem_string(path);
        a->n_hangups = signals_hangups();
        rc = read_file(a, now_ns, e);
    }
    if (rc < 0) {
        err_prefix(e, "security.api_keys_file");
        access_close(&a);
    } else if (a->path) {
        log_info("access.keys", "file=%s keys=%d", log_quote(a->path).text, a->n_keys);
    }
    *out = a;
    return rc;
}

void access_close(struct access **access)
{
    struct access *a = *access;
    if (!a)
        return;
    *access = NULL;
    while (!list_is_empty(&a->keys))
        forget(LIST_ITEM(a->keys.next, struct access_key, link));
    mem_free(a->path);
    mem_free(a);
}

/* A file that changed is left alone until it was the same for one look: it may be half written. */
void access_tick(struct access *a, int64_t now_ns)
{
    int n_hangups = signals_hangups();
    bool is_told = n_hangups != a->n_hangups;
    if (!a->path || (!is_told && now_ns < a->look_ns))
        return;
    a->n_hangups = n_hangups;
    a->look_ns = now_ns + LOOK_EVERY_NS;
    uint64_t stamp = safe_file_stamp(a->path);
    bool is_settled = stamp == a->seen_stamp;
    a->seen_stamp = stamp;
    if (!is_told && (stamp == a->stamp || !is_settled))
        return;
    struct err e = {0};
    if (read_file(a, now_ns, &e) == 0) {
        log_info("access.keys", "file=%s keys=%d", log_quote(a->path).text, a->n_keys);
        return;
    }
    log_warn("access.keys_refused", "file=%s why=%s", log_quote(a->path).text,
             log_quote(e.text).text);
    a->stamp = stamp; /* said once */
}

bool access_has_keys(const struct access *a)
{
    return a->path != NULL;
}

/* ---- who ----------------------------------------------------------------------------------- */

struct access_key *access_find(struct access *a, const char *authorization, const char *api_key)
{
    static const char bearer[] = "Bearer ";
    const char *text = api_key;
    if (authorization && strncasecmp(authorization, bearer, sizeof bearer - 1) == 0)
        text = authorization + sizeof bearer - 1;
    if (!text || !text[0])
        return NULL;
    uint8_t hash[API_KEY_HASH_BYTES];
    api_key_hash(str_of(text), hash);
    /* All of them, whichever it is: the time says nothing about where a match was. */
    struct access_key *found = NULL;
    for (struct list *l = a->keys.next; l != &a->keys; l = l->next) {
        struct access_key *k = LIST_ITEM(l, struct access_key, link);
        if (api_key_hash_equal(k->line.hash, hash) && !k->is_gone)
            found = k;
    }
    return found;
}

int access_status(struct access *a, const struct access_key *k, enum access_level level)
{
    if (!a->path || level == ACCESS_OPEN)
        return 0;
    if (!k) {
        a->counters.unknown++;
        return 401;
    }
    if (level == ACCESS_ADMIN && !k->line.limits.is_admin) {
        a->counters.denied++;
        return 403;
    }
    return 0;
}

const char *access_why(int status)
{
    return status == 403 ? "this API key is not an admin's"
                         : "an API key is needed: Authorization: Bearer KEY, or x-api-key: KEY";
}

/* ---- how much ------------------------------------------------------------------------------ */

static double refilled(double room, int64_t per_minute, int64_t passed_ns)
{
    double more = room + (double)per_minute * (double)passed_ns / (double)MINUTE_NS;
    return more < (double)per_minute ? more : (double)per_minute;
}

static void refill(struct access_key *k, int64_t now_ns)
{
    int64_t passed_ns = now_ns - k->filled_ns;
    if (passed_ns <= 0)
        return;
    k->filled_ns = now_ns;
    k->request_room = refilled(k->request_room, k->line.limits.requests_per_minute, passed_ns);
    k->token_room = refilled(k->token_room, k->line.limits.tokens_per_minute, passed_ns);
}

/* Whole seconds, at least 1, until `room` has grown to `want`. */
static int64_t seconds_until(double room, double want, int64_t per_minute)
{
    double seconds = (want - room) * 60 / (double)per_minute;
    int64_t whole = (int64_t)seconds;
    return (double)whole < seconds || whole < 1 ? whole + 1 : whole;
}

static int check_limits(const struct access_key *k, int64_t *retry_s, struct err *e)
{
    const struct api_key_limits *l = &k->line.limits;
    if (l->streams > 0 && k->n_running >= l->streams) {
        *retry_s = 1;
        return err_set(e, E_BUSY, "this API key has %lld requests running, which is its limit",
                       (long long)k->n_running);
    }
    if (l->requests_per_minute > 0 && k->request_room < 1) {
        *retry_s = seconds_until(k->request_room, 1, l->requests_per_minute);
        return err_set(e, E_BUSY, "this API key may make %lld requests per minute",
                       (long long)l->requests_per_minute);
    }
    if (l->tokens_per_minute > 0 && k->token_room < 1) {
        *retry_s = seconds_until(k->token_room, 1, l->tokens_per_minute);
        return err_set(e, E_BUSY, "this API key may use %lld tokens per minute",
                       (long long)l->tokens_per_minute);
    }
    return 0;
}

int access_begin(struct access_key *k, int64_t now_ns, int64_t *retry_s, struct err *e)
{
    *retry_s = 0;
    if (!k)
        return 0;
    refill(k, now_ns);
    int rc = check_limits(k, retry_s, e);
    if (rc < 0) {
        k->n_limited++;
        return rc;
    }
    k->n_requests++;
    k->n_running++;
    k->request_room -= k->line.limits.requests_per_minute > 0;
    return 0;
}

void access_end(struct access_key **key, int64_t n_tokens, int64_t now_ns)
{
    struct access_key *k = *key;
    *key = NULL;
    if (!k)
        return;
    must(k->n_running > 0);
    refill(k, now_ns);
    k->n_running--;
    k->n_tokens += n_tokens;
    if (k->line.limits.tokens_per_minute > 0)
        k->token_room -= (double)n_tokens;
    if (k->is_gone && k->n_running == 0)
        forget(k);
}

uint32_t access_share(const struct access_key *k)
{
    return k ? (uint32_t)k->line.limits.share : 1;
}

int access_priority(const struct access_key *k, int raise)
{
    int own = k ? k->line.limits.priority : API_KEY_PRIORITIES / 2;
    int most = k ? k->line.limits.max_priority : API_KEY_PRIORITIES - 1;
    int asked = own + raise;
    if (asked > own && asked > most)
        asked = most > own ? most : own;
    return asked < 0 ? 0 : asked;
}

void access_count(const struct access *a, struct access_counters *out)
{
    *out = a->counters;
    out->n_keys = a->n_keys;
    for (struct list *l = a->keys.next; l != &a->keys; l = l->next)
        out->limited += LIST_ITEM(l, struct access_key, link)->n_limited;
}

const struct list *access_keys(const struct access *a)
{
    return &a->keys;
}
