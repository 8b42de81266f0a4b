/* base/conf_value.h - one option's value: text and libconfig scalars in, file syntax out.
 *
 * The inner half of base/conf.c; programs use base/conf.h.  Every setter checks the
 * option's bounds first and leaves the field alone if it returns an error. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/buf.h"
#include "base/conf.h"
#include "base/err.h"

/* From --set and from defaults: any type, written without quotes. */
int conf_value_from_text(const struct conf_option *o, void *config, const char *text,
                         struct err *e);
/* From the file: CONF_INT, CONF_BYTES, CONF_MS and CONF_FLOAT take an integer, others refuse. */
int conf_value_from_int(const struct conf_option *o, void *config, int64_t value, struct err *e);
int conf_value_from_float(const struct conf_option *o, void *config, double value, struct err *e);
int conf_value_from_bool(const struct conf_option *o, void *config, bool value, struct err *e);
/* CONF_STRING, CONF_CHOICE and CONF_BYTES; an integer in quotes is a mistake elsewhere. */
int conf_value_from_string(const struct conf_option *o, void *config, const char *text,
                           struct err *e);

/* The present value as the file writes it. */
void conf_value_print(const struct conf_option *o, const void *config, struct buf *out);
/* "integer from 1 to 65535", "milliseconds", "one of native, f32". */
void conf_value_describe(const struct conf_option *o, struct buf *out);
