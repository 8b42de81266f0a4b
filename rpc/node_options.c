/* rpc/node_options.c - see node_options.h. */
#include "rpc/node_options.h"

#include <string.h>

#include "rpc/wire.h"

int node_options_check(const struct node_options *o, struct err *e)
{
    if (!o->name[0] || strlen(o->name) >= WIRE_NAME_BYTES)
        return err_set(e, E_INVALID, "node.name: expected 1 to %d bytes", WIRE_NAME_BYTES - 1);
    if (o->key_file[0] && !o->server_key[0])
        return err_set(e, E_INVALID, "security.server_key is missing: whom to expect at %s",
                       o->coordinator_endpoint);
    return 0;
}

struct auth_options node_options_auth(const struct node_options *o)
{
    return (struct auth_options){.key_file = o->key_file,
                                 .server_key = o->server_key,
                                 .allow_file = o->allow_file,
                                 .is_insecure = o->is_insecure};
}
