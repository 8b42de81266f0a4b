/* engine/pack_blobs.c - the packing job's matrices: who packs what, and where it goes.
 *
 * An expert is one task.  The other parts, some of them far larger, are cut into ranges of rows: panels of 16 rows and fp8 scales of 128 rows lie one after another in a matrix, so a
 * range packed alone is a piece of the whole. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "engine/matrix.h"
#include "engine/pack_job.h"

_Static_assert(PACK_ROWS % SCALE_BLOCK == 0 && PACK_ROWS % PANEL_ROWS == 0,
               "a range begins with a panel and a scale");

/* The views of a blob, in its order. */
struct part_views {
    struct linear_view views[PACKED_MAX_MATRICES];
    int n_views;
};

/* `layer` is the model's, except for experts, which are asked for among the layers with experts. */
static int bind_part(struct pack_job *job, enum packed_part part, int layer, int expert,
                     struct part_views *out, struct err *e)
{
    struct expert_view x;
    struct layer_view l;
    struct model_view m;
    int rc;
    out->n_views = packed_part_matrices(part);
    if (part == PACKED_EXPERTS) {
        rc = weights_expert(job->source, layer, expert, &x, e);
        if (rc == 0)
            memcpy(out->views, (struct linear_view[]){x.gate, x.up, x.down}, 3 * sizeof x.gate);
    } else if (part == PACKED_HEAD) {
        rc = weights_model(job->source, &m, e);
        if (rc == 0)
            out->views[0] = m.lm_head;
    } else {
        rc = weights_layer(job->source, layer, &l, e);
        if (rc == 0 && part == PACKED_ATTENTION)
            memcpy(out->views, (struct linear_view[]){l.wq, l.wk, l.wv, l.wo}, 4 * sizeof l.wq);
        else if (rc == 0)
            memcpy(out->views, (struct linear_view[]){l.mlp.gate, l.mlp.up, l.mlp.down},
                   3 * sizeof l.mlp.gate);
    }
    return rc;
}

/* ---- the plan ---- */

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Rows of a view that are packed at once. */
static int64_t rows_at_once(const struct linear_view *v)
{
    bool is_whole = v->packed || v->rows <= PACK_ROWS ||
                    (v->scale.data && (v->block_rows <= 0 || PACK_ROWS % v->block_rows != 0));
    return is_whole ? v->rows : PACK_ROWS;
}

/* Room for one range of rows; none for what is packed already. */
static int range_bytes(const struct linear_view *v, enum weight_format format, size_t *bytes,
                       struct err *e)
{
    struct matrix m;
    *bytes = 0;
    return v->packed ? 0 : matrix_layout(&m, format, rows_at_once(v), v->cols, bytes, e);
}

static int plan_part(struct pack_job *job, enum packed_part part, enum weight_format *format,
                     struct err *e)
{
    struct packed_part_info *info = &job->manifest.parts[part];
    struct part_views v;
    if (!packed_shape_has(&job->manifest.shape, part))
        return 0;
    int rc =
        bind_part(job, part, part == PACKED_SHARED ? job->config->n_dense_layers : 0, 0, &v, e);
    if (rc < 0)
        return rc;
    *format = info->format = matrix_format(&v.views[0], *format);
    for (int i = 0; i < v.n_views; i++) {
        struct matrix m;
        size_t range = 0;
        rc = matrix_layout(&m, info->format, v.views[i].rows, v.views[i].cols,
                           &info->matrix_bytes[i], e);
        if (rc == 0)
            rc = range_bytes(&v.views[i], info->format, &range, e);
        if (rc < 0)
            return err_prefix(e, "%s: %s", packed_part_name(part), v.views[i].label);
        if (!mem_add(info->blob_bytes, info->matrix_bytes[i], &info->blob_bytes))
            return err_set(e, E_RANGE, "%s: its size overflows", packed_part_name(part));
        job->room_bytes = larger(job->room_bytes, range);
    }
    if (part == PACKED_EXPERTS)
        job->room_bytes = larger(job->room_bytes, info->blob_bytes);
    return 0;
}

size_t pack_file_data_bytes(const struct pack_job *job, int file)
{
    int first, n;
    packed_layer_blobs(&job->manifest, file, &first, &n);
    const struct packed_blob_info *last = &job->manifest.blobs[first + n - 1];
    return last->offset + last->bytes;
}

static void plan_file(struct pack_job *job, int file)
{
    struct packed_manifest *m = &job->manifest;
    size_t offset = 0;
    int first, n;
    bool is_head = file == m->shape.n_layers;
    packed_layer_blobs(m, file, &first, &n);
    for (int i = 0; i < n; i++) {
        size_t bytes = m->parts[packed_place_of(m, first + i).part].blob_bytes;
        m->blobs[first + i] =
            (struct packed_blob_info){.file = file, .offset = offset, .bytes = bytes};
        offset += mem_round_up(bytes, PACKED_ALIGN_BYTES);
    }
    m->files[file].name =
        is_head ? mem_string("head.packed") : mem_format("layer-%05d.packed", file);
    m->files[file].bytes = packed_file_bytes(pack_file_data_bytes(job, file), n);
    job->total_bytes += (int64_t)m->files[file].bytes;
}

/* Fewer threads where rooms are large. */
static int take_rooms(struct pack_job *job, struct err *e)
{
    size_t most = PACK_ROOM_BYTES / larger(job->room_bytes, 1);
    int n = job->options->n_threads;
    if ((size_t)n > most)
        n = most > 0 ? (int)most : 1;
    job->compute.pool = pool_new(n, POOL_FREE);
    n = pool_threads(job->compute.pool);
    job->rooms = mem_array((size_t)n, sizeof *job->rooms);
    for (int i = 0; i < n; i++) {
        job->rooms[i].data = mem_try_aligned(job->room_bytes);
        if (!job->rooms[i].data)
            return err_set(e, E_NOMEM, "no memory for %d threads with %zu bytes each; use fewer", n,
                           job->room_bytes);
    }
    return 0;
}

/* What must be equal for a finished file to be of use. */
static uint64_t plan_key(const struct pack_job *job)
{
    const struct model_config *c = job->config;
    const struct packed_manifest *m = &job->manifest;
    struct buf text = {0};
    buf_printf(&text, "%d %llu %d %d %d %d", PACKED_VERSION, (unsigned long long)m->fingerprint,
               m->shape.n_layers, m->shape.n_experts, c->hidden_size, c->expert_size);
    for (int part = 0; part < PACKED_PARTS; part++) {
        if (!packed_shape_has(&m->shape, (enum packed_part)part))
            continue;
        buf_printf(&text, " %s", format_name(m->parts[part].format));
        for (int i = 0; i < m->parts[part].n_matrices; i++)
            buf_printf(&text, " %zu", m->parts[part].matrix_bytes[i]);
    }
    uint64_t key = packed_hash(text.data, text.len);
    buf_fini(&text);
    return key;
}

uint64_t pack_file_key(const struct pack_job *job, int file)
{
    const uint64_t both[2] = {job->key, (uint64_t)file};
    return packed_hash(both, sizeof both);
}

int pack_plan(struct pack_job *job, struct err *e)
{
    struct packed_manifest *m = &job->manifest;
    struct packed_shape shape = packed_shape_of(job->config);
    packed_manifest_init(m, &shape);
    job->formats = job->options->formats;
    int rc = checkpoint_formats(job->source, &job->formats, e);
    if (rc == 0)
        rc = checkpoint_fingerprint(job->source, &m->fingerprint, e);
    if (rc == 0)
        rc = plan_part(job, PACKED_EXPERTS, &job->formats.experts, e);
    /* One format for all that is an expert: what the engine asks for. */
    if (rc == 0)
        rc = plan_part(job, PACKED_DENSE, &job->formats.experts, e);
    if (rc == 0)
        rc = plan_part(job, PACKED_SHARED, &job->formats.experts, e);
    if (rc == 0)
        rc = plan_part(job, PACKED_ATTENTION, &job->formats.attention, e);
    if (rc == 0)
        rc = plan_part(job, PACKED_HEAD, &job->formats.head, e);
    if (rc < 0)
        return rc;
    m->n_files = m->shape.n_layers + 1;
    m->files = mem_array((size_t)m->n_files, sizeof *m->files);
    for (int file = 0; file < m->n_files; file++)
        plan_file(job, file);
    job->key = plan_key(job);
    return take_rooms(job, e);
}

void pack_plan_fini(struct pack_job *job)
{
    for (int i = 0; job->rooms && i < pool_threads(job->compute.pool); i++)
        mem_free(job->rooms[i].data);
    mem_free(job->rooms);
    pool_free(&job->compute.pool);
    packed_manifest_fini(&job->manifest);
}

/* ---- the tasks of one file ---- */

/* A blob that is cut into ranges of rows. */
struct cut_blob {
    enum packed_part part;
    int blob; /* in the manifest */
    struct part_views views;
};
enum { MAX_CUT_BLOBS = 2 }; /* attention and MLP */

struct range {
    int of, matrix; /* which of the cut blobs, and its matrix */
    int64_t row, n_rows;
};

struct file_work {
    struct pack_job *job;
    struct packed_writer *writer;
    int layer, n_cut;
    struct cut_blob cut[MAX_CUT_BLOBS];
    struct range *ranges;
    int n_ranges, n_experts, first_expert; /* the blob of expert 0 */
    atomic_bool has_failed;
    struct err *error; /* written by the first task that fails */
};

static void fail(struct file_work *w, const struct err *e)
{
    if (!atomic_exchange(&w->has_failed, true))
        *w->error = *e;
}

/* There is one for each thread. */
static struct pack_room *take_room(struct pack_job *job)
{
    int n = pool_threads(job->compute.pool);
    for (int i = 0; i < n; i++)
        if (!atomic_exchange(&job->rooms[i].is_taken, true))
            return &job->rooms[i];
    unreachable();
}

static int check_format(const struct linear_view *v, enum weight_format want,
                        enum weight_format planned, enum packed_part part, struct err *e)
{
    enum weight_format format = matrix_format(v, want);
    if (format == planned)
        return 0;
    return err_set(e, E_PRECONDITION,
                   "%s is stored as for %s, others of its part as for %s; name a format: %s=%s",
                   v->label, format_name(format), format_name(planned), packed_part_name(part),
                   format_name(planned));
}

/* Into `room`, `bytes` of it, wherever the matrix itself lies. */
static int pack_into(struct file_work *w, const struct linear_view *v, enum weight_format format,
                     void *room, size_t bytes, struct err *e)
{
    struct matrix m;
    memset(room, 0, bytes);
    int rc = matrix_pack(&m, v, format, room, &w->job->compute, e);
    if (rc < 0)
        return rc;
    must(matrix_bytes(&m) <= bytes);
    if (m.panels != room)
        memcpy(room, v->packed, bytes);
    matrix_fini(&m);
    return 0;
}

static enum weight_format wanted(const struct pack_job *job, enum packed_part part)
{
    const struct format_set *f = &job->options->formats;
    return part == PACKED_ATTENTION ? f->attention : part == PACKED_HEAD ? f->head : f->experts;
}

static int pack_expert_into(struct file_work *w, int expert, char *room, struct err *e)
{
    struct pack_job *job = w->job;
    const struct packed_part_info *info = &job->manifest.parts[PACKED_EXPERTS];
    struct part_views v;
    int layer = w->layer - job->config->n_dense_layers;
    int rc = bind_part(job, PACKED_EXPERTS, layer, expert, &v, e);
    for (int i = 0; i < v.n_views && rc == 0; i++) {
        rc =
            check_format(&v.views[i], wanted(job, PACKED_EXPERTS), info->format, PACKED_EXPERTS, e);
        if (rc == 0)
            rc = pack_into(w, &v.views[i], info->format, room, info->matrix_bytes[i], e);
        room += info->matrix_bytes[i];
    }
    weights_advise_expert(job->source, layer, expert, MAPPING_DONE);
    return rc;
}

static void pack_expert(struct file_work *w, int expert)
{
    struct pack_job *job = w->job;
    struct err e = {0};
    int next = expert + pool_threads(job->compute.pool);
    struct packed_blob_info *blob = &job->manifest.blobs[w->first_expert + expert];
    struct pack_room *room = take_room(job);
    if (next < w->n_experts)
        weights_advise_expert(job->source, w->layer - job->config->n_dense_layers, next,
                              MAPPING_SOON);
    int rc = pack_expert_into(w, expert, room->data, &e);
    if (rc < 0)
        err_prefix(&e, "layer %d: expert %d", w->layer, expert);
    else
        rc = packed_writer_put(w->writer, blob->offset, room->data, blob->bytes, &e);
    blob->hash = packed_hash(room->data, blob->bytes);
    atomic_store(&room->is_taken, false);
    if (rc < 0)
        fail(w, &e);
    pack_add_progress(job, blob->bytes);
}

/* The rows of a view as a view. */
static struct linear_view cut(const struct linear_view *v, const struct range *r)
{
    struct linear_view part = *v;
    if (r->n_rows == v->rows)
        return part;
    size_t row_bytes = v->weight.size_bytes / (size_t)v->rows;
    part.rows = part.weight.dims[0] = r->n_rows;
    part.weight.data = (const char *)v->weight.data + (size_t)r->row * row_bytes;
    part.weight.size_bytes = (size_t)r->n_rows * row_bytes;
    if (!v->scale.data)
        return part;
    size_t scale_bytes = v->scale.size_bytes / (size_t)v->scale.dims[0];
    int64_t first = r->row / v->block_rows;
    int64_t n = (r->n_rows + v->block_rows - 1) / v->block_rows;
    part.scale.dims[0] = n;
    part.scale.data = (const char *)v->scale.data + (size_t)first * scale_bytes;
    part.scale.size_bytes = (size_t)n * scale_bytes;
    return part;
}

/* Panels to their place, scales to theirs behind all panels of the matrix. */
static int put_range(struct file_work *w, const struct range *r, const struct matrix *m,
                     size_t offset, struct err *e)
{
    const struct linear_view *v = &w->cut[r->of].views.views[r->matrix];
    struct matrix whole;
    size_t bytes;
    int rc = matrix_layout(&whole, m->format, v->rows, v->cols, &bytes, e);
    if (rc < 0)
        return rc;
    size_t panels = (size_t)m->n_panels * m->panel_bytes;
    size_t scale_row = sizeof(float) * (((size_t)m->cols + SCALE_BLOCK - 1) / SCALE_BLOCK);
    rc = packed_writer_put(w->writer, offset + (size_t)(r->row / PANEL_ROWS) * m->panel_bytes,
                           m->panels, panels, e);
    if (rc < 0 || !m->scales)
        return rc;
    return packed_writer_put(w->writer,
                             offset + (size_t)whole.n_panels * m->panel_bytes +
                                 (size_t)(r->row / SCALE_BLOCK) * scale_row,
                             m->scales,
                             scale_row * (((size_t)m->rows + SCALE_BLOCK - 1) / SCALE_BLOCK), e);
}

static int pack_range_into(struct file_work *w, const struct range *r, void *room, struct err *e)
{
    const struct pack_job *job = w->job;
    const struct cut_blob *b = &w->cut[r->of];
    const struct packed_part_info *info = &job->manifest.parts[b->part];
    struct linear_view v = cut(&b->views.views[r->matrix], r);
    size_t offset = job->manifest.blobs[b->blob].offset, bytes = 0;
    for (int i = 0; i < r->matrix; i++)
        offset += info->matrix_bytes[i];
    struct matrix m;
    int rc = range_bytes(&v, info->format, &bytes, e);
    if (rc < 0)
        return rc;
    must(bytes <= job->room_bytes);
    memset(room, 0, bytes);
    rc = matrix_pack(&m, &v, info->format, room, &job->compute, e);
    if (rc < 0)
        return err_prefix(e, "rows from %lld", (long long)r->row);
    rc = put_range(w, r, &m, offset, e);
    matrix_fini(&m);
    return rc;
}

/* All of it: what another thread still reads comes back from the page cache. */
static void release_source(const struct file_work *w, enum packed_part part)
{
    if (part == PACKED_HEAD)
        weights_advise_model(w->job->source, MAPPING_DONE);
    else if (part != PACKED_ATTENTION)
        weights_advise_mlp(w->job->source, w->layer, MAPPING_DONE);
    else
        weights_advise_layer(w->job->source, w->layer, MAPPING_DONE);
}

static void pack_range(struct file_work *w, const struct range *r)
{
    struct pack_job *job = w->job;
    const struct cut_blob *b = &w->cut[r->of];
    struct err e = {0};
    char text[PACKED_BLOB_TEXT_BYTES];
    struct pack_room *room = take_room(job);
    int rc = pack_range_into(w, r, room->data, &e);
    release_source(w, b->part);
    atomic_store(&room->is_taken, false);
    if (rc < 0) {
        err_prefix(&e, "%s", packed_blob_text(&job->manifest, b->blob, text));
        fail(w, &e);
    }
    const struct linear_view *v = &b->views.views[r->matrix];
    pack_add_progress(job, job->manifest.parts[b->part].matrix_bytes[r->matrix] *
                               (size_t)r->n_rows / (size_t)v->rows);
}

static void run_task(void *ctx, int task)
{
    struct file_work *w = ctx;
    if (atomic_load(&w->has_failed))
        return;
    if (task < w->n_ranges)
        pack_range(w, &w->ranges[task]);
    else
        pack_expert(w, task - w->n_ranges);
}

/* Appends, or without an array only counts. */
static void add_ranges(struct file_work *w, int of, int matrix)
{
    const struct linear_view *v = &w->cut[of].views.views[matrix];
    int64_t step = rows_at_once(v);
    for (int64_t row = 0; row < v->rows; row += step, w->n_ranges++)
        if (w->ranges)
            w->ranges[w->n_ranges] =
                (struct range){.of = of,
                               .matrix = matrix,
                               .row = row,
                               .n_rows = v->rows - row < step ? v->rows - row : step};
}

static void list_ranges(struct file_work *w)
{
    for (int pass = 0; pass < 2; pass++) {
        w->n_ranges = 0;
        for (int of = 0; of < w->n_cut; of++)
            for (int i = 0; i < w->cut[of].views.n_views; i++)
                add_ranges(w, of, i);
        if (pass == 0)
            w->ranges = mem_array((size_t)w->n_ranges, sizeof *w->ranges);
    }
}

/* Binds what is cut in this file and checks how it is stored. */
static int start_work(struct file_work *w, int file, struct err *e)
{
    struct pack_job *job = w->job;
    const struct packed_manifest *m = &job->manifest;
    int first, n, rc = 0;
    packed_layer_blobs(m, file, &first, &n);
    for (int i = 0; i < n && rc == 0; i++) {
        struct packed_place place = packed_place_of(m, first + i);
        if (place.part == PACKED_EXPERTS) {
            w->first_expert = first + i;
            w->n_experts = n - i;
            break;
        }
        struct cut_blob *b = &w->cut[w->n_cut++];
        b->part = place.part;
        b->blob = first + i;
        rc = bind_part(job, b->part, place.layer, 0, &b->views, e);
        for (int k = 0; k < b->views.n_views && rc == 0; k++)
            rc = check_format(&b->views.views[k], wanted(job, b->part), m->parts[b->part].format,
                              b->part, e);
    }
    if (rc == 0)
        list_ranges(w);
    return rc;
}

int pack_write_blobs(struct pack_job *job, int file, struct packed_writer *writer, struct err *e)
{
    struct err error = {0};
    struct file_work w = {.job = job, .writer = writer, .layer = file, .error = &error};
    int rc = start_work(&w, file, e);
    if (rc < 0)
        return rc;
    pool_run(job->compute.pool, run_task, &w, w.n_ranges + w.n_experts);
    mem_free(w.ranges);
    if (atomic_load(&w.has_failed))
        return err_set(e, error.code, "%s", error.text);
    for (int i = 0; i < w.n_cut && rc == 0; i++) {
        struct packed_blob_info *blob = &job->manifest.blobs[w.cut[i].blob];
        rc = packed_writer_hash(writer, blob->offset, blob->bytes, &blob->hash, e);
    }
    return rc;
}
