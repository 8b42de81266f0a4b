/* tools/synth_tensors.h - which tensors a synthetic checkpoint has, and their contents. */
#pragma once

#include <stdint.h>

#include "model/config.h"
#include "model/safetensors.h"
#include "model/tensor.h"

/* One tensor: its declaration's name points to `name`, so a list must not move. */
struct synth_tensor {
    char name[TENSOR_NAME_BYTES];
    struct safetensors_declaration declaration;
    float mean, spread; /* of its values; a scale is uniform around its mean */
    int64_t size_bytes;
};

struct synth_list {
    struct synth_tensor *tensors;
    int n_tensors;
    int64_t total_bytes;
};

/* All tensors of the model in file order; `dtype` is that of experts and attention.  The
 * sizes must have passed config_read(). */
void synth_list_init(struct synth_list *l, const struct model_config *c, enum dtype dtype);
/* Takes out the tensors whose names have `part` in them. */
void synth_list_drop(struct synth_list *l, const char *part);
void synth_list_fini(struct synth_list *l);

/* Bell-shaped values drawn from random bits by table.  Owner: one thread. */
enum { SYNTH_BELL_STEPS = 4096, SYNTH_CHUNK_BYTES = 4 << 20 };
struct synth_source;
struct synth_source *synth_source_new(uint64_t seed);
void synth_source_free(struct synth_source **s);
/* Begins a tensor; its bytes depend on the seed, its name and its declaration only. */
void synth_source_begin(struct synth_source *s, const struct synth_tensor *t);
/* The next `bytes` bytes, borrowed until the next call; at most SYNTH_CHUNK_BYTES, which
 * every call but a tensor's last asks for. */
const void *synth_source_next(struct synth_source *s, int64_t bytes);
