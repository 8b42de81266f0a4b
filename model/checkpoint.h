/* model/checkpoint.h - a Hugging Face directory: config.json, model.safetensors or the
 * shards that model.safetensors.index.json names.
 *
 * A shard is opened and mapped when the first of its tensors is asked for, so a process
 * touches only what it needs.  Thread-safe after checkpoint_open(). */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "model/config.h"
#include "model/tensor.h"

struct checkpoint;

/* Reads config and index; checks that every shard that the index names exists. */
int checkpoint_open(const char *model_dir, struct checkpoint **out, struct err *e);
void checkpoint_close(struct checkpoint **c);
const struct model_config *checkpoint_config(const struct checkpoint *c);
const char *checkpoint_dir(const struct checkpoint *c);
/* E_NOT_FOUND if no file holds `name`; E_CORRUPT if its shard is broken. */
int checkpoint_find(struct checkpoint *c, const char *name, struct tensor *out, struct err *e);

/* What tells two models apart: a 64-bit hash over the configuration and over the bytes of
 * small tensors that every release changes (the final norm and each layer's router bias),
 * so that M2 and M2.5, equal in every shape, differ.  Reads a few KB per layer. */
int checkpoint_fingerprint(struct checkpoint *c, uint64_t *out, struct err *e);
/* How many shards have been opened so far: tests hold "touches only what it needs" with it. */
int checkpoint_open_shards(const struct checkpoint *c);
/* Bytes of one expert (three matrices and their scales) as stored. */
int checkpoint_expert_bytes(struct checkpoint *c, size_t *out, struct err *e);
