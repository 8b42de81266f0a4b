/* tools/loadtest_plan.c - see loadtest_plan.h. */
#include "tools/loadtest_plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"

enum { MOST_TOKENS = 1 << 20, FIRST_ID = 5, IDS = 240, GROUP_STREAM = 1 << 30 };

static int read_count(const char *text, int *out, const char **end)
{
    char *stop = NULL;
    long n = strtol(text, &stop, 10);
    *end = stop;
    if (stop == text || n < 1 || n > MOST_TOKENS)
        return E_INVALID;
    *out = (int)n;
    return 0;
}

int loadtest_read_length(const char *text, struct loadtest_length *out, struct err *e)
{
    bool is_exponential = strncmp(text, "exp:", 4) == 0;
    const char *end;
    *out =
        (struct loadtest_length){.spread = is_exponential ? LOADTEST_EXPONENTIAL : LOADTEST_EVEN};
    int rc = read_count(text + (is_exponential ? 4 : 0), &out->low, &end);
    out->high = is_exponential && out->low < MOST_TOKENS / 8 ? 8 * out->low : out->low;
    if (rc == 0 && *end == '-' && !is_exponential)
        rc = read_count(end + 1, &out->high, &end);
    if (rc < 0 || *end || out->high < out->low)
        return err_set(e, E_INVALID,
                       "\"%s\" is no number of tokens: 64, 16-256 or exp:128, at most %d", text,
                       MOST_TOKENS);
    return 0;
}

static double exponential(struct rng *r, double mean)
{
    return -log(1 - rng_unit(r)) * mean;
}

static int draw(struct rng *r, const struct loadtest_length *l)
{
    if (l->spread == LOADTEST_EVEN)
        return l->low + (int)rng_below(r, (uint64_t)(l->high - l->low) + 1);
    double n = ceil(exponential(r, l->low));
    return n < 1 ? 1 : n > l->high ? l->high : (int)n;
}

void loadtest_plan(const struct loadtest_load *l, uint64_t index, struct loadtest_request *out)
{
    struct rng r = rng_stream(l->seed, index);
    *out = (struct loadtest_request){0};
    if (l->rate > 0)
        out->gap_ns = (int64_t)(1e9 * (l->arrival == LOADTEST_POISSON ? exponential(&r, 1 / l->rate)
                                                                      : 1 / l->rate));
    out->n_prompt = draw(&r, &l->prompt);
    if (out->n_prompt <= l->prefix_tokens)
        out->n_prompt = l->prefix_tokens + 1;
    out->n_output = draw(&r, &l->output);
    out->group = l->n_groups > 1 ? (int)rng_below(&r, (uint64_t)l->n_groups) : 0;
    if (l->hang_up_tokens > 0)
        out->leaves_after = 1 + (int)rng_below(&r, 2 * (uint64_t)l->hang_up_tokens);
    if (l->hang_up_share > 0 && rng_unit(&r) >= l->hang_up_share)
        out->leaves_after = 0;
}

static void put_ids(struct rng *r, int n, struct buf *out)
{
    for (int i = 0; i < n; i++)
        buf_printf(out, "%d,", FIRST_ID + (int)rng_below(r, IDS));
}

void loadtest_body(const struct loadtest_load *l, uint64_t index, struct buf *out)
{
    struct loadtest_request q;
    loadtest_plan(l, index, &q);
    struct rng own = rng_stream(~l->seed, index);
    struct rng shared = rng_stream(~l->seed, GROUP_STREAM + (uint64_t)q.group);
    buf_reset(out);
    buf_printf(out,
               "{\"stream\":true,\"return_token_ids\":true,\"ignore_eos\":true,\"max_tokens\":%d,"
               "\"temperature\":%g,\"seed\":%llu,\"prompt\":[",
               q.n_output, l->temperature, (unsigned long long)(index & 0xffffffff));
    put_ids(&shared, l->prefix_tokens, out);
    put_ids(&own, q.n_prompt - l->prefix_tokens, out);
    out->len--; /* the last comma */
    buf_puts(out, "]}");
    buf_putc(out, '\0');
}
