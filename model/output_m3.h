/* model/output_m3.h - the part of output.c that reads MiniMax-M3's output; see output.h. */
#pragma once

#include "model/output.h"

/* A marker that came as a token is this byte plus its number in a struct output's text. */
enum { OUTPUT_MARKER_BYTE = 0xf8 }; /* in no valid UTF-8 */
#define OUTPUT_M3_NAMESPACE "]<]minimax[>["
/* <mm:think>, its end, <tool_call>, its end, the namespace. */
extern const char *const output_m3_markers[OUTPUT_N_MARKERS];

/* Understands as much of o->text as is certain, and drops it there. */
void output_m3_scan(struct output *o, bool no_more, struct output_events *out);
