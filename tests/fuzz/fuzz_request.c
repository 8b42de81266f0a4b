/* tests/fuzz/fuzz_request.c - a request body is outside data: any bytes, a request or one error.
 *
 * First byte: bit 1 without a tokenizer, bit 0 and bits 2 to 4 which kind of request; the rest is the body.  An accepted
 * request gets a few tokens and must give answers that are JSON. */
#include "tests/lib/fuzz.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/err.h"
#include "base/must.h"
#include "coordinator/dialect.h"
#include "model/tokenizer_write.h"

enum { VOCAB = 900 };
static const struct model_config config = {.vocab_size = VOCAB,
                                           .max_positions = 2000,
                                           .temperature = 1.0,
                                           .top_p = 0.95,
                                           .top_k_sampling = 40};
static struct tokenizer *words;
static struct chat chat;

static void open_words(void)
{
    char dir[] = "words-XXXXXX";
    struct err e = {0};
    char path[64];
    must(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    must_zero(tokenizer_write_synthetic(path, VOCAB, &e));
    must_zero(tokenizer_open(dir, &words, &e));
    must_zero(chat_init(&chat, words, &e));
    unlink(path);
    rmdir(dir);
}

static void check_json(const char *text)
{
    json_t *v = json_loads(text, JSON_ALLOW_NUL, NULL); /* a byte token may be 0 */
    must(v);
    json_decref(v);
}

static void answer(const struct openai_model *m, struct request *r)
{
    struct buf out = {0};
    for (struct request *c = r; c; c = c->next)
        c->max_tokens = 4;
    request_queued(r);
    for (struct request *c = r; c; c = c->next) {
        request_started(c);
        for (int i = 0; c->state != REQUEST_DONE; i++) {
            struct sampled s = {.token = c->prompt.ids[(size_t)i % c->prompt.len]};
            request_token(c, &s, i == 3 ? SCHED_LENGTH : SCHED_GOES_ON);
        }
    }
    must(request_is_over(r));
    dialect_write_events(m, r, &out);
    buf_reset(&out);
    dialect_write_reply(m, r, &out);
    check_json(out.data);
    buf_fini(&out);
}

FUZZ(request)
{
    if (bytes == 0)
        return;
    if (!words)
        open_words();
    /* 0 and 1 are what they were when the corpus was made. */
    enum request_kind kinds[] = {REQUEST_COMPLETION, REQUEST_CHAT, REQUEST_MESSAGES,
                                 REQUEST_RESPONSES};
    bool has_words = !(data[0] & 2);
    enum request_kind kind = kinds[((data[0] & 1) + (data[0] >> 2)) % 4];
    struct openai_model m = {.name = "m",
                             .config = &config,
                             .tokenizer = has_words ? words : NULL,
                             .chat = has_words ? &chat : NULL};
    struct str body = {(const char *)data + 1, bytes - 1};
    struct openai_error e = {0};
    struct request r;
    request_init(&r, kind, 1, 0);
    if (dialect_parse(&m, body, &r, &e) == 0) {
        must(r.prompt.len > 0 && r.prompt.len < (size_t)config.max_positions);
        answer(&m, &r);
    } else {
        struct buf out = {0};
        must(e.status >= 400 && e.message[0] && e.reason);
        dialect_write_error(kind, &e, &out);
        check_json(out.data);
        buf_fini(&out);
    }
    request_fini(&r);
}
