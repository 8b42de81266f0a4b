/* coordinator/etcd_keys.c - see etcd_keys.h.
 *
 * The gateway writes bytes in base64 and 64-bit numbers as strings, and leaves out what is 0. */
#include "coordinator/etcd_keys.h"

#include <inttypes.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

enum { BASE64 = sodium_base64_VARIANT_ORIGINAL, MAX_VALUE_BYTES = 1 << 20, MAX_HOST_BYTES = 256 };

const char etcd_path_revoke[] = "/v3/lease/revoke";
const char etcd_path_txn[] = "/v3/kv/txn";
const char etcd_path_range[] = "/v3/kv/range";

/* ---- bytes and numbers ---------------------------------------------------------------- */

static json_t *encode(const void *bytes, size_t n)
{
    size_t room = sodium_base64_encoded_len(n, BASE64);
    char *text = mem_alloc(room);
    sodium_bin2base64(text, room, bytes, n, BASE64);
    json_t *v = json_string(text);
    must(v);
    mem_free(text);
    return v;
}

static json_t *encode_text(const char *s)
{
    return encode(s, strlen(s));
}

/* NUL-terminated; NULL if it is not base64.  mem_free() it. */
static char *decode(const json_t *v, size_t *bytes)
{
    const char *text = json_string_value(v);
    size_t n = text ? strlen(text) : 0;
    if (!text || n > 2 * (size_t)MAX_VALUE_BYTES)
        return NULL;
    char *out = mem_alloc(n + 1);
    const char *end = NULL;
    if (sodium_base642bin((unsigned char *)out, n, text, n, NULL, bytes, &end, BASE64) == 0 &&
        end == text + n) {
        out[*bytes] = '\0';
        return out;
    }
    mem_free(out);
    return NULL;
}

static int64_t number_of(const json_t *object, const char *key)
{
    const json_t *v = json_object_get(object, key);
    if (json_is_integer(v))
        return json_integer_value(v);
    const char *text = json_string_value(v);
    return text ? (int64_t)strtoll(text, NULL, 10) : 0;
}

static json_t *number(int64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, v);
    return json_string(text);
}

static json_t *hex(uint64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%016" PRIx64, v);
    return json_string(text);
}

/* 0: it is none. */
static uint64_t hex_number(const char *text)
{
    return text && strspn(text, "0123456789abcdef") == 16 && strlen(text) == 16
               ? strtoull(text, NULL, 16)
               : 0;
}

static uint64_t hex_of(const json_t *object, const char *key)
{
    return hex_number(json_string_value(json_object_get(object, key)));
}

/* Printable, and short enough; else empty. */
static void text_of(const json_t *object, const char *key, char out[ETCD_TEXT_BYTES])
{
    const char *s = json_string_value(json_object_get(object, key));
    out[0] = '\0';
    for (const char *c = s; c && *c; c++)
        if ((unsigned char)*c < ' ' || *c == 127)
            return;
    if (s && strlen(s) < ETCD_TEXT_BYTES)
        memcpy(out, s, strlen(s) + 1);
}

/* PREFIX/..., in base64. */
static json_t *key_of(const char *format, ...) __attribute__((format(printf, 1, 2)));
static json_t *key_of(const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return encode_text(text);
}

static json_t *made(json_t *v)
{
    must(v);
    return v;
}

static json_t *value_of(json_t *object)
{
    char *text = json_dumps(made(object), JSON_COMPACT);
    must(text);
    json_t *v = encode_text(text);
    free(text);
    json_decref(object);
    return v;
}

/* ---- leadership -------------------------------------------------------------------------- */

const char *etcd_path_of(enum leader_ask ask)
{
    switch (ask) {
    case LEADER_GRANT:
        return "/v3/lease/grant";
    case LEADER_KEEP:
        return "/v3/lease/keepalive";
    case LEADER_LOOK:
    case LEADER_TAKE:
        return etcd_path_txn;
    }
    return NULL;
}

static json_t *all_keys(const char *prefix)
{
    return made(json_pack("[{s{so}},{s{so}},{s{so}}]", "request_range", "key",
                          key_of("%s/leader", prefix), "request_range", "key",
                          key_of("%s/last", prefix), "request_range", "key",
                          key_of("%s/in_step", prefix)));
}

static json_t *self_value(const struct etcd_leader *self)
{
    return value_of(json_pack("{so,so,ss,ss,ss}", "instance", hex(self->instance), "state",
                              hex(self->state), "name", self->name, "url", self->url, "cluster",
                              self->cluster));
}

static json_t *take(const struct leader_request *r, const char *prefix,
                    const struct etcd_leader *self)
{
    json_t *compare = made(json_pack("[{ss,ss,so,ss}]", "target", "CREATE", "result", "EQUAL",
                                     "key", key_of("%s/leader", prefix), "create_revision", "0"));
    if (r->term)
        must_zero(json_array_append_new(
            compare,
            made(json_pack("{ss,ss,so,so}", "target", "MOD", "result", "EQUAL", "key",
                           key_of("%s/last", prefix), "mod_revision", number((int64_t)r->term)))));
    json_t *puts = made(json_pack("[{s{so,so,so}},{s{so,so}}]", "request_put", "key",
                                  key_of("%s/leader", prefix), "value", self_value(self), "lease",
                                  number(r->lease), "request_put", "key", key_of("%s/last", prefix),
                                  "value", self_value(self)));
    return made(
        json_pack("{so,so,so}", "compare", compare, "success", puts, "failure", all_keys(prefix)));
}

json_t *etcd_request_of(const struct leader_request *r, const char *prefix,
                        const struct etcd_leader *self)
{
    switch (r->ask) {
    case LEADER_LOOK:
        return made(json_pack("{so}", "success", all_keys(prefix)));
    case LEADER_GRANT: /* whole seconds; never less than what was meant */
        return made(json_pack("{so}", "TTL", number((r->ttl_ns + 999999999) / 1000000000)));
    case LEADER_KEEP:
        return etcd_revoke(r->lease);
    case LEADER_TAKE:
        return take(r, prefix, self);
    }
    return NULL;
}

json_t *etcd_revoke(int64_t lease)
{
    return made(json_pack("{so}", "ID", number(lease)));
}

/* The one key that a range found; NULL: none. */
static const json_t *found(const json_t *answer, size_t i)
{
    const json_t *response = json_array_get(json_object_get(answer, "responses"), i);
    const json_t *range = json_object_get(response, "response_range");
    return json_array_get(json_object_get(range, "kvs"), 0);
}

static int read_leader(const json_t *kv, struct etcd_leader *out, struct err *e)
{
    size_t bytes = 0;
    char *text = decode(json_object_get(kv, "value"), &bytes);
    json_t *v = text ? json_loadb(text, bytes, 0, NULL) : NULL;
    *out = (struct etcd_leader){.instance = hex_of(v, "instance"), .state = hex_of(v, "state")};
    text_of(v, "name", out->name);
    text_of(v, "url", out->url);
    text_of(v, "cluster", out->cluster);
    mem_free(text);
    json_decref(v);
    return out->instance ? 0 : err_set(e, E_CORRUPT, "the key of the leader holds something else");
}

/* Has its state directory all that any client was told?  Those on the list have, and so has whoever
 * wrote the list, which is who led last if it is newer than that one's term.  A list that cannot be
 * read keeps nobody from leading. */
static bool others_have_more(const json_t *kv, uint64_t self, uint64_t last, uint64_t term)
{
    size_t bytes = 0, i;
    char *text = kv ? decode(json_object_get(kv, "value"), &bytes) : NULL;
    json_t *v = text ? json_loadb(text, bytes, 0, NULL) : NULL, *state;
    json_t *states = json_object_get(v, "states");
    bool any = false, is_one = last == self && (uint64_t)number_of(kv, "mod_revision") > term;
    json_array_foreach(states, i, state)
    {
        uint64_t number = hex_number(json_string_value(state));
        any |= number != 0;
        is_one |= number == self;
    }
    mem_free(text);
    json_decref(v);
    return any && !is_one;
}

static int read_keys(const json_t *answer, uint64_t self, struct leader_keys *k,
                     struct etcd_leader *holder, struct err *e)
{
    const json_t *leader = found(answer, 0), *last = found(answer, 1);
    struct etcd_leader before = {0};
    int rc = 0;
    if (leader)
        rc = read_leader(leader, holder, e);
    if (rc == 0 && last)
        rc = read_leader(last, &before, e);
    k->holder = holder->instance;
    k->lease = number_of(leader, "lease");
    k->last = before.instance;
    k->term = (uint64_t)number_of(last, "mod_revision");
    k->others_have_more = others_have_more(found(answer, 2), self, before.state, k->term);
    return rc;
}

static int read_lease(const json_t *object, bool is_keep, struct leader_answer *out, struct err *e)
{
    int64_t ttl_s = number_of(object, "TTL");
    out->lease = number_of(object, "ID");
    out->ttl_ns = ttl_s > 0 && ttl_s < 86400 ? ttl_s * 1000000000 : 0;
    if (is_keep && ttl_s <= 0 && out->lease != 0)
        out->outcome = LEADER_NO;
    else if (out->lease == 0 || out->ttl_ns == 0)
        return err_set(e, E_CORRUPT, "an answer about a lease that names none");
    return 0;
}

int etcd_answer_of(const json_t *answer, const struct leader_request *r,
                   const struct etcd_leader *self, struct leader_answer *out,
                   struct etcd_leader *holder, uint64_t *cluster, struct err *e)
{
    *out = (struct leader_answer){.number = r->number};
    *holder = (struct etcd_leader){0};
    if (r->ask == LEADER_KEEP)
        return read_lease(json_object_get(answer, "result"), true, out, e);
    if (r->ask == LEADER_GRANT)
        return read_lease(answer, false, out, e);
    const json_t *header = json_object_get(answer, "header");
    int64_t revision = number_of(header, "revision");
    if (revision <= 0)
        return err_set(e, E_CORRUPT, "a transaction without a revision");
    const char *name = json_string_value(json_object_get(header, "cluster_id"));
    if (name)
        *cluster = strtoull(name, NULL, 10);
    bool is_taken = r->ask == LEADER_TAKE && json_is_true(json_object_get(answer, "succeeded"));
    if (!is_taken) {
        out->outcome = r->ask == LEADER_TAKE ? LEADER_NO : LEADER_DONE;
        return read_keys(answer, self->state, &out->keys, holder, e);
    }
    *holder = *self;
    out->keys = (struct leader_keys){.holder = self->instance,
                                     .lease = r->lease,
                                     .last = self->instance,
                                     .term = (uint64_t)revision};
    return 0;
}

/* ---- placement --------------------------------------------------------------------------- */

static json_t *node_operation(const char *prefix, const struct etcd_node *n)
{
    json_t *key = key_of("%s/nodes/%s", prefix, n->name);
    if (!n->holds)
        return made(json_pack("{s{so}}", "request_delete_range", "key", key));
    json_t *v = json_pack("{ss,so,so}", "host", n->host, "capacity", number(n->capacity), "holds",
                          encode(n->holds, n->holds_bytes));
    return made(json_pack("{s{so,so}}", "request_put", "key", key, "value", value_of(v)));
}

static json_t *while_leading(const char *prefix, uint64_t term, json_t *puts)
{
    return made(json_pack("{s[{ss,ss,so,so}],so}", "compare", "target", "MOD", "result", "EQUAL",
                          "key", key_of("%s/leader", prefix), "mod_revision", number((int64_t)term),
                          "success", puts));
}

json_t *etcd_store(const char *prefix, uint64_t term, const struct etcd_placement *p,
                   const struct etcd_node *nodes, int n_nodes)
{
    json_t *v = json_pack("{so,sI,sI,so}", "version", number((int64_t)p->version), "layers",
                          (json_int_t)p->n_layers, "experts", (json_int_t)p->n_experts,
                          "fingerprint", hex(p->fingerprint));
    json_t *puts = made(json_pack("[{s{so,so}}]", "request_put", "key",
                                  key_of("%s/placement", prefix), "value", value_of(v)));
    for (int i = 0; i < n_nodes; i++)
        must_zero(json_array_append_new(puts, node_operation(prefix, &nodes[i])));
    return while_leading(prefix, term, puts);
}

json_t *etcd_store_in_step(const char *prefix, uint64_t term, const uint64_t *states, int n)
{
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        must_zero(json_array_append_new(list, hex(states[i])));
    json_t *put = json_pack("[{s{so,so}}]", "request_put", "key", key_of("%s/in_step", prefix),
                            "value", value_of(json_pack("{so}", "states", list)));
    return while_leading(prefix, term, made(put));
}

bool etcd_was_stored(const json_t *answer)
{
    return json_is_true(json_object_get(answer, "succeeded"));
}

/* From PREFIX/nodes/ to PREFIX/placement and its end: '0' is what follows '/'. */
json_t *etcd_fetch(const char *prefix)
{
    return made(json_pack("{so,so}", "key", key_of("%s/nodes/", prefix), "range_end",
                          key_of("%s/placement0", prefix)));
}

static bool read_node(const char *name, const json_t *v, size_t holds_bytes,
                      void (*each)(void *ud, const struct etcd_node *n), void *ud)
{
    size_t bytes = 0;
    char *holds = decode(json_object_get(v, "holds"), &bytes);
    const char *host = json_string_value(json_object_get(v, "host"));
    struct etcd_node n = {.name = name,
                          .host = host,
                          .capacity = number_of(v, "capacity"),
                          .holds = (const uint8_t *)holds,
                          .holds_bytes = bytes};
    bool is_good = holds && bytes == holds_bytes && host && strlen(host) < MAX_HOST_BYTES &&
                   name[0] && strlen(name) < ETCD_TEXT_BYTES && n.capacity >= 0;
    if (is_good)
        each(ud, &n);
    mem_free(holds);
    return is_good;
}

static void read_placement(const json_t *v, struct etcd_placement *out)
{
    json_int_t layers = json_integer_value(json_object_get(v, "layers"));
    json_int_t experts = json_integer_value(json_object_get(v, "experts"));
    int64_t version = number_of(v, "version");
    if (layers <= 0 || layers > UINT32_MAX || experts <= 0 || experts > UINT32_MAX || version <= 0)
        return;
    *out = (struct etcd_placement){.version = (uint64_t)version,
                                   .fingerprint = hex_of(v, "fingerprint"),
                                   .n_layers = (uint32_t)layers,
                                   .n_experts = (uint32_t)experts};
}

int etcd_read_placement(const json_t *answer, const char *prefix, size_t holds_bytes,
                        struct etcd_placement *out,
                        void (*each)(void *ud, const struct etcd_node *n), void *ud)
{
    const json_t *kvs = json_object_get(answer, "kvs"), *kv;
    char nodes[1024];
    size_t i, n_prefix = (size_t)snprintf(nodes, sizeof nodes, "%s/nodes/", prefix);
    int n_bad = 0;
    *out = (struct etcd_placement){0};
    json_array_foreach((json_t *)(uintptr_t)kvs, i, kv)
    {
        size_t key_bytes = 0, value_bytes = 0;
        char *key = decode(json_object_get(kv, "key"), &key_bytes);
        char *text = decode(json_object_get(kv, "value"), &value_bytes);
        json_t *v = text ? json_loadb(text, value_bytes, 0, NULL) : NULL;
        if (key && v && strncmp(key, nodes, n_prefix) == 0)
            n_bad += !read_node(key + n_prefix, v, holds_bytes, each, ud);
        else if (key && v && key_bytes > 10 && strcmp(key + key_bytes - 10, "/placement") == 0)
            read_placement(v, out);
        else
            n_bad++;
        json_decref(v);
        mem_free(text);
        mem_free(key);
    }
    return n_bad;
}
