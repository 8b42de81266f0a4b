/* tools/status_forecast.c - see status_forecast.h. */
#include "tools/status_forecast.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "tools/plan_options.h"

enum { N_STEPS = 40, MOST_ROWS = 4096 };
#define NEAR_US 60
#define FAR_US 200

static double number_of(const json_t *root, const char *object, const char *key)
{
    return json_number_value(json_object_get(json_object_get(root, object), key));
}

/* ---- what was seen ------------------------------------------------------------------------- */

static void see_steps(const json_t *before, const json_t *after, struct status_forecast *out)
{
    double n = number_of(after, "steps", "count") - number_of(before, "steps", "count");
    bool is_interval = n > 0;
    double since[5];
    static const char *const keys[5] = {"count", "rows", "attention_us", "experts_us", "head_us"};
    for (int i = 0; i < 5; i++)
        since[i] = number_of(after, "steps", keys[i]) -
                   (is_interval ? number_of(before, "steps", keys[i]) : 0);
    *out = (struct status_forecast){.n_steps = (long long)since[0]};
    if (since[0] <= 0)
        return;
    out->rows = since[1] / since[0];
    out->seen_attention_ms = (since[2] + since[4]) / since[0] / 1e3;
    out->seen_experts_ms = since[3] / since[0] / 1e3;
    out->seen_ms = out->seen_attention_ms + out->seen_experts_ms;
    out->seen_tokens_s = out->seen_ms > 0 ? 1e3 * out->rows / out->seen_ms : 0;
}

/* ---- the cluster as plan_hosts.h has it ------------------------------------------------------ */

static bool is_expert(const json_t *node)
{
    const char *role = json_string_value(json_object_get(node, "role"));
    const char *state = json_string_value(json_object_get(node, "state"));
    return role && strcmp(role, "expert") == 0 && state && strcmp(state, "gone") != 0;
}

static struct plan_host *host_named(struct plan_hosts *h, const char *name)
{
    for (int i = 0; i < h->n_hosts; i++)
        if (strcmp(h->hosts[i].name, name) == 0)
            return &h->hosts[i];
    struct plan_host *host = &h->hosts[h->n_hosts++];
    snprintf(host->name, sizeof host->name, "%.*s", (int)sizeof host->name - 1, name);
    return host;
}

static int hosts_of(const json_t *nodes, double round_trip_us, struct plan_hosts *out,
                    struct err *e)
{
    size_t i, n = json_array_size(nodes);
    const json_t *node;
    *out = (struct plan_hosts){.hosts = mem_array(n + 1, sizeof *out->hosts)};
    json_array_foreach(nodes, i, node)
    {
        const char *name = json_string_value(json_object_get(node, "host"));
        if (!is_expert(node) || !name)
            continue;
        struct plan_host *host = host_named(out, name);
        host->nodes++;
        out->n_nodes++;
        host->memory_bytes += json_integer_value(json_object_get(node, "memory_bytes"));
        /* Nodes of one machine start, and so measure, at about the same time: each found its part. */
        host->read_bytes_s += json_number_value(json_object_get(node, "read_bytes_s"));
    }
    if (out->n_nodes == 0)
        return err_set(e, E_INVALID, "no expert node is there to reckon with");
    double trip_us = round_trip_us > 0 ? round_trip_us : out->n_hosts == 1 ? NEAR_US : FAR_US;
    for (int k = 0; k < out->n_hosts; k++) {
        struct plan_host *host = &out->hosts[k];
        host->wire_bytes_s = 10e9 / 8;
        host->round_trip_ns = trip_us * 1e3;
        if (host->read_bytes_s <= 0)
            return err_set(e, E_INVALID, "the nodes of %s did not tell how fast they read",
                           host->name);
    }
    return 0;
}

/* ---- both ------------------------------------------------------------------------------------ */

static int reckon(const json_t *after, const struct plan_options *o, const struct plan_hosts *hosts,
                  struct status_forecast *out, struct err *e)
{
    struct plan_model model;
    struct trace *trace = NULL;
    struct forecast f;
    struct forecast_step step;
    int rc = plan_model_open(NULL, o->dir, o->format, &model, e);
    if (rc == 0)
        rc = trace_open(NULL, &model, o->skew, o->seed, &trace, e);
    struct forecast_options options = plan_forecast_options(o, hosts);
    int sides = (int)json_integer_value(json_object_get(after, "attention_sides"));
    options.n_sides = sides > 0 ? sides : 1;
    if (rc == 0)
        rc = forecast_open(&model, hosts, trace, &options, &f, e);
    if (rc == 0) {
        /* A step is one side's: n_sides of them at a time share the nodes. */
        double rows = fmin(fmax(round(out->rows), 1), MOST_ROWS / options.n_sides);
        forecast_run(&f, (int)rows * options.n_sides, (double)o->context, N_STEPS, &step);
        out->told_attention_ms = step.attention_ms;
        out->told_experts_ms = step.network_ms + step.experts_ms;
        out->told_ms = step.step_ms;
        out->told_tokens_s = out->told_ms > 0 ? 1e3 * rows / out->told_ms : 0;
        forecast_close(&f);
    }
    trace_close(&trace);
    return rc;
}

int status_forecast(const json_t *before, const json_t *after, const char *model_dir,
                    double round_trip_us, struct status_forecast *out, struct err *e)
{
    struct plan_options o;
    struct plan_hosts hosts;
    see_steps(before, after, out);
    if (out->n_steps == 0)
        return 0;
    plan_options_defaults(&o);
    o.preset = NULL;
    o.dir = model_dir;
    o.context = 0; /* what streams hold is not known here; the weights are most of a step */
    const json_t *wish = json_object_get(json_object_get(after, "placement"), "replicas");
    o.replicas = json_is_integer(wish) ? (int)json_integer_value(wish) : 0;
    const char *format =
        json_string_value(json_object_get(json_object_get(after, "model"), "format"));
    o.format = format ? format : o.format;
    int rc = hosts_of(json_object_get(after, "nodes"), round_trip_us, &hosts, e);
    if (rc == 0)
        rc = reckon(after, &o, &hosts, out, e);
    plan_hosts_close(&hosts);
    return rc;
}
