/* tools/quality.h - `polymath quality`: what a weight format costs in answers.
 *
 * Runs the same ids through the model twice, in the reference format and then in the tested
 * one, and compares.  The reference's rows wait in an unlinked temporary file, so that only one
 * model is in memory at a time. */
#pragma once

#include "base/err.h"
#include "tools/local_engine.h"
#include "tools/quality_stats.h"

/* argv[0] is the verb.  Exit code: 0, 1 (failed), 2 (misused). */
int quality_main(int argc, char **argv);

/* Sequences one after another. */
struct quality_ids {
    struct tokens ids;
    size_t *ends; /* [n]: sequence i is ids[ends[i - 1] .. ends[i]) */
    size_t n, size;
};
/* Lines of ids with commas or blanks between; empty lines are left out.  E_INVALID names the
 * line. */
int quality_ids_parse(struct str text, struct quality_ids *out, struct err *e);
/* The text by the model's tokenizer, markers such as "<think>" as such, in sequences of `length`
 * ids. */
int quality_ids_from_text(struct str text, const char *model_dir, int length,
                          struct quality_ids *out, struct err *e);
void quality_ids_fini(struct quality_ids *q);

/* Compares two formats of one model; `o`'s own formats are not used. */
int quality_compare(const struct local_engine_options *o, const struct format_set *reference,
                    const struct format_set *tested, const struct quality_ids *ids,
                    struct quality_stats *out, struct err *e);

/* ---- tools/quality_scales.c ---- */

/* How well q8 and q4 keep the weights themselves, with the scale of the largest weight and with
 * the searched one: prints relative errors by kind of matrix. */
int quality_scales(const char *model_dir, int n_threads, bool as_json, struct err *e);
