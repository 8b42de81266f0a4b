/* rpc/wire_codec.c - scanning, unpacking and packing.  No state; any thread. */
#include "rpc/wire_codec.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "model/utf8.h"

enum { CHUNK_BYTES = 64 << 10, CHUNK_ALIGN = 16 };

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are little-endian in memory");

struct chunk {
    _Alignas(CHUNK_ALIGN) struct chunk *previous;
};

int wire_invalid(struct err *e, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return err_set(e, E_INVALID, "%s", text);
}

static bool add_chunk(struct wire_memory *m, size_t bytes)
{
    size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
    if (size > WIRE_MEMORY_BYTES - m->total_bytes)
        return false;
    struct chunk *c = mem_try_aligned(sizeof(*c) + size);
    if (!c)
        return false;
    c->previous = m->chunks;
    m->chunks = c;
    m->total_bytes += size;
    m->next = (char *)(c + 1);
    m->end = m->next + size;
    return true;
}

void *wire_memory_take(struct wire_memory *m, size_t bytes)
{
    if (bytes > WIRE_MEMORY_BYTES)
        return NULL;
    size_t padded = mem_round_up(bytes ? bytes : 1, CHUNK_ALIGN);
    if (padded > (size_t)(m->end - m->next) && !add_chunk(m, padded))
        return NULL;
    void *p = m->next;
    m->next += padded;
    return p;
}

static void *take(void *ud, size_t bytes)
{
    return wire_memory_take(ud, bytes);
}

static void give(void *ud, void *p)
{
    (void)ud;
    (void)p; /* wire_memory_fini() gives everything back at once */
}

void wire_memory_init(struct wire_memory *m)
{
    m->allocator = (ProtobufCAllocator){.alloc = take, .free = give, .allocator_data = m};
    m->next = m->first;
    m->end = m->first + sizeof(m->first);
    m->chunks = NULL;
    m->total_bytes = 0;
}

void wire_memory_fini(struct wire_memory *m)
{
    for (struct chunk *c = m->chunks; c;) {
        struct chunk *previous = c->previous;
        mem_free(c);
        c = previous;
    }
    m->chunks = NULL;
}

/* false at the end of the input or after ten bytes. */
static bool read_varint(struct str *s, uint64_t *out)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 70 && s->len > 0; shift += 7) {
        uint8_t byte = (uint8_t)*s->ptr++;
        s->len--;
        if (shift < 64)
            value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) {
            *out = value;
            return true;
        }
    }
    return false;
}

static bool skip(struct str *s, uint64_t bytes)
{
    if (bytes > s->len)
        return false;
    s->ptr += bytes;
    s->len -= (size_t)bytes;
    return true;
}

/* Every string is UTF-8 without a NUL, nothing nests too deep, nothing is cut short. */
static const char *scan(const ProtobufCMessageDescriptor *d, struct str s, int depth)
{
    if (depth > WIRE_MAX_DEPTH)
        return "nested too deep";
    while (s.len > 0) {
        uint64_t tag, length;
        if (!read_varint(&s, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX >> 3)
            return "broken tag";
        const ProtobufCFieldDescriptor *field =
            protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
        switch (tag & 7) {
        case 0:
            if (!read_varint(&s, &length))
                return "broken number";
            continue;
        case 1:
            if (!skip(&s, 8))
                return "cut short";
            continue;
        case 5:
            if (!skip(&s, 4))
                return "cut short";
            continue;
        case 2:
            break;
        default:
            return "unknown wire type";
        }
        struct str inner = {.ptr = NULL};
        if (!read_varint(&s, &length))
            return "broken length";
        inner.ptr = s.ptr;
        if (!skip(&s, length))
            return "cut short";
        inner.len = (size_t)length;
        if (field && field->type == PROTOBUF_C_TYPE_STRING &&
            (memchr(inner.ptr, '\0', inner.len) || !utf8_is_valid(inner)))
            return field->name;
        if (field && field->type == PROTOBUF_C_TYPE_MESSAGE) {
            const char *why = scan(field->descriptor, inner, depth + 1);
            if (why)
                return why;
        }
    }
    return NULL;
}

void *wire_unpack(struct wire_memory *m, const ProtobufCMessageDescriptor *descriptor,
                  struct str message, struct err *e)
{
    const char *name = descriptor->short_name;
    if (message.len > WIRE_MESSAGE_BYTES) {
        wire_invalid(e, "%s: message of %zu bytes", name, message.len);
        return NULL;
    }
    /* An empty frame may come without an address. */
    struct str s = message.len > 0 ? message : (struct str){"", 0};
    const char *why = scan(descriptor, s, 1);
    if (why) {
        wire_invalid(e, "%s: not valid: %s", name, why);
        return NULL;
    }
    void *unpacked = protobuf_c_message_unpack(descriptor, &m->allocator, s.len,
                                               (const uint8_t *)(const void *)s.ptr);
    if (!unpacked)
        wire_invalid(e, "%s: cannot be unpacked", name);
    return unpacked;
}

void wire_pack(const ProtobufCMessage *message, struct buf *out)
{
    size_t bytes = protobuf_c_message_get_packed_size(message);
    must(bytes <= WIRE_MESSAGE_BYTES);
    buf_reset(out);
    buf_reserve(out, bytes);
    out->len = protobuf_c_message_pack(message, (uint8_t *)(void *)out->data);
    must(out->len == bytes);
    out->data[out->len] = '\0';
}

int wire_text(char *out, size_t size, const char *in, const char *what, struct err *e)
{
    size_t len = strlen(in);
    if (len >= size)
        return wire_invalid(e, "%s has %zu bytes, at most %zu fit", what, len, size - 1);
    memcpy(out, in, len + 1);
    return 0;
}

int wire_model_choices(const char *formats, const char *combine, struct format_set *formats_out,
                       enum combine_mode *combine_out, struct err *e)
{
    if (strlen(formats) >= FORMAT_SET_BYTES || format_set_parse(formats, formats_out, NULL) < 0)
        return wire_invalid(e, "unknown weight format \"%.32s\"", formats);
    if (!combine_parse(combine, combine_out))
        return wire_invalid(e, "unknown combine mode \"%.32s\"", combine);
    return 0;
}

char *wire_borrow(const char *s)
{
    return (char *)(uintptr_t)s;
}
