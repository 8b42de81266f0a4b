/* tools/plan_options.h - what `polymath plan` and `polymath simulate` are both told. */
#pragma once

#include <getopt.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/forecast.h"

enum { PLAN_MAX_LENDERS = 15 };

struct plan_options {
    const char *preset, *dir, *format, *hosts, *config, *trace;
    double efficiency, attention_gb_s, skew;
    struct plan_defaults defaults;
    int replicas, n_sides, lanes; /* lanes 0: auto */
    int64_t context;
    uint64_t seed;
    /* Memory for the KV cache: of an attention side (0: not told), and of machines that lend it. */
    struct plan_kv {
        int64_t own_bytes, lent_bytes[PLAN_MAX_LENDERS];
        int n_lenders;
    } kv;
    bool as_json;
};
void plan_options_defaults(struct plan_options *o);

enum plan_letter {
    PLAN_MODEL = 256,
    PLAN_PRESET,
    PLAN_FORMAT,
    PLAN_HOSTS,
    PLAN_CONFIG,
    PLAN_REPLICAS,
    PLAN_CONTEXT,
    PLAN_ATTENTION,
    PLAN_SIDES,
    PLAN_KV, /* of polymath plan alone */
    PLAN_EFFICIENCY,
    PLAN_ROUND_TRIP,
    PLAN_WIRE,
    PLAN_TRACE,
    PLAN_SKEW,
    PLAN_SEED,
    PLAN_LANES,
    PLAN_JSON,
};
/* clang-format off */
#define PLAN_LONG_OPTIONS \
    {"model", required_argument, NULL, PLAN_MODEL}, \
    {"preset", required_argument, NULL, PLAN_PRESET}, \
    {"format", required_argument, NULL, PLAN_FORMAT}, \
    {"hosts", required_argument, NULL, PLAN_HOSTS}, \
    {"config", required_argument, NULL, PLAN_CONFIG}, \
    {"replicas", required_argument, NULL, PLAN_REPLICAS}, \
    {"context", required_argument, NULL, PLAN_CONTEXT}, \
    {"attention", required_argument, NULL, PLAN_ATTENTION}, \
    {"attn", required_argument, NULL, PLAN_SIDES}, \
    {"efficiency", required_argument, NULL, PLAN_EFFICIENCY}, \
    {"round-trip", required_argument, NULL, PLAN_ROUND_TRIP}, \
    {"wire", required_argument, NULL, PLAN_WIRE}, \
    {"trace", required_argument, NULL, PLAN_TRACE}, \
    {"skew", required_argument, NULL, PLAN_SKEW}, \
    {"seed", required_argument, NULL, PLAN_SEED}, \
    {"lanes", required_argument, NULL, PLAN_LANES}, \
    {"json", no_argument, NULL, PLAN_JSON}
/* clang-format on */
#define PLAN_USAGE \
    "  --preset NAME     m2 (default), m3, or one of polymath synth\n" \
    "  --model DIR       the model whose config.json this is, instead\n" \
    "  --format F        how weights and KV cache are held (default native,kv=bf16)\n" \
    "  --replicas N      copies of each expert, 1 to 4, or auto (default)\n" \
    "  --context N       positions of each stream (default 4096)\n" \
    "  --attention GB/S  what an attention side's memory reads (default: the fastest machine's)\n" \
    "  --attn N          attention sides (default 1)\n" \
    "  --lanes auto|1|2  of a step, as attention.lanes (default auto: two where that is faster)\n" \
    "  --round-trip US   of a call without work (default 200)\n" \
    "  --wire GBIT       of the network (default 10)\n" \
    "  --efficiency X    what kernels reach of a memory's speed (default 0.8; bench decode " \
    "tells)\n" \
    "  --trace FILE      recorded routes (models/demo/routing_trace.gz is one)\n" \
    "  --skew X          of made routes, without --trace (default 0.5; 0: all experts alike)\n" \
    "  --seed N          of everything that is random (default 1)\n" \
    "  --json            as JSON\n"

/* One option that getopt found: 1 taken, 0 not one of these, E_INVALID its value is bad. */
int plan_options_take(struct plan_options *o, int letter, const char *value, struct err *e);

/* Everything that a forecast stands on. */
struct plan_scene {
    struct plan_model model;
    struct plan_hosts hosts;
    struct trace *trace;
    struct forecast forecast;
};
int plan_scene_open(const struct plan_options *o, struct plan_scene *s, struct err *e);
void plan_scene_close(struct plan_scene *s);
/* For forecast_open() with these machines. */
struct forecast_options plan_forecast_options(const struct plan_options *o,
                                              const struct plan_hosts *h);
