/* tests/unit/sched_world.h - one timetable, what it said last, and the owner of its sequences. */
#pragma once

#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "coordinator/sched.h"
#include "tests/lib/test.h"

static struct sched sched;
static struct sched_actions got;
static const int32_t PROMPT[512] = {10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
static const struct sampling SAMPLING = {.temperature = 1};
static const int EOS[] = {99};
enum { MAX_SEQ = 10, PATIENCE_NS = 100 };
static struct tokens outputs[MAX_SEQ]; /* the owner's, by seq */

static inline void begin(int queue_limit)
{
    sched_init(&sched,
               &(struct sched_config){.queue_limit = queue_limit, .patience_ns = PATIENCE_NS});
}

static inline void finish(void)
{
    for (int i = 0; i < MAX_SEQ; i++)
        tokens_fini(&outputs[i]);
    sched_actions_fini(&got);
    sched_fini(&sched);
}

static inline void event(const struct sched_event *e)
{
    got.n = 0;
    sched_step(&sched, e, &got);
    for (int i = 0; i < got.n; i++)
        if (got.items[i].kind == SCHED_TOKEN)
            tokens_push(&outputs[got.items[i].seq], got.items[i].sampled->token);
}

static inline void side_up(uint32_t id, uint32_t pages, uint32_t max_rows, uint32_t max_seqs)
{
    event(&(struct sched_event){.kind = SCHED_SIDE_UP,
                                .side = {.id = id,
                                         .pages = pages,
                                         .page_tokens = 4,
                                         .max_rows = max_rows,
                                         .max_seqs = max_seqs}});
}

static inline void side_pages(uint32_t id, uint32_t pages)
{
    event(&(struct sched_event){.kind = SCHED_SIDE_PAGES, .side = {.id = id, .pages = pages}});
}

static inline void submit(uint64_t seq, uint32_t n_prompt, uint32_t max_tokens)
{
    event(&(struct sched_event){.kind = SCHED_SUBMIT,
                                .submit = {.seq = seq,
                                           .prompt = PROMPT,
                                           .output = &outputs[seq],
                                           .n_prompt = n_prompt,
                                           .max_tokens = max_tokens,
                                           .sampling = &SAMPLING,
                                           .stop_ids = EOS,
                                           .n_stop_ids = 1,
                                           .deadline_ns = 1000}});
}

static inline void tick(int64_t now_ns)
{
    event(&(struct sched_event){.kind = SCHED_TICK, .now_ns = now_ns});
}

static inline const struct sched_action *find(enum sched_action_kind kind)
{
    for (int i = 0; i < got.n; i++)
        if (got.items[i].kind == kind)
            return &got.items[i];
    return NULL;
}

static inline int count(enum sched_action_kind kind)
{
    int n = 0;
    for (int i = 0; i < got.n; i++)
        n += got.items[i].kind == kind;
    return n;
}

/* Answers the step in `got`: every sample is `token`. */
static inline void answer(int32_t token)
{
    const struct sched_action *a = find(SCHED_SEND);
    CHECK(a != NULL);
    static struct wire_step_sample samples[64];
    struct wire_step_reply reply = {.step = a->step->step, .samples = samples};
    for (uint32_t i = 0; i < a->step->n_seqs; i++)
        if (a->step->seqs[i].sample)
            samples[reply.n_samples++] =
                (struct wire_step_sample){.seq = a->step->seqs[i].seq, .sampled.token = token};
    event(&(struct sched_event){
        .kind = SCHED_STEP_DONE, .side.id = a->side, .step = a->step->step, .reply = &reply});
}
