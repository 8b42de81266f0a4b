/* coordinator/hub_watch.c - what the attention sides report of their steps; see hub.h.
 *
 * Log events: attention.bad_report. */
#include "base/log.h"
#include "base/mem.h"
#include "coordinator/hub_state.h"

static void take_report(struct hub *h, const struct wire_step_report *report)
{
    for (uint32_t i = 0; i < report->n_nodes; i++) {
        const struct node *n = members_find(&h->members, report->nodes[i].node_id);
        traffic_add_node(&h->traffic, n ? n->join.name : "gone", &report->nodes[i]);
    }
    for (uint32_t i = 0; i < report->n_layers; i++)
        traffic_add_layer(&h->traffic, &report->layers[i]);
}

void hub_watch_step(struct hub *h, struct hub_attention *a, const struct reply *r,
                    const struct wire_step_reply *step)
{
    traffic_add_ladder(&h->traffic, &a->ladder, &step->ladder);
    traffic_add_grammars(&h->traffic, &a->grammars, &step->grammars);
    struct wire_step_report *report = NULL;
    if (r->n_payloads == 0) {
        hub_trace_step(h, a, r, NULL);
        return;
    }
    struct str payload = {.ptr = r->payloads[0].data, .len = r->payloads[0].size_bytes};
    struct err e = {0};
    if (wire_step_report_decode(payload, &report, &e) < 0) {
        log_warn("attention.bad_report", "name=%s why=%s", channel_peer_name(a->channel),
                 log_quote(e.text).text);
        return;
    }
    take_report(h, report);
    hub_trace_step(h, a, r, report);
    mem_free(report);
}
