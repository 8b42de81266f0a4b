#include "model/vocab.h"

#include <xxhash.h>

#include "base/err.h"
#include "base/mem.h"

void vocab_init(struct vocab *v, int32_t n_ids, size_t n_tokens)
{
    size_t n_slots = 16;

    while (n_slots < 2 * n_tokens)
        n_slots *= 2;
    *v = (struct vocab){.n_ids = n_ids, .n_slots = n_slots};
    v->tokens = mem_array((size_t)n_ids, sizeof(*v->tokens));
    v->slots = mem_array(n_slots, sizeof(*v->slots));
}

void vocab_fini(struct vocab *v)
{
    mem_free(v->tokens);
    mem_free(v->slots);
    buf_fini(&v->bytes);
    *v = (struct vocab){0};
}

/* The slot that holds these bytes, or the free one where they belong. */
static int32_t *slot_of(const struct vocab *v, struct str bytes)
{
    size_t i = XXH3_64bits(bytes.ptr, bytes.len) & (v->n_slots - 1);

    while (v->slots[i] != 0 && !str_equal(vocab_bytes(v, v->slots[i] - 1), bytes))
        i = (i + 1) & (v->n_slots - 1);
    return &v->slots[i];
}

int vocab_add(struct vocab *v, int32_t id, struct str bytes, enum vocab_kind kind)
{
    int32_t *slot;

    if (id < 0 || id >= v->n_ids || 2 * (v->n_tokens + 1) > v->n_slots ||
        bytes.len > UINT32_MAX - v->bytes.len)
        return E_RANGE;
    if (v->tokens[id].kind != VOCAB_NONE)
        return E_EXISTS;
    slot = slot_of(v, bytes);
    if (*slot != 0)
        return E_EXISTS;
    *slot = id + 1;
    v->tokens[id] = (struct vocab_token){
        .offset = (uint32_t)v->bytes.len, .len = (uint32_t)bytes.len, .kind = kind};
    v->n_tokens++;
    buf_append_str(&v->bytes, bytes);
    return 0;
}

int32_t vocab_find(const struct vocab *v, struct str bytes)
{
    return v->n_slots == 0 ? -1 : *slot_of(v, bytes) - 1;
}

enum vocab_kind vocab_kind_of(const struct vocab *v, int32_t id)
{
    return id < 0 || id >= v->n_ids ? VOCAB_NONE : v->tokens[id].kind;
}

struct str vocab_bytes(const struct vocab *v, int32_t id)
{
    if (vocab_kind_of(v, id) == VOCAB_NONE)
        return (struct str){"", 0};
    return (struct str){v->bytes.data + v->tokens[id].offset, v->tokens[id].len};
}

int32_t vocab_char_of_byte(unsigned char byte)
{
    if (byte <= 0x20)
        return 0x100 + byte;
    if (byte >= 0x7f && byte <= 0xa0)
        return 0x121 + (byte - 0x7f);
    return byte == 0xad ? 0x143 : byte;
}

int vocab_byte_of_char(int32_t code_point)
{
    int byte = code_point >= 0x100 && code_point <= 0x120   ? code_point - 0x100
               : code_point >= 0x121 && code_point <= 0x142 ? code_point - 0x121 + 0x7f
               : code_point == 0x143                        ? 0xad
                                                            : code_point;

    if (byte < 0 || byte > 0xff || vocab_char_of_byte((unsigned char)byte) != code_point)
        return -1;
    return byte;
}
