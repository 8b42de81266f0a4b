/* coordinator/config.h - the coordinator's options. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "attn_node/side.h"
#include "base/conf.h"
#include "coordinator/etcd.h"
#include "model/weights_options.h"

struct coordinator_config {
    char *node_name;
    int log_level;
    char *model_path, *model_name;
    char *http_host;
    int64_t http_port, http_max_body, http_max_connections, http_idle_timeout_ns, http_drain_ns;
    int64_t http_request_ns;
    char *cluster_listen, *cluster_advertise;
    char *key_file, *allow_file, *api_keys_file;
    bool is_insecure;
    int64_t cluster_heartbeat_ns, cluster_lease_ns;
    char *placement_replicas;
    int64_t placement_settle_ns, placement_rejoin_ns, placement_rebalance_ns, placement_move_bytes;
    bool attention_embedded, attention_keeps_prefixes, attention_borrows;
    int attention_lanes;
    int64_t attention_threads, attention_kv_bytes, attention_max_rows, attention_max_seqs;
    int64_t attention_call_timeout_ns, attention_spin_us;
    struct ladder ladder; /* of the embedded side */
    struct weights_options weights;
    int64_t request_max_tokens, request_queue_limit, request_timeout_ns;
    int64_t request_patience_ns;
    int64_t schedule_speculation, schedule_step_rows, schedule_prompt_rows, schedule_queue_ns,
        schedule_aging_ns;
    char *state_dir;
    bool state_syncs, state_waits, state_is_shared;
    int64_t state_delay_ns, state_max_bytes, state_standby_ns;
    char *etcd_endpoints, *etcd_prefix, *etcd_advertise_url; /* no endpoints: no etcd */
    char *etcd_ca_file, *etcd_cert_file, *etcd_key_file, *etcd_user, *etcd_password_file;
    int64_t etcd_lease_ns;
    int64_t streams_linger_ns, streams_keep_ns, streams_keep_bytes;
};

extern const struct conf_table coordinator_options;
/* What the table cannot say: for conf_main(). */
int coordinator_config_check(const void *config, struct err *e);
/* Borrowed from `c`. */
struct etcd_options coordinator_etcd_options(const struct coordinator_config *c);
/* placement.replicas: 1 .. WIRE_MAX_REPLICAS, 0 for auto; -1 if it is neither. */
int coordinator_replicas(const struct coordinator_config *c);
/* model.name, or the last component of model.path; free with mem_free(). */
char *coordinator_model_name(const struct coordinator_config *c);
