/* tests/lib/streams.h - clients that stream from a cluster of several coordinators, each in a process of
 * its own: whatever happens, the next coordinator is asked for what is missing, and every token and
 * event number that came is written down. */
#pragma once

#include <stddef.h>
#include <sys/types.h>

enum { STREAMS = 4, STREAMS_TOKENS = 400, STREAMS_MAX_URLS = 3 };

/* The body of request i; mem_free() it. */
char *streams_body(int i);
/* Starts the clients; `run` is the prefix of their files in the test's directory. */
void streams_start(const char *const *urls, int n_urls, const char *run, pid_t pids[STREAMS]);
/* Until each has had n tokens. */
void streams_wait(const char *run, size_t n);
/* Until all have ended well.  The longest gap in any of them, in ms. */
long long streams_finish(const char *run, pid_t pids[STREAMS]);
/* `run` had the tokens of the run "quiet", and every event once. */
void streams_check_same(const char *run);
