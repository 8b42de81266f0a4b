/* tools/bench_words.h - a vocabulary as large as M2's and text in it, made up, where no tokenizer.json is at hand.
 *
 * Words, words with a space before them, marks, digits, Chinese characters and pairs of them, of lengths like a real
 * vocabulary's; always the same ones. */
#pragma once

#include "base/buf.h"
#include "base/err.h"
#include "model/tokenizer.h"

enum { BENCH_WORDS_VOCAB = 200064 };
/* Of a model's directory, or made up (NULL), with ids below vocab_size. */
int bench_words_open(const char *model_dir, int vocab_size, struct tokenizer **out, struct err *e);
/* Prose, code, numbers and Chinese in turn, at least `bytes` of them, appended to `out`. */
void bench_words_text(const struct tokenizer *t, size_t bytes, struct buf *out);
