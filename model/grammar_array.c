/* model/grammar_array.c - arrays of a schema as graphs; see grammar_build.h. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_build.h"

enum { MAX_FIRST = 256, MAX_PLACES = 4096, MAX_FREE_ORDER = 8, MAX_WHOLE = 64 };

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

struct build_items build_items_of(struct builder *b, const json_t *schema)
{
    struct build_items all = {field(schema, "prefixItems"), field(schema, "items")};
    if (json_is_array(all.rest) && !all.first) /* as it was written until draft 2019-09 */
        all = (struct build_items){all.rest, field(schema, "additionalItems")};
    if ((all.first && !json_is_array(all.first)) || json_is_array(all.rest) ||
        json_array_size(all.first) > MAX_FIRST) {
        build_refuse(b, "prefixItems must be an array of at most %d schemas, and items one schema",
                     MAX_FIRST);
        return (struct build_items){NULL, NULL};
    }
    return all;
}

const json_t *build_item(const struct build_items *items, size_t i)
{
    return i < json_array_size(items->first) ? json_array_get(items->first, i) : items->rest;
}

static uint32_t item_rule(struct builder *b, const json_t *schema, const char *key, int i)
{
    char number[16];
    size_t mark = build_enter(b, key), inner = b->path.len;
    snprintf(number, sizeof number, "%d", i);
    if (i >= 0)
        build_enter(b, number);
    uint32_t rule = schema ? build_rule_of(b, schema) : build_any(b, grammar_return(b->g));
    build_leave(b, inner);
    build_leave(b, mark);
    return rule;
}

/* An item behind `before` others. */
static uint32_t item(struct builder *b, uint32_t rule, size_t before, uint32_t next)
{
    uint32_t at = build_space(b, grammar_call(b->g, rule, next));
    return before > 0 ? grammar_range(b->g, ',', ',', at) : at;
}

/* Items behind the first, which are `n`. */
static uint32_t more_items(struct builder *b, const json_t *items, int n, int64_t min, int64_t max,
                           uint32_t end)
{
    uint32_t none = n >= min ? end : 0;
    if (json_is_false(items) || max == n)
        return none ? none : build_impossible(b, "items allows none, minItems wants more");
    uint32_t rule = item_rule(b, items, "items", -1);
    uint32_t follower = item(b, rule, 1, grammar_return(b->g));
    int64_t least = min > n ? min - n : 0, most = max < 0 ? -1 : max - n;
    if (n > 0)
        return build_repeat(b, follower, least, most, end);
    uint32_t rest =
        build_repeat(b, follower, least > 1 ? least - 1 : 0, most < 0 ? -1 : most - 1, end);
    return grammar_either(b->g, none, item(b, rule, 0, rest));
}

/* ---- contains ------------------------------------------------------------------------------------- */

/* Items of which from `least` to `most` are of a schema; places are told apart up to n_places, hits up to n_hits. */
struct containing {
    int64_t min, max, least, most;
    size_t n_places, n_hits;
    struct build_items items;
    const json_t *what;
    uint32_t end;
};

/* Items at place i that are of the schema, or are not; where it does not matter both are one rule. */
static uint32_t hit_or_miss(struct builder *b, const struct containing *c, size_t i, bool is_hit)
{
    const json_t *own = build_item(&c->items, i);
    json_t *any = json_object();
    json_array_append_new(b->made, any);
    own = own ? own : any;
    if (is_hit)
        own = build_merge(b, own, c->what);
    else if (c->most >= 0) {
        json_t *other = json_pack("{sO}", "not", c->what);
        json_array_append_new(b->made, other);
        own = build_merge(b, own, other);
    }
    return own ? item_rule(b, own, is_hit ? "contains" : "items", -1) : 0;
}

static void places(struct builder *b, const struct containing *c, uint32_t *nodes)
{
    size_t n_hits = c->n_hits;
    uint32_t hit = 0, miss = 0; /* rules, the same ones behind the first items */
    bool was_more = false;
    for (size_t i = c->n_places; i-- > 0 && !b->failed;) {
        bool is_last = i + 1 == c->n_places, may_more = c->max < 0 || (int64_t)i < c->max;
        bool is_first = is_last || i < json_array_size(c->items.first) || !may_more;
        if (is_first || !was_more) {
            hit = may_more ? hit_or_miss(b, c, i, true) : 0;
            miss = may_more ? hit_or_miss(b, c, i, false) : 0;
        }
        was_more = may_more;
        for (size_t h = 0; h < n_hits; h++) {
            const uint32_t *then = nodes + (is_last ? i : i + 1) * n_hits;
            bool at_most = h + 1 == n_hits;
            uint32_t to = (int64_t)i >= c->min && (int64_t)h >= c->least ? c->end : 0;
            if (miss)
                to = grammar_either(b->g, to, item(b, miss, i, then[h]));
            if (hit && !(at_most && c->most >= 0))
                to = grammar_either(b->g, to, item(b, hit, i, then[at_most ? h : h + 1]));
            grammar_lead(b->g, nodes[i * n_hits + h], to);
        }
    }
}

static uint32_t containing(struct builder *b, const json_t *schema, struct containing c)
{
    c.least = build_count(b, schema, "minContains");
    c.most = build_count(b, schema, "maxContains");
    c.least = c.least < 0 ? 1 : c.least;
    c.what = field(schema, "contains");
    int64_t last = c.max >= 0 ? c.max : c.min > 1 ? c.min : 1;
    if (last < (int64_t)json_array_size(c.items.first) && c.max < 0)
        last = (int64_t)json_array_size(c.items.first);
    int64_t hits = c.most >= 0 ? c.most : c.least;
    if (last >= MAX_PLACES || hits >= MAX_PLACES || (last + 1) * (hits + 1) > MAX_PLACES)
        return build_refuse(b, "contains: items and those that it counts are too many to be told "
                               "apart: smaller limits are supported");
    c.n_places = (size_t)last + 1;
    c.n_hits = (size_t)hits + 1;
    uint32_t *nodes = mem_array(c.n_places * c.n_hits, sizeof *nodes);
    for (size_t i = 0; i < c.n_places * c.n_hits; i++)
        nodes[i] = grammar_ahead(b->g);
    places(b, &c, nodes);
    uint32_t start = nodes[0];
    mem_free(nodes);
    return start;
}

/* ---- uniqueItems ---------------------------------------------------------------------------------- */

static void add_value(json_t *all, const json_t *v)
{
    for (size_t i = 0; i < json_array_size(all); i++)
        if (build_are_equal(json_array_get(all, i), v))
            return;
    json_array_append(all, (json_t *)(uintptr_t)v);
}

static bool add_whole(struct builder *b, const json_t *schema, json_t *all)
{
    const json_t *min = field(schema, "minimum"), *max = field(schema, "maximum");
    if (!json_is_number(min) || !json_is_number(max) ||
        !(json_number_value(max) - json_number_value(min) <= MAX_WHOLE) ||
        !(fabs(json_number_value(min)) < 1e15))
        return false;
    for (double x = ceil(json_number_value(min)); x <= json_number_value(max); x++) {
        json_t *v = json_integer((json_int_t)x);
        if (build_takes(b, schema, v))
            add_value(all, v);
        json_decref(v);
    }
    return true;
}

/* All values of a schema, if they are few. */
static bool add_values(struct builder *b, const json_t *schema, int depth, json_t *all)
{
    const json_t *parts = NULL, *v;
    const char *key;
    size_t i;
    schema = json_is_object(schema) ? build_flatten(b, schema) : schema;
    if (!json_is_object(schema) || depth > 4 || b->failed)
        return false;
    if (field(schema, "enum") || field(schema, "const")) {
        json_t *values = build_values(b, schema);
        json_array_foreach(values, i, v)
        {
            add_value(all, v);
        }
        json_decref(values);
        return true;
    }
    if (build_is_split(schema)) {
        parts = build_alternatives(b, schema, &key);
        json_array_foreach(parts, i, v)
        {
            if (!json_is_false(v) && !add_values(b, v, depth + 1, all))
                return false;
        }
        return !b->failed;
    }
    unsigned types = build_types(b, schema);
    if (types & ~(unsigned)(TYPE_BOOLEAN | TYPE_NULL | TYPE_INTEGER))
        return false;
    if (types & TYPE_BOOLEAN) {
        add_value(all, json_false());
        add_value(all, json_true());
    }
    if (types & TYPE_NULL)
        add_value(all, json_null());
    return !(types & TYPE_INTEGER) || add_whole(b, schema, all);
}

/* Each value a rule of its own. */
static uint32_t *value_rules(struct builder *b, const json_t *values)
{
    size_t n = json_array_size(values);
    uint32_t *rules = mem_array(n + 1, sizeof *rules);
    for (size_t i = 0; i < n; i++)
        rules[i] = build_json(b, json_array_get(values, i), grammar_return(b->g));
    return rules;
}

/* In any order: a node for every set of values that were there. */
static uint32_t in_any_order(struct builder *b, const uint32_t *rules, size_t n, int64_t min,
                             int64_t max, uint32_t end)
{
    uint32_t nodes[1 << MAX_FREE_ORDER];
    for (size_t set = (size_t)1 << n; set-- > 0;) {
        int64_t count = __builtin_popcountll(set);
        nodes[set] = count >= min ? end : 0;
        for (size_t i = 0; i < n && (max < 0 || count < max); i++)
            if (!(set >> i & 1))
                nodes[set] =
                    grammar_either(b->g, nodes[set],
                                   item(b, rules[i], (size_t)count, nodes[set | (size_t)1 << i]));
    }
    return nodes[0];
}

/* As they are listed; rest[c]: where to go on behind c of them, the last for more, too. */
static uint32_t in_their_order(struct builder *b, const uint32_t *rules, size_t n, int64_t min,
                               int64_t max, uint32_t end)
{
    size_t n_counts = (size_t)(max >= 0 ? max : min > 1 ? min : 1) + 1;
    uint32_t *rest = mem_array(n_counts, sizeof *rest);
    for (size_t c = 0; c < n_counts; c++)
        rest[c] = (int64_t)c >= min ? end : 0;
    for (size_t i = n; i-- > 0;)
        for (size_t c = 0; c < n_counts; c++) {
            bool is_last = c + 1 == n_counts;
            uint32_t then = !is_last ? rest[c + 1] : max >= 0 ? 0 : rest[c];
            if (then)
                rest[c] = grammar_either(b->g, item(b, rules[i], c, then), rest[c]);
        }
    uint32_t start = rest[0];
    mem_free(rest);
    return start;
}

static uint32_t unique(struct builder *b, const json_t *schema, const struct build_items *items,
                       int64_t min, int64_t max, uint32_t end)
{
    json_t *values = json_array();
    size_t mark = build_enter(b, "uniqueItems");
    uint32_t at = 0;
    if (items->first || field(schema, "contains") || !add_values(b, items->rest, 0, values) ||
        json_array_size(values) > BUILD_MAX_VALUES) {
        build_refuse(b, "\"uniqueItems\" is supported where items lists its values (enum, const, "
                        "booleans, a few whole numbers): leave it out and look at the answer");
    } else if (min > (int64_t)json_array_size(values)) {
        build_impossible(b, "minItems wants more than there are values");
    } else {
        size_t n = json_array_size(values);
        uint32_t *rules = value_rules(b, values);
        max = max > (int64_t)n ? -1 : max;
        at = n <= MAX_FREE_ORDER ? in_any_order(b, rules, n, min, max, end)
                                 : in_their_order(b, rules, n, min, max, end);
        mem_free(rules);
    }
    build_leave(b, mark);
    json_decref(values);
    return at;
}

/* ---- the whole ---------------------------------------------------------------------------------------- */

uint32_t build_array(struct builder *b, const json_t *schema, uint32_t next)
{
    struct build_items items = build_items_of(b, schema);
    const char *key = field(schema, "prefixItems") ? "prefixItems" : "items";
    int64_t min, max;
    if (b->failed || !build_range(b, schema, "minItems", "maxItems", &min, &max))
        return 0;
    int n = (int)json_array_size(items.first);
    uint32_t end = build_space(b, grammar_range(b->g, ']', ']', next)), at;
    if (json_is_true(field(schema, "uniqueItems")) && (max < 0 || max > 1))
        return grammar_range(b->g, '[', '[', unique(b, schema, &items, min, max, end));
    if (field(schema, "contains")) {
        struct containing c = {.min = min, .max = max, .items = items, .end = end};
        return grammar_range(b->g, '[', '[', containing(b, schema, c));
    }
    at = max >= 0 && max < n ? 0 : more_items(b, items.rest, n, min, max, end);
    for (int i = n - 1; i >= 0; i--) {
        uint32_t rule = item_rule(b, json_array_get(items.first, (size_t)i), key, i);
        uint32_t with = max >= 0 && i >= max ? 0 : item(b, rule, (size_t)i, at);
        at = grammar_either(b->g, i >= min ? end : 0, with);
    }
    return grammar_range(b->g, '[', '[', at);
}
