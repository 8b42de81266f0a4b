/* coordinator/openai_tokenize.c - /tokenize and /detokenize; see openai.h. */
#include "coordinator/json_write.h"
#include "coordinator/openai.h"
#include "coordinator/openai_json.h"

static int need_words(const struct openai_model *m, struct openai_error *e)
{
    return m->tokenizer ? 0
                        : openai_refuse(e, "unsupported", "", "this model has no tokenizer.json");
}

static int tokenize(const struct openai_model *m, const json_t *body, struct tokens *out,
                    struct openai_error *e)
{
    const json_t *prompt = json_field(body, "prompt");
    bool markers = true;
    int rc = need_words(m, e);
    if (rc == 0)
        rc = json_read_bool(body, "markers", &markers, e);
    if (rc < 0)
        return rc;
    if (!json_is_string(prompt))
        return openai_refuse(e, "type", "prompt", "prompt must be a string, or give messages");
    if (tokenizer_encode(m->tokenizer, json_str(prompt),
                         markers ? TOKENIZER_WITH_MARKERS : TOKENIZER_PLAIN, out) < 0)
        return openai_refuse(e, "range", "prompt", "the prompt's text is too long");
    return 0;
}

int openai_tokenize(const struct openai_model *m, struct str text, struct buf *out,
                    struct openai_error *e)
{
    json_t *body;
    struct request r;
    int rc = json_body(text, &body, e);
    if (rc < 0)
        return rc;
    request_init(&r, REQUEST_CHAT, 0, 0);
    rc = json_field(body, "messages") ? openai_parse_chat(m, text, &r, e)
                                      : tokenize(m, body, &r.prompt, e);
    if (rc == 0) {
        json_t *root = json_object(), *ids = json_array();
        for (size_t i = 0; i < r.prompt.len; i++)
            json_push(ids, json_integer(r.prompt.ids[i]));
        json_put(root, "count", json_integer((json_int_t)r.prompt.len));
        json_put(root, "max_model_len", json_integer(m->config->max_positions));
        json_put(root, "tokens", ids);
        json_write(root, out);
    }
    request_fini(&r);
    json_decref(body);
    return rc;
}

static int detokenize(const struct openai_model *m, const json_t *body, struct buf *text,
                      struct openai_error *e)
{
    const json_t *ids = json_field(body, "tokens");
    int rc = need_words(m, e);
    if (rc < 0)
        return rc;
    if (!json_is_array(ids))
        return openai_refuse(e, "type", "tokens", "tokens must be an array of token ids");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        if (id < 0 || id >= m->config->vocab_size)
            return openai_refuse(e, "range", "tokens",
                                 "tokens[%zu] is no token id; they are from 0 to %d", i,
                                 m->config->vocab_size - 1);
        buf_append_str(text, tokenizer_token_bytes(m->tokenizer, (int32_t)id));
    }
    return 0;
}

int openai_detokenize(const struct openai_model *m, struct str body_text, struct buf *out,
                      struct openai_error *e)
{
    json_t *body;
    struct buf text = {0};
    int rc = json_body(body_text, &body, e);
    if (rc < 0)
        return rc;
    rc = detokenize(m, body, &text, e);
    if (rc == 0) {
        json_t *root = json_object();
        json_put(root, "prompt", json_text(buf_str(&text)));
        json_write(root, out);
    }
    buf_fini(&text);
    json_decref(body);
    return rc;
}
