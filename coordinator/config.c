/* coordinator/config.c - see config.h. */
#include "coordinator/config.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "rpc/wire.h"

#define FIELD(name) offsetof(struct coordinator_config, name)
#define LADDER_FIELD(name) FIELD(ladder.name)
#define WEIGHTS_FIELD(name) FIELD(weights.name)

static const struct conf_option options[] = {
    {"node.name", CONF_STRING, FIELD(node_name), "coordinator", 0, 0, NULL,
     "name of this process in logs"},
    {"log.level", CONF_CHOICE, FIELD(log_level), "info", 0, 0, "error|warn|info|debug",
     "least important log lines that are written"},
    {"model.path", CONF_STRING, FIELD(model_path), "", 0, 0, NULL,
     "directory of the Hugging Face checkpoint; must be given"},
    {"model.name", CONF_STRING, FIELD(model_name), "", 0, 0, NULL,
     "name that clients see; empty: the directory's name"},
    {"http.host", CONF_STRING, FIELD(http_host), "127.0.0.1", 0, 0, NULL,
     "address on which clients are served"},
    {"http.port", CONF_INT, FIELD(http_port), "8080", 0, 65535, NULL, "0: any free port"},
    {"http.max_body", CONF_BYTES, FIELD(http_max_body), "8MiB", 1024, 1e9, NULL,
     "largest request body"},
    {"http.max_connections", CONF_INT, FIELD(http_max_connections), "1024", 1, 60000, NULL,
     "client connections at a time; some more are let in to be told so (503)"},
    {"http.idle_timeout_ms", CONF_MS, FIELD(http_idle_timeout_ns), "60000", 1000, 86400000, NULL,
     "a connection on which nothing moves is closed after this time"},
    {"http.request_ms", CONF_MS, FIELD(http_request_ns), "60000", 100, 86400000, NULL,
     "a request's header must be there so long after the connection (or the answer before), its "
     "body so "
     "long after that (408)"},
    {"http.drain_ms", CONF_MS, FIELD(http_drain_ns), "5000", 0, 3600000, NULL,
     "how long running requests may go on after SIGTERM"},
    {"cluster.listen", CONF_STRING, FIELD(cluster_listen), "tcp://127.0.0.1:7070", 0, 0, NULL,
     "endpoint at which nodes join"},
    {"cluster.advertise", CONF_STRING, FIELD(cluster_advertise), "", 0, 0, NULL,
     "host, or host:port, under which other coordinators reach cluster.listen; empty: as it is "
     "bound, and the host's name if that is every address"},
    {"cluster.heartbeat_ms", CONF_MS, FIELD(cluster_heartbeat_ns), "250", 10, 60000, NULL,
     "how often nodes report"},
    {"cluster.lease_ms", CONF_MS, FIELD(cluster_lease_ns), "2000", 50, 600000, NULL,
     "a node that has not reported for this long is gone"},
    {"security.key_file", CONF_STRING, FIELD(key_file), "", 0, 0, NULL,
     "key pair of this program (polymath keys new); empty: none, and tcp stays on loopback"},
    {"security.allow_file", CONF_STRING, FIELD(allow_file), "", 0, 0, NULL,
     "public keys of the nodes, a line KEY NAME for each; read again when it changes"},
    {"security.api_keys_file", CONF_STRING, FIELD(api_keys_file), "", 0, 0, NULL,
     "keys of HTTP clients (polymath keys api); empty: none are asked for, and HTTP stays on "
     "loopback"},
    {"security.insecure", CONF_BOOL, FIELD(is_insecure), "false", 0, 0, NULL,
     "without keys, listen beyond loopback all the same: whoever reaches a port is believed"},
    {"placement.settle_ms", CONF_MS, FIELD(placement_settle_ns), "300", 0, 600000, NULL,
     "quiet time after a join before experts are placed"},
    {"placement.replicas", CONF_STRING, FIELD(placement_replicas), "1", 0, 0, NULL,
     "copies of each expert on different nodes: 1 to 4, or auto: as many as memory gives"},
    {"placement.rejoin_ms", CONF_MS, FIELD(placement_rejoin_ns), "3000", 0, 86400000, NULL,
     "how long a lost node's copies wait for it to come back; experts without any other copy do "
     "not wait"},
    {"placement.rebalance_ms", CONF_MS, FIELD(placement_rebalance_ns), "60000", 0, 86400000, NULL,
     "how often the observed load of experts may lead to moves; 0: never"},
    {"placement.move_bytes", CONF_BYTES, FIELD(placement_move_bytes), "512MiB", 0, 0, NULL,
     "weights that may be read in a second to move experts for balance; 0: no limit"},
    {"attention.embedded", CONF_BOOL, FIELD(attention_embedded), "true", 0, 0, NULL,
     "run an attention side inside this process"},
    {"attention.threads", CONF_INT, FIELD(attention_threads), "0", 0, 4096, NULL,
     "compute threads of the embedded side; 0: all CPUs"},
    {"attention.kv_bytes", CONF_BYTES, FIELD(attention_kv_bytes), "0", 0, 0, NULL,
     "memory for the KV cache; 0: a quarter of what is free"},
    {"attention.prefix_cache", CONF_BOOL, FIELD(attention_keeps_prefixes), "true", 0, 0, NULL,
     "keep KV pages, while their memory is not needed, for prompts that begin the same"},
    {"attention.borrows", CONF_BOOL, FIELD(attention_borrows), "false", 0, 0, NULL,
     "let contexts that are too long for this memory go on at nodes with attention.lends"},
    {"attention.max_rows", CONF_INT, FIELD(attention_max_rows), "256", 1, 65536, NULL,
     "tokens of one step"},
    {"attention.max_seqs", CONF_INT, FIELD(attention_max_seqs), "64", 1, 4096, NULL,
     "sequences at a time"},
    {"attention.lanes", CONF_CHOICE, FIELD(attention_lanes), "auto", 0, 0, "auto|1|2",
     "2: one half of a step's rows attends while the experts of the other half work; auto: "
     "whichever "
     "of 1 and 2 is measured to be faster"},
    {"attention.call_timeout_ms", CONF_MS, FIELD(attention_call_timeout_ns), "10000", 1, 3600000,
     NULL, "experts of one layer must have answered by then"},
    {"attention.spin_us", CONF_INT, FIELD(attention_spin_us), "50", 0, 1000000, NULL,
     "busy-wait before sleeping while experts work; with CPUs of its own (compute.cpus) the "
     "network's threads do, too"},
    LADDER_OPTIONS(LADDER_FIELD),
    WEIGHTS_OPTIONS(WEIGHTS_FIELD),
    {"request.max_tokens", CONF_INT, FIELD(request_max_tokens), "4096", 1, 16777216, NULL,
     "longest answer if the client names no limit"},
    {"request.queue_limit", CONF_INT, FIELD(request_queue_limit), "256", 1, 100000, NULL,
     "requests that may wait; more are answered 429"},
    {"request.timeout_ms", CONF_MS, FIELD(request_timeout_ns), "600000", 100, 86400000, NULL,
     "a request that takes longer than this fails"},
    {"request.patience_ms", CONF_MS, FIELD(request_patience_ns), "30000", 0, 86400000, NULL,
     "how long a request waits for an attention side or for experts that are missing"},
    {"schedule.step_rows", CONF_INT, FIELD(schedule_step_rows), "0", 0, 65536, NULL,
     "tokens of one step, prompts and answers together; 0: as many as the attention side takes"},
    {"schedule.prompt_rows", CONF_INT, FIELD(schedule_prompt_rows), "0", 0, 65536, NULL,
     "of these, for prompts while answers are being written: fewer make answers smoother and "
     "prompts slower; 0: all that are left"},
    {"schedule.speculation", CONF_INT, FIELD(schedule_speculation), "8", 0, 32, NULL,
     "tokens that are guessed at a time from what a sequence has said before, and verified in one "
     "step, while that pays; answers are the same; 0: none"},
    {"schedule.queue_ms", CONF_MS, FIELD(schedule_queue_ns), "60000", 0, 86400000, NULL,
     "a request that would wait longer than this is answered 429 at once; 0: none is"},
    {"schedule.aging_ms", CONF_MS, FIELD(schedule_aging_ns), "30000", 0, 86400000, NULL,
     "waiting this long raises a request by one class of priority; 0: classes are strict"},
    {"state.dir", CONF_STRING, FIELD(state_dir), "", 0, 0, NULL,
     "directory of the token log, with which requests survive this process; empty: none"},
    {"state.standby", CONF_BOOL, FIELD(state_waits), "false", 0, 0, NULL,
     "if another coordinator has the directory, wait until it is gone and go on in its place"},
    {"state.shared", CONF_BOOL, FIELD(state_is_shared), "false", 0, 0, NULL,
     "with etcd: all coordinators see one state.dir, and who leads takes it over; false: each has "
     "its own, and those that stand by copy the leader's token log into it"},
    {"state.standby_ms", CONF_MS, FIELD(state_standby_ns), "1000", 0, 600000, NULL,
     "with etcd and state.dir: how long a new request's answer waits for standbys to have the "
     "request on their disks, too; who is later is not waited for until it has caught up; 0: "
     "nobody "
     "is"},
    {"state.sync", CONF_BOOL, FIELD(state_syncs), "true", 0, 0, NULL,
     "sync the token log to the disk, so that requests survive the machine, too"},
    {"state.delay_ms", CONF_MS, FIELD(state_delay_ns), "5", 0, 10000, NULL,
     "how long a record waits for others to be written with it"},
    {"state.max_bytes", CONF_BYTES, FIELD(state_max_bytes), "256MiB", 65536, 1e12, NULL,
     "largest file of the token log; twice as much for moments"},
    {"etcd.endpoints", CONF_STRING, FIELD(etcd_endpoints), "", 0, 0, NULL,
     "etcd, http(s)://HOST:PORT, several with commas between: one of the coordinators that name "
     "the "
     "same leads, the others stand by; empty: this is the only one"},
    {"etcd.prefix", CONF_STRING, FIELD(etcd_prefix), "/polymath", 0, 0, NULL,
     "begins all of this cluster's keys in etcd; /NAME"},
    {"etcd.lease_ms", CONF_MS, FIELD(etcd_lease_ns), "5000", 1000, 600000, NULL,
     "how long after a leader's death another leads, and how long one serves without etcd; etcd "
     "rounds up to whole seconds, and to 2 unless its election timeout is shortened"},
    {"etcd.advertise_url", CONF_STRING, FIELD(etcd_advertise_url), "", 0, 0, NULL,
     "where clients reach this coordinator, as a standby tells them; empty: http.host and "
     "http.port"},
    {"etcd.ca_file", CONF_STRING, FIELD(etcd_ca_file), "", 0, 0, NULL,
     "PEM certificate that signs etcd's; empty: the system's"},
    {"etcd.cert_file", CONF_STRING, FIELD(etcd_cert_file), "", 0, 0, NULL,
     "PEM certificate that this coordinator shows to etcd; empty: none"},
    {"etcd.key_file", CONF_STRING, FIELD(etcd_key_file), "", 0, 0, NULL, "its key"},
    {"etcd.user", CONF_STRING, FIELD(etcd_user), "", 0, 0, NULL, "user in etcd; empty: none"},
    {"etcd.password_file", CONF_STRING, FIELD(etcd_password_file), "", 0, 0, NULL,
     "holds the user's password, mode 0600"},
    {"streams.linger_ms", CONF_MS, FIELD(streams_linger_ns), "60000", 0, 86400000, NULL,
     "with a token log or an Idempotency-Key: how long generation goes on while no client reads"},
    {"streams.keep_ms", CONF_MS, FIELD(streams_keep_ns), "600000", 0, 864000000, NULL,
     "how long answers that are over can still be asked for"},
    {"streams.keep_bytes", CONF_BYTES, FIELD(streams_keep_bytes), "32MiB", 0, 1e12, NULL,
     "memory for them; the oldest go first"},
};

const struct conf_table coordinator_options = {
    .program = "coordinator",
    .summary = "front door of a Polymath cluster: HTTP, scheduling, membership, placement",
    .options = options,
    .n_options = sizeof options / sizeof options[0],
};

static bool is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &v6) == 1)
        return IN6_IS_ADDR_LOOPBACK(&v6);
    return strcmp(host, "localhost") == 0;
}

static int check_security(const struct coordinator_config *c, struct err *e)
{
    if (c->key_file[0] && !c->allow_file[0])
        return err_set(e, E_INVALID,
                       "security.allow_file is missing: the public keys of the nodes that may join "
                       "(cat *.pub >allow)");
    if (!is_loopback(c->http_host) && !c->api_keys_file[0] && !c->is_insecure)
        return err_set(e, E_INVALID,
                       "http.host %s is not loopback: clients need keys (security.api_keys_file), "
                       "unless security.insecure = true is written out",
                       c->http_host);
    return 0;
}

struct etcd_options coordinator_etcd_options(const struct coordinator_config *c)
{
    return (struct etcd_options){.endpoints = c->etcd_endpoints,
                                 .ca_file = c->etcd_ca_file,
                                 .cert_file = c->etcd_cert_file,
                                 .key_file = c->etcd_key_file,
                                 .user = c->etcd_user,
                                 .password_file = c->etcd_password_file};
}

static int check_etcd(const struct coordinator_config *c, struct err *e)
{
    const char *prefix = c->etcd_prefix;
    size_t n = strlen(prefix);
    if (!c->etcd_endpoints[0])
        return 0;
    if (n < 2 || n > 200 || prefix[0] != '/' || prefix[n - 1] == '/')
        return err_set(e, E_INVALID, "etcd.prefix: \"%s\" is not /NAME", prefix);
    struct etcd_options o = coordinator_etcd_options(c);
    return etcd_check(&o, c->is_insecure, e);
}

int coordinator_config_check(const void *config, struct err *e)
{
    const struct coordinator_config *c = config;
    if (!c->model_path[0])
        return err_set(e, E_INVALID, "model.path is missing: the checkpoint's directory");
    if (!c->node_name[0] || strlen(c->node_name) > 40)
        return err_set(e, E_INVALID, "node.name must have 1 to 40 characters");
    if (c->cluster_lease_ns < 2 * c->cluster_heartbeat_ns)
        return err_set(e, E_INVALID,
                       "cluster.lease_ms (%lld) must be at least twice cluster.heartbeat_ms (%lld)",
                       (long long)(c->cluster_lease_ns / CLOCK_MS),
                       (long long)(c->cluster_heartbeat_ns / CLOCK_MS));
    if (coordinator_replicas(c) < 0)
        return err_set(e, E_INVALID, "placement.replicas: \"%s\" is not 1 to %d, or auto",
                       c->placement_replicas, WIRE_MAX_REPLICAS);
    if (check_security(c, e) < 0)
        return e ? e->code : E_INVALID;
    if (c->streams_keep_bytes > c->state_max_bytes / 4)
        return err_set(
            e, E_INVALID,
            "streams.keep_bytes (%lld) must be at most a quarter of state.max_bytes (%lld)",
            (long long)c->streams_keep_bytes, (long long)c->state_max_bytes);
    if (check_etcd(c, e) < 0)
        return e ? e->code : E_INVALID;
    return weights_options_check(&c->weights, e);
}

int coordinator_replicas(const struct coordinator_config *c)
{
    const char *text = c->placement_replicas;
    if (strcmp(text, "auto") == 0)
        return 0;
    bool is_digit = text[0] >= '1' && text[0] <= '0' + WIRE_MAX_REPLICAS && text[1] == '\0';
    return is_digit ? text[0] - '0' : -1;
}

char *coordinator_model_name(const struct coordinator_config *c)
{
    if (c->model_name[0])
        return mem_string(c->model_name);
    struct str path = str_of(c->model_path);
    while (path.len > 1 && path.ptr[path.len - 1] == '/')
        path.len--;
    size_t start = path.len;
    while (start > 0 && path.ptr[start - 1] != '/')
        start--;
    return str_copy((struct str){path.ptr + start, path.len - start});
}
