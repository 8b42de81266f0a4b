/* tools/plan_hosts.c - see plan_hosts.h. */
#include "tools/plan_hosts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/conf.h"
#include "base/mem.h"
#include "base/thread.h"
#include "engine/read_probe.h"
#include "rpc/wire.h"

enum { MAX_LINE = 512, MEASURE_MS = 300, MAX_FILE_BYTES = 1 << 20 };
#define GIB (1024.0 * 1024 * 1024)
#define TIB (1024 * GIB)

/* One line of a file. */
struct kind {
    char *name, *rack;
    int64_t count, memory_bytes, nodes;
    double read_gb_s, wire_gbit, round_trip_us;
};

#define AT(field) offsetof(struct kind, field)
static const struct conf_option fields[] = {
    {"name", CONF_STRING, AT(name), "host", 0, 0, NULL, "of the machine"},
    {"rack", CONF_STRING, AT(rack), "", 0, 0, NULL, "machines that may be lost together"},
    {"count", CONF_INT, AT(count), "1", 1, PLAN_MAX_HOSTS, NULL, "machines of this kind"},
    {"memory", CONF_BYTES, AT(memory_bytes), "0", 0, 64 * TIB, NULL, "for experts"},
    {"nodes", CONF_INT, AT(nodes), "1", 1, 64, NULL, "expert nodes on each"},
    {"read_gb_s", CONF_FLOAT, AT(read_gb_s), "0.0", 0, 1e6, NULL, "of its memory; 0: measured"},
    {"wire_gbit", CONF_FLOAT, AT(wire_gbit), "0.0", 0, 1e6, NULL, "of its network"},
    {"round_trip_us", CONF_FLOAT, AT(round_trip_us), "0.0", 0, 1e7, NULL, "to it and back"},
};
static const struct conf_table kinds = {.program = "polymath plan",
                                        .summary = "machines",
                                        .options = fields,
                                        .n_options = sizeof fields / sizeof fields[0]};

int plan_measure(struct plan_defaults *d, struct err *e)
{
    if (d->read_bytes_s > 0)
        return 0;
    int n_threads = d->n_threads > 0 ? d->n_threads : thread_cpu_count();
    struct pool *pool = pool_new(n_threads, POOL_FREE);
    struct read_probe *p = read_probe_open(pool, kernels_best(), read_probe_bytes(n_threads));
    if (p)
        d->read_bytes_s = read_probe_best(p, clock_now_ns, MEASURE_MS * CLOCK_MS);
    read_probe_close(&p);
    pool_free(&pool);
    return d->read_bytes_s > 0 ? 0 : err_set(e, E_NOMEM, "no memory to measure its speed with");
}

static int add(struct plan_hosts *h, const struct kind *k, struct plan_defaults *d, struct err *e)
{
    double read = k->read_gb_s * 1e9;
    int rc = read > 0 ? 0 : plan_measure(d, e);
    if (rc < 0)
        return rc;
    if (h->n_hosts + k->count > PLAN_MAX_HOSTS || h->n_nodes + k->count * k->nodes > WIRE_MAX_NODES)
        return err_set(e, E_RANGE, "more than %d machines or %d nodes", PLAN_MAX_HOSTS,
                       WIRE_MAX_NODES);
    h->hosts = mem_resize(h->hosts, (size_t)(h->n_hosts + k->count) * sizeof *h->hosts);
    for (int64_t i = 0; i < k->count; i++) {
        struct plan_host *host = &h->hosts[h->n_hosts++];
        *host = (struct plan_host){
            .memory_bytes = k->memory_bytes,
            .read_bytes_s = read > 0 ? read : d->read_bytes_s,
            .wire_bytes_s = (k->wire_gbit > 0 ? k->wire_gbit : d->wire_gbit) * 1e9 / 8,
            .round_trip_ns = 1e3 * (k->round_trip_us > 0 ? k->round_trip_us : d->round_trip_us),
            .nodes = (int)k->nodes,
            .is_measured = read <= 0,
        };
        snprintf(host->name, sizeof host->name, k->count > 1 ? "%.30s-%d" : "%.30s", k->name,
                 (int)i + 1);
        snprintf(host->rack, sizeof host->rack, "%s", k->rack[0] ? k->rack : host->name);
        h->n_nodes += host->nodes;
    }
    return 0;
}

static int read_line(char *line, struct plan_defaults *d, struct plan_hosts *out, struct err *e)
{
    struct kind k = {0};
    char *rest = NULL, *word = strtok_r(line, " \t\r", &rest);
    if (!word || word[0] == '#')
        return 0;
    int rc = 0;
    conf_defaults(&kinds, &k);
    for (; word && word[0] != '#' && rc == 0; word = strtok_r(NULL, " \t\r", &rest))
        rc = conf_set(&kinds, &k, word, e);
    if (rc == 0 && k.memory_bytes == 0)
        rc = err_set(e, E_INVALID, "memory is missing");
    if (rc == 0)
        rc = add(out, &k, d, e);
    conf_fini(&kinds, &k);
    return rc;
}

static int read_file(const char *path, struct plan_defaults *d, struct plan_hosts *out,
                     struct err *e)
{
    struct buf text = {0};
    int rc = buf_read_file(&text, path, MAX_FILE_BYTES, e), number = 0;
    for (char *line = text.data; line && rc == 0;) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        number++;
        rc = read_line(line, d, out, e);
        if (rc < 0)
            err_prefix(e, "%s:%d", path, number);
        line = end ? end + 1 : NULL;
    }
    buf_fini(&text);
    if (rc == 0 && out->n_hosts == 0)
        rc = err_set(e, E_INVALID, "%s: names no machine", path);
    return rc;
}

/* "4x64@80" */
static int read_item(const char *item, struct plan_defaults *d, struct plan_hosts *out,
                     struct err *e)
{
    char *end;
    struct kind k = {.name = mem_format("host-%d", out->n_hosts + 1), .nodes = 1, .count = 1};
    k.rack = mem_string("");
    double number = strtod(item, &end);
    if (end != item && *end == 'x') {
        k.count = (int64_t)number;
        const char *from = end + 1;
        number = strtod(from, &end);
    }
    k.memory_bytes = number > 0 && number * GIB < 64 * TIB ? (int64_t)(number * GIB) : 0;
    /* strtod() would read 0x64 as a hundred. */
    bool is_good =
        item[0] != '0' && k.count >= 1 && k.count <= PLAN_MAX_HOSTS && k.memory_bytes > 0;
    if (*end == '@') {
        const char *from = end + 1;
        k.read_gb_s = strtod(from, &end);
        is_good = is_good && k.read_gb_s > 0;
    }
    int rc = is_good && *end == '\0'
                 ? add(out, &k, d, e)
                 : err_set(e, E_INVALID, "\"%s\": expected COUNTxGIB@GB/S, such as 4x64@80", item);
    mem_free(k.name);
    mem_free(k.rack);
    return rc;
}

static int read_list(const char *list, struct plan_defaults *d, struct plan_hosts *out,
                     struct err *e)
{
    char *copy = mem_string(list), *rest = NULL;
    int rc = 0;
    for (char *item = strtok_r(copy, ",", &rest); item && rc == 0;
         item = strtok_r(NULL, ",", &rest))
        rc = read_item(item, d, out, e);
    mem_free(copy);
    if (rc == 0 && out->n_hosts == 0)
        rc = err_set(e, E_INVALID, "--hosts names no machine");
    return rc;
}

int plan_hosts_equal(int n, int64_t memory_bytes, struct plan_defaults *d, struct plan_hosts *out,
                     struct err *e)
{
    char name[] = "host", rack[] = "";
    *out = (struct plan_hosts){0};
    struct kind k = {
        .name = name, .rack = rack, .count = n, .memory_bytes = memory_bytes, .nodes = 1};
    return add(out, &k, d, e);
}

int plan_hosts_open(const char *list, const char *path, struct plan_defaults *d,
                    struct plan_hosts *out, struct err *e)
{
    *out = (struct plan_hosts){0};
    int rc = path   ? read_file(path, d, out, e)
             : list ? read_list(list, d, out, e)
                    : plan_hosts_equal(1, (int64_t)(mem_available_bytes() / 10 * 8), d, out, e);
    if (rc < 0)
        plan_hosts_close(out);
    return rc;
}

void plan_hosts_close(struct plan_hosts *h)
{
    mem_free(h->hosts);
    *h = (struct plan_hosts){0};
}
