/* coordinator/conversation.h - messages of any dialect on their way to a prompt (step 3).
 *
 * The dialects fill it, then conversation_finish() makes the request's prompt of it.  Strings stay in
 * the body's JSON, which must outlive it.  All-zero is empty.  Owner: the parser of one body. */
#pragma once

#include "coordinator/openai.h"

/* What the answer is held to by a grammar (model/grammar.h); all-zero: nothing. */
struct conversation_rules {
    const json_t *value; /* schema of the answer; borrowed; NULL: any text */
    bool forced;         /* the answer is a tool call */
    bool single;         /* at most one call */
    struct str only;     /* the tool that may be called; empty: each of prompt.tools */
};

struct conversation {
    struct conversation_rules rules;
    struct chat_prompt prompt; /* all but the messages is the dialect's to fill */
    struct chat_message *messages;
    int n_messages, messages_room;
    json_t *keep;  /* what was made of strings in the body */
    void **arrays; /* parts and calls, to be freed */
    int n_arrays, arrays_room;
};
void conversation_fini(struct conversation *c);

/* A new last message; the pointer is good until the next one. */
struct chat_message *conversation_add(struct conversation *c, enum chat_role role);
/* All-zero memory of the conversation's. */
void *conversation_array(struct conversation *c, size_t count, size_t size);
/* Takes the reference; it is given back with the conversation. */
json_t *conversation_keep(struct conversation *c, json_t *v);

/* Where in the body something is: "messages[3].content[0]". */
struct place {
    char name[96];
};
struct place place(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Makes the request's grammar, if the rules or strict tools ask for one. */
int conversation_constrain(const struct conversation *c, const struct openai_model *m,
                           struct request *r, struct openai_error *e);

/* Renders the prompt and says how the output is to be read and what it is held to.  Refuses what the template refuses, results
 * that answer no call, and a prompt over the context. */
int conversation_finish(struct conversation *c, const struct openai_model *m, struct request *r,
                        struct openai_error *e);
