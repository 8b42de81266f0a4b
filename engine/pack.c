/* engine/pack.c - see pack.h.
 *
 * The directory tells how far a packing came:
 *   packing.json     names what is being packed; written first, removed last
 *   *.packed         finished layers; each has the key of what it was made from
 *   *.tmp, *.new     what a killed process left; written again
 *   packed.json      everything above is whole and on the disk */
#include "engine/pack.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/pack_job.h"
#include "model/json.h"

enum { MARKER_LIMIT_BYTES = 4096 };

void pack_add_progress(struct pack_job *job, size_t bytes)
{
    int64_t done = atomic_fetch_add(&job->done_bytes, (int64_t)bytes) + (int64_t)bytes;
    if (job->options->progress && owner_is_me(&job->owner))
        job->options->progress(job->options->progress_ud, done, job->total_bytes);
}

/* ---- what is in the directory ---- */

enum contents {
    CONTENTS_EMPTY,
    CONTENTS_BEGUN, /* this packing, interrupted */
    CONTENTS_WHOLE, /* this packing, finished */
    CONTENTS_OTHER, /* a packing of something else */
    CONTENTS_ALIEN, /* no packing */
};

static bool is_there(const char *dir, const char *name)
{
    char *path = mem_format("%s/%s", dir, name);
    bool is = access(path, F_OK) == 0;
    mem_free(path);
    return is;
}

static bool marker_matches(const struct pack_job *job)
{
    char *path = mem_format("%s/" PACK_MARKER, job->options->out_dir);
    char key[17];
    struct err ignored;
    json_t *root = json_read_object(path, MARKER_LIMIT_BYTES, &ignored);
    const char *found = json_string_value(json_object_get(root, "key"));
    snprintf(key, sizeof key, "%016" PRIx64, job->key);
    bool matches = found && strcmp(found, key) == 0;
    json_decref(root);
    mem_free(path);
    return matches;
}

/* Whether the manifest is that of this very packing, hashes aside. */
static bool manifest_matches(struct pack_job *job)
{
    struct packed_manifest *own = &job->manifest, found;
    struct err ignored;
    if (packed_manifest_read(job->options->out_dir, &own->shape, &found, &ignored) < 0)
        return false;
    bool matches = found.fingerprint == own->fingerprint && found.n_files == own->n_files &&
                   memcmp(found.parts, own->parts, sizeof own->parts) == 0;
    for (int i = 0; i < own->n_files && matches; i++)
        matches = found.files[i].bytes == own->files[i].bytes;
    packed_manifest_fini(&found);
    return matches;
}

static bool is_empty(const char *path)
{
    int n = 0;
    DIR *entries = opendir(path);
    if (!entries)
        return false;
    for (struct dirent *entry = readdir(entries); entry; entry = readdir(entries))
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(entries);
    return n == 0;
}

static enum contents look(struct pack_job *job)
{
    const char *dir = job->options->out_dir;
    bool has_marker = is_there(dir, PACK_MARKER), has_manifest = is_there(dir, PACKED_MANIFEST);
    if (has_manifest)
        return manifest_matches(job) ? CONTENTS_WHOLE : CONTENTS_OTHER;
    if (has_marker)
        return marker_matches(job) ? CONTENTS_BEGUN : CONTENTS_OTHER;
    return is_empty(dir) ? CONTENTS_EMPTY : CONTENTS_ALIEN;
}

static bool is_of_a_packing(const char *name)
{
    static const char *const suffixes[] = {".packed", ".packed.tmp", PACKED_MANIFEST ".new",
                                           PACKED_MANIFEST ".new.tmp"};
    size_t len = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t n = strlen(suffixes[i]);
        if (len >= n && strcmp(name + len - n, suffixes[i]) == 0)
            return true;
    }
    return strcmp(name, PACK_TENSORS) == 0 || strcmp(name, PACK_TENSORS ".tmp") == 0;
}

/* The manifest goes first and the marker last, so that whatever interrupts this leaves a
 * directory that says what it is. */
static int clear(const char *dir, struct err *e)
{
    int rc = 0;
    DIR *entries = opendir(dir);
    if (!entries)
        return err_set_errno(e, errno, "%s", dir);
    int fd = dirfd(entries);
    if (unlinkat(fd, PACKED_MANIFEST, 0) < 0 && errno != ENOENT)
        rc = err_set_errno(e, errno, "%s/" PACKED_MANIFEST ": remove", dir);
    for (struct dirent *entry = readdir(entries); entry && rc == 0; entry = readdir(entries))
        if (is_of_a_packing(entry->d_name) && unlinkat(fd, entry->d_name, 0) < 0)
            rc = err_set_errno(e, errno, "%s/%s: remove", dir, entry->d_name);
    closedir(entries);
    return rc;
}

static int write_marker(const struct pack_job *job, struct err *e)
{
    struct buf text = {0};
    char formats[FORMAT_SET_BYTES];
    char *path = mem_format("%s/" PACK_MARKER, job->options->out_dir);
    buf_printf(&text,
               "{\"key\": \"%016" PRIx64 "\", \"fingerprint\": \"%016" PRIx64
               "\", \"formats\": \"%s\"}\n",
               job->key, job->manifest.fingerprint, format_set_text(&job->formats, formats));
    int rc = buf_write_file(&text, path, e);
    if (rc == 0)
        rc = packed_sync(path, e);
    mem_free(path);
    buf_fini(&text);
    return rc;
}

static void remove_marker(const struct pack_job *job)
{
    char *path = mem_format("%s/" PACK_MARKER, job->options->out_dir);
    (void)unlink(path);
    mem_free(path);
}

/* Makes the directory ready to pack into; says what was there. */
static int prepare(struct pack_job *job, enum contents *found, struct err *e)
{
    const char *dir = job->options->out_dir;
    *found = look(job);
    if (*found == CONTENTS_WHOLE || *found == CONTENTS_BEGUN)
        return 0;
    if (*found == CONTENTS_ALIEN)
        return err_set(e, E_EXISTS, "%s is not empty and holds no packing; name another folder",
                       dir);
    if (*found == CONTENTS_OTHER && !job->options->is_forced)
        return err_set(e, E_EXISTS,
                       "%s holds a packing of another model or in other formats; name another "
                       "folder or say --force",
                       dir);
    int rc = write_marker(job, e);
    return rc < 0 ? rc : clear(dir, e);
}

/* ---- one process at a time ---- */

/* Without a directory there is one afterwards. */
static int take_directory(const char *dir, bool waits, int *fd, struct err *e)
{
    if (mkdir(dir, 0777) < 0 && errno != EEXIST)
        return err_set_errno(e, errno, "%s: make the folder", dir);
    *fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*fd < 0)
        return err_set_errno(e, errno, "%s", dir);
    /* A file system without locks has none to take. */
    while (flock(*fd, LOCK_EX | (waits ? 0 : LOCK_NB)) < 0) {
        if (errno == EWOULDBLOCK)
            return err_set(e, E_BUSY, "%s: another process is packing there; wait for it", dir);
        if (errno != EINTR)
            break;
    }
    return 0;
}

static int check_other_directory(const char *model_dir, int out_fd, struct err *e)
{
    struct stat model, out;
    if (stat(model_dir, &model) == 0 && fstat(out_fd, &out) == 0 && model.st_dev == out.st_dev &&
        model.st_ino == out.st_ino)
        return err_set(e, E_INVALID, "%s is the model's own folder; name another one", model_dir);
    return 0;
}

/* ---- the job ---- */

static int check_disk(const struct pack_job *job, struct err *e)
{
    struct statvfs st;
    const char *dir = job->options->out_dir;
    int64_t needed = job->total_bytes;
    for (int i = 0; i < job->manifest.n_files; i++)
        if (is_there(dir, job->manifest.files[i].name))
            needed -= (int64_t)job->manifest.files[i].bytes;
    if (is_there(dir, PACK_TENSORS))
        needed -= job->kept_bytes;
    if (statvfs(dir, &st) < 0)
        return err_set_errno(e, errno, "%s", dir);
    double free_bytes = (double)st.f_bavail * (double)st.f_frsize;
    if (free_bytes >= (double)needed)
        return 0;
    return err_set(e, E_BUSY, "%s: needs %.0f MB more, the disk has %.0f MB free", dir,
                   (double)needed / 1e6, free_bytes / 1e6);
}

/* A file that is packed and waits for its disk while the next one is being packed. */
struct pending {
    struct packed_writer *writer;
    uint64_t *hashes;
};

static int finish_pending(struct pending *p, struct err *e)
{
    int rc = p->writer ? packed_writer_finish(&p->writer, p->hashes, e) : 0;
    mem_free(p->hashes);
    *p = (struct pending){0};
    return rc;
}

/* `next` stays empty if an earlier run had finished the file. */
static int pack_file(struct pack_job *job, int file, struct pending *next, struct err *e)
{
    struct packed_manifest *m = &job->manifest;
    char *path = mem_format("%s/%s", job->options->out_dir, m->files[file].name);
    uint64_t key = pack_file_key(job, file);
    size_t data_bytes = pack_file_data_bytes(job, file);
    int first, n, rc = 0;
    packed_layer_blobs(m, file, &first, &n);
    uint64_t *hashes = mem_array((size_t)n, sizeof *hashes);
    if (packed_file_is_whole(path, key, data_bytes, n, hashes)) {
        for (int i = 0; i < n; i++)
            m->blobs[first + i].hash = hashes[i];
        mem_free(hashes);
        job->n_kept++;
        pack_add_progress(job, m->files[file].bytes);
        goto out;
    }
    next->hashes = hashes;
    rc = packed_writer_open(path, key, data_bytes, n, &next->writer, e);
    if (rc == 0)
        rc = pack_write_blobs(job, file, next->writer, e);
    for (int i = 0; i < n; i++)
        hashes[i] = m->blobs[first + i].hash;
    if (rc < 0) {
        packed_writer_abandon(&next->writer);
        mem_free(next->hashes);
        *next = (struct pending){0};
    }
out:
    mem_free(path);
    return rc;
}

static int pack_files(struct pack_job *job, struct err *e)
{
    struct pending before = {0};
    struct err second = {0};
    int rc = 0;
    for (int file = 0; file < job->manifest.n_files && rc == 0; file++) {
        struct pending next = {0};
        rc = pack_file(job, file, &next, e);
        int finished = finish_pending(&before, rc < 0 ? &second : e);
        rc = rc < 0 ? rc : finished;
        before = next;
    }
    int finished = finish_pending(&before, rc < 0 ? &second : e);
    return rc < 0 ? rc : finished;
}

static int pack_all(struct pack_job *job, struct err *e)
{
    int rc = check_disk(job, e);
    if (rc == 0)
        rc = pack_copy_files(job, e);
    if (rc == 0)
        rc = pack_write_tensors(job, e);
    if (rc == 0)
        rc = pack_files(job, e);
    if (rc == 0)
        rc = packed_sync(job->options->out_dir, e);
    if (rc == 0)
        rc = packed_write_manifest(job->options->out_dir, &job->manifest, e);
    return rc;
}

/* ---- verification ---- */

struct verification {
    struct pack_job *job;
    struct packed *packed;
    atomic_bool has_failed;
    struct err error;
};

static void verify_blob(void *ctx, int index)
{
    struct verification *v = ctx;
    struct err e = {0};
    if (atomic_load(&v->has_failed))
        return;
    packed_advise(v->packed, index, MAPPING_SOON);
    if (packed_verify(v->packed, index, &e) < 0 && !atomic_exchange(&v->has_failed, true))
        v->error = e;
    packed_advise(v->packed, index, MAPPING_DONE);
    pack_add_progress(v->job, packed_contents(v->packed)->blobs[index].bytes);
}

/* Opens what is there, which checks the sizes of its files; and every hash if asked to. */
static int verify(struct pack_job *job, struct err *e)
{
    struct verification v = {.job = job};
    struct checkpoint *c;
    int rc = checkpoint_open(job->options->out_dir, &c, e);
    if (rc < 0)
        return rc;
    v.packed = checkpoint_packed(c);
    must(v.packed);
    if (job->options->verifies)
        pool_run(job->compute.pool, verify_blob, &v, packed_contents(v.packed)->n_blobs);
    checkpoint_close(&c);
    return atomic_load(&v.has_failed) ? err_set(e, v.error.code, "%s", v.error.text) : 0;
}

/* ---- from the outside ---- */

static int open_job(struct pack_job *job, const struct pack_options *o, struct err *e)
{
    *job = (struct pack_job){.options = o, .compute = {.kernels = o->kernels}};
    owner_take(&job->owner);
    int rc = checkpoint_open(o->model_dir, &job->source, e);
    if (rc < 0)
        return rc;
    job->config = checkpoint_config(job->source);
    rc = pack_plan(job, e);
    if (rc == 0)
        rc = pack_measure_tensors(job, e);
    job->total_bytes += job->kept_bytes;
    return rc < 0 ? err_prefix(e, "%s", o->model_dir) : 0;
}

static void close_job(struct pack_job *job)
{
    pack_plan_fini(job);
    pack_tensors_fini(job);
    checkpoint_close(&job->source);
}

/* With the directory taken. */
static int run(struct pack_job *job, struct pack_result *result, struct err *e)
{
    enum contents found;
    int rc = prepare(job, &found, e);
    int64_t bytes = job->total_bytes;
    if (rc == 0 && job->options->verifies)
        job->total_bytes *= found == CONTENTS_WHOLE ? 1 : 2;
    if (rc == 0 && found != CONTENTS_WHOLE)
        rc = pack_all(job, e);
    /* Also after a run that was killed between the two. */
    if (rc == 0)
        remove_marker(job);
    if (rc == 0)
        rc = verify(job, e);
    if (rc == 0 && result)
        *result = (struct pack_result){.formats = job->formats,
                                       .bytes = bytes,
                                       .n_files = job->manifest.n_files,
                                       .n_kept = found == CONTENTS_WHOLE ? job->manifest.n_files
                                                                         : job->n_kept,
                                       .was_whole = found == CONTENTS_WHOLE};
    return rc;
}

static int run_in(struct pack_job *job, bool waits, struct pack_result *result, struct err *e)
{
    int fd = -1;
    int rc = take_directory(job->options->out_dir, waits, &fd, e);
    if (rc == 0)
        rc = check_other_directory(job->options->model_dir, fd, e);
    if (rc == 0)
        rc = run(job, result, e);
    if (fd >= 0)
        close(fd);
    return rc;
}

int pack_make(const struct pack_options *o, struct pack_result *result, struct err *e)
{
    must(o->n_threads > 0);
    struct pack_job job;
    int rc = open_job(&job, o, e);
    if (rc == 0)
        rc = run_in(&job, false, result, e);
    close_job(&job);
    return rc;
}

int pack_cached(const struct pack_options *o, const char *cache_dir, char **dir, struct err *e)
{
    must(o->n_threads > 0);
    struct pack_job job;
    struct pack_options in_cache = *o;
    char formats[FORMAT_SET_BYTES];
    *dir = NULL;
    int rc = open_job(&job, o, e);
    if (rc == 0 && checkpoint_packed(job.source)) {
        *dir = mem_string(o->model_dir);
    } else if (rc == 0) {
        /* The cache's own format is no part of it. */
        struct format_set weights = job.formats;
        weights.kv = KV_BF16;
        char *out_dir = mem_format("%s/%016" PRIx64 "-%s", cache_dir, job.manifest.fingerprint,
                                   format_set_text(&weights, formats));
        if (mkdir(cache_dir, 0777) < 0 && errno != EEXIST)
            rc = err_set_errno(e, errno, "%s: make the folder", cache_dir);
        in_cache.out_dir = out_dir;
        in_cache.is_forced = true;
        job.options = &in_cache;
        if (rc == 0)
            rc = run_in(&job, true, NULL, e);
        if (rc == 0)
            *dir = out_dir;
        else
            mem_free(out_dir);
    }
    close_job(&job);
    return rc;
}
