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
    bool is_local;                  /* loopback, ipc or inproc: nobody else's network */
    bool is_wildcard;               /* tcp on every address: 0.0.0.0, [::], * */
};

/* E_INVALID with the reason: malformed, or port 0 of an endpoint to dial. */
int endpoint_parse(const char *text, enum link_role role, struct endpoint *out, struct err *e);
/* How others dial what is bound as `bound`: with the host, or host:port, of `advertise` if that
 * is not empty.  E_INVALID: it is bound to every address and nobody said which one is meant. */
int endpoint_advertise(const char *bound, const char *advertise, char out[LINK_ENDPOINT_BYTES],
                       struct err *e);
