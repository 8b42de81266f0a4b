/* tools/status_text.c - see status_text.h. */
#include "tools/status_text.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "tools/cluster_view.h"

static bool is_set(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key));
}

static void append_bytes(struct buf *out, long long bytes)
{
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    double n = (double)bytes / 1024;
    for (; n >= 1024 && unit < 3; unit++)
        n /= 1024;
    if (bytes < 1024)
        buf_printf(out, "%lld B", bytes);
    else
        buf_printf(out, "%.1f %s", n, units[unit]);
}

/* ---- text of others: any length, any characters ---------------------------------------------- */

/* Of a character's bytes in UTF-8 all but the first. */
static bool is_tail(char c)
{
    return ((unsigned char)c & 0xc0) == 0x80;
}

static int columns_of(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += !is_tail(*text);
    return n;
}

/* At most so many columns, '~' where something is cut off; nothing that a terminal would obey. */
static void append_clipped(struct buf *out, const char *text, int columns)
{
    int n = columns_of(text), keep = n > columns ? columns - 1 : n, at = 0;
    for (const char *c = text; *c; c++) {
        at += !is_tail(*c);
        if (at > keep)
            break;
        buf_putc(out, (unsigned char)*c < ' ' || *c == 127 ? '?' : *c);
    }
    if (keep < n)
        buf_putc(out, '~');
}

/* ---- builds ---------------------------------------------------------------------------------- */

enum { MAX_BUILDS = 26, NAMED_NODES = 12 };

struct builds {
    const char *texts[MAX_BUILDS]; /* the coordinator's first; borrowed */
    int n;
};

/* The letter of a build that is new to the list is the next one; '?': of one too many. */
static char letter_of(struct builds *b, const char *build)
{
    int i = 0;
    while (i < b->n && strcmp(b->texts[i], build) != 0)
        i++;
    if (i == MAX_BUILDS)
        return '?';
    if (i == b->n)
        b->texts[b->n++] = build;
    return (char)('A' + i);
}

/* One that is gone runs nothing any more. */
static bool is_there(const json_t *node)
{
    return strcmp(cluster_view_text(node, "state"), "gone") != 0;
}

static void find_builds(const json_t *root, struct builds *b)
{
    size_t i;
    const json_t *node;
    *b = (struct builds){0};
    letter_of(b, cluster_view_text(root, "version"));
    json_array_foreach(json_object_get(root, "nodes"), i, node) if (is_there(node))
        letter_of(b, cluster_view_text(node, "build"));
}

/* Appends ", NAME", on a new line where this one is full. */
static void append_name(struct buf *out, size_t *line_start, const char *name)
{
    struct buf clipped = {0};
    append_clipped(&clipped, name, 40);
    int used = columns_of(out->data + *line_start);
    if (used + 2 + columns_of(clipped.data) + 1 > STATUS_TEXT_COLUMNS) {
        buf_puts(out, ",\n");
        *line_start = out->len;
        buf_puts(out, "      ");
    } else {
        buf_puts(out, ", ");
    }
    buf_append_str(out, buf_str(&clipped));
    buf_fini(&clipped);
}

/* Who runs it; the coordinator's is the first. */
static void append_build(struct buf *out, const json_t *root, struct builds *b, int which)
{
    size_t i, line_start = out->len;
    const json_t *node;
    int n = 0;
    buf_printf(out, "    %c ", 'A' + which);
    append_clipped(out, b->texts[which][0] ? b->texts[which] : "not told", 60);
    if (which == 0)
        buf_puts(out, ", this coordinator");
    json_array_foreach(json_object_get(root, "nodes"), i,
                       node) if (is_there(node) &&
                                 letter_of(b, cluster_view_text(node, "build")) == 'A' + which)
    {
        if (n++ < NAMED_NODES)
            append_name(out, &line_start, cluster_view_text(node, "name"));
    }
    if (n > NAMED_NODES)
        buf_printf(out, " and %d more", n - NAMED_NODES);
    buf_putc(out, '\n');
}

static void append_builds(struct buf *out, const json_t *root, struct builds *b)
{
    if (b->n < 2)
        return;
    buf_printf(out, "  %d builds run, as in a rolling upgrade:\n", b->n);
    for (int i = 0; i < b->n; i++)
        append_build(out, root, b, i);
}

/* ---- the table of nodes ---------------------------------------------------------------------- */

enum { NAME, ROLE, STATE, HOST, RACK, HOLDS, MEMORY, READS, SEEN, BUILD, COLUMNS };
static const struct column {
    const char *title;
    bool is_right;
    int least; /* 0: never clipped */
} columns[COLUMNS] = {
    [NAME] = {"node", false, 7},    [ROLE] = {"role", false, 0}, [STATE] = {"state", false, 0},
    [HOST] = {"host", false, 7},    [RACK] = {"rack", false, 7}, [HOLDS] = {"experts/KV", false, 0},
    [MEMORY] = {"memory", true, 0}, [READS] = {"GB/s", true, 0}, [SEEN] = {"seen ms", true, 0},
    [BUILD] = {"build", false, 0}};

struct row {
    struct buf cells[COLUMNS];
};

static void fill_row(struct row *r, const json_t *node, struct builds *b)
{
    long long reads = cluster_view_number(node, "read_bytes_s");
    static const char *const copied[] = {
        [NAME] = "name", [ROLE] = "role", [STATE] = "state", [HOST] = "host", [RACK] = "rack"};
    *r = (struct row){0};
    for (int i = NAME; i <= RACK; i++)
        buf_puts(&r->cells[i], cluster_view_text(node, copied[i]));
    if (strcmp(cluster_view_text(node, "role"), "expert") == 0) {
        buf_printf(&r->cells[HOLDS], "%lld/%lld", cluster_view_number(node, "experts_held"),
                   cluster_view_number(node, "experts_wanted"));
        append_bytes(&r->cells[MEMORY], cluster_view_number(node, "held_bytes"));
    } else if (strcmp(cluster_view_text(node, "role"), "context") == 0) {
        buf_printf(&r->cells[HOLDS], "%lld lent", cluster_view_number(node, "kv_pages_lent"));
        append_bytes(&r->cells[MEMORY], cluster_view_number(node, "memory_bytes"));
    } else {
        buf_printf(&r->cells[HOLDS], "%lld free", cluster_view_number(node, "kv_pages_free"));
        buf_puts(&r->cells[MEMORY], "-");
    }
    if (reads > 0)
        buf_printf(&r->cells[READS], "%.1f", (double)reads / 1e9);
    else
        buf_puts(&r->cells[READS], "-");
    buf_printf(&r->cells[SEEN], "%lld", cluster_view_number(node, "heartbeat_age_ms"));
    if (b->n > 1 && is_there(node))
        buf_putc(&r->cells[BUILD], letter_of(b, cluster_view_text(node, "build")));
}

/* As wide as what is in it, 0 where there is nothing; then names give way, the longest first. */
static void find_widths(const struct row *rows, size_t n, int widths[COLUMNS])
{
    int total = 0;
    for (int c = 0; c < COLUMNS; c++) {
        widths[c] = 0;
        for (size_t i = 0; i < n; i++)
            if (rows[i].cells[c].len > 0 && columns_of(rows[i].cells[c].data) > widths[c])
                widths[c] = columns_of(rows[i].cells[c].data);
        if (widths[c] > 0 && columns_of(columns[c].title) > widths[c])
            widths[c] = columns_of(columns[c].title);
        total += widths[c] > 0 ? 2 + widths[c] : 0;
    }
    for (; total > STATUS_TEXT_COLUMNS; total--) {
        int longest = -1;
        for (int c = 0; c < COLUMNS; c++)
            if (columns[c].least > 0 && widths[c] > columns[c].least &&
                (longest < 0 || widths[c] > widths[longest]))
                longest = c;
        if (longest < 0)
            return;
        widths[longest]--;
    }
}

static void append_cell(struct buf *out, const struct column *c, int width, const char *text)
{
    int n = columns_of(text), pad = n < width ? width - n : 0;
    if (width == 0)
        return;
    buf_printf(out, "  %*s", c->is_right ? pad : 0, "");
    append_clipped(out, text, width);
    buf_printf(out, "%*s", c->is_right ? 0 : pad, "");
}

static void end_line(struct buf *out)
{
    while (out->len > 0 && out->data[out->len - 1] == ' ')
        out->len--;
    buf_putc(out, '\n');
}

static void append_nodes(struct buf *out, const json_t *nodes, struct builds *b)
{
    size_t n = json_array_size(nodes);
    int widths[COLUMNS];
    struct row *rows = mem_array(n + 1, sizeof *rows);
    for (size_t i = 0; i < n; i++)
        fill_row(&rows[i], json_array_get(nodes, i), b);
    find_widths(rows, n, widths);
    for (int c = 0; c < COLUMNS && n > 0; c++)
        append_cell(out, &columns[c], widths[c], columns[c].title);
    end_line(out);
    for (size_t i = 0; i < n; i++) {
        for (int c = 0; c < COLUMNS; c++) {
            append_cell(out, &columns[c], widths[c],
                        rows[i].cells[c].data ? rows[i].cells[c].data : "");
            buf_fini(&rows[i].cells[c]);
        }
        end_line(out);
    }
    mem_free(rows);
}

/* ---- the token log and its copies --------------------------------------------------------------- */

static void append_log(struct buf *out, const json_t *log)
{
    long long all = cluster_view_number(log, "records");
    long long done = cluster_view_number(log, "on_record");
    if (!log)
        return;
    buf_printf(out, "  token log %s: %lld of %lld records since the start, ",
               is_set(log, "synced") ? "on disk" : "handed to the system", done, all);
    append_bytes(out, cluster_view_number(log, "bytes"));
    buf_puts(out, " of at most ");
    append_bytes(out, cluster_view_number(log, "max_bytes"));
    buf_putc(out, '\n');
    if (json_object_get(log, "stopped"))
        buf_printf(out, "  the token log has stopped: %s\n", cluster_view_text(log, "stopped"));
}

static void append_standby(struct buf *out, const json_t *standby)
{
    long long has = cluster_view_number(standby, "has_bytes");
    long long lacks = cluster_view_number(standby, "lag_bytes");
    buf_puts(out, "  standby ");
    append_clipped(out, cluster_view_text(standby, "name"), 30);
    buf_printf(out, ": %s, has ", is_set(standby, "in_step") ? "in step" : "catching up");
    append_bytes(out, has);
    if (lacks > 0) {
        buf_puts(out, " of ");
        append_bytes(out, has + lacks);
        buf_puts(out, " of the token log\n");
    } else {
        buf_puts(out, ", which is all of the token log\n");
    }
}

/* Of a coordinator that stands by with a log of its own: what it knows of the leader's. */
static void append_copy(struct buf *out, const json_t *copy)
{
    long long age_ms = cluster_view_number(copy, "age_ms");
    if (!copy)
        return;
    buf_puts(out, "  copies the token log of ");
    append_clipped(
        out, *cluster_view_text(copy, "leader") ? cluster_view_text(copy, "leader") : "nobody yet",
        30);
    buf_puts(out, ": ");
    append_bytes(out, cluster_view_number(copy, "bytes"));
    if (age_ms >= 0)
        buf_printf(out, " so far, last heard of %lld ms ago\n", age_ms);
    else
        buf_puts(out, " so far\n");
}

/* Only where there are several coordinators. */
static void append_leadership(struct buf *out, const json_t *o)
{
    size_t i;
    const json_t *standby;
    if (!json_object_get(o, "etcd"))
        return;
    buf_printf(out, "  this coordinator: %s; leader: %s %s; etcd: %s\n",
               cluster_view_text(o, "role"), cluster_view_text(o, "leader"),
               cluster_view_text(o, "leader_url"), cluster_view_text(o, "etcd"));
    json_array_foreach(json_object_get(o, "standbys"), i, standby) append_standby(out, standby);
    append_copy(out, json_object_get(o, "copy"));
}

/* ---- all of it ---------------------------------------------------------------------------------- */

/* Copies, and what is under way. */
static void append_placement(struct buf *out, const json_t *p)
{
    const json_t *replicas = json_object_get(p, "replicas");
    char wish[24] = "auto";
    if (json_is_integer(replicas))
        snprintf(wish, sizeof wish, "%lld", (long long)json_integer_value(replicas));
    buf_printf(out, "  copies: %lld live, at least %lld of each (wish %s, memory gives %lld); ",
               cluster_view_number(p, "copies"), cluster_view_number(p, "lowest"), wish,
               cluster_view_number(p, "wanted_lowest"));
    if (is_set(p, "settled")) {
        buf_puts(out, "nothing moves\n");
        return;
    }
    buf_printf(out, "%lld to load (", cluster_view_number(p, "to_load"));
    append_bytes(out, cluster_view_number(p, "to_load_bytes"));
    buf_printf(out, "), %lld to give up\n", cluster_view_number(p, "retiring"));
}

void status_text(const json_t *root, struct buf *out)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *coverage = json_object_get(root, "coverage");
    const json_t *requests = json_object_get(root, "requests");
    struct builds builds;

    find_builds(root, &builds);
    buf_printf(out, "%s: %s%s\n", cluster_view_text(model, "name"),
               is_set(root, "ready") ? "ready" : "not ready: ",
               is_set(root, "ready") ? "" : cluster_view_text(root, "reason"));
    buf_printf(out, "  epoch %lld, experts %lld of %lld placed, fingerprint %s\n",
               cluster_view_number(root, "epoch"), cluster_view_number(coverage, "live"),
               cluster_view_number(coverage, "experts"), cluster_view_text(model, "fingerprint"));
    buf_printf(out, "  weights %s, combine %s\n", cluster_view_text(model, "format"),
               cluster_view_text(model, "combine"));
    append_leadership(out, json_object_get(root, "leadership"));
    append_log(out, json_object_get(root, "token_log"));
    append_placement(out, json_object_get(root, "placement"));
    buf_printf(out, "  requests: %lld running, %lld queued\n",
               cluster_view_number(requests, "running"), cluster_view_number(requests, "queued"));
    append_builds(out, root, &builds);
    buf_putc(out, '\n');
    append_nodes(out, json_object_get(root, "nodes"), &builds);
}
