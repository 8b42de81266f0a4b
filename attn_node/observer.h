/* attn_node/observer.h - where the steps' time goes, as the engine thread sees it: sums for each
 * layer since the last report, and the spans of a step that is traced.
 *
 * What lies between two turns of the experts' half is attention; a round lasts from scatter to the
 * end of gather.  With two lanes one's attention runs beside the other's round, so the two sums
 * may be longer than the step.  Time comes with every call.
 *
 * Spans have a buffer of OBSERVER_SPANS that is there from the first traced step on; those of a step
 * that do not fit are counted.  Owner: engine thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "rpc/wire.h"

enum { OBSERVER_SPANS = 4096, OBSERVER_REPORT_MS = 250 };

struct observer;
struct observer *observer_new(int n_layers);
void observer_free(struct observer **o);

void observer_begin_step(struct observer *o, bool is_traced, int64_t now_ns);
/* What is left until the rows are scattered is the router's: norm, quantising, choice of experts. */
void observer_attended(struct observer *o, int64_t now_ns);
/* A layer's rows go to the experts, since `begun_ns`. */
void observer_scattered(struct observer *o, int lane, int layer, int n_rows, int64_t begun_ns,
                        int64_t now_ns);
/* And are back. */
void observer_gathered(struct observer *o, int lane, int layer, int64_t begun_ns, int64_t now_ns);
/* Of a call, `begin_us` and `length_us` are set here. */
void observer_called(struct observer *o, const struct wire_span *call, int64_t sent_ns,
                     int64_t now_ns);
void observer_headed(struct observer *o, int64_t begun_ns, int64_t now_ns);

/* The router's share of this step so far; it is part of attention everywhere else. */
int64_t observer_router_ns(const struct observer *o);

/* A traced step's reply has a report, and any other's if the last one is OBSERVER_REPORT_MS old. */
bool observer_is_due(const struct observer *o, int64_t now_ns);
/* Layers and spans, valid until the next step; the sums begin anew. */
void observer_report(struct observer *o, struct wire_step_report *out, int64_t now_ns);
