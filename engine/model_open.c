/* engine/model_open.c - see model_open.h. */
#include "engine/model_open.h"

#include "base/mem.h"
#include "engine/pack.h"

static int open_dir(const char *dir, const struct checkpoint_options *o, struct format_set *formats,
                    struct checkpoint **out, struct err *e)
{
    int rc = checkpoint_open_with(dir, o, out, e);
    if (rc == 0)
        rc = checkpoint_formats(*out, formats, e);
    if (rc < 0)
        checkpoint_close(out);
    return rc;
}

static int open_cached(const struct model_open_options *o, struct model_opened *out, struct err *e)
{
    struct checkpoint_options plain = {0};
    struct checkpoint *source = NULL;
    int rc = open_dir(o->model_dir, &plain, &out->said, &source, e);
    checkpoint_close(&source);
    if (rc < 0)
        return rc;
    struct pack_options p = {.model_dir = o->model_dir,
                             .formats = out->said,
                             .kernels = o->kernels,
                             .n_threads = o->n_threads,
                             .progress = o->packing,
                             .progress_ud = o->ud};
    char *dir = NULL;
    rc = pack_cached(&p, o->cache_dir, &dir, e);
    if (rc < 0)
        return err_prefix(e, "weights.cache");
    out->held = out->said;
    rc = open_dir(dir, &o->checkpoint, &out->held, &out->checkpoint, e);
    mem_free(dir);
    return rc;
}

int model_open(const struct model_open_options *o, struct model_opened *out, struct err *e)
{
    *out = (struct model_opened){.said = o->formats};
    if (o->cache_dir && o->cache_dir[0])
        return open_cached(o, out, e);
    int rc = open_dir(o->model_dir, &o->checkpoint, &out->said, &out->checkpoint, e);
    out->held = out->said;
    return rc;
}
