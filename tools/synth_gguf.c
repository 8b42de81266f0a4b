/* tools/synth_gguf.c - see synth_gguf.h. */
#include "tools/synth_gguf.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/thread.h"
#include "engine/pool.h"
#include "model/fp8.h"
#include "model/halves.h"
#include "model/tensor.h"
#include "tools/progress.h"
#include "tools/synth_tensors.h"

enum { SLICE = 1 << 16, PIECES_PER_BATCH = 16 };
/* general.file_type and expert_gating_func as llama.cpp numbers them. */
enum { FILE_Q4_0 = 2, FILE_Q8_0 = 7, FILE_BF16 = 32, GATING_SIGMOID = 2, QUANT_VERSION = 2 };
enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_UNUSED = 5, N_BYTE_TOKENS = 256 };

/* A tensor of the file, and the checkpoint's tensors that it is made of. */
struct kind {
    const char *gguf, *released; /* names; a layer's lack the layer's prefix */
    bool is_matrix;              /* in the wanted type; others are f32 */
    bool is_of_experts;          /* `released` is what follows "experts.N." */
};
static const struct kind layer_kinds[] = {
    {"attn_norm.weight", "input_layernorm.weight", false, false},
    {"attn_q.weight", "self_attn.q_proj.weight", true, false},
    {"attn_k.weight", "self_attn.k_proj.weight", true, false},
    {"attn_v.weight", "self_attn.v_proj.weight", true, false},
    {"attn_output.weight", "self_attn.o_proj.weight", true, false},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", false, false},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", false, false},
    {"ffn_norm.weight", "post_attention_layernorm.weight", false, false},
    {"ffn_gate_inp.weight", "block_sparse_moe.gate.weight", false, false},
    {"exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias", false, false},
    {"ffn_gate_exps.weight", "w1.weight", true, true},
    {"ffn_up_exps.weight", "w3.weight", true, true},
    {"ffn_down_exps.weight", "w2.weight", true, true},
};
static const struct kind model_kinds[] = {
    {"token_embd.weight", "model.embed_tokens.weight", true, false},
    {"output_norm.weight", "model.norm.weight", false, false},
    {"output.weight", "lm_head.weight", true, false},
};
enum {
    N_LAYER_KINDS = sizeof(layer_kinds) / sizeof(layer_kinds[0]),
    N_MODEL_KINDS = sizeof(model_kinds) / sizeof(model_kinds[0])
};

/* One tensor of the checkpoint on its way into the file. */
struct piece {
    const struct synth_tensor *weight, *scale; /* scale NULL: none */
    int tensor;
    enum gguf_type type;
    size_t first; /* its first value within the file's tensor */
};

struct worker {
    struct synth_source *source;
    float *scales, *values; /* [SLICE] values */
    void *bytes;
    struct err error;
};

struct job {
    struct gguf_writer *writer;
    struct synth_list list;
    struct piece *pieces;
    int n_pieces;
    struct worker *workers;
    atomic_int next; /* piece to claim */
    int end;         /* of the batch */
    atomic_bool has_failed;
};

int synth_gguf_type(const char *text, enum gguf_type *out, struct err *e)
{
    if (strcmp(text, "q8_0") == 0)
        *out = GGUF_Q8_0;
    else if (strcmp(text, "q4_0") == 0)
        *out = GGUF_Q4_0;
    else if (strcmp(text, "bf16") == 0)
        *out = GGUF_BF16;
    else
        return err_set(e, E_INVALID, "found \"%s\", expected q8_0, q4_0 or bf16", text);
    return 0;
}

/* ---- metadata ---- */

static void put_sizes(struct gguf_writer *w, const struct model_config *c, enum gguf_type type)
{
    gguf_put_string(w, "general.architecture", "minimax-m2");
    gguf_put_string(w, "general.name", "synthetic MiniMax-M2");
    gguf_put_u32(w, "general.quantization_version", QUANT_VERSION);
    gguf_put_u32(w, "general.file_type",
                 type == GGUF_Q8_0   ? FILE_Q8_0
                 : type == GGUF_Q4_0 ? FILE_Q4_0
                                     : FILE_BF16);
    const struct {
        const char *key;
        int value;
    } sizes[] = {
        {"minimax-m2.vocab_size", c->vocab_size},
        {"minimax-m2.context_length", c->max_positions},
        {"minimax-m2.embedding_length", c->hidden_size},
        {"minimax-m2.block_count", c->n_layers},
        {"minimax-m2.feed_forward_length", c->expert_size},
        {"minimax-m2.expert_feed_forward_length", c->expert_size},
        {"minimax-m2.attention.head_count", c->n_heads},
        {"minimax-m2.attention.head_count_kv", c->n_kv_heads},
        {"minimax-m2.attention.key_length", c->head_dim},
        {"minimax-m2.attention.value_length", c->head_dim},
        {"minimax-m2.rope.dimension_count", c->rotary_dim},
        {"minimax-m2.expert_count", c->n_experts},
        {"minimax-m2.expert_used_count", c->top_k},
        {"minimax-m2.expert_gating_func", GATING_SIGMOID},
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        gguf_put_u32(w, sizes[i].key, (uint32_t)sizes[i].value);
    gguf_put_f32(w, "minimax-m2.rope.freq_base", (float)c->rope_theta);
    gguf_put_f32(w, "minimax-m2.attention.layer_norm_rms_epsilon", c->rms_norm_eps);
}

/* Byte-level BPE writes a byte as a printable character: itself, or U+0100 and on in order. */
static void byte_text(int byte, char out[8])
{
    int shifted = 0;
    bool is_plain = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    for (int b = 0; b < byte; b++)
        shifted += !((b >= '!' && b <= '~') || (b >= 0xa1 && b != 0xad));
    int code = is_plain ? byte : 256 + shifted;
    if (code < 0x80)
        snprintf(out, 8, "%c", code);
    else
        snprintf(out, 8, "%c%c", 0xc0 | code >> 6, 0x80 | (code & 0x3f));
}

/* The smallest vocabulary that loads: 256 bytes, one merge, an end, and unused ids. */
static void put_vocabulary(struct gguf_writer *w, int n)
{
    static const char *const merge = "h e";
    size_t count = (size_t)n;
    char **texts = mem_array(count, sizeof(*texts));
    int32_t *kinds = mem_array(count, sizeof(*kinds));
    for (int i = 0; i < n; i++) {
        char byte[8];
        kinds[i] = i <= N_BYTE_TOKENS ? TOKEN_NORMAL : TOKEN_UNUSED;
        if (i < N_BYTE_TOKENS) {
            byte_text(i, byte);
            texts[i] = mem_string(byte);
        } else {
            texts[i] = i == N_BYTE_TOKENS ? mem_string("he") : mem_format("[unused%d]", i);
        }
    }
    mem_free(texts[n - 1]);
    texts[n - 1] = mem_string("[e~[");
    kinds[n - 1] = TOKEN_CONTROL;
    gguf_put_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_put_string(w, "tokenizer.ggml.pre", "minimax-m2");
    gguf_put_strings(w, "tokenizer.ggml.tokens", (const char *const *)texts, count);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", kinds, count);
    gguf_put_strings(w, "tokenizer.ggml.merges", &merge, 1);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)n - 1);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)n - 1);
    for (int i = 0; i < n; i++)
        mem_free(texts[i]);
    mem_free(texts);
    mem_free(kinds);
}

/* ---- tensors ---- */

static void find_prefix(const struct kind *k, int layer, int expert, char out[TENSOR_NAME_BYTES])
{
    if (layer < 0)
        snprintf(out, TENSOR_NAME_BYTES, "%s", k->released);
    else if (k->is_of_experts)
        snprintf(out, TENSOR_NAME_BYTES, "model.layers.%d.block_sparse_moe.experts.%d.%s", layer,
                 expert, k->released);
    else
        snprintf(out, TENSOR_NAME_BYTES, "model.layers.%d.%s", layer, k->released);
}

/* The list is in file order, in which one layer's tensors lie together. */
static const struct synth_tensor *find(const struct synth_list *l, int first, const char *name)
{
    for (int i = first; i < l->n_tensors; i++)
        if (strcmp(l->tensors[i].name, name) == 0)
            return &l->tensors[i];
    unreachable();
}

static void add_kind(struct job *job, const struct kind *k, int layer, int first, int n_experts,
                     enum gguf_type type)
{
    char name[TENSOR_NAME_BYTES];
    int n_pieces = k->is_of_experts ? n_experts : 1;
    const struct synth_tensor *t = NULL;
    size_t each = 0;
    type = k->is_matrix ? type : GGUF_F32;
    for (int i = 0; i < n_pieces; i++) {
        find_prefix(k, layer, i, name);
        t = find(&job->list, t ? (int)(t - job->list.tensors) : first, name);
        bool is_fp8 = t->declaration.dtype == DTYPE_F8_E4M3;
        each = (size_t)t->size_bytes / dtype_bytes(t->declaration.dtype);
        job->pieces[job->n_pieces + i] = (struct piece){
            .weight = t, .scale = is_fp8 ? t + 1 : NULL, .type = type, .first = (size_t)i * each};
    }
    const struct safetensors_declaration *d = &t->declaration;
    uint64_t dims[3] = {(uint64_t)d->dims[d->n_dims - 1], (uint64_t)d->dims[0],
                        (uint64_t)n_experts};
    if (layer < 0)
        snprintf(name, sizeof(name), "%s", k->gguf);
    else
        snprintf(name, sizeof(name), "blk.%d.%s", layer, k->gguf);
    int tensor = gguf_add_tensor(job->writer, name, type, k->is_of_experts ? 3 : d->n_dims, dims);
    for (int i = 0; i < n_pieces; i++)
        job->pieces[job->n_pieces + i].tensor = tensor;
    job->n_pieces += n_pieces;
}

static void plan(struct job *job, const struct model_config *c, enum gguf_type type)
{
    size_t per_layer = N_LAYER_KINDS + 3 * (size_t)c->n_experts;
    job->pieces = mem_array(N_MODEL_KINDS + (size_t)c->n_layers * per_layer, sizeof(*job->pieces));
    for (int k = 0; k < N_MODEL_KINDS; k++)
        add_kind(job, &model_kinds[k], -1, 0, 1, type);
    /* Every layer has as many tensors as the first; the embedding comes before them. */
    int in_layer = (job->list.n_tensors - N_MODEL_KINDS) / c->n_layers;
    for (int layer = 0; layer < c->n_layers; layer++)
        for (int k = 0; k < N_LAYER_KINDS; k++)
            add_kind(job, &layer_kinds[k], layer, 1 + layer * in_layer, c->n_experts, type);
}

/* ---- data ---- */

static void to_floats(const struct worker *w, const struct piece *p, const void *chunk, size_t at,
                      size_t n)
{
    const uint8_t *bytes = chunk;
    size_t cols = (size_t)p->weight->declaration.dims[p->weight->declaration.n_dims - 1];
    size_t scale_cols = (cols + FP8_BLOCK - 1) / FP8_BLOCK;
    uint16_t half;
    switch (p->weight->declaration.dtype) {
    case DTYPE_F8_E4M3:
        for (size_t i = 0; i < n; i += GGUF_BLOCK) {
            size_t row = (at + i) / cols, col = (at + i) % cols;
            float scale = w->scales[row / FP8_BLOCK * scale_cols + col / FP8_BLOCK];
            for (size_t j = i; j < i + GGUF_BLOCK; j++)
                w->values[j] = fp8_decode(bytes[j]) * scale;
        }
        break;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&half, bytes + i * sizeof(half), sizeof(half));
            w->values[i] = bf16_to_f32(half);
        }
        break;
    default:
        memcpy(w->values, chunk, n * sizeof(float));
        break;
    }
}

static int write_chunk(struct job *job, struct worker *w, const struct piece *p,
                       const uint8_t *chunk, size_t at, size_t n)
{
    size_t value_bytes = dtype_bytes(p->weight->declaration.dtype);
    int rc = 0;
    for (size_t done = 0; done < n && rc == 0; done += SLICE) {
        size_t part = n - done < SLICE ? n - done : SLICE;
        to_floats(w, p, chunk + done * value_bytes, at + done, part);
        gguf_encode(p->type, w->values, part, w->bytes);
        rc = gguf_write(job->writer, p->tensor, gguf_bytes(p->type, p->first + at + done), w->bytes,
                        gguf_bytes(p->type, part), &w->error);
    }
    return rc;
}

static int write_piece(struct job *job, struct worker *w, const struct piece *p)
{
    size_t value_bytes = dtype_bytes(p->weight->declaration.dtype);
    int rc = 0;
    if (p->scale) {
        w->scales = mem_resize(w->scales, (size_t)p->scale->size_bytes);
        synth_source_begin(w->source, p->scale);
        for (int64_t at = 0; at < p->scale->size_bytes; at += SYNTH_CHUNK_BYTES) {
            int64_t left = p->scale->size_bytes - at;
            int64_t bytes = left < SYNTH_CHUNK_BYTES ? left : SYNTH_CHUNK_BYTES;
            memcpy((char *)w->scales + at, synth_source_next(w->source, bytes), (size_t)bytes);
        }
    }
    synth_source_begin(w->source, p->weight);
    for (int64_t at = 0; at < p->weight->size_bytes && rc == 0; at += SYNTH_CHUNK_BYTES) {
        int64_t left = p->weight->size_bytes - at;
        int64_t bytes = left < SYNTH_CHUNK_BYTES ? left : SYNTH_CHUNK_BYTES;
        rc = write_chunk(job, w, p, synth_source_next(w->source, bytes), (size_t)at / value_bytes,
                         (size_t)bytes / value_bytes);
    }
    return rc;
}

static void write_task(void *ctx, int task)
{
    struct job *job = ctx;
    for (;;) {
        int i = atomic_fetch_add(&job->next, 1);
        if (i >= job->end || atomic_load(&job->has_failed))
            return;
        if (write_piece(job, &job->workers[task], &job->pieces[i]) < 0)
            atomic_store(&job->has_failed, true);
    }
}

static int write_pieces(struct job *job, const struct synth_options *o, struct err *e)
{
    struct pool *pool = pool_new(thread_cpu_count(), POOL_FREE);
    int n_workers = pool_threads(pool);
    struct progress progress;
    job->workers = mem_array((size_t)n_workers, sizeof(*job->workers));
    for (int i = 0; i < n_workers; i++)
        job->workers[i] = (struct worker){.source = synth_source_new(o->seed),
                                          .values = mem_array(SLICE, sizeof(float)),
                                          .bytes = mem_alloc(SLICE * sizeof(float))};
    progress_begin(&progress, "synth", job->list.total_bytes, PROGRESS_BYTES);
    for (int at = 0; at < job->n_pieces && !job->has_failed; at = job->end) {
        int batch = PIECES_PER_BATCH * n_workers, left = job->n_pieces - at;
        job->end = at + (left < batch ? left : batch);
        atomic_store(&job->next, at);
        pool_run(pool, write_task, job, n_workers);
        int64_t bytes = 0;
        for (int i = at; i < job->end; i++)
            bytes += job->pieces[i].weight->size_bytes;
        if (o->shows_progress)
            progress_add(&progress, bytes);
    }
    if (o->shows_progress)
        progress_end(&progress);
    int rc = 0;
    for (int i = 0; i < n_workers; i++) {
        if (job->workers[i].error.code < 0 && rc == 0)
            rc = err_set(e, job->workers[i].error.code, "%s", job->workers[i].error.text);
        synth_source_free(&job->workers[i].source);
        mem_free(job->workers[i].scales);
        mem_free(job->workers[i].values);
        mem_free(job->workers[i].bytes);
    }
    mem_free(job->workers);
    pool_free(&pool);
    return rc;
}

static int check_blocks(const struct model_config *c, struct err *e)
{
    int q = c->n_heads * c->head_dim;
    const int widths[] = {c->hidden_size, c->expert_size, q};
    static const char *const names[] = {"hidden_size", "intermediate_size",
                                        "num_attention_heads x head_dim"};
    for (int i = 0; i < 3; i++)
        if (widths[i] % GGUF_BLOCK)
            return err_set(e, E_INVALID, "%s is %d: GGUF's blocks need a multiple of %d", names[i],
                           widths[i], GGUF_BLOCK);
    if (c->vocab_size < N_BYTE_TOKENS + 2)
        return err_set(e, E_INVALID, "vocab_size is %d, expected at least %d", c->vocab_size,
                       N_BYTE_TOKENS + 2);
    return 0;
}

int synth_gguf_write(const struct synth_options *o, enum gguf_type type, const char *path,
                     struct err *e)
{
    struct job job = {0};
    int rc = synth_check(o, e);
    if (rc == 0)
        rc = check_blocks(&o->config, e);
    if (rc < 0)
        return rc;
    job.writer = gguf_writer_new();
    synth_list_init(&job.list, &o->config, o->dtype);
    put_sizes(job.writer, &o->config, type);
    put_vocabulary(job.writer, o->config.vocab_size);
    plan(&job, &o->config, type);
    rc = gguf_create(job.writer, path, e);
    if (rc == 0)
        rc = write_pieces(&job, o, e);
    rc = gguf_finish(&job.writer, rc, e);
    mem_free(job.pieces);
    synth_list_fini(&job.list);
    return rc;
}
