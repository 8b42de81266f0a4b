/* coordinator/follow.c - see follow.h. */
#include "coordinator/follow.h"

#include "coordinator/records.h"

void follow_fini(struct follow *f)
{
    buf_fini(&f->pending);
    *f = (struct follow){0};
}

void follow_restart(struct follow *f)
{
    buf_fini(&f->pending);
    f->n_restarts += f->stream != 0;
    f->stream = f->offset = f->snapshot_bytes = 0;
}

static enum follow_act begin_anew(struct follow *f)
{
    follow_restart(f);
    return FOLLOW_ANEW;
}

static void ignore(void *ud, uint8_t type, struct str payload)
{
    (void)ud, (void)type, (void)payload;
}

enum follow_act follow_take(struct follow *f, const struct follow_answer *a, struct str *records)
{
    *records = STR("");
    if (a->stream != f->stream) {
        follow_restart(f);
        f->stream = a->stream;
        f->snapshot_bytes = a->snapshot_bytes;
    }
    bool was_snapshot = f->offset < f->snapshot_bytes;
    bool fits = a->stream && a->offset == f->offset && a->snapshot_bytes == f->snapshot_bytes &&
                (!was_snapshot || a->bytes.len <= f->snapshot_bytes - f->offset);
    if (!fits)
        return begin_anew(f);
    buf_append_str(&f->pending, a->bytes);
    f->offset += a->bytes.len;
    if (f->offset < f->snapshot_bytes)
        return FOLLOW_ASK;
    struct records_end end = records_read(buf_str(&f->pending), ignore, NULL);
    if (end.is_bad || (was_snapshot && end.bytes < f->pending.len))
        return begin_anew(f);
    *records = (struct str){f->pending.data, end.bytes};
    if (was_snapshot)
        return FOLLOW_REPLACE;
    return end.bytes > 0 ? FOLLOW_APPEND : FOLLOW_ASK;
}

void follow_written(struct follow *f, struct str records)
{
    buf_drop(&f->pending, records.len);
}
