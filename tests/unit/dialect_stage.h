/* tests/unit/dialect_stage.h - a model without weights, a request and what it answers: where the tests of the
 * APIs' forms play.  Each file that includes it has a stage of its own. */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "coordinator/openai.h"
#include "model/tokenizer_write.h"
#include "tests/lib/test.h"

enum { VOCAB = 900 };
static struct model_config config = {
    .vocab_size = VOCAB, .temperature = 1.0, .top_p = 0.95, .top_k_sampling = 40};
static struct tokenizer *words;
static struct chat chat;
static struct openai_model model;
static struct request r;
static struct openai_error error;
static struct buf out;

static inline void begin(int max_positions)
{
    struct err e = {0};
    config.max_positions = max_positions;
    if (tokenizer_write_synthetic("tokenizer.json", VOCAB, &e) < 0 ||
        tokenizer_open(".", &words, &e) < 0 || chat_init(&chat, words, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    model = (struct openai_model){
        .name = "org/tiny", .config = &config, .tokenizer = words, .chat = &chat, .created_s = 5};
}

static inline void finish(void)
{
    request_fini(&r);
    buf_fini(&out);
    tokenizer_free(&words);
}

static inline void begin_request(enum request_kind kind)
{
    request_fini(&r);
    request_init(&r, kind, 7, 100);
    error = (struct openai_error){0};
}

static inline struct buf prompt_text(void)
{
    struct buf text = {0};
    tokenizer_decode(words, r.prompt.ids, r.prompt.len, TOKENIZER_KEEP_SPECIAL, &text);
    return text;
}

static inline void token(int32_t id, enum sched_finish finish_)
{
    struct sampled s = {.token = id};
    if (r.state == REQUEST_RECEIVED) {
        request_queued(&r);
        request_started(&r);
    }
    request_token(&r, &s, finish_);
}

static inline struct tokens ids_of(const char *text)
{
    struct tokens ids = {0};
    CHECK_INT(tokenizer_encode(words, str_of(text), TOKENIZER_WITH_MARKERS, &ids), 0);
    tokens_push(&ids, chat_end_id(&chat));
    return ids;
}

static inline void say(const char *text, enum sched_finish finish_)
{
    struct tokens ids = ids_of(text);
    for (size_t i = 0; i < ids.len && !request_is_over(&r); i++)
        token(ids.ids[i], i + 1 < ids.len ? SCHED_GOES_ON : finish_);
    tokens_fini(&ids);
}
