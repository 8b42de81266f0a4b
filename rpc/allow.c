/* rpc/allow.c - see allow.h.  Lists change at human speed: adding is a shift of the rest. */
#include "rpc/allow.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/safe_file.h"

/* Where `key` is or would be. */
static int place_of(const struct allow *a, const char *key)
{
    int low = 0, high = a->n;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (strcmp(a->entries[middle].key, key) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct allow_entry *allow_find(const struct allow *a, const char *key)
{
    int at = place_of(a, key);
    return at < a->n && strcmp(a->entries[at].key, key) == 0 ? &a->entries[at] : NULL;
}

void allow_add(struct allow *a, const char *key, const char *name)
{
    must(key_is_valid(key));
    int at = place_of(a, key);
    if (at < a->n && strcmp(a->entries[at].key, key) == 0)
        return;
    a->entries = mem_resize(a->entries, ((size_t)a->n + 1) * sizeof(*a->entries));
    memmove(a->entries + at + 1, a->entries + at, (size_t)(a->n - at) * sizeof(*a->entries));
    struct allow_entry *entry = &a->entries[at];
    memset(entry, 0, sizeof(*entry));
    memcpy(entry->key, key, KEY_TEXT_BYTES);
    snprintf(entry->name, sizeof(entry->name), "%s", name);
    a->n++;
}

void allow_add_all(struct allow *a, const struct allow *more)
{
    for (int i = 0; i < more->n; i++)
        allow_add(a, more->entries[i].key, more->entries[i].name);
}

void allow_fini(struct allow *a)
{
    mem_free(a->entries);
    *a = (struct allow){0};
}

/* "KEY NAME"; a first word that is no key and begins with '#' makes a comment. */
static int take_line(struct allow *a, char *line, const char *what, int number, struct err *e)
{
    char *rest = NULL;
    const char *key = strtok_r(line, " \t\r", &rest);
    if (!key || (key[0] == '#' && !key_is_valid(key)))
        return 0;
    const char *name = strtok_r(NULL, " \t\r", &rest);
    const char *more = strtok_r(NULL, " \t\r", &rest);
    if (!key_is_valid(key))
        return err_set(e, E_INVALID, "%s line %d: \"%.48s\" is not a public key (40 characters)",
                       what, number, key);
    if (!name || !key_name_is_valid(name) || (more && more[0] != '#'))
        return err_set(e, E_INVALID, "%s line %d: expected \"KEY NAME\"", what, number);
    if (allow_find(a, key))
        return err_set(e, E_INVALID, "%s line %d: the key of %s is there already", what, number,
                       name);
    if (a->n == ALLOW_MAX_KEYS)
        return err_set(e, E_INVALID, "%s line %d: more than %d keys", what, number, ALLOW_MAX_KEYS);
    allow_add(a, key, name);
    return 0;
}

int allow_parse(struct str text, const char *what, struct allow *out, struct err *e)
{
    *out = (struct allow){0};
    int rc = memchr(text.ptr ? text.ptr : "", '\0', text.len)
                 ? err_set(e, E_INVALID, "%s holds a NUL", what)
                 : 0;
    char *copy = str_copy(text);
    char *next = copy;
    for (int number = 1; rc == 0 && next; number++) {
        char *line = strsep(&next, "\n");
        rc = take_line(out, line, what, number, e);
    }
    mem_free(copy);
    if (rc < 0)
        allow_fini(out);
    return rc;
}

int allow_read(const char *path, struct allow *out, struct err *e)
{
    *out = (struct allow){0};
    struct buf text = {0};
    int rc = safe_file_read(path, SAFE_FILE_PUBLIC, &text, e);
    if (rc == 0)
        rc = allow_parse(buf_str(&text), path, out, e);
    buf_fini(&text);
    return rc;
}
