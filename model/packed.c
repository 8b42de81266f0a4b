/* model/packed.c - the reading half of packed.h.
 *
 * A file is mapped when the first of its blobs is asked for and published by
 * compare-and-swap, like a shard of a checkpoint.
 *
 * Log events: packed.lock_refused. */
#include "model/packed.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"

struct file {
    _Atomic(struct mapping *) map; /* NULL until first use */
};

struct check {
    atomic_bool is_done; /* the blob's hash was compared */
};

struct packed {
    char *dir;
    struct packed_manifest manifest;
    struct checkpoint_options options;
    struct file *files;   /* [n_files] */
    struct check *checks; /* [n_blobs] */
    atomic_bool has_warned;
};

bool packed_is_here(const char *dir)
{
    char *path = mem_format("%s/" PACKED_MANIFEST, dir);
    bool is_here = access(path, F_OK) == 0;
    mem_free(path);
    return is_here;
}

static int check_file(const struct packed *p, int file, struct err *e)
{
    struct stat st;
    const struct packed_file_info *info = &p->manifest.files[file];
    char *path = mem_format("%s/%s", p->dir, info->name);
    int rc = 0;
    if (stat(path, &st) < 0)
        rc = err_set_errno(e, errno, "%s: " PACKED_MANIFEST " names it", path);
    else if (!S_ISREG(st.st_mode) || (size_t)st.st_size != info->bytes)
        rc = err_set(e, E_CORRUPT,
                     "%s: has %lld bytes, " PACKED_MANIFEST " says %zu; copy the file again or "
                     "pack the model again",
                     path, (long long)st.st_size, info->bytes);
    mem_free(path);
    return rc;
}

int packed_open(const char *dir, const struct packed_shape *shape,
                const struct checkpoint_options *o, struct packed **out, struct err *e)
{
    struct packed *p = mem_alloc(sizeof *p);
    *out = NULL;
    p->dir = mem_string(dir);
    p->options = *o;
    int rc = packed_manifest_read(dir, shape, &p->manifest, e);
    for (int i = 0; i < p->manifest.n_files && rc == 0; i++)
        rc = check_file(p, i, e);
    if (rc < 0) {
        packed_close(&p);
        return rc;
    }
    p->files = mem_array((size_t)p->manifest.n_files, sizeof *p->files);
    p->checks = mem_array((size_t)p->manifest.n_blobs, sizeof *p->checks);
    *out = p;
    return 0;
}

void packed_close(struct packed **packed)
{
    struct packed *p = *packed;
    if (!p)
        return;
    for (int i = 0; p->files && i < p->manifest.n_files; i++) {
        struct mapping *map = atomic_load(&p->files[i].map);
        if (map)
            mapping_close(map);
        mem_free(map);
    }
    mem_free(p->files);
    mem_free(p->checks);
    packed_manifest_fini(&p->manifest);
    mem_free(p->dir);
    mem_free(p);
    *packed = NULL;
}

const struct packed_manifest *packed_contents(const struct packed *p)
{
    return &p->manifest;
}

int packed_open_files(const struct packed *p)
{
    int n_open = 0;
    for (int i = 0; i < p->manifest.n_files; i++)
        n_open += atomic_load(&p->files[i].map) != NULL;
    return n_open;
}

static int open_file(struct packed *p, int file, struct mapping **out, struct err *e)
{
    *out = atomic_load_explicit(&p->files[file].map, memory_order_acquire);
    if (*out)
        return 0;
    const struct packed_file_info *info = &p->manifest.files[file];
    struct mapping opened, *present = NULL;
    char *path = mem_format("%s/%s", p->dir, info->name);
    int rc = mapping_open(&opened, path, e);
    /* It may have been replaced since packed_open() looked. */
    if (rc == 0 && opened.bytes != info->bytes) {
        rc = err_set(e, E_CORRUPT, "%s: has %zu bytes, " PACKED_MANIFEST " says %zu", path,
                     opened.bytes, info->bytes);
        mapping_close(&opened);
    }
    mem_free(path);
    if (rc < 0)
        return rc;
    struct mapping *map = mem_alloc(sizeof *map);
    *map = opened;
    if (atomic_compare_exchange_strong(&p->files[file].map, &present, map)) {
        *out = map;
    } else {
        mapping_close(map);
        mem_free(map);
        *out = present;
    }
    return 0;
}

static int verify(struct packed *p, int index, const struct mapping *map, struct err *e)
{
    const struct packed_blob_info *blob = &p->manifest.blobs[index];
    char text[PACKED_BLOB_TEXT_BYTES];
    uint64_t hash = packed_hash(map->data + blob->offset, blob->bytes);
    if (hash == blob->hash) {
        atomic_store(&p->checks[index].is_done, true);
        return 0;
    }
    return err_set(e, E_CORRUPT,
                   "%s/%s: %s: hash is %016" PRIx64 ", " PACKED_MANIFEST " says %016" PRIx64
                   "; copy the file again or pack the model again",
                   p->dir, p->manifest.files[blob->file].name,
                   packed_blob_text(&p->manifest, index, text), hash, blob->hash);
}

static void lock(struct packed *p, const struct packed_blob_info *blob, const struct mapping *map)
{
    int failed = mapping_lock(map, blob->offset, blob->bytes);
    if (failed && !atomic_exchange(&p->has_warned, true))
        log_warn("packed.lock_refused", "dir=%s why=%s", log_quote(p->dir).text,
                 log_quote(strerror(failed)).text);
}

static int make_ready(struct packed *p, int index, const struct mapping *map, struct err *e)
{
    const struct packed_blob_info *blob = &p->manifest.blobs[index];
    char text[PACKED_BLOB_TEXT_BYTES];
    int rc = 0;
    if (p->options.copies)
        mapping_advise(map, blob->offset, blob->bytes, MAPPING_SOON);
    else
        rc = mapping_fill(map, blob->offset, blob->bytes);
    if (rc < 0)
        return err_set(e, rc, "%s/%s: %s: bytes %zu to %zu cannot be read", p->dir,
                       p->manifest.files[blob->file].name,
                       packed_blob_text(&p->manifest, index, text), blob->offset,
                       blob->offset + blob->bytes);
    if (p->options.locks && !p->options.copies)
        lock(p, blob, map);
    if (p->options.verifies && !atomic_load(&p->checks[index].is_done))
        rc = verify(p, index, map, e);
    return rc;
}

int packed_find(struct packed *p, int index, const void **data, struct err *e)
{
    must(index >= 0 && index < p->manifest.n_blobs);
    const struct packed_blob_info *blob = &p->manifest.blobs[index];
    struct mapping *map;
    int rc = open_file(p, blob->file, &map, e);
    if (rc == 0)
        rc = make_ready(p, index, map, e);
    if (rc == 0)
        *data = map->data + blob->offset;
    return rc;
}

int packed_verify(struct packed *p, int index, struct err *e)
{
    must(index >= 0 && index < p->manifest.n_blobs);
    struct mapping *map;
    int rc = open_file(p, p->manifest.blobs[index].file, &map, e);
    return rc < 0 ? rc : verify(p, index, map, e);
}

void packed_advise(struct packed *p, int index, enum mapping_advice advice)
{
    must(index >= 0 && index < p->manifest.n_blobs);
    const struct packed_blob_info *blob = &p->manifest.blobs[index];
    struct mapping *map;
    if (open_file(p, blob->file, &map, NULL) == 0)
        mapping_advise(map, blob->offset, blob->bytes, advice);
}
