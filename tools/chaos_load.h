/* tools/chaos_load.h - clients that stream known prompts at a cluster, over and over.
 *
 * Every client is a thread with one request at a time; it writes down each token and when it
 * came.  A patient client is one whose coordinator may die: it asks for its stream again by id
 * (GET /v1/streams/{id}, Last-Event-ID), or posts again under the same idempotency key if it
 * has seen nothing yet, at the other coordinator if there are two, and goes on where it was.
 * Any other client tries once.
 *
 * Owner: the thread that started it; the streams are the clients' until chaos_load_end(). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "tools/chaos_judge.h"

enum { CHAOS_PROMPT_TOKENS = 40, CHAOS_MAX_CLIENTS = 64, CHAOS_MAX_URLS = 2 };

struct chaos_prompt {
    int32_t ids[CHAOS_PROMPT_TOKENS];
    int n_ids, max_tokens;
    double temperature; /* 0: greedy */
    uint64_t seed;
};
/* Every second one greedy, every second one sampled with a seed of its own. */
void chaos_prompts_make(struct chaos_prompt *prompts, int n, int max_tokens, uint64_t seed);

enum chaos_patience { CHAOS_TRY_ONCE, CHAOS_RESUME };

struct chaos_load_options {
    const char *urls[CHAOS_MAX_URLS]; /* borrowed, as is all else */
    int n_urls;
    const char *key_path; /* holds the clients' API key; NULL: none */
    const struct chaos_prompt *prompts;
    int n_prompts, n_clients;
    int n_rounds; /* each prompt so often, then the clients end; 0: until chaos_load_end() */
    enum chaos_patience patience;
    const char *refusal; /* 503 with this text is counted; NULL: none */
    int64_t timeout_ns;  /* for one request, resumed or not */
};

struct chaos_load;
int chaos_load_start(const struct chaos_load_options *o, struct chaos_load **out, struct err *e);
/* All clients have ended by themselves (n_rounds). */
bool chaos_load_is_over(const struct chaos_load *l);
/* Tokens that have come so far, of all clients. */
int64_t chaos_load_tokens(const struct chaos_load *l);
/* No new requests from here on; those that run go on. */
void chaos_load_finish(struct chaos_load *l);
/* FINISH waits for the requests that run, ABORT ends them within a second.  Returns all
 * streams, the caller's to fini and mem_free(). */
enum chaos_load_how { CHAOS_FINISH, CHAOS_ABORT };
struct chaos_stream *chaos_load_end(struct chaos_load **l, enum chaos_load_how how, int *n);
