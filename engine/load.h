/* engine/load.h - many experts at once, over the pool: what a node and a single process do
 * before they answer.
 *
 * One task per expert: bound, packed or mapped (engine/expert.h), and the pages of the files
 * that are not needed any more given back, so that the resident set is what was made.  With
 * fewer experts than threads the panels of each are shared out instead. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/expert.h"
#include "model/checkpoint.h"

struct load_options {
    struct checkpoint *checkpoint;
    enum weight_format format;
    const struct compute *compute;
    /* Any thread of the pool calls these; both may be NULL.  `loaded` is told how many are
     * done; once `is_overtaken` is true no further one is begun. */
    void (*loaded)(void *ud, int n_done, int n_all);
    bool (*is_overtaken)(void *ud);
    void *ud;
};

/* which [n]: layer * n_experts + expert; out[i], n of them, gets which[i].  What could not be
 * loaded is all-zero; what could stays, also after a failure, and is the caller's.
 * E_CANCELLED when overtaken; other errors name layer and expert. */
int load_experts(const struct load_options *o, const size_t *which, int n,
                 struct expert *const *out, struct err *e);
/* Gives up what load_experts() filled, and the pages of the file that it was mapped from. */
void load_release(struct checkpoint *c, size_t which, struct expert *x);

/* Bytes that an expert of this model takes, of our own or of a mapping, and its format. */
int load_expert_bytes(struct checkpoint *c, enum weight_format want, size_t *bytes,
                      enum weight_format *format, struct err *e);
