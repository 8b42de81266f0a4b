/* coordinator/ship.c - see ship.h. */
#include "coordinator/ship.h"

#include <stdio.h>
#include <string.h>

#include "base/must.h"
#include "coordinator/records.h"

void ship_init(struct ship *s, const struct ship_config *c)
{
    *s = (struct ship){.config = *c};
}

static void forget(struct ship_standby *b)
{
    buf_fini(&b->snapshot);
    *b = (struct ship_standby){0};
}

void ship_fini(struct ship *s)
{
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++)
        forget(&s->standbys[i]);
    buf_fini(&s->window);
}

/* ---- positions ------------------------------------------------------------------------- */

static uint64_t window_start(const struct ship *s)
{
    return s->end - s->window.len;
}

/* Of the stream, as it is now. */
static uint64_t stream_end(const struct ship *s, const struct ship_standby *b)
{
    return b->snapshot_bytes + (s->end - b->base);
}

/* Of the log: all before it the standby has. */
static uint64_t position_of(const struct ship_standby *b)
{
    return b->have < b->snapshot_bytes ? b->base : b->base + (b->have - b->snapshot_bytes);
}

/* Can what follows `have` still be sent? */
static bool is_at_hand(const struct ship *s, const struct ship_standby *b)
{
    return position_of(b) >= window_start(s);
}

/* What nobody will ask for goes, and what is too much. */
static void trim(struct ship *s)
{
    uint64_t least = s->end, start = window_start(s);
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++)
        if (s->standbys[i].instance && s->standbys[i].stream && is_at_hand(s, &s->standbys[i]) &&
            position_of(&s->standbys[i]) < least)
            least = position_of(&s->standbys[i]);
    uint64_t most = (uint64_t)s->config.window_bytes;
    if (s->end - least > most)
        least = s->end - most;
    /* Moving what stays must not cost more than what went. */
    if (2 * (least - start) >= s->window.len)
        buf_drop(&s->window, (size_t)(least - start));
}

uint64_t ship_append(struct ship *s, uint8_t type, struct str payload, int64_t now_ns)
{
    size_t bytes = RECORDS_FRAME_BYTES + payload.len;
    bool is_wanted = false;
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        struct ship_standby *b = &s->standbys[i];
        is_wanted |= b->instance != 0;
        if (b->is_held && b->have == stream_end(s, b))
            b->behind_ns = now_ns;
    }
    s->end += bytes;
    if (is_wanted)
        records_put(&s->window, type, payload);
    else
        buf_reset(&s->window);
    trim(s);
    return s->end;
}

bool ship_has(const struct ship *s, uint64_t position)
{
    if (s->config.is_recorded && !s->has_record)
        return false;
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        const struct ship_standby *b = &s->standbys[i];
        if (b->in_step ? position_of(b) < position : b->is_recorded)
            return false;
    }
    return true;
}

/* Has it all that was ever told? */
static bool is_whole(const struct ship_standby *b)
{
    return b->in_step && position_of(b) >= b->whole_from;
}

int ship_unrecorded(struct ship *s, uint64_t states[SHIP_MAX_STANDBYS])
{
    int n = 0;
    bool has_changed = !s->is_record_sure;
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++)
        has_changed |= is_whole(&s->standbys[i]) != s->standbys[i].is_recorded;
    if (!s->config.is_recorded || s->is_recording || !has_changed)
        return -1;
    s->is_recording = true;
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        struct ship_standby *b = &s->standbys[i];
        b->is_in_question = is_whole(b);
        b->is_recorded |= b->is_in_question;
        if (b->is_in_question)
            states[n++] = b->state;
    }
    return n;
}

void ship_recorded(struct ship *s, bool is_done)
{
    must(s->is_recording);
    s->is_recording = false;
    s->is_record_sure = is_done;
    s->has_record |= is_done;
    for (int i = 0; i < SHIP_MAX_STANDBYS && is_done; i++)
        s->standbys[i].is_recorded = s->standbys[i].is_in_question;
}

int ship_count(const struct ship *s, bool in_step)
{
    int n = 0;
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++)
        n += s->standbys[i].instance && (!in_step || s->standbys[i].in_step);
    return n;
}

uint64_t ship_lag_bytes(const struct ship *s, const struct ship_standby *b)
{
    return b->stream ? stream_end(s, b) - b->have : 0;
}

/* ---- questions ------------------------------------------------------------------------- */

/* -1: there is no room. */
static int slot_of(const struct ship *s, const struct ship_question *q)
{
    int free = -1;
    for (int i = SHIP_MAX_STANDBYS - 1; i >= 0; i--) {
        if (s->standbys[i].instance && s->standbys[i].state == q->state)
            return i;
        if (!s->standbys[i].instance)
            free = i;
    }
    return free;
}

static bool is_twin(const struct ship *s, const struct ship_standby *b,
                    const struct ship_question *q, int64_t now_ns)
{
    return b->instance && b->instance != q->instance &&
           strncmp(b->name, q->name, SHIP_NAME_BYTES - 1) != 0 &&
           now_ns - b->asked_ns < 4 * s->config.hold_ns;
}

/* Whoever had its directory before is gone; what is on record of that stays so. */
static void take_place(struct ship_standby *b, const struct ship_question *q)
{
    bool is_recorded = b->is_recorded, is_in_question = b->is_in_question;
    forget(b);
    *b = (struct ship_standby){.instance = q->instance,
                               .state = q->state,
                               .is_recorded = is_recorded,
                               .is_in_question = is_in_question};
    snprintf(b->name, SHIP_NAME_BYTES, "%s", q->name);
}

/* What follows `have`, from one of the two places where it may lie. */
static void answer(struct ship *s, int slot, int64_t now_ns, struct ship_answer *out)
{
    struct ship_standby *b = &s->standbys[slot];
    const struct buf *from = b->have < b->snapshot_bytes ? &b->snapshot : &s->window;
    uint64_t at = from == &s->window ? position_of(b) - window_start(s) : b->have;
    struct str bytes = {from->data ? from->data + at : "", from->len - (size_t)at};
    if (bytes.len > SHIP_CHUNK_BYTES)
        bytes.len = SHIP_CHUNK_BYTES;
    b->is_held = false;
    b->asked_ns = now_ns;
    if (b->have + bytes.len == stream_end(s, b)) {
        b->mark = b->have + bytes.len;
        b->mark_ns = now_ns;
        if (bytes.len == 0)
            b->behind_ns = now_ns;
    }
    s->sent_bytes += (int64_t)bytes.len;
    *out = (struct ship_answer){.slot = slot,
                                .stream = b->stream,
                                .offset = b->have,
                                .snapshot_bytes = b->snapshot_bytes,
                                .bytes = bytes};
}

/* What has been told before this moment was told without it. */
static void be_in_step(const struct ship *s, struct ship_standby *b)
{
    if (!b->in_step)
        b->whole_from = s->end;
    b->in_step = true;
}

/* What it says that it has. */
static void note(struct ship *s, struct ship_standby *b, uint64_t offset, int64_t now_ns)
{
    b->have = offset;
    if (b->have >= b->snapshot_bytes)
        buf_fini(&b->snapshot);
    if (b->mark && b->have >= b->mark) {
        b->behind_ns = b->mark_ns;
        if (s->config.patience_ns > 0 && now_ns - b->mark_ns <= s->config.patience_ns)
            be_in_step(s, b);
    }
    trim(s);
}

enum ship_verdict ship_ask(struct ship *s, const struct ship_question *q, int64_t now_ns,
                           struct ship_answer *out)
{
    *out = (struct ship_answer){.slot = slot_of(s, q)};
    if (out->slot < 0)
        return SHIP_FULL;
    struct ship_standby *b = &s->standbys[out->slot];
    if (is_twin(s, b, q, now_ns))
        return SHIP_TWIN;
    if (b->instance != q->instance)
        take_place(b, q);
    b->asked_ns = now_ns;
    bool is_ours = b->stream && q->stream == b->stream && q->offset >= b->have &&
                   q->offset <= stream_end(s, b);
    if (!is_ours) {
        b->in_step = b->is_held = false;
        return SHIP_SNAPSHOT;
    }
    note(s, b, q->offset, now_ns);
    if (!is_at_hand(s, b)) {
        b->in_step = b->is_held = false;
        return SHIP_SNAPSHOT;
    }
    if (b->have == stream_end(s, b)) {
        b->is_held = true;
        return SHIP_HOLD;
    }
    answer(s, out->slot, now_ns, out);
    return SHIP_ANSWER;
}

void ship_begin(struct ship *s, int slot, struct buf *snapshot, int64_t now_ns,
                struct ship_answer *out)
{
    struct ship_standby *b = &s->standbys[slot];
    must(b->instance && snapshot->len > 0);
    buf_fini(&b->snapshot);
    b->snapshot = *snapshot;
    *snapshot = (struct buf){0};
    b->stream = s->config.first_stream + s->n_streams++;
    if (b->stream == 0) /* which says "none" */
        b->stream = s->config.first_stream + s->n_streams++;
    b->snapshot_bytes = b->snapshot.len;
    b->base = s->end;
    b->have = b->mark = 0;
    answer(s, slot, now_ns, out);
}

bool ship_next(struct ship *s, int64_t now_ns, struct ship_answer *out)
{
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        struct ship_standby *b = &s->standbys[i];
        if (!b->is_held)
            continue;
        if (!is_at_hand(s, b)) { /* one record was larger than the window */
            b->is_held = b->in_step = false;
            *out = (struct ship_answer){.slot = i};
            return true;
        }
        if (b->have == stream_end(s, b) && now_ns - b->asked_ns < s->config.hold_ns)
            continue;
        answer(s, i, now_ns, out);
        return true;
    }
    return false;
}

const struct ship_standby *ship_tick(struct ship *s, int64_t now_ns)
{
    for (int i = 0; i < SHIP_MAX_STANDBYS; i++) {
        struct ship_standby *b = &s->standbys[i];
        if (!b->instance)
            continue;
        if (b->in_step && b->have < stream_end(s, b) &&
            now_ns - b->behind_ns > s->config.patience_ns) {
            b->in_step = false;
            s->n_late++;
            return b;
        }
        if (b->is_held || now_ns - b->asked_ns <= s->config.forget_ns)
            continue;
        b->in_step = false;
        if (!b->is_recorded)
            forget(b);
    }
    return NULL;
}
