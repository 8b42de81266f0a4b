/* tools/chat_tools.h - what `polymath chat --tools` lets the model call: a calculator and a clock.
 * Both run here, on the client's machine, and touch nothing. */
#pragma once

#include <jansson.h>
#include <stdint.h>

/* Their definitions, as a request's "tools"; the caller owns it. */
json_t *chat_tools_list(void);

/* What the tool answers, as text for the model; a wrong name or wrong arguments are answered too,
 * with a text that begins with "error: ".  arguments: a JSON object as text, from the model and
 * so not to be trusted.  utc_s: the time now, in seconds since 1970.  Free it with mem_free(). */
char *chat_tools_run(const char *name, const char *arguments, int64_t utc_s);

/* The value of an arithmetic expression: numbers, + - * / and parentheses.  0, or E_INVALID with
 * the place of the mistake. */
struct err;
int chat_tools_calculate(const char *expression, double *value, struct err *e);
