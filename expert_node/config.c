/* expert_node/config.c - the option table of expert_node; configs/expert_node.cfg shows it. */
#include "expert_node/config.h"

#include <string.h>

#include "engine/kernels.h"
#include "rpc/wire.h"

#define AT(field) offsetof(struct expert_node_config, field)
#define AT_NODE(field) AT(node.field)
#define AT_WEIGHTS(field) AT(weights.field)
#define AT_FAULT(field) AT(fault.field)
#define TIB (1024.0 * 1024 * 1024 * 1024)

static const struct conf_option options[] = {
    {"node.rack", CONF_STRING, AT(rack), "", 0, 0, NULL,
     "what dies together beyond a host: copies of an expert go to different racks while there is "
     "room; empty: the host is its own"},
    NODE_OPTIONS(AT_NODE, "expert-0", "Expert"),
    WEIGHTS_OPTIONS(AT_WEIGHTS),
    {"memory.bytes", CONF_BYTES, AT(memory_bytes), "0", 0, 64 * TIB, NULL,
     "memory for experts; 0 means 80 % of what is free at start"},
    {"memory.read_bytes_s", CONF_BYTES, AT(read_bytes_s), "0", 0, 64 * TIB, NULL,
     "bytes of experts that this node reads in a second, by which nodes get their shares; 0 means "
     "measured at start"},
    {"compute.threads", CONF_INT, AT(threads), "0", 0, 1024, NULL,
     "threads that compute; 0 means every CPU that the process may use"},
    {"compute.spin_us", CONF_INT, AT(spin_us), "20", 0, 100000, NULL,
     "busy wait for the next parcel before sleeping; with CPUs of its own (compute.cpus) the "
     "network's threads do, too"},
    {"drain.timeout_ms", CONF_MS, AT(drain_timeout_ns), "120000", 0, 86400000, NULL,
     "how long a node that was told to go waits until others hold its experts"},
    {"limits.max_rows", CONF_INT, AT(max_rows), "1024", 1, WIRE_MAX_OVERFLOW, NULL,
     "rows of one parcel"},
    FAULT_OPTIONS(AT_FAULT),
};

const struct conf_table expert_node_options = {
    .program = "expert_node",
    .summary = "holds experts of a Polymath cluster and runs them on request",
    .options = options,
    .n_options = sizeof(options) / sizeof(options[0]),
};

int expert_node_check(const void *config, struct err *e)
{
    const struct expert_node_config *c = config;
    if (node_options_check(&c->node, e) < 0 || weights_options_check(&c->weights, e) < 0)
        return e ? e->code : E_INVALID;
    if (c->weights.kernels[0] && !kernels_named(c->weights.kernels))
        return err_set(e, E_INVALID,
                       "weights.kernels: \"%s\" is not in this build or does not run on this CPU",
                       c->weights.kernels);
    if (strlen(c->rack) >= WIRE_NAME_BYTES)
        return err_set(e, E_INVALID, "node.rack: \"%.80s\" has more than %d bytes", c->rack,
                       WIRE_NAME_BYTES - 1);
    return fault_check(&c->fault, e);
}
