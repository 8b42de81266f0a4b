/* tools/keys.c - see keys.h.
 *
 * What this writes is what the programs read (rpc/key.h, rpc/allow.h, rpc/api_key.h); a list is
 * changed by replacing its file, which running programs notice by themselves. */
#include "tools/keys.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/safe_file.h"
#include "rpc/allow.h"
#include "rpc/api_key.h"
#include "rpc/key.h"

enum { EXIT_FAILED = 1, EXIT_MISUSED = 2 };

static const char help[] =
    "usage: polymath keys new NAME... [--dir DIR]\n"
    "       polymath keys show FILE...\n"
    "       polymath keys allow LIST FILE.pub...\n"
    "       polymath keys revoke LIST NAME...\n"
    "       polymath keys api new --name NAME [--file FILE] [--requests N] [--tokens N]\n"
    "                             [--streams N] [--priority 0..9] [--max-priority 0..9]\n"
    "                             [--share N] [--admin]\n"
    "       polymath keys api list [--file FILE]\n"
    "       polymath keys api revoke --name NAME [--file FILE]\n\n"
    "Programs prove who they are with key pairs; clients of the HTTP port with API keys.\n\n"
    "  new     makes NAME.key (secret, mode 0600, stays on its machine) and NAME.pub in DIR (.)\n"
    "  show    prints name and public key of .key and .pub files, or the names of a list\n"
    "  allow   puts public keys on an allow-list (made if it is not there); running programs\n"
    "          read it again by themselves\n"
    "  revoke  takes them off: their connections are refused at the next call\n"
    "  api     the same for API keys; a new one is printed once and stored as a hash.\n"
    "          --requests and --tokens are per minute, --streams at a time; 0 or absent: no\n"
    "          limit.  --admin: may read /metrics, /cluster and /admin.  FILE: api_keys\n\n"
    "A cluster of three machines, with the coordinator on the first:\n\n"
    "  polymath keys new coordinator expert-0 expert-1\n"
    "  polymath keys allow allow expert-0.pub expert-1.pub\n"
    "  coordinator --set security.key_file=coordinator.key --set security.allow_file=allow ...\n"
    "  expert_node --set security.key_file=expert-0.key --set security.server_key=coordinator.pub "
    "...\n\n"
    "Public keys have characters that a shell reads: name files rather than keys.\n"
    "Exit code: 0, 1 (failed), 2 (misused).\n";

static int misused(const char *what)
{
    fprintf(stderr, "polymath keys: %s; polymath keys --help tells how\n", what);
    return EXIT_MISUSED;
}

static int failed(const struct err *e)
{
    fprintf(stderr, "polymath keys: %s\n", e->text);
    return EXIT_FAILED;
}

/* ---- key pairs ------------------------------------------------------------------------- */

static int make_pairs(int n, char **names, const char *dir)
{
    struct err e = {0};
    for (int i = 0; i < n; i++) {
        struct key_pair k;
        int rc = key_pair_new(names[i], &k, &e);
        if (rc == 0)
            rc = key_pair_write(&k, dir, &e);
        explicit_bzero(k.secret_key, sizeof k.secret_key);
        if (rc < 0)
            return failed(&e);
        printf("%s/%s.key  secret: only on the machine of %s\n%s/%s.pub  %s\n", dir, k.name, k.name,
               dir, k.name, k.public_key);
    }
    return 0;
}

static int new_main(int argc, char **argv)
{
    static const struct option options[] = {{"dir", required_argument, NULL, 'd'}, {0}};
    const char *dir = ".";
    optind = 1;
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o != 'd')
            return EXIT_MISUSED;
        dir = optarg;
    }
    if (optind == argc)
        return misused("new: name at least one pair");
    return make_pairs(argc - optind, argv + optind, dir);
}

static int show_file(const char *path, struct err *e)
{
    struct key_pair k;
    struct allow list;
    size_t len = strlen(path);
    if (len > 4 && strcmp(path + len - 4, ".key") == 0) {
        int rc = key_pair_read(path, &k, e);
        if (rc == 0)
            printf("%s %s\n", k.public_key, k.name);
        explicit_bzero(&k, sizeof k);
        return rc;
    }
    int rc = allow_read(path, &list, e);
    for (int i = 0; rc == 0 && i < list.n; i++)
        printf("%s %s\n", list.entries[i].key, list.entries[i].name);
    allow_fini(&list);
    return rc;
}

static int show_main(int argc, char **argv)
{
    struct err e = {0};
    if (argc < 2)
        return misused("show: name at least one file");
    for (int i = 1; i < argc; i++)
        if (show_file(argv[i], &e) < 0)
            return failed(&e);
    return 0;
}

/* ---- allow-lists ------------------------------------------------------------------------ */

/* Comments and order of the list stay: lines are added at its end. */
static int read_list(const char *path, struct buf *text, struct allow *list, struct err *e)
{
    *list = (struct allow){0};
    if (safe_file_stamp(path) == 0)
        return 0;
    int rc = safe_file_read(path, SAFE_FILE_PUBLIC, text, e);
    if (rc == 0)
        rc = allow_parse(buf_str(text), path, list, e);
    if (rc == 0 && text->len > 0 && text->data[text->len - 1] != '\n')
        buf_putc(text, '\n');
    return rc;
}

static int add_public(const char *path, struct buf *text, struct allow *list, struct err *e)
{
    struct allow more;
    int rc = allow_read(path, &more, e);
    if (rc == 0 && more.n == 0)
        rc = err_set(e, E_INVALID, "%s holds no public key", path);
    for (int i = 0; rc == 0 && i < more.n; i++) {
        const struct allow_entry *one = &more.entries[i];
        bool is_there = allow_find(list, one->key) != NULL;
        printf("%s %s\n", one->name, is_there ? "is there already" : "added");
        if (is_there)
            continue;
        allow_add(list, one->key, one->name);
        buf_printf(text, "%s %s\n", one->key, one->name);
    }
    allow_fini(&more);
    return rc;
}

static int allow_main(int argc, char **argv)
{
    if (argc < 3)
        return misused("allow: name a list and at least one .pub file");
    struct buf text = {0};
    struct allow list;
    struct err e = {0};
    int rc = read_list(argv[1], &text, &list, &e);
    for (int i = 2; rc == 0 && i < argc; i++)
        rc = add_public(argv[i], &text, &list, &e);
    if (rc == 0)
        rc = safe_file_replace(argv[1], SAFE_FILE_PUBLIC, buf_str(&text), &e);
    allow_fini(&list);
    buf_fini(&text);
    return rc < 0 ? failed(&e) : 0;
}

/* The text without the lines whose word number `at` (0 or 1) is `name`. */
static int drop_lines(const struct buf *text, int at, const char *name, struct buf *out)
{
    int n_dropped = 0;
    const char *from = text->data, *end = text->data + text->len;
    while (from < end) {
        const char *stop = memchr(from, '\n', (size_t)(end - from));
        size_t len = (size_t)((stop ? stop + 1 : end) - from);
        char *line = str_copy((struct str){from, len}), *rest = NULL;
        const char *words[2] = {strtok_r(line, " \t\r\n", &rest), NULL};
        words[1] = words[0] ? strtok_r(NULL, " \t\r\n", &rest) : NULL;
        if (words[at] && strcmp(words[at], name) == 0)
            n_dropped++;
        else
            buf_append(out, from, len);
        mem_free(line);
        from += len;
    }
    return n_dropped;
}

static int revoke(const char *path, int at, const char *name, struct err *e)
{
    struct buf text = {0}, rest = {0};
    int rc = safe_file_read(path, SAFE_FILE_PUBLIC, &text, e);
    if (rc == 0 && drop_lines(&text, at, name, &rest) == 0)
        rc = err_set(e, E_NOT_FOUND, "%s does not name \"%s\"", path, name);
    if (rc == 0)
        rc = safe_file_replace(path, SAFE_FILE_PUBLIC, buf_str(&rest), e);
    if (rc == 0)
        printf("%s removed\n", name);
    buf_fini(&text);
    buf_fini(&rest);
    return rc;
}

static int revoke_main(int argc, char **argv)
{
    struct err e = {0};
    if (argc < 3)
        return misused("revoke: name a list and at least one name on it");
    for (int i = 2; i < argc; i++)
        if (revoke(argv[1], 1, argv[i], &e) < 0)
            return failed(&e);
    return 0;
}

/* ---- API keys --------------------------------------------------------------------------- */

struct api_options {
    const char *name, *file;
    struct api_key_limits limits;
};

static bool parse_count(const char *text, int64_t most, int64_t *out)
{
    char *end;
    long long value = strtoll(text, &end, 10);
    *out = value;
    return end != text && *end == '\0' && value >= 0 && value <= most;
}

static int parse_api(int argc, char **argv, struct api_options *out)
{
    static const struct option options[] = {{"name", required_argument, NULL, 'n'},
                                            {"file", required_argument, NULL, 'f'},
                                            {"requests", required_argument, NULL, 'r'},
                                            {"tokens", required_argument, NULL, 't'},
                                            {"streams", required_argument, NULL, 's'},
                                            {"priority", required_argument, NULL, 'p'},
                                            {"max-priority", required_argument, NULL, 'm'},
                                            {"share", required_argument, NULL, 'w'},
                                            {"admin", no_argument, NULL, 'a'},
                                            {0}};
    *out = (struct api_options){.file = "api_keys", .limits = {.priority = API_KEY_PRIORITIES / 2}};
    int64_t priority = out->limits.priority, most = 0, share = 1;
    bool is_good = true;
    optind = 1;
    for (int o; is_good && (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
        case 'n':
            out->name = optarg;
            break;
        case 'f':
            out->file = optarg;
            break;
        case 'r':
            is_good = parse_count(optarg, INT32_MAX, &out->limits.requests_per_minute);
            break;
        case 't':
            is_good = parse_count(optarg, (int64_t)1 << 40, &out->limits.tokens_per_minute);
            break;
        case 's':
            is_good = parse_count(optarg, INT32_MAX, &out->limits.streams);
            break;
        case 'p':
            is_good = parse_count(optarg, API_KEY_PRIORITIES - 1, &priority);
            break;
        case 'm':
            is_good = parse_count(optarg, API_KEY_PRIORITIES - 1, &most);
            break;
        case 'w':
            is_good = parse_count(optarg, API_KEY_MOST_SHARE, &share) && share > 0;
            break;
        case 'a':
            out->limits.is_admin = true;
            break;
        default:
            return EXIT_MISUSED;
        }
    }
    out->limits.priority = (int)priority;
    out->limits.max_priority = (int)most;
    out->limits.share = (int)share;
    if (!is_good)
        return misused("api: a limit is a whole number");
    return optind < argc ? misused("api: an argument too many") : 0;
}

static int add_api_key(const struct api_options *o, struct err *e)
{
    struct api_key_line line = {.limits = o->limits}, *lines = NULL;
    char key[API_KEY_TEXT_BYTES] = "";
    struct buf text = {0};
    int n = 0, rc = 0;
    snprintf(line.name, sizeof line.name, "%s", o->name);
    if (safe_file_stamp(o->file) != 0)
        rc = safe_file_read(o->file, SAFE_FILE_PUBLIC, &text, e);
    if (rc == 0 && text.len > 0 && text.data[text.len - 1] != '\n')
        buf_putc(&text, '\n');
    if (rc == 0) {
        api_key_make(&line, key);
        api_key_print(&line, &text);
        /* Read as the coordinator will: a name that is there already is refused here. */
        rc = api_key_parse(buf_str(&text), o->file, &lines, &n, e);
    }
    if (rc == 0)
        rc = safe_file_replace(o->file, SAFE_FILE_PUBLIC, buf_str(&text), e);
    if (rc == 0) {
        fprintf(stderr, "%s now lets \"%s\" in.  This is its key; it is shown once:\n", o->file,
                o->name);
        printf("%s\n", key);
    }
    explicit_bzero(key, sizeof key);
    mem_free(lines);
    buf_fini(&text);
    return rc;
}

static int list_api_keys(const char *path, struct err *e)
{
    struct api_key_line *lines = NULL;
    int n = 0, rc = api_key_read(path, &lines, &n, e);
    if (rc == 0)
        printf("%-24s %12s %14s %8s %8s %6s %6s  %s\n", "name", "requests/min", "tokens/min",
               "streams", "priority", "most", "share", "admin");
    for (int i = 0; rc == 0 && i < n; i++) {
        const struct api_key_limits *l = &lines[i].limits;
        printf("%-24s %12lld %14lld %8lld %8d %6d %6d  %s\n", lines[i].name,
               (long long)l->requests_per_minute, (long long)l->tokens_per_minute,
               (long long)l->streams, l->priority,
               l->max_priority > l->priority ? l->max_priority : l->priority, l->share,
               l->is_admin ? "yes" : "no");
    }
    mem_free(lines);
    return rc;
}

static int api_main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    struct api_options o;
    struct err e = {0};
    bool is_new = strcmp(verb, "new") == 0, is_revoke = strcmp(verb, "revoke") == 0;
    if (!is_new && !is_revoke && strcmp(verb, "list") != 0)
        return misused("api: expected new, list or revoke");
    int code = parse_api(argc - 1, argv + 1, &o);
    if (code != 0)
        return code;
    if ((is_new || is_revoke) && !o.name)
        return misused("api: --name is missing");
    if (is_new && !key_name_is_valid(o.name))
        return misused("api: a name has 1 to 63 letters, digits, '.', '_', '-'");
    int rc = is_new      ? add_api_key(&o, &e)
             : is_revoke ? revoke(o.file, 0, o.name, &e)
                         : list_api_keys(o.file, &e);
    return rc < 0 ? failed(&e) : 0;
}

int keys_main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*main)(int argc, char **argv);
    } verbs[] = {{"new", new_main},
                 {"show", show_main},
                 {"allow", allow_main},
                 {"revoke", revoke_main},
                 {"api", api_main}};
    const char *verb = argc > 1 ? argv[1] : "";
    if (strcmp(verb, "--help") == 0) {
        fputs(help, stdout);
        return 0;
    }
    for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++)
        if (strcmp(verb, verbs[i].name) == 0)
            return verbs[i].main(argc - 1, argv + 1);
    return misused("expected new, show, allow, revoke or api");
}
