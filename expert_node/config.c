/* expert_node/config.c - the option table of expert_node; configs/expert_node.cfg shows it. */
#include "expert_node/config.h"

#include <string.h>

#include "base/cpus.h"
#include "engine/kernels.h"
#include "model/format.h"
#include "rpc/wire.h"

#define AT(field) offsetof(struct expert_node_config, field)
#define AT_FAULT(field) AT(fault.field)
#define TIB (1024.0 * 1024 * 1024 * 1024)

static const struct conf_option options[] = {
    {"node.name", CONF_STRING, AT(name), "expert-0", 0, 0, NULL,
     "name of this node, unique in the cluster"},
    {"node.listen", CONF_STRING, AT(listen), "tcp://127.0.0.1:0", 0, 0, NULL,
     "endpoint of the Expert service; port 0 takes a free one"},
    {"node.advertise", CONF_STRING, AT(advertise), "", 0, 0, NULL,
     "host, or host:port, under which others reach node.listen; empty: as it is bound"},
    {"log.level", CONF_CHOICE, AT(log_level), "info", 0, 0, "error|warn|info|debug",
     "least important lines that are logged"},
    {"model.path", CONF_STRING, AT(model_path), "", 0, 0, NULL,
     "directory of the model: config.json and safetensors"},
    {"coordinator.endpoint", CONF_STRING, AT(coordinator_endpoint), "tcp://127.0.0.1:7070", 0, 0,
     NULL, "Cluster service of the coordinator; with standbys all of them, with commas between"},
    {"security.key_file", CONF_STRING, AT(key_file), "", 0, 0, NULL,
     "key pair of this program (polymath keys new); empty: none, and tcp stays on loopback"},
    {"security.server_key", CONF_STRING, AT(server_key), "", 0, 0, NULL,
     "public key of the coordinator, or its .pub file"},
    {"security.allow_file", CONF_STRING, AT(allow_file), "", 0, 0, NULL,
     "public keys that may call beside the coordinator and the callers that it names, a line KEY "
     "NAME for each; read again when it changes"},
    {"security.insecure", CONF_BOOL, AT(is_insecure), "false", 0, 0, NULL,
     "without keys, listen beyond loopback all the same: whoever reaches the port is believed"},
    {"weights.format", CONF_STRING, AT(format), "native", 0, 0, NULL,
     "formats of weights and KV cache: " FORMAT_CHOICES ", or part=FORMAT,... (experts, attention, "
     "head; kv=" KV_FORMAT_CHOICES "); the same in the whole cluster"},
    {"weights.combine", CONF_CHOICE, AT(combine), "fixed", 0, 0, COMBINE_CHOICES,
     "how expert outputs are added; the same in the whole cluster"},
    {"weights.kernels", CONF_STRING, AT(kernels), "", 0, 0, NULL,
     "inner loops by name (portable, avx2, avx512, amx); empty takes the best"},
    {"weights.copy", CONF_BOOL, AT(copies), "false", 0, 0, NULL,
     "of a packed directory: copy weights into huge pages instead of mapping the files"},
    {"weights.lock", CONF_BOOL, AT(locks), "false", 0, 0, NULL,
     "of a packed directory: lock what is used into memory"},
    {"weights.verify", CONF_BOOL, AT(verifies), "false", 0, 0, NULL,
     "of a packed directory: check the hash of all that is read"},
    {"weights.cache", CONF_STRING, AT(cache), "", 0, 0, NULL,
     "directory in which the first start keeps the model packed, for the next ones to map; empty: "
     "none"},
    {"memory.bytes", CONF_BYTES, AT(memory_bytes), "0", 0, 64 * TIB, NULL,
     "memory for experts; 0 means 80 % of what is free at start"},
    {"memory.read_bytes_s", CONF_BYTES, AT(read_bytes_s), "0", 0, 64 * TIB, NULL,
     "bytes of experts that this node reads in a second, by which nodes get their shares; 0 means "
     "measured at start"},
    {"compute.threads", CONF_INT, AT(threads), "0", 0, 1024, NULL,
     "threads that compute; 0 means every CPU that the process may use"},
    {"compute.cpus", CONF_STRING, AT(cpus), "", 0, 0, NULL,
     "CPUs for this process alone, such as 0-3,8, or all; its threads are then pinned; empty: "
     "wherever the system puts them"},
    {"compute.spin_us", CONF_INT, AT(spin_us), "20", 0, 100000, NULL,
     "busy wait for the next parcel before sleeping"},
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
    struct format_set formats;
    if (!c->name[0] || strlen(c->name) >= WIRE_NAME_BYTES)
        return err_set(e, E_INVALID, "node.name: expected 1 to %d bytes", WIRE_NAME_BYTES - 1);
    if (c->kernels[0] && !kernels_named(c->kernels))
        return err_set(e, E_INVALID,
                       "weights.kernels: \"%s\" is not in this build or does not run on this CPU",
                       c->kernels);
    if (format_set_parse(c->format, &formats, e) < 0)
        return err_prefix(e, "weights.format");
    if (c->key_file[0] && !c->server_key[0])
        return err_set(e, E_INVALID, "security.server_key is missing: whom to expect at %s",
                       c->coordinator_endpoint);
    if (cpus_check(c->cpus, e) < 0)
        return err_prefix(e, "compute.cpus");
    return fault_check(&c->fault, e);
}
