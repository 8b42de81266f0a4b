/* coordinator/records.c - see records.h. */
#include "coordinator/records.h"

#include <xxhash.h>

#include "base/must.h"

static void put_u32(uint8_t *to, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        to[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get_u32(const uint8_t *from)
{
    return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 |
           (uint32_t)from[3] << 24;
}

static uint32_t checksum(uint8_t type, const char *payload, size_t bytes)
{
    return (uint32_t)XXH3_64bits_withSeed(payload, bytes, (uint64_t)bytes << 8 | type);
}

void records_put(struct buf *out, uint8_t type, struct str payload)
{
    must(type != 0 && payload.len <= RECORDS_MAX_BYTES);
    uint8_t frame[RECORDS_FRAME_BYTES];
    put_u32(frame, (uint32_t)payload.len);
    put_u32(frame + 4, checksum(type, payload.ptr, payload.len));
    frame[8] = type;
    buf_append(out, frame, sizeof frame);
    buf_append_str(out, payload);
}

struct records_end records_read(struct str data, records_each *each, void *ud)
{
    struct records_end end = {0};
    while (data.len - end.bytes >= RECORDS_FRAME_BYTES) {
        const uint8_t *frame = (const uint8_t *)data.ptr + end.bytes;
        struct str payload = {data.ptr + end.bytes + RECORDS_FRAME_BYTES, get_u32(frame)};
        end.is_bad = frame[8] == 0 || payload.len > RECORDS_MAX_BYTES;
        if (end.is_bad || payload.len > data.len - end.bytes - RECORDS_FRAME_BYTES)
            break;
        end.is_bad = checksum(frame[8], payload.ptr, payload.len) != get_u32(frame + 4);
        if (end.is_bad)
            break;
        each(ud, frame[8], payload);
        end.bytes += RECORDS_FRAME_BYTES + payload.len;
    }
    return end;
}
