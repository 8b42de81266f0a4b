#include "model/tokenizer_json.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/mem.h"
#include "model/pretokenize.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

/* Largest id that a file may use: four times the largest vocabulary we know of.  It bounds the
 * memory that a damaged file can ask for. */
enum { MAX_ID = (1 << 20) - 1 };

static struct str string_of(const json_t *value)
{
    return (struct str){json_string_value(value), json_string_length(value)};
}

static int quoted(struct str s)
{
    return s.len > 80 ? 80 : (int)s.len;
}

static const char *type_of(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "";
}

static bool is_absent(const json_t *value)
{
    return value == NULL || json_is_null(value);
}

/* The bytes that a string of GPT-2's characters stands for; false if one is outside the map. */
static bool unmap(struct str mapped, struct buf *out)
{
    size_t at = 0, len;
    int32_t code_point;
    int byte;

    buf_reset(out);
    for (; at < mapped.len; at += len) {
        len = utf8_decode(mapped, at, &code_point);
        byte = len > 0 ? vocab_byte_of_char(code_point) : -1;
        if (byte < 0)
            return false;
        buf_putc(out, (char)byte);
    }
    return true;
}

static int read_id(const json_t *value, int32_t *id, struct err *e)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value))
        return err_set(e, E_CORRUPT, "id is not an integer");
    if (number < 0 || number > MAX_ID)
        return err_set(e, E_CORRUPT, "id %lld is outside 0 to %d", (long long)number, MAX_ID);
    *id = (int32_t)number;
    return 0;
}

/* ---- what the file asks for ------------------------------------------------------------- */

static int read_normalizer(const json_t *value, struct tokenizer *t, struct err *e)
{
    const json_t *steps;

    if (is_absent(value))
        return 0;
    if (strcmp(type_of(value), "NFC") == 0) {
        t->form = TOKENIZER_FORM_NFC;
        return 0;
    }
    steps = json_object_get(value, "normalizers");
    if (strcmp(type_of(value), "Sequence") == 0 && json_array_size(steps) == 1)
        return read_normalizer(json_array_get(steps, 0), t, e);
    if (strcmp(type_of(value), "Sequence") == 0 && json_is_array(steps) &&
        json_array_size(steps) == 0)
        return 0;
    return err_set(e, E_UNIMPLEMENTED, "normalizer: type '%.40s' is not supported, only NFC",
                   type_of(value));
}

/* The pattern matches every character, so keeping the matches (Removed, inverted) and cutting
 * around them (Isolated) are the same. */
static int check_split(const json_t *split, struct err *e)
{
    struct str regex = string_of(json_object_get(json_object_get(split, "pattern"), "Regex"));
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    bool inverted = json_is_true(json_object_get(split, "invert"));

    if (!regex.ptr)
        return err_set(e, E_CORRUPT, "pattern.Regex is not a string");
    if (!pretokenize_knows(regex))
        return err_set(e, E_UNIMPLEMENTED,
                       "pattern '%.*s' is not that of MiniMax-M2, the only one supported",
                       quoted(regex), regex.ptr);
    if (!behavior || !(strcasecmp(behavior, "Isolated") == 0 ||
                       (strcasecmp(behavior, "Removed") == 0 && inverted)))
        return err_set(e, E_UNIMPLEMENTED, "behavior '%.40s' is not supported, only Isolated",
                       behavior ? behavior : "");
    return 0;
}

static int check_byte_level(const json_t *step, struct err *e)
{
    /* Both are true where the file leaves them out. */
    if (!json_is_false(json_object_get(step, "add_prefix_space")))
        return err_set(e, E_UNIMPLEMENTED, "add_prefix_space is not false");
    if (!json_is_false(json_object_get(step, "use_regex")))
        return err_set(e, E_UNIMPLEMENTED, "use_regex is not false");
    return 0;
}

static int check_pre_tokenizer(const json_t *value, struct err *e)
{
    const json_t *steps = json_object_get(value, "pretokenizers");
    const json_t *split = json_array_get(steps, 0), *bytes = json_array_get(steps, 1);

    if (strcmp(type_of(value), "Sequence") != 0 || json_array_size(steps) != 2 ||
        strcmp(type_of(split), "Split") != 0 || strcmp(type_of(bytes), "ByteLevel") != 0)
        return err_set(e, E_UNIMPLEMENTED,
                       "pre_tokenizer: not a Sequence of Split and ByteLevel, the only form "
                       "supported");
    if (check_split(split, e) < 0)
        return err_prefix(e, "pre_tokenizer: Split");
    if (check_byte_level(bytes, e) < 0)
        return err_prefix(e, "pre_tokenizer: ByteLevel");
    return 0;
}

static int read_model_options(const json_t *model, struct tokenizer *t, struct err *e)
{
    const char *affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const json_t *dropout = json_object_get(model, "dropout");

    if (!json_is_object(model))
        return err_set(e, E_CORRUPT, "model: not an object");
    if (strcmp(type_of(model), "BPE") != 0)
        return err_set(e, E_UNIMPLEMENTED, "model.type: '%.40s' is not supported, only BPE",
                       type_of(model));
    for (size_t i = 0; i < 2; i++)
        if (json_string_length(json_object_get(model, affixes[i])) > 0)
            return err_set(e, E_UNIMPLEMENTED, "model.%s: not supported", affixes[i]);
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return err_set(e, E_UNIMPLEMENTED,
                       "model.byte_fallback: not supported, only byte-level BPE is");
    if (json_is_number(dropout) && json_number_value(dropout) != 0)
        return err_set(e, E_UNIMPLEMENTED, "model.dropout: not supported");
    if (json_is_true(json_object_get(model, "ignore_merges")))
        t->shortcut = TOKENIZER_WHOLE_PIECES_FIRST;
    return 0;
}

/* ---- vocabulary ------------------------------------------------------------------------- */

/* Whether the list of added tokens has this text with this id: such an entry of the vocabulary
 * may hold any characters, and comes in with its marker. */
static bool is_added_text(const json_t *added, const char *text, int32_t id)
{
    const json_t *token;
    size_t i;

    json_array_foreach(added, i, token)
    {
        const char *content = json_string_value(json_object_get(token, "content"));
        if (content && strcmp(content, text) == 0 &&
            json_integer_value(json_object_get(token, "id")) == id)
            return true;
    }
    return false;
}

static int count_ids(const json_t *vocab, const json_t *added, int32_t *n_ids, struct err *e)
{
    const json_t *value;
    const char *key;
    size_t i;
    int32_t id;

    /* jansson's iteration takes no const object, but changes nothing. */
    json_object_foreach((json_t *)(uintptr_t)vocab, key, value)
    {
        if (read_id(value, &id, e) < 0)
            return err_prefix(e, "model.vocab['%.40s']", key);
        *n_ids = id >= *n_ids ? id + 1 : *n_ids;
    }
    json_array_foreach(added, i, value)
    {
        if (read_id(json_object_get(value, "id"), &id, e) < 0)
            return err_prefix(e, "added_tokens[%zu]", i);
        *n_ids = id >= *n_ids ? id + 1 : *n_ids;
    }
    return 0;
}

static int read_vocab_entry(struct tokenizer *t, const char *key, int32_t id, const json_t *added,
                            struct buf *bytes, struct err *e)
{
    if (is_added_text(added, key, id))
        return 0;
    if (!unmap(str_of(key), bytes))
        return err_set(e, E_CORRUPT, "has a character that stands for no byte");
    if (bytes->len == 0)
        return err_set(e, E_CORRUPT, "is empty");
    if (vocab_add(&t->vocab, id, buf_str(bytes), VOCAB_MERGED) < 0)
        return err_set(e, E_CORRUPT, "id %d is used twice", id);
    return 0;
}

static int read_vocab(struct tokenizer *t, const json_t *vocab, const json_t *added, struct err *e)
{
    struct buf bytes = {0};
    const json_t *value;
    const char *key;
    int rc = 0;

    json_object_foreach((json_t *)(uintptr_t)vocab, key, value)
    {
        rc = read_vocab_entry(t, key, (int32_t)json_integer_value(value), added, &bytes, e);
        if (rc < 0) {
            rc = err_prefix(e, "model.vocab['%.40s']", key);
            goto out;
        }
    }
    for (int byte = 0; byte < 256; byte++) {
        char c = (char)byte;
        t->bpe.byte_ids[byte] = vocab_find(&t->vocab, (struct str){&c, 1});
        if (t->bpe.byte_ids[byte] < 0) {
            rc = err_set(e, E_CORRUPT,
                         "model.vocab: no token for byte 0x%02x, so some texts could not be "
                         "encoded",
                         (unsigned)byte);
            goto out;
        }
    }
out:
    buf_fini(&bytes);
    return rc;
}

/* ---- merges ----------------------------------------------------------------------------- */

/* Both spellings: "left right" and ["left", "right"]. */
static int merge_sides(const json_t *merge, struct str *left, struct str *right, struct err *e)
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        *left = string_of(json_array_get(merge, 0));
        *right = string_of(json_array_get(merge, 1));
    } else if (json_is_string(merge)) {
        struct str both = string_of(merge);
        size_t space = str_find(both, STR(" "));
        if (space == SIZE_MAX)
            return err_set(e, E_CORRUPT, "no space between two tokens");
        *left = (struct str){both.ptr, space};
        *right = (struct str){both.ptr + space + 1, both.len - space - 1};
    } else {
        return err_set(e, E_CORRUPT, "neither \"left right\" nor [\"left\", \"right\"]");
    }
    if (!left->ptr || !right->ptr)
        return err_set(e, E_CORRUPT, "not two strings");
    return 0;
}

static int find_mapped(const struct tokenizer *t, struct str mapped, struct buf *bytes, int32_t *id,
                       struct err *e)
{
    *id = unmap(mapped, bytes) ? vocab_find(&t->vocab, buf_str(bytes)) : -1;
    if (*id < 0)
        return err_set(e, E_CORRUPT, "'%.*s' is not in model.vocab", quoted(mapped), mapped.ptr);
    return 0;
}

static int read_merge(struct tokenizer *t, const json_t *merge, size_t rank, struct buf *scratch,
                      struct err *e)
{
    struct str left, right;
    int32_t left_id, right_id, merged;
    struct buf *bytes = &scratch[0], *both = &scratch[1];

    if (merge_sides(merge, &left, &right, e) < 0 || find_mapped(t, left, bytes, &left_id, e) < 0 ||
        find_mapped(t, right, bytes, &right_id, e) < 0)
        return E_CORRUPT;
    buf_reset(both);
    buf_append_str(both, left);
    buf_append_str(both, right);
    if (find_mapped(t, buf_str(both), bytes, &merged, e) < 0)
        return E_CORRUPT;
    if (!bpe_add(&t->bpe, left_id, right_id, (uint32_t)rank, merged))
        return err_set(e, E_CORRUPT, "'%.*s' and '%.*s' are merged a second time", quoted(left),
                       left.ptr, quoted(right), right.ptr);
    return 0;
}

static int read_merges(struct tokenizer *t, const json_t *merges, struct err *e)
{
    struct buf scratch[2] = {{0}};
    const json_t *merge;
    size_t i;
    int rc = 0;

    json_array_foreach(merges, i, merge)
    {
        rc = read_merge(t, merge, i, scratch, e);
        if (rc < 0) {
            rc = err_prefix(e, "model.merges[%zu]", i);
            break;
        }
    }
    buf_fini(&scratch[0]);
    buf_fini(&scratch[1]);
    return rc;
}

static int check_merges(const struct tokenizer *t, const json_t *merges, struct err *e)
{
    if (!is_absent(merges) && !json_is_array(merges))
        return err_set(e, E_CORRUPT, "model.merges: not an array");
    if (json_array_size(merges) == 0 && t->vocab.n_tokens > 256)
        return err_set(e, E_CORRUPT,
                       "model.merges: tokenizer without merges; take the tokenizer.json of the "
                       "model's publisher, which has them");
    return 0;
}

/* ---- added tokens ----------------------------------------------------------------------- */

static int read_added_token(struct tokenizer *t, const json_t *token, struct err *e)
{
    struct str content = string_of(json_object_get(token, "content"));
    const char *widening[] = {"lstrip", "rstrip", "single_word"};
    int32_t id = (int32_t)json_integer_value(json_object_get(token, "id")), present;
    enum vocab_kind kind =
        json_is_true(json_object_get(token, "special")) ? VOCAB_SPECIAL : VOCAB_ADDED;

    if (!content.ptr || content.len == 0)
        return err_set(e, E_CORRUPT, "content is not a string with characters");
    for (size_t i = 0; i < 3; i++)
        if (json_is_true(json_object_get(token, widening[i])))
            return err_set(e, E_UNIMPLEMENTED, "'%.*s': %s is not supported", quoted(content),
                           content.ptr, widening[i]);
    if (vocab_add(&t->vocab, id, content, kind) == 0)
        return 0;
    present = vocab_find(&t->vocab, content);
    if (present >= 0)
        return err_set(e, E_CORRUPT, "'%.*s' has id %d and also id %d", quoted(content),
                       content.ptr, id, present);
    return err_set(e, E_CORRUPT, "'%.*s' has id %d, which another token has already",
                   quoted(content), content.ptr, id);
}

/* qsort() has no context argument in C11, so what is sorted carries its text. */
struct marker {
    struct str text;
    int32_t id;
};

static int compare_markers(const void *a, const void *b)
{
    const struct marker *x = a, *y = b;
    int order = (unsigned char)x->text.ptr[0] - (unsigned char)y->text.ptr[0];

    if (order != 0)
        return order;
    return (x->text.len < y->text.len) - (x->text.len > y->text.len);
}

static void index_markers(struct tokenizer *t, const json_t *added)
{
    size_t n = json_array_size(added), next = 0;
    struct marker *sorted = mem_array(n + 1, sizeof(*sorted));

    for (size_t i = 0; i < n; i++) {
        const json_t *token = json_array_get(added, i);
        sorted[i].id = (int32_t)json_integer_value(json_object_get(token, "id"));
        sorted[i].text = vocab_bytes(&t->vocab, sorted[i].id);
    }
    qsort(sorted, n, sizeof(*sorted), compare_markers);
    t->markers = mem_array(n + 1, sizeof(*t->markers));
    for (unsigned c = 0; c < 256; c++) {
        t->first_marker[c] = (uint32_t)next;
        for (; next < n && (unsigned char)sorted[next].text.ptr[0] == c; next++)
            t->markers[next] = sorted[next].id;
    }
    t->first_marker[256] = (uint32_t)next;
    mem_free(sorted);
}

static int read_added(struct tokenizer *t, const json_t *added, struct err *e)
{
    const json_t *token;
    size_t i;

    json_array_foreach(added, i, token) if (read_added_token(t, token, e) <
                                            0) return err_prefix(e, "added_tokens[%zu]", i);
    index_markers(t, added);
    return 0;
}

/* ---- the whole -------------------------------------------------------------------------- */

static int read_root(const json_t *root, struct tokenizer *t, struct err *e)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *vocab = json_object_get(model, "vocab");
    const json_t *merges = json_object_get(model, "merges");
    const json_t *added = json_object_get(root, "added_tokens");
    int32_t n_ids = 0;
    int rc;

    if (!json_is_object(root))
        return err_set(e, E_CORRUPT, "not a JSON object");
    if ((rc = read_model_options(model, t, e)) < 0 ||
        (rc = read_normalizer(json_object_get(root, "normalizer"), t, e)) < 0 ||
        (rc = check_pre_tokenizer(json_object_get(root, "pre_tokenizer"), e)) < 0)
        return rc;
    if (!json_is_object(vocab))
        return err_set(e, E_CORRUPT, "model.vocab: not an object");
    if (!is_absent(added) && !json_is_array(added))
        return err_set(e, E_CORRUPT, "added_tokens: not an array");
    if ((rc = count_ids(vocab, added, &n_ids, e)) < 0)
        return rc;
    vocab_init(&t->vocab, n_ids, json_object_size(vocab) + json_array_size(added));
    bpe_init(&t->bpe, json_array_size(merges));
    if ((rc = read_vocab(t, vocab, added, e)) < 0 || (rc = check_merges(t, merges, e)) < 0 ||
        (rc = read_merges(t, merges, e)) < 0)
        return rc;
    return read_added(t, added, e);
}

int tokenizer_json_read(struct str json, struct tokenizer *t, struct err *e)
{
    json_error_t where;
    json_t *root = json_loadb(json.ptr, json.len, JSON_REJECT_DUPLICATES, &where);
    int rc;

    if (!root)
        return err_set(e, E_CORRUPT, "line %d, column %d: %s", where.line, where.column,
                       where.text);
    rc = read_root(root, t, e);
    json_decref(root);
    return rc;
}
