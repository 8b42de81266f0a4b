/* base/conf_value.c - one option's value, checked on its way into the struct.
 *
 * No state; any thread. */
#include "base/conf_value.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"

enum { CONF_MAX_CHOICES = 32, CONF_CHOICE_BYTES = 512 };

static void *field_of(const struct conf_option *o, void *config)
{
    return (char *)config + o->offset;
}

static const void *field_in(const struct conf_option *o, const void *config)
{
    return (const char *)config + o->offset;
}

static const struct {
    char name[4];
    int shift;
} byte_units[] = {{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}};
enum { N_BYTE_UNITS = sizeof(byte_units) / sizeof(byte_units[0]) };

/* Unlike strtoll(3): no spaces, the whole text, and a decimal number. */
static bool parse_int(const char *text, int64_t *out)
{
    const char *digits = text + (*text == '-' || *text == '+');
    size_t n = strspn(digits, "0123456789");
    if (n == 0 || digits[n])
        return false;
    errno = 0;
    int64_t value = strtoll(text, NULL, 10);
    if (errno)
        return false;
    *out = value;
    return true;
}

bool conf_parse_bytes(const char *text, int64_t *out)
{
    size_t n = strspn(text, "0123456789");
    char digits[24];
    if (n == 0 || n >= sizeof(digits))
        return false;
    memcpy(digits, text, n);
    digits[n] = '\0';
    int64_t value;
    if (!parse_int(digits, &value))
        return false;
    int shift = text[n] ? -1 : 0;
    for (int i = 0; i < N_BYTE_UNITS; i++)
        if (strcmp(text + n, byte_units[i].name) == 0)
            shift = byte_units[i].shift;
    if (shift < 0 || value > INT64_MAX >> shift)
        return false;
    *out = value << shift;
    return true;
}

/* "8GiB" where that is exact, else digits. */
static void print_bytes(int64_t value, bool is_quoted, struct buf *out)
{
    const char *quote = is_quoted ? "\"" : "";
    for (int i = 0; i < N_BYTE_UNITS; i++) {
        int64_t unit = (int64_t)1 << byte_units[i].shift;
        if (value > 0 && value % unit == 0) {
            buf_printf(out, "%s%" PRId64 "%s%s", quote, value / unit, byte_units[i].name, quote);
            return;
        }
    }
    /* libconfig wraps what does not fit 32 bits unless it ends in L. */
    buf_printf(out, "%" PRId64 "%s", value, is_quoted && value > INT32_MAX ? "L" : "");
}

/* The shortest decimal that reads back as the same double. */
static void print_float(double value, struct buf *out)
{
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    buf_puts(out, text);
}

static void print_bound(const struct conf_option *o, double bound, struct buf *out)
{
    if (o->type == CONF_BYTES && bound >= 0 && bound < 0x1p63)
        print_bytes((int64_t)bound, false, out);
    else if (fabs(bound) < 1e15 && bound == floor(bound))
        buf_printf(out, "%.0f", bound);
    else
        print_float(bound, out);
}

static bool is_bounded(const struct conf_option *o)
{
    return o->min < o->max;
}

static int check_bounds(const struct conf_option *o, double value, struct err *e)
{
    if (!is_bounded(o) || (value >= o->min && value <= o->max))
        return 0;
    struct buf text = {0};
    print_bound(o, value, &text);
    buf_puts(&text, value < o->min ? " is below the minimum, " : " is above the maximum, ");
    print_bound(o, value < o->min ? o->min : o->max, &text);
    int rc = err_set(e, E_RANGE, "%s", text.data);
    buf_fini(&text);
    return rc;
}

static int refuse(const struct conf_option *o, const char *found, struct err *e)
{
    struct buf wanted = {0};
    conf_value_describe(o, &wanted);
    int rc = err_set(e, E_INVALID, "expected %s, found %s", wanted.data, found);
    buf_fini(&wanted);
    return rc;
}

static int refuse_text(const struct conf_option *o, const char *text, struct err *e)
{
    char found[160];
    snprintf(found, sizeof(found), "\"%.100s\"%s", text, strlen(text) > 100 ? "..." : "");
    return refuse(o, found, e);
}

int conf_value_from_int(const struct conf_option *o, void *config, int64_t value, struct err *e)
{
    switch (o->type) {
    case CONF_INT:
    case CONF_BYTES:
    case CONF_MS:
        break;
    case CONF_FLOAT:
        return conf_value_from_float(o, config, (double)value, e);
    case CONF_STRING:
    case CONF_BOOL:
    case CONF_CHOICE:
        return refuse(o, "an integer", e);
    }
    int rc = check_bounds(o, (double)value, e);
    if (rc < 0)
        return rc;
    if (o->type != CONF_INT && !is_bounded(o) && value < 0)
        return err_set(e, E_RANGE, "%" PRId64 " is negative", value);
    if (o->type == CONF_MS && __builtin_mul_overflow(value, CLOCK_MS, &value))
        return err_set(e, E_RANGE, "%" PRId64 " milliseconds are more than 292 years", value);
    *(int64_t *)field_of(o, config) = value;
    return 0;
}

int conf_value_from_float(const struct conf_option *o, void *config, double value, struct err *e)
{
    if (o->type != CONF_FLOAT)
        return refuse(o, "a number with a point", e);
    if (!isfinite(value))
        return err_set(e, E_RANGE, "not a finite number");
    int rc = check_bounds(o, value, e);
    if (rc == 0)
        *(double *)field_of(o, config) = value;
    return rc;
}

int conf_value_from_bool(const struct conf_option *o, void *config, bool value, struct err *e)
{
    if (o->type != CONF_BOOL)
        return refuse(o, value ? "true" : "false", e);
    *(bool *)field_of(o, config) = value;
    return 0;
}

/* Cuts "native|f32" in place; returns how many. */
static int split_choices(const struct conf_option *o, char *copy, const char **words)
{
    must(o->choices && strlen(o->choices) < CONF_CHOICE_BYTES);
    memcpy(copy, o->choices, strlen(o->choices) + 1);
    int n = 0;
    char *rest = copy;
    for (char *word; (word = strsep(&rest, "|")) != NULL; n++) {
        must(n < CONF_MAX_CHOICES);
        words[n] = word;
    }
    return n;
}

static int set_choice(const struct conf_option *o, void *config, const char *text, struct err *e)
{
    char copy[CONF_CHOICE_BYTES];
    const char *words[CONF_MAX_CHOICES];
    int n = split_choices(o, copy, words);
    for (int i = 0; i < n; i++) {
        if (strcmp(words[i], text) == 0) {
            *(int *)field_of(o, config) = i;
            return 0;
        }
    }
    return refuse_text(o, text, e);
}

static int set_string(const struct conf_option *o, void *config, const char *text)
{
    char **field = field_of(o, config);
    char *copy = mem_string(text);
    mem_free(*field);
    *field = copy;
    return 0;
}

static int set_bytes(const struct conf_option *o, void *config, const char *text, struct err *e)
{
    int64_t value;
    if (!conf_parse_bytes(text, &value))
        return refuse_text(o, text, e);
    return conf_value_from_int(o, config, value, e);
}

int conf_value_from_string(const struct conf_option *o, void *config, const char *text,
                           struct err *e)
{
    switch (o->type) {
    case CONF_STRING:
        return set_string(o, config, text);
    case CONF_CHOICE:
        return set_choice(o, config, text, e);
    case CONF_BYTES:
        return set_bytes(o, config, text, e);
    case CONF_INT:
    case CONF_MS:
    case CONF_FLOAT:
    case CONF_BOOL:
        break;
    }
    return refuse(o, "a string", e);
}

static int set_float_text(const struct conf_option *o, void *config, const char *text,
                          struct err *e)
{
    char *end;
    double value = strtod(text, &end);
    /* Only what a file could hold: no hexadecimal, no "inf", no spaces. */
    if (end == text || *end || strspn(text, "0123456789+-.eE") != strlen(text))
        return refuse_text(o, text, e);
    return conf_value_from_float(o, config, value, e);
}

int conf_value_from_text(const struct conf_option *o, void *config, const char *text, struct err *e)
{
    int64_t value;
    switch (o->type) {
    case CONF_STRING:
    case CONF_CHOICE:
    case CONF_BYTES:
        return conf_value_from_string(o, config, text, e);
    case CONF_INT:
    case CONF_MS:
        return parse_int(text, &value) ? conf_value_from_int(o, config, value, e)
                                       : refuse_text(o, text, e);
    case CONF_FLOAT:
        return set_float_text(o, config, text, e);
    case CONF_BOOL:
        if (strcmp(text, "true") == 0 || strcmp(text, "false") == 0)
            return conf_value_from_bool(o, config, *text == 't', e);
        break;
    }
    return refuse_text(o, text, e);
}

static void print_quoted(const char *text, struct buf *out)
{
    buf_putc(out, '"');
    for (const char *p = text; *p; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '"' || c == '\\')
            buf_printf(out, "\\%c", c);
        else if (c < ' ' || c == 0x7f)
            buf_printf(out, "\\x%02x", c);
        else
            buf_putc(out, *p);
    }
    buf_putc(out, '"');
}

static void print_int(int64_t value, struct buf *out)
{
    bool is_wide = value > INT32_MAX || value < INT32_MIN;
    buf_printf(out, "%" PRId64 "%s", value, is_wide ? "L" : "");
}

void conf_value_print(const struct conf_option *o, const void *config, struct buf *out)
{
    const void *field = field_in(o, config);
    switch (o->type) {
    case CONF_STRING: {
        const char *text = *(char *const *)field;
        print_quoted(text ? text : "", out);
        break;
    }
    case CONF_INT:
        print_int(*(const int64_t *)field, out);
        break;
    case CONF_BYTES:
        print_bytes(*(const int64_t *)field, true, out);
        break;
    case CONF_MS:
        print_int(*(const int64_t *)field / CLOCK_MS, out);
        break;
    case CONF_FLOAT: {
        size_t from = out->len;
        print_float(*(const double *)field, out);
        if (!strpbrk(out->data + from, ".e"))
            buf_puts(out, ".0");
        break;
    }
    case CONF_BOOL:
        buf_puts(out, *(const bool *)field ? "true" : "false");
        break;
    case CONF_CHOICE: {
        char copy[CONF_CHOICE_BYTES];
        const char *words[CONF_MAX_CHOICES];
        int n = split_choices(o, copy, words), i = *(const int *)field;
        must(i >= 0 && i < n);
        print_quoted(words[i], out);
        break;
    }
    }
}

void conf_value_describe(const struct conf_option *o, struct buf *out)
{
    static const char *const kinds[] = {
        [CONF_STRING] = "string",   [CONF_INT] = "integer",  [CONF_BYTES] = "bytes",
        [CONF_MS] = "milliseconds", [CONF_FLOAT] = "number", [CONF_BOOL] = "true or false",
        [CONF_CHOICE] = "one of "};
    buf_puts(out, kinds[o->type]);
    if (o->type == CONF_CHOICE) {
        for (const char *p = o->choices; *p; p++)
            *p == '|' ? buf_puts(out, ", ") : buf_putc(out, *p);
        return;
    }
    if (o->type == CONF_STRING || o->type == CONF_BOOL || !is_bounded(o))
        return;
    buf_puts(out, " from ");
    print_bound(o, o->min, out);
    buf_puts(out, " to ");
    print_bound(o, o->max, out);
}
