/* coordinator/token_log.c - see token_log.h.  Numbers are little-endian; a string is its length
 * (u32) and its bytes.  A later version may append fields: what follows is not looked at. */
#include "coordinator/token_log.h"

#include <string.h>
#include <xxhash.h>

#include "base/err.h"

/* ---- numbers and strings ------------------------------------------------------------- */

static void put(struct buf *out, uint64_t v, int bytes)
{
    for (int i = 0; i < bytes; i++)
        buf_putc(out, (char)(v >> (8 * i)));
}

static void put_float(struct buf *out, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    put(out, bits, 4);
}

static void put_str(struct buf *out, struct str s)
{
    put(out, s.len, 4);
    buf_append_str(out, s);
}

/* What is left of a record; `bad` once something was missing. */
struct reader {
    struct str left;
    bool bad;
};

static uint64_t get(struct reader *r, int bytes)
{
    uint64_t v = 0;
    if (r->bad || r->left.len < (size_t)bytes) {
        r->bad = true;
        return 0;
    }
    for (int i = 0; i < bytes; i++)
        v |= (uint64_t)(unsigned char)r->left.ptr[i] << (8 * i);
    r->left.ptr += bytes;
    r->left.len -= (size_t)bytes;
    return v;
}

static float get_float(struct reader *r)
{
    uint32_t bits = (uint32_t)get(r, 4);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static struct str get_str(struct reader *r)
{
    size_t len = (size_t)get(r, 4);
    struct str s = {r->left.ptr, len};
    if (r->bad || len > r->left.len) {
        r->bad = true;
        return STR("");
    }
    r->left.ptr += len;
    r->left.len -= len;
    return s;
}

/* ---- records --------------------------------------------------------------------------- */

void token_log_write_model(const struct token_log_model *m, struct buf *out)
{
    put(out, m->fingerprint, 8);
    put_str(out, m->formats);
    put_str(out, m->combine);
}

bool token_log_read_model(struct str payload, struct token_log_model *out)
{
    struct reader r = {.left = payload};
    out->fingerprint = get(&r, 8);
    out->formats = get_str(&r);
    out->combine = get_str(&r);
    return !r.bad;
}

void token_log_write_request(const struct token_log_request *q, struct buf *out)
{
    put(out, q->seq, 8);
    put(out, q->owner, 8);
    put(out, q->kind, 1);
    put(out, (uint64_t)q->created_s, 8);
    put(out, q->seed, 8);
    put(out, q->prompt_hash, 8);
    put(out, q->max_tokens, 4);
    put_str(out, q->key);
    put_str(out, q->body);
}

bool token_log_read_request(struct str payload, struct token_log_request *out)
{
    struct reader r = {.left = payload};
    out->seq = get(&r, 8);
    out->owner = get(&r, 8);
    uint64_t kind = get(&r, 1);
    out->kind = kind < REQUEST_KINDS ? (enum request_kind)kind : REQUEST_CHAT;
    out->created_s = (int64_t)get(&r, 8);
    out->seed = get(&r, 8);
    out->prompt_hash = get(&r, 8);
    out->max_tokens = (uint32_t)get(&r, 4);
    out->key = get_str(&r);
    out->body = get_str(&r);
    return !r.bad && kind < REQUEST_KINDS && out->max_tokens > 0;
}

void token_log_write_token(const struct token_log_token *t, struct buf *out)
{
    const struct sampled *s = &t->sampled;
    put(out, t->seq, 8);
    put(out, t->index, 4);
    put(out, t->finish, 1);
    put(out, (uint32_t)s->token, 4);
    put(out, t->is_full, 1);
    if (t->is_full) {
        put_float(out, s->logprob);
        put(out, s->logits_hash, 8);
        put(out, (uint64_t)s->n_top, 1);
        for (int i = 0; i < s->n_top; i++) {
            put(out, (uint32_t)s->top[i].token, 4);
            put_float(out, s->top[i].logprob);
        }
    }
    if (t->index > 0 && t->choice == 0 && !t->is_degraded)
        return;
    put(out, t->choice, 2);
    put(out, t->n_cached, 4);
    if (t->is_degraded)
        put(out, 1, 1);
}

/* Most tokens have none of this, and earlier versions wrote it for none. */
static bool read_place(struct reader *r, struct token_log_token *out)
{
    if (r->bad || r->left.len == 0)
        return !r->bad;
    out->choice = (uint32_t)get(r, 2);
    out->n_cached = (uint32_t)get(r, 4);
    if (!r->bad && r->left.len > 0)
        out->is_degraded = get(r, 1) != 0;
    return !r->bad;
}

bool token_log_read_token(struct str payload, struct token_log_token *out)
{
    struct reader r = {.left = payload};
    struct sampled *s = &out->sampled;
    *out = (struct token_log_token){0};
    out->seq = get(&r, 8);
    out->index = (uint32_t)get(&r, 4);
    uint64_t finish = get(&r, 1), token = get(&r, 4), is_full = get(&r, 1);
    if (r.bad || finish > SCHED_LENGTH || token > INT32_MAX || is_full > 1)
        return false;
    out->finish = (enum sched_finish)finish;
    out->is_full = is_full;
    s->token = (int32_t)token;
    if (!is_full)
        return read_place(&r, out);
    s->logprob = get_float(&r);
    s->logits_hash = get(&r, 8);
    uint64_t n_top = get(&r, 1);
    if (n_top > SAMPLING_MAX_TOP)
        return false;
    s->n_top = (int)n_top;
    for (int i = 0; i < s->n_top; i++) {
        uint64_t id = get(&r, 4);
        s->top[i].token = id <= INT32_MAX ? (int32_t)id : 0;
        s->top[i].logprob = get_float(&r);
        r.bad |= id > INT32_MAX;
    }
    return read_place(&r, out);
}

void token_log_write_end(const struct token_log_end *e, struct buf *out)
{
    put(out, e->seq, 8);
    put(out, e->outcome, 1);
    put(out, e->n_tokens, 4);
    put(out, (uint64_t)e->unix_us, 8);
    put(out, (uint64_t)-e->code, 1);
    put_str(out, e->text);
}

bool token_log_read_end(struct str payload, struct token_log_end *out)
{
    struct reader r = {.left = payload};
    out->seq = get(&r, 8);
    uint64_t outcome = get(&r, 1);
    out->n_tokens = (uint32_t)get(&r, 4);
    out->unix_us = (int64_t)get(&r, 8);
    out->code = -(int)get(&r, 1);
    out->text = get_str(&r);
    if (!!r.bad || outcome > TOKEN_LOG_FORGOTTEN)
        return false;
    out->outcome = (enum token_log_outcome)outcome;
    return true;
}

uint64_t token_log_prompt_hash(const struct request *r)
{
    uint64_t hash = XXH3_64bits(r->prompt.ids, r->prompt.len * sizeof *r->prompt.ids);
    for (const struct request *c = r->next; c; c = c->next)
        if (!c->borrows_prompt)
            hash = XXH3_64bits_withSeed(c->prompt.ids, c->prompt.len * sizeof *c->prompt.ids, hash);
    return hash;
}
