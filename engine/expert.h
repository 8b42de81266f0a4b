/* engine/expert.h - the expert half of a layer (step 10 of the token's path).
 *
 * An expert's output for a row does not depend on the other rows of the parcel. */
#pragma once

#include <stddef.h>

#include "base/err.h"
#include "engine/combine.h"
#include "engine/gemm.h"
#include "model/weights.h"

/* y = down(activation(gate h, up h)); m2.md 4.4 step 5, m3.md 3.2. */
struct expert {
    struct matrix gate, up, down;
    struct activation activation;
    void *room; /* the matrices' memory, one run of huge pages; NULL when they are mapped */
    size_t room_bytes;
};

int expert_load(struct expert *x, const struct expert_view *view, enum weight_format want,
                const struct compute *c, struct err *e);
void expert_fini(struct expert *x);
size_t expert_bytes(const struct expert *x);

/* Scratch for parcels of up to max_rows rows and max_rows * top_k routes; allocated once.
 * `group` is format_group() of the experts.  Owner: one thread. */
struct expert_scratch;
struct expert_scratch *expert_scratch_new(int max_rows, int top_k, int hidden, int expert_size,
                                          int group);
void expert_scratch_free(struct expert_scratch **s);

/* Runs a parcel.  held [n_experts]: NULL where an expert is not here; every expert of the
 * parcel must be here and every size within the scratch (the caller checked both: outside
 * data is refused before).  Writes what p->mode asks for into `out`, whose arrays the
 * caller sized.  Allocates nothing. */
void expert_forward(const struct compute *c, struct expert_scratch *s,
                    const struct expert *const *held, int n_experts, const struct parcel *p,
                    struct parcel_result *out);
