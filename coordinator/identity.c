/* coordinator/identity.c - see identity.h. */
#include "coordinator/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/rng.h"

enum { LINE_BYTES = 160, HOST_BYTES = 65 };

static void host_name(char host[HOST_BYTES])
{
    host[0] = '\0';
    if (gethostname(host, HOST_BYTES - 1) < 0 || host[0] == '\0')
        snprintf(host, HOST_BYTES, "-");
    host[HOST_BYTES - 1] = '\0';
}

/* 0: there is none that was made here. */
static uint64_t read_identity(const char *path)
{
    char line[LINE_BYTES + 1] = "", said[HOST_BYTES] = "", host[HOST_BYTES];
    uint64_t number = 0, inode = 0;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, line, LINE_BYTES);
    bool is_known = n > 0 && fstat(fd, &st) == 0 &&
                    sscanf(line, "%16" SCNx64 " %20" SCNu64 " %64s", &number, &inode, said) == 3;
    close(fd);
    host_name(host);
    return is_known && inode == (uint64_t)st.st_ino && strcmp(said, host) == 0 ? number : 0;
}

static int write_whole(int fd, uint64_t number)
{
    char line[LINE_BYTES], host[HOST_BYTES];
    struct stat st;
    host_name(host);
    if (fstat(fd, &st) < 0)
        return -1;
    int n = snprintf(line, sizeof line, "%016" PRIx64 " %" PRIu64 " %s\n", number,
                     (uint64_t)st.st_ino, host);
    return write(fd, line, (size_t)n) == n && fsync(fd) == 0 ? 0 : -1;
}

/* Under a name of this process first, so that what has the name is whole. */
static int make_identity(const char *path, uint64_t *out, struct err *e)
{
    char *own = mem_format("%s.%d", path, (int)getpid());
    int rc = 0, fd = open(own, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    *out = 0;
    while (*out == 0)
        *out = rng_entropy();
    if (fd < 0 || write_whole(fd, *out) < 0 || rename(own, path) < 0)
        rc = err_set_errno(e, errno, "write %s", path);
    if (fd >= 0)
        close(fd);
    if (rc < 0)
        unlink(own);
    mem_free(own);
    return rc;
}

int identity_of(const char *dir, uint64_t *out, struct err *e)
{
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_set_errno(e, errno, "make %s", dir);
    char *path = mem_format("%s/identity", dir);
    *out = read_identity(path);
    int rc = *out ? 0 : make_identity(path, out, e);
    mem_free(path);
    return rc;
}
