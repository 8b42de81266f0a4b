/* attn_node/verify.c - see verify.h.
 *
 * The order of answers: 0 the parcel's own, 1 the replica's; if they differ, 2 is the third
 * holder's; without one, 2 is the first node's second answer and 3 the replica's. */
#include "attn_node/verify.h"

#include <string.h>

#include "base/must.h"

void verify_end(struct verify *v)
{
    v->is_open = false;
    v->n_answers = 0;
    blob_unref(&v->routes);
    blob_unref(&v->rows);
}

void verify_fini(struct verify *v)
{
    verify_end(v);
    for (int i = 0; i < VERIFY_ANSWERS; i++)
        buf_fini(&v->answers[i].data);
}

void verify_begin(struct verify *v, const struct wire_forward *w, struct blob *routes,
                  struct blob *rows, const uint32_t nodes[VERIFY_NODES])
{
    must(!v->is_open && nodes[0] != 0 && nodes[1] != 0);
    v->is_open = true;
    v->forward = *w;
    v->routes = blob_ref(routes);
    v->rows = blob_ref(rows);
    memcpy(v->nodes, nodes, sizeof(v->nodes));
}

int verify_whom(const struct verify *v)
{
    must(v->is_open);
    if (v->n_answers == 2)
        return v->nodes[2] != 0 ? 2 : 0;
    return v->n_answers == 3 ? 1 : v->n_answers;
}

/* What a row off the grid holds is nobody's promise. */
static bool is_same_row(const struct verify *v, int a, int b, uint32_t row, size_t bytes)
{
    for (uint32_t i = 0; i < v->answers[a].n_overflow; i++)
        if (v->answers[a].overflow_rows[i] == row)
            return true;
    return memcmp(v->answers[a].data.data + row * bytes, v->answers[b].data.data + row * bytes,
                  bytes) == 0;
}

static bool is_same(const struct verify *v, int a, int b)
{
    size_t bytes = v->answers[a].data.len;
    uint32_t n = v->answers[a].n_overflow;
    if (bytes != v->answers[b].data.len || n != v->answers[b].n_overflow ||
        memcmp(v->answers[a].overflow_rows, v->answers[b].overflow_rows, n * sizeof(uint32_t)))
        return false;
    if (n == 0)
        return memcmp(v->answers[a].data.data, v->answers[b].data.data, bytes) == 0;
    for (uint32_t row = 0; row < v->forward.n_rows; row++)
        if (!is_same_row(v, a, b, row, bytes / v->forward.n_rows))
            return false;
    return true;
}

enum verify_outcome verify_take(struct verify *v, const struct wire_forward_reply *r,
                                const void *data, size_t bytes)
{
    must(v->is_open && v->n_answers < VERIFY_ANSWERS);
    int at = v->n_answers;
    v->answers[at].node = verify_whom(v);
    buf_reset(&v->answers[at].data);
    buf_append(&v->answers[at].data, data, bytes);
    v->answers[at].n_overflow = r->n_overflow;
    memcpy(v->answers[at].overflow_rows, r->overflow_rows, r->n_overflow * sizeof(uint32_t));
    v->n_answers++;
    switch (v->n_answers) {
    case 1:
        return VERIFY_GOES_ON;
    case 2:
        return is_same(v, 0, 1) ? VERIFY_EQUAL : VERIFY_GOES_ON;
    case 3:
        if (v->nodes[2] != 0)
            return is_same(v, 0, 2) || is_same(v, 1, 2) ? VERIFY_WRONG : VERIFY_UNDECIDED;
        return is_same(v, 2, 0) ? VERIFY_GOES_ON : VERIFY_WRONG;
    default:
        return is_same(v, 3, 1) ? VERIFY_UNDECIDED : VERIFY_WRONG;
    }
}

int verify_wrong(const struct verify *v)
{
    must(v->n_answers >= 3);
    if (v->nodes[2] != 0)
        return is_same(v, 0, 2) ? 1 : 0;
    return v->n_answers == 3 ? 0 : 1;
}
