/* attn_node/config.c - the option table of attn_node; configs/attn_node.cfg shows it. */
#include "attn_node/config.h"

#include <string.h>

#include "base/clock.h"
#include "base/cpus.h"
#include "base/must.h"
#include "engine/kernels.h"
#include "rpc/wire.h"

#define AT(field) offsetof(struct attn_node_config, field)
#define AT_LADDER(field) AT(ladder.field)
#define TIB (1024.0 * 1024 * 1024 * 1024)

static const struct conf_option options[] = {
    {"node.name", CONF_STRING, AT(name), "attn-0", 0, 0, NULL,
     "name of this node, unique in the cluster"},
    {"node.listen", CONF_STRING, AT(listen), "tcp://127.0.0.1:0", 0, 0, NULL,
     "endpoint of the Attention service; port 0 takes a free one"},
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
     "public keys that may call beside the coordinator, a line KEY NAME for each; read again when "
     "it changes"},
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
    {"compute.threads", CONF_INT, AT(threads), "0", 0, 1024, NULL,
     "threads that compute; 0 means every CPU that the process may use"},
    {"compute.cpus", CONF_STRING, AT(cpus), "", 0, 0, NULL,
     "CPUs for this process alone, such as 0-3,8, or all; its threads are then pinned; empty: "
     "wherever the system puts them"},
    {"attention.kv_bytes", CONF_BYTES, AT(kv_bytes), "0", 0, 64 * TIB, NULL,
     "memory for KV pages; 0 means a quarter of what is free at start"},
    {"attention.max_rows", CONF_INT, AT(max_rows), "256", 1, 65536, NULL, "rows of one step"},
    {"attention.max_seqs", CONF_INT, AT(max_seqs), "64", 1, 4096, NULL,
     "sequences that may live here at a time"},
    {"attention.call_timeout_ms", CONF_MS, AT(call_timeout_ns), "10000", 10, 600000, NULL,
     "one layer's experts must have answered by then"},
    {"attention.spin_us", CONF_INT, AT(spin_us), "50", 0, 100000, NULL,
     "busy wait for experts before sleeping"},
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
    return 0;
}

struct side_config attn_node_side(const struct attn_node_config *c)
{
    struct format_set formats;
    must_zero(format_set_parse(c->format, &formats, NULL));
    return (struct side_config){
        .name = c->name,
        .model_dir = c->model_path,
        .cache_dir = c->cache,
        .coordinator_endpoint = c->coordinator_endpoint,
        .listen_endpoint = c->listen,
        .advertise = c->advertise,
        .formats = formats,
        .combine = (enum combine_mode)c->combine,
        .kernels = c->kernels,
        .checkpoint = {.copies = c->copies, .locks = c->locks, .verifies = c->verifies},
        .threads = (int)c->threads,
        .kv_bytes = c->kv_bytes,
        .max_rows = (int)c->max_rows,
        .max_seqs = (int)c->max_seqs,
        .call_timeout_ns = c->call_timeout_ns,
        .spin_ns = c->spin_us * CLOCK_US,
        .ladder = c->ladder,
    };
}
