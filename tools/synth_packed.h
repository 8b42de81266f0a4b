/* tools/synth_packed.h - `polymath synth --packed`: a random model straight in packed form.
 *
 * For models too large to write twice: config, tokenizer, embedding, norms and routers as in
 * the checkpoint of the same options, and every other matrix as random panels, not as that
 * checkpoint's values. */
#pragma once

#include "model/format.h"
#include "tools/synth.h"

/* Into o->dir.  E_INVALID: a part without a format. */
int synth_packed_write(const struct synth_options *o, const struct format_set *formats,
                       struct err *e);
