/* attn_node/config.h - the option table of attn_node. */
#pragma once

#include "attn_node/side.h"
#include "base/conf.h"

struct attn_node_config {
    char *name;
    int log_level; /* enum log_level */
    char *model_path, *coordinator_endpoint, *listen, *advertise;
    char *key_file, *server_key, *allow_file;
    bool is_insecure;
    char *format; /* for format_set_parse() */
    int combine;  /* enum combine_mode */
    char *kernels, *cpus, *cache;
    bool copies, locks, verifies;
    int64_t threads, kv_bytes, max_rows, max_seqs, call_timeout_ns, spin_us;
    struct ladder ladder;
};

extern const struct conf_table attn_node_options;
/* What the table cannot say: a name, a format, CPUs, kernels that exist. */
int attn_node_check(const void *config, struct err *e);
/* Borrows the strings. */
struct side_config attn_node_side(const struct attn_node_config *c);
