/* model/grammar_automaton.h - what a regular expression is read into; shared by the files of grammar_regex.h. */
#pragma once

#include "model/grammar_regex.h"

struct char_range {
    int32_t first, last;
};
struct char_class { /* in order, without overlaps and surrogates */
    struct char_range *ranges;
    int n, room;
};
void char_class_add(struct char_class *c, int32_t first, int32_t last);
/* Puts them in order, without overlaps and surrogates. */
void char_class_tidy(struct char_class *c);
bool char_class_has(const struct char_class *c, int32_t code_point);

enum { REGEX_END = -2 }; /* as `class`: the text is read */
struct regex_state {
    int class; /* of the character to read; -1: none, and both ways are open */
    int next, other;
};

struct regex {
    struct regex_state states[REGEX_MAX_STATES]; /* [0] is REGEX_END */
    int n_states, start;
    struct char_class classes[REGEX_MAX_CLASSES];
    int n_classes;
};
