/* model/grammar_pattern.c - what a schema says of the characters of its strings: pattern, format, and both of several; see
 * grammar_regex.h. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "model/grammar_regex.h"

enum { MAX_PATTERNS = 16, MAX_LITERALS_BYTES = 4000 };

static json_t *field(const json_t *schema, const char *key)
{
    return json_object_get(schema, key);
}

/* Formats that are held to; what is generated is a part of what they allow.  Others are annotations. */
static const char *format_pattern(const char *name)
{
#define DATE \
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-" \
    "9]|" \
    "30)|02-(?:0[1-9]|1[0-9]|2[0-8])))"
#define TIME \
    "(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3])" \
    ":[0-" \
    "5][0-9]))"
#define LABEL "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
#define BYTE "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    static const struct {
        const char *name, *pattern;
    } list[] = {
        {"date", "^" DATE "$"},
        {"time", "^" TIME "$"},
        {"date-time", "^" DATE "T" TIME "$"},
        {"duration", "^P(?:[0-9]{1,4}W|[0-9]{1,4}D(?:T[0-9]{1,4}H(?:[0-9]{1,4}M(?:[0-9]{1,4}S)?)?)?"
                     "|T[0-9]{1,4}[HMS])$"},
        {"email",
         "^[A-Za-z0-9_+-]{1,30}(?:\\.[A-Za-z0-9_+-]{1,30}){0,2}@" LABEL "(?:\\." LABEL "){1,3}$"},
        {"hostname", "^" LABEL "(?:\\." LABEL "){0,4}$"},
        {"ipv4", "^" BYTE "(?:\\." BYTE "){3}$"},
        {"ipv6", "^[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}$"},
        {"uuid", "^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
        {"uri", "^[a-z][a-z0-9+.-]{0,20}://" LABEL "(?:\\." LABEL "){0,4}(?::[0-9]{1,4})?(?:/"
                "[A-Za-z0-9._~-]*)*(?:\\?[A-Za-z0-9._~=&-]*)?(?:#[A-Za-z0-9._~-]*)?$"},
    };
    for (size_t i = 0; name && i < sizeof list / sizeof list[0]; i++)
        if (strcmp(list[i].name, name) == 0)
            return list[i].pattern;
    return NULL;
}

bool build_has_pattern(const json_t *schema)
{
    return field(schema, "pattern") || field(schema, BUILD_PATTERNS) ||
           format_pattern(json_string_value(field(schema, "format")));
}

static void refuse(struct builder *b, const char *why)
{
    size_t mark = build_enter(b, "pattern");
    build_refuse(b, "%.250s", why);
    build_leave(b, mark);
}

const struct regex *build_regex(struct builder *b, struct str text)
{
    struct err e = {0};
    for (int i = 0; i < b->n_regexes && i < BUILD_MAX_REGEXES; i++)
        if (str_equal(str_of(b->regexes[i].text), text))
            return b->regexes[i].regex;
    struct regex *r;
    if (!build_step(b, 200))
        return NULL;
    if (regex_open(text, &r, &e) < 0) {
        refuse(b, e.text);
        return NULL;
    }
    struct build_regex *kept = &b->regexes[b->n_regexes++ % BUILD_MAX_REGEXES];
    mem_free(kept->text);
    regex_free(&kept->regex);
    *kept = (struct build_regex){mem_format("%.*s", (int)text.len, text.ptr), r};
    return r;
}

void build_forget_regexes(struct builder *b)
{
    for (int i = 0; i < b->n_regexes && i < BUILD_MAX_REGEXES; i++) {
        mem_free(b->regexes[i].text);
        regex_free(&b->regexes[i].regex);
    }
    b->n_regexes = 0;
}

bool build_regex_matches(struct builder *b, const struct regex *r, struct str text)
{
    return build_step(b, 1 + (int64_t)text.len * regex_size(r) / 256) && regex_matches(r, text);
}

struct patterns {
    const struct regex *parts[MAX_PATTERNS];
    bool forbidden[MAX_PATTERNS];
    int n;
};

static void add_pattern(struct builder *b, struct patterns *p, struct str text, bool forbidden)
{
    if (p->n == MAX_PATTERNS)
        refuse(b, "too many patterns must hold together");
    if (b->failed)
        return;
    p->parts[p->n] = build_regex(b, text);
    p->forbidden[p->n] = forbidden;
    p->n += p->parts[p->n] != NULL;
}

/* Texts as they are. */
static void add_literals(struct builder *b, struct patterns *p, const json_t *list)
{
    struct buf text = {0};
    const json_t *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        const unsigned char *c = (const unsigned char *)json_string_value(one);
        buf_puts(&text, i > 0 ? "|^" : "^");
        for (size_t k = json_string_length(one); c && k > 0; c++, k--) {
            if (*c < 0x80)
                buf_printf(&text, "\\x%02x", *c);
            else
                buf_putc(&text, (char)*c);
        }
        buf_putc(&text, '$');
    }
    if (text.len > MAX_LITERALS_BYTES)
        refuse(b, "too many strings are forbidden (by not, or the \"if\" of an \"else\")");
    else
        add_pattern(b, p, buf_str(&text), true);
    buf_fini(&text);
}

static void add_forbidden(struct builder *b, struct patterns *p, const json_t *list)
{
    const json_t *one;
    size_t i;
    json_array_foreach(list, i, one)
    {
        const json_t *not = field(one, "not");
        if (json_is_array(not ))
            add_literals(b, p, not );
        else if (json_is_string(one) || json_is_string(not ))
            add_pattern(b, p,
                        (struct str){json_string_value(not ? not : one),
                                     json_string_length(not ? not : one)},
                        not != NULL);
        else
            refuse(b, "pattern must be a string");
    }
}

/* The format counts where no pattern is said. */
static void read_patterns(struct builder *b, const json_t *schema, bool with_format,
                          struct patterns *p)
{
    const json_t *pattern = field(schema, "pattern");
    *p = (struct patterns){0};
    if (pattern && !json_is_string(pattern))
        refuse(b, "pattern must be a string");
    else if (pattern)
        add_pattern(b, p, (struct str){json_string_value(pattern), json_string_length(pattern)},
                    false);
    const char *format = format_pattern(json_string_value(field(schema, "format")));
    if (!pattern && format && with_format)
        add_pattern(b, p, str_of(format), false);
    add_forbidden(b, p, field(schema, BUILD_PATTERNS));
}

uint32_t build_pattern(struct builder *b, const json_t *schema, enum regex_form form, int64_t min,
                       int64_t max, uint32_t next)
{
    struct patterns p;
    struct err e = {0};
    uint32_t at = 0;
    read_patterns(b, schema, true, &p);
    if (p.n == 0)
        refuse(b, "there is none");
    if (!b->failed && p.n == 1 && !p.forbidden[0]) {
        at = regex_build(p.parts[0], b, form, min, max, next);
    } else if (!b->failed) {
        struct regex *all;
        if (regex_combine(p.parts, p.forbidden, p.n, &all, &e) < 0)
            refuse(b, e.text);
        else
            at = regex_build(all, b, form, min, max, next);
        regex_free(&all);
    }
    return at;
}

bool build_matches(struct builder *b, const json_t *schema, struct str text)
{
    struct patterns p;
    bool does = true;
    read_patterns(b, schema, false, &p);
    for (int i = 0; i < p.n; i++)
        does = does && build_regex_matches(b, p.parts[i], text) != p.forbidden[i];
    return does && !b->failed;
}
