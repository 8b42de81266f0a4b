#include "model/chat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void dump_string(struct str text, struct buf *out)
{
    static const char escapes[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    size_t run = 0, i;

    buf_putc(out, '"');
    for (i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        const char *escape = NULL;
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        buf_append(out, text.ptr + run, i - run);
        run = i + 1;
        for (const char *p = escapes; *p && !escape; p += 2)
            if ((unsigned char)*p == c)
                escape = p + 1;
        if (escape)
            buf_printf(out, "\\%c", *escape);
        else
            buf_printf(out, "\\u%04x", c);
    }
    buf_append(out, text.ptr + run, i - run);
    buf_putc(out, '"');
}

/* As Python's repr(): the fewest digits that read back equal; plain between 1e-4 and 1e16. */
static void dump_real(double value, struct buf *out)
{
    char text[40], digits[24];
    int n_digits = 0, exponent;

    for (int precision = 0; precision <= 16; precision++) {
        snprintf(text, sizeof(text), "%.*e", precision, fabs(value));
        if (strtod(text, NULL) == fabs(value))
            break;
    }
    for (const char *p = text; *p && *p != 'e'; p++)
        if (*p >= '0' && *p <= '9')
            digits[n_digits++] = *p;
    exponent = (int)strtol(strchr(text, 'e') + 1, NULL, 10);
    if (signbit(value))
        buf_putc(out, '-');
    if (exponent < -4 || exponent >= 16) {
        buf_putc(out, digits[0]);
        if (n_digits > 1)
            buf_putc(out, '.');
        buf_append(out, digits + 1, (size_t)n_digits - 1);
        buf_printf(out, "e%+03d", exponent);
        return;
    }
    if (exponent < 0)
        buf_puts(out, "0.");
    for (int i = exponent + 1; i < 0; i++)
        buf_putc(out, '0');
    for (int i = 0; i < n_digits || i <= exponent; i++) {
        buf_putc(out, i < n_digits ? digits[i] : '0');
        if (i == exponent)
            buf_puts(out, i + 1 < n_digits ? "." : ".0");
    }
}

static void dump_array(const json_t *value, struct buf *out)
{
    const json_t *item;
    size_t i;

    buf_putc(out, '[');
    json_array_foreach(value, i, item)
    {
        if (i > 0)
            buf_puts(out, ", ");
        chat_dump_json(item, out);
    }
    buf_putc(out, ']');
}

static void dump_object(const json_t *value, struct buf *out)
{
    /* jansson's iterators take no const object, but change nothing. */
    json_t *object = (json_t *)(uintptr_t)value;
    const char *separator = "";

    buf_putc(out, '{');
    for (void *i = json_object_iter(object); i; i = json_object_iter_next(object, i)) {
        buf_puts(out, separator);
        dump_string(str_of(json_object_iter_key(i)), out);
        buf_puts(out, ": ");
        chat_dump_json(json_object_iter_value(i), out);
        separator = ", ";
    }
    buf_putc(out, '}');
}

void chat_dump_json(const json_t *value, struct buf *out)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        dump_object(value, out);
        break;
    case JSON_ARRAY:
        dump_array(value, out);
        break;
    case JSON_STRING:
        dump_string((struct str){json_string_value(value), json_string_length(value)}, out);
        break;
    case JSON_INTEGER:
        buf_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        break;
    case JSON_REAL:
        dump_real(json_real_value(value), out);
        break;
    case JSON_TRUE:
        buf_puts(out, "true");
        break;
    case JSON_FALSE:
        buf_puts(out, "false");
        break;
    case JSON_NULL:
        buf_puts(out, "null");
        break;
    }
}
