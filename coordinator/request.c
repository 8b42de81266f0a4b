/* coordinator/request.c - see request.h. */
#include "coordinator/request.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"

void request_init(struct request *r, enum request_kind kind, uint64_t seq, int64_t created_s)
{
    *r = (struct request){.seq = seq, .kind = kind, .created_s = created_s};
    static const char *const prefixes[REQUEST_KINDS] = {[REQUEST_CHAT] = "chatcmpl-",
                                                        [REQUEST_COMPLETION] = "cmpl-",
                                                        [REQUEST_MESSAGES] = "msg_",
                                                        [REQUEST_RESPONSES] = "resp_"};
    snprintf(r->id, sizeof r->id, "%s%016" PRIx64, prefixes[kind], seq);
}

void request_fini(struct request *r)
{
    tokens_fini(&r->prompt);
    tokens_fini(&r->output);
    stream_fini(&r->text_of);
    output_events_fini(&r->said);
    output_events_fini(&r->whole);
    mem_free(r->samples);
    mem_free(r->grammar);
    *r = (struct request){0};
}

void request_queued(struct request *r)
{
    must(r->state == REQUEST_RECEIVED && r->prompt.len > 0 && r->max_tokens > 0);
    r->state = REQUEST_QUEUED;
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
    if (r->wants_logprobs || r->sampling.logits_hash)
        keep_sample(r, sampled);
    tokens_push(&r->output, sampled->token);
    r->finish = finish;
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
    return r->state == REQUEST_DONE || r->said.n > 0 ||
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

void request_sent(struct request *r)
{
    for (size_t i = 0; i < r->said.n; i++)
        request_pass(&r->part, &r->said.list[i]);
    for (size_t i = 0; i < r->said.n && r->kind == REQUEST_RESPONSES; i++)
        output_events_put(&r->whole, r->said.list[i].kind, r->said.list[i].call,
                          output_events_text(&r->said, i));
    output_events_reset(&r->said);
    r->n_sent = r->output.len;
}
