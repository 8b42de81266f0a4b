/* attn_node/config.c - the option table of attn_node; configs/attn_node.cfg shows it. */
#include "attn_node/config.h"

#include "base/clock.h"
#include "engine/kernels.h"
#include "rpc/wire.h"

#define AT(field) offsetof(struct attn_node_config, field)
#define AT_NODE(field) AT(node.field)
#define AT_WEIGHTS(field) AT(weights.field)
#define AT_LADDER(field) AT(ladder.field)
#define TIB (1024.0 * 1024 * 1024 * 1024)

static const struct conf_option options[] = {
    NODE_OPTIONS(AT_NODE, "attn-0", "Attention"),
    WEIGHTS_OPTIONS(AT_WEIGHTS),
    {"compute.threads", CONF_INT, AT(threads), "0", 0, 1024, NULL,
     "threads that compute; 0 means every CPU that the process may use"},
    {"attention.kv_bytes", CONF_BYTES, AT(kv_bytes), "0", 0, 64 * TIB, NULL,
     "memory for KV pages; 0 means a quarter of what is free at start"},
    {"attention.lends", CONF_BOOL, AT(lends), "false", 0, 0, NULL,
     "take no sequences and load no weights: attention.kv_bytes (0: three quarters of what is "
     "free) "
     "are lent to a side that borrows"},
    {"attention.prefix_cache", CONF_BOOL, AT(keeps_prefixes), "true", 0, 0, NULL,
     "keep KV pages, while their memory is not needed, for prompts that begin the same"},
    {"attention.borrows", CONF_BOOL, AT(borrows), "false", 0, 0, NULL,
     "let contexts that are too long for this memory go on at nodes with attention.lends"},
    {"attention.max_rows", CONF_INT, AT(max_rows), "256", 1, 65536, NULL, "rows of one step"},
    {"attention.max_seqs", CONF_INT, AT(max_seqs), "64", 1, 4096, NULL,
     "sequences that may live here at a time"},
    {"attention.lanes", CONF_CHOICE, AT(lanes), "auto", 0, 0, "auto|1|2",
     "2: one half of a step's rows attends while the experts of the other half work; auto: "
     "whichever "
     "of 1 and 2 is measured to be faster"},
    {"attention.call_timeout_ms", CONF_MS, AT(call_timeout_ns), "10000", 10, 600000, NULL,
     "one layer's experts must have answered by then"},
    {"attention.spin_us", CONF_INT, AT(spin_us), "50", 0, 100000, NULL,
     "busy wait for experts before sleeping; with CPUs of its own (compute.cpus) the network's "
     "threads do, too"},
    {"drain.timeout_ms", CONF_MS, AT(drain_timeout_ns), "120000", 0, 86400000, NULL,
     "when told to go, serve until others have taken over what lives here, but no longer"},
    LADDER_OPTIONS(AT_LADDER),
};

const struct conf_table attn_node_options = {
    .program = "attn_node",
    .summary = "the attention side of a Polymath cluster as a process of its own",
    .options = options,
    .n_options = sizeof(options) / sizeof(options[0]),
};

int attn_node_check(const void *config, struct err *e)
{
    const struct attn_node_config *c = config;
    if (node_options_check(&c->node, e) < 0 || weights_options_check(&c->weights, e) < 0)
        return e ? e->code : E_INVALID;
    if (c->weights.kernels[0] && !kernels_named(c->weights.kernels))
        return err_set(e, E_INVALID,
                       "weights.kernels: \"%s\" is not in this build or does not run on this CPU",
                       c->weights.kernels);
    if (c->lends && c->borrows)
        return err_set(e, E_INVALID, "attention.lends: a node that lends cannot borrow too");
    return 0;
}

struct side_config attn_node_side(const struct attn_node_config *c)
{
    return (struct side_config){
        .name = c->node.name,
        .model_dir = c->node.model_path,
        .cache_dir = c->weights.cache,
        .coordinator_endpoint = c->node.coordinator_endpoint,
        .listen_endpoint = c->node.listen,
        .advertise = c->node.advertise,
        .formats = weights_options_formats(&c->weights),
        .combine = (enum combine_mode)c->weights.combine,
        .kernels = c->weights.kernels,
        .checkpoint = {.copies = c->weights.copies,
                       .locks = c->weights.locks,
                       .verifies = c->weights.verifies},
        .threads = (int)c->threads,
        .kv_bytes = c->kv_bytes,
        .keeps_prefixes = c->keeps_prefixes,
        .borrows = c->borrows,
        .max_rows = (int)c->max_rows,
        .max_seqs = (int)c->max_seqs,
        .lanes = c->lanes,
        .call_timeout_ns = c->call_timeout_ns,
        .spin_ns = c->spin_us * CLOCK_US,
        .drain_timeout_ns = c->drain_timeout_ns,
        .ladder = c->ladder,
    };
}
