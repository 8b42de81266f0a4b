#include "model/tokenizer_write.h"

#include <jansson.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "model/vocab.h"

/* What the merges are learned from: the words that demonstrations of a server tend to use. */
static const char lesson[] =
    "You are a helpful assistant. The user asks a question and the assistant answers it. "
    "Hello, how are you today? I am fine, thank you. What is the weather like in the city? "
    "The sun is shining and the wind is coming from the north. Tell me a short story about "
    "a small machine that wanted to think. Once upon a time there was a machine in a quiet "
    "room. Every night the machine counted the stars, and every morning it forgot how many "
    "there were. One day another machine came and said: let us count together, then each of "
    "us has only half of the sky. So they counted, and when one of them was tired, the other "
    "one went on. The number was the same, whoever had counted.\n\n"
    "A model reads the words that were written before and chooses the word that comes next. "
    "Some parts of the model see every word; other parts, the experts, see only the words "
    "that a router sends to them. When the experts live on different machines, the words "
    "travel over the network and come back with an answer. If a machine is lost, the answer "
    "must still be the same, because the question was the same.\n\n"
    "system\nuser\nai\ntool\nassistant\nname value type object string integer number "
    "description parameters properties required function invoke parameter response tools. "
    "Write a function that returns the sum of two numbers. Explain the difference between a "
    "process and a thread. How does this work? Why is that? Please give me an example. The "
    "first thing that I would like to know is whether the other thing is there. There is no "
    "other way to do this, and that is the reason for what we have done here. I'm sure they're "
    "right; don't you think it's what we've been waiting for? He'll be here, she said.\n\n"
    "int main(void)\n{\n    return 0;\n}\n\nfor (int i = 0; i < n; i++)\n    sum += x[i];\n";

struct added_token {
    const char *text;
    enum vocab_kind kind;
};
static const struct added_token added_tokens[TOKENIZER_WRITE_N_ADDED] = {
    {"]!p~[", VOCAB_SPECIAL},
    {"<fim_prefix>", VOCAB_SPECIAL},
    {"<fim_middle>", VOCAB_SPECIAL},
    {"<fim_suffix>", VOCAB_SPECIAL},
    {"<fim_pad>", VOCAB_SPECIAL},
    {"<reponame>", VOCAB_SPECIAL},
    {"<filename>", VOCAB_SPECIAL},
    {"<gh_stars>", VOCAB_SPECIAL},
    {"<issue_start>", VOCAB_SPECIAL},
    {"<issue_comment>", VOCAB_SPECIAL},
    {"<issue_closed>", VOCAB_SPECIAL},
    {"<jupyter_start>", VOCAB_SPECIAL},
    {"<jupyter_text>", VOCAB_SPECIAL},
    {"<jupyter_code>", VOCAB_SPECIAL},
    {"<jupyter_output>", VOCAB_SPECIAL},
    {"<empty_output>", VOCAB_SPECIAL},
    {"<commit_before>", VOCAB_SPECIAL},
    {"<commit_msg>", VOCAB_SPECIAL},
    {"<commit_after>", VOCAB_SPECIAL},
    {"]~b]", VOCAB_SPECIAL},
    {"[e~[", VOCAB_SPECIAL},
    {"]!d~[", VOCAB_SPECIAL},
    {"<function_call>", VOCAB_SPECIAL},
    {"<code_interpreter>", VOCAB_SPECIAL},
    {"]<]speech[>[", VOCAB_SPECIAL},
    {"]<]image[>[", VOCAB_SPECIAL},
    {"]<]video[>[", VOCAB_SPECIAL},
    {"]<]start of speech[>[", VOCAB_SPECIAL},
    {"]<]end of speech[>[", VOCAB_SPECIAL},
    {"]<]start of image[>[", VOCAB_SPECIAL},
    {"]<]end of image[>[", VOCAB_SPECIAL},
    {"]<]start of video[>[", VOCAB_SPECIAL},
    {"]<]end of video[>[", VOCAB_SPECIAL},
    {"]<]vision pad[>[", VOCAB_SPECIAL},
    {"]~!b[", VOCAB_SPECIAL},
    {"<jupyter_error>", VOCAB_SPECIAL},
    {"<add_file>", VOCAB_SPECIAL},
    {"<delete_file>", VOCAB_SPECIAL},
    {"<rename_file>", VOCAB_SPECIAL},
    {"<edit_file>", VOCAB_SPECIAL},
    {"<commit_message>", VOCAB_SPECIAL},
    {"<empty_source_file>", VOCAB_SPECIAL},
    {"<repo_struct>", VOCAB_SPECIAL},
    {"<code_context>", VOCAB_SPECIAL},
    {"<file_content>", VOCAB_SPECIAL},
    {"<source_files>", VOCAB_SPECIAL},
    {"<pr_start>", VOCAB_SPECIAL},
    {"<review_comment>", VOCAB_SPECIAL},
    {"<filepath>", VOCAB_SPECIAL},
    {"<file_sep>", VOCAB_SPECIAL},
    {"<think>", VOCAB_ADDED},
    {"</think>", VOCAB_ADDED},
    {"<minimax:tool_call>", VOCAB_ADDED},
    {"</minimax:tool_call>", VOCAB_ADDED},
};

/* M3 has these in place of M2's from the first on: 52 and 53, and more. */
enum { FIRST_OF_M3 = 52, M3_N_ADDED = 61 };
static const struct added_token m3_tokens[M3_N_ADDED - FIRST_OF_M3] = {
    {"<tool_call>", VOCAB_ADDED},          {"</tool_call>", VOCAB_ADDED},
    {"]<]frame[>[", VOCAB_SPECIAL},        {"]<]start of frame[>[", VOCAB_SPECIAL},
    {"]<]end of frame[>[", VOCAB_SPECIAL}, {"<|content_altered_placeholder|>", VOCAB_SPECIAL},
    {"]<]minimax[>[", VOCAB_ADDED},        {"<mm:think>", VOCAB_ADDED},
    {"</mm:think>", VOCAB_ADDED},
};

static const struct added_token *added_token(enum model_family family, int i)
{
    bool is_own = family == MODEL_MINIMAX_M3 && i >= FIRST_OF_M3;
    return is_own ? &m3_tokens[i - FIRST_OF_M3] : &added_tokens[i];
}

int tokenizer_write_n_added(enum model_family family)
{
    return family == MODEL_MINIMAX_M3 ? (int)M3_N_ADDED : (int)TOKENIZER_WRITE_N_ADDED;
}

int tokenizer_write_min_vocab(enum model_family family)
{
    return TOKENIZER_WRITE_MIN_VOCAB - TOKENIZER_WRITE_N_ADDED + tokenizer_write_n_added(family);
}

/* The lesson as tokens, with a NO_ID between pieces, while merges are learned from it. */
struct learner {
    struct tokens text;
    struct vocab vocab;
    struct tokens merges; /* left, right, left, right, ... ; merge i makes token 256 + i */
    uint64_t *pairs;      /* scratch, [text.len] */
};

static void learner_init(struct learner *l, int32_t n_ids)
{
    struct str text = {lesson, sizeof(lesson) - 1};
    size_t end;

    vocab_init(&l->vocab, n_ids, (size_t)n_ids);
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        must_zero(vocab_add(&l->vocab, byte, (struct str){&c, 1}, VOCAB_MERGED));
    }
    for (size_t at = 0; at < text.len; at = end) {
        end = pretokenize_next(text, at);
        for (size_t i = at; i < end; i++)
            tokens_push(&l->text, (unsigned char)text.ptr[i]);
        tokens_push(&l->text, TOKENIZER_NO_ID);
    }
    l->pairs = mem_array(l->text.len, sizeof(*l->pairs));
}

static void learner_fini(struct learner *l)
{
    tokens_fini(&l->text);
    tokens_fini(&l->merges);
    vocab_fini(&l->vocab);
    mem_free(l->pairs);
}

static int compare_pairs(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void append_pair(const struct learner *l, uint64_t pair, struct buf *bytes)
{
    buf_reset(bytes);
    buf_append_str(bytes, vocab_bytes(&l->vocab, (int32_t)(pair >> 32)));
    buf_append_str(bytes, vocab_bytes(&l->vocab, (int32_t)(uint32_t)pair));
}

/* The most frequent pair (smallest ids if equal) whose bytes are no token yet; its count, or 0
 * when nothing is left to merge. */
static size_t find_pair(struct learner *l, uint64_t *best, struct buf *bytes)
{
    size_t n = 0, most = 0, run = 0;

    for (size_t i = 0; i + 1 < l->text.len; i++)
        if (l->text.ids[i] >= 0 && l->text.ids[i + 1] >= 0)
            l->pairs[n++] = (uint64_t)l->text.ids[i] << 32 | (uint32_t)l->text.ids[i + 1];
    qsort(l->pairs, n, sizeof(*l->pairs), compare_pairs);
    for (size_t i = 0; i < n; i++) {
        run = i > 0 && l->pairs[i] == l->pairs[i - 1] ? run + 1 : 1;
        if (run <= most)
            continue;
        append_pair(l, l->pairs[i], bytes);
        if (vocab_find(&l->vocab, buf_str(bytes)) >= 0)
            continue;
        most = run;
        *best = l->pairs[i];
    }
    return most;
}

static void apply_merge(struct learner *l, int32_t left, int32_t right, int32_t merged)
{
    size_t n = 0;

    for (size_t i = 0; i < l->text.len; i++) {
        int32_t id = l->text.ids[i];
        if (id == left && i + 1 < l->text.len && l->text.ids[i + 1] == right) {
            id = merged;
            i++;
        }
        l->text.ids[n++] = id;
    }
    l->text.len = n;
}

static void learn(struct learner *l)
{
    struct buf bytes = {0};
    uint64_t pair = 0;

    for (int32_t id = 256; id < l->vocab.n_ids && find_pair(l, &pair, &bytes) > 0; id++) {
        append_pair(l, pair, &bytes);
        must_zero(vocab_add(&l->vocab, id, buf_str(&bytes), VOCAB_MERGED));
        tokens_push(&l->merges, (int32_t)(pair >> 32));
        tokens_push(&l->merges, (int32_t)(uint32_t)pair);
        apply_merge(l, (int32_t)(pair >> 32), (int32_t)(uint32_t)pair, id);
    }
    buf_fini(&bytes);
}

/* ---- as JSON ---------------------------------------------------------------------------- */

/* jansson gives NULL only when memory is out, or when a format is our bug. */
static json_t *must_json(json_t *value)
{
    must(value);
    return value;
}

static const char *mapped_text(struct str bytes, struct buf *out)
{
    buf_reset(out);
    for (size_t i = 0; i < bytes.len; i++)
        utf8_append(out, vocab_char_of_byte((unsigned char)bytes.ptr[i]));
    return out->data;
}

/* Added tokens are listed in the vocabulary too: readers that number them by themselves would
 * otherwise continue after the last merge. */
static json_t *vocab_json(const struct learner *l, enum model_family family, int first_added)
{
    json_t *vocab = must_json(json_object());
    struct buf text = {0};

    for (int32_t id = 0; id < l->vocab.n_ids; id++)
        if (vocab_kind_of(&l->vocab, id) == VOCAB_MERGED)
            must_zero(json_object_set_new(vocab, mapped_text(vocab_bytes(&l->vocab, id), &text),
                                          json_integer(id)));
    for (int i = 0; i < tokenizer_write_n_added(family); i++)
        must_zero(json_object_set_new(vocab, added_token(family, i)->text,
                                      json_integer(first_added + i)));
    buf_fini(&text);
    return vocab;
}

static json_t *merges_json(const struct learner *l)
{
    json_t *merges = must_json(json_array());
    struct buf left = {0}, right = {0};

    for (size_t i = 0; i + 1 < l->merges.len; i += 2)
        must_zero(json_array_append_new(
            merges,
            json_pack("[s, s]", mapped_text(vocab_bytes(&l->vocab, l->merges.ids[i]), &left),
                      mapped_text(vocab_bytes(&l->vocab, l->merges.ids[i + 1]), &right))));
    buf_fini(&left);
    buf_fini(&right);
    return merges;
}

static json_t *added_json(enum model_family family, int first_added)
{
    json_t *added = must_json(json_array());

    for (int i = 0; i < tokenizer_write_n_added(family); i++)
        must_zero(json_array_append_new(
            added,
            json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", first_added + i, "content",
                      added_token(family, i)->text, "single_word", 0, "lstrip", 0, "rstrip", 0,
                      "normalized", 0, "special", added_token(family, i)->kind == VOCAB_SPECIAL)));
    return added;
}

static json_t *root_json(const struct learner *l, enum model_family family, int first_added)
{
    json_t *split, *bytes, *model;

    split = json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                      pretokenize_pattern(), "behavior", "Isolated", "invert", 0);
    bytes = json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                      "trim_offsets", 1, "use_regex", 0);
    model = json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE",
                      "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                      "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab",
                      vocab_json(l, family, first_added), "merges", merges_json(l));
    return must_json(json_pack(
        "{s:s, s:n, s:n, s:o, s:n, s:{s:s, s:[o, o]}, s:n, s:{s:s, s:b, s:b, s:b}, s:o}", "version",
        "1.0", "truncation", "padding", "added_tokens", added_json(family, first_added),
        "normalizer", "pre_tokenizer", "type", "Sequence", "pretokenizers", must_json(split),
        must_json(bytes), "post_processor", "decoder", "type", "ByteLevel", "add_prefix_space", 0,
        "trim_offsets", 1, "use_regex", 0, "model", must_json(model)));
}

int tokenizer_write_synthetic(const char *path, int vocab_size, struct err *e)
{
    return tokenizer_write_family(path, MODEL_MINIMAX_M2, vocab_size, e);
}

int tokenizer_write_family(const char *path, enum model_family family, int vocab_size,
                           struct err *e)
{
    struct learner l = {0};
    struct buf file = {0};
    int first_added = vocab_size - tokenizer_write_n_added(family), rc;
    json_t *root;
    char *text;

    if (vocab_size < tokenizer_write_min_vocab(family))
        return err_set(e, E_INVALID,
                       "%s: a tokenizer needs %d ids at least (bytes and markers), not %d", path,
                       tokenizer_write_min_vocab(family), vocab_size);
    learner_init(&l, first_added);
    learn(&l);
    root = root_json(&l, family, first_added);
    text = json_dumps(root, JSON_INDENT(1));
    must(text);
    buf_puts(&file, text);
    buf_putc(&file, '\n');
    rc = buf_write_file(&file, path, e);
    free(text);
    json_decref(root);
    buf_fini(&file);
    learner_fini(&l);
    return rc;
}
