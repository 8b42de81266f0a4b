/* coordinator/request.c - see request.h. */
#include "coordinator/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"

void request_init(struct request *r, enum request_kind kind, uint64_t seq, int64_t created_s)
{
    *r = (struct request){
        .kind = kind, .created_s = created_s, .n_wanted = 1, .n_tried = 1, .n_choices = 1};
    request_number(r, seq);
}

void request_number(struct request *r, uint64_t seq)
{
    static const char *const prefixes[REQUEST_KINDS] = {[REQUEST_CHAT] = "chatcmpl-",
                                                        [REQUEST_COMPLETION] = "cmpl-",
                                                        [REQUEST_MESSAGES] = "msg_",
                                                        [REQUEST_RESPONSES] = "resp_"};
    for (struct request *c = r; c; c = c->next) {
        c->seq = seq + (uint64_t)c->index;
        snprintf(c->id, sizeof c->id, "%s%016" PRIx64, prefixes[r->kind], seq);
    }
}

static void free_choice(struct request *r)
{
    if (!r->borrows_prompt)
        tokens_fini(&r->prompt);
    tokens_fini(&r->output);
    stream_fini(&r->text_of);
    output_events_fini(&r->said);
    output_events_fini(&r->whole);
    mem_free(r->samples);
    mem_free(r->grammar);
    buf_fini(&r->echo);
}

void request_fini(struct request *r)
{
    for (struct request *c = r->next, *next; c; c = next) {
        next = c->next;
        free_choice(c);
        mem_free(c);
    }
    free_choice(r);
    *r = (struct request){0};
}

/* ---- choices ---------------------------------------------------------------------------- */

/* Another one like `r`, which nothing has come out of yet; the prompt is still to be given. */
static struct request *choice_like(const struct request *r, int index)
{
    struct request *c = mem_alloc(sizeof *c);
    *c = *r;
    c->next = NULL;
    c->index = index;
    c->seq = r->seq + (uint64_t)index;
    c->prompt = (struct tokens){0};
    c->grammar = NULL;
    c->echo = (struct buf){0};
    stream_copy(&c->text_of, &r->text_of);
    return c;
}

void request_spread(struct request *r, struct tokens *more, int n_more)
{
    must(!r->next && r->output.len == 0 && r->n_wanted >= 1 && r->n_tried >= r->n_wanted);
    r->n_choices = r->n_tried * (n_more + 1);
    must(r->n_choices <= REQUEST_MAX_CHOICES);
    if (r->n_tried > r->n_wanted)
        r->sampling.logprobs = true;
    struct request *last = r, *of_prompt = r;
    for (int i = 1; i < r->n_choices; i++) {
        struct request *c = choice_like(r, i);
        c->borrows_prompt = i % r->n_tried != 0;
        if (c->borrows_prompt) {
            c->prompt = of_prompt->prompt;
        } else {
            c->prompt = more[i / r->n_tried - 1];
            of_prompt = c;
        }
        last = last->next = c;
    }
    request_set_seed(r, r->sampling.seed);
}

void request_set_seed(struct request *r, uint64_t seed)
{
    for (struct request *c = r; c; c = c->next)
        c->sampling.seed = seed + (uint64_t)(c->index % r->n_tried);
}

struct request *request_choice(struct request *r, uint64_t seq)
{
    if (seq - r->seq >= (uint64_t)r->n_choices)
        return NULL;
    while (r->seq != seq)
        r = r->next;
    return r;
}

size_t request_prompt_tokens(const struct request *r)
{
    size_t n = 0;
    for (const struct request *c = r; c; c = c->next)
        n += c->borrows_prompt ? 0 : c->prompt.len;
    return n;
}

size_t request_output_tokens(const struct request *r)
{
    size_t n = 0;
    for (const struct request *c = r; c; c = c->next)
        n += c->output.len;
    return n;
}

bool request_keeps_samples(const struct request *r)
{
    return r->wants_logprobs || r->sampling.logits_hash || r->n_tried > r->n_wanted;
}

/* Per token, so that a short answer has no advantage. */
static double mean_logprob(const struct request *r)
{
    double sum = 0;
    for (size_t i = 0; i < r->output.len; i++)
        sum += (double)r->samples[i].logprob;
    return r->output.len ? sum / (double)r->output.len : 0;
}

static int compare_choices(const void *a, const void *b)
{
    const struct request *x = *(const struct request *const *)a;
    const struct request *y = *(const struct request *const *)b;
    double mean_x = mean_logprob(x), mean_y = mean_logprob(y);
    if (mean_x != mean_y)
        return mean_x < mean_y ? 1 : -1;
    return x->index - y->index;
}

int request_answers(const struct request *r, const struct request **out)
{
    const struct request *c = r;
    int n = 0;
    while (c) {
        int n_of_prompt = 0;
        for (; n_of_prompt < r->n_tried; c = c->next)
            out[n + n_of_prompt++] = c;
        if (r->n_tried > r->n_wanted)
            qsort(out + n, (size_t)n_of_prompt, sizeof(struct request *), compare_choices);
        n += r->n_wanted;
    }
    return n;
}

/* ---- a reader's place --------------------------------------------------------------------- */

bool request_read_seen(const struct request *r, const char *id, uint64_t *seen)
{
    int n = 0, most = r->n_choices > 1 ? r->n_choices + 1 : 1;
    memset(seen, 0, sizeof *seen * ((size_t)r->n_choices + 1));
    for (;;) {
        size_t digits = strspn(id, "0123456789");
        if (digits == 0 || digits > 18 || n == most)
            return false;
        seen[n++] = strtoull(id, NULL, 10);
        id += digits;
        if (*id == '\0')
            return n >= r->n_choices;
        if (*id++ != '.')
            return false;
    }
}

void request_set_seen(struct request *r, const uint64_t *seen)
{
    for (struct request *c = r; c; c = c->next)
        c->seen = seen ? seen[c->index] : 0;
    r->seen_past = seen ? seen[r->n_choices] : 0;
}

/* ---- what becomes of it ------------------------------------------------------------------- */

void request_queued(struct request *r)
{
    for (struct request *c = r; c; c = c->next) {
        must(c->state == REQUEST_RECEIVED && c->prompt.len > 0 && c->max_tokens > 0);
        c->state = REQUEST_QUEUED;
    }
}

void request_repeat(struct request *r, uint32_t max_tokens, uint64_t seed)
{
    request_set_seed(r, seed);
    for (struct request *c = r; c; c = c->next)
        c->max_tokens = max_tokens;
    request_queued(r);
}

static struct tokens copy_of(const struct tokens *from)
{
    struct tokens all = {0};
    for (size_t i = 0; i < from->len; i++)
        tokens_push(&all, from->ids[i]);
    return all;
}

void request_again(const struct request *r, struct request *out)
{
    struct request *to = out;
    const struct tokens *shared = NULL; /* the prompt of the choice before */
    for (const struct request *c = r; c; c = c->next) {
        to = c == r ? out : (to->next = mem_alloc(sizeof *to));
        *to =
            (struct request){.seq = c->seq,
                             .created_s = c->created_s,
                             .kind = c->kind,
                             .state = REQUEST_RECEIVED,
                             .prompt = c->borrows_prompt && shared ? *shared : copy_of(&c->prompt),
                             .max_tokens = c->max_tokens,
                             .sampling = c->sampling,
                             .streams = c->streams,
                             .wants_usage = c->wants_usage,
                             .wants_token_ids = c->wants_token_ids,
                             .wants_logprobs = c->wants_logprobs,
                             .ignores_eos = c->ignores_eos,
                             .echoes = c->echoes,
                             .raise = c->raise,
                             .names_tier = c->names_tier,
                             .n_wanted = c->n_wanted,
                             .n_tried = c->n_tried,
                             .n_choices = c->n_choices,
                             .index = c->index,
                             .borrows_prompt = c->borrows_prompt,
                             .tier = c->tier};
        memcpy(to->id, c->id, sizeof to->id);
        to->sampling.grammar = NULL;
        stream_copy(&to->text_of, &c->text_of);
        buf_append_str(&to->echo, buf_str(&c->echo));
        shared = &to->prompt;
    }
    request_queued(out);
}

void request_started(struct request *r)
{
    must(r->state == REQUEST_QUEUED);
    r->state = REQUEST_PREFILL;
}

static void keep_sample(struct request *r, const struct sampled *sampled)
{
    if (r->output.len == r->samples_room) {
        r->samples_room = r->samples_room ? 2 * r->samples_room : 64;
        r->samples = mem_resize(r->samples, r->samples_room * sizeof *r->samples);
    }
    r->samples[r->output.len] = *sampled;
}

bool request_token(struct request *r, const struct sampled *sampled, enum sched_finish finish)
{
    must(r->state == REQUEST_PREFILL || r->state == REQUEST_DECODE);
    r->state = REQUEST_DECODE;
    if (request_keeps_samples(r))
        keep_sample(r, sampled);
    tokens_push(&r->output, sampled->token);
    r->finish = r->given = finish;
    bool stopped = false;
    r->n_reasoning += r->text_of.splits && r->text_of.output.place == OUTPUT_IN_REASONING;
    /* The token that ends the sequence is counted but has no text. */
    if (finish != SCHED_STOP)
        stopped = stream_feed(&r->text_of, sampled->token, &r->said);
    if (finish != SCHED_GOES_ON && !stopped)
        stopped = stream_finish(&r->text_of, finish == SCHED_STOP ? OUTPUT_STOPPED : OUTPUT_CUT,
                                &r->said);
    if (stopped)
        r->finish = SCHED_STOP;
    if (r->finish == SCHED_GOES_ON)
        return false;
    r->state = REQUEST_DONE;
    return true;
}

void request_failed(struct request *r, int code, const char *text)
{
    must(!request_is_over(r));
    r->state = REQUEST_FAILED;
    r->code = code;
    snprintf(r->error, sizeof r->error, "%s", text && text[0] ? text : err_text(code));
}

bool request_has_events(const struct request *r)
{
    bool per_token = r->wants_token_ids || r->wants_logprobs || r->sampling.logits_hash;
    bool has_tokens = r->output.len > r->n_sent;
    return (r->state == REQUEST_DONE && !r->end_is_sent) || r->said.n > 0 ||
           (has_tokens && (per_token || r->n_sent == 0));
}

enum request_ending request_ending(const struct request *r)
{
    if (r->state != REQUEST_DONE)
        return REQUEST_GOES_ON;
    if (r->finish == SCHED_LENGTH || stream_is_broken(&r->text_of))
        return REQUEST_CUT;
    return stream_has_calls(&r->text_of) ? REQUEST_CALLS : REQUEST_STOPPED;
}

enum request_step request_pass(struct request_part *p, const struct output_event *event)
{
    bool is_call = event->call >= 0;
    enum output_kind kind = is_call ? OUTPUT_CALL : event->kind;
    bool is_open = p->is_open && p->kind == kind && p->call == event->call;
    if (event->kind == OUTPUT_CALL_END || event->kind == OUTPUT_ERROR) {
        p->is_open = is_open && event->kind != OUTPUT_CALL_END;
        return is_open && !p->is_open ? REQUEST_PART_ENDS : REQUEST_SAME_PART;
    }
    if (is_open)
        return REQUEST_SAME_PART;
    *p = (struct request_part){.n = p->n + 1, .is_open = true, .kind = kind, .call = event->call};
    return REQUEST_NEW_PART;
}

static void choice_sent(struct request *r)
{
    for (size_t i = 0; i < r->said.n; i++) {
        const struct output_event *event = &r->said.list[i];
        enum request_step step = request_pass(&r->part, event);
        if (r->kind != REQUEST_RESPONSES)
            continue;
        output_events_put(&r->whole, event->kind, event->call, output_events_text(&r->said, i));
        if (step == REQUEST_NEW_PART)
            r->part_from = r->whole.n - 1;
    }
    output_events_reset(&r->said);
    r->n_sent = r->output.len;
    r->end_is_sent = r->state == REQUEST_DONE;
}

void request_sent(struct request *r)
{
    for (struct request *c = r; c; c = c->next)
        choice_sent(c);
}
