/* tools/status_forecast.h - what `polymath status --model` says: a step as forecast.h reckons it for the
 * cluster that is there, beside the steps that it did. */
#pragma once

#include <jansson.h>

#include "base/err.h"

struct status_forecast {
    double rows;                                        /* of a step, on average */
    double seen_ms, seen_attention_ms, seen_experts_ms; /* the head counts as attention */
    double told_ms, told_attention_ms, told_experts_ms; /* experts with the network */
    double seen_tokens_s, told_tokens_s;                /* rows of a step / its time */
    long long n_steps;
};

/* From two answers of /cluster, the steps between them, or if there were none all since the
 * coordinator's start; of a cluster without any step n_steps is 0 and the rest 0.  model_dir holds
 * the model's config.json.  round_trip_us of an empty call; 0: 200 between machines, 60 on one.
 * E_INVALID: an answer without expert nodes; E_NOMEM and the errors of plan_model_open(). */
int status_forecast(const json_t *before, const json_t *after, const char *model_dir,
                    double round_trip_us, struct status_forecast *out, struct err *e);
