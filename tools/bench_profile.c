/* tools/bench_profile.c - see bench_profile.h. */
#include "tools/bench_profile.h"

#include <stdatomic.h>

#include "base/clock.h"

static struct profile {
    const struct kernels *inner;
    struct kernels wrapped;
    struct model_config config;
    atomic_bool is_on, has_experts_running;
    _Atomic int64_t ns[BENCH_PARTS];
} profile;

const char *bench_part_name(enum bench_part part)
{
    static const char *const names[] = {
        [BENCH_PART_PROJECTIONS] = "attention projections",
        [BENCH_PART_CACHE] = "attention over the cache",
        [BENCH_PART_ROUTER] = "router",
        [BENCH_PART_EXPERTS] = "experts",
        [BENCH_PART_HEAD] = "head",
        [BENCH_PART_REST] = "norms, quantising, adding",
    };
    return names[part];
}

static bool is_on(void)
{
    return atomic_load_explicit(&profile.is_on, memory_order_relaxed);
}

static void add_since(enum bench_part part, int64_t begun_ns)
{
    atomic_fetch_add_explicit(&profile.ns[part], clock_now_ns() - begun_ns, memory_order_relaxed);
}

static enum bench_part part_of(const struct matrix *w)
{
    const struct model_config *c = &profile.config;
    bool is_wide = w->cols == c->hidden_size;
    if (atomic_load_explicit(&profile.has_experts_running, memory_order_relaxed))
        return BENCH_PART_EXPERTS;
    if (w->rows == c->vocab_size && is_wide)
        return BENCH_PART_HEAD;
    if (w->rows == c->n_experts && is_wide)
        return BENCH_PART_ROUTER;
    return BENCH_PART_PROJECTIONS;
}

static void timed_matmul(const struct matrix *w, int first_panel, int n_panels,
                         const struct rows *x, float *y, size_t y_stride)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->matmul[w->format](w, first_panel, n_panels, x, y, y_stride);
    if (begun_ns)
        add_since(part_of(w), begun_ns);
}

static void timed_attend(enum kv_format format, const struct attend_block *b)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->attend[format](b);
    if (begun_ns)
        add_since(BENCH_PART_CACHE, begun_ns);
}

static void timed_attend_f32(const struct attend_block *b)
{
    timed_attend(KV_F32, b);
}

static void timed_attend_bf16(const struct attend_block *b)
{
    timed_attend(KV_BF16, b);
}

static void timed_attend_int8(const struct attend_block *b)
{
    timed_attend(KV_INT8, b);
}

static void timed_quantise(const float *x, int n, int group, int8_t *q, float *scales,
                           int32_t *sums)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->quantise(x, n, group, q, scales, sums);
    if (begun_ns)
        add_since(BENCH_PART_REST, begun_ns);
}

static void timed_rms_norm(const float *x, const float *w, int n, float eps, float *out)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->rms_norm(x, w, n, eps, out);
    if (begun_ns)
        add_since(BENCH_PART_REST, begun_ns);
}

static void timed_swiglu(float *gate, const float *up, int n)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->swiglu(gate, up, n);
    if (begun_ns)
        add_since(BENCH_PART_EXPERTS, begun_ns);
}

static void timed_add(float *x, const float *y, int n)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->add(x, y, n);
    if (begun_ns)
        add_since(BENCH_PART_REST, begun_ns);
}

static void timed_sigmoid(const float *x, int n, float *out)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->sigmoid(x, n, out);
    if (begun_ns)
        add_since(BENCH_PART_ROUTER, begun_ns);
}

static int timed_fixed_add(const float *y, float weight, int exponent, int n, int32_t *acc)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    int over = profile.inner->fixed_add(y, weight, exponent, n, acc);
    if (begun_ns)
        add_since(BENCH_PART_EXPERTS, begun_ns);
    return over;
}

static void timed_fixed_fold(const int32_t *acc, int exponent, int n, float *x)
{
    int64_t begun_ns = is_on() ? clock_now_ns() : 0;
    profile.inner->fixed_fold(acc, exponent, n, x);
    if (begun_ns)
        add_since(BENCH_PART_REST, begun_ns);
}

const struct kernels *bench_profile_wrap(const struct kernels *kernels,
                                         const struct model_config *config)
{
    bench_profile_set(false);
    profile.inner = kernels;
    profile.config = *config;
    profile.wrapped = *kernels;
    for (int f = 0; f < FORMAT_COUNT; f++)
        if (kernels->matmul[f])
            profile.wrapped.matmul[f] = timed_matmul;
    profile.wrapped.attend[KV_F32] = timed_attend_f32;
    profile.wrapped.attend[KV_BF16] = timed_attend_bf16;
    profile.wrapped.attend[KV_INT8] = timed_attend_int8;
    profile.wrapped.quantise = timed_quantise;
    profile.wrapped.rms_norm = timed_rms_norm;
    profile.wrapped.swiglu = timed_swiglu;
    profile.wrapped.add = timed_add;
    profile.wrapped.sigmoid = timed_sigmoid;
    profile.wrapped.fixed_add = timed_fixed_add;
    profile.wrapped.fixed_fold = timed_fixed_fold;
    return &profile.wrapped;
}

void bench_profile_set(bool on)
{
    if (on)
        for (int part = 0; part < BENCH_PARTS; part++)
            atomic_store(&profile.ns[part], 0);
    atomic_store(&profile.is_on, on);
}

void bench_profile_experts(bool are_running)
{
    atomic_store(&profile.has_experts_running, are_running);
}

int64_t bench_profile_ns(enum bench_part part)
{
    return atomic_load(&profile.ns[part]);
}
