/* base/err.c - error codes, their texts, and the sentence that a person reads.
 *
 * No state; any thread.  A chained text is cut at the end rather than refused: the front
 * of the sentence says what was being done, which is the part that matters most. */
#include "base/err.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static void append_text(struct err *e, const char *text)
{
    size_t used = strlen(e->text);
    size_t more = strnlen(text, sizeof(e->text) - 1 - used);
    memcpy(e->text + used, text, more);
    e->text[used + more] = '\0';
}

int err_set(struct err *e, int code, const char *format, ...)
{
    if (!e)
        return code;
    e->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof(e->text), format, args);
    va_end(args);
    return code;
}

int err_prefix(struct err *e, const char *format, ...)
{
    if (!e)
        return E_UNKNOWN;
    struct err old = *e;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof(e->text), format, args);
    va_end(args);
    append_text(e, ": ");
    append_text(e, old.text);
    return e->code;
}

int err_set_errno(struct err *e, int saved_errno, const char *format, ...)
{
    int code = err_from_errno(saved_errno);
    if (!e)
        return code;
    e->code = code;
    va_list args;
    va_start(args, format);
    vsnprintf(e->text, sizeof(e->text), format, args);
    va_end(args);
    const char *why = strerrordesc_np(saved_errno);
    append_text(e, ": ");
    append_text(e, why ? why : "unknown errno");
    return code;
}

const char *err_name(int code)
{
    switch (code) {
    case 0:
        return "OK";
#define ERR_NAME(name, number, text) \
    case name: \
        return #name;
        ERR_LIST(ERR_NAME)
#undef ERR_NAME
    }
    return "E_UNKNOWN";
}

const char *err_text(int code)
{
    switch (code) {
    case 0:
        return "ok";
#define ERR_WORDS(name, number, words) \
    case name: \
        return words;
        ERR_LIST(ERR_WORDS)
#undef ERR_WORDS
    }
    return "unknown error";
}

static const struct {
    int errno_value, code;
} errno_codes[] = {
    {ENOENT, E_NOT_FOUND},
    {ENOTDIR, E_NOT_FOUND},
    {ENODEV, E_NOT_FOUND},
    {ESRCH, E_NOT_FOUND},
    {EACCES, E_DENIED},
    {EPERM, E_DENIED},
    {EROFS, E_DENIED},
    {EEXIST, E_EXISTS},
    {EADDRINUSE, E_EXISTS},
    {ENOMEM, E_NOMEM},
    {EAGAIN, E_AGAIN},
    {EINTR, E_AGAIN},
    {ETIMEDOUT, E_DEADLINE},
    {EINVAL, E_INVALID},
    {EISDIR, E_INVALID},
    {ENAMETOOLONG, E_INVALID},
    {EBADF, E_INVALID},
    {ENOSPC, E_BUSY},
    {EDQUOT, E_BUSY},
    {EMFILE, E_BUSY},
    {ENFILE, E_BUSY},
    {EBUSY, E_BUSY},
    {ECONNREFUSED, E_UNAVAILABLE},
    {ECONNRESET, E_UNAVAILABLE},
    {ECONNABORTED, E_UNAVAILABLE},
    {EHOSTUNREACH, E_UNAVAILABLE},
    {ENETUNREACH, E_UNAVAILABLE},
    {EPIPE, E_UNAVAILABLE},
    {ENOTCONN, E_UNAVAILABLE},
    {ENETDOWN, E_UNAVAILABLE},
    {ECANCELED, E_CANCELLED},
    {ENOSYS, E_UNIMPLEMENTED},
    {EOPNOTSUPP, E_UNIMPLEMENTED},
    {ERANGE, E_RANGE},
    {EOVERFLOW, E_RANGE},
    {EFBIG, E_RANGE},
    {ENOTEMPTY, E_PRECONDITION},
    {EXDEV, E_PRECONDITION},
    {EILSEQ, E_CORRUPT},
};

int err_from_errno(int errno_value)
{
    for (size_t i = 0; i < sizeof(errno_codes) / sizeof(errno_codes[0]); i++)
        if (errno_codes[i].errno_value == errno_value)
            return errno_codes[i].code;
    return E_IO;
}

int err_to_status(int code)
{
    if (code <= 0 && code >= -16)
        return -code;
    switch (code) {
    case E_IO:
        return -E_INTERNAL;
    case E_NOMEM:
        return -E_BUSY;
    case E_STALE:
        return -E_ABORTED;
    case E_AGAIN:
        return -E_UNAVAILABLE;
    }
    return -E_UNKNOWN;
}

int err_from_status(int status)
{
    return status >= 0 && status <= 16 ? -status : (int)E_UNKNOWN;
}
