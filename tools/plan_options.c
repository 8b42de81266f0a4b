/* tools/plan_options.c - see plan_options.h. */
#include "tools/plan_options.h"

#include <stdlib.h>
#include <string.h>

enum { FAN_OUT_NS = 15000 }; /* of polymath bench rpc: what each further node adds to a round */

void plan_options_defaults(struct plan_options *o)
{
    *o = (struct plan_options){.preset = "m2",
                               .format = "native,kv=bf16",
                               .efficiency = 0.8,
                               .skew = 0.5,
                               .n_sides = 1,
                               .context = 4096,
                               .seed = 1,
                               .defaults = {.wire_gbit = 10, .round_trip_us = 200}};
}

static bool read_number(const char *text, double least, double most, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= least && value <= most))
        return false;
    *out = value;
    return true;
}

static bool read_whole(const char *text, double least, double most, int64_t *out)
{
    double value = 0;
    bool is_good = read_number(text, least, most, &value) && value == (double)(int64_t)value;
    if (is_good)
        *out = (int64_t)value;
    return is_good;
}

/* "32" or "32+64+64", in GiB: a side's, and what others lend it. */
static bool read_kv(const char *text, struct plan_kv *out)
{
    const double gib = 1024.0 * 1024 * 1024;
    *out = (struct plan_kv){0};
    for (int i = 0; i <= PLAN_MAX_LENDERS; i++) {
        char *end;
        double amount = strtod(text, &end);
        if (end == text || !(amount > 0) || amount > 1e6 || (*end && *end != '+'))
            return false;
        if (i == 0)
            out->own_bytes = (int64_t)(amount * gib);
        else
            out->lent_bytes[out->n_lenders++] = (int64_t)(amount * gib);
        if (*end == 0)
            return true;
        text = end + 1;
    }
    return false;
}

static bool take_number(struct plan_options *o, int letter, const char *value)
{
    int64_t n = 0;
    bool is_good = true;
    switch (letter) {
    case PLAN_REPLICAS:
        is_good = strcmp(value, "auto") == 0 || read_whole(value, 1, WIRE_MAX_REPLICAS, &n);
        o->replicas = (int)n;
        break;
    case PLAN_CONTEXT:
        is_good = read_whole(value, 0, 1 << 24, &o->context);
        break;
    case PLAN_ATTENTION:
        is_good = read_number(value, 0.001, 1e6, &o->attention_gb_s);
        break;
    case PLAN_SIDES:
        is_good = read_whole(value, 1, 1024, &n);
        o->n_sides = (int)n;
        break;
    case PLAN_KV:
        is_good = read_kv(value, &o->kv);
        break;
    case PLAN_LANES:
        is_good = strcmp(value, "auto") == 0 || read_whole(value, 1, 2, &n);
        o->lanes = (int)n;
        break;
    case PLAN_EFFICIENCY:
        is_good = read_number(value, 0.01, 1, &o->efficiency);
        break;
    case PLAN_ROUND_TRIP:
        is_good = read_number(value, 0, 1e7, &o->defaults.round_trip_us);
        break;
    case PLAN_WIRE:
        is_good = read_number(value, 0.001, 1e6, &o->defaults.wire_gbit);
        break;
    case PLAN_SKEW:
        is_good = read_number(value, 0, 8, &o->skew);
        break;
    default:
        is_good = read_whole(value, 0, 9e15, &n);
        o->seed = (uint64_t)n;
        break;
    }
    return is_good;
}

int plan_options_take(struct plan_options *o, int letter, const char *value, struct err *e)
{
    switch (letter) {
    case PLAN_MODEL:
        o->dir = value;
        o->preset = NULL;
        return 1;
    case PLAN_PRESET:
        o->preset = value;
        return 1;
    case PLAN_FORMAT:
        o->format = value;
        return 1;
    case PLAN_HOSTS:
        o->hosts = value;
        return 1;
    case PLAN_CONFIG:
        o->config = value;
        return 1;
    case PLAN_TRACE:
        o->trace = value;
        return 1;
    case PLAN_JSON:
        o->as_json = true;
        return 1;
    default:
        if (letter < PLAN_MODEL || letter > PLAN_JSON)
            return 0;
        return take_number(o, letter, value) ? 1
                                             : err_set(e, E_INVALID, "'%s' is out of range", value);
    }
}

struct forecast_options plan_forecast_options(const struct plan_options *o,
                                              const struct plan_hosts *h)
{
    double fastest = 0;
    for (int i = 0; i < h->n_hosts; i++)
        fastest = h->hosts[i].read_bytes_s > fastest ? h->hosts[i].read_bytes_s : fastest;
    return (struct forecast_options){.replicas = o->replicas,
                                     .efficiency = o->efficiency,
                                     .attention_bytes_s =
                                         o->attention_gb_s > 0 ? o->attention_gb_s * 1e9 : fastest,
                                     .n_sides = o->n_sides,
                                     .lanes = o->lanes,
                                     .fan_out_ns = FAN_OUT_NS,
                                     .straggler_speed = 1,
                                     .seed = o->seed};
}

int plan_scene_open(const struct plan_options *o, struct plan_scene *s, struct err *e)
{
    struct plan_defaults defaults = o->defaults;
    *s = (struct plan_scene){0};
    int rc = plan_model_open(o->preset, o->dir, o->format, &s->model, e);
    if (rc == 0)
        rc = plan_model_check_context(&s->model, o->context, e);
    if (rc == 0)
        rc = trace_open(o->trace, &s->model, o->skew, o->seed, &s->trace, e);
    if (rc == 0)
        rc = plan_hosts_open(o->hosts, o->config, &defaults, &s->hosts, e);
    struct forecast_options f = plan_forecast_options(o, &s->hosts);
    if (rc == 0)
        rc = forecast_open(&s->model, &s->hosts, s->trace, &f, &s->forecast, e);
    if (rc < 0)
        plan_scene_close(s);
    return rc;
}

void plan_scene_close(struct plan_scene *s)
{
    forecast_close(&s->forecast);
    plan_hosts_close(&s->hosts);
    trace_close(&s->trace);
}
