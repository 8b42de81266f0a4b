/* attn_node/config.h - the option table of attn_node. */
#pragma once

#include "attn_node/side.h"
#include "base/conf.h"
#include "model/weights_options.h"
#include "rpc/node_options.h"

struct attn_node_config {
    struct node_options node;
    struct weights_options weights;
    bool keeps_prefixes, borrows, lends;
    int lanes;
    int64_t threads, kv_bytes, max_rows, max_seqs, call_timeout_ns, spin_us;
    int64_t drain_timeout_ns;
    struct ladder ladder;
};

extern const struct conf_table attn_node_options;
/* What the table cannot say: a name, a format, CPUs, kernels that exist. */
int attn_node_check(const void *config, struct err *e);
/* Borrows the strings. */
struct side_config attn_node_side(const struct attn_node_config *c);
