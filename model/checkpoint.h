/* model/checkpoint.h - a Hugging Face directory: config.json, model.safetensors or the
 * shards that model.safetensors.index.json names.
 *
 * A shard is opened and mapped when the first of its tensors is asked for, so a process
 * touches only what it needs.  Thread-safe after checkpoint_open(). */
#pragma once

#include <stdint.h>

#include "base/err.h"
#include "model/config.h"
#include "model/format.h"
#include "model/mapping.h"
#include "model/tensor.h"

struct checkpoint;

/* How a packed directory (model/packed.h) is opened; a plain checkpoint needs only `locks`,
 * for what is made of it. */
struct checkpoint_options {
    bool copies;   /* weights into own huge pages instead of a mapping of the file */
    bool locks;    /* mlock what is used; refused by the system: a warning, not an error */
    bool verifies; /* hash every blob that is opened */
};

/* Reads config and index; checks that every shard that the index names exists.  A directory
 * with a packed.json is a packed one: its files are checked against that manifest, and the
 * manifest's fingerprint against the directory's tensors. */
int checkpoint_open(const char *model_dir, struct checkpoint **out, struct err *e);
int checkpoint_open_with(const char *model_dir, const struct checkpoint_options *o,
                         struct checkpoint **out, struct err *e);
/* Native parts of `s` become what a packed directory holds; a part that asks for another
 * format than it holds is E_PRECONDITION and names both and the remedy.  For a plain
 * checkpoint nothing changes. */
int checkpoint_formats(const struct checkpoint *c, struct format_set *s, struct err *e);
void checkpoint_close(struct checkpoint **c);
const struct model_config *checkpoint_config(const struct checkpoint *c);
const char *checkpoint_dir(const struct checkpoint *c);
const struct checkpoint_options *checkpoint_how(const struct checkpoint *c);
/* What model/packed.h opened; NULL for a plain checkpoint. */
struct packed;
struct packed *checkpoint_packed(const struct checkpoint *c);
/* E_NOT_FOUND if no file holds `name`; E_CORRUPT if its shard is broken. */
int checkpoint_find(struct checkpoint *c, const char *name, struct tensor *out, struct err *e);

/* Advice about the pages of a tensor; nothing if no file holds it. */
void checkpoint_advise(struct checkpoint *c, const char *name, enum mapping_advice advice);

/* What tells two models apart: a 64-bit hash over the configuration and over the bytes of
 * small tensors that every release changes (the final norm and each layer's router bias),
 * so that M2 and M2.5, equal in every shape, differ.  Reads a few KB per layer. */
int checkpoint_fingerprint(struct checkpoint *c, uint64_t *out, struct err *e);
/* How many shards and packed files have been opened so far: tests hold "touches only what it needs" with it. */
int checkpoint_open_shards(const struct checkpoint *c);
/* Bytes of one expert (three matrices and their scales) as stored, packed or not. */
int checkpoint_expert_bytes(struct checkpoint *c, size_t *out, struct err *e);
