/* model/mapping.c - see mapping.h. */
#include "model/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/must.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14; older kernels answer EINVAL */
#endif

/* A fault maps the neighbours within this aligned window too (fault_around_bytes). */
enum { PAGE_BYTES = 4096, FAULT_AROUND_BYTES = 64 << 10 };

int mapping_open(struct mapping *m, const char *path, struct err *e)
{
    struct stat st;
    *m = (struct mapping){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(e, errno, "%s", path);
    int rc = 0;
    if (fstat(fd, &st) < 0)
        rc = err_set_errno(e, errno, "%s", path);
    else if (!S_ISREG(st.st_mode))
        rc = err_set(e, E_INVALID, "%s: expected a regular file", path);
    else if (st.st_size == 0)
        rc = err_set(e, E_CORRUPT, "%s: the file is empty; fetch it again", path);
    if (rc == 0) {
        size_t bytes = (size_t)st.st_size;
        void *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            rc = err_set_errno(e, errno, "%s: map %zu bytes", path, bytes);
        } else {
            /* Where the file system gives huge pages (tmpfs, some kernels): advice only. */
            (void)madvise(data, bytes, MADV_HUGEPAGE);
            *m = (struct mapping){.data = data, .bytes = bytes};
        }
    }
    close(fd);
    return rc;
}

void mapping_close(struct mapping *m)
{
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->bytes);
    *m = (struct mapping){0};
}

struct range {
    void *start;
    size_t bytes;
};

/* Grown to multiples of `unit` without leaving the mapping. */
static struct range grow(const struct mapping *m, size_t offset, size_t bytes, size_t unit)
{
    must(offset <= m->bytes && bytes <= m->bytes - offset);
    size_t start = offset - offset % unit, end = offset + bytes;
    size_t grown = end + (unit - end % unit) % unit;
    end = grown < m->bytes ? grown : m->bytes;
    return (struct range){.start = (void *)(uintptr_t)(m->data + start), .bytes = end - start};
}

void mapping_advise(const struct mapping *m, size_t offset, size_t bytes,
                    enum mapping_advice advice)
{
    if (bytes == 0)
        return;
    if (advice == MAPPING_SOON) {
        struct range r = grow(m, offset, bytes, PAGE_BYTES);
        (void)madvise(r.start, r.bytes, MADV_WILLNEED);
        return;
    }
    struct range own = grow(m, offset, bytes, PAGE_BYTES);
    struct range window = grow(m, offset, bytes, FAULT_AROUND_BYTES);
    (void)munlock(own.start, own.bytes);
    /* These are the file's own pages: what another thread still reads of the window comes
     * back.  A neighbour that is locked makes the system refuse the window. */
    if (madvise(window.start, window.bytes, MADV_DONTNEED) < 0)
        (void)madvise(own.start, own.bytes, MADV_DONTNEED);
}

int mapping_fill(const struct mapping *m, size_t offset, size_t bytes)
{
    struct range r = grow(m, offset, bytes, PAGE_BYTES);
    (void)madvise(r.start, r.bytes, MADV_WILLNEED);
    if (bytes == 0 || madvise(r.start, r.bytes, MADV_POPULATE_READ) == 0)
        return 0;
    return errno == EFAULT || errno == EHWPOISON ? E_IO : 0;
}

int mapping_lock(const struct mapping *m, size_t offset, size_t bytes)
{
    struct range r = grow(m, offset, bytes, PAGE_BYTES);
    return bytes == 0 || mlock(r.start, r.bytes) == 0 ? 0 : errno;
}
