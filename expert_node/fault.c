/* expert_node/fault.c - see fault.h. */
#include "expert_node/fault.h"

#include <string.h>

enum { LOW_BITS = 20 };

int fault_check(const struct fault_options *o, struct err *e)
{
    if (!o->is_enabled && (o->delay_ns > 0 || o->drop_one_in > 0 || o->corrupt_one_in > 0))
        return err_set(e, E_INVALID,
                       "faults are for chaos tests: fault.* needs fault.enabled = true");
    return 0;
}

struct fault fault_new(const struct fault_options *o)
{
    return (struct fault){.options = *o, .rng = rng_seed((uint64_t)o->seed)};
}

static bool is_hit(struct fault *f, int64_t one_in)
{
    return one_in > 0 && rng_below(&f->rng, (uint64_t)one_in) == 0;
}

struct fault_action fault_next(struct fault *f)
{
    struct fault_action a = {0};
    if (!f->options.is_enabled)
        return a;
    if (is_hit(f, f->options.delay_one_in))
        a.delay_ns = f->options.delay_ns;
    a.is_dropped = is_hit(f, f->options.drop_one_in);
    a.is_corrupted = is_hit(f, f->options.corrupt_one_in);
    a.where = rng_next(&f->rng);
    return a;
}

void fault_corrupt(const struct fault_action *a, void *data, size_t bytes)
{
    size_t n_words = bytes / sizeof(uint32_t);
    if (!a->is_corrupted || n_words == 0)
        return;
    char *at = (char *)data + a->where / LOW_BITS % n_words * sizeof(uint32_t);
    uint32_t word;
    memcpy(&word, at, sizeof(word));
    word ^= 1u << a->where % LOW_BITS;
    memcpy(at, &word, sizeof(word));
}
