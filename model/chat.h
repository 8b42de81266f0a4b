/* model/chat.h - a conversation becomes a prompt (step 3 of a token's path).
 *
 * The chat templates of the MiniMax-M2 family and of MiniMax-M3: role markers, tools, tool calls
 * and results, reasoning of the running turn (M3: of all turns).  The tokenizer says which it is:
 * only M3's has <mm:think>.  The publisher's template gives a text in which the
 * tokenizer then looks for markers; here the template's own markers are ids from the start and
 * everything that a user, a tool or the model said is encoded with the recognition of markers
 * off, so contents can never forge a role.  For contents without marker texts the ids
 * are the same as the publisher's.
 *
 * Threads: a struct chat is only read after chat_init(). */
#pragma once

#include <jansson.h>
#include <stdint.h>

#include "base/buf.h"
#include "model/tokenizer.h"

struct err;

enum chat_role {
    CHAT_SYSTEM, /* counts only as the first message; later ones are skipped */
    CHAT_USER,
    CHAT_ASSISTANT,
    CHAT_TOOL,  /* one result; consecutive ones are matched to the calls by order */
    CHAT_OTHER, /* skipped */
};
/* "system", "user", "assistant", "tool"; anything else is CHAT_OTHER. */
enum chat_role chat_role_of(struct str name);

struct chat_tool_call {
    struct str id; /* not rendered: see chat_order_results() */
    struct str name;
    const json_t *arguments; /* an object, or NULL for none */
};

/* All-zero fields are absent.  Everything is borrowed for the length of the call. */
struct chat_message {
    enum chat_role role;
    struct str content;
    /* Content given as a list: its text parts (other parts are dropped by the caller).  If
     * n_parts > 0, `content` is not looked at.  Parts are joined without separator, except
     * that each item of a tool result becomes a response of its own. */
    const struct str *parts;
    int n_parts;
    /* CHAT_ASSISTANT: the reasoning as a field of its own.  With ptr NULL it is taken from the
     * content if that holds "</think>"; an empty string with a ptr means "there was none". */
    struct str reasoning;
    const struct chat_tool_call *tool_calls;
    int n_tool_calls;
    struct str answers; /* CHAT_TOOL: id of the call, not rendered */
    /* CHAT_SYSTEM: shown after the content. */
    struct str current_date, current_location;
};

enum chat_ending {
    CHAT_ASK_FOR_ANSWER, /* ends with the marker after which the model speaks */
    CHAT_AS_IT_IS,       /* ends after the last message */
};
enum chat_thinking {
    CHAT_THINKING_ON,  /* the prompt ends inside reasoning (M3: mode "enabled") */
    CHAT_THINKING_OFF, /* the reasoning is closed at once; not an official mode of M2 */
};
enum chat_history {
    CHAT_HISTORY_FORGETS, /* reasoning is shown only after the last user message: official */
    CHAT_HISTORY_KEEPS,   /* all reasoning stays, so a conversation only ever grows at its end */
};                        /* M3's template always keeps it */

/* All-zero but the messages is the publisher's behaviour with a generation prompt. */
struct chat_prompt {
    const struct chat_message *messages;
    int n_messages;
    const json_t *tools;       /* array of {"type": "function", "function": {...}}, or NULL */
    struct str model_identity; /* system text if the caller gives none; empty: the M2 default */
    enum chat_ending ending;
    enum chat_thinking thinking;
    enum chat_history history;
};

/* Markers of the template, in the order in which chat.c lists their texts. */
enum chat_marker {
    CHAT_MARK_BEGIN,     /* ]~!b[ */
    CHAT_MARK_ROLE,      /* ]~b] */
    CHAT_MARK_END,       /* [e~[ */
    CHAT_MARK_THINK,     /* <think> */
    CHAT_MARK_END_THINK, /* </think> */
    CHAT_MARK_CALLS,     /* <minimax:tool_call> */
    CHAT_MARK_END_CALLS, /* </minimax:tool_call> */
    CHAT_MARK_M3_THINK,  /* <mm:think>; from here on M3's, those from CHAT_MARK_THINK on are M2's */
    CHAT_MARK_M3_END_THINK, /* </mm:think> */
    CHAT_MARK_M3_NAMESPACE, /* ]<]minimax[>[ */
    CHAT_MARK_M3_CALLS,     /* <tool_call> */
    CHAT_MARK_M3_END_CALLS, /* </tool_call> */
    CHAT_N_MARKS,
};

enum chat_template { CHAT_TEMPLATE_M2, CHAT_TEMPLATE_M3 };

struct chat {
    const struct tokenizer *tokenizer; /* borrowed for the life of the chat */
    enum chat_template template;
    int32_t ids[CHAT_N_MARKS]; /* TOKENIZER_NO_ID for the other template's */
};

/* E_NOT_FOUND, naming it, if the tokenizer lacks a marker. */
int chat_init(struct chat *c, const struct tokenizer *t, struct err *e);
/* The id that ends the model's message; generation stops there and does not show it. */
int32_t chat_end_id(const struct chat *c);

/* Results are shown without the ids of their calls, so the model knows them by their order: puts the
 * results after each message with calls, those that name a call, into the order of the calls.
 * E_INVALID: a result names no call of the message before it, or one that has a result. */
int chat_order_results(struct chat_message *messages, int n_messages, struct err *e);

/* Appends the prompt's ids to `out`.  E_INVALID for a conversation that the template refuses (a
 * tool result that answers no call, a tool without `function`, arguments that are no object);
 * E_RANGE if the text is over the tokenizer's limit.  After an error `out` is as before. */
int chat_render(const struct chat *c, const struct chat_prompt *p, struct tokens *out,
                struct err *e);
/* The same prompt as text with markers spelt out: for people and tests, not for encoding. */
int chat_render_text(enum chat_template template, const struct chat_prompt *p, struct buf *out,
                     struct err *e);

/* JSON as Python's json.dumps(value, ensure_ascii=False) writes it: ", " and ": ", keys in their
 * order, non-ASCII as it is, reals as the shortest text that reads back equal (chat_json.c). */
void chat_dump_json(const json_t *value, struct buf *out);
