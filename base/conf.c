/* base/conf.c - an option table against a file, a command line and a reader of --help.
 *
 * libconfig 1.5 keeps an integer without L in 32 bits and wraps it silently, reports a
 * missing include without its place, and has no words for an open string.  So the text of
 * the file, and of what it includes, is scanned first: such things are refused with file
 * and line before libconfig sees them.
 *
 * Runs before threads start.  Exit 2 is the caller's business. */
#include "base/conf.h"

#include <errno.h>
#include <libconfig.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/conf_value.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/version.h"

enum {
    CONF_MAX_FILE_BYTES = 1 << 20,
    CONF_MAX_DEPTH = 8, /* libconfig's own limit on nested includes is 10 */
    CONF_MAX_FILES = 64,
    CONF_WORD_BYTES = 128,
};

void conf_defaults(const struct conf_table *t, void *config)
{
    for (int i = 0; i < t->n_options; i++) {
        const struct conf_option *o = &t->options[i];
        if (o->type == CONF_STRING)
            *(char **)(void *)((char *)config + o->offset) = NULL;
        struct err e = {0};
        const char *fallback = o->fallback ? o->fallback : "";
        if (conf_value_from_text(o, config, fallback, &e) < 0) {
            fprintf(stderr, "default of %s: %s\n", o->key, e.text);
            must(!"a default is what its own option allows");
        }
    }
}

void conf_fini(const struct conf_table *t, void *config)
{
    for (int i = 0; i < t->n_options; i++) {
        if (t->options[i].type != CONF_STRING)
            continue;
        char **field = (void *)((char *)config + t->options[i].offset);
        mem_free(*field);
        *field = NULL;
    }
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Edits (insert, delete, change, swap neighbours) that turn a into b; both shorter than
 * CONF_WORD_BYTES. */
static int edit_distance(const char *a, const char *b)
{
    int rows[3][CONF_WORD_BYTES];
    int n_a = (int)strlen(a), n_b = (int)strlen(b);
    for (int j = 0; j <= n_b; j++)
        rows[0][j] = j;
    for (int i = 1; i <= n_a; i++) {
        int *row = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= n_b; j++) {
            int change = above[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = least(change, least(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], above2[j - 2] + 1);
        }
    }
    return rows[n_a % 3][n_b];
}

const char *conf_nearest(const char *word, const char *const *known, int n_known)
{
    if (strlen(word) >= CONF_WORD_BYTES)
        return NULL;
    /* A third of the word wrong is still a guess worth printing; more is another word. */
    int best = 2 + (int)strlen(word) / 3;
    const char *nearest = NULL;
    for (int i = 0; i < n_known; i++) {
        if (strlen(known[i]) >= CONF_WORD_BYTES)
            continue;
        int distance = edit_distance(word, known[i]);
        if (distance < best) {
            best = distance;
            nearest = known[i];
        }
    }
    return nearest;
}

static const struct conf_option *find_option(const struct conf_table *t, const char *key)
{
    for (int i = 0; i < t->n_options; i++)
        if (strcmp(t->options[i].key, key) == 0)
            return &t->options[i];
    return NULL;
}

/* Says what the key might have been, if anything is near. */
static int refuse_key(const struct conf_table *t, const char *key, struct err *e)
{
    const char **known = mem_array((size_t)t->n_options, sizeof(*known));
    for (int i = 0; i < t->n_options; i++)
        known[i] = t->options[i].key;
    const char *nearest = conf_nearest(key, known, t->n_options);
    mem_free(known);
    if (!nearest)
        return err_set(e, E_INVALID, "unknown option %.100s", key);
    return err_set(e, E_INVALID, "unknown option %.100s, did you mean %s?", key, nearest);
}

int conf_set(const struct conf_table *t, void *config, const char *assignment, struct err *e)
{
    const char *equals = strchr(assignment, '=');
    if (!equals)
        return err_set(e, E_INVALID, "%.200s: expected KEY=VALUE", assignment);
    char *key = str_copy((struct str){assignment, (size_t)(equals - assignment)});
    const struct conf_option *o = find_option(t, key);
    int rc;
    if (!o)
        rc = refuse_key(t, key, e);
    else if ((rc = conf_value_from_text(o, config, equals + 1, e)) < 0)
        err_prefix(e, "%s", o->key);
    mem_free(key);
    return rc;
}

/* ---- The text, before libconfig reads it ---- */

struct scan {
    const char *include_dir;
    int n_files;
    struct err *e;
};

static int scan_file(struct scan *s, const char *path, int depth);

static int count_lines(const char *from, const char *to)
{
    int n = 0;
    for (; from < to; from++)
        n += *from == '\n';
    return n;
}

/* `p` is at a digit (or at a sign before one); returns behind the number, or NULL. */
static const char *scan_number(const char *p, struct err *e)
{
    const char *start = p;
    bool is_signed = *p == '-' || *p == '+';
    p += is_signed;
    bool is_hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X');
    const char *digits = is_hex ? p + 2 : p;
    size_t n = strspn(digits, is_hex ? "0123456789abcdefABCDEF" : "0123456789");
    const char *end = digits + n;
    if (!is_hex && (*end == '.' || *end == 'e' || *end == 'E'))
        return end + 1 + strspn(end + 1, "0123456789eE+-");
    errno = 0;
    long long value = strtoll(start, NULL, is_hex ? 16 : 10);
    bool is_long = *end == 'L';
    if (errno == ERANGE) {
        err_set(e, E_RANGE, "%.*s does not fit 64 bits", (int)(end - start), start);
        return NULL;
    }
    if (!is_long && (value > INT32_MAX || value < INT32_MIN)) {
        err_set(e, E_RANGE, "%.*s needs an L behind it (or write a size as \"8GiB\")",
                (int)(end - start), start);
        return NULL;
    }
    return end + strspn(end, "L");
}

/* `p` is behind the word @include. */
static int scan_include(struct scan *s, const char *p, int depth)
{
    p += strspn(p, " \t");
    size_t len = *p == '"' ? strcspn(++p, "\"\n") : 0;
    if (p[len] != '"' || len == 0)
        return err_set(s->e, E_INVALID, "expected @include \"FILE\"");
    char *name = str_copy((struct str){p, len});
    char *path = mem_format("%s/%s", s->include_dir, name);
    int rc = scan_file(s, path, depth + 1);
    mem_free(path);
    mem_free(name);
    return rc;
}

/* Behind the closing quote, or NULL if there is none. */
static const char *skip_string(const char *p, struct err *e)
{
    for (p++; *p && *p != '"'; p++)
        if (*p == '\\' && p[1])
            p++;
    if (*p)
        return p + 1;
    err_set(e, E_INVALID, "the string that begins here has no end");
    return NULL;
}

static const char *skip_comment(const char *p)
{
    if (p[0] == '/' && p[1] == '*') {
        const char *end = strstr(p + 2, "*/");
        return end ? end + 2 : p + strlen(p);
    }
    return p + strcspn(p, "\n");
}

#define CONF_LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

/* Fills *at with where it stopped when it returns an error. */
static int scan_text(struct scan *s, const char *p, int depth, const char **at)
{
    while (*p) {
        *at = p;
        const char *number = p + (*p == '-' || *p == '+');
        if (*p == '#' || (p[0] == '/' && (p[1] == '/' || p[1] == '*'))) {
            p = skip_comment(p);
        } else if (*p == '"') {
            p = skip_string(p, s->e);
        } else if (strncmp(p, "@include", 8) == 0) {
            int rc = scan_include(s, p + 8, depth);
            if (rc < 0)
                return rc;
            p += 8;
        } else if (*number >= '0' && *number <= '9') {
            p = scan_number(p, s->e);
        } else if (strchr(CONF_LETTERS "*", *p)) {
            p += strspn(p, CONF_LETTERS "0123456789-_*");
        } else {
            p++;
        }
        if (!p)
            return s->e->code;
    }
    return 0;
}

static int scan_file(struct scan *s, const char *path, int depth)
{
    if (depth > CONF_MAX_DEPTH || ++s->n_files > CONF_MAX_FILES)
        return err_set(s->e, E_INVALID, "too many files include each other, the last is %s", path);
    struct buf text = {0};
    int rc = buf_read_file(&text, path, CONF_MAX_FILE_BYTES, s->e);
    if (rc < 0)
        goto out;
    if (strlen(text.data) != text.len) {
        rc = err_set(s->e, E_INVALID, "%s: holds a zero byte", path);
        goto out;
    }
    const char *at = text.data;
    rc = scan_text(s, text.data, depth, &at);
    if (rc < 0)
        err_prefix(s->e, "%s:%d", path, 1 + count_lines(text.data, at));
out:
    buf_fini(&text);
    return rc;
}

/* ---- libconfig's tree ---- */

static int set_scalar(const struct conf_option *o, void *config, const config_setting_t *s,
                      struct err *e)
{
    switch (config_setting_type(s)) {
    case CONFIG_TYPE_INT:
    case CONFIG_TYPE_INT64:
        return conf_value_from_int(o, config, config_setting_get_int64(s), e);
    case CONFIG_TYPE_FLOAT:
        return conf_value_from_float(o, config, config_setting_get_float(s), e);
    case CONFIG_TYPE_BOOL:
        return conf_value_from_bool(o, config, config_setting_get_bool(s), e);
    case CONFIG_TYPE_STRING:
        return conf_value_from_string(o, config, config_setting_get_string(s), e);
    }
    return err_set(e, E_INVALID, "expected one value, found a group or a list");
}

static bool is_group_of_options(const struct conf_table *t, const char *path)
{
    size_t len = strlen(path);
    for (int i = 0; i < t->n_options; i++)
        if (strncmp(t->options[i].key, path, len) == 0 && t->options[i].key[len] == '.')
            return true;
    return false;
}

/* An unknown group is best described by the first option in it. */
static int refuse_setting(const struct conf_table *t, const config_setting_t *s, const char *key,
                          struct err *e)
{
    struct buf full = {0};
    buf_puts(&full, key);
    while (config_setting_is_group(s) && config_setting_length(s) > 0 &&
           full.len < CONF_WORD_BYTES) {
        s = config_setting_get_elem(s, 0);
        buf_printf(&full, ".%s", config_setting_name(s));
    }
    int rc = refuse_key(t, full.data, e);
    buf_fini(&full);
    return rc;
}

struct reader {
    const struct conf_table *table;
    void *config;
    const char *path;
    struct err *e;
};

static int read_setting(const struct reader *r, const config_setting_t *s, const char *key)
{
    const struct conf_option *o = find_option(r->table, key);
    int rc;
    if (!o)
        rc = refuse_setting(r->table, s, key, r->e);
    else if ((rc = set_scalar(o, r->config, s, r->e)) < 0)
        err_prefix(r->e, "%s", key);
    if (rc < 0) {
        const char *file = config_setting_source_file(s);
        err_prefix(r->e, "%s:%u", file ? file : r->path, config_setting_source_line(s));
    }
    return rc;
}

/* `prefix` is "" or ends in a point.  Recursion ends where the table's keys end, however
 * deep the file goes. */
static int read_group(const struct reader *r, const config_setting_t *group, const char *prefix)
{
    struct buf key = {0};
    int rc = 0, n = config_setting_length(group);
    for (int i = 0; i < n && rc == 0; i++) {
        const config_setting_t *s = config_setting_get_elem(group, (unsigned)i);
        buf_reset(&key);
        buf_puts(&key, prefix);
        buf_puts(&key, config_setting_name(s));
        if (config_setting_is_group(s) && is_group_of_options(r->table, key.data)) {
            buf_putc(&key, '.');
            rc = read_group(r, s, key.data);
        } else {
            rc = read_setting(r, s, key.data);
        }
    }
    buf_fini(&key);
    return rc;
}

static int refuse_syntax(const config_t *c, const char *path, struct err *e)
{
    const char *file = config_error_file(c), *text = config_error_text(c);
    return err_set(e, E_INVALID, "%s:%d: %s", file ? file : path, config_error_line(c),
                   text ? text : "not understood");
}

int conf_read_file(const struct conf_table *t, void *config, const char *path, struct err *e)
{
    struct err own = {0};
    const char *slash = strrchr(path, '/');
    char *dir = slash ? str_copy((struct str){path, (size_t)(slash - path)}) : mem_string(".");
    struct scan s = {.include_dir = slash == path ? "/" : dir, .e = e ? e : &own};
    config_t c;
    config_init(&c);
    int rc = scan_file(&s, path, 0);
    if (rc < 0)
        goto out;
    config_set_include_dir(&c, s.include_dir);
    if (config_read_file(&c, path) != CONFIG_TRUE)
        rc = refuse_syntax(&c, path, s.e);
    else
        rc = read_group(&(struct reader){t, config, path, s.e}, config_root_setting(&c), "");
out:
    config_destroy(&c);
    mem_free(dir);
    return rc;
}

/* ---- What a person reads ---- */

static void indent(struct buf *out, int depth)
{
    buf_printf(out, "%*s", depth * 4, "");
}

static void dump_option(const struct conf_option *o, const void *config, int depth, struct buf *out)
{
    const char *dot = strrchr(o->key, '.');
    indent(out, depth);
    buf_printf(out, "# %s\n", o->help);
    indent(out, depth);
    buf_puts(out, "# ");
    conf_value_describe(o, out);
    buf_printf(out, "; default: %s\n", o->fallback && *o->fallback ? o->fallback : "empty");
    indent(out, depth);
    buf_printf(out, "%s = ", dot ? dot + 1 : o->key);
    conf_value_print(o, config, out);
    buf_puts(out, ";\n");
}

/* The options below `prefix`, a group where its first option stands in the table: a group
 * that is written twice is an error to libconfig. */
static void dump_group(const struct conf_table *t, const void *config, struct str prefix, int depth,
                       struct buf *out)
{
    int n_dumped = 0;
    for (int i = 0; i < t->n_options; i++) {
        const struct conf_option *o = &t->options[i];
        if (!str_has_prefix(str_of(o->key), prefix))
            continue;
        const char *rest = o->key + prefix.len, *dot = strchr(rest, '.');
        struct str group = {o->key, dot ? (size_t)(dot + 1 - o->key) : 0};
        bool is_first = true;
        for (int j = 0; dot && j < i; j++)
            is_first = is_first && !str_has_prefix(str_of(t->options[j].key), group);
        if (!is_first)
            continue;
        if (n_dumped++ > 0)
            buf_putc(out, '\n');
        if (!dot) {
            dump_option(o, config, depth, out);
            continue;
        }
        indent(out, depth);
        buf_printf(out, "%.*s = {\n", (int)(dot - rest), rest);
        dump_group(t, config, group, depth + 1, out);
        indent(out, depth);
        buf_puts(out, "};\n");
    }
}

void conf_dump(const struct conf_table *t, const void *config, FILE *out)
{
    struct buf text = {0};
    buf_printf(&text, "# %s: %s\n\n", t->program, t->summary);
    dump_group(t, config, STR(""), 0, &text);
    fputs(text.data, out);
    buf_fini(&text);
}

void conf_help(const struct conf_table *t, FILE *out)
{
    fprintf(out,
            "%s - %s\n\n"
            "usage: %s [-c FILE] [--set KEY=VALUE]... [--check-config] [--dump-config]\n"
            "       [--version] [--help]\n\n"
            "  -c FILE          read a libconfig file; \"a.b\" below is setting b of group a\n"
            "  --set KEY=VALUE  overrides the file; may be repeated\n"
            "  --check-config   only say whether the configuration is sound\n"
            "  --dump-config    print the configuration as a commented file\n\n",
            t->program, t->summary, t->program);
    struct buf text = {0};
    for (int i = 0; i < t->n_options; i++) {
        const struct conf_option *o = &t->options[i];
        buf_printf(&text, "  %s\n      %s\n      ", o->key, o->help);
        conf_value_describe(o, &text);
        buf_printf(&text, "; default: %s\n", o->fallback && *o->fallback ? o->fallback : "empty");
    }
    fputs(buf_str(&text).ptr, out);
    buf_fini(&text);
}

/* ---- The command line ---- */

struct command {
    const char *file;
    const char **sets;
    int n_sets;
    bool is_check, is_dump, is_help, is_version;
};

static int parse_command(struct command *c, int argc, char **argv, struct err *e)
{
    for (int i = 1; i < argc; i++) {
        bool takes_value = strcmp(argv[i], "-c") == 0 || strcmp(argv[i], "--set") == 0;
        if (takes_value && i + 1 == argc)
            return err_set(e, E_INVALID, "%s needs a value, see --help", argv[i]);
        if (strcmp(argv[i], "-c") == 0 && c->file)
            return err_set(e, E_INVALID, "-c was given twice; use @include in the file");
        if (strcmp(argv[i], "-c") == 0)
            c->file = argv[++i];
        else if (takes_value)
            c->sets[c->n_sets++] = argv[++i];
        else if (strcmp(argv[i], "--check-config") == 0)
            c->is_check = true;
        else if (strcmp(argv[i], "--dump-config") == 0)
            c->is_dump = true;
        else if (strcmp(argv[i], "--help") == 0)
            c->is_help = true;
        else if (strcmp(argv[i], "--version") == 0)
            c->is_version = true;
        else
            return err_set(e, E_INVALID, "unknown argument %.100s, see --help", argv[i]);
    }
    return 0;
}

static int load(const struct conf_table *t, void *config, const struct command *c, struct err *e)
{
    int rc = c->file ? conf_read_file(t, config, c->file, e) : 0;
    for (int i = 0; rc == 0 && i < c->n_sets; i++)
        if ((rc = conf_set(t, config, c->sets[i], e)) < 0)
            err_prefix(e, "--set");
    return rc;
}

static void print_plain_version(const struct conf_table *t, FILE *out)
{
    fprintf(out, "%s %s\n", t->program, version_string());
}

/* Reading and setting are over; what is left is what was asked for. */
static enum conf_outcome act(const struct conf_table *t, void *config, const struct command *c,
                             int (*check)(const void *config, struct err *e), struct err *e)
{
    /* Before the check: a file to start from is also wanted while something is missing. */
    if (c->is_dump) {
        conf_dump(t, config, stdout);
        return CONF_DONE;
    }
    if (check && check(config, e) < 0)
        return CONF_MISUSE;
    if (!c->is_check)
        return CONF_RUN;
    printf("%s: the configuration is sound\n", t->program);
    return CONF_DONE;
}

enum conf_outcome conf_main(const struct conf_table *t, void *config, int argc, char **argv,
                            int (*check)(const void *config, struct err *e),
                            void (*print_version)(FILE *out))
{
    struct err e = {0};
    struct command c = {.sets = mem_array((size_t)argc + 1, sizeof(char *))};
    enum conf_outcome outcome = CONF_MISUSE;
    conf_defaults(t, config);
    if (parse_command(&c, argc, argv, &e) < 0)
        goto out;
    outcome = CONF_DONE;
    if (c.is_help)
        conf_help(t, stdout);
    else if (c.is_version && print_version)
        print_version(stdout);
    else if (c.is_version)
        print_plain_version(t, stdout);
    else if (load(t, config, &c, &e) < 0)
        outcome = CONF_MISUSE;
    else
        outcome = act(t, config, &c, check, &e);
out:
    if (outcome == CONF_MISUSE)
        fprintf(stderr, "%s: %s\n", t->program, e.text);
    if (outcome != CONF_RUN)
        conf_fini(t, config);
    mem_free(c.sets);
    return outcome;
}
