/* model/checkpoint.c - see checkpoint.h.
 *
 * The released index has 96,103 names in some 130 shards.  It stays parsed: jansson's
 * objects are hash tables that any number of threads may read.  A shard is published by
 * compare-and-swap; the thread that comes second closes its copy.
 *
 * Log events: checkpoint.vision_skipped. */
#include "model/checkpoint.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/must.h"
#include "model/json.h"
#include "model/packed.h"
#include "model/safetensors.h"

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE "model.safetensors.index.json"

enum { INDEX_LIMIT_BYTES = 256 << 20 };

struct shard {
    char *file_name;
    _Atomic(struct safetensors *) file; /* NULL until first use */
};

struct checkpoint {
    char *dir;
    struct model_config config;
    json_t *index;      /* NULL for a single file */
    json_t *weight_map; /* tensor name to file name; borrowed from index */
    json_t *shard_of;   /* file name to position in shards */
    struct shard *shards;
    int n_shards;
    struct checkpoint_options options;
    struct packed *packed; /* NULL for a plain checkpoint */
};

static bool is_regular_file(const char *dir, const char *file_name)
{
    struct stat st;
    char *path = mem_format("%s/%s", dir, file_name);
    bool is_there = stat(path, &st) == 0 && S_ISREG(st.st_mode);
    mem_free(path);
    return is_there;
}

/* A name from the index must not lead out of the model's folder. */
static bool is_plain_file_name(const char *name)
{
    return *name != '\0' && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && !strchr(name, '/');
}

static void add_shard(struct checkpoint *c, const char *file_name)
{
    json_object_set_new(c->shard_of, file_name, json_integer(c->n_shards));
    c->shards[c->n_shards++].file_name = mem_string(file_name);
}

/* Distinct file names of the weight map become shards. */
static int collect_shards(struct checkpoint *c, struct err *e)
{
    const char *tensor_name;
    json_t *value;
    if (!json_is_object(c->weight_map) || json_object_size(c->weight_map) == 0)
        return err_set(e, E_CORRUPT, "weight_map: expected an object that names tensors");
    c->shards = mem_array(json_object_size(c->weight_map), sizeof *c->shards);
    json_object_foreach(c->weight_map, tensor_name, value)
    {
        const char *file_name = json_string_value(value);
        if (!file_name || !is_plain_file_name(file_name))
            return err_set(e, E_CORRUPT, "weight_map: %s: expected a plain file name, found %s%s%s",
                           tensor_name, file_name ? "\"" : "", file_name ? file_name : "no string",
                           file_name ? "\"" : "");
        if (!json_object_get(c->shard_of, file_name))
            add_shard(c, file_name);
    }
    return 0;
}

static int check_shards_exist(const struct checkpoint *c, struct err *e)
{
    int n_missing = 0, first = -1;
    for (int i = 0; i < c->n_shards; i++)
        if (!is_regular_file(c->dir, c->shards[i].file_name) && n_missing++ == 0)
            first = i;
    if (n_missing == 0)
        return 0;
    return err_set(e, E_NOT_FOUND,
                   "names %s, which the folder lacks (%d of %d shards are missing); "
                   "fetch the missing files",
                   c->shards[first].file_name, n_missing, c->n_shards);
}

static int read_index(struct checkpoint *c, struct err *e)
{
    char *path = mem_format("%s/" INDEX_FILE, c->dir);
    int rc = 0;
    c->index = json_read_object(path, INDEX_LIMIT_BYTES, e);
    if (!c->index) {
        rc = e->code;
    } else {
        c->weight_map = json_object_get(c->index, "weight_map");
        rc = collect_shards(c, e);
        if (rc == 0)
            rc = check_shards_exist(c, e);
        if (rc < 0)
            err_prefix(e, "%s", path);
    }
    mem_free(path);
    return rc;
}

static int find_files(struct checkpoint *c, struct err *e)
{
    if (is_regular_file(c->dir, SINGLE_FILE)) {
        c->shards = mem_array(1, sizeof *c->shards);
        add_shard(c, SINGLE_FILE);
        return 0;
    }
    if (is_regular_file(c->dir, INDEX_FILE))
        return read_index(c, e);
    return err_set(e, E_NOT_FOUND, "%s: holds neither " SINGLE_FILE " nor " INDEX_FILE, c->dir);
}

static int check_fingerprint(struct checkpoint *c, struct err *e)
{
    uint64_t own, packed = packed_contents(c->packed)->fingerprint;
    int rc = checkpoint_fingerprint(c, &own, e);
    if (rc < 0 || own == packed)
        return rc;
    return err_set(e, E_PRECONDITION,
                   "fingerprint is %016" PRIx64 ", the folder's tensors give %016" PRIx64
                   ": another model's manifest; pack the model again",
                   packed, own);
}

static int find_packed(struct checkpoint *c, struct err *e)
{
    if (!packed_is_here(c->dir))
        return 0;
    struct packed_shape shape = packed_shape_of(&c->config);
    int rc = packed_open(c->dir, &shape, &c->options, &c->packed, e);
    if (rc == 0) {
        rc = check_fingerprint(c, e);
        if (rc < 0)
            err_prefix(e, "%s/" PACKED_MANIFEST, c->dir);
    }
    return rc;
}

static int open_shard(struct checkpoint *c, struct shard *shard, struct safetensors **out,
                      struct err *e);

/* One line for all that is not the language model.  A file that cannot be opened is whoever
 * reads a tensor of it to report. */
static void note_vision(struct checkpoint *c)
{
    const char *prefix = config_tensor_prefix(&c->config), *name;
    size_t len = strlen(prefix), n_skipped = 0;
    struct safetensors *file;
    struct tensor t;
    json_t *value;
    if (c->index) {
        json_object_foreach(c->weight_map, name, value) n_skipped +=
            strncmp(name, prefix, len) != 0;
    } else if (open_shard(c, &c->shards[0], &file, NULL) == 0) {
        for (int i = 0; i < safetensors_count(file); i++) {
            safetensors_at(file, i, &name, &t);
            n_skipped += strncmp(name, prefix, len) != 0;
        }
    }
    if (n_skipped > 0)
        log_info("checkpoint.vision_skipped", "model=%s tensors=%zu", c->dir, n_skipped);
}

int checkpoint_open(const char *model_dir, struct checkpoint **out, struct err *e)
{
    return checkpoint_open_with(model_dir, &(struct checkpoint_options){0}, out, e);
}

int checkpoint_open_with(const char *model_dir, const struct checkpoint_options *o,
                         struct checkpoint **out, struct err *e)
{
    struct err own = {0};
    struct checkpoint *c = mem_alloc(sizeof *c);
    if (!e)
        e = &own;
    c->dir = mem_string(model_dir);
    c->options = *o;
    c->shard_of = json_object();
    must(c->shard_of);
    int rc = config_read(model_dir, &c->config, e);
    if (rc == 0)
        rc = find_files(c, e);
    if (rc == 0)
        rc = find_packed(c, e);
    if (rc == 0 && c->config.is_inside_vision)
        note_vision(c);
    if (rc < 0)
        checkpoint_close(&c);
    else
        *out = c;
    return rc;
}

/* One part of checkpoint_formats(). */
static int settle(const struct checkpoint *c, enum packed_part part, enum weight_format *f,
                  struct err *e)
{
    enum weight_format held = packed_contents(c->packed)->parts[part].format;
    const char *name = packed_part_name(part);
    if (*f == FORMAT_NATIVE)
        *f = held;
    if (*f == held)
        return 0;
    return err_set(e, E_PRECONDITION,
                   "%s is packed with %s=%s, %s=%s was asked for; ask for %s=%s or native, or pack "
                   "the original model in the other format",
                   c->dir, name, format_name(held), name, format_name(*f), name, format_name(held));
}

int checkpoint_formats(const struct checkpoint *c, struct format_set *s, struct err *e)
{
    struct format_set settled = *s;
    if (!c->packed)
        return 0;
    int rc = settle(c, PACKED_EXPERTS, &settled.experts, e);
    if (rc == 0)
        rc = settle(c, PACKED_ATTENTION, &settled.attention, e);
    if (rc == 0)
        rc = settle(c, PACKED_HEAD, &settled.head, e);
    if (rc == 0)
        *s = settled;
    return rc;
}

void checkpoint_close(struct checkpoint **c)
{
    if (!*c)
        return;
    for (int i = 0; i < (*c)->n_shards; i++) {
        struct safetensors *file = atomic_load(&(*c)->shards[i].file);
        safetensors_close(&file);
        mem_free((*c)->shards[i].file_name);
    }
    packed_close(&(*c)->packed);
    mem_free((*c)->shards);
    mem_free((*c)->dir);
    json_decref((*c)->index);
    json_decref((*c)->shard_of);
    mem_free(*c);
    *c = NULL;
}

const struct model_config *checkpoint_config(const struct checkpoint *c)
{
    return &c->config;
}

const char *checkpoint_dir(const struct checkpoint *c)
{
    return c->dir;
}

const struct checkpoint_options *checkpoint_how(const struct checkpoint *c)
{
    return &c->options;
}

struct packed *checkpoint_packed(const struct checkpoint *c)
{
    return c->packed;
}

int checkpoint_open_shards(const struct checkpoint *c)
{
    int n_open = c->packed ? packed_open_files(c->packed) : 0;
    for (int i = 0; i < c->n_shards; i++)
        n_open += atomic_load(&c->shards[i].file) != NULL;
    return n_open;
}

static int open_shard(struct checkpoint *c, struct shard *shard, struct safetensors **out,
                      struct err *e)
{
    *out = atomic_load_explicit(&shard->file, memory_order_acquire);
    if (*out)
        return 0;
    char *path = mem_format("%s/%s", c->dir, shard->file_name);
    struct safetensors *opened = NULL, *present = NULL;
    int rc = safetensors_open(path, &opened, e);
    mem_free(path);
    if (rc < 0)
        return rc;
    if (atomic_compare_exchange_strong(&shard->file, &present, opened)) {
        *out = opened;
    } else {
        safetensors_close(&opened);
        *out = present;
    }
    return 0;
}

/* Position of the shard that holds `name`, or -1. */
static int shard_of(const struct checkpoint *c, const char *name)
{
    if (!c->index)
        return 0;
    const char *file_name = json_string_value(json_object_get(c->weight_map, name));
    if (!file_name)
        return -1;
    return (int)json_integer_value(json_object_get(c->shard_of, file_name));
}

int checkpoint_find(struct checkpoint *c, const char *name, struct tensor *out, struct err *e)
{
    struct safetensors *file;
    int i = shard_of(c, name);
    if (i < 0)
        return err_set(e, E_NOT_FOUND, "%s/" INDEX_FILE ": names no tensor %s", c->dir, name);
    int rc = open_shard(c, &c->shards[i], &file, e);
    if (rc < 0)
        return rc;
    if (safetensors_find(file, name, out))
        return 0;
    if (c->index)
        return err_set(e, E_CORRUPT, "%s/%s: lacks tensor %s, which the index places there", c->dir,
                       c->shards[i].file_name, name);
    return err_set(e, E_NOT_FOUND, "%s/%s: holds no tensor %s", c->dir, c->shards[i].file_name,
                   name);
}

void checkpoint_advise(struct checkpoint *c, const char *name, enum mapping_advice advice)
{
    struct safetensors *file;
    struct tensor t;
    int i = shard_of(c, name);
    if (i >= 0 && open_shard(c, &c->shards[i], &file, NULL) == 0 &&
        safetensors_find(file, name, &t))
        safetensors_advise(file, &t, advice);
}

static int hash_tensor(struct checkpoint *c, XXH64_state_t *state, const char *name, struct err *e)
{
    struct tensor t;
    int rc = checkpoint_find(c, name, &t, e);
    if (rc == 0)
        XXH64_update(state, t.data, t.size_bytes);
    return rc;
}

/* Positions, end ids and sampling defaults stay out: they change no weight's meaning, and
 * an operator may edit them on one host. */
static void hash_m3(XXH64_state_t *state, const struct model_config *m)
{
    const struct activation *a = &m->activation;
    const struct sparse_config *s = &m->sparse;
    char text[320];
    int len =
        snprintf(text, sizeof text, " %d %d %d %d %.9g %.9g %.9g %.9g %d %d %d %d %d %d %d %d",
                 m->has_head_norms, m->has_offset_norms, m->has_power_scales, (int)a->kind,
                 (double)a->alpha, (double)a->limit, (double)a->beta, (double)m->routed_scale,
                 m->n_dense_layers, m->dense_size, m->shared_size, s->n_full_layers, s->block_size,
                 s->top_k, s->n_heads, s->head_dim);
    XXH64_update(state, text, (size_t)len);
}

static void hash_config(XXH64_state_t *state, const struct model_config *m)
{
    char text[320];
    int len =
        snprintf(text, sizeof text, "%d %d %d %d %d %d %d %d %d %d %d %d %d %.17g %.9g",
                 (int)m->family, m->vocab_size, m->hidden_size, m->n_layers, m->n_heads,
                 m->n_kv_heads, m->head_dim, m->rotary_dim, m->expert_size, m->n_experts, m->top_k,
                 m->scale_block_rows, m->scale_block_cols, m->rope_theta, (double)m->rms_norm_eps);
    XXH64_update(state, text, (size_t)len);
    /* M2's fingerprints stay what they were. */
    if (m->family == MODEL_MINIMAX_M3)
        hash_m3(state, m);
}

int checkpoint_fingerprint(struct checkpoint *c, uint64_t *out, struct err *e)
{
    char name[TENSOR_NAME_BYTES];
    XXH64_state_t *state = XXH64_createState();
    must(state);
    XXH64_reset(state, 0);
    hash_config(state, &c->config);
    const char *prefix = config_tensor_prefix(&c->config);
    snprintf(name, sizeof name, "%smodel.norm.weight", prefix);
    int rc = hash_tensor(c, state, name, e);
    for (int i = c->config.n_dense_layers; i < c->config.n_layers && rc == 0; i++) {
        snprintf(name, sizeof name, "%smodel.layers.%d.block_sparse_moe.e_score_correction_bias",
                 prefix, i);
        rc = hash_tensor(c, state, name, e);
    }
    if (rc == 0)
        *out = XXH64_digest(state);
    else
        err_prefix(e, "fingerprint");
    XXH64_freeState(state);
    return rc;
}

int checkpoint_expert_bytes(struct checkpoint *c, size_t *out, struct err *e)
{
    static const char *const matrices[] = {"w1", "w2", "w3"};
    char name[TENSOR_NAME_BYTES];
    struct tensor t;
    size_t total = 0;
    if (c->packed) {
        *out = packed_contents(c->packed)->parts[PACKED_EXPERTS].blob_bytes;
        return 0;
    }
    for (int m = 0; m < 3; m++) {
        int len =
            snprintf(name, sizeof name, "%smodel.layers.%d.block_sparse_moe.experts.0.%s.weight",
                     config_tensor_prefix(&c->config), c->config.n_dense_layers, matrices[m]);
        int rc = checkpoint_find(c, name, &t, e);
        if (rc < 0)
            return rc;
        total += t.size_bytes;
        if (t.dtype != DTYPE_F8_E4M3)
            continue;
        snprintf(name + len, sizeof name - (size_t)len, "_scale_inv");
        rc = checkpoint_find(c, name, &t, e);
        if (rc < 0)
            return rc;
        total += t.size_bytes;
    }
    *out = total;
    return 0;
}
