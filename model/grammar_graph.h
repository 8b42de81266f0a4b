/* model/grammar_graph.h - the graph of a grammar: grammar_schema.c and grammar_json.c build it, grammar.c runs it.
 *
 * It is built from the end: every grammar_...() takes the node that comes next and returns the one to
 * begin at. */
#pragma once

#include "model/grammar.h"

struct grammar *grammar_new(void);

/* A set of bytes. */
struct byte_set {
    uint64_t bits[4];
};
static inline void byte_set_add(struct byte_set *s, unsigned first, unsigned last)
{
    for (unsigned c = first; c <= last; c++)
        s->bits[c >> 6] |= 1ull << (c & 63);
}
static inline bool byte_set_has(const struct byte_set *s, unsigned c)
{
    return s->bits[c >> 6] >> (c & 63) & 1;
}

uint32_t grammar_bytes(struct grammar *g, const struct byte_set *set, uint32_t next);
uint32_t grammar_range(struct grammar *g, unsigned char first, unsigned char last, uint32_t next);
uint32_t grammar_literal(struct grammar *g, struct str text, uint32_t next);
uint32_t grammar_marker_node(struct grammar *g, int32_t id, uint32_t next);
/* Any marker but those of grammar_close(). */
uint32_t grammar_any_marker(struct grammar *g, uint32_t next);
void grammar_close(struct grammar *g, int32_t id);
void grammar_add_stop(struct grammar *g, int32_t id);
/* Either of two; 0 stands for "impossible" everywhere. */
uint32_t grammar_either(struct grammar *g, uint32_t a, uint32_t b);
uint32_t grammar_call(struct grammar *g, uint32_t rule, uint32_t next);
/* The end of every rule, and of the output. */
uint32_t grammar_return(struct grammar *g);
uint32_t grammar_end(struct grammar *g);
/* A node that leads to what grammar_lead() says later: for loops and recursion. */
uint32_t grammar_ahead(struct grammar *g);
void grammar_lead(struct grammar *g, uint32_t ahead, uint32_t to);
/* Are there more nodes than are allowed?  They lead nowhere then. */
bool grammar_is_full(const struct grammar *g);
/* The graph is complete.  false: nothing can be generated from it. */
bool grammar_begin(struct grammar *g, uint32_t start);
