/* tests/unit/rpc_echo.h - a server in a thread of its own, for the tests of rpc/.
 *
 * It answers Expert/Forward by the first word of the message:
 *   echo     the message, the payloads and the metadata as they came
 *   fail     FAILED_PRECONDITION "as you wished"
 *   hold     not yet: kept until a later "release"
 *   release  answers what is held with "late", then itself
 *   held     "N cancelled M": what is held, and how much of it is cancelled */
#pragma once

#include <stdbool.h>

#include "rpc/server.h"

struct rpc_echo;
struct rpc_echo *rpc_echo_start(const char *endpoint, size_t max_frame_bytes);
/* The same with keys (NULL: none) and a share for each peer (0: the default). */
struct rpc_echo *rpc_echo_start_with(const char *endpoint, struct auth *auth, int max_peer_calls);
/* Closes the server on its thread and ends the thread. */
void rpc_echo_stop(struct rpc_echo **e);
/* As bound. */
const char *rpc_echo_endpoint(const struct rpc_echo *e);
void rpc_echo_set_serving(struct rpc_echo *e, bool serving);
/* Asks the server's thread and waits for its answer. */
struct server_counters rpc_echo_counters(struct rpc_echo *e);
