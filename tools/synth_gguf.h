/* tools/synth_gguf.h - `polymath synth --gguf`: the same synthetic model as one GGUF file.
 *
 * Architecture "minimax-m2" with the names that llama.cpp and ik_llama.cpp expect.  The values
 * are those of the checkpoint that the same options give, put into the wanted blocks. */
#pragma once

#include "tools/gguf_write.h"
#include "tools/synth.h"

/* "q8_0", "q4_0" or "bf16"; E_INVALID. */
int synth_gguf_type(const char *text, enum gguf_type *out, struct err *e);
/* Writes `path` whole or not at all, over all CPUs of the process.  o->dir is not used.
 * E_INVALID: a geometry that the blocks do not allow. */
int synth_gguf_write(const struct synth_options *o, enum gguf_type type, const char *path,
                     struct err *e);
