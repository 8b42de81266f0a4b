/* First byte even: the rest is a tokenizer.json.  Odd: the rest is text, encoded with a small
 * tokenizer in both modes, decoded, and split into reasoning and content. */
#include "tests/lib/fuzz.h"

#include <string.h>

#include "base/err.h"
#include "base/must.h"
#include "model/output.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "model/vocab.h"

/* Bytes, a few merges, a few markers. */
static void write_small_tokenizer(struct buf *json)
{
    static const char *const merges[] = {"e r", "t h", "a a", "aa aa", "th e", "\xc4\xa0 the"};
    static const char *const merged[] = {"er", "th", "aa", "aaaa", "the", "\xc4\xa0the"};
    static const char *const added[] = {"<think>", "</think>", "[e~["};

    buf_puts(json, "{\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": "
                   "\"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"");
    for (const char *p = pretokenize_pattern(); *p; p++)
        buf_printf(json, *p == '\\' ? "\\%c" : "%c", *p);
    buf_puts(json, "\"}}, {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": "
                   "false}]}, \"added_tokens\": [");
    for (int i = 0; i < 3; i++)
        buf_printf(json, "%s{\"id\": %d, \"content\": \"%s\", \"special\": %s}", i > 0 ? ", " : "",
                   300 + i, added[i], i == 2 ? "true" : "false");
    buf_puts(json, "], \"model\": {\"type\": \"BPE\", \"vocab\": {");
    for (int byte = 0; byte < 256; byte++) {
        struct buf c = {0};
        utf8_append(&c, vocab_char_of_byte((unsigned char)byte));
        buf_printf(json, "\"%s%s\": %d, ", byte == '"' || byte == '\\' ? "\\" : "", c.data, byte);
        buf_fini(&c);
    }
    for (int i = 0; i < 6; i++)
        buf_printf(json, "%s\"%s\": %d", i > 0 ? ", " : "", merged[i], 256 + i);
    buf_puts(json, "}, \"merges\": [");
    for (int i = 0; i < 6; i++)
        buf_printf(json, "%s\"%s\"", i > 0 ? ", " : "", merges[i]);
    buf_puts(json, "]}}");
}

/* Made once for all inputs; lives until the process ends. */
static const struct tokenizer *small_tokenizer(void)
{
    static struct tokenizer *t;
    struct buf json = {0};
    struct err e = {0};

    if (!t) {
        write_small_tokenizer(&json);
        must_zero(tokenizer_parse(buf_str(&json), "small", &t, &e));
        buf_fini(&json);
    }
    return t;
}

static void split_output(const struct tokenizer *t, const struct tokens *ids)
{
    struct output o;
    struct output_events said = {0};

    output_init(&o, t, ids->len % 2 ? OUTPUT_IN_REASONING : OUTPUT_IN_CONTENT, NULL);
    for (size_t i = 0; i < ids->len; i++)
        output_feed(&o, ids->ids[i], &said);
    output_finish(&o, OUTPUT_STOPPED, &said);
    for (size_t i = 0; i < said.n; i++)
        must(utf8_is_valid(output_events_text(&said, i)));
    output_events_fini(&said);
    output_fini(&o);
}

static void encode_and_back(const struct tokenizer *t, struct str text)
{
    struct tokens ids = {0};
    struct buf back = {0};

    for (int markers = TOKENIZER_PLAIN; markers <= TOKENIZER_WITH_MARKERS; markers++) {
        tokens_reset(&ids);
        buf_reset(&back);
        must_zero(tokenizer_encode(t, text, (enum tokenizer_markers)markers, &ids));
        tokenizer_decode(t, ids.ids, ids.len, TOKENIZER_KEEP_SPECIAL, &back);
        must(str_equal(buf_str(&back), text));
        split_output(t, &ids);
    }
    tokens_fini(&ids);
    buf_fini(&back);
}

FUZZ(tokenizer)
{
    struct str rest = {(const char *)data + 1, bytes - 1};
    struct tokenizer *t = NULL;
    struct err e = {0};

    if (bytes == 0)
        return;
    if (data[0] % 2 == 1) {
        encode_and_back(small_tokenizer(), rest);
        return;
    }
    if (tokenizer_parse(rest, "fuzz", &t, &e) == 0)
        encode_and_back(t, STR("the markers are there: <think> aaaaaaa\xff"));
    else
        must(strlen(e.text) > 0);
    tokenizer_free(&t);
}
