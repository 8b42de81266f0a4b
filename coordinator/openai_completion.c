/* coordinator/openai_completion.c - /v1/completions: one prompt or several, as text or ids; see openai.h.
 *
 * Infill ("suffix") is the form that the vocabulary's markers stand for: <fim_prefix>, what is before the
 * gap, <fim_suffix>, what is behind it, <fim_middle>. */
#include <string.h>

#include "base/mem.h"
#include "coordinator/openai_json.h"

struct prompts {
    struct tokens *list;
    int n;
};

static void prompts_fini(struct prompts *p)
{
    for (int i = 0; i < p->n; i++)
        tokens_fini(&p->list[i]);
    mem_free(p->list);
}

static int parse_ids(const struct openai_model *m, const json_t *ids, struct tokens *out,
                     struct openai_error *e)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *v = json_array_get(ids, i);
        if (!json_is_integer(v))
            return openai_refuse(e, "type", "prompt", "prompt[%zu] must be a token id, not %s", i,
                                 json_type_name(v));
        json_int_t id = json_integer_value(v);
        if (id < 0 || id >= m->config->vocab_size)
            return openai_refuse(e, "range", "prompt",
                                 "prompt[%zu] is %lld; token ids are from 0 to %d", i,
                                 (long long)id, m->config->vocab_size - 1);
        tokens_push(out, (int32_t)id);
    }
    return 0;
}

static int parse_text(const struct openai_model *m, const json_t *text,
                      enum tokenizer_markers markers, struct tokens *out, struct openai_error *e)
{
    if (!m->tokenizer)
        return openai_refuse(e, "unsupported", "prompt",
                             "this model has no tokenizer.json: give the prompt as token ids");
    if (tokenizer_encode(m->tokenizer, json_str(text), markers, out) < 0)
        return openai_refuse(e, "range", "prompt", "the prompt's text is too long");
    return 0;
}

/* The text around the gap is the client's file: what spells a marker in it is letters. */
static int parse_infill(const struct openai_model *m, const json_t *before, const json_t *behind,
                        struct tokens *out, struct openai_error *e)
{
    static const char *const names[] = {"<fim_prefix>", "<fim_suffix>", "<fim_middle>"};
    const json_t *texts[] = {before, behind, NULL};
    int rc = 0;
    for (int i = 0; rc == 0 && i < 3; i++) {
        int32_t id =
            m->tokenizer ? tokenizer_find(m->tokenizer, str_of(names[i])) : TOKENIZER_NO_ID;
        if (id == TOKENIZER_NO_ID || !tokenizer_is_added(m->tokenizer, id))
            return openai_refuse(e, "unsupported", "suffix",
                                 "suffix: this model has no infill format (no %s in its "
                                 "vocabulary); put what follows into the prompt",
                                 names[i]);
        tokens_push(out, id);
        if (texts[i])
            rc = parse_text(m, texts[i], TOKENIZER_PLAIN, out, e);
    }
    return rc;
}

static int parse_one(const struct openai_model *m, const json_t *prompt, const json_t *suffix,
                     struct tokens *out, struct openai_error *e)
{
    int rc;
    if (suffix && !json_is_string(prompt))
        return openai_refuse(e, "type", "suffix", "suffix needs a prompt that is text");
    if (suffix)
        rc = parse_infill(m, prompt, suffix, out, e);
    else if (json_is_string(prompt))
        /* As the publisher's tokenizer does with a raw text: markers in it are markers. */
        rc = parse_text(m, prompt, TOKENIZER_WITH_MARKERS, out, e);
    else if (json_is_array(prompt))
        rc = parse_ids(m, prompt, out, e);
    else
        rc = openai_refuse(e, "type", "prompt",
                           "prompt must be a string, an array of token ids, or an array of these, "
                           "not %s",
                           json_type_name(prompt));
    return rc < 0 ? rc : openai_check_prompt(m, out, e);
}

static int parse_prompts(const struct openai_model *m, const json_t *body, const struct request *r,
                         struct prompts *out, struct openai_error *e)
{
    const json_t *prompt = json_field(body, "prompt"), *suffix = json_field(body, "suffix");
    if (!prompt)
        return openai_refuse(e, "missing", "prompt", "prompt is missing");
    if (suffix && !json_is_string(suffix))
        return openai_refuse(e, "type", "suffix", "suffix must be a string, not %s",
                             json_type_name(suffix));
    if (suffix && json_string_length(suffix) == 0)
        suffix = NULL;
    const json_t *first = json_array_get(prompt, 0);
    bool is_many = first && !json_is_integer(first);
    size_t n = is_many ? json_array_size(prompt) : 1;
    if (n * (size_t)r->n_tried > REQUEST_MAX_CHOICES)
        return openai_refuse(e, "range", "prompt",
                             "%zu prompts with %d answers each: one request has at most %d", n,
                             r->n_tried, REQUEST_MAX_CHOICES);
    out->list = mem_array(n, sizeof *out->list);
    int rc = 0;
    while (rc == 0 && out->n < (int)n) {
        const json_t *one = is_many ? json_array_get(prompt, (size_t)out->n) : prompt;
        rc = parse_one(m, one, suffix, &out->list[out->n++], e);
    }
    return rc;
}

static int parse_best_of(const json_t *body, struct request *r, struct openai_error *e)
{
    int64_t best_of = r->n_wanted;
    int rc = json_read_int(body, "best_of", 1, REQUEST_MAX_CHOICES, &best_of, e);
    if (rc < 0)
        return rc;
    if (best_of < r->n_wanted)
        return openai_refuse(e, "range", "best_of", "best_of is %lld; it must be at least n (%d)",
                             (long long)best_of, r->n_wanted);
    if (best_of > r->n_wanted && r->streams)
        return openai_refuse(e, "unsupported", "best_of",
                             "best_of more than n cannot be streamed: which is best is known at "
                             "the end");
    r->n_tried = (int)best_of;
    return 0;
}

static int parse_logprobs(const json_t *body, struct request *r, struct openai_error *e)
{
    int64_t n_top = -1;
    int rc = json_read_int(body, "logprobs", 0, SAMPLING_MAX_TOP, &n_top, e);
    if (rc == 0 && n_top >= 0) {
        r->wants_logprobs = r->sampling.logprobs = true;
        r->sampling.n_top = (int)n_top;
    }
    return rc;
}

static int parse_echo(const struct openai_model *m, const json_t *body, struct request *r,
                      struct openai_error *e)
{
    const json_t *suffix = json_field(body, "suffix");
    int rc = json_read_bool(body, "echo", &r->echoes, e);
    if (rc < 0 || !r->echoes)
        return rc;
    if (!m->tokenizer)
        return openai_refuse(e, "unsupported", "echo",
                             "echo needs a tokenizer, and this model has none");
    if (r->wants_logprobs)
        return openai_refuse(e, "unsupported", "echo",
                             "echo with logprobs is not supported: this server computes no "
                             "log-probabilities of prompts");
    if (json_string_length(suffix) > 0)
        return openai_refuse(e, "unsupported", "echo", "echo and suffix do not go together");
    return 0;
}

static int parse_body(const struct openai_model *m, const json_t *body, struct request *r,
                      struct openai_error *e)
{
    struct prompts prompts = {0};
    int rc = openai_parse_common(m, body, r, e);
    if (rc == 0 && json_field(body, "response_format"))
        rc = openai_refuse(
            e, "unsupported", "response_format",
            "response_format is not supported here; it belongs to /v1/chat/completions");
    if (rc == 0)
        rc = parse_best_of(body, r, e);
    if (rc == 0)
        rc = parse_logprobs(body, r, e);
    if (rc == 0)
        rc = parse_echo(m, body, r, e);
    if (rc == 0)
        rc = parse_prompts(m, body, r, &prompts, e);
    if (rc == 0) {
        r->prompt = prompts.list[0];
        request_spread(r, prompts.list + 1, prompts.n - 1);
        prompts.n = 0;
    }
    prompts_fini(&prompts);
    return rc;
}

int openai_parse_completion(const struct openai_model *m, struct str text, struct request *r,
                            struct openai_error *e)
{
    json_t *body;
    int rc = json_body(text, &body, e);
    if (rc < 0)
        return rc;
    rc = parse_body(m, body, r, e);
    json_decref(body);
    return rc;
}
