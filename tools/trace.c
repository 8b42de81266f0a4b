/* tools/trace.c - see trace.h. */
#include "tools/trace.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <zlib.h>

#include "base/mem.h"
#include "model/config.h"

enum { HEAD_BYTES = 1 << 16, MOST_BYTES = 1 << 28 };

struct trace {
    const struct plan_model *model;
    char title[160];
    uint8_t *bytes; /* recorded: [n_tokens][n_layers][top_k] */
    int64_t n_tokens;
    int n_layers;
    double *sums;    /* made: [n_experts] of the ranks' popularity, up to 1 */
    uint16_t *names; /* [model layers][n_experts] what a rank, or a recorded expert, is called */
};

static void shuffle(struct rng *r, uint16_t *names, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int k = (int)rng_below(r, (uint64_t)i + 1);
        uint16_t other = names[k];
        names[k] = names[i];
        names[i] = other;
    }
}

/* Layers that the trace has keep their experts' names, the others get their own. */
static void name_experts(struct trace *t, uint64_t seed, int n_kept)
{
    const struct plan_model *m = t->model;
    t->names = mem_array((size_t)m->n_layers * (size_t)m->n_experts, sizeof *t->names);
    for (int layer = 0; layer < m->n_layers; layer++) {
        uint16_t *names = t->names + (size_t)layer * (size_t)m->n_experts;
        struct rng r = rng_stream(seed, (uint64_t)layer);
        for (int i = 0; i < m->n_experts; i++)
            names[i] = (uint16_t)i;
        if (layer >= n_kept)
            shuffle(&r, names, m->n_experts);
    }
}

static void make(struct trace *t, double skew, uint64_t seed)
{
    enum { FLAT = 8 }; /* the most popular few are not far apart */
    int n = t->model->n_experts;
    double sum = 0;
    t->sums = mem_array((size_t)n, sizeof *t->sums);
    for (int i = 0; i < n; i++)
        t->sums[i] = sum += pow(i + FLAT, -skew);
    for (int i = 0; i < n; i++)
        t->sums[i] /= sum;
    name_experts(t, seed, 0);
    snprintf(t->title, sizeof t->title, "made, skew %.2f, seed %llu", skew,
             (unsigned long long)seed);
}

static int read_head(const char *path, gzFile file, struct trace *t, struct err *e)
{
    char *line = mem_alloc(HEAD_BYTES);
    json_t *head = gzgets(file, line, HEAD_BYTES) ? json_loads(line, 0, NULL) : NULL;
    json_int_t layers = json_integer_value(json_object_get(head, "layers"));
    json_int_t experts = json_integer_value(json_object_get(head, "experts"));
    json_int_t top_k = json_integer_value(json_object_get(head, "top_k"));
    json_decref(head);
    mem_free(line);
    if (layers < 1 || layers > MODEL_MAX_LAYERS || experts < 1 || experts > 256 || top_k < 1)
        return err_set(e, E_CORRUPT,
                       "%s: the first line is no JSON with layers, experts (up to 256) and top_k",
                       path);
    if (experts != t->model->n_experts || top_k != t->model->top_k)
        return err_set(
            e, E_PRECONDITION, "%s: is of a model with %d of %d experts a token, %s has %d of %d",
            path, (int)top_k, (int)experts, t->model->name, t->model->top_k, t->model->n_experts);
    t->n_layers = (int)layers;
    return 0;
}

static int read_tokens(const char *path, gzFile file, struct trace *t, struct err *e)
{
    size_t token_bytes = (size_t)t->n_layers * (size_t)t->model->top_k, used = 0, room = 0;
    for (;;) {
        if (used == room) {
            room = room ? 2 * room : 1 << 20;
            t->bytes = mem_resize(t->bytes, room);
        }
        int n = gzread(file, t->bytes + used, (unsigned)(room - used));
        if (n < 0 || used > MOST_BYTES)
            return err_set(e, E_CORRUPT, "%s: cannot be unpacked, or is too long", path);
        if (n == 0)
            break;
        used += (size_t)n;
    }
    for (size_t i = 0; i < used; i++)
        if (t->bytes[i] >= t->model->n_experts)
            return err_set(e, E_CORRUPT, "%s: names expert %d of %d", path, t->bytes[i],
                           t->model->n_experts);
    t->n_tokens = (int64_t)(used / token_bytes);
    if (t->n_tokens == 0 || used % token_bytes != 0)
        return err_set(e, E_CORRUPT, "%s: ends within a token", path);
    return 0;
}

static int read_trace(const char *path, struct trace *t, uint64_t seed, struct err *e)
{
    gzFile file = gzopen(path, "rb");
    if (!file)
        return err_set(e, E_NOT_FOUND, "%s: cannot be opened", path);
    int rc = read_head(path, file, t, e);
    if (rc == 0)
        rc = read_tokens(path, file, t, e);
    gzclose(file);
    if (rc < 0)
        return rc;
    name_experts(t, seed, t->n_layers);
    snprintf(t->title, sizeof t->title, "%.100s, %lld tokens", path, (long long)t->n_tokens);
    return 0;
}

int trace_open(const char *path, const struct plan_model *m, double skew, uint64_t seed,
               struct trace **out, struct err *e)
{
    struct trace *t = mem_alloc(sizeof *t);
    t->model = m;
    int rc = 0;
    if (path)
        rc = read_trace(path, t, seed, e);
    else
        make(t, skew, seed);
    if (rc < 0)
        trace_close(&t);
    *out = t;
    return rc;
}

void trace_close(struct trace **trace)
{
    struct trace *t = *trace;
    if (!t)
        return;
    *trace = NULL;
    mem_free(t->bytes);
    mem_free(t->sums);
    mem_free(t->names);
    mem_free(t);
}

static int draw_rank(const struct trace *t, struct rng *r)
{
    double u = rng_unit(r);
    int low = 0, high = t->model->n_experts - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (t->sums[middle] > u)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static void make_token(const struct trace *t, struct rng *r, const uint16_t *names, uint16_t *out)
{
    for (int k = 0; k < t->model->top_k;) {
        uint16_t expert = names[draw_rank(t, r)];
        bool is_there = false;
        for (int i = 0; i < k; i++)
            is_there |= out[i] == expert;
        if (!is_there)
            out[k++] = expert;
    }
}

void trace_draw(struct trace *t, struct rng *r, int n_tokens, uint16_t *experts)
{
    const struct plan_model *m = t->model;
    for (int i = 0; i < n_tokens; i++) {
        int64_t token = t->bytes ? (int64_t)rng_below(r, (uint64_t)t->n_tokens) : 0;
        for (int layer = 0; layer < m->n_layers; layer++) {
            const uint16_t *names = t->names + (size_t)layer * (size_t)m->n_experts;
            uint16_t *out =
                experts + ((size_t)layer * (size_t)n_tokens + (size_t)i) * (size_t)m->top_k;
            if (!t->bytes) {
                make_token(t, r, names, out);
                continue;
            }
            const uint8_t *from =
                t->bytes + ((size_t)token * (size_t)t->n_layers + (size_t)(layer % t->n_layers)) *
                               (size_t)m->top_k;
            for (int k = 0; k < m->top_k; k++)
                out[k] = names[from[k]];
        }
    }
}

const char *trace_title(const struct trace *t)
{
    return t->title;
}
