/* engine/router.h - scores -> biased top-k -> weights (step 7; m2.md 4.4 steps 1-4). */
#pragma once

#include <stdint.h>

#include "engine/gemm.h"
#include "model/tensor.h"

struct router {
    struct matrix gate; /* f32 or bf16 as stored: [n_experts, hidden] */
    float *bias;        /* [n_experts]; owned */
    int n_experts, top_k;
    float scale; /* of the weights after they were normalised; 1 unless the owner sets another */
};

/* [n_rows, top_k], slots by descending biased score, ties to the lower expert. */
struct routing {
    int n_rows, top_k;
    uint16_t *experts;
    float *weights; /* scale * unbiased scores over the selected, summed in slot order */
};

int router_load(struct router *r, const struct tensor *gate, const struct tensor *bias, int top_k,
                const struct compute *c, struct err *e);
void router_fini(struct router *r);
/* h [n_rows, hidden]; scratch [n_rows, n_experts] floats; fills out (arrays sized by the caller). */
void router_route(const struct compute *c, const struct router *r, const float *h, size_t h_stride,
                  int n_rows, float *scratch, struct routing *out);
/* The selection alone, for one row of scores (sigmoids): also the unit of the tests. */
void router_select(const float *scores, const float *bias, int n_experts, int top_k,
                   uint16_t *experts, float *weights);
