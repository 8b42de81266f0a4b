/* expert_node/config.h - the option table of expert_node. */
#pragma once

#include <stdint.h>

#include "base/conf.h"
#include "expert_node/fault.h"
#include "model/weights_options.h"
#include "rpc/node_options.h"

struct expert_node_config {
    struct node_options node;
    struct weights_options weights;
    char *rack; /* "": the host */
    int64_t drain_timeout_ns;
    int64_t memory_bytes, read_bytes_s, threads, max_rows, spin_us;
    struct fault_options fault;
};

extern const struct conf_table expert_node_options;
/* What the table cannot say: a name, a format, CPUs, kernels that exist. */
int expert_node_check(const void *config, struct err *e);
