/* base/conf.h - one option table per program: the libconfig file, --set, --help, bounds
 * and --dump-config all come from it.
 *
 * Keys are dotted paths ("http.port"): group `http`, setting `port`.  Unknown keys are
 * errors that name file, line and the nearest known key.  No environment variables. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

enum conf_type {
    CONF_STRING, /* char *; owned by the table's target, freed by conf_fini() */
    CONF_INT,    /* int64_t, with min and max */
    CONF_BYTES,  /* int64_t; "8GiB", "512MiB", "64KiB", "4096" or an integer */
    CONF_MS,     /* int64_t nanoseconds in the struct, milliseconds in the file */
    CONF_FLOAT,  /* double */
    CONF_BOOL,   /* bool */
    CONF_CHOICE, /* int: index into `choices` */
};

struct conf_option {
    const char *key;
    enum conf_type type;
    size_t offset;        /* of the field in the program's config struct */
    const char *fallback; /* default, as it would be written in the file (strings without quotes) */
    double min, max;      /* for the numeric types, in the file's unit; equal means unbounded */
    const char *choices;  /* CONF_CHOICE: "native|f32|bf16|fp8" */
    const char *help;     /* one sentence, lower case, no final stop */
};

struct conf_table {
    const char *program; /* "expert_node" */
    const char *summary; /* one sentence for --help */
    const struct conf_option *options;
    int n_options;
};

/* Sets every field to its default. */
void conf_defaults(const struct conf_table *t, void *config);
/* Reads a libconfig file over what is there; @include is relative to the file's directory. */
int conf_read_file(const struct conf_table *t, void *config, const char *path, struct err *e);
/* "key=value" over what is there. */
int conf_set(const struct conf_table *t, void *config, const char *assignment, struct err *e);
/* A commented libconfig file with the present values; reading it back gives the same config. */
void conf_dump(const struct conf_table *t, const void *config, FILE *out);
void conf_help(const struct conf_table *t, FILE *out);
/* Frees the strings. */
void conf_fini(const struct conf_table *t, void *config);

/* What every program does with its command line:
 *   PROGRAM [-c FILE] [--set KEY=VALUE]... [--check-config] [--dump-config] [--version] [--help]
 * Fills config.  Returns CONF_RUN to go on; CONF_DONE after --help, --version, --dump-config
 * or --check-config did their work (exit 0); CONF_MISUSE after printing one sentence to
 * stderr (exit 2).  `check` (may be NULL) holds what the table cannot say.  The strings
 * are already freed unless it returns CONF_RUN. */
enum conf_outcome { CONF_RUN, CONF_DONE, CONF_MISUSE };
enum conf_outcome conf_main(const struct conf_table *t, void *config, int argc, char **argv,
                            int (*check)(const void *config, struct err *e),
                            void (*print_version)(FILE *out));

/* The known word nearest to `word` by edit distance, or NULL if none is near. */
const char *conf_nearest(const char *word, const char *const *known, int n_known);
/* "8GiB" and the like; false if malformed, negative or over int64. */
bool conf_parse_bytes(const char *text, int64_t *out);
