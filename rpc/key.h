/* rpc/key.h - CURVE keys: 32 bytes, written as 40 characters of Z85 (ZeroMQ RFC 32).
 *
 * A pair lives in two files: NAME.key (secret, mode 0600) and NAME.pub (public).  A public
 * file is one line of an allow-list (rpc/allow.h), so lists are made with cat(1).
 * Z85 has characters that a shell reads ("$", "&", "*", ...): quote with '' or name files. */
#pragma once

#include <stdbool.h>

#include "base/err.h"

enum { KEY_TEXT_BYTES = 41, KEY_NAME_BYTES = 64, KEY_RAW_BYTES = 32 };

/* All-zero is no key. */
struct key_pair {
    char name[KEY_NAME_BYTES];
    char public_key[KEY_TEXT_BYTES], secret_key[KEY_TEXT_BYTES];
};

/* Exactly 40 characters that are 32 bytes in Z85. */
bool key_is_valid(const char *text);
/* 1 to 63 letters, digits, dots, hyphens, underscores. */
bool key_name_is_valid(const char *name);
void key_from_raw(const unsigned char raw[KEY_RAW_BYTES], char out[KEY_TEXT_BYTES]);

/* A fresh pair.  E_UNIMPLEMENTED: this libzmq has no CURVE. */
int key_pair_new(const char *name, struct key_pair *out, struct err *e);
/* Writes DIR/NAME.key and DIR/NAME.pub.  E_EXISTS: there is one; nothing is overwritten. */
int key_pair_write(const struct key_pair *k, const char *dir, struct err *e);
/* A .key file; the errors of safe_file_read(), and E_CORRUPT: malformed, or its halves do not
 * belong together. */
int key_pair_read(const char *path, struct key_pair *out, struct err *e);
/* A public key as an option gives it: the 40 characters, or the path of a .pub file. */
int key_public_of(const char *text_or_path, char out[KEY_TEXT_BYTES], struct err *e);
