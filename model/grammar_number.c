/* model/grammar_number.c - numbers between bounds as graphs; see grammar_build.h. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/grammar_build.h"

enum { MAX_DIGITS = 18, EXACT_DIGITS = 15 /* that a double keeps */ };

static uint32_t digit(struct builder *b, int first, int last, uint32_t next)
{
    return grammar_range(b->g, (unsigned char)first, (unsigned char)last, next);
}

static uint32_t either(struct builder *b, uint32_t x, uint32_t y)
{
    return grammar_either(b->g, x, y);
}

/* ---- whole numbers ------------------------------------------------------------------------------- */

struct digits {
    int multiple;
    uint32_t next;
    uint32_t free[MAX_DIGITS + 1]
                 [BUILD_MAX_MULTIPLE]; /* by digits to come and remainder; 0: not made */
};

/* Digits between those of two numbers of one length; low and high say whether all digits so far were those of
 * `min` and of `max`; the remainder of those is known. */
static uint32_t between(struct builder *b, struct digits *d, const char *min, const char *max,
                        bool low, bool high, int remainder)
{
    size_t left = strlen(min);
    bool is_free = !low && !high;
    if (left == 0)
        return remainder == 0 ? d->next : 0;
    if (is_free && d->free[left][remainder])
        return d->free[left][remainder];
    int from = low ? *min : '0', to = high ? *max : '9';
    uint32_t all = 0;
    if (is_free && d->multiple == 1) {
        all = digit(b, '0', '9', between(b, d, min + 1, max + 1, false, false, 0));
    } else if (d->multiple == 1 && to - from > 2) { /* what lies inside is free */
        int first = from + (low ? 1 : 0), last = to - (high ? 1 : 0);
        all = digit(b, first, last, between(b, d, min + 1, max + 1, false, false, 0));
        if (low)
            all = either(b, all,
                         digit(b, from, from, between(b, d, min + 1, max + 1, true, false, 0)));
        if (high)
            all = either(b, all, digit(b, to, to, between(b, d, min + 1, max + 1, false, true, 0)));
    } else {
        for (int c = from; c <= to && !grammar_is_full(b->g); c++)
            all = either(b, all,
                         digit(b, c, c,
                               between(b, d, min + 1, max + 1, low && c == from, high && c == to,
                                       (remainder * 10 + c - '0') % d->multiple)));
    }
    if (is_free)
        d->free[left][remainder] = all;
    return all;
}

/* 0 <= min. */
static uint32_t natural(struct builder *b, int64_t min, int64_t max, int multiple, uint32_t next)
{
    uint32_t all = 0;
    int64_t least = 0, most = 9; /* of numbers with so many digits */
    struct digits d = {.multiple = multiple, .next = next};
    for (int n = 1; n <= MAX_DIGITS && least <= max; n++) {
        int64_t from = min > least ? min : least, to = max < most ? max : most;
        if (from <= to) {
            char low[24], high[24];
            snprintf(low, sizeof low, "%lld", (long long)from);
            snprintf(high, sizeof high, "%lld", (long long)to);
            all = either(b, all, between(b, &d, low, high, true, true, 0));
        }
        least = most + 1;
        if (n < MAX_DIGITS)
            most = most * 10 + 9;
    }
    return all;
}

uint32_t build_integer(struct builder *b, int64_t min, int64_t max, int multiple, uint32_t next)
{
    const int64_t limit = 999999999999999999;
    uint32_t all = 0;
    min = min < -limit ? -limit : min;
    max = max > limit ? limit : max;
    if (min > max)
        return 0;
    if (max >= 0)
        all = natural(b, min > 0 ? min : 0, max, multiple, next);
    if (min < 0)
        all = either(b, all,
                     digit(b, '-', '-', natural(b, max < 0 ? -max : 1, -min, multiple, next)));
    return all;
}

/* ---- decimals --------------------------------------------------------------------------------------- */

/* A magnitude as its digits. */
struct decimal {
    int64_t whole;
    char fraction[EXACT_DIGITS + 8]; /* no zeros at its end */
    bool is_strict;                  /* itself is out of bounds */
};

/* The shortest text that is the number again; false: too large, or with more digits than we keep apart. */
static bool decimal_of(double x, bool is_strict, struct decimal *d)
{
    char text[64];
    for (int places = 0; places <= EXACT_DIGITS; places++) {
        snprintf(text, sizeof text, "%.*f", places, x);
        if (x < 1e15 && strtod(text, NULL) == x) {
            char *point = strchr(text, '.');
            d->whole = strtoll(text, NULL, 10);
            snprintf(d->fraction, sizeof d->fraction, "%s", point ? point + 1 : "");
            d->is_strict = is_strict;
            return true;
        }
    }
    return false;
}

struct fraction {
    const struct decimal *low, *high; /* NULL: no bound */
    int places;
    uint32_t next;
    uint32_t free[EXACT_DIGITS + 1];
};

static int digit_at(const struct decimal *d, int i)
{
    return i < (int)strlen(d->fraction) ? d->fraction[i] : '0';
}

static bool is_rest_zero(const struct decimal *d, int i)
{
    return i >= (int)strlen(d->fraction);
}

/* Digits from the i-th place on; low and high: all before were the bound's. */
static uint32_t places(struct builder *b, struct fraction *f, int i, bool low, bool high)
{
    bool may_end = !(low && (!is_rest_zero(f->low, i) || f->low->is_strict)) &&
                   !(high && is_rest_zero(f->high, i) && f->high->is_strict);
    uint32_t all = may_end && i != 0 ? f->next : 0;
    if (i == f->places)
        return all;
    if (!low && !high && f->free[i])
        return f->free[i];
    int from = low ? digit_at(f->low, i) : '0', to = high ? digit_at(f->high, i) : '9';
    for (int c = from; c <= to; c++) {
        bool is_low = low && c == from, is_high = high && c == to;
        int last = is_low || is_high || c == to ? c : high ? to - 1 : to;
        all = either(b, all, digit(b, c, last, places(b, f, i + 1, is_low, is_high)));
        c = last;
    }
    if (!low && !high)
        f->free[i] = all;
    return all;
}

/* Behind a whole part: the end, or a point and digits. */
static uint32_t tail(struct builder *b, const struct decimal *low, const struct decimal *high,
                     int n_places, uint32_t next)
{
    struct fraction f = {.low = low, .high = high, .places = n_places, .next = next};
    bool may_end = !(low && (low->fraction[0] || low->is_strict)) &&
                   !(high && !high->fraction[0] && high->is_strict);
    uint32_t more = n_places > 0 ? places(b, &f, 0, low != NULL, high != NULL) : 0;
    return either(b, may_end ? next : 0, digit(b, '.', '.', more));
}

static uint32_t whole(struct builder *b, int64_t from, int64_t to, uint32_t next)
{
    return from <= to ? natural(b, from, to, 1, next) : 0;
}

/* From one magnitude to another. */
static uint32_t magnitude(struct builder *b, const struct decimal *low, const struct decimal *high,
                          int n_places, uint32_t next)
{
    if (low->whole > high->whole)
        return 0;
    if (low->whole == high->whole)
        return whole(b, low->whole, low->whole, tail(b, low, high, n_places, next));
    uint32_t all = whole(b, low->whole, low->whole, tail(b, low, NULL, n_places, next));
    all = either(b, all, whole(b, high->whole, high->whole, tail(b, NULL, high, n_places, next)));
    return either(b, all,
                  whole(b, low->whole + 1, high->whole - 1, tail(b, NULL, NULL, n_places, next)));
}

static int places_of(const struct decimal *low, const struct decimal *high, int most)
{
    char text[32];
    int digits = snprintf(text, sizeof text, "%lld",
                          (long long)(low->whole > high->whole ? low->whole : high->whole));
    int n = EXACT_DIGITS - digits;
    return most >= 0 && most < n ? most : n > 0 ? n : 0;
}

uint32_t build_decimal(struct builder *b, const struct build_bounds *x, uint32_t next)
{
    const double usual = 1e9, limit = 1e14; /* fewer digits before the point leave more behind it */
    double min = x->has_min ? x->min : x->has_max && x->max < -usual ? -limit : -usual;
    double max = x->has_max ? x->max : x->has_min && x->min > usual ? limit : usual;
    struct decimal low, high, zero = {0};
    bool min_is_strict = x->has_min && x->min_is_strict;
    bool max_is_strict = x->has_max && x->max_is_strict;
    if (!decimal_of(fabs(min), min_is_strict, &low) || !decimal_of(fabs(max), max_is_strict, &high))
        return build_refuse(b, "bounds of numbers must have at most 15 digits on each side of the "
                               "point");
    uint32_t all = 0;
    if (min > max)
        return 0;
    if (max >= 0)
        all = magnitude(b,
                        min > 0    ? &low
                        : min == 0 ? &low
                                   : &zero,
                        &high, places_of(&low, &high, x->places), next);
    if (min < 0) {
        struct decimal least = max < 0 ? high : zero;
        least.is_strict = max < 0 ? max_is_strict : max == 0 && max_is_strict;
        all = either(b, all,
                     digit(b, '-', '-',
                           magnitude(b, &least, &low, places_of(&low, &high, x->places), next)));
    }
    return all;
}
