/* model/format.c - names of formats and combine modes, and sets of formats. */
#include "model/format.h"

#include <stdio.h>
#include <string.h>

#include "base/must.h"

static const char *const format_names[FORMAT_COUNT] = {"native", "f32", "bf16", "fp8", "q8", "q4"};
static const char *const kv_names[KV_FORMAT_COUNT] = {"f32", "bf16", "int8"};
static const char *const combine_names[COMBINE_COUNT] = {"fixed", "expert", "node"};

static int find(const char *const *names, int n, const char *text)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return -1;
}

const char *format_name(enum weight_format f)
{
    must((unsigned)f < FORMAT_COUNT);
    return format_names[f];
}

bool format_parse(const char *text, enum weight_format *out)
{
    int i = find(format_names, FORMAT_COUNT, text);
    if (i >= 0)
        *out = (enum weight_format)i;
    return i >= 0;
}

const char *kv_format_name(enum kv_format f)
{
    must((unsigned)f < KV_FORMAT_COUNT);
    return kv_names[f];
}

bool kv_format_parse(const char *text, enum kv_format *out)
{
    int i = find(kv_names, KV_FORMAT_COUNT, text);
    if (i >= 0)
        *out = (enum kv_format)i;
    return i >= 0;
}

const char *combine_name(enum combine_mode m)
{
    must((unsigned)m < COMBINE_COUNT);
    return combine_names[m];
}

bool combine_parse(const char *text, enum combine_mode *out)
{
    int i = find(combine_names, COMBINE_COUNT, text);
    if (i >= 0)
        *out = (enum combine_mode)i;
    return i >= 0;
}

int format_group(enum weight_format f)
{
    return f == FORMAT_Q8 ? Q8_GROUP : f == FORMAT_Q4 ? Q4_GROUP : 0;
}

/* ---- sets ---- */

enum { ITEM_BYTES = 32 };

/* One item; *kv_is_given as soon as one named the cache. */
static int parse_item(const char *item, struct format_set *s, bool *kv_is_given, struct err *e)
{
    const char *equals = strchr(item, '=');
    const char *value = equals ? equals + 1 : item;
    size_t part_bytes = equals ? (size_t)(equals - item) : 0;
    if (equals && part_bytes == 2 && memcmp(item, "kv", 2) == 0) {
        if (!kv_format_parse(value, &s->kv))
            return err_set(e, E_INVALID, "'%s': the cache's format is one of %s", item,
                           KV_FORMAT_CHOICES);
        *kv_is_given = true;
        return 0;
    }
    enum weight_format f;
    if (!format_parse(value, &f))
        return err_set(e, E_INVALID, "'%s': a weight format is one of %s", item, FORMAT_CHOICES);
    if (!equals) {
        s->experts = s->attention = s->head = f;
        if (!*kv_is_given)
            s->kv = f == FORMAT_F32 ? KV_F32 : KV_BF16;
        return 0;
    }
    const struct {
        const char *name;
        enum weight_format *to;
    } parts[] = {{"experts", &s->experts}, {"attention", &s->attention}, {"head", &s->head}};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (strlen(parts[i].name) == part_bytes && memcmp(parts[i].name, item, part_bytes) == 0) {
            *parts[i].to = f;
            return 0;
        }
    return err_set(e, E_INVALID, "'%s': expected %s", item, FORMAT_SET_HELP);
}

int format_set_parse(const char *text, struct format_set *out, struct err *e)
{
    struct format_set s = {.kv = KV_BF16};
    bool kv_is_given = false;
    for (const char *at = text;; at++) {
        size_t bytes = strcspn(at, ",");
        if (bytes >= ITEM_BYTES)
            return err_set(e, E_INVALID, "'%.*s': expected %s", ITEM_BYTES, at, FORMAT_SET_HELP);
        char item[ITEM_BYTES];
        memcpy(item, at, bytes);
        item[bytes] = '\0';
        int rc = parse_item(item, &s, &kv_is_given, e);
        if (rc < 0)
            return rc;
        at += bytes;
        if (!*at)
            break;
    }
    *out = s;
    return 0;
}

const char *format_set_text(const struct format_set *s, char out[FORMAT_SET_BYTES])
{
    if (s->experts == s->attention && s->experts == s->head)
        snprintf(out, FORMAT_SET_BYTES, "%s,kv=%s", format_name(s->experts), kv_format_name(s->kv));
    else
        snprintf(out, FORMAT_SET_BYTES, "experts=%s,attention=%s,head=%s,kv=%s",
                 format_name(s->experts), format_name(s->attention), format_name(s->head),
                 kv_format_name(s->kv));
    return out;
}

bool format_set_equal(const struct format_set *a, const struct format_set *b)
{
    return a->experts == b->experts && a->attention == b->attention && a->head == b->head &&
           a->kv == b->kv;
}
