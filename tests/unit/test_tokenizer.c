#include "model/tokenizer.h"

#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/mem.h"
#include "model/bpe.h"
#include "model/pretokenize.h"
#include "model/tokenizer_write.h"
#include "model/vocab.h"
#include "tests/lib/test.h"

static struct tokenizer *must_open(const char *dir)
{
    struct tokenizer *t = NULL;
    struct err e = {0};

    if (tokenizer_open(dir, &t, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return t;
}

static struct tokenizer *synthetic(int vocab_size)
{
    struct err e = {0};

    if (tokenizer_write_synthetic("tokenizer.json", vocab_size, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return must_open(".");
}

static json_t *synthetic_json(int vocab_size)
{
    struct err e = {0};
    json_t *root;

    CHECK_INT(tokenizer_write_synthetic("tokenizer.json", vocab_size, &e), 0);
    root = json_load_file("tokenizer.json", 0, NULL);
    CHECK(root != NULL);
    return root;
}

static int parse_json(const json_t *root, struct tokenizer **t, struct err *e)
{
    char *text = json_dumps(root, 0);
    int rc;

    CHECK(text != NULL);
    rc = tokenizer_parse(str_of(text), "file", t, e);
    free(text);
    return rc;
}

static void check_encoding(const struct tokenizer *t, struct str text,
                           enum tokenizer_markers markers, const int32_t *want, size_t n)
{
    struct tokens ids = {0};

    CHECK_INT(tokenizer_encode(t, text, markers, &ids), 0);
    for (size_t i = 0; i < n && i < ids.len; i++)
        if (ids.ids[i] != want[i])
            test_fail(__FILE__, __LINE__, "'%.*s': id %zu is %d, expected %d", (int)text.len,
                      text.ptr, i, ids.ids[i], want[i]);
    CHECK_INT(ids.len, n);
    tokens_fini(&ids);
}

static void check_round_trip(const struct tokenizer *t, struct str text)
{
    struct tokens ids = {0};
    struct buf back = {0};

    CHECK_INT(tokenizer_encode(t, text, TOKENIZER_PLAIN, &ids), 0);
    tokenizer_decode(t, ids.ids, ids.len, TOKENIZER_SKIP_SPECIAL, &back);
    CHECK_INT(back.len, text.len);
    CHECK_BYTES(back.data, text.ptr, text.len);
    tokens_fini(&ids);
    buf_fini(&back);
}

/* ---- M2's own ids ----------------------------------------------------------------------- */

#define VECTOR(text, ...) \
    check_encoding(t, STR(text), TOKENIZER_PLAIN, (const int32_t[]){__VA_ARGS__}, \
                   sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

/* All of the published vectors but the Chinese one, whose ids do not tell which token ends
 * where; that one, and the fingerprint of 159 ids, need the whole vocabulary.  Of the emoji
 * vector the only natural reading is taken (a rocket, then two characters in two tokens each). */
TEST(tokenizer_gives_the_ids_of_m2)
{
    struct buf dir = {0};
    struct tokenizer *t;

    buf_printf(&dir, "%s/tests/fixtures/tokenizer/m2_part", test_source_dir());
    t = must_open(dir.data);
    VECTOR("Hello world", 19739, 2035);
    VECTOR("Hello, world! How are you today?", 19739, 44, 2035, 33, 2329, 457, 390, 4380, 63);
    VECTOR("The quick brown fox jumps over the lazy dog.", 758, 4729, 15801, 62222, 58841, 1049,
           275, 34810, 6787, 46);
    VECTOR("I'm sure they're fine; DON'T shout.", 11928, 3123, 12618, 7591, 59, 197932, 36652, 46);
    VECTOR("x = 1234567890;\n\n// comment\n/* path */", 120, 409, 32, 10010, 26551, 39490, 48,
           63396, 5507, 10, 8907, 3483, 9434);
    VECTOR("  leading and trailing  \n\n  next", 32, 7440, 306, 58649, 17446, 32, 2972);
    VECTOR("\xf0\x9f\x9a\x80\xf0\x9f\x91\x8b\xf0\x9f\x8c\x8d", 150333, 44026, 139, 79213, 141);
    VECTOR("system\nYou are a helpful assistant.", 28463, 10, 2985, 457, 258, 12473, 23413, 46);
    VECTOR("user\n", 3995, 10);
    VECTOR("ai\n", 1361, 10);
    VECTOR("<response>", 60, 9679, 62);
    VECTOR("</response>", 1579, 9679, 62);
    VECTOR("a/b/c.\n/d", 97, 9996, 8473, 156744, 100);
    VECTOR("{\"name\":\"test\",\"value\":42,\"active\":true}", 16673, 1906, 15368, 4500, 11588,
           3582, 2803, 5130, 2304, 6401, 2803, 7847, 125);
    CHECK_INT(tokenizer_find(t, STR("]~!b[")), 200034);
    CHECK_INT(tokenizer_find(t, STR("]<]vision pad[>[")), 200033);
    CHECK_INT(tokenizer_find(t, STR("</minimax:tool_call>")), 200053);
    CHECK(tokenizer_is_special(t, 200020));
    CHECK(tokenizer_is_added(t, 200050) && !tokenizer_is_special(t, 200050));
    CHECK(tokenizer_is_added(t, 200053) && !tokenizer_is_special(t, 200053));
    buf_fini(&dir);
    tokenizer_free(&t);
}

/* ---- encoding --------------------------------------------------------------------------- */

TEST(tokenizer_recognises_markers_only_when_asked)
{
    struct tokenizer *t = synthetic(800);
    int32_t think = tokenizer_find(t, STR("<think>")), end = tokenizer_find(t, STR("[e~["));
    struct tokens ids = {0};
    struct buf shown = {0};

    CHECK_INT(think, 796);
    CHECK_INT(tokenizer_encode(t, STR("a<think>]~b][e~["), TOKENIZER_PLAIN, &ids), 0);
    for (size_t i = 0; i < ids.len; i++)
        CHECK(!tokenizer_is_added(t, ids.ids[i]));
    tokens_reset(&ids);
    check_encoding(t, STR("a<think>b[e~["), TOKENIZER_WITH_MARKERS,
                   (const int32_t[]){'a', think, 'b', end}, 4);
    CHECK_INT(tokenizer_encode(t, STR("a<think>b[e~["), TOKENIZER_WITH_MARKERS, &ids), 0);
    tokenizer_decode(t, ids.ids, ids.len, TOKENIZER_SKIP_SPECIAL, &shown);
    CHECK_STR(shown.data, "a<think>b");
    tokens_fini(&ids);
    buf_fini(&shown);
    tokenizer_free(&t);
}

TEST(tokenizer_takes_the_leftmost_longest_marker)
{
    json_t *root = synthetic_json(400), *added = json_object_get(root, "added_tokens");
    struct tokenizer *t = NULL;
    struct err e = {0};

    json_array_append_new(added,
                          json_pack("{s:i, s:s, s:b}", "id", 400, "content", "<x", "special", 0));
    json_array_append_new(
        added, json_pack("{s:i, s:s, s:b}", "id", 401, "content", "<x><y>", "special", 0));
    json_array_append_new(added,
                          json_pack("{s:i, s:s, s:b}", "id", 402, "content", "><", "special", 0));
    CHECK_INT(parse_json(root, &t, &e), 0);
    check_encoding(t, STR("<x><y>"), TOKENIZER_WITH_MARKERS, (const int32_t[]){401}, 1);
    check_encoding(t, STR("<x><"), TOKENIZER_WITH_MARKERS, (const int32_t[]){400, 402}, 2);
    check_encoding(t, STR("<<x"), TOKENIZER_WITH_MARKERS, (const int32_t[]){'<', 400}, 2);
    CHECK_INT(tokenizer_vocab_size(t), 403);
    json_decref(root);
    tokenizer_free(&t);
}

/* The rule as it is written down, over strings of mapped characters: no ids, no heap. */
struct reference {
    json_t *vocab, *ranks; /* borrowed; "left right" to rank */
};

static int rank_of(const struct reference *r, const char *left, const char *right)
{
    char *key = mem_format("%s %s", left, right);
    const json_t *rank = json_object_get(r->ranks, key);

    mem_free(key);
    return rank ? (int)json_integer_value(rank) : -1;
}

static void reference_piece(const struct reference *r, struct str piece, struct tokens *out)
{
    char **parts = mem_array(piece.len, sizeof(*parts));
    size_t n = piece.len;

    for (size_t i = 0; i < n; i++) {
        int32_t c = vocab_char_of_byte((unsigned char)piece.ptr[i]);
        parts[i] =
            c < 0x80 ? mem_format("%c", c) : mem_format("%c%c", 0xc0 | c >> 6, 0x80 | (c & 0x3f));
    }
    for (;;) {
        int best = -1;
        size_t at = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            int rank = rank_of(r, parts[i], parts[i + 1]);
            if (rank >= 0 && (best < 0 || rank < best)) {
                best = rank;
                at = i;
            }
        }
        if (best < 0)
            break;
        char *both = mem_format("%s%s", parts[at], parts[at + 1]);
        mem_free(parts[at]);
        mem_free(parts[at + 1]);
        parts[at] = both;
        memmove(&parts[at + 1], &parts[at + 2], (n - at - 2) * sizeof(*parts));
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        tokens_push(out, (int32_t)json_integer_value(json_object_get(r->vocab, parts[i])));
        mem_free(parts[i]);
    }
    mem_free(parts);
}

static json_t *ranks_of(const json_t *merges)
{
    json_t *ranks = json_object(), *merge;
    size_t i;

    json_array_foreach(merges, i, merge)
    {
        char *key = mem_format("%s %s", json_string_value(json_array_get(merge, 0)),
                               json_string_value(json_array_get(merge, 1)));
        json_object_set_new(ranks, key, json_integer((json_int_t)i));
        mem_free(key);
    }
    return ranks;
}

static void random_text(struct rng *rng, struct buf *text)
{
    static const char *const bits[] = {
        "the ", "machine", "ing", "th",       " c",  "er", "an", "\n", " ", "count", "s",
        "e",    "a",       "o",   "\xc3\xa9", "'re", "12", ";",  "  ", "R", "u",     "\xff"};

    buf_reset(text);
    for (int n = (int)rng_below(rng, 20); n >= 0; n--)
        if (rng_below(rng, 8) == 0)
            buf_putc(text, (char)rng_below(rng, 256));
        else
            buf_puts(text, bits[rng_below(rng, sizeof(bits) / sizeof(*bits))]);
}

TEST(tokenizer_agrees_with_the_naive_algorithm)
{
    json_t *root = synthetic_json(900), *model = json_object_get(root, "model");
    struct reference r = {.vocab = json_object_get(model, "vocab"),
                          .ranks = ranks_of(json_object_get(model, "merges"))};
    struct tokenizer *t = must_open(".");
    struct rng rng = test_rng();
    struct buf text = {0};
    size_t n_merged = 0, n_bytes = 0;

    for (int i = 0; i < 3000; i++) {
        struct tokens want = {0};
        size_t end;
        random_text(&rng, &text);
        for (size_t at = 0; at < text.len; at = end) {
            end = pretokenize_next(buf_str(&text), at);
            reference_piece(&r, (struct str){text.data + at, end - at}, &want);
        }
        check_encoding(t, buf_str(&text), TOKENIZER_PLAIN, want.ids, want.len);
        check_round_trip(t, buf_str(&text));
        n_bytes += text.len;
        n_merged += text.len - want.len;
        tokens_fini(&want);
    }
    CHECK(n_merged > n_bytes / 4); /* or the texts would not exercise merging */
    buf_fini(&text);
    json_decref(r.ranks);
    json_decref(root);
    tokenizer_free(&t);
}

TEST(tokenizer_round_trips_any_bytes)
{
    struct tokenizer *t = synthetic(900);
    struct rng rng = test_rng();
    char bytes[300];

    for (int i = 0; i < 3000; i++) {
        size_t n = rng_below(&rng, sizeof(bytes));
        for (size_t k = 0; k < n; k++)
            bytes[k] = (char)rng_below(&rng, i % 2 ? 256 : 128);
        if (n > 0)
            check_round_trip(t, (struct str){bytes, n});
    }
    check_encoding(t, STR(""), TOKENIZER_PLAIN, NULL, 0);
    check_encoding(t, STR(""), TOKENIZER_WITH_MARKERS, NULL, 0);
    tokenizer_free(&t);
}

/* Steps, not time: a quadratic algorithm would need 10^12 of them. */
TEST(tokenizer_merges_a_long_piece_in_n_log_n_steps)
{
    enum { N = 1 << 20, LEVELS = 12 };
    struct bpe b;
    struct bpe_scratch s = {0};
    struct tokens out = {0};
    char *text = mem_alloc(N);

    memset(text, 'a', N);
    bpe_init(&b, LEVELS);
    for (int c = 0; c < 256; c++)
        b.byte_ids[c] = c;
    /* aa, aaaa, ... : every merge opens the next. */
    for (int level = 0; level < LEVELS; level++) {
        int32_t half = level == 0 ? 'a' : 255 + level;
        CHECK(bpe_add(&b, half, half, (uint32_t)level, 256 + level));
    }
    bpe_encode(&b, (struct str){text, N}, &s, &out);
    CHECK_INT(out.len, N >> LEVELS);
    CHECK_INT(out.ids[0], 255 + LEVELS);
    CHECK(s.steps < (size_t)N * 2 * 20); /* n log2 n twice over: heap and look-ups */
    CHECK(s.steps > (size_t)N);
    CHECK(!bpe_add(&b, 'a', 'a', 99, 1));
    bpe_fini(&b);
    bpe_scratch_fini(&s);
    tokens_fini(&out);
    mem_free(text);
}

TEST(tokenizer_takes_a_megabyte_of_one_character)
{
    struct tokenizer *t = synthetic(900);
    size_t n = 1 << 20;
    char *text = mem_alloc(n);

    for (const char *c = "a \n!1"; *c; c++) {
        memset(text, *c, n);
        check_round_trip(t, (struct str){text, n});
    }
    mem_free(text);
    CHECK_INT(tokenizer_encode(t, (struct str){"", TOKENIZER_TEXT_LIMIT_BYTES + 1}, TOKENIZER_PLAIN,
                               &(struct tokens){0}),
              E_RANGE);
    tokenizer_free(&t);
}

static void *encode_much(void *arg)
{
    const struct tokenizer *t = arg;

    for (int i = 0; i < 200; i++)
        check_round_trip(t, STR("the machine counted the stars, <think> and so on 123"));
    return NULL;
}

TEST(tokenizer_serves_several_threads)
{
    struct tokenizer *t = synthetic(900);
    pthread_t threads[3];

    for (int i = 0; i < 3; i++)
        CHECK_INT(pthread_create(&threads[i], NULL, encode_much, t), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    tokenizer_free(&t);
}

TEST(tokenizer_has_nothing_for_unknown_ids)
{
    struct tokenizer *t = synthetic(900);

    CHECK_INT(tokenizer_vocab_size(t), 900);
    CHECK_INT(tokenizer_token_bytes(t, -1).len, 0);
    CHECK_INT(tokenizer_token_bytes(t, 900).len, 0);
    CHECK_INT(tokenizer_token_bytes(t, INT32_MAX).len, 0);
    CHECK_INT(tokenizer_token_bytes(t, 845).len, 0); /* between the merges and the markers */
    CHECK(!tokenizer_is_special(t, -7) && !tokenizer_is_added(t, INT32_MAX));
    CHECK_INT(tokenizer_find(t, STR("no such token")), TOKENIZER_NO_ID);
    CHECK_INT(tokenizer_find(t, STR("")), TOKENIZER_NO_ID);
    tokenizer_free(&t);
}

/* ---- what a file may say ---------------------------------------------------------------- */

TEST(tokenizer_reads_both_spellings_of_merges)
{
    json_t *root = synthetic_json(600), *model = json_object_get(root, "model");
    json_t *texts = json_array(), *merge;
    struct tokenizer *t = NULL, *plain = must_open(".");
    struct tokens want = {0};
    struct err e = {0};
    struct str text = STR("The machine counted what the other one had written.");
    size_t i;

    json_array_foreach(json_object_get(model, "merges"), i, merge) json_array_append_new(
        texts, json_sprintf("%s %s", json_string_value(json_array_get(merge, 0)),
                            json_string_value(json_array_get(merge, 1))));
    json_object_set_new(model, "merges", texts);
    CHECK_INT(parse_json(root, &t, &e), 0);
    CHECK_INT(tokenizer_encode(plain, text, TOKENIZER_PLAIN, &want), 0);
    CHECK(want.len < text.len / 2);
    check_encoding(t, text, TOKENIZER_PLAIN, want.ids, want.len);
    tokens_fini(&want);
    json_decref(root);
    tokenizer_free(&t);
    tokenizer_free(&plain);
}

/* A merge's place in the list counts, not the id of what it makes. */
TEST(tokenizer_ranks_merges_by_their_order)
{
    json_t *root = synthetic_json(310), *model = json_object_get(root, "model");
    struct tokenizer *t = NULL;
    struct err e = {0};

    json_object_set_new(json_object_get(model, "vocab"), "xy", json_integer(500));
    json_object_set_new(json_object_get(model, "vocab"), "yz", json_integer(400));
    json_object_set_new(model, "merges", json_pack("[s, s]", "x y", "y z"));
    CHECK_INT(parse_json(root, &t, &e), 0);
    check_encoding(t, STR("xyz"), TOKENIZER_PLAIN, (const int32_t[]){500, 'z'}, 2);
    tokenizer_free(&t);
    json_object_set_new(model, "merges", json_pack("[s, s]", "y z", "x y"));
    CHECK_INT(parse_json(root, &t, &e), 0);
    check_encoding(t, STR("xyz"), TOKENIZER_PLAIN, (const int32_t[]){'x', 400}, 2);
    tokenizer_free(&t);
    /* A whole piece that no merge reaches, with the shortcut that some files ask for. */
    json_object_set_new(json_object_get(model, "vocab"), "xyz", json_integer(600));
    json_object_set_new(model, "ignore_merges", json_true());
    CHECK_INT(parse_json(root, &t, &e), 0);
    check_encoding(t, STR("xyz"), TOKENIZER_PLAIN, (const int32_t[]){600}, 1);
    tokenizer_free(&t);
    json_decref(root);
}

TEST(tokenizer_composes_where_the_file_asks_for_it)
{
    json_t *root = synthetic_json(310);
    struct tokenizer *t = NULL;
    struct err e = {0};
    struct str apart = STR("e\xcc\x81\xff\xcc\x81 \xe1\x84\x80\xe1\x85\xa1");
    static const int32_t together[] = {0xc3, 0xa9, 0xff, 0xcc, 0x81, ' ', 0xea, 0xb0, 0x80};
    struct buf marks = {0};
    struct tokens ids = {0};

    CHECK_INT(parse_json(root, &t, &e), 0);
    check_round_trip(t, apart);
    tokenizer_free(&t);
    json_object_set_new(root, "normalizer", json_pack("{s:s}", "type", "NFC"));
    CHECK_INT(parse_json(root, &t, &e), 0);
    check_encoding(t, apart, TOKENIZER_PLAIN, together, 9);
    /* Sorting a run of marks is quadratic; half a million of them must not be one run. */
    for (int i = 0; i < 250000; i++)
        buf_puts(&marks, i < 125000 ? "\xcc\x81" : "\xcc\xa3");
    CHECK_INT(tokenizer_encode(t, buf_str(&marks), TOKENIZER_PLAIN, &ids), 0);
    CHECK_INT(ids.len, marks.len);
    buf_fini(&marks);
    tokens_fini(&ids);
    tokenizer_free(&t);
    json_decref(root);
}

TEST(tokenizer_accepts_removed_and_inverted_splitting)
{
    json_t *root = synthetic_json(310);
    json_t *split =
        json_array_get(json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers"), 0);
    struct tokenizer *t = NULL;
    struct err e = {0};

    json_object_set_new(split, "behavior", json_string("Removed"));
    CHECK_INT(parse_json(root, &t, &e), E_UNIMPLEMENTED);
    CHECK_HAS(e.text, "file: pre_tokenizer: Split: behavior 'Removed'");
    json_object_set_new(split, "invert", json_true());
    CHECK_INT(parse_json(root, &t, &e), 0);
    tokenizer_free(&t);
    json_decref(root);
}

TEST(tokenizer_says_when_there_is_no_file)
{
    struct tokenizer *t = NULL;
    struct err e = {0};

    CHECK_INT(tokenizer_open("nowhere", &t, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "nowhere/tokenizer.json");
    CHECK(t == NULL);
    tokenizer_free(&t);
}

/* Sets the value at a path of keys and indices ("model/merges/0") to a JSON text, or deletes it
 * if the text is NULL. */
static void mutate(json_t *root, const char *path, const char *json)
{
    char *copy = mem_string(path), *rest = copy, *key, *next;
    json_t *at = root;

    for (key = strsep(&rest, "|"); (next = strsep(&rest, "|")) != NULL; key = next)
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    CHECK(at != NULL);
    if (!json)
        CHECK_INT(json_object_del(at, key), 0);
    else if (json_is_array(at))
        CHECK_INT(
            json_array_set_new(at, (size_t)atoi(key), json_loads(json, JSON_DECODE_ANY, NULL)), 0);
    else
        CHECK_INT(json_object_set_new(at, key, json_loads(json, JSON_DECODE_ANY, NULL)), 0);
    mem_free(copy);
}

TEST(tokenizer_refuses_damaged_files)
{
    static const struct {
        const char *path, *json;
        int code;
        const char *says;
    } cases[] = {
        {"model", NULL, E_CORRUPT, "file: model: not an object"},
        {"model|type", "\"Unigram\"", E_UNIMPLEMENTED, "model.type: 'Unigram'"},
        {"model|vocab", "[]", E_CORRUPT, "model.vocab: not an object"},
        {"model|vocab|a", "\"7\"", E_CORRUPT, "model.vocab['a']: id is not an integer"},
        {"model|vocab|a", "-1", E_CORRUPT, "id -1 is outside"},
        {"model|vocab|a", "4000000000", E_CORRUPT, "id 4000000000 is outside"},
        {"model|vocab|a", "98", E_CORRUPT, "id 98 is used twice"},
        {"model|vocab|a", NULL, E_CORRUPT, "no token for byte 0x61"},
        {"model|vocab|", "340", E_CORRUPT, "is empty"},
        {"model|vocab|\xe4\xbd\xa0", "340", E_CORRUPT, "a character that stands for no byte"},
        {"model|merges", NULL, E_CORRUPT, "model.merges: tokenizer without merges; take the"},
        {"model|merges", "[]", E_CORRUPT, "model.merges: tokenizer without merges"},
        {"model|merges", "{}", E_CORRUPT, "model.merges: not an array"},
        {"model|merges|3", "7", E_CORRUPT, "model.merges[3]: neither"},
        {"model|merges|3", "[\"a\", 7]", E_CORRUPT, "model.merges[3]: not two strings"},
        {"model|merges|3", "[\"a\"]", E_CORRUPT, "model.merges[3]: neither"},
        {"model|merges|3", "\"ab\"", E_CORRUPT, "no space between two tokens"},
        {"model|merges|3", "\"a qqq\"", E_CORRUPT, "model.merges[3]: 'qqq' is not in model.vocab"},
        {"model|merges|3", "\"q q\"", E_CORRUPT, "model.merges[3]: 'qq' is not in model.vocab"},
        {"model|merges|3", "\"\xc4\xa0 t\"", E_CORRUPT, "merged a second time"},
        {"model|byte_fallback", "true", E_UNIMPLEMENTED, "model.byte_fallback"},
        {"model|dropout", "0.1", E_UNIMPLEMENTED, "model.dropout"},
        {"model|end_of_word_suffix", "\"</w>\"", E_UNIMPLEMENTED, "model.end_of_word_suffix"},
        {"added_tokens", "7", E_CORRUPT, "added_tokens: not an array"},
        {"added_tokens|2", "7", E_CORRUPT, "added_tokens[2]: id is not an integer"},
        {"added_tokens|2|id", "97", E_CORRUPT, "added_tokens[2]: '<fim_middle>' has id 97"},
        {"added_tokens|2|id", "-4", E_CORRUPT, "added_tokens[2]: id -4 is outside"},
        {"added_tokens|2|content", "\"\"", E_CORRUPT, "content is not a string"},
        {"added_tokens|2|content", "\"a\"", E_CORRUPT, "'a' has id 348 and also id 97"},
        {"added_tokens|2|lstrip", "true", E_UNIMPLEMENTED, "lstrip is not supported"},
        {"normalizer", "{\"type\": \"Lowercase\"}", E_UNIMPLEMENTED,
         "normalizer: type 'Lowercase'"},
        {"pre_tokenizer", "null", E_UNIMPLEMENTED, "pre_tokenizer: not a Sequence"},
        {"pre_tokenizer|pretokenizers|0|pattern|Regex", "\"\\\\s+\"", E_UNIMPLEMENTED,
         "pattern '\\s+' is not that of MiniMax-M2"},
        {"pre_tokenizer|pretokenizers|0|pattern|Regex", "7", E_CORRUPT, "not a string"},
        {"pre_tokenizer|pretokenizers|1|use_regex", "true", E_UNIMPLEMENTED, "use_regex"},
        {"pre_tokenizer|pretokenizers|1|add_prefix_space", NULL, E_UNIMPLEMENTED, "add_prefix"},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        json_t *root = synthetic_json(400);
        struct tokenizer *t = NULL;
        struct err e = {0};
        mutate(root, cases[i].path, cases[i].json);
        test_note("case %zu: %s", i, cases[i].path);
        CHECK_INT(parse_json(root, &t, &e), cases[i].code);
        CHECK_HAS(e.text, cases[i].says);
        CHECK(t == NULL);
        json_decref(root);
    }
}

TEST(tokenizer_refuses_every_truncation)
{
    struct tokenizer *t = synthetic(330);
    struct buf json = {0};
    struct err e = {0};

    tokenizer_free(&t);
    CHECK_INT(buf_read_file(&json, "tokenizer.json", 1 << 20, &e), 0);
    for (size_t n = 0; n < json.len - 2; n += 1 + n / 97) {
        CHECK_INT(tokenizer_parse((struct str){json.data, n}, "file", &t, &e), E_CORRUPT);
        CHECK_HAS(e.text, "file: line ");
    }
    CHECK_INT(tokenizer_parse(STR("[1]"), "file", &t, &e), E_CORRUPT);
    CHECK_HAS(e.text, "file: not a JSON object");
    CHECK_INT(tokenizer_parse(STR("{\"a\": 1, \"a\": 2}"), "file", &t, &e), E_CORRUPT);
    buf_fini(&json);
}

/* ---- what we write ---------------------------------------------------------------------- */

TEST(tokenizer_write_gives_the_m2_layout)
{
    struct tokenizer *t = synthetic(2000);
    struct buf first = {0}, second = {0};
    struct err e = {0};
    json_t *root = json_load_file("tokenizer.json", 0, NULL);

    CHECK_INT(tokenizer_vocab_size(t), 2000);
    CHECK_INT(tokenizer_find(t, STR("]!p~[")), 1946);
    CHECK_INT(tokenizer_find(t, STR("]~!b[")), 1980);
    CHECK_INT(tokenizer_find(t, STR("</minimax:tool_call>")), 1999);
    for (int byte = 0; byte < 256; byte++)
        CHECK_INT((unsigned char)tokenizer_token_bytes(t, byte).ptr[0], byte);
    CHECK(json_array_size(json_object_get(json_object_get(root, "model"), "merges")) >= 300);
    CHECK_INT(json_array_size(json_object_get(root, "added_tokens")), TOKENIZER_WRITE_N_ADDED);
    CHECK_INT(buf_read_file(&first, "tokenizer.json", 1 << 20, &e), 0);
    CHECK_INT(tokenizer_write_synthetic("tokenizer.json", 2000, &e), 0);
    CHECK_INT(buf_read_file(&second, "tokenizer.json", 1 << 20, &e), 0);
    CHECK(str_equal(buf_str(&first), buf_str(&second)));
    CHECK_INT(tokenizer_write_synthetic("x.json", TOKENIZER_WRITE_MIN_VOCAB - 1, &e), E_INVALID);
    CHECK_HAS(e.text, "310");
    json_decref(root);
    buf_fini(&first);
    buf_fini(&second);
    tokenizer_free(&t);
}

TEST(tokenizer_write_works_at_every_size)
{
    for (int size = TOKENIZER_WRITE_MIN_VOCAB; size <= 320; size++) {
        struct tokenizer *t = synthetic(size);
        CHECK_INT(tokenizer_vocab_size(t), size);
        check_round_trip(t, STR("the machine\n"));
        tokenizer_free(&t);
    }
}
