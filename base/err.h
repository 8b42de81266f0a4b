/* base/err.h - the one error convention.
 *
 * A function that can fail returns 0 or one of these codes.  Codes 1 to 16 are gRPC's
 * status numbers with the sign turned (https://grpc.io/docs/guides/status-codes/), so a
 * code crosses the wire as it is; codes from 32 on never leave the process.
 * Append, never renumber.
 *
 * Where a person will read the outcome (loading, configuration, membership) the last
 * parameter is `struct err *e`.  The function that detects the trouble fills it with
 * err_set(); every level above may add what it was doing with err_prefix(), so the line
 * reads "load model: layer 3: w2: expected [3072, 1536], file has [1536, 3072]". */
#pragma once

#include <stdarg.h>

#define ERR_LIST(X) \
    X(E_CANCELLED, 1, "cancelled") \
    X(E_UNKNOWN, 2, "unknown error") \
    X(E_INVALID, 3, "invalid argument") \
    X(E_DEADLINE, 4, "deadline exceeded") \
    X(E_NOT_FOUND, 5, "not found") \
    X(E_EXISTS, 6, "already exists") \
    X(E_DENIED, 7, "permission denied") \
    X(E_BUSY, 8, "resource exhausted") \
    X(E_PRECONDITION, 9, "failed precondition") \
    X(E_ABORTED, 10, "aborted") \
    X(E_RANGE, 11, "out of range") \
    X(E_UNIMPLEMENTED, 12, "not implemented") \
    X(E_INTERNAL, 13, "internal error") \
    X(E_UNAVAILABLE, 14, "unavailable") \
    X(E_CORRUPT, 15, "corrupt data") \
    X(E_UNAUTHENTICATED, 16, "unauthenticated") \
    X(E_IO, 32, "input/output error") \
    X(E_NOMEM, 33, "out of memory") \
    X(E_STALE, 34, "stale") \
    X(E_AGAIN, 35, "would block")

enum err_code {
#define ERR_ENUM(name, number, text) name = -(number),
    ERR_LIST(ERR_ENUM)
#undef ERR_ENUM
};

enum { ERR_TEXT_BYTES = 512 };

/* All-zero is "no error". */
struct err {
    int code;
    char text[ERR_TEXT_BYTES]; /* one sentence without a final stop, NUL-terminated */
};

/* Fills `e` (which may be NULL) and returns `code`, so that a caller can write
 * `return err_set(e, E_CORRUPT, "...")`.  Over-long texts are cut at the end. */
int err_set(struct err *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text and returns the code that `e` holds. */
int err_prefix(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Like err_set() with a code derived from `saved_errno`, whose text is appended. */
int err_set_errno(struct err *e, int saved_errno, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* "E_CORRUPT" and "corrupt data"; for 0 "OK" and "ok"; never NULL. */
const char *err_name(int code);
const char *err_text(int code);

/* The code for an errno value: ENOENT is E_NOT_FOUND, EACCES is E_DENIED, and so on. */
int err_from_errno(int errno_value);

/* gRPC's status number (0 to 16) for a code; local codes map to the nearest one. */
int err_to_status(int code);
int err_from_status(int status);
