/* model/sampling.h - what a request may ask of sampling, and what a sampled token carries.
 *
 * Parameters travel to the attention side with a sequence's first step; ids and
 * log-probabilities travel back; logits never do. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { SAMPLING_MAX_BIAS = 300, SAMPLING_MAX_TOP = 20, SAMPLING_MAX_GRAMMAR_BYTES = 256 << 10 };

/* All-zero is greedy without penalties: repetition_penalty 0 and 1 both mean "off". */
struct sampling {
    float temperature;                         /* 0 = greedy */
    int top_k;                                 /* 0 = off */
    float top_p;                               /* 0 or 1 = off */
    float min_p;                               /* 0 = off */
    float repetition_penalty;                  /* over prompt and output; 0 or 1 = off */
    float frequency_penalty, presence_penalty; /* over output; 0 = off */
    uint64_t seed;
    bool logprobs;    /* fill sampled.logprob */
    int n_top;        /* and this many alternatives, at most SAMPLING_MAX_TOP */
    bool logits_hash; /* fill sampled.logits_hash: the proof of "one answer" */
    /* What the output may be (model/grammar.h), NUL-terminated; NULL: anything.  Borrowed: whoever keeps the
     * parameters keeps a copy of the text or what it made of it. */
    const char *grammar;
    int n_bias;
    struct {
        int32_t token;
        float bias;
    } bias[SAMPLING_MAX_BIAS];
};

struct sampled {
    int32_t token;
    float logprob; /* of the model's own distribution: before temperature, penalties and bias */
    uint64_t logits_hash;
    int n_top;
    struct {
        int32_t token;
        float logprob;
    } top[SAMPLING_MAX_TOP]; /* descending */
};
