/* base/buf.c - a growing byte buffer, views, and whole files.  Owner: the caller's thread. */
#include "base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "base/must.h"

enum { BUF_FIRST_BYTES = 64, BUF_READ_BYTES = 64 << 10 };

struct str str_of(const char *s)
{
    return s ? (struct str){s, strlen(s)} : (struct str){"", 0};
}

bool str_equal(struct str a, struct str b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

bool str_has_prefix(struct str s, struct str prefix)
{
    return s.len >= prefix.len && str_equal((struct str){s.ptr, prefix.len}, prefix);
}

size_t str_find(struct str s, struct str needle)
{
    if (needle.len == 0)
        return 0;
    if (needle.len > s.len)
        return SIZE_MAX;
    const char *hit = memmem(s.ptr, s.len, needle.ptr, needle.len);
    return hit ? (size_t)(hit - s.ptr) : SIZE_MAX;
}

char *str_copy(struct str s)
{
    char *copy = mem_alloc(s.len + 1);
    if (s.len > 0)
        memcpy(copy, s.ptr, s.len);
    return copy;
}

void buf_fini(struct buf *b)
{
    mem_free(b->data);
    *b = (struct buf){0};
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    if (b->data)
        b->data[0] = '\0';
}

void buf_reserve(struct buf *b, size_t more_bytes)
{
    size_t wanted;
    must(mem_add(b->len, more_bytes, &wanted) && wanted < SIZE_MAX / 2);
    wanted++; /* the NUL */
    if (wanted <= b->size)
        return;
    size_t size = b->size ? b->size * 2 : BUF_FIRST_BYTES;
    if (size < wanted)
        size = wanted;
    b->data = mem_resize(b->data, size);
    b->size = size;
    b->data[b->len] = '\0';
}

void buf_append(struct buf *b, const void *data, size_t bytes)
{
    buf_reserve(b, bytes);
    if (bytes > 0)
        memcpy(b->data + b->len, data, bytes);
    b->len += bytes;
    b->data[b->len] = '\0';
}

void buf_append_str(struct buf *b, struct str s)
{
    buf_append(b, s.ptr, s.len);
}

void buf_puts(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c)
{
    buf_append(b, &c, 1);
}

void buf_printf(struct buf *b, const char *format, ...)
{
    must(format != NULL); /* also tells gcc, which warns under -fsanitize=undefined */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    must(n >= 0);
    buf_reserve(b, (size_t)n);
    va_start(args, format);
    vsnprintf(b->data + b->len, (size_t)n + 1, format, args);
    va_end(args);
    b->len += (size_t)n;
}

void buf_drop(struct buf *b, size_t bytes)
{
    must(bytes <= b->len);
    if (bytes == 0)
        return;
    b->len -= bytes;
    memmove(b->data, b->data + bytes, b->len + 1);
}

struct str buf_str(const struct buf *b)
{
    return b->data ? (struct str){b->data, b->len} : (struct str){"", 0};
}

static int read_all(struct buf *b, int fd, const char *path, size_t limit_bytes, struct err *e)
{
    for (;;) {
        buf_reserve(b, BUF_READ_BYTES);
        ssize_t n = read(fd, b->data + b->len, BUF_READ_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, errno, "read %s", path);
        b->len += (size_t)n;
        b->data[b->len] = '\0';
        if (b->len > limit_bytes)
            return err_set(e, E_RANGE, "%s is longer than %zu bytes", path, limit_bytes);
        if (n == 0)
            return 0;
    }
}

int buf_read_file(struct buf *b, const char *path, size_t limit_bytes, struct err *e)
{
    buf_reset(b);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "open %s", path);
    int rc = read_all(b, fd, path, limit_bytes, e);
    close(fd);
    if (rc < 0)
        buf_reset(b);
    return rc;
}

static int write_all(int fd, struct str s)
{
    while (s.len > 0) {
        ssize_t n = write(fd, s.ptr, s.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        s.ptr += n;
        s.len -= (size_t)n;
    }
    /* Before the rename, or a power cut could leave the new name with no content. */
    return fsync(fd) < 0 ? errno : 0;
}

int buf_write_file(const struct buf *b, const char *path, struct err *e)
{
    int rc = 0, failed;
    char *temporary = mem_format("%s.tmp", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        rc = err_set_errno(e, errno, "create %s", temporary);
        goto out;
    }
    failed = write_all(fd, buf_str(b));
    if (close(fd) < 0 && !failed)
        failed = errno;
    if (!failed && rename(temporary, path) < 0)
        failed = errno;
    if (failed) {
        unlink(temporary);
        rc = err_set_errno(e, failed, "write %s", path);
    }
out:
    mem_free(temporary);
    return rc;
}
