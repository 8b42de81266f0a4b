/* expert_node/fault.h - faults on purpose, for chaos tests: answers that come late, never, or
 * wrong (step 10).  Off unless `fault.enabled` is written out; the node says so loudly.
 *
 * Which answer is hit is drawn from a seed.  Pure: says what shall happen, does nothing.
 *
 * Owner: worker thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/rng.h"

struct fault_options {
    bool is_enabled;
    int64_t delay_ns, delay_one_in;      /* one answer in so many comes later; 0: none */
    int64_t drop_one_in, corrupt_one_in; /* never; with one bit turned */
    int64_t seed;
};

/* Rows of an option table (base/conf.h); AT(field) is the offset of a field of the options. */
#define FAULT_OPTIONS(AT) \
    {"fault.enabled", \
     CONF_BOOL, \
     AT(is_enabled), \
     "false", \
     0, \
     0, \
     NULL, \
     "allow the faults below; for chaos tests alone"}, \
        {"fault.delay_ms", \
         CONF_MS, \
         AT(delay_ns), \
         "0", \
         0, \
         60000, \
         NULL, \
         "how much later a delayed answer comes"}, \
        {"fault.delay_one_in", \
         CONF_INT, \
         AT(delay_one_in), \
         "1", \
         1, \
         1000000000, \
         NULL, \
         "one answer in so many is delayed"}, \
        {"fault.drop_one_in", \
         CONF_INT, \
         AT(drop_one_in), \
         "0", \
         0, \
         1000000000, \
         NULL, \
         "one answer in so many never comes; 0: none"}, \
        {"fault.corrupt_one_in", \
         CONF_INT, \
         AT(corrupt_one_in), \
         "0", \
         0, \
         1000000000, \
         NULL, \
         "one answer in so many has a wrong bit; 0: none"}, \
    { \
        "fault.seed", CONF_INT, AT(seed), "1", 0, 0, NULL, "which answers are hit" \
    }

/* E_INVALID: a fault is asked for that `fault.enabled` does not allow. */
int fault_check(const struct fault_options *o, struct err *e);

struct fault {
    struct fault_options options;
    struct rng rng;
};
struct fault_action {
    int64_t delay_ns;
    bool is_dropped, is_corrupted;
    uint64_t where; /* to draw the wrong bit from */
};
struct fault fault_new(const struct fault_options *o);
/* What happens to the next answer. */
struct fault_action fault_next(struct fault *f);
/* Turns the bit; a low one of some 32-bit word, so that the value stays finite. */
void fault_corrupt(const struct fault_action *a, void *data, size_t bytes);
