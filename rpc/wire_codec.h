/* rpc/wire_codec.h - what wire_*.c share: from bytes to a protobuf-c message and back.
 *
 * Unpacking takes its memory from a bump allocator whose first bytes lie on the caller's
 * stack, so reading a header costs no malloc, and a hostile message costs at most
 * WIRE_MEMORY_BYTES.  protobuf-c itself accepts broken UTF-8 and cuts strings at a NUL, so
 * the bytes are scanned against the message's descriptor first. */
#pragma once

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "model/format.h"

enum {
    WIRE_MESSAGE_BYTES = 16 << 20, /* one protobuf message */
    WIRE_MEMORY_BYTES = 128 << 20, /* what unpacking one may take */
    WIRE_FIRST_BYTES = 4096,
    WIRE_MAX_DEPTH = 4, /* ours nest two deep */
};

/* Lives on the decoder's stack, and must not move between init and fini. */
struct wire_memory {
    ProtobufCAllocator allocator;
    char *next, *end;
    void *chunks;
    size_t total_bytes;
    _Alignas(16) char first[WIRE_FIRST_BYTES];
};
void wire_memory_init(struct wire_memory *m);
void wire_memory_fini(struct wire_memory *m);
/* Aligned to 16, not zeroed; NULL over the limit. */
void *wire_memory_take(struct wire_memory *m, size_t bytes);

/* NULL and E_INVALID in `e` if `message` is no valid encoding; it lives in `m`. */
void *wire_unpack(struct wire_memory *m, const ProtobufCMessageDescriptor *descriptor,
                  struct str message, struct err *e);
/* Replaces what is in `out`. */
void wire_pack(const ProtobufCMessage *message, struct buf *out);

/* E_INVALID if `in` does not fit with its NUL; `what` names it. */
int wire_text(char *out, size_t size, const char *in, const char *what, struct err *e);
/* "q8,kv=bf16" and "fixed" to what they mean; E_INVALID names the field. */
int wire_model_choices(const char *formats, const char *combine, struct format_set *formats_out,
                       enum combine_mode *combine_out, struct err *e);
/* protobuf-c's structs hold char *, which packing only reads. */
char *wire_borrow(const char *s);
int wire_invalid(struct err *e, const char *format, ...) __attribute__((format(printf, 2, 3)));
