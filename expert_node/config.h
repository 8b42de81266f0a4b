/* expert_node/config.h - the option table of expert_node. */
#pragma once

#include <stdint.h>

#include "base/conf.h"
#include "expert_node/fault.h"

struct expert_node_config {
    char *name;
    int log_level; /* enum log_level */
    char *model_path, *coordinator_endpoint, *listen, *advertise;
    char *key_file, *server_key, *allow_file;
    bool is_insecure;
    char *format; /* for format_set_parse() */
    int combine;  /* enum combine_mode */
    char *kernels, *cpus, *cache;
    bool copies, locks, verifies;
    int64_t drain_timeout_ns;
    int64_t memory_bytes, read_bytes_s, threads, max_rows, spin_us;
    struct fault_options fault;
};

extern const struct conf_table expert_node_options;
/* What the table cannot say: a name, a format, CPUs, kernels that exist. */
int expert_node_check(const void *config, struct err *e);
