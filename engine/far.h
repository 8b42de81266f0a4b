/* engine/far.h - how an attention side reaches the other places of its sequences' contexts; the
 * counterpart of engine/context.h, where the messages are explained.
 *
 * Places count from 1 on, as those of the cache (engine/kv.h).  Whatever is handed over is the caller's
 * again when the call returns.  An error ends the step; the places are told nothing of it. */
#pragma once

#include "engine/context.h"

struct far_ops {
    /* Once per step and lane, before the layers: who will come by.  Never blocks. */
    int (*begin)(void *ud, int lane, int place, const struct context_plan *plan);
    /* Sends what context_choose() needs; never blocks.  The answer is taken with chosen(), before
     * anything else is asked of the place. */
    int (*choose)(void *ud, int lane, int place, const struct context_rows *rows);
    int (*chosen)(void *ud, int lane, int place, struct context_candidate *candidates);
    /* context_attend() there, waited for up to the step's deadline. */
    int (*attend)(void *ud, int lane, int place, const struct context_rows *rows);
};
