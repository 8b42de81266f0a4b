/* coordinator/openai.c - what every generating endpoint has in common; see openai.h. */
#include "coordinator/openai.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "coordinator/openai_json.h"

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool openai_is_model(const struct openai_model *m, struct str name)
{
    return name.len == 0 || str_equal(name, str_of(m->name)) ||
           str_equal(name, str_of(base_name(m->name)));
}

int openai_read_model(const struct openai_model *m, const json_t *body, struct openai_error *e)
{
    const json_t *v = json_field(body, "model");
    if (!v)
        return 0;
    if (!json_is_string(v))
        return openai_refuse(e, "type", "model", "model must be a string, not %s",
                             json_type_name(v));
    if (openai_is_model(m, json_str(v)))
        return 0;
    openai_refuse(e, "model", "model", "the model \"%.80s\" does not exist; this server has \"%s\"",
                  json_string_value(v), m->name);
    e->status = 404;
    e->code = "model_not_found";
    return E_INVALID;
}

int openai_read_sampling(const struct openai_model *m, const json_t *body, struct sampling *s,
                         struct openai_error *e)
{
    double temperature = m->config->temperature, top_p = m->config->top_p, min_p = 0;
    double repetition = 1, frequency = 0, presence = 0;
    int64_t top_k = m->config->top_k_sampling, seed = (int64_t)rng_entropy();
    int rc = json_read_number(body, "temperature", 0, 2, &temperature, e);
    if (rc == 0)
        rc = json_read_number(body, "top_p", 0, 1, &top_p, e);
    if (rc == 0)
        rc = json_read_int(body, "top_k", -1, INT32_MAX, &top_k, e);
    if (rc == 0)
        rc = json_read_number(body, "min_p", 0, 1, &min_p, e);
    if (rc == 0)
        rc = json_read_number(body, "repetition_penalty", 0.01, 100, &repetition, e);
    if (rc == 0)
        rc = json_read_number(body, "frequency_penalty", -2, 2, &frequency, e);
    if (rc == 0)
        rc = json_read_number(body, "presence_penalty", -2, 2, &presence, e);
    if (rc == 0)
        rc = json_read_int(body, "seed", INT64_MIN, INT64_MAX, &seed, e);
    if (rc < 0)
        return rc;
    /* Nothing above probability 0 is left at top_p 0 but the likeliest token: that is greedy. */
    if (top_p == 0)
        temperature = 0;
    s->temperature = (float)temperature;
    s->top_p = (float)top_p;
    s->top_k = top_k > 0 ? (int)top_k : 0;
    s->min_p = (float)min_p;
    s->repetition_penalty = (float)repetition;
    s->frequency_penalty = (float)frequency;
    s->presence_penalty = (float)presence;
    s->seed = (uint64_t)seed;
    return 0;
}

/* A token id written as an object's key. */
static bool parse_id(const char *text, int vocab_size, int32_t *out)
{
    char *end;
    errno = 0;
    long v = strtol(text, &end, 10);
    if (errno || end == text || *end || v < 0 || v >= vocab_size)
        return false;
    *out = (int32_t)v;
    return true;
}

static int parse_bias(const struct openai_model *m, const json_t *body, struct sampling *s,
                      struct openai_error *e)
{
    json_t *bias = json_field(body, "logit_bias"), *v;
    if (!bias)
        return 0;
    if (!json_is_object(bias))
        return openai_refuse(e, "type", "logit_bias", "logit_bias must be an object, not %s",
                             json_type_name(bias));
    if (json_object_size(bias) > SAMPLING_MAX_BIAS)
        return openai_refuse(e, "range", "logit_bias", "logit_bias has %zu entries; at most %d",
                             json_object_size(bias), SAMPLING_MAX_BIAS);
    const char *key;
    json_object_foreach(bias, key, v)
    {
        int32_t id;
        if (!parse_id(key, m->config->vocab_size, &id))
            return openai_refuse(e, "range", "logit_bias",
                                 "logit_bias: \"%.40s\" is not a token id below %d", key,
                                 m->config->vocab_size);
        double x = json_is_number(v) ? json_number_value(v) : 1000;
        if (!(x >= -100 && x <= 100))
            return openai_refuse(e, "range", "logit_bias",
                                 "logit_bias[\"%d\"] must be a number between -100 and 100", id);
        s->bias[s->n_bias].token = id;
        s->bias[s->n_bias++].bias = (float)x;
    }
    return 0;
}

static int add_stop(const json_t *v, const char *field, struct request *r, struct openai_error *e)
{
    if (!json_is_string(v))
        return openai_refuse(e, "type", field, "%s must be strings, not %s", field,
                             json_type_name(v));
    struct str s = json_str(v);
    if (s.len == 0 || s.len > STREAM_MAX_STOP_BYTES || memchr(s.ptr, 0, s.len))
        return openai_refuse(e, "range", field,
                             "a stop string must have 1 to %d bytes and no NUL; this one has %zu",
                             STREAM_MAX_STOP_BYTES, s.len);
    stream_add_stop(&r->text_of, s);
    return 0;
}

int openai_read_stops(const struct openai_model *m, const json_t *body, const char *field,
                      struct request *r, struct openai_error *e)
{
    const json_t *stop = json_field(body, field);
    stream_init(&r->text_of, m->tokenizer);
    if (!stop || (json_is_array(stop) && json_array_size(stop) == 0))
        return 0;
    if (!m->tokenizer)
        return openai_refuse(e, "unsupported", field,
                             "stop strings need a tokenizer, and this model has none");
    if (!json_is_array(stop))
        return add_stop(stop, field, r, e);
    if (json_array_size(stop) > STREAM_MAX_STOPS)
        return openai_refuse(e, "range", field, "%s has %zu strings; at most %d", field,
                             json_array_size(stop), STREAM_MAX_STOPS);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(stop); i++)
        rc = add_stop(json_array_get(stop, i), field, r, e);
    return rc;
}

static int parse_max_tokens(const struct openai_model *m, const json_t *body, struct request *r,
                            struct openai_error *e)
{
    int64_t n = 0, old = 0;
    int rc = json_read_int(body, "max_tokens", 1, m->config->max_positions, &old, e);
    if (rc == 0)
        rc = json_read_int(body, "max_completion_tokens", 1, m->config->max_positions, &n, e);
    if (rc == 0 && n && old && n != old)
        rc = openai_refuse(e, "range", "max_tokens",
                           "max_tokens and max_completion_tokens contradict each other: give one");
    r->max_tokens = (uint32_t)(n ? n : old);
    return rc;
}

/* The answers to one prompt; best_of, which only /v1/completions has, is read there. */
static int parse_choices(const json_t *body, struct request *r, struct openai_error *e)
{
    int64_t n = 1;
    int rc = json_read_int(body, "n", 1, REQUEST_MAX_CHOICES, &n, e);
    r->n_wanted = r->n_tried = (int)n;
    return rc;
}

int openai_read_priority(const json_t *body, struct request *r, struct openai_error *e)
{
    static const struct {
        const char *name;
        int raise;
    } tiers[] = {{"auto", 0},
                 {"default", 0},
                 {"standard_only", 0},
                 {"flex", -REQUEST_MOST},
                 {"priority", REQUEST_MOST}};
    const json_t *tier = json_field(body, "service_tier");
    const char *name = json_string_value(tier);
    int64_t sooner = 0;
    int rc = json_read_int(body, "priority", INT32_MIN, INT32_MAX, &sooner, e);
    if (rc < 0)
        return rc;
    /* As in vLLM the lower number is served first. */
    r->raise = sooner > REQUEST_MOST    ? -REQUEST_MOST
               : sooner < -REQUEST_MOST ? REQUEST_MOST
                                        : -(int)sooner;
    for (size_t i = 0; name && i < sizeof tiers / sizeof tiers[0]; i++) {
        if (strcmp(name, tiers[i].name) != 0)
            continue;
        if (tiers[i].raise && sooner)
            return openai_refuse(e, "range", "service_tier",
                                 "service_tier \"%s\" and priority both say how urgent this is: "
                                 "give one of them",
                                 name);
        r->raise += tiers[i].raise;
        r->names_tier = true;
        return 0;
    }
    return tier ? openai_refuse(e, "range", "service_tier",
                                "service_tier must be auto, default, standard_only, flex or "
                                "priority")
                : 0;
}

static int parse_stream(const json_t *body, struct request *r, struct openai_error *e)
{
    int rc = json_read_bool(body, "stream", &r->streams, e);
    const json_t *options = json_field(body, "stream_options");
    if (rc < 0 || !options)
        return rc;
    if (!json_is_object(options))
        return openai_refuse(e, "type", "stream_options",
                             "stream_options must be an object, not %s", json_type_name(options));
    if (!r->streams)
        return openai_refuse(e, "range", "stream_options", "stream_options needs stream: true");
    return json_read_bool(options, "include_usage", &r->wants_usage, e);
}

int openai_parse_common(const struct openai_model *m, const json_t *body, struct request *r,
                        struct openai_error *e)
{
    int rc = openai_read_model(m, body, e);
    if (rc == 0)
        rc = parse_choices(body, r, e);
    if (rc == 0)
        rc = parse_stream(body, r, e);
    if (rc == 0)
        rc = openai_read_priority(body, r, e);
    if (rc == 0)
        rc = parse_max_tokens(m, body, r, e);
    if (rc == 0)
        rc = openai_read_sampling(m, body, &r->sampling, e);
    if (rc == 0)
        rc = parse_bias(m, body, &r->sampling, e);
    if (rc == 0)
        rc = openai_read_stops(m, body, "stop", r, e);
    if (rc == 0)
        rc = json_read_bool(body, "return_token_ids", &r->wants_token_ids, e);
    if (rc == 0)
        rc = json_read_bool(body, "return_logits_hash", &r->sampling.logits_hash, e);
    if (rc == 0)
        rc = json_read_bool(body, "ignore_eos", &r->ignores_eos, e);
    return rc;
}

int openai_check_prompt(const struct openai_model *m, const struct tokens *prompt,
                        struct openai_error *e)
{
    if (prompt->len == 0)
        return openai_refuse(e, "empty", "prompt", "the prompt is empty");
    /* One position is left for the answer. */
    if (prompt->len < (size_t)m->config->max_positions)
        return 0;
    openai_refuse(e, "context", "prompt",
                  "the prompt has %zu tokens; the model's context is %d tokens", prompt->len,
                  m->config->max_positions);
    e->code = "context_length_exceeded";
    return E_INVALID;
}
