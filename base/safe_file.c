/* base/safe_file.c - see safe_file.h. */
#include "base/safe_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

static mode_t mode_of(enum safe_file_kind kind)
{
    return kind == SAFE_FILE_SECRET ? 0600 : 0644;
}

static int check_kind(const char *path, const struct stat *st, enum safe_file_kind kind,
                      struct err *e)
{
    unsigned mode = (unsigned)st->st_mode & 07777;
    if (!S_ISREG(st->st_mode))
        return err_set(e, E_INVALID, "%s is not a regular file", path);
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return err_set(e, E_DENIED, "%s belongs to user %u, not to this one (%u) or root", path,
                       (unsigned)st->st_uid, (unsigned)geteuid());
    if (kind == SAFE_FILE_SECRET && (mode & 077))
        return err_set(
            e, E_DENIED,
            "%s has mode %04o: others can read this secret (chmod 600 it, and make a new "
            "one if they may have)",
            path, mode);
    if (mode & 022)
        return err_set(e, E_DENIED, "%s has mode %04o: others can write it (chmod 644 it)", path,
                       mode);
    if (st->st_size > SAFE_FILE_BYTES)
        return err_set(e, E_RANGE, "%s has %lld bytes, at most %d are possible", path,
                       (long long)st->st_size, SAFE_FILE_BYTES);
    return 0;
}

static int read_all(int fd, const char *path, struct buf *out, struct err *e)
{
    char chunk[4096];
    size_t total = 0;
    for (ssize_t n; (n = read(fd, chunk, sizeof chunk)) != 0;) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(e, errno, "%s", path);
        total += (size_t)n;
        if (total > SAFE_FILE_BYTES) /* it grew */
            return err_set(e, E_RANGE, "%s is larger than %d bytes", path, SAFE_FILE_BYTES);
        buf_append(out, chunk, (size_t)n);
    }
    return 0;
}

int safe_file_read(const char *path, enum safe_file_kind kind, struct buf *out, struct err *e)
{
    buf_reserve(out, 1); /* an empty file is an empty text, too */
    /* Not to wait for a FIFO's other end. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set_errno(e, errno, "%s", path);
    struct stat st;
    int rc =
        fstat(fd, &st) < 0 ? err_set_errno(e, errno, "%s", path) : check_kind(path, &st, kind, e);
    if (rc == 0)
        rc = read_all(fd, path, out, e);
    close(fd);
    return rc;
}

static int write_all(int fd, struct str text)
{
    while (text.len > 0) {
        ssize_t n = write(fd, text.ptr, text.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        text.ptr += n;
        text.len -= (size_t)n;
    }
    return fsync(fd);
}

int safe_file_create(const char *path, enum safe_file_kind kind, struct str text, struct err *e)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode_of(kind));
    if (fd < 0)
        return err_set_errno(e, errno, "%s", path);
    /* Whatever the umask says: not more than asked for, and not less. */
    int rc = fchmod(fd, mode_of(kind)) < 0 || write_all(fd, text) < 0 ? -1 : 0;
    int saved = errno;
    if (close(fd) < 0 && rc == 0) {
        rc = -1;
        saved = errno;
    }
    if (rc == 0)
        return 0;
    unlink(path);
    return err_set_errno(e, saved, "%s", path);
}

int safe_file_replace(const char *path, enum safe_file_kind kind, struct str text, struct err *e)
{
    char *aside = mem_format("%s.%ld.new", path, (long)getpid());
    unlink(aside);
    int rc = safe_file_create(aside, kind, text, e);
    if (rc == 0 && rename(aside, path) < 0) {
        rc = err_set_errno(e, errno, "%s", path);
        unlink(aside);
    }
    mem_free(aside);
    return rc;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
    return (h ^ x) * 0x9e3779b97f4a7c15ull + (h >> 29);
}

uint64_t safe_file_stamp(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return 0;
    uint64_t h = mix(1, (uint64_t)st.st_ino);
    h = mix(h, (uint64_t)st.st_size);
    h = mix(h, (uint64_t)st.st_mode);
    h = mix(h, (uint64_t)st.st_mtim.tv_sec);
    return mix(h, (uint64_t)st.st_mtim.tv_nsec) | 1;
}
