/* tests/unit/wire_random.h - random contents for messages, and damage to their encodings. */
#pragma once

#include "base/blob.h"
#include "rpc/wire.h"
#include "tests/lib/test.h"

/* Small and large values alike: varints change length. */
uint32_t wire_random_32(struct rng *r);
uint64_t wire_random_64(struct rng *r);
float wire_random_float(struct rng *r, float low, float high);
/* A text of at least one character that may be longer in bytes than in characters. */
void wire_random_text(struct rng *r, char *out, size_t size);
/* A key, or nothing. */
void wire_random_key(struct rng *r, char out[KEY_TEXT_BYTES]);

static inline struct frame frame_of(const struct blob *b)
{
    return (struct frame){b->data, b->size_bytes};
}

/* Decodes and gives back what it took; 0 or E_INVALID and nothing else. */
typedef int wire_check(void *ud, struct str message, const struct frame *payloads, int n_payloads);

/* Runs `check` over every prefix of `message` and over damaged copies of it, each in a block
 * of exactly its size, so that the sanitizers see a byte too many.  Payloads (at most 4) that
 * are short or missing must be refused. */
void wire_damage(struct str message, const struct frame *payloads, int n_payloads,
                 wire_check *check, void *ud);
