/* attn_node/verify.h - is an answer the one that a replica gives?  (cluster.md 4)
 *
 * One parcel in N is kept with its answer, and later, off the step's path, asked of another
 * node that has all its experts; the bits must be equal.  If they are not, a third holder
 * decides, or else both are asked again: who contradicts itself was wrong.
 *
 * The books of one check at a time, pure but for the memory of the kept frames: the owner
 * sends the calls and reports the answers.  Owner: engine thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/blob.h"
#include "base/buf.h"
#include "rpc/wire.h"

enum verify_outcome {
    VERIFY_GOES_ON, /* ask verify_whom() next */
    VERIFY_EQUAL,
    VERIFY_WRONG,     /* verify_wrong() gave a wrong answer */
    VERIFY_UNDECIDED, /* both stand by what they said */
};
enum { VERIFY_NODES = 3, VERIFY_ANSWERS = 4 };

/* Owner's to read. */
struct verify {
    bool is_open;
    struct wire_forward forward;
    struct blob *routes, *rows;
    uint32_t nodes[VERIFY_NODES]; /* ids: who answered first, the replica, a third (0: none) */
    int n_answers;
    struct {
        int node; /* index into nodes */
        struct buf data;
        uint32_t n_overflow, overflow_rows[WIRE_MAX_OVERFLOW];
    } answers[VERIFY_ANSWERS];
};

void verify_fini(struct verify *v);
/* Begins a check with the frames of a parcel that nodes[0] was asked for. */
void verify_begin(struct verify *v, const struct wire_forward *w, struct blob *routes,
                  struct blob *rows, const uint32_t nodes[VERIFY_NODES]);
/* The check comes to nothing: a node went, or did not answer. */
void verify_end(struct verify *v);
/* The next answer in order; the first is that of the parcel itself. */
enum verify_outcome verify_take(struct verify *v, const struct wire_forward_reply *r,
                                const void *data, size_t bytes);
/* Index into nodes of who is asked next. */
int verify_whom(const struct verify *v);
/* Index into nodes, after VERIFY_WRONG. */
int verify_wrong(const struct verify *v);
