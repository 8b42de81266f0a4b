#include "model/pretokenize.h"

#include <string.h>
#include <utf8proc.h>

#include "base/must.h"
#include "model/utf8.h"

/* What the pattern asks about a character.  Lm, Lo and M are both UPPER and LOWER there. */
enum {
    UPPER = 1,   /* Lu Lt Lm Lo M */
    LOWER = 2,   /* Ll Lm Lo M */
    LETTER = 4,  /* L, without M */
    NUMBER = 8,  /* N */
    SPACE = 16,  /* White_Space */
    NEWLINE = 32 /* CR LF */
};

static unsigned class_of_ascii(unsigned char c)
{
    if (c >= 'a' && c <= 'z')
        return LETTER | LOWER;
    if (c >= 'A' && c <= 'Z')
        return LETTER | UPPER;
    if (c >= '0' && c <= '9')
        return NUMBER;
    if (c == '\n' || c == '\r')
        return SPACE | NEWLINE;
    if (c == ' ' || (c >= '\t' && c <= '\r'))
        return SPACE;
    return 0;
}

static unsigned class_of(int32_t code_point)
{
    switch (utf8proc_category(code_point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LT:
        return LETTER | UPPER;
    case UTF8PROC_CATEGORY_LL:
        return LETTER | LOWER;
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return LETTER | UPPER | LOWER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
        return UPPER | LOWER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return NUMBER;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return SPACE;
    default:
        /* White_Space is Z, the controls of ASCII, and U+0085. */
        return code_point == 0x85 ? SPACE : 0;
    }
}

/* Class and length of the character at `at`; at the end of the text class 0 and length 0. */
static unsigned class_at(struct str text, size_t at, size_t *len)
{
    int32_t code_point;

    *len = 0;
    if (at >= text.len)
        return 0;
    *len = 1;
    if ((unsigned char)text.ptr[at] < 0x80)
        return class_of_ascii((unsigned char)text.ptr[at]);
    *len = utf8_decode(text, at, &code_point);
    if (*len > 0)
        return class_of(code_point);
    *len = 1; /* a bad byte is a symbol */
    return 0;
}

/* Passes all characters from `at` that have a class of `wanted`, `most` at most. */
static size_t pass(struct str text, size_t at, unsigned wanted, int most)
{
    size_t len;

    while (most-- > 0 && (class_at(text, at, &len) & wanted))
        at += len;
    return at;
}

enum { ALL = INT32_MAX };

/* [upper]*[lower]+ from `at`: its end, or `at` if it does not match. */
static size_t match_word_to_lower(struct str text, size_t at)
{
    size_t last_lower = at, end = at, len;
    unsigned class;

    while ((class = class_at(text, end, &len)) & UPPER) {
        end += len;
        if (class & LOWER)
            last_lower = end;
    }
    /* Without a lower one behind them, the uppers give characters back until one is both. */
    return (class & LOWER) ? pass(text, end, LOWER, ALL) : last_lower;
}

/* [upper]+[lower]* */
static size_t match_word_from_upper(struct str text, size_t at)
{
    size_t uppers = pass(text, at, UPPER, ALL);

    return uppers == at ? at : pass(text, uppers, LOWER, ALL);
}

/* Passes (?i:'s|'t|'re|'ve|'m|'ll|'d)? */
static size_t pass_contraction(struct str text, size_t at)
{
    char a, b;

    if (text.len - at < 2 || text.ptr[at] != '\'')
        return at;
    a = (char)(text.ptr[at + 1] | 0x20);
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return at + 2;
    if (text.len - at < 3)
        return at;
    /* U+017F, long s, is an s to a pattern that ignores case. */
    if (memcmp(text.ptr + at + 1, "\xc5\xbf", 2) == 0)
        return at + 3;
    b = (char)(text.ptr[at + 2] | 0x20);
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
        return at + 3;
    return at;
}

/* The first two alternatives; `at` if neither matches. */
static size_t match_word(struct str text, size_t at)
{
    static size_t (*const matches[])(struct str, size_t) = {match_word_to_lower,
                                                            match_word_from_upper};
    size_t len, end;
    unsigned class = class_at(text, at, &len);
    size_t after_prefix = (class & (LETTER | NUMBER | NEWLINE)) ? at : at + len;

    for (size_t i = 0; i < 2; i++) {
        end = matches[i](text, after_prefix);
        if (end > after_prefix)
            return pass_contraction(text, end);
        end = matches[i](text, at);
        if (end > at)
            return pass_contraction(text, end);
    }
    return at;
}

/* " ?[^\s\p{L}\p{N}]+[\r\n/]*"; `at` if it does not match. */
static size_t match_symbols(struct str text, size_t at)
{
    size_t first = text.ptr[at] == ' ' ? at + 1 : at, end = first, len;

    while (!(class_at(text, end, &len) & (SPACE | LETTER | NUMBER)) && len > 0)
        end += len;
    if (end == first)
        return at;
    while (end < text.len && memchr("\r\n/", text.ptr[end], 3))
        end++;
    return end;
}

/* The last three alternatives, for text that starts with white space. */
static size_t match_space(struct str text, size_t at)
{
    size_t end = at, last = at, after_newline = at, len;
    unsigned class;

    while ((class = class_at(text, end, &len)) & SPACE) {
        last = end;
        end += len;
        if (class & NEWLINE)
            after_newline = end;
    }
    if (after_newline > at)
        return after_newline;
    /* The last one joins what follows, unless nothing follows or it is the only one. */
    return end == text.len || last == at ? end : last;
}

size_t pretokenize_next(struct str text, size_t at)
{
    size_t len, end;
    unsigned class = class_at(text, at, &len);

    must(at < text.len);
    end = match_word(text, at);
    if (end > at)
        return end;
    if (class & NUMBER)
        return pass(text, at, NUMBER, 3);
    end = match_symbols(text, at);
    if (end > at)
        return end;
    return match_space(text, at);
}

#define PATTERN(contraction) \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]" \
    "+" contraction "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}" \
    "\\p{Lo}\\p{M}]*" contraction \
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

/* The first is what is written, all are what is read. */
static const char *const spellings[] = {
    PATTERN("(?i:'s|'t|'re|'ve|'m|'ll|'d)?"),
    PATTERN("(?:'(?i:[sdmt]|ll|ve|re))?"),
    PATTERN("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"),
};

bool pretokenize_knows(struct str regex)
{
    for (size_t i = 0; i < sizeof(spellings) / sizeof(*spellings); i++)
        if (str_equal(regex, str_of(spellings[i])))
            return true;
    return false;
}

const char *pretokenize_pattern(void)
{
    return spellings[0];
}
