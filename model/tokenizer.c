#include "model/tokenizer.h"

#include "base/err.h"
#include "base/mem.h"
#include "model/bpe.h"
#include "model/normalize.h"
#include "model/pretokenize.h"
#include "model/tokenizer_json.h"
#include "model/vocab.h"

/* M2's file has about 10 MB. */
#define FILE_LIMIT_BYTES ((size_t)256 << 20)

void tokens_fini(struct tokens *t)
{
    mem_free(t->ids);
    *t = (struct tokens){0};
}

void tokens_reset(struct tokens *t)
{
    t->len = 0;
}

void tokens_push(struct tokens *t, int32_t id)
{
    if (t->len == t->size) {
        t->size = t->size == 0 ? 64 : 2 * t->size;
        t->ids = mem_resize(t->ids, t->size * sizeof(*t->ids));
    }
    t->ids[t->len++] = id;
}

int tokenizer_parse(struct str json, const char *name, struct tokenizer **out, struct err *e)
{
    struct tokenizer *t = mem_alloc(sizeof(*t));
    int rc = tokenizer_json_read(json, t, e);

    *out = NULL;
    if (rc < 0) {
        tokenizer_free(&t);
        err_prefix(e, "%s", name);
        return rc;
    }
    *out = t;
    return 0;
}

int tokenizer_open(const char *model_dir, struct tokenizer **out, struct err *e)
{
    char *path = mem_format("%s/tokenizer.json", model_dir);
    struct buf json = {0};
    int rc = buf_read_file(&json, path, FILE_LIMIT_BYTES, e);

    *out = NULL;
    if (rc == 0)
        rc = tokenizer_parse(buf_str(&json), path, out, e);
    buf_fini(&json);
    mem_free(path);
    return rc;
}

void tokenizer_free(struct tokenizer **t)
{
    if (!*t)
        return;
    vocab_fini(&(*t)->vocab);
    bpe_fini(&(*t)->bpe);
    mem_free((*t)->markers);
    mem_free(*t);
    *t = NULL;
}

/* What one call of tokenizer_encode() works with. */
struct encoding {
    const struct tokenizer *tokenizer;
    struct bpe_scratch scratch;
    struct buf composed;
    struct tokens *out;
};

static void encode_piece(struct encoding *x, struct str piece)
{
    const struct tokenizer *t = x->tokenizer;

    if (t->shortcut == TOKENIZER_WHOLE_PIECES_FIRST) {
        int32_t id = vocab_find(&t->vocab, piece);
        if (vocab_kind_of(&t->vocab, id) == VOCAB_MERGED) {
            tokens_push(x->out, id);
            return;
        }
    }
    bpe_encode(&t->bpe, piece, &x->scratch, x->out);
}

static void encode_plain(struct encoding *x, struct str text)
{
    size_t at = 0, end;

    if (x->tokenizer->form == TOKENIZER_FORM_NFC) {
        buf_reset(&x->composed);
        normalize_nfc(text, &x->composed);
        text = buf_str(&x->composed);
    }
    for (; at < text.len; at = end) {
        end = pretokenize_next(text, at);
        encode_piece(x, (struct str){text.ptr + at, end - at});
    }
}

/* The longest added token that starts the text, or TOKENIZER_NO_ID. */
static int32_t marker_at_start(const struct tokenizer *t, struct str text)
{
    unsigned c = (unsigned char)text.ptr[0];

    for (uint32_t i = t->first_marker[c]; i < t->first_marker[c + 1]; i++)
        if (str_has_prefix(text, vocab_bytes(&t->vocab, t->markers[i])))
            return t->markers[i];
    return TOKENIZER_NO_ID;
}

static void encode_with_markers(struct encoding *x, struct str text)
{
    size_t plain = 0, at = 0;

    while (at < text.len) {
        int32_t id = marker_at_start(x->tokenizer, (struct str){text.ptr + at, text.len - at});
        if (id == TOKENIZER_NO_ID) {
            at++;
            continue;
        }
        encode_plain(x, (struct str){text.ptr + plain, at - plain});
        tokens_push(x->out, id);
        at += vocab_bytes(&x->tokenizer->vocab, id).len;
        plain = at;
    }
    encode_plain(x, (struct str){text.ptr + plain, at - plain});
}

int tokenizer_encode(const struct tokenizer *t, struct str text, enum tokenizer_markers markers,
                     struct tokens *out)
{
    struct encoding x = {.tokenizer = t, .out = out};

    if (text.len > TOKENIZER_TEXT_LIMIT_BYTES)
        return E_RANGE;
    if (markers == TOKENIZER_WITH_MARKERS)
        encode_with_markers(&x, text);
    else
        encode_plain(&x, text);
    bpe_scratch_fini(&x.scratch);
    buf_fini(&x.composed);
    return 0;
}

struct str tokenizer_token_bytes(const struct tokenizer *t, int32_t id)
{
    return vocab_bytes(&t->vocab, id);
}

bool tokenizer_is_added(const struct tokenizer *t, int32_t id)
{
    enum vocab_kind kind = vocab_kind_of(&t->vocab, id);
    return kind == VOCAB_ADDED || kind == VOCAB_SPECIAL;
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return vocab_kind_of(&t->vocab, id) == VOCAB_SPECIAL;
}

void tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t n_ids,
                      enum tokenizer_decode what, struct buf *out)
{
    for (size_t i = 0; i < n_ids; i++)
        if (what == TOKENIZER_KEEP_SPECIAL || !tokenizer_is_special(t, ids[i]))
            buf_append_str(out, tokenizer_token_bytes(t, ids[i]));
}

int32_t tokenizer_find(const struct tokenizer *t, struct str bytes)
{
    return vocab_find(&t->vocab, bytes);
}

int tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->vocab.n_ids;
}
