/* model/output.h - the model's output becomes reasoning, content and tool calls (step 14).
 *
 * M2 answers with
 *
 *   {reasoning}\n</think>\n\n{content}\n<minimax:tool_call>\n<invoke name="f">\n
 *   <parameter name="k">{value}</parameter>\n</invoke>\n</minimax:tool_call>
 *
 * and the prompt ended in "<think>\n", so the output begins inside the reasoning.  The parser takes
 * token ids or bytes as they come and appends events (model/output_events.h) as soon as
 * they are certain.  Their list does not depend on where the output is cut into pieces.
 *
 * Markers are tokens of their own, so "</think>" spelt in letters, as a user may have
 * written it, ends nothing.  Only a marker that the tokenizer lacks, or all of them without a
 * tokenizer, is looked for in letters.  The tags inside a tool call block are letters always.
 *
 * White space: stripped are exactly the line feeds that the chat template puts there (one after
 * <think>, one before and two after </think>, one before a tool call block), so what
 * comes out renders to the same ids when it is sent back as history.  Values are verbatim from '>'
 * to "</parameter>"; nothing in them is an entity.  Non-string values: model/output_value.h.
 *
 * Tolerated:
 *   - at the very start "<think>", as token or in letters, after up to two line feeds; there also a
 *     </think> where the output began in the content
 *   - a tool call block inside the reasoning: it ends the reasoning; a later </think> is dropped
 *   - a block that ends without </invoke>, or without </parameter> and </invoke>; an
 *     output that stops (by itself) without </minimax:tool_call>
 *   - names without quotes; several calls in a block; several blocks; content between and after
 *     blocks, without the white space that it begins with
 *   - a parameter given twice: the first counts
 *   - any text between the tags of a block: dropped
 *   - think tokens elsewhere, "<" that begins no tag, tags outside a block: plain text
 * A parameter without </parameter> before the next <parameter is one value with everything in
 * it: nothing else tells values that quote this format from broken ones.
 *
 * Strings of undoubted type come out while they are written, all other values when they are
 * complete.  A call that was cut short has no OUTPUT_CALL_END and its arguments are not whole JSON:
 * nobody shall run half a call.  Memory is bounded by the limits below; past one of them
 * an OUTPUT_ERROR comes, and then nothing.
 *
 * M3 (a tokenizer that has <mm:think>; output_m3.c): <mm:think> and </mm:think> without line feeds,
 * and in a tool call every tag follows the token ]<]minimax[>[, NS here:
 *
 *   NS<tool_call>\nNS<invoke name="f">NS<k>{value}NS</k>NS</invoke>\nNS</tool_call>
 *
 * A parameter is an element named by its key, objects and arrays are nested elements, arrays of
 * <item>.  A call comes out when it is complete; of one that was cut short only the name does.
 *
 * Owner: whoever embeds it. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/output_events.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

enum {
    OUTPUT_MAX_CALLS = 128,
    OUTPUT_MAX_PARAMETERS = 256, /* of one call */
    OUTPUT_MAX_NAME_BYTES = 256, /* of a tool or a parameter */
    /* A value that is not sure to be a string is held back until it is complete.  One longer
     * than this is a string, except where objects or arrays are possible. */
    OUTPUT_MAX_SCALAR_BYTES = 128,
    OUTPUT_MAX_VALUE_BYTES = 1 << 20,
};

/* Where the output is: between which tags. */
enum output_place {
    OUTPUT_IN_REASONING,
    OUTPUT_IN_CONTENT,
    OUTPUT_IN_BLOCK, /* between calls */
    OUTPUT_IN_CALL,  /* between parameters */
    OUTPUT_IN_VALUE,
    OUTPUT_IN_CALL_NAME, /* from here on inside a tag */
    OUTPUT_IN_VALUE_NAME,
    OUTPUT_BROKEN, /* a limit was passed */
};

enum { OUTPUT_N_MARKERS = 5 }; /* the fifth is M3's namespace */

/* For reading only. */
struct output_report {
    enum output_place ended; /* where the output ended, before repairs */
    bool in_tag;             /* in the middle of what began like a tag */
    int n_calls;             /* begun */
    int n_cut;               /* of them without an end: 0 or 1 */
    size_t dropped_bytes;    /* text between tags (but white space), second parameters */
};

struct output {
    const struct tokenizer *tokenizer; /* borrowed; NULL: bytes only */
    bool is_m3;
    int32_t marker_ids[OUTPUT_N_MARKERS];
    json_t *tools; /* a reference; NULL: tool calls are plain text */
    struct output_report report;

    enum output_place place;
    bool at_start;    /* no text yet */
    bool reasons;     /* </think> has not come yet */
    bool after_block; /* white space is the template's */
    int n_line_feeds; /* of the template, dropped if they come next */
    struct utf8_stream utf8;
    struct buf text; /* what is not understood yet: the beginning of a tag at most */
    struct buf name; /* of the tag that is being read */

    /* the call */
    const json_t *schema; /* borrowed from `tools`; may be NULL */
    int n_parameters;
    struct buf keys; /* NUL-terminated names of its parameters so far */

    /* the parameter */
    enum { OUTPUT_VALUE_HELD, OUTPUT_VALUE_STREAMED, OUTPUT_VALUE_DROPPED } value_is;
    unsigned types;
    struct buf value; /* if held */
};

/* All-zero is empty.  `begins` is where the prompt left the model: OUTPUT_IN_REASONING after a
 * generation prompt with thinking on, OUTPUT_IN_CONTENT otherwise.  `tools` is the request's array,
 * NULL if it has none: then a tool call is content.  A reference to it is kept. */
void output_init(struct output *o, const struct tokenizer *t, enum output_place begins,
                 const json_t *tools);
void output_fini(struct output *o);

/* One token; special ones give nothing. */
void output_feed(struct output *o, int32_t id, struct output_events *out);
/* Bytes, cut anywhere. */
void output_feed_text(struct output *o, struct str bytes, struct output_events *out);

enum output_ending {
    OUTPUT_STOPPED, /* the model ended by itself: open tags count as closed */
    OUTPUT_CUT,     /* a limit of tokens or time ended it */
};
/* The output ends here: gives out what was held back.  Nothing may be fed afterwards. */
void output_finish(struct output *o, enum output_ending ending, struct output_events *out);
