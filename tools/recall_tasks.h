/* tools/recall_tasks.h - RULER-style tasks (arXiv 2404.06654) as sequences of token ids.
 *
 * A model that was trained on text knows neither of these ids' meanings nor our form, so what is
 * asked is only what a context itself says: after "MARK key IS value" somewhere, and "MARK key IS"
 * at the end, the answer is that value.
 *
 *   needle       one statement
 *   multi-key    many statements, one is asked for
 *   multi-value  one key in four statements; all values, in order
 *   tracking     a chain of statements whose value is the key before (multi-hop), another chain
 *                beside it; the value at the beginning of the chain
 *   common       words that come often among words that do not; which, in order of their first
 *   frequent     words with Zipf's frequencies; the three most frequent, most frequent first
 *
 * Pure: task, length, vocabulary and seed decide. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum recall_task {
    RECALL_NEEDLE,
    RECALL_MULTI_KEY,
    RECALL_MULTI_VALUE,
    RECALL_TRACKING,
    RECALL_COMMON,
    RECALL_FREQUENT,
    RECALL_TASKS
};
enum { RECALL_MAX_ANSWER = 4, RECALL_LEAST_LENGTH = 128 };
#define RECALL_TASK_CHOICES "needle,multi-key,multi-value,tracking,common,frequent"

const char *recall_task_name(enum recall_task t);
bool recall_task_parse(const char *text, enum recall_task *out);

/* ids [length]: a prompt, then all of the answer but its last token, so that the rows n_prompt - 1
 * .. length - 1 are those that say the answer.  All-zero is empty. */
struct recall_item {
    int32_t *ids;
    int length, n_prompt;
    int32_t answer[RECALL_MAX_ANSWER];
    int n_answer;      /* length == n_prompt + n_answer - 1 */
    int32_t *evidence; /* positions of the tokens that the answer follows from, ascending */
    int n_evidence;
};

/* E_RANGE: the length or the vocabulary is too small. */
int recall_item_make(enum recall_task task, int length, int vocab, uint64_t seed,
                     struct recall_item *out, struct err *e);
void recall_item_fini(struct recall_item *item);
