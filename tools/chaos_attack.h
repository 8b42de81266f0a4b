/* tools/chaos_attack.h - those who send a cluster what they should not, from a process of their
 * own: `polymath chaos --attack` runs it, the scenarios "hostile" and "keys" start that.
 *
 * At endpoints (tcp://, ipc://) they connect as ZeroMQ peers and send frames that are random, cut
 * short, too many, or real calls with damaged bytes; and as anybody, with bytes that are no
 * ZeroMQ at all, hung up in every state.  At http:// addresses they send requests that are
 * damaged likewise. */
#pragma once

#include <stdint.h>

struct chaos_attack_options {
    const char *targets; /* with commas */
    uint64_t seed;
    int seconds;   /* 0: until a signal */
    int signal_fd; /* readable: end */
};
/* Until it shall end, one attack after the other; prints how many there were ("attacks=N").  The
 * exit code. */
int chaos_attack(const struct chaos_attack_options *o);
