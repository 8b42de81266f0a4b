/* rpc/endpoint.h - endpoints as people write them: tcp://host:port, ipc://path,
 * inproc://name.  Pure text work; any thread. */
#pragma once

#include <stdbool.h>

#include "base/err.h"
#include "rpc/link.h"

enum endpoint_kind { ENDPOINT_TCP, ENDPOINT_IPC, ENDPOINT_INPROC };

struct endpoint {
    enum endpoint_kind kind;
    char text[LINK_ENDPOINT_BYTES]; /* as libzmq wants it */
    char path[LINK_ENDPOINT_BYTES]; /* of an ipc endpoint */
    bool is_ipv6;                   /* a literal [address] */
};

/* E_INVALID with the reason: malformed, port 0 of an endpoint to dial, or a bind that is
 * not loopback. */
int endpoint_parse(const char *text, enum link_role role, struct endpoint *out, struct err *e);
