/* base/buf.h - a growing byte buffer, and views. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A view of bytes that somebody else owns; not NUL-terminated. */
struct str {
    const char *ptr;
    size_t len;
};
#define STR(literal) ((struct str){("" literal), sizeof(literal) - 1})
struct str str_of(const char *s); /* NULL gives an empty view */
bool str_equal(struct str a, struct str b);
bool str_has_prefix(struct str s, struct str prefix);
/* Offset of the first `needle` in s, or SIZE_MAX. */
size_t str_find(struct str s, struct str needle);
/* NUL-terminated copy; free with mem_free(). */
char *str_copy(struct str s);

/* All-zero is empty.  `data` is NUL-terminated at data[len] after every call here. */
struct buf {
    char *data;
    size_t len, size;
};
void buf_fini(struct buf *b);
/* Empty again, memory kept. */
void buf_reset(struct buf *b);
void buf_reserve(struct buf *b, size_t more_bytes);
void buf_append(struct buf *b, const void *data, size_t bytes);
void buf_append_str(struct buf *b, struct str s);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Drops the first `bytes` bytes. */
void buf_drop(struct buf *b, size_t bytes);
struct str buf_str(const struct buf *b);

/* Whole file into the buffer; at most `limit_bytes`, else E_RANGE. */
struct err;
int buf_read_file(struct buf *b, const char *path, size_t limit_bytes, struct err *e);
/* Writes path.tmp, then renames: a reader sees the old file or the whole new one. */
int buf_write_file(const struct buf *b, const char *path, struct err *e);
