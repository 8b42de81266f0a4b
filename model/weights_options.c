/* model/weights_options.c - see weights_options.h. */
#include "model/weights_options.h"

#include "base/cpus.h"
#include "base/must.h"

int weights_options_check(const struct weights_options *o, struct err *e)
{
    struct format_set formats;
    if (format_set_parse(o->format, &formats, e) < 0)
        return err_prefix(e, "weights.format");
    if (cpus_check(o->cpus, e) < 0)
        return err_prefix(e, "compute.cpus");
    return 0;
}

struct format_set weights_options_formats(const struct weights_options *o)
{
    struct format_set formats;
    must_zero(format_set_parse(o->format, &formats, NULL));
    return formats;
}
