/* rpc/key.c - see key.h. */
#include "rpc/key.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/safe_file.h"

bool key_is_valid(const char *text)
{
    static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyz"
                                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";
    unsigned char raw[KEY_RAW_BYTES];
    if (strlen(text) != KEY_TEXT_BYTES - 1 || strspn(text, alphabet) != KEY_TEXT_BYTES - 1)
        return false;
    return zmq_z85_decode(raw, text) != NULL;
}

bool key_name_is_valid(const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len >= KEY_NAME_BYTES || name[0] == '.' || name[0] == '-')
        return false;
    for (const char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c))
            return false;
    return true;
}

void key_from_raw(const unsigned char raw[KEY_RAW_BYTES], char out[KEY_TEXT_BYTES])
{
    must(zmq_z85_encode(out, raw, KEY_RAW_BYTES));
}

int key_pair_new(const char *name, struct key_pair *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    if (!key_name_is_valid(name))
        return err_set(e, E_INVALID,
                       "\"%.80s\" is no name for a key: 1 to %d letters, digits, '.', '_', '-'",
                       name, KEY_NAME_BYTES - 1);
    snprintf(out->name, sizeof(out->name), "%s", name);
    if (zmq_curve_keypair(out->public_key, out->secret_key) < 0)
        return err_set(e, E_UNIMPLEMENTED, "this libzmq was built without CURVE: %s",
                       zmq_strerror(zmq_errno()));
    return 0;
}

int key_pair_write(const struct key_pair *k, const char *dir, struct err *e)
{
    char *secret_path = mem_format("%s/%s.key", dir, k->name);
    char *public_path = mem_format("%s/%s.pub", dir, k->name);
    struct buf text = {0};
    buf_printf(
        &text,
        "# Polymath secret key.  Whoever reads it can be \"%s\": keep it on its machine, mode "
        "0600.\nname   %s\npublic %s\nsecret %s\n",
        k->name, k->name, k->public_key, k->secret_key);
    int rc = safe_file_create(secret_path, SAFE_FILE_SECRET, buf_str(&text), e);
    if (rc == 0) {
        buf_reset(&text);
        buf_printf(&text, "%s %s\n", k->public_key, k->name);
        rc = safe_file_create(public_path, SAFE_FILE_PUBLIC, buf_str(&text), e);
    }
    explicit_bzero(text.data, text.size);
    buf_fini(&text);
    mem_free(secret_path);
    mem_free(public_path);
    return rc;
}

/* Words of "name VALUE" lines; values are checked by the caller. */
static void put(char *out, size_t size, const char *value)
{
    size_t len = strlen(value);
    if (len < size) /* otherwise it stays empty and is refused as missing */
        memcpy(out, value, len + 1);
}

static void take_field(struct key_pair *k, const char *field, const char *value)
{
    if (strcmp(field, "name") == 0)
        put(k->name, sizeof(k->name), value);
    else if (strcmp(field, "public") == 0)
        put(k->public_key, sizeof(k->public_key), value);
    else if (strcmp(field, "secret") == 0)
        put(k->secret_key, sizeof(k->secret_key), value);
}

static int check_pair(const struct key_pair *k, const char *path, struct err *e)
{
    char belongs[KEY_TEXT_BYTES] = "";
    if (!k->secret_key[0])
        return err_set(e, E_CORRUPT, "%s has no line \"secret KEY\"", path);
    if (!key_is_valid(k->secret_key) || !key_is_valid(k->public_key))
        return err_set(e, E_CORRUPT, "%s: a key is not 40 characters of Z85", path);
    if (!key_name_is_valid(k->name))
        return err_set(e, E_CORRUPT, "%s has no valid line \"name NAME\"", path);
    if (zmq_curve_public(belongs, k->secret_key) < 0 || strcmp(belongs, k->public_key) != 0)
        return err_set(e, E_CORRUPT, "%s: the public key does not belong to the secret one", path);
    return 0;
}

int key_pair_read(const char *path, struct key_pair *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct buf text = {0};
    int rc = safe_file_read(path, SAFE_FILE_SECRET, &text, e);
    if (rc == 0) {
        char *rest = NULL;
        for (char *line = strtok_r(text.data, "\n", &rest); line;
             line = strtok_r(NULL, "\n", &rest)) {
            char field[16], value[KEY_NAME_BYTES + 1];
            if (line[0] != '#' && sscanf(line, "%15s %64s", field, value) == 2)
                take_field(out, field, value);
        }
        rc = check_pair(out, path, e);
    }
    if (text.data)
        explicit_bzero(text.data, text.size);
    buf_fini(&text);
    if (rc < 0)
        explicit_bzero(out, sizeof(*out));
    return rc;
}

int key_public_of(const char *text_or_path, char out[KEY_TEXT_BYTES], struct err *e)
{
    out[0] = '\0';
    if (key_is_valid(text_or_path)) {
        memcpy(out, text_or_path, KEY_TEXT_BYTES);
        return 0;
    }
    struct buf text = {0};
    struct err why = {0};
    int rc = safe_file_read(text_or_path, SAFE_FILE_PUBLIC, &text, &why);
    if (rc < 0) {
        err_set(e, rc, "neither a public key (40 characters) nor a readable file: %s", why.text);
    } else {
        text.data[strcspn(text.data, " \t\r\n")] = '\0';
        if (key_is_valid(text.data))
            memcpy(out, text.data, KEY_TEXT_BYTES);
        else
            rc = err_set(e, E_CORRUPT, "%s does not begin with a public key (40 characters)",
                         text_or_path);
    }
    buf_fini(&text);
    return rc;
}
