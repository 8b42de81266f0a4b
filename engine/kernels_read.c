/* engine/kernels_read.c - reading memory for its own sake: portable; see kernels.h. */
#include <string.h>

#include "engine/kernels.h"

enum { STREAMS = 4, LINE_BYTES = 256 };

static uint64_t read_portable(const uint8_t *from, size_t bytes)
{
    uint64_t sums[STREAMS] = {0}, word;
    size_t stream = bytes / STREAMS;
    for (size_t at = 0; at + LINE_BYTES <= stream; at += LINE_BYTES)
        for (int s = 0; s < STREAMS; s++)
            for (size_t i = 0; i < LINE_BYTES; i += sizeof(word)) {
                memcpy(&word, from + (size_t)s * stream + at + i, sizeof(word));
                sums[s] ^= word;
            }
    return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

void kernels_portable_read(struct kernels *k)
{
    k->read = read_portable;
}
