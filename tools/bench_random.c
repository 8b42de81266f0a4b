/* tools/bench_random.c - see bench_random.h. */
#include "tools/bench_random.h"

#include <math.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"
#include "model/halves.h"

/* Drawn once and then repeated: gigabytes are filled as fast as memory is written.  No number
 * of panels, so that a repeat falls elsewhere in its panel. */
enum { PATTERN_BYTES = (1 << 16) + 8 };

/* Random bits r become (r & keep) | set, eight bytes at a time. */
struct mask {
    uint64_t keep, set;
};

/* Floats of both signs in [1, 2) / sqrt(cols), to the nearest power of two. */
static uint32_t exponent_bits(int cols)
{
    int exponent = -(int)lrint(log2(sqrt((double)cols)));
    return (uint32_t)(127 + exponent) << 23;
}

static struct mask mask_of(const struct matrix *m)
{
    uint64_t f32 = exponent_bits(m->cols), bf16 = f32 >> 16;
    switch (m->format) {
    case FORMAT_F32:
        return (struct mask){0x807fffff807fffff, f32 | f32 << 32};
    case FORMAT_BF16:
        return (struct mask){0x807f807f807f807f, bf16 * 0x0001000100010001};
    case FORMAT_FP8: /* both signs of [1, 2): no NaN */
        return (struct mask){0x8787878787878787, 0x3838383838383838};
    case FORMAT_Q8: /* odd numbers: no -128 */
        return (struct mask){~0ULL, 0x0101010101010101};
    default:
        return (struct mask){~0ULL, 0};
    }
}

static void fill_words(void *room, size_t bytes, struct mask mask, struct rng *random)
{
    uint8_t *out = room;
    size_t drawn = bytes < PATTERN_BYTES ? bytes : PATTERN_BYTES;
    must(bytes % sizeof(uint64_t) == 0);
    for (size_t at = 0; at < drawn; at += sizeof(uint64_t)) {
        uint64_t word = (rng_next(random) & mask.keep) | mask.set;
        memcpy(out + at, &word, sizeof(word));
    }
    for (size_t at = drawn; at < bytes; at += drawn)
        memcpy(out + at, out, bytes - at < drawn ? bytes - at : drawn);
}

static void fill_scales(float *scales, size_t n, float mean, struct rng *random)
{
    for (size_t i = 0; i < n; i++)
        scales[i] = mean * (0.75f + 0.5f * (float)rng_unit(random));
}

/* The spread of the integers (or of fp8's [1, 2)) in units of the scale. */
static float unit_spread(enum weight_format format)
{
    return format == FORMAT_Q8 ? 73.5f : format == FORMAT_Q4 ? 4.6f : 1.5f;
}

void bench_random_fill(const struct matrix *m, void *room, size_t bytes, uint64_t seed)
{
    struct rng random = rng_seed(seed);
    float mean = 1.0f / (unit_spread(m->format) * sqrtf((float)m->cols));
    size_t panels = (size_t)m->n_panels * m->panel_bytes;
    must(panels <= bytes);
    fill_words(room, panels, mask_of(m), &random);
    if (m->format == FORMAT_FP8)
        fill_scales((float *)(void *)((uint8_t *)room + panels), (bytes - panels) / sizeof(float),
                    mean, &random);
    if (m->group == 0)
        return;
    size_t groups = (size_t)m->n_panels * (size_t)(m->padded_cols / m->group);
    size_t stride = panels / groups;
    for (size_t g = 0; g < groups; g++)
        fill_scales((float *)(void *)((uint8_t *)room + g * stride), PANEL_ROWS, mean, &random);
}

void bench_random_floats(float *out, size_t n, uint64_t seed)
{
    struct rng random = rng_seed(seed);
    for (size_t i = 0; i < n; i++) /* uniform, variance 1 */
        out[i] = ((float)rng_unit(&random) - 0.5f) * 3.4641016f;
}

/* Points a matrix to memory that is not its own. */
static void lend(struct matrix *m, void *room)
{
    m->panels = room;
    m->scales = NULL;
    if (m->format == FORMAT_FP8)
        m->scales = (float *)(void *)((uint8_t *)room + (size_t)m->n_panels * m->panel_bytes);
    m->is_borrowed = true;
}

int bench_matrix_open(struct bench_matrix *m, enum weight_format format, int rows, int cols,
                      uint64_t seed, struct err *e)
{
    *m = (struct bench_matrix){0};
    int rc = matrix_layout(&m->m, format, rows, cols, &m->bytes, e);
    if (rc < 0)
        return rc;
    m->room = mem_weights(m->bytes);
    if (!m->room)
        return err_set(e, E_NOMEM, "no memory for a matrix of %zu bytes", m->bytes);
    bench_random_fill(&m->m, m->room, m->bytes, seed);
    lend(&m->m, m->room);
    return 0;
}

void bench_matrix_close(struct bench_matrix *m)
{
    if (m->room)
        mem_weights_free(m->room, m->bytes);
    *m = (struct bench_matrix){0};
}

/* ---- experts ---- */

struct expert_sizes {
    size_t up, down; /* gate is as large as up */
};

static int expert_layout(struct expert *x, enum weight_format format, int hidden, int expert_size,
                         struct expert_sizes *sizes, struct err *e)
{
    *x = (struct expert){0};
    int rc = matrix_layout(&x->gate, format, expert_size, hidden, &sizes->up, e);
    if (rc == 0)
        rc = matrix_layout(&x->up, format, expert_size, hidden, &sizes->up, e);
    if (rc == 0)
        rc = matrix_layout(&x->down, format, hidden, expert_size, &sizes->down, e);
    x->room_bytes = 2 * sizes->up + sizes->down;
    return rc;
}

int bench_expert_bytes(enum weight_format format, int hidden, int expert_size, size_t *bytes,
                       struct err *e)
{
    struct expert x;
    struct expert_sizes sizes;
    int rc = expert_layout(&x, format, hidden, expert_size, &sizes, e);
    if (rc == 0)
        *bytes = x.room_bytes;
    return rc;
}

struct expert_job {
    struct expert *experts;
    struct expert_sizes sizes;
};

static void expert_task(void *ctx, int i)
{
    struct expert_job *job = ctx;
    struct expert *x = &job->experts[i];
    uint8_t *room = x->room;
    uint64_t seed = 3 * (uint64_t)i;
    bench_random_fill(&x->gate, room, job->sizes.up, seed);
    bench_random_fill(&x->up, room + job->sizes.up, job->sizes.up, seed + 1);
    bench_random_fill(&x->down, room + 2 * job->sizes.up, job->sizes.down, seed + 2);
    lend(&x->gate, room);
    lend(&x->up, room + job->sizes.up);
    lend(&x->down, room + 2 * job->sizes.up);
}

int bench_experts_open(struct expert *experts, int n, enum weight_format format, int hidden,
                       int expert_size, struct pool *pool, struct err *e)
{
    struct expert_job job = {.experts = experts};
    memset(experts, 0, (size_t)n * sizeof(*experts));
    for (int i = 0; i < n; i++) {
        int rc = expert_layout(&experts[i], format, hidden, expert_size, &job.sizes, e);
        if (rc < 0)
            return rc;
        experts[i].room = mem_weights(experts[i].room_bytes);
        if (!experts[i].room)
            return err_set(e, E_NOMEM, "no memory for expert %d of %d, %zu bytes each", i, n,
                           experts[i].room_bytes);
    }
    pool_run(pool, expert_task, &job, n);
    return 0;
}
