/* expert_node/config.h - the option table of expert_node. */
#pragma once

#include <stdint.h>

#include "base/conf.h"

struct expert_node_config {
    char *name;
    int log_level; /* enum log_level */
    char *model_path, *coordinator_endpoint, *listen;
    int format, combine; /* enum weight_format, enum combine_mode */
    char *kernels;
    int64_t memory_bytes, threads, max_rows;
};

extern const struct conf_table expert_node_options;
/* What the table cannot say: a name, kernels that exist. */
int expert_node_check(const void *config, struct err *e);
