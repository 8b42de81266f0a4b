#include "model/utf8.h"

#include <string.h>

#include "base/must.h"

enum outcome { COMPLETE, INCOMPLETE, BROKEN };

/* Looks at the sequence that p[0] begins.  *len is its length; when incomplete or broken, that
 * of the longest prefix that could begin a character (at least 1).
 * Unicode standard, table 3-7: the first byte fixes the range of the second. */
static enum outcome examine(const unsigned char *p, size_t n, size_t *len)
{
    unsigned char lead = p[0], low = 0x80, high = 0xbf;
    size_t need;

    *len = 1;
    if (lead < 0x80)
        return COMPLETE;
    if (lead < 0xc2 || lead > 0xf4)
        return BROKEN;
    need = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead == 0xe0)
        low = 0xa0; /* shorter forms exist */
    else if (lead == 0xed)
        high = 0x9f; /* surrogates */
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f; /* beyond U+10FFFF */
    for (; *len < need; ++*len) {
        if (*len == n)
            return INCOMPLETE;
        if (p[*len] < low || p[*len] > high)
            return BROKEN;
        low = 0x80;
        high = 0xbf;
    }
    return COMPLETE;
}

size_t utf8_decode(struct str text, size_t at, int32_t *code_point)
{
    const unsigned char *p = (const unsigned char *)text.ptr + at;
    size_t len;

    if (examine(p, text.len - at, &len) != COMPLETE)
        return 0;
    switch (len) {
    case 1:
        *code_point = p[0];
        break;
    case 2:
        *code_point = (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
        break;
    case 3:
        *code_point = (p[0] & 0x0f) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
        break;
    default:
        *code_point =
            (p[0] & 0x07) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
        break;
    }
    return len;
}

void utf8_append(struct buf *out, int32_t code_point)
{
    char bytes[4];
    size_t len = code_point < 0x80 ? 1 : code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0x00, 0xc0, 0xe0, 0xf0};

    must(code_point >= 0 && code_point <= 0x10ffff);
    must(code_point < 0xd800 || code_point > 0xdfff);
    for (size_t i = len - 1; i > 0; i--) {
        bytes[i] = (char)(0x80 | (code_point & 0x3f));
        code_point >>= 6;
    }
    bytes[0] = (char)(lead[len] | code_point);
    buf_append(out, bytes, len);
}

bool utf8_is_valid(struct str text)
{
    size_t at = 0, len;

    while (at < text.len) {
        if (examine((const unsigned char *)text.ptr + at, text.len - at, &len) != COMPLETE)
            return false;
        at += len;
    }
    return true;
}

static void append_replacement(struct buf *out)
{
    buf_append_str(out, STR("\xef\xbf\xbd"));
}

/* Adds bytes to a held tail until that is a character or broken; returns how many it used. */
static size_t complete_held(struct utf8_stream *s, struct str bytes, struct buf *out)
{
    size_t used = 0, len;

    while (s->n_held > 0 && used < bytes.len) {
        s->held[s->n_held] = bytes.ptr[used];
        switch (examine((const unsigned char *)s->held, s->n_held + 1, &len)) {
        case INCOMPLETE:
            s->n_held++;
            used++;
            break;
        case COMPLETE:
            buf_append(out, s->held, len);
            s->n_held = 0;
            used++;
            break;
        case BROKEN:
            /* What was held could go on, so it is the new byte that does not belong:
             * it is looked at again as the start of something. */
            append_replacement(out);
            s->n_held = 0;
            break;
        }
    }
    return used;
}

void utf8_feed(struct utf8_stream *s, struct str bytes, struct buf *out)
{
    size_t at = complete_held(s, bytes, out), run = at, len;

    while (at < bytes.len) {
        switch (examine((const unsigned char *)bytes.ptr + at, bytes.len - at, &len)) {
        case COMPLETE:
            at += len;
            continue;
        case INCOMPLETE:
            buf_append(out, bytes.ptr + run, at - run);
            memcpy(s->held, bytes.ptr + at, len);
            s->n_held = len;
            return;
        case BROKEN:
            buf_append(out, bytes.ptr + run, at - run);
            append_replacement(out);
            at += len;
            run = at;
            break;
        }
    }
    buf_append(out, bytes.ptr + run, at - run);
}

void utf8_finish(struct utf8_stream *s, struct buf *out)
{
    if (s->n_held > 0)
        append_replacement(out);
    s->n_held = 0;
}
