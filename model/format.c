/* model/format.c - names of formats and combine modes. */
#include "model/format.h"

#include <string.h>

#include "base/must.h"

static const char *const format_names[FORMAT_COUNT] = {"native", "f32", "bf16", "fp8"};
static const char *const combine_names[COMBINE_COUNT] = {"fixed", "expert", "node"};

static int find(const char *const *names, int n, const char *text)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    return -1;
}

const char *format_name(enum weight_format f)
{
    must((unsigned)f < FORMAT_COUNT);
    return format_names[f];
}

bool format_parse(const char *text, enum weight_format *out)
{
    int i = find(format_names, FORMAT_COUNT, text);
    if (i >= 0)
        *out = (enum weight_format)i;
    return i >= 0;
}

const char *combine_name(enum combine_mode m)
{
    must((unsigned)m < COMBINE_COUNT);
    return combine_names[m];
}

bool combine_parse(const char *text, enum combine_mode *out)
{
    int i = find(combine_names, COMBINE_COUNT, text);
    if (i >= 0)
        *out = (enum combine_mode)i;
    return i >= 0;
}
