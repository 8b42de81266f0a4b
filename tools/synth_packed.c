/* tools/synth_packed.c - see synth_packed.h. */
#include "tools/synth_packed.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/mem.h"
#include "base/thread.h"
#include "engine/matrix.h"
#include "engine/pool.h"
#include "model/packed.h"
#include "tools/bench_random.h"
#include "tools/progress.h"

struct job {
    const struct synth_options *options;
    struct packed_manifest manifest;
    struct matrix matrices[PACKED_PARTS][PACKED_MAX_MATRICES]; /* layouts */
    struct pool *pool;
    struct progress progress;
    uint64_t key;

    /* The file in progress: its experts, each a task. */
    struct packed_writer *writer;
    int first_expert; /* the blob of expert 0 */
    void **rooms;     /* [threads], of an expert */
    atomic_int next, done;
    atomic_bool has_failed;
    struct err *error;
};

/* ---- the plan ---- */

static int plan_part(struct job *job, enum packed_part part, enum weight_format format,
                     const int64_t (*sizes)[2], struct err *e)
{
    struct packed_part_info *info = &job->manifest.parts[part];
    int rc = 0;
    info->format = format;
    info->n_matrices = packed_part_matrices(part);
    for (int i = 0; i < info->n_matrices && rc == 0; i++) {
        rc = matrix_layout(&job->matrices[part][i], format, sizes[i][0], sizes[i][1],
                           &info->matrix_bytes[i], e);
        info->blob_bytes += info->matrix_bytes[i];
    }
    return rc;
}

static int plan_parts(struct job *job, const struct model_config *c, const struct format_set *f,
                      struct err *e)
{
    int64_t hidden = c->hidden_size, q = (int64_t)c->n_heads * c->head_dim;
    int64_t kv = (int64_t)c->n_kv_heads * c->head_dim, wide = c->expert_size;
    const int64_t experts[][2] = {{wide, hidden}, {wide, hidden}, {hidden, wide}};
    const int64_t attention[][2] = {{q, hidden}, {kv, hidden}, {kv, hidden}, {hidden, q}};
    const int64_t head[][2] = {{c->vocab_size, hidden}};
    const int64_t dense[][2] = {
        {c->dense_size, hidden}, {c->dense_size, hidden}, {hidden, c->dense_size}};
    const int64_t shared[][2] = {
        {c->shared_size, hidden}, {c->shared_size, hidden}, {hidden, c->shared_size}};
    struct packed_shape shape = packed_shape_of(c);
    packed_manifest_init(&job->manifest, &shape);
    int rc = plan_part(job, PACKED_EXPERTS, f->experts, experts, e);
    if (rc == 0)
        rc = plan_part(job, PACKED_ATTENTION, f->attention, attention, e);
    if (rc == 0 && packed_shape_has(&shape, PACKED_DENSE))
        rc = plan_part(job, PACKED_DENSE, f->experts, dense, e);
    if (rc == 0 && packed_shape_has(&shape, PACKED_SHARED))
        rc = plan_part(job, PACKED_SHARED, f->experts, shared, e);
    return rc == 0 ? plan_part(job, PACKED_HEAD, f->head, head, e) : rc;
}

static size_t data_end(const struct job *job, int file)
{
    int first, n;
    packed_layer_blobs(&job->manifest, file, &first, &n);
    const struct packed_blob_info *last = &job->manifest.blobs[first + n - 1];
    return last->offset + last->bytes;
}

static int64_t plan_files(struct job *job)
{
    struct packed_manifest *m = &job->manifest;
    int64_t total = 0;
    m->n_files = m->shape.n_layers + 1;
    m->files = mem_array((size_t)m->n_files, sizeof(*m->files));
    for (int file = 0; file < m->n_files; file++) {
        size_t offset = 0;
        int first, n;
        packed_layer_blobs(m, file, &first, &n);
        for (int i = first; i < first + n; i++) {
            size_t bytes = m->parts[packed_place_of(m, i).part].blob_bytes;
            m->blobs[i] = (struct packed_blob_info){.file = file, .offset = offset, .bytes = bytes};
            offset += mem_round_up(bytes, PACKED_ALIGN_BYTES);
        }
        m->files[file].name = file == m->shape.n_layers ? mem_string("head.packed")
                                                        : mem_format("layer-%05d.packed", file);
        m->files[file].bytes = packed_file_bytes(data_end(job, file), n);
        total += (int64_t)m->files[file].bytes;
    }
    return total;
}

/* ---- blobs ---- */

static int write_blob(struct job *job, int index, void *room, struct err *e)
{
    enum packed_part part = packed_place_of(&job->manifest, index).part;
    const struct packed_part_info *info = &job->manifest.parts[part];
    struct packed_blob_info *blob = &job->manifest.blobs[index];
    uint8_t *at = room;
    for (int i = 0; i < info->n_matrices; i++) {
        uint64_t seed = job->options->seed + (uint64_t)index * PACKED_MAX_MATRICES + (uint64_t)i;
        memset(at, 0, info->matrix_bytes[i]);
        bench_random_fill(&job->matrices[part][i], at, info->matrix_bytes[i], seed);
        at += info->matrix_bytes[i];
    }
    blob->hash = packed_hash(room, blob->bytes);
    return packed_writer_put(job->writer, blob->offset, room, blob->bytes, e);
}

static void experts_task(void *ctx, int task)
{
    struct job *job = ctx;
    struct err e = {0};
    for (;;) {
        int i = atomic_fetch_add(&job->next, 1);
        if (i >= job->done || atomic_load(&job->has_failed))
            return;
        if (write_blob(job, job->first_expert + i, job->rooms[task], &e) < 0 &&
            !atomic_exchange(&job->has_failed, true))
            *job->error = e;
    }
}

/* In batches, after each of which the progress is told. */
static int write_experts(struct job *job, struct err *e)
{
    int n_threads = pool_threads(job->pool), n_experts = job->manifest.shape.n_experts;
    size_t each = job->manifest.parts[PACKED_EXPERTS].blob_bytes;
    job->error = e;
    for (int at = 0; at < n_experts && !job->has_failed; at = job->done) {
        int left = n_experts - at, batch = 4 * n_threads;
        atomic_store(&job->next, at);
        atomic_store(&job->done, at + (left < batch ? left : batch));
        pool_run(job->pool, experts_task, job, n_threads);
        progress_add(&job->progress, (int64_t)each * (job->done - at));
    }
    return job->has_failed ? e->code : 0;
}

/* No expert: too large to have one room per thread. */
static int write_single(struct job *job, int index, struct err *e)
{
    enum packed_part part = packed_place_of(&job->manifest, index).part;
    size_t bytes = job->manifest.parts[part].blob_bytes;
    void *room = mem_weights(bytes);
    if (!room)
        return err_set(e, E_NOMEM, "no memory for %s: %zu bytes", packed_part_name(part), bytes);
    int rc = write_blob(job, index, room, e);
    mem_weights_free(room, bytes);
    progress_add(&job->progress, (int64_t)bytes);
    return rc;
}

static int write_file(struct job *job, int file, struct err *e)
{
    int first, n;
    packed_layer_blobs(&job->manifest, file, &first, &n);
    uint64_t *hashes = mem_array((size_t)n, sizeof(*hashes));
    const uint64_t key[2] = {job->key, (uint64_t)file};
    char *path = mem_format("%s/%s", job->options->dir, job->manifest.files[file].name);
    int rc = packed_writer_open(path, packed_hash(key, sizeof(key)), data_end(job, file), n,
                                &job->writer, e);
    if (rc == 0) {
        for (int i = first; i < first + n && rc == 0; i++) {
            bool is_expert = packed_place_of(&job->manifest, i).part == PACKED_EXPERTS;
            job->first_expert = i;
            rc = is_expert ? write_experts(job, e) : write_single(job, i, e);
            if (is_expert)
                break;
        }
        for (int i = 0; i < n; i++)
            hashes[i] = job->manifest.blobs[first + i].hash;
        if (rc == 0)
            rc = packed_writer_finish(&job->writer, hashes, e);
        else
            packed_writer_abandon(&job->writer);
    }
    mem_free(path);
    mem_free(hashes);
    return rc;
}

static int write_files(struct job *job, struct err *e)
{
    int rc = 0;
    for (int file = 0; file < job->manifest.n_files && rc == 0; file++)
        rc = write_file(job, file, e);
    return rc == 0 ? packed_write_manifest(job->options->dir, &job->manifest, e) : rc;
}

/* ---- the whole ---- */

static int check_room(const char *dir, int64_t needed, struct err *e)
{
    struct statvfs st;
    if (statvfs(dir, &st) != 0 || (double)st.f_bavail * (double)st.f_frsize >= (double)needed)
        return 0;
    return err_set(e, E_BUSY, "%s: the packed model needs %.1f GB, the disk has %.1f GB free", dir,
                   (double)needed / 1e9, (double)st.f_bavail * (double)st.f_frsize / 1e9);
}

static int find_fingerprint(struct job *job, struct err *e)
{
    struct checkpoint *c;
    int rc = checkpoint_open(job->options->dir, &c, e);
    if (rc < 0)
        return rc;
    rc = checkpoint_fingerprint(c, &job->manifest.fingerprint, e);
    job->key = job->manifest.fingerprint ^ job->options->seed;
    checkpoint_close(&c);
    return rc;
}

static void take_rooms(struct job *job)
{
    job->pool = pool_new(thread_cpu_count(), POOL_FREE);
    int n = pool_threads(job->pool);
    job->rooms = mem_array((size_t)n, sizeof(*job->rooms));
    for (int i = 0; i < n; i++)
        job->rooms[i] = mem_aligned(job->manifest.parts[PACKED_EXPERTS].blob_bytes);
}

static void close_job(struct job *job)
{
    for (int i = 0; job->rooms && i < pool_threads(job->pool); i++)
        mem_free(job->rooms[i]);
    mem_free(job->rooms);
    pool_free(&job->pool);
    packed_manifest_fini(&job->manifest);
}

int synth_packed_write(const struct synth_options *o, const struct format_set *formats,
                       struct err *e)
{
    struct synth_options rest = *o;
    struct job job = {.options = o};
    if (formats->experts == FORMAT_NATIVE || formats->attention == FORMAT_NATIVE ||
        formats->head == FORMAT_NATIVE)
        return err_set(e, E_INVALID, "--packed: every part needs a format, such as q8");
    rest.contents = SYNTH_NO_MATRICES;
    rest.shard_bytes = INT64_MAX;
    int rc = synth_check(o, e);
    if (rc == 0)
        rc = plan_parts(&job, &o->config, formats, e);
    int64_t total = rc == 0 ? plan_files(&job) : 0;
    if (rc == 0)
        rc = synth_write(&rest, e);
    if (rc == 0)
        rc = check_room(o->dir, total, e);
    if (rc == 0)
        rc = find_fingerprint(&job, e);
    if (rc == 0) {
        take_rooms(&job);
        progress_begin(&job.progress, "synth", total, PROGRESS_BYTES);
        rc = write_files(&job, e);
        progress_end(&job.progress);
    }
    close_job(&job);
    return rc;
}
