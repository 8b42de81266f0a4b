/* tests/unit/wire_random.c - random contents for messages, and damage to their encodings. */
#include "tests/unit/wire_random.h"

#include <stdlib.h>

uint32_t wire_random_32(struct rng *r)
{
    return (uint32_t)(rng_next(r) >> (32 + rng_below(r, 32)));
}

uint64_t wire_random_64(struct rng *r)
{
    return rng_next(r) >> rng_below(r, 64);
}

float wire_random_float(struct rng *r, float low, float high)
{
    return low + (high - low) * (float)rng_unit(r);
}

void wire_random_text(struct rng *r, char *out, size_t size)
{
    static const char *const pieces[] = {
        "a", "Z", "0", "-", ":", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    size_t limit = 1 + (size_t)rng_below(r, size - 1), len = 0;
    do {
        const char *piece = pieces[rng_below(r, 8)];
        if (len + strlen(piece) > limit)
            break;
        memcpy(out + len, piece, strlen(piece));
        len += strlen(piece);
    } while (len < limit);
    if (len == 0)
        out[len++] = 'x';
    out[len] = '\0';
}

void wire_random_key(struct rng *r, char out[KEY_TEXT_BYTES])
{
    unsigned char raw[KEY_RAW_BYTES];
    for (size_t i = 0; i < sizeof(raw); i++)
        raw[i] = (unsigned char)rng_next(r);
    if (rng_below(r, 4) == 0)
        out[0] = '\0';
    else
        key_from_raw(raw, out);
}

void wire_damage(struct str message, const struct frame *payloads, int n_payloads,
                 wire_check *check, void *ud)
{
    struct rng r = test_rng();
    int n_flips = test_is_slow_build() ? 200 : 2000;
    for (size_t i = 0; i < message.len + (size_t)n_flips; i++) {
        size_t len = i < message.len ? i : message.len;
        char *copy = malloc(len);
        if (len > 0)
            memcpy(copy, message.ptr, len);
        for (int k = 0; i >= message.len && len > 0 && k < 1 + (int)rng_below(&r, 4); k++)
            copy[rng_below(&r, len)] ^= (char)(1 << rng_below(&r, 8));
        int rc = check(ud, (struct str){copy, len}, payloads, n_payloads);
        CHECK(rc == 0 || rc == E_INVALID);
        free(copy);
    }
    for (int k = 0; k < n_payloads; k++) {
        struct frame changed[4];
        memcpy(changed, payloads, (size_t)n_payloads * sizeof(*payloads));
        changed[k].size_bytes--;
        CHECK_INT(check(ud, message, changed, n_payloads), E_INVALID);
        CHECK_INT(check(ud, message, payloads, k), E_INVALID);
    }
}
