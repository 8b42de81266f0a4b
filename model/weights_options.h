/* model/weights_options.h - the options that say how a program holds and computes weights; rows of
 * its option table (base/conf.h). */
#pragma once

#include <stdbool.h>

#include "base/conf.h"
#include "model/format.h"

struct weights_options {
    char *format; /* for format_set_parse() */
    int combine;  /* enum combine_mode */
    char *kernels, *cache, *cpus;
    bool copies, locks, verifies;
};

/* The rows.  AT(field) is the offset of a field of struct weights_options in the program's struct. */
#define WEIGHTS_OPTIONS(AT) \
    {"weights.format", \
     CONF_STRING, \
     AT(format), \
     "native", \
     0, \
     0, \
     NULL, \
     "formats of weights and KV cache: " FORMAT_CHOICES \
     ", or part=FORMAT,... (experts, attention, " \
     "head; kv=" KV_FORMAT_CHOICES "); the same in the whole cluster"}, \
        {"weights.combine", \
         CONF_CHOICE, \
         AT(combine), \
         "fixed", \
         0, \
         0, \
         COMBINE_CHOICES, \
         "how expert outputs are added; the same in the whole cluster"}, \
        {"weights.kernels", \
         CONF_STRING, \
         AT(kernels), \
         "", \
         0, \
         0, \
         NULL, \
         "inner loops by name (portable, avx2, avx512, amx); empty takes the best"}, \
        {"weights.copy", \
         CONF_BOOL, \
         AT(copies), \
         "false", \
         0, \
         0, \
         NULL, \
         "of a packed directory: copy weights into huge pages instead of mapping the files"}, \
        {"weights.lock", \
         CONF_BOOL, \
         AT(locks), \
         "false", \
         0, \
         0, \
         NULL, \
         "of a packed directory: lock what is used into memory"}, \
        {"weights.verify", \
         CONF_BOOL, \
         AT(verifies), \
         "false", \
         0, \
         0, \
         NULL, \
         "of a packed directory: check the hash of all that is read"}, \
        {"weights.cache", \
         CONF_STRING, \
         AT(cache), \
         "", \
         0, \
         0, \
         NULL, \
         "directory in which the first start keeps the model packed, for the next ones to map; " \
         "empty: " \
         "none"}, \
    { \
        "compute.cpus", CONF_STRING, AT(cpus), "", 0, 0, NULL, \
            "CPUs for this process alone, such as 0-3,8, or all; its threads are then pinned; " \
            "empty: " \
            "wherever the system puts them" \
    }

/* What the rows cannot say: a format set and CPUs that mean something. */
int weights_options_check(const struct weights_options *o, struct err *e);
/* The format set of options that were checked. */
struct format_set weights_options_formats(const struct weights_options *o);
