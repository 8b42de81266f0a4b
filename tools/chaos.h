/* tools/chaos.h - `polymath chaos`. */
#pragma once

#include "base/buf.h"
#include "tools/chaos_run.h"

/* argv[0] is the verb.  Exit code: 0, 1 (a promise was not kept, or failed), 2 (misused). */
int chaos_main(int argc, char **argv);

/* The table's head, and one line for a scenario with its findings below it. */
void chaos_print_head(struct buf *out);
void chaos_print_result(const struct chaos_scenario *s, const struct chaos_result *r,
                        struct buf *out);
/* The same as a row of a Markdown table: what happens, longest pause, allowed, full redundancy,
 * requests lost, streams with other tokens, what else was found. */
void chaos_print_row(const struct chaos_scenario *s, const struct chaos_result *r, struct buf *out);
/* The same as one JSON object. */
void chaos_print_json(const struct chaos_scenario *s, const struct chaos_result *r,
                      struct buf *out);
