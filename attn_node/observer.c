/* attn_node/observer.c - see observer.h. */
#include "attn_node/observer.h"

#include "base/clock.h"
#include "base/mem.h"

struct observer {
    int n_layers;
    struct wire_layer_time *sums; /* [n_layers], layer and times in nanoseconds */
    struct wire_layer_time *told; /* [n_layers] what a report points to */
    struct wire_span *spans;      /* [OBSERVER_SPANS]; NULL before the first traced step */
    uint32_t n_spans;
    uint64_t n_lost;
    bool is_traced;
    int64_t step_ns, mark_ns;       /* the engine thread computes since then */
    int64_t attended_ns, router_ns; /* since when the router works; its time in this step */
    int64_t reported_ns;
};

struct observer *observer_new(int n_layers)
{
    struct observer *o = mem_alloc(sizeof(*o));
    o->n_layers = n_layers;
    o->sums = mem_array((size_t)n_layers, sizeof(*o->sums));
    o->told = mem_array((size_t)n_layers, sizeof(*o->told));
    return o;
}

void observer_free(struct observer **op)
{
    struct observer *o = *op;
    if (!o)
        return;
    *op = NULL;
    mem_free(o->sums);
    mem_free(o->told);
    mem_free(o->spans);
    mem_free(o);
}

void observer_begin_step(struct observer *o, bool is_traced, int64_t now_ns)
{
    o->is_traced = is_traced;
    o->n_spans = 0;
    o->n_lost = 0;
    o->step_ns = o->mark_ns = now_ns;
    o->attended_ns = 0;
    o->router_ns = 0;
    if (is_traced && !o->spans)
        o->spans = mem_array(OBSERVER_SPANS, sizeof(*o->spans));
}

static void add_span(struct observer *o, const struct wire_span *span, int64_t begun_ns,
                     int64_t now_ns)
{
    if (!o->is_traced)
        return;
    if (o->n_spans == OBSERVER_SPANS) {
        o->n_lost++;
        return;
    }
    struct wire_span *s = &o->spans[o->n_spans++];
    *s = *span;
    s->begin_us = begun_ns > o->step_ns ? (uint64_t)((begun_ns - o->step_ns) / CLOCK_US) : 0;
    s->length_us = now_ns > begun_ns ? (uint64_t)((now_ns - begun_ns) / CLOCK_US) : 0;
    /* What the other side says of itself is not more than what was seen of it. */
    if (s->compute_us > s->length_us)
        s->compute_us = s->length_us;
    if (s->queue_us > s->length_us - s->compute_us)
        s->queue_us = s->length_us - s->compute_us;
}

static void end_attention(struct observer *o, int lane, int layer, int64_t now_ns)
{
    if (now_ns <= o->mark_ns)
        return;
    o->sums[layer].attention_us += (uint64_t)(now_ns - o->mark_ns);
    add_span(o,
             &(struct wire_span){
                 .kind = WIRE_SPAN_ATTENTION, .layer = (uint32_t)layer, .lane = (uint32_t)lane},
             o->mark_ns, now_ns);
}

void observer_attended(struct observer *o, int64_t now_ns)
{
    o->attended_ns = now_ns;
}

int64_t observer_router_ns(const struct observer *o)
{
    return o->router_ns;
}

void observer_scattered(struct observer *o, int lane, int layer, int n_rows, int64_t begun_ns,
                        int64_t now_ns)
{
    end_attention(o, lane, layer, begun_ns);
    if (begun_ns > o->attended_ns && o->attended_ns >= o->mark_ns)
        o->router_ns += begun_ns - o->attended_ns;
    o->sums[layer].rounds++;
    o->sums[layer].rows += (uint64_t)n_rows;
    o->mark_ns = now_ns;
}

void observer_gathered(struct observer *o, int lane, int layer, int64_t begun_ns, int64_t now_ns)
{
    o->sums[layer].experts_us += (uint64_t)(now_ns - begun_ns);
    add_span(o,
             &(struct wire_span){
                 .kind = WIRE_SPAN_ROUND, .layer = (uint32_t)layer, .lane = (uint32_t)lane},
             begun_ns, now_ns);
    o->mark_ns = now_ns;
}

void observer_called(struct observer *o, const struct wire_span *call, int64_t sent_ns,
                     int64_t now_ns)
{
    add_span(o, call, sent_ns, now_ns);
}

void observer_headed(struct observer *o, int64_t begun_ns, int64_t now_ns)
{
    add_span(o, &(struct wire_span){.kind = WIRE_SPAN_HEAD}, begun_ns, now_ns);
}

bool observer_is_due(const struct observer *o, int64_t now_ns)
{
    return o->is_traced || now_ns - o->reported_ns >= OBSERVER_REPORT_MS * CLOCK_MS;
}

void observer_report(struct observer *o, struct wire_step_report *out, int64_t now_ns)
{
    o->reported_ns = now_ns;
    out->layers = o->told;
    out->n_layers = 0;
    for (int i = 0; i < o->n_layers; i++) {
        struct wire_layer_time *s = &o->sums[i];
        if (s->rounds == 0 && s->attention_us == 0)
            continue;
        o->told[out->n_layers++] = (struct wire_layer_time){
            .layer = (uint32_t)i,
            .rounds = s->rounds,
            .rows = s->rows,
            .attention_us = s->attention_us / CLOCK_US,
            .experts_us = s->experts_us / CLOCK_US,
        };
        *s = (struct wire_layer_time){0};
    }
    out->spans = o->spans;
    out->n_spans = o->n_spans;
    out->spans_lost = o->n_lost;
}
