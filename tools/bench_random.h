/* tools/bench_random.h - random weights straight in packed form: what a benchmark needs of a
 * model, without a file and without converting.
 *
 * Values are finite, of both signs and of a spread of about 1 / sqrt(columns), so that what
 * comes out stays in a sane range. */
#pragma once

#include "base/err.h"
#include "engine/expert.h"
#include "engine/matrix.h"

/* A matrix and its memory, huge pages of its own. */
struct bench_matrix {
    struct matrix m;
    void *room;
    size_t bytes;
};
/* E_NOMEM, E_RANGE. */
int bench_matrix_open(struct bench_matrix *m, enum weight_format format, int rows, int cols,
                      uint64_t seed, struct err *e);
void bench_matrix_close(struct bench_matrix *m);

/* n experts over the pool, each in its own room; free each with expert_fini(). */
int bench_experts_open(struct expert *experts, int n, enum weight_format format, int hidden,
                       int expert_size, struct pool *pool, struct err *e);
/* Bytes that one such expert takes. */
int bench_expert_bytes(enum weight_format format, int hidden, int expert_size, size_t *bytes,
                       struct err *e);

/* Fills a run of matrix_layout() bytes; every seed its own values. */
void bench_random_fill(const struct matrix *m, void *room, size_t bytes, uint64_t seed);
/* n values of about a standard normal's spread, the same for the same seed. */
void bench_random_floats(float *out, size_t n, uint64_t seed);
