/* model/packed_write.c - the writing half of packed.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/packed.h"

enum { PIECE_BYTES = 4 << 20 };

/* After the last blob, at a multiple of PACKED_ALIGN_BYTES; the hashes follow, then the hash
 * of all that. */
struct trailer {
    char magic[8];
    uint32_t version, n_blobs;
    uint64_t key;
    uint64_t hashes[];
};
_Static_assert(sizeof(struct trailer) == 24, "the trailer is a file format");
#define MAGIC "PMPACKED"

struct packed_writer {
    char *path, *temporary;
    int fd;
    uint64_t key;
    size_t data_bytes;
    int n_blobs;
};

uint64_t packed_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

static size_t trailer_bytes(int n_blobs)
{
    return sizeof(struct trailer) + ((size_t)n_blobs + 1) * sizeof(uint64_t);
}

static size_t trailer_offset(size_t data_bytes)
{
    return mem_round_up(data_bytes, PACKED_ALIGN_BYTES);
}

size_t packed_file_bytes(size_t data_bytes, int n_blobs)
{
    return trailer_offset(data_bytes) + trailer_bytes(n_blobs);
}

static int read_exactly(int fd, void *data, size_t bytes, size_t offset)
{
    char *at = data;
    while (bytes > 0) {
        ssize_t n = pread(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ENODATA;
        at += n;
        offset += (size_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int write_exactly(int fd, const void *data, size_t bytes, size_t offset)
{
    const char *at = data;
    while (bytes > 0) {
        ssize_t n = pwrite(fd, at, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        at += n;
        offset += (size_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

static bool is_trailer(const struct trailer *t, uint64_t key, int n_blobs)
{
    uint64_t own;
    size_t hashed = trailer_bytes(n_blobs) - sizeof own;
    memcpy(&own, (const char *)t + hashed, sizeof own);
    return memcmp(t->magic, MAGIC, sizeof t->magic) == 0 && t->version == PACKED_VERSION &&
           t->n_blobs == (uint32_t)n_blobs && t->key == key && own == packed_hash(t, hashed);
}

bool packed_file_is_whole(const char *path, uint64_t key, size_t data_bytes, int n_blobs,
                          uint64_t *hashes)
{
    struct stat st;
    bool is_whole = false;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
        (size_t)st.st_size == packed_file_bytes(data_bytes, n_blobs)) {
        struct trailer *t = mem_alloc(trailer_bytes(n_blobs));
        is_whole = read_exactly(fd, t, trailer_bytes(n_blobs), trailer_offset(data_bytes)) == 0 &&
                   is_trailer(t, key, n_blobs);
        if (is_whole)
            memcpy(hashes, t->hashes, (size_t)n_blobs * sizeof *hashes);
        mem_free(t);
    }
    close(fd);
    return is_whole;
}

/* All blocks now, so that a full disk is found before hours of work; where the file system
 * cannot, it is found when it happens. */
static int reserve(int fd, size_t bytes)
{
    if (fallocate(fd, 0, 0, (off_t)bytes) == 0)
        return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
        return errno;
    return ftruncate(fd, (off_t)bytes) == 0 ? 0 : errno;
}

int packed_writer_open(const char *path, uint64_t key, size_t data_bytes, int n_blobs,
                       struct packed_writer **out, struct err *e)
{
    struct packed_writer *w = mem_alloc(sizeof *w);
    *w = (struct packed_writer){.path = mem_string(path),
                                .temporary = mem_format("%s.tmp", path),
                                .key = key,
                                .data_bytes = data_bytes,
                                .n_blobs = n_blobs};
    *out = NULL;
    w->fd = open(w->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    int failed = w->fd < 0 ? errno : reserve(w->fd, packed_file_bytes(data_bytes, n_blobs));
    if (failed) {
        err_set_errno(e, failed, "%s: create with %zu bytes", w->temporary,
                      packed_file_bytes(data_bytes, n_blobs));
        packed_writer_abandon(&w);
        return err_from_errno(failed);
    }
    *out = w;
    return 0;
}

int packed_writer_put(struct packed_writer *w, size_t offset, const void *data, size_t bytes,
                      struct err *e)
{
    must(offset <= w->data_bytes && bytes <= w->data_bytes - offset);
    int failed = write_exactly(w->fd, data, bytes, offset);
    if (failed)
        return err_set_errno(e, failed, "%s: write", w->temporary);
    /* Begun now, it is nearly done when packed_writer_finish() waits for it. */
    (void)sync_file_range(w->fd, (off_t)offset, (off_t)bytes, SYNC_FILE_RANGE_WRITE);
    return 0;
}

int packed_writer_hash(struct packed_writer *w, size_t offset, size_t bytes, uint64_t *hash,
                       struct err *e)
{
    must(offset <= w->data_bytes && bytes <= w->data_bytes - offset);
    XXH3_state_t *state = XXH3_createState();
    void *piece = mem_try_aligned(PIECE_BYTES);
    int failed = state && piece ? 0 : ENOMEM;
    if (state)
        XXH3_64bits_reset(state);
    for (size_t at = 0; at < bytes && !failed; at += PIECE_BYTES) {
        size_t n = bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES;
        failed = read_exactly(w->fd, piece, n, offset + at);
        if (!failed)
            XXH3_64bits_update(state, piece, n);
    }
    if (!failed)
        *hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    mem_free(piece);
    return failed ? err_set_errno(e, failed, "%s: read back", w->temporary) : 0;
}

static void writer_free(struct packed_writer **w)
{
    if ((*w)->fd >= 0)
        close((*w)->fd);
    mem_free((*w)->path);
    mem_free((*w)->temporary);
    mem_free(*w);
    *w = NULL;
}

void packed_writer_abandon(struct packed_writer **w)
{
    if (!*w)
        return;
    if ((*w)->fd >= 0)
        (void)unlink((*w)->temporary);
    writer_free(w);
}

static int write_trailer(const struct packed_writer *w, const uint64_t *hashes)
{
    size_t bytes = trailer_bytes(w->n_blobs), hashed = bytes - sizeof(uint64_t);
    struct trailer *t = mem_alloc(bytes);
    *t =
        (struct trailer){.version = PACKED_VERSION, .n_blobs = (uint32_t)w->n_blobs, .key = w->key};
    memcpy(t->magic, MAGIC, sizeof t->magic);
    memcpy(t->hashes, hashes, (size_t)w->n_blobs * sizeof *hashes);
    uint64_t own = packed_hash(t, hashed);
    memcpy((char *)t + hashed, &own, sizeof own);
    int failed = write_exactly(w->fd, t, bytes, trailer_offset(w->data_bytes));
    mem_free(t);
    return failed;
}

int packed_writer_finish(struct packed_writer **writer, const uint64_t *hashes, struct err *e)
{
    struct packed_writer *w = *writer;
    int failed = write_trailer(w, hashes);
    if (!failed && fsync(w->fd) < 0)
        failed = errno;
    if (!failed && rename(w->temporary, w->path) < 0)
        failed = errno;
    if (!failed) {
        writer_free(writer);
        return 0;
    }
    int rc = err_set_errno(e, failed, "%s: finish", w->path);
    packed_writer_abandon(writer);
    return rc;
}

int packed_sync(const char *path, struct err *e)
{
    int rc = 0, fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        rc = err_set_errno(e, errno, "%s: sync", path);
    if (fd >= 0)
        close(fd);
    return rc;
}

int packed_write_manifest(const char *dir, const struct packed_manifest *m, struct err *e)
{
    struct buf text = {0};
    char *path = mem_format("%s/" PACKED_MANIFEST, dir);
    char *temporary = mem_format("%s.new", path);
    packed_manifest_text(m, &text);
    int rc = buf_write_file(&text, temporary, e);
    if (rc == 0)
        rc = packed_sync(temporary, e);
    if (rc == 0)
        rc = packed_sync(dir, e);
    if (rc == 0 && rename(temporary, path) < 0)
        rc = err_set_errno(e, errno, "%s: rename", temporary);
    if (rc == 0)
        rc = packed_sync(dir, e);
    if (rc < 0)
        (void)unlink(temporary);
    mem_free(path);
    mem_free(temporary);
    buf_fini(&text);
    return rc;
}
