/* tests/fuzz/fuzz_conf.c - a configuration file is outside data: any bytes, an error or a config.
 *
 * What was accepted must survive the round trip through --dump-config. */
#include "base/conf.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/must.h"
#include "tests/lib/fuzz.h"

#ifdef FUZZ_LIBFUZZER
/* libconfig 1.5 leaks the strings that its parser holds when it meets a syntax error. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libconfig.so";
}
#endif

struct sample {
    char *name;
    int64_t port, size_bytes, wait_ns;
    double share;
    bool is_on;
    int mode;
};

#define OPTION(key_, type_, field_, ...) \
    { \
        .key = key_, .type = type_, .offset = offsetof(struct sample, field_), __VA_ARGS__ \
    }
static const struct conf_option options[] = {
    OPTION("name", CONF_STRING, name, .help = "a name"),
    OPTION("http.port", CONF_INT, port, .fallback = "80", .min = 1, .max = 65535, .help = "port"),
    OPTION("http.wait_ms", CONF_MS, wait_ns, .fallback = "5", .help = "wait"),
    OPTION("kv.deep.bytes", CONF_BYTES, size_bytes, .fallback = "64MiB", .help = "size"),
    OPTION("kv.share", CONF_FLOAT, share, .fallback = "0.5", .help = "part"),
    OPTION("is_on", CONF_BOOL, is_on, .fallback = "true", .help = "switch"),
    OPTION("kv.mode", CONF_CHOICE, mode, .fallback = "a", .choices = "a|b", .help = "kind"),
};
static const struct conf_table table = {"sample", "a table for the fuzzer", options,
                                        sizeof(options) / sizeof(options[0])};

/* A file that exists only for this process. */
static int read_bytes(struct sample *s, const void *data, size_t bytes, struct err *e)
{
    int fd = memfd_create("conf", MFD_CLOEXEC);
    must(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    conf_defaults(&table, s);
    int rc = conf_read_file(&table, s, path, e);
    close(fd);
    return rc;
}

static void check_round_trip(const struct sample *s)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    must(f != NULL);
    conf_dump(&table, s, f);
    fclose(f);
    struct sample back;
    struct err e = {0};
    must_zero(read_bytes(&back, text, size, &e));
    must(strcmp(back.name, s->name) == 0 && back.port == s->port && back.share == s->share);
    must(back.size_bytes == s->size_bytes && back.wait_ns == s->wait_ns);
    must(back.is_on == s->is_on && back.mode == s->mode);
    conf_fini(&table, &back);
    free(text);
}

FUZZ(conf)
{
    /* Included files are not this file: the fuzzer must not read the machine's. */
    if (memmem(data, bytes, "@include", 8))
        return;
    struct sample s;
    struct err e = {0};
    int rc = read_bytes(&s, data, bytes, &e);
    must((rc == 0) == (e.text[0] == '\0'));
    if (rc == 0)
        check_round_trip(&s);
    conf_fini(&table, &s);

    struct buf assignment = {0};
    buf_append(&assignment, data, bytes);
    conf_defaults(&table, &s);
    if (conf_set(&table, &s, assignment.data, &e) == 0)
        check_round_trip(&s);
    conf_fini(&table, &s);
    buf_fini(&assignment);
}
