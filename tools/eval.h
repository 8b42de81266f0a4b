/* tools/eval.h - `polymath eval`: tasks with known answers, over HTTP.
 *
 * A task file holds one JSON object per line:
 *   {"task": NAME, "messages": [...], "tools": [...]?, "expect": EXPECT}
 * EXPECT is {"content": TEXT} or {"tool_calls": [{"name": NAME, "arguments": {...}}, ...]}. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

/* argv[0] is the verb.  Exit code: 0, 1 (failed, or below --require), 2 (misused). */
int eval_main(int argc, char **argv);

/* Whether an OpenAI assistant message is what was expected: the same text and no calls, or the
 * same calls in the same order with equal arguments (or, from a server that leaves calls in the
 * content, their text in M2's form).  Any shape of either is allowed. */
bool eval_matches(const json_t *expect, const json_t *message);
