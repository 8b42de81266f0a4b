/* coordinator/records.h - the frame around a record of the token log, on disk and on the way to a
 * standby: u32 size of the payload, u32 checksum, u8 type, payload; little-endian.  The checksum
 * covers all three.
 *
 * Pure. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum { RECORDS_FRAME_BYTES = 9, RECORDS_MAX_BYTES = 1 << 30 };

/* Adds a record; `type` is not 0. */
void records_put(struct buf *out, uint8_t type, struct str payload);

typedef void records_each(void *ud, uint8_t type, struct str payload);
struct records_end {
    size_t bytes; /* of whole records */
    bool is_bad;  /* what follows is no record, however much came behind it */
};
/* Hands over the whole records at the beginning of `data`. */
struct records_end records_read(struct str data, records_each *each, void *ud);
