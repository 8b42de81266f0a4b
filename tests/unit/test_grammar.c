/* tests/unit/test_grammar.c - schemas to grammars: what they let through byte by byte, what they refuse to be, and that
 * a walk along their masks always ends in a value of the schema. */
#include "model/grammar.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "engine/sample.h"
#include "model/grammar_tokens.h"
#include "model/output.h"
#include "model/tokenizer_write.h"
#include "tests/lib/test.h"

enum { VOCAB = 900, STEPS = 4000 };
static int stop_id = 899;

static struct grammar *compile(const char *schema, struct err *e)
{
    struct buf text = {0};
    struct grammar *g;
    buf_printf(&text, "{\"stops\": [%d], \"value\": %s}", stop_id, schema);
    grammar_compile(buf_str(&text), &g, e);
    buf_fini(&text);
    return g;
}

static bool takes(struct grammar *g, const char *text)
{
    uint32_t state = grammar_start(g);
    for (const char *p = text; *p; p++)
        state = grammar_byte(g, state, (unsigned char)*p);
    return grammar_accepts(g, state);
}

#define PERSON \
    "{\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\"}, \"age\": " \
    "{\"type\": " \
    "\"integer\", \"minimum\": 0, \"maximum\": 120}, \"tags\": {\"type\": \"array\", \"items\": " \
    "{\"enum\": [\"a\", \"b\"]}, \"maxItems\": 2}}, \"required\": [\"name\", \"tags\"], " \
    "\"additionalProperties\": false}"
#define TREE \
    "{\"$ref\": \"#/$defs/node\", \"$defs\": {\"node\": {\"type\": \"object\", \"properties\": " \
    "{\"v\": {\"type\": \"integer\"}, \"kids\": {\"type\": \"array\", \"items\": {\"$ref\": " \
    "\"#/$defs/node\"}}}, \"required\": [\"v\", \"kids\"]}}}"

TEST(grammar_takes_what_the_schema_says)
{
    static const struct {
        const char *schema, *good[8], *bad[8];
    } list[] = {
        {"{\"type\": \"boolean\"}", {"true", "false"}, {"True", "tru", "truee", "", "1"}},
        {"{\"type\": \"null\"}", {"null"}, {"nul", "0"}},
        {"{\"type\": \"integer\"}",
         {"0", "-1", "120", "999999999999999999"},
         {"01", "-", "1.5", "1e3", "-0", "1000000000000000000"}},
        {"{\"type\": \"number\"}",
         {"0", "-0.5", "1.25e10", "3E-2", "12"},
         {".5", "1.", "01", "1e", "+1", "NaN"}},
        {"{\"type\": \"integer\", \"minimum\": -12, \"maximum\": 305}",
         {"-12", "-1", "0", "9", "99", "305", "299"},
         {"-13", "306", "400", "1000", "-20", "310"}},
        {"{\"type\": \"integer\", \"exclusiveMinimum\": 7, \"exclusiveMaximum\": 10}",
         {"8", "9"},
         {"7", "10", "80"}},
        {"{\"type\": \"string\"}",
         {"\"\"", "\"a b\"", "\"\\n\\\"\\u00e9\"", "\"\xc3\xa9\xf0\x9f\x9a\x80\""},
         {"\"", "\"\n\"", "\"\\x\"", "\"\xff\"", "\"\xc3\"", "\"\\ud800\"", "a"}},
        {"{\"type\": \"string\", \"minLength\": 1, \"maxLength\": 2}",
         {"\"a\"", "\"\xc3\xa9\\n\""},
         {"\"\"", "\"abc\""}},
        {"{\"enum\": [\"a\\\"b\", 3, null, {\"x\": [1, 2]}]}",
         {"\"a\\\"b\"", "3", "null", "{\"x\": [1, 2]}"},
         {"\"a\"", "33", "{}"}},
        {"{\"const\": \"x\"}", {"\"x\""}, {"\"y\"", "\"\""}},
        {"{\"type\": [\"string\", \"null\"]}", {"\"q\"", "null"}, {"1"}},
        {"{\"anyOf\": [{\"type\": \"integer\"}, {\"type\": \"array\", \"items\": {\"type\": "
         "\"integer\"}, \"minItems\": 1}]}",
         {"5", "[1]", "[1, 2,3]", "[ 1 ]", "[\n  1,\n  2\n]"},
         {"[]", "[1,]", "[,1]", "[1 2]", "[  1]"}},
        {"{\"type\": \"array\", \"items\": {\"type\": \"boolean\"}, \"minItems\": 2, "
         "\"maxItems\": 3}",
         {"[true,true]", "[true, false, true]"},
         {"[true]", "[true,true,true,true]", "[]"}},
        {PERSON,
         {"{\"name\": \"x\", \"age\": 120, \"tags\": []}", "{\"name\":\"\",\"tags\":[\"a\"]}",
          "{ \"name\": \"x\", \"tags\": [\"b\",\"a\"] }"},
         {"{}", "{\"name\": \"x\"}", "{\"name\": \"x\", \"age\": 121, \"tags\": []}",
          "{\"age\": 1, \"name\": \"x\", \"tags\": []}", "{\"name\":\"\",\"tags\":[\"c\"]}",
          "{\"name\":\"\",\"tags\":[],\"z\":1}", "{\"name\":\"\",\"tags\":[],}"}},
        {"{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"null\"}, \"b\": {\"type\": "
         "\"null\"}}}",
         {"{}", "{\"a\":null}", "{\"b\":null}", "{\"a\":null,\"b\":null}"},
         {"{,}", "{,\"b\":null}", "{\"b\":null,\"a\":null}"}},
        {"{\"type\": \"object\", \"additionalProperties\": {\"type\": \"integer\"}}",
         {"{}", "{\"k\":1}", "{\"k\": 1, \"l\": 2}"},
         {"{\"k\":\"1\"}", "{k:1}"}},
        {"{\"type\": \"object\"}",
         {"{}", "{\"k\":[1,{\"l\":null}]}"},
         {"[]", "{\"k\"}", "{\"k\":}"}},
        {"true", {"1", "[[]]", "\"\"", "{\"a\": {}}"}, {"", "[", "{1:2}"}},
        {TREE,
         {"{\"v\":1,\"kids\":[]}", "{\"v\":1,\"kids\":[{\"v\":2,\"kids\":[]}]}"},
         {"{\"v\":1,\"kids\":[{\"v\":2}]}", "{\"v\":1}"}},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct err e = {0};
        struct grammar *g = compile(list[i].schema, &e);
        test_note("%s %s", list[i].schema, e.text);
        CHECK(g != NULL);
        for (int k = 0; k < 8 && list[i].good[k]; k++)
            if (!takes(g, list[i].good[k]))
                test_fail(__FILE__, __LINE__, "refused: %s", list[i].good[k]);
        for (int k = 0; k < 8 && list[i].bad[k]; k++)
            if (takes(g, list[i].bad[k]))
                test_fail(__FILE__, __LINE__, "taken: %s", list[i].bad[k]);
        grammar_free(&g);
    }
}

TEST(grammar_refuses_what_it_cannot_hold_and_says_where)
{
    static const struct {
        const char *schema, *part;
    } list[] = {
        {"3", "schema #: a schema must be an object"},
        {"{\"type\": \"text\"}", "schema #: type \"text\""},
        {"{\"properties\": {\"a\": {\"items\": {\"not\": {\"uniqueItems\": true}}}}}",
         "schema #/properties/a/items/not/uniqueItems: "},
        {"{\"anyOf\": [{\"not\": {\"type\": [\"string\", \"number\", \"boolean\", \"null\", "
         "\"object\", "
         "\"array\"]}}, {\"not\": {}}]}",
         "cannot be satisfied"},
        {"{\"$ref\": \"#/$defs/x\"}", "leads nowhere"},
        {"{\"$ref\": \"http://x/y\"}", "leads nowhere"},
        {"{\"$ref\": \"#\"}", "cannot be satisfied"},
        {"{\"type\": \"object\", \"properties\": {\"a\": {\"$ref\": \"#\"}}, \"required\": "
         "[\"a\"]}",
         "cannot be satisfied"},
        {"{\"type\": \"object\", \"properties\": {}, \"required\": [\"a\"], "
         "\"additionalProperties\": false}",
         "\"a\" is required and not allowed"},
        {"{\"type\": \"integer\", \"minimum\": 5, \"maximum\": 4}", "cannot be satisfied"},
        {"{\"type\": \"string\", \"minLength\": 5, \"maxLength\": 4}", "minLength 5 is more than"},
        {"{\"type\": \"string\", \"minLength\": -1}", "minLength must be"},
        {"{\"type\": \"string\", \"maxLength\": 1000000}", "repetitions"},
        {"{\"type\": \"array\", \"minItems\": 2, \"maxItems\": 1}", "minItems 2 is more than"},
        {"{\"type\": \"string\", \"enum\": [1, 2]}", "no value of enum"},
        {"{\"type\": \"array\", \"items\": false, \"minItems\": 1}", "cannot be satisfied"},
        {"false", "cannot be satisfied"},
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct err e = {0};
        struct grammar *g = compile(list[i].schema, &e);
        test_note("%s", list[i].schema);
        CHECK(!g);
        CHECK_HAS(e.text, list[i].part);
    }
    struct buf deep = {0};
    for (int i = 0; i < 200; i++)
        buf_puts(&deep, "{\"items\":");
    buf_puts(&deep, "{}");
    for (int i = 0; i < 200; i++)
        buf_puts(&deep, "}");
    struct err e = {0};
    CHECK(!compile(deep.data, &e));
    CHECK_HAS(e.text, "nested");
    buf_fini(&deep);
}

TEST(grammar_of_a_thousand_values)
{
    struct buf schema = {0};
    struct err e = {0};
    buf_puts(&schema, "{\"enum\": [\"v0\"");
    for (int i = 1; i < 1000; i++)
        buf_printf(&schema, ",\"v%d\"", i);
    size_t end = schema.len;
    buf_puts(&schema, "]}");
    struct grammar *g = compile(schema.data, &e);
    CHECK(g && takes(g, "\"v0\"") && takes(g, "\"v999\"") && takes(g, "\"v500\""));
    CHECK(!takes(g, "\"v1000\""));
    grammar_free(&g);
    schema.len = end;
    buf_puts(&schema, ",\"v1000\"]}");
    CHECK(!compile(schema.data, &e));
    CHECK_HAS(e.text, "1000 values");
    buf_fini(&schema);
}

/* ---- masks ------------------------------------------------------------------------------------- */

static struct tokenizer *words;
static struct token_list *list;
static struct grammar_cache *cache;

static int32_t namespace_id = TOKENIZER_NO_ID; /* M3's */

static void open_words_of(enum model_family family)
{
    struct err e = {0};
    if (tokenizer_write_family("tokenizer.json", family, VOCAB, &e) < 0 ||
        tokenizer_open(".", &words, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    list = token_list_new(words, VOCAB);
    cache = grammar_cache_new(list, 64 << 20);
    stop_id = tokenizer_find(words, STR("[e~["));
    namespace_id = tokenizer_find(words, STR("]<]minimax[>["));
}

static void open_words(void)
{
    open_words_of(MODEL_MINIMAX_M2);
}

static void close_words(void)
{
    grammar_cache_free(&cache);
    token_list_free(&list);
    tokenizer_free(&words);
}

static bool has(const uint64_t *bits, int32_t id)
{
    return bits[id >> 6] >> (id & 63) & 1;
}

/* The byte that goes on with a closing tag which the output ends in; 0: none. */
static char tag_byte(const struct tokens *ids)
{
    static const char tag[] = "</parameter>";
    for (size_t n = sizeof tag - 2; n > 0; n--) {
        size_t same = 0;
        while (n <= ids->len && same < n && ids->ids[ids->len - n + same] == tag[same])
            same++;
        if (same == n)
            return tag[n];
    }
    return 0;
}

/* One that is allowed; what closes things comes often, so that walks end. */
static int32_t choose(struct rng *r, const uint64_t *bits, const struct tokens *ids)
{
    char next = tag_byte(ids);
    if (next && has(bits, next) && rng_below(r, 20) > 0)
        return next;
    if (namespace_id >= 0 && has(bits, namespace_id) && rng_below(r, 4) == 0)
        return namespace_id;
    static const char closers[] = "<\"]}>/,:";
    int32_t some[VOCAB];
    uint32_t n = 0;
    for (size_t i = 0; i < sizeof closers - 1; i++)
        if (has(bits, closers[i]) && rng_below(r, 4) == 0)
            return closers[i];
    if (has(bits, stop_id) && rng_below(r, 2) == 0)
        return stop_id;
    for (int32_t id = 0; id < VOCAB; id++)
        if (has(bits, id))
            some[n++] = id;
    CHECK(n > 0);
    return some[rng_below(r, n)];
}

/* The mask by asking for every token alone. */
static void check_mask(const char *text, const int32_t *output, int n, const uint64_t *mask)
{
    uint64_t bits[(VOCAB + 63) / 64]; /* asking again may forget the mask */
    memcpy(bits, mask, sizeof bits);
    struct err e = {0};
    struct constraint *fresh;
    int32_t more[STEPS + 1];
    CHECK_INT(constraint_new(cache, str_of(text), &fresh, &e), 0);
    if (n > 0)
        memcpy(more, output, (size_t)n * sizeof *more);
    for (int32_t id = 0; id < VOCAB; id++) {
        if (id == stop_id)
            continue;
        more[n] = id;
        if ((constraint_allow(fresh, more, n + 1) != NULL) != has(bits, id))
            test_fail(__FILE__, __LINE__, "token %d after %d tokens of %s", id, n, text);
    }
    constraint_free(&fresh);
}

/* Walks at random; the output's text.  false: not over after STEPS tokens. */
static bool walk(struct rng *r, const char *text, struct tokens *ids)
{
    struct err e = {0};
    struct constraint *c;
    if (constraint_new(cache, str_of(text), &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s: %s", e.text, text);
    bool over = false;
    uint32_t looked_at = rng_below(r, 40);
    for (int i = 0; i < STEPS && !over; i++) {
        uint64_t bits[(VOCAB + 63) / 64];
        const uint64_t *mask = constraint_allow(c, ids->ids, (int)ids->len);
        CHECK(mask != NULL);
        memcpy(bits, mask, sizeof bits);
        if ((uint32_t)i == looked_at)
            check_mask(text, ids->ids, (int)ids->len, bits);
        int32_t id = choose(r, bits, ids);
        over = id == stop_id;
        if (!over)
            tokens_push(ids, id);
    }
    constraint_free(&c);
    return over;
}

TEST(grammar_walks_end_in_json)
{
    static const char *const schemas[] = {PERSON, TREE, "{\"type\": \"object\"}", "true",
                                          "{\"type\": \"array\", \"items\": " PERSON
                                          ", \"minItems\": 2, \"maxItems\": 4}"};
    struct rng r = test_rng();
    int n_over = 0;
    open_words();
    for (int i = 0; i < 100; i++) {
        struct buf grammar = {0}, out = {0};
        struct tokens ids = {0};
        buf_printf(&grammar, "{\"stops\": [%d], \"value\": %s}", stop_id, schemas[i % 5]);
        if (walk(&r, grammar.data, &ids)) {
            json_error_t why;
            tokenizer_decode(words, ids.ids, ids.len, TOKENIZER_KEEP_SPECIAL, &out);
            json_t *v = json_loadb(out.data, out.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
            if (!v)
                test_fail(__FILE__, __LINE__, "%s: %s", why.text, out.data);
            CHECK(i % 5 != 0 || (json_is_string(json_object_get(v, "name")) &&
                                 json_is_array(json_object_get(v, "tags"))));
            CHECK(i % 5 != 1 || json_is_integer(json_object_get(v, "v")));
            json_decref(v);
            n_over++;
        }
        tokens_fini(&ids);
        buf_fini(&grammar);
        buf_fini(&out);
    }
    CHECK(n_over > 50);
    close_words();
}

/* Nesting goes on as long as it may and then has to end. */
TEST(grammar_bounds_nesting)
{
    struct err e = {0};
    struct grammar *g = compile("true", &e);
    uint32_t state = grammar_start(g);
    int depth = 0;
    for (uint32_t next; (next = grammar_byte(g, state, '[')) != GRAMMAR_DEAD; depth++)
        state = next;
    CHECK(depth > 20 && depth <= GRAMMAR_MAX_DEPTH);
    for (int i = 0; i < depth; i++)
        state = grammar_byte(g, state, ']');
    CHECK(grammar_accepts(g, state));
    grammar_free(&g);
}

/* Where nesting must end soon, what was found out further up does not hold. */
TEST(constraint_knows_how_deep_it_is)
{
    struct err e = {0};
    struct constraint *c;
    struct buf text = {0};
    int32_t output[GRAMMAR_MAX_DEPTH];
    open_words();
    buf_printf(&text, "{\"stops\": [%d], \"value\": {\"type\": \"array\"}}", stop_id);
    CHECK_INT(constraint_new(cache, buf_str(&text), &c, &e), 0);
    int n = 0;
    for (const uint64_t *bits; (bits = constraint_allow(c, output, n)) && has(bits, '[');) {
        check_mask(text.data, output, n, bits);
        output[n++] = '[';
        CHECK(n < GRAMMAR_MAX_DEPTH);
    }
    CHECK(n > 20);
    check_mask(text.data, output, n, constraint_allow(c, output, n));
    output[n] = ']';
    check_mask(text.data, output, n + 1, constraint_allow(c, output, n + 1));
    constraint_free(&c);
    buf_fini(&text);
    close_words();
}

#define EXES "\"$defs\": {\"x\": {\"type\": \"string\", \"pattern\": \"^[a-m]*x$\"}}"

/* Where characters are counted, and where one does not do as well as another. */
TEST(masks_of_counted_strings_are_what_each_token_does_alone)
{
    static const char *const schemas[] = {
        "{\"type\": \"string\", \"maxLength\": 4}",
        "{\"type\": \"string\", \"minLength\": 2, \"maxLength\": 40}",
        "{\"type\": \"string\", \"minLength\": 3}",
        "{\"type\": \"string\", \"pattern\": \"^.{2,6}$\"}",
        "{\"type\": \"string\", \"pattern\": \"^[a-z ]{1,30}$\"}",
        "{\"type\": \"string\", \"pattern\": \"^[A-Za-z0-9 .,-]{3,60}$\"}",
        "{\"type\": \"string\", \"pattern\": \"^[^a-z]{2,9}q?$\"}",
        "{\"type\": \"string\", \"not\": {\"enum\": [\"a\", \"to\"]}, \"maxLength\": 6}",
        "{\"anyOf\": [{\"maxLength\": 3, \"type\": \"string\"}, {\"$ref\": \"#/$defs/x\"}], " EXES
        "}"};
    struct rng r = test_rng();
    open_words();
    for (size_t i = 0; i < sizeof schemas / sizeof schemas[0]; i++) {
        struct err e = {0};
        struct constraint *c;
        struct buf text = {0};
        int32_t output[8];
        buf_printf(&text, "{\"stops\": [%d], \"value\": %s}", stop_id, schemas[i]);
        CHECK_INT(constraint_new(cache, buf_str(&text), &c, &e), 0);
        output[0] = '"';
        for (int n = 1; n < 8; n++) {
            const uint64_t *bits = constraint_allow(c, output, n);
            int32_t id = (int32_t)rng_below(&r, VOCAB), tried = 0;
            if (n % 3 == 1)
                check_mask(text.data, output, n, bits);
            bits = constraint_allow(c, output, n);
            while ((!has(bits, id) || id == '"' || id == '\\') && tried++ < VOCAB)
                id = (id + 1) % VOCAB;
            if (tried > VOCAB)
                break; /* only the end is left */
            output[n] = id;
        }
        constraint_free(&c);
        buf_fini(&text);
    }
    close_words();
}

/* One text is compiled once while somebody uses it or there is room; what was used longest ago goes first. */
TEST(grammars_are_shared_and_bounded)
{
    struct err e = {0};
    struct constraint *a, *b;
    open_words();
    struct grammar_cache *small = grammar_cache_new(list, 1 << 20);
    char text[100], first[100];
    snprintf(first, sizeof first, "{\"stops\": [%d], \"value\": {\"type\": \"object\"}}", stop_id);
    CHECK_INT(constraint_new(small, str_of(first), &a, &e), 0);
    CHECK_INT(constraint_new(small, str_of(first), &b, &e), 0);
    const int32_t output[] = {'{', '"'};
    const uint64_t *bits = constraint_allow(a, output, 2);
    CHECK(bits == constraint_allow(b, output, 2));
    struct grammar_counts n = grammar_cache_counts(small);
    CHECK(n.compiled == 1 && n.shared == 1 && n.masks_asked == 2 && n.grammars == 1);
    constraint_free(&b);
    for (int i = 0; i < 100; i++) {
        snprintf(text, sizeof text,
                 "{\"stops\": [], \"value\": {\"type\": \"array\", \"maxItems\": %d}}", i);
        CHECK_INT(constraint_new(small, str_of(text), &b, &e), 0);
        constraint_free(&b);
        n = grammar_cache_counts(small);
        CHECK(n.bytes < 3 << 20);
    }
    CHECK(n.grammars < 50);
    /* The one in use is still there; a text that does not compile is not kept. */
    CHECK_INT(constraint_new(small, str_of(first), &b, &e), 0);
    CHECK_INT(grammar_cache_counts(small).shared, 2);
    constraint_free(&a);
    CHECK(constraint_allow(b, output, 2) != NULL);
    constraint_free(&b);
    CHECK_INT(constraint_new(small, STR("{\"value\": 3}"), &b, &e), E_INVALID);
    CHECK(!b && grammar_cache_counts(small).refused == 1);
    grammar_cache_free(&small);
    close_words();
}

/* Going back, and other outputs than before, and states that were forgotten: the same masks. */
TEST(constraint_is_a_function_of_the_output)
{
    struct rng r = test_rng();
    struct err e = {0};
    struct constraint *c, *fresh;
    static const char text[] = "{\"stops\": [], \"value\": {\"type\": \"array\", \"items\": "
                               "{\"type\": \"string\", \"maxLength\": 3000}}}";
    static int32_t output[12001];
    open_words();
    CHECK_INT(constraint_new(cache, str_of(text), &c, &e), 0);
    output[0] = '[';
    for (int i = 1; i <= 12000; i++)
        output[i] = i % 2500 == 0             ? '"'
                    : i % 2500 == 1 && i > 1  ? ','
                    : i % 2500 == 2 || i == 1 ? '"'
                                              : 'x';
    output[2] = 'x';
    for (int i = 0; i < 60; i++) {
        int n = i % 3 == 0 ? (int)rng_below(&r, 12000) : (int)rng_below(&r, 500);
        CHECK_INT(constraint_new(cache, str_of(text), &fresh, &e), 0);
        const uint64_t *a = constraint_allow(c, output, n), *b = constraint_allow(fresh, output, n);
        CHECK((a == NULL) == (b == NULL));
        if (a)
            CHECK_BYTES(a, b, (VOCAB + 63) / 64 * sizeof *a);
        output[rng_below(&r, 400) + 20] = 'a' + (int32_t)rng_below(&r, 20);
        constraint_free(&fresh);
    }
    constraint_free(&c);
    close_words();
}

/* ---- whole outputs ------------------------------------------------------------------------------- */

#define FUNCTION \
    "{\"name\": \"f\", \"parameters\": {\"type\": \"object\", \"properties\": {\"city\": " \
    "{\"type\": " \
    "\"string\"}, \"days\": {\"type\": \"integer\", \"minimum\": 1, \"maximum\": 14}, \"unit\": " \
    "{\"type\": \"string\", \"enum\": [\"C\", \"F\"]}, \"note\": {\"anyOf\": [{\"type\": " \
    "\"string\", \"pattern\": \"^[a-z]{1,6}$\"}, {\"type\": \"null\"}]}, \"deep\": " PERSON \
    "}, \"required\": [\"city\", \"days\", \"deep\"], \"dependentRequired\": {\"unit\": " \
    "[\"note\"]}}}"

static int32_t marker(const char *text)
{
    return tokenizer_find(words, str_of(text));
}

static void check_arguments(const json_t *v)
{
    const json_t *deep = json_object_get(v, "deep"), *tag;
    json_int_t days = json_integer_value(json_object_get(v, "days"));
    const char *unit = json_string_value(json_object_get(v, "unit"));
    const json_t *note = json_object_get(v, "note");
    size_t i, len = json_string_length(note);
    CHECK(!unit || note);
    CHECK(!note || json_is_null(note) ||
          (len >= 1 && len <= 6 &&
           strspn(json_string_value(note), "abcdefghijklmnopqrstuvwxyz") == len));
    CHECK(json_is_string(json_object_get(v, "city")) && days >= 1 && days <= 14);
    CHECK(!unit || strcmp(unit, "C") == 0 || strcmp(unit, "F") == 0);
    CHECK(json_is_string(json_object_get(deep, "name")));
    CHECK(json_is_array(json_object_get(deep, "tags")));
    json_array_foreach(json_object_get(deep, "tags"), i, tag)
    {
        CHECK(strchr("ab", json_string_value(tag)[0]) && i < 2);
    }
    if (json_object_get(deep, "age"))
        CHECK(json_is_integer(json_object_get(deep, "age")));
}

struct call_marks {
    enum model_family family;
    const char *end_think, *begin, *end, *namespace;
};

/* Reasoning, then a call whose arguments are of the schema, as the parser reads them. */
static void force_calls(const struct call_marks *m)
{
    struct rng r = test_rng();
    int n_over = 0;
    open_words_of(m->family);
    json_t *tools = json_loads("[{\"type\": \"function\", \"function\": " FUNCTION "}]", 0, NULL);
    json_t *schema =
        json_object_get(json_object_get(json_array_get(tools, 0), "function"), "parameters");
    char *schema_text = json_dumps(schema, 0);
    for (int i = 0; i < 40; i++) {
        struct buf grammar = {0}, arguments = {0};
        struct tokens ids = {0};
        struct output o = {0};
        struct output_events events = {0};
        buf_printf(
            &grammar,
            "{\"stops\": [%d], \"after\": %d, \"calls\": [%d, %d], \"namespace\": %d, \"forced\": "
            "true, \"single\": %s, \"tools\": [{\"name\": \"f\", \"schema\": %s}]}",
            stop_id, marker(m->end_think), marker(m->begin), marker(m->end), marker(m->namespace),
            i % 2 ? "true" : "false", schema_text);
        /* The reasoning ends soon. */
        tokens_push(&ids, 'h');
        tokens_push(&ids, marker(m->end_think));
        output_init(&o, words, OUTPUT_IN_REASONING, tools);
        if (walk(&r, grammar.data, &ids)) {
            for (size_t k = 0; k < ids.len; k++)
                output_feed(&o, ids.ids[k], &events);
            output_finish(&o, OUTPUT_STOPPED, &events);
            CHECK(o.report.n_calls >= 1 && o.report.n_cut == 0 && o.report.dropped_bytes == 0);
            CHECK(i % 2 == 0 || o.report.n_calls == 1);
            for (size_t k = 0; k < events.n; k++) {
                if (events.list[k].call == 0 && events.list[k].kind == OUTPUT_ARGUMENTS)
                    buf_append_str(&arguments, output_events_text(&events, k));
                CHECK(events.list[k].kind != OUTPUT_CONTENT);
            }
            json_t *v = json_loadb(arguments.data, arguments.len, JSON_ALLOW_NUL, NULL);
            CHECK(v != NULL);
            check_arguments(v);
            json_decref(v);
            n_over++;
        }
        output_events_fini(&events);
        output_fini(&o);
        tokens_fini(&ids);
        buf_fini(&grammar);
        buf_fini(&arguments);
    }
    CHECK(n_over > 12);
    free(schema_text);
    json_decref(tools);
    close_words();
}

TEST(grammar_forces_tool_calls_that_parse)
{
    force_calls(&(struct call_marks){MODEL_MINIMAX_M2, "</think>", "<minimax:tool_call>",
                                     "</minimax:tool_call>", "no marker"});
}

TEST(grammar_forces_tool_calls_of_m3_that_parse)
{
    force_calls(&(struct call_marks){MODEL_MINIMAX_M3, "</mm:think>", "<tool_call>", "</tool_call>",
                                     "]<]minimax[>["});
}

TEST(grammar_holds_reasoning_apart)
{
    struct err e = {0};
    struct constraint *c;
    struct buf text = {0};
    open_words();
    int32_t think = marker("</think>"), call = marker("<minimax:tool_call>");
    buf_printf(&text,
               "{\"stops\": [%d], \"after\": %d, \"calls\": [%d, %d], \"value\": {\"type\": "
               "\"null\"}}",
               stop_id, think, call, marker("</minimax:tool_call>"));
    CHECK_INT(constraint_new(cache, buf_str(&text), &c, &e), 0);
    int32_t output[] = {'h', think, '\n', 'n', 'u', 'l', 'l'};
    const uint64_t *bits = constraint_allow(c, output, 1);
    CHECK(has(bits, 'x') && has(bits, think) && has(bits, marker("<think>")));
    CHECK(!has(bits, stop_id) && !has(bits, call));
    bits = constraint_allow(c, output, 2);
    CHECK(has(bits, '\n') && has(bits, 'n') && !has(bits, 'x') && !has(bits, think));
    bits = constraint_allow(c, output, 7);
    CHECK(has(bits, stop_id) && !has(bits, 'l') && !has(bits, '\n'));
    int32_t wrong[] = {'h', think, 'x'};
    CHECK(constraint_allow(c, wrong, 3) == NULL);
    bits = constraint_allow(c, wrong, 2);
    CHECK(has(bits, 'n'));
    constraint_free(&c);
    buf_fini(&text);
    close_words();
}

/* ---- sampling -------------------------------------------------------------------------------------- */

TEST(grammar_leaves_the_sampler_what_it_allows)
{
    static const struct sampling kinds[] = {
        {.temperature = 0},
        {.temperature = 1},
        {.temperature = 0.01f, .top_k = 40, .top_p = 0.95f},
        {.temperature = 5, .top_p = 0.3f, .min_p = 0.5f},
        {.temperature = 1, .repetition_penalty = 1.5f, .presence_penalty = 2, .logprobs = true},
    };
    struct rng r = test_rng();
    float logits[VOCAB];
    struct buf text = {0};
    struct err e = {0};
    open_words();
    struct sampler *s = sampler_new(VOCAB);
    buf_printf(&text, "{\"stops\": [%d], \"value\": {\"enum\": [\"left\", \"right\", 12]}}",
               stop_id);
    for (int i = 0; i < 200; i++) {
        struct sampling p = kinds[i % 5];
        struct constraint *c;
        struct tokens ids = {0};
        struct sampled out = {0};
        p.grammar = text.data;
        p.seed = (uint64_t)i;
        tokens_push(&ids, 5); /* the prompt is none of the grammar's business */
        CHECK_INT(constraint_new(cache, buf_str(&text), &c, &e), 0);
        while (out.token != stop_id) {
            for (int k = 0; k < VOCAB; k++)
                logits[k] = (float)rng_normal(&r) * 10;
            struct sample_history h = {
                .tokens = ids.ids, .n_tokens = (int)ids.len, .n_prompt = 1, .constraint = c};
            CHECK_INT(sample_token(s, logits, &p, &h, ids.len, &out), 0);
            tokens_push(&ids, out.token);
            CHECK(ids.len < 12);
        }
        struct buf said = {0};
        tokenizer_decode(words, ids.ids + 1, ids.len - 2, TOKENIZER_KEEP_SPECIAL, &said);
        CHECK(!strcmp(said.data, "\"left\"") || !strcmp(said.data, "\"right\"") ||
              !strcmp(said.data, "12"));
        buf_fini(&said);
        tokens_fini(&ids);
        constraint_free(&c);
    }
    /* A grammar without its constraint is not sampled as if there were none. */
    struct sampling p = {.grammar = text.data};
    struct sampled out;
    CHECK_INT(sample_token(s, logits, &p, &(struct sample_history){0}, 0, &out), E_INVALID);
    sampler_free(&s);
    buf_fini(&text);
    close_words();
}
