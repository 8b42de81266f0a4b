/* rpc/node_options.h - the options of any program that joins a cluster; rows of its option table
 * (base/conf.h). */
#pragma once

#include <stdbool.h>

#include "base/conf.h"
#include "rpc/auth.h"

struct node_options {
    char *name;
    int log_level; /* enum log_level */
    char *model_path, *coordinator_endpoint, *listen, *advertise;
    char *key_file, *server_key, *allow_file;
    bool is_insecure;
};

/* The rows.  AT(field) is the offset of a field of struct node_options in the program's struct. */
#define NODE_OPTIONS(AT, NAME, SERVICE) \
    {"node.name", CONF_STRING, AT(name), NAME, \
     0,           0,           NULL,     "name of this node, unique in the cluster"}, \
        {"node.listen", \
         CONF_STRING, \
         AT(listen), \
         "tcp://127.0.0.1:0", \
         0, \
         0, \
         NULL, \
         "endpoint of the " SERVICE " service; port 0 takes a free one"}, \
        {"node.advertise", \
         CONF_STRING, \
         AT(advertise), \
         "", \
         0, \
         0, \
         NULL, \
         "host, or host:port, under which others reach node.listen; empty: as it is bound"}, \
        {"log.level", \
         CONF_CHOICE, \
         AT(log_level), \
         "info", \
         0, \
         0, \
         "error|warn|info|debug", \
         "least important lines that are logged"}, \
        {"model.path", \
         CONF_STRING, \
         AT(model_path), \
         "", \
         0, \
         0, \
         NULL, \
         "directory of the model: config.json and safetensors; must be given"}, \
        {"coordinator.endpoint", \
         CONF_STRING, \
         AT(coordinator_endpoint), \
         "tcp://127.0.0.1:7070", \
         0, \
         0, \
         NULL, \
         "Cluster service of the coordinator; with standbys all of them, with commas between"}, \
        {"security.key_file", \
         CONF_STRING, \
         AT(key_file), \
         "", \
         0, \
         0, \
         NULL, \
         "key pair of this program (polymath keys new); empty: none, and tcp stays on loopback"}, \
        {"security.server_key", \
         CONF_STRING, \
         AT(server_key), \
         "", \
         0, \
         0, \
         NULL, \
         "public key of the coordinator, or its .pub file"}, \
        {"security.allow_file", \
         CONF_STRING, \
         AT(allow_file), \
         "", \
         0, \
         0, \
         NULL, \
         "public keys that may call beside the coordinator and the callers that it names, a line " \
         "KEY " \
         "NAME for each; read again when it changes"}, \
    { \
        "security.insecure", CONF_BOOL, AT(is_insecure), "false", 0, 0, NULL, \
            "without keys, listen beyond loopback all the same: whoever reaches the port is " \
            "believed" \
    }

/* What the rows cannot say: a name that fits, a server key beside a key. */
int node_options_check(const struct node_options *o, struct err *e);
/* Borrows the strings. */
struct auth_options node_options_auth(const struct node_options *o);
