/* rpc/api_key.c - see api_key.h. */
#include "rpc/api_key.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/safe_file.h"

_Static_assert(crypto_hash_sha256_BYTES == API_KEY_HASH_BYTES, "SHA-256");

static const char prefix[] = "pm-", hash_word[] = "sha256:";
enum { HASH_WORD = sizeof(hash_word) - 1, PREFIX = sizeof(prefix) - 1 };

void api_key_hash(struct str text, uint8_t out[API_KEY_HASH_BYTES])
{
    must_zero(crypto_hash_sha256(out, (const unsigned char *)text.ptr, text.len));
}

bool api_key_hash_equal(const uint8_t a[API_KEY_HASH_BYTES], const uint8_t b[API_KEY_HASH_BYTES])
{
    return sodium_memcmp(a, b, API_KEY_HASH_BYTES) == 0;
}

void api_key_make(struct api_key_line *line, char text[API_KEY_TEXT_BYTES])
{
    unsigned char raw[32];
    must(sodium_init() >= 0);
    randombytes_buf(raw, sizeof(raw));
    memcpy(text, prefix, PREFIX);
    must(sodium_bin2base64(text + PREFIX, API_KEY_TEXT_BYTES - PREFIX, raw, sizeof(raw),
                           sodium_base64_VARIANT_URLSAFE_NO_PADDING));
    sodium_memzero(raw, sizeof(raw));
    api_key_hash(str_of(text), line->hash);
}

/* ---- the file ------------------------------------------------------------------------- */

static bool read_hash(const char *word, uint8_t out[API_KEY_HASH_BYTES])
{
    size_t bytes = 0;
    const char *end = NULL;
    return strncmp(word, hash_word, HASH_WORD) == 0 &&
           strlen(word) == HASH_WORD + 2 * API_KEY_HASH_BYTES &&
           sodium_hex2bin(out, API_KEY_HASH_BYTES, word + HASH_WORD, 2 * API_KEY_HASH_BYTES, NULL,
                          &bytes, &end) == 0 &&
           bytes == API_KEY_HASH_BYTES;
}

static bool read_number(const char *text, int64_t most, int64_t *out)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text || *end || value < 0 || value > most)
        return false;
    *out = value;
    return true;
}

static bool read_limit(char *word, struct api_key_limits *l)
{
    if (strcmp(word, "admin") == 0)
        return l->is_admin = true;
    char *value = strchr(word, '=');
    if (!value)
        return false;
    *value++ = '\0';
    int64_t priority = 0;
    if (strcmp(word, "requests") == 0)
        return read_number(value, INT32_MAX, &l->requests_per_minute);
    if (strcmp(word, "tokens") == 0)
        return read_number(value, (int64_t)1 << 40, &l->tokens_per_minute);
    if (strcmp(word, "streams") == 0)
        return read_number(value, INT32_MAX, &l->streams);
    if (strcmp(word, "share") == 0) {
        int64_t share = 0;
        bool is_good = read_number(value, API_KEY_MOST_SHARE, &share) && share > 0;
        l->share = (int)share;
        return is_good;
    }
    bool is_most = strcmp(word, "max_priority") == 0;
    if ((!is_most && strcmp(word, "priority") != 0) ||
        !read_number(value, API_KEY_PRIORITIES - 1, &priority))
        return false;
    *(is_most ? &l->max_priority : &l->priority) = (int)priority;
    return true;
}

/* 0, 1 if the line says nothing, or E_INVALID. */
static int read_line(char *text, struct api_key_line *out, struct err *e)
{
    char *rest = NULL;
    const char *name = strtok_r(text, " \t\r", &rest);
    if (!name || name[0] == '#')
        return 1;
    *out = (struct api_key_line){.limits = {.priority = API_KEY_PRIORITIES / 2, .share = 1}};
    if (!key_name_is_valid(name))
        return err_set(e, E_INVALID, "\"%.70s\" is no name", name);
    snprintf(out->name, sizeof(out->name), "%s", name);
    const char *hash = strtok_r(NULL, " \t\r", &rest);
    if (!hash || !read_hash(hash, out->hash))
        return err_set(e, E_INVALID, "%s: expected sha256: and 64 hexadecimal digits", name);
    for (char *word; (word = strtok_r(NULL, " \t\r", &rest)) && word[0] != '#';)
        if (!read_limit(word, &out->limits))
            return err_set(
                e, E_INVALID,
                "%s: \"%.40s\" is none of requests=N, tokens=N, streams=N, priority=0..9, "
                "max_priority=0..9, share=N, admin",
                name, word);
    return 0;
}

static int add_line(struct api_key_line *lines, int *n, const struct api_key_line *line,
                    struct err *e)
{
    if (*n == API_KEY_MAX)
        return err_set(e, E_INVALID, "more than %d keys", API_KEY_MAX);
    for (int i = 0; i < *n; i++) {
        if (strcmp(lines[i].name, line->name) == 0)
            return err_set(e, E_INVALID, "the name %s is there already", line->name);
        if (api_key_hash_equal(lines[i].hash, line->hash))
            return err_set(e, E_INVALID, "%s has the key of %s", line->name, lines[i].name);
    }
    lines[(*n)++] = *line;
    return 0;
}

int api_key_parse(struct str text, const char *what, struct api_key_line **out, int *n,
                  struct err *e)
{
    *out = NULL;
    *n = 0;
    if (memchr(text.ptr ? text.ptr : "", '\0', text.len))
        return err_set(e, E_INVALID, "%s holds a NUL", what);
    int n_lines = 1, rc = 0;
    for (size_t i = 0; i < text.len; i++)
        n_lines += text.ptr[i] == '\n';
    struct api_key_line *lines =
        mem_array((size_t)(n_lines < API_KEY_MAX ? n_lines : API_KEY_MAX), sizeof(*lines));
    char *copy = str_copy(text), *next = copy;
    for (int number = 1; rc == 0 && next; number++) {
        struct api_key_line line;
        rc = read_line(strsep(&next, "\n"), &line, e);
        if (rc == 0)
            rc = add_line(lines, n, &line, e);
        if (rc < 0)
            err_prefix(e, "%s line %d", what, number);
        else
            rc = 0;
    }
    mem_free(copy);
    if (rc < 0) {
        mem_free(lines);
        *n = 0;
    } else {
        *out = lines;
    }
    return rc;
}

int api_key_read(const char *path, struct api_key_line **out, int *n, struct err *e)
{
    struct buf text = {0};
    *out = NULL;
    *n = 0;
    int rc = safe_file_read(path, SAFE_FILE_PUBLIC, &text, e);
    if (rc == 0)
        rc = api_key_parse(buf_str(&text), path, out, n, e);
    buf_fini(&text);
    return rc;
}

static void print_limit(struct buf *out, const char *name, int64_t value)
{
    if (value > 0)
        buf_printf(out, " %s=%lld", name, (long long)value);
}

void api_key_print(const struct api_key_line *line, struct buf *out)
{
    char hex[2 * API_KEY_HASH_BYTES + 1];
    sodium_bin2hex(hex, sizeof(hex), line->hash, API_KEY_HASH_BYTES);
    buf_printf(out, "%s %s%s", line->name, hash_word, hex);
    print_limit(out, "requests", line->limits.requests_per_minute);
    print_limit(out, "tokens", line->limits.tokens_per_minute);
    print_limit(out, "streams", line->limits.streams);
    if (line->limits.priority != API_KEY_PRIORITIES / 2)
        buf_printf(out, " priority=%d", line->limits.priority);
    if (line->limits.max_priority > line->limits.priority)
        buf_printf(out, " max_priority=%d", line->limits.max_priority);
    if (line->limits.share > 1)
        buf_printf(out, " share=%d", line->limits.share);
    buf_puts(out, line->limits.is_admin ? " admin\n" : "\n");
}
