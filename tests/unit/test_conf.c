/* tests/unit/test_conf.c - the option table against good, wrong and hostile files. */
#include "base/conf.h"

#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"

struct sample {
    char *name, *path;
    int64_t port, wide, limit_bytes, wait_ns, free_int;
    double share;
    bool is_on;
    int mode;
};

#define OPTION(key_, type_, field_, ...) \
    { \
        .key = key_, .type = type_, .offset = offsetof(struct sample, field_), __VA_ARGS__ \
    }
static const struct conf_option options[] = {
    OPTION("name", CONF_STRING, name, .fallback = "node", .help = "what it is called"),
    OPTION("http.port", CONF_INT, port, .fallback = "8080", .min = 1, .max = 65535, .help = "port"),
    OPTION("kv.bytes", CONF_BYTES, limit_bytes, .fallback = "64MiB", .min = 1, .max = 0x1p50,
           .help = "cache size"),
    OPTION("http.wait_ms", CONF_MS, wait_ns, .fallback = "250", .min = 0, .max = 1e6,
           .help = "how long"),
    OPTION("http.tls.path", CONF_STRING, path, .help = "a file"),
    OPTION("wide", CONF_INT, wide, .fallback = "0", .help = "any integer"),
    OPTION("kv.share", CONF_FLOAT, share, .fallback = "0.5", .min = 0, .max = 1, .help = "part"),
    OPTION("is_on", CONF_BOOL, is_on, .fallback = "true", .help = "switch"),
    OPTION("kv.mode", CONF_CHOICE, mode, .fallback = "f32", .choices = "native|f32|bf16",
           .help = "format"),
};
static const struct conf_table table = {"sample", "a table for tests", options,
                                        sizeof(options) / sizeof(options[0])};

static void write_text(const char *path, const char *text)
{
    struct buf b = {0};
    struct err e = {0};
    buf_puts(&b, text);
    CHECK_INT(buf_write_file(&b, path, &e), 0);
    buf_fini(&b);
}

static int read_text(const char *text, struct sample *s, struct err *e)
{
    write_text("a.cfg", text);
    *e = (struct err){0};
    conf_defaults(&table, s);
    return conf_read_file(&table, s, "a.cfg", e);
}

/* Reading `text` must fail with a sentence that holds each of the parts. */
static void check_refused(const char *text, int code, const char *part, const char *part2)
{
    struct sample s;
    struct err e;
    int rc = read_text(text, &s, &e);
    test_note("%s", e.text);
    CHECK_INT(rc, code);
    CHECK_INT(e.code, code);
    CHECK_HAS(e.text, part);
    CHECK_HAS(e.text, part2);
    conf_fini(&table, &s);
}

TEST(conf_defaults_come_from_the_table)
{
    struct sample s;
    conf_defaults(&table, &s);
    CHECK_STR(s.name, "node");
    CHECK_STR(s.path, "");
    CHECK_INT(s.port, 8080);
    CHECK_INT(s.limit_bytes, 64 << 20);
    CHECK_INT(s.wait_ns, 250 * CLOCK_MS);
    CHECK(s.share == 0.5 && s.is_on);
    CHECK_INT(s.mode, 1);
    conf_fini(&table, &s);
    CHECK(s.name == NULL);
}

TEST(conf_reads_every_type)
{
    struct sample s;
    struct err e;
    CHECK_INT(read_text("name = \"x\\\"y\"; wide = -99999999999L; is_on = false;\n"
                        "http: { port = 0x1F90; wait_ms = 5; tls = { path = \"/k\"; }; };\n"
                        "kv = { bytes = \"8GiB\"; share = 1; mode = \"bf16\"; };\n",
                        &s, &e),
              0);
    CHECK_STR(s.name, "x\"y");
    CHECK_INT(s.wide, -99999999999LL);
    CHECK_INT(s.port, 8080);
    CHECK_INT(s.wait_ns, 5 * CLOCK_MS);
    CHECK_STR(s.path, "/k");
    CHECK_INT(s.limit_bytes, 8LL << 30);
    CHECK(s.share == 1.0 && !s.is_on);
    CHECK_INT(s.mode, 2);
    conf_fini(&table, &s);
}

TEST(conf_unknown_keys_name_place_and_neighbour)
{
    check_refused("\nhttp = {\n prot = 1;\n};", E_INVALID, "a.cfg:3: ", "did you mean http.port?");
    check_refused("htp = { port = 1; };", E_INVALID, "unknown option htp.port", "http.port?");
    check_refused("nmae = \"x\";", E_INVALID, "a.cfg:1: ", "did you mean name?");
    check_refused("http = { tls = { port = 1; }; };", E_INVALID, "http.tls.port", "http.tls.path?");
    check_refused("elephants = 3;", E_INVALID, "a.cfg:1", "unknown option elephants");
}

TEST(conf_refuses_wrong_types)
{
    check_refused("http = { port = \"80\"; };", E_INVALID,
                  "a.cfg:1: http.port: ", "expected integer from 1 to 65535, found a string");
    check_refused("http = { port = 1.5; };", E_INVALID, "http.port", "found a number");
    check_refused("name = 5;", E_INVALID, "name: expected string", "found an integer");
    check_refused("is_on = 1;", E_INVALID, "is_on: expected true or false", "an integer");
    check_refused("kv = { mode = \"f33\"; };", E_INVALID, "one of native, f32, bf16", "\"f33\"");
    check_refused("kv = { bytes = \"8GB\"; };", E_INVALID, "kv.bytes: expected bytes", "\"8GB\"");
    check_refused("http = 5;", E_INVALID, "a.cfg:1", "http");
    check_refused("name = { x = 1; };", E_INVALID, "name", "group");
    check_refused("wide = [1, 2];", E_INVALID, "wide", "list");
}

TEST(conf_refuses_values_out_of_bounds)
{
    check_refused("http = { port = 0; };", E_RANGE, "http.port: 0 is below the minimum, 1", "");
    check_refused("http = { port = 65536; };", E_RANGE, "above the maximum, 65535", "a.cfg:1");
    check_refused("kv = { bytes = \"2048TiB\"; };", E_RANGE, "2048TiB", "1024TiB");
    check_refused("kv = { share = 1.01; };", E_RANGE, "1.01 is above the maximum, 1", "kv.share");
}

/* libconfig 1.5 reads the first of these as 1215752191 and the third as -1. */
TEST(conf_refuses_what_libconfig_would_wrap)
{
    check_refused("\nwide = 99999999999;", E_RANGE, "a.cfg:2: 99999999999", "needs an L");
    check_refused("wide = 0xFFFFFFFFF;", E_RANGE, "a.cfg:1", "needs an L");
    check_refused("wide = 99999999999999999999;", E_RANGE, "a.cfg:1", "64 bits");
    check_refused("wide = 99999999999999999999L;", E_RANGE, "a.cfg:1", "64 bits");
    struct sample s;
    struct err e;
    CHECK_INT(read_text("name = \"99999999999\"; # 99999999999\nwide = 2147483647; "
                        "/* 99999999999 */ kv = { share = 0.99999999999; };",
                        &s, &e),
              0);
    CHECK_INT(s.wide, INT32_MAX);
    conf_fini(&table, &s);
}

TEST(conf_syntax_errors_name_the_line)
{
    check_refused("\n\nname = ;", E_INVALID, "a.cfg:3", "syntax");
    check_refused("\nname = \"x;\n", E_INVALID, "a.cfg:2", "has no end");
    check_refused("@include \"x\n", E_INVALID, "a.cfg:1", "@include");
    check_refused("name = \"x\"; name = \"y\";", E_INVALID, "a.cfg:1", "duplicate");
    struct sample s;
    struct err e = {0};
    conf_defaults(&table, &s);
    CHECK_INT(conf_read_file(&table, &s, "none.cfg", &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "none.cfg");
    e = (struct err){0};
    CHECK_INT(conf_read_file(&table, &s, ".", &e), E_INVALID);
    conf_fini(&table, &s);
}

TEST(conf_includes_are_relative_to_the_file)
{
    CHECK_INT(mkdir("d", 0700), 0);
    write_text("d/b.cfg", "# two\nname = \"included\";\n");
    write_text("d/main.cfg", "@include \"b.cfg\"\nwide = 7;\n");
    struct sample s;
    struct err e = {0};
    conf_defaults(&table, &s);
    CHECK_INT(conf_read_file(&table, &s, "d/main.cfg", &e), 0);
    CHECK_STR(s.name, "included");
    CHECK_INT(s.wide, 7);

    write_text("d/b.cfg", "\nnmae = \"included\";\n");
    CHECK_INT(conf_read_file(&table, &s, "d/main.cfg", &e), E_INVALID);
    CHECK_HAS(e.text, "b.cfg:2: ");
    write_text("d/b.cfg", "@include \"gone.cfg\"\n");
    CHECK_INT(conf_read_file(&table, &s, "d/main.cfg", &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "d/b.cfg:1: ");
    write_text("d/b.cfg", "@include \"b.cfg\"\n");
    CHECK_INT(conf_read_file(&table, &s, "d/main.cfg", &e), E_INVALID);
    CHECK_HAS(e.text, "include each other");
    conf_fini(&table, &s);
}

TEST(conf_deep_nesting_is_refused)
{
    struct buf text = {0};
    for (int i = 0; i < 20000; i++)
        buf_puts(&text, "http = { ");
    struct sample s;
    struct err e;
    CHECK(read_text(text.data, &s, &e) < 0);
    CHECK(e.text[0] != '\0');
    conf_fini(&table, &s);
    buf_fini(&text);
}

TEST(conf_set_overrides_and_explains)
{
    struct sample s;
    struct err e = {0};
    conf_defaults(&table, &s);
    CHECK_INT(conf_set(&table, &s, "name=a=b", &e), 0);
    CHECK_STR(s.name, "a=b");
    CHECK_INT(conf_set(&table, &s, "wide=99999999999", &e), 0);
    CHECK_INT(s.wide, 99999999999LL);
    CHECK_INT(conf_set(&table, &s, "kv.bytes=1TiB", &e), 0);
    CHECK_INT(s.limit_bytes, 1LL << 40);
    CHECK_INT(conf_set(&table, &s, "is_on=false", &e), 0);
    CHECK(!s.is_on);

    CHECK_INT(conf_set(&table, &s, "http.port=0", &e), E_RANGE);
    CHECK_STR(e.text, "http.port: 0 is below the minimum, 1");
    CHECK_INT(s.port, 8080);
    CHECK_INT(conf_set(&table, &s, "http.prot=1", &e), E_INVALID);
    CHECK_HAS(e.text, "did you mean http.port?");
    CHECK_INT(conf_set(&table, &s, "http.port", &e), E_INVALID);
    CHECK_INT(conf_set(&table, &s, "http.port=12x", &e), E_INVALID);
    CHECK_INT(conf_set(&table, &s, "http.port=", &e), E_INVALID);
    CHECK_INT(conf_set(&table, &s, "kv.share=nan", &e), E_INVALID);
    CHECK_INT(conf_set(&table, &s, "kv.share=0x1", &e), E_INVALID);
    CHECK_INT(conf_set(&table, &s, "is_on=yes", &e), E_INVALID);
    conf_fini(&table, &s);
}

static char *dump_text(const struct sample *s)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    CHECK(f != NULL);
    conf_dump(&table, s, f);
    fclose(f);
    return text;
}

TEST(conf_dump_reads_back_to_the_same_config)
{
    static const char *const sets[] = {
        "name=quote \" back \\ bell \a tab \t é",
        "wide=-9223372036854775808",
        "http.port=65535",
        "kv.bytes=1099511627777",
        "http.wait_ms=17",
        "http.tls.path=/a b",
        "kv.share=0.1",
        "is_on=false",
        "kv.mode=native",
    };
    struct sample s, back;
    struct err e = {0};
    conf_defaults(&table, &s);
    for (size_t i = 0; i < sizeof(sets) / sizeof(sets[0]); i++)
        CHECK_INT(conf_set(&table, &s, sets[i], &e), 0);
    char *text = dump_text(&s);
    test_note("%s", text);
    if (read_text(text, &back, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_STR(back.name, s.name);
    CHECK_STR(back.path, s.path);
    CHECK(back.wide == INT64_MIN && back.port == s.port && back.limit_bytes == s.limit_bytes);
    CHECK(back.wait_ns == s.wait_ns && back.share == s.share && back.is_on == s.is_on);
    CHECK_INT(back.mode, 0);
    CHECK_HAS(text, "# port\n    # integer from 1 to 65535; default: 8080\n    port = 65535;");
    free(text);
    conf_fini(&table, &s);
    conf_fini(&table, &back);
}

/* Runs conf_main() with what it prints in out.txt; the outcome. */
static enum conf_outcome run_main(char **argv, struct sample *s, struct buf *out)
{
    int argc = 0;
    while (argv[argc])
        argc++;
    int saved_out = dup(STDOUT_FILENO), saved_err = dup(STDERR_FILENO);
    fflush(stdout);
    int fd = open("out.txt", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && saved_out >= 0 && saved_err >= 0);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    enum conf_outcome outcome = conf_main(&table, s, argc, argv, NULL, NULL);
    fflush(stdout);
    dup2(saved_out, STDOUT_FILENO);
    dup2(saved_err, STDERR_FILENO);
    close(saved_out);
    close(saved_err);
    close(fd);
    struct err e = {0};
    CHECK_INT(buf_read_file(out, "out.txt", 1 << 20, &e), 0);
    return outcome;
}
#define RUN_MAIN(...) run_main((char *[]){(char[]){"sample"}, __VA_ARGS__, NULL}, &s, &out)
#define ARG(text) ((char[]){text})

TEST(conf_main_does_what_the_command_line_says)
{
    struct sample s;
    struct buf out = {0};
    write_text("a.cfg", "http = { port = 81; }; wide = 1;");
    CHECK_INT(RUN_MAIN(ARG("--set"), ARG("wide=2"), ARG("-c"), ARG("a.cfg")), CONF_RUN);
    CHECK_INT(s.port, 81);
    CHECK_INT(s.wide, 2);
    conf_fini(&table, &s);
    CHECK_INT(out.len, 0);

    CHECK_INT(RUN_MAIN(ARG("--help")), CONF_DONE);
    CHECK_HAS(out.data, "http.wait_ms");
    CHECK_INT(RUN_MAIN(ARG("--version")), CONF_DONE);
    CHECK_HAS(out.data, "sample 0.");
    CHECK_INT(RUN_MAIN(ARG("-c"), ARG("a.cfg"), ARG("--dump-config")), CONF_DONE);
    CHECK_HAS(out.data, "port = 81;");
    CHECK_INT(RUN_MAIN(ARG("-c"), ARG("a.cfg"), ARG("--check-config")), CONF_DONE);
    CHECK_HAS(out.data, "sound");

    write_text("a.cfg", "http = { port = 0; };");
    CHECK_INT(RUN_MAIN(ARG("-c"), ARG("a.cfg"), ARG("--check-config")), CONF_MISUSE);
    CHECK_STR(out.data, "sample: a.cfg:1: http.port: 0 is below the minimum, 1\n");
    CHECK_INT(RUN_MAIN(ARG("--set")), CONF_MISUSE);
    CHECK_INT(RUN_MAIN(ARG("--bogus")), CONF_MISUSE);
    CHECK_HAS(out.data, "--bogus");
    CHECK_INT(RUN_MAIN(ARG("--set"), ARG("nmae=x")), CONF_MISUSE);
    CHECK_HAS(out.data, "--set: unknown option nmae, did you mean name?");
    buf_fini(&out);
}

TEST(conf_bytes_are_exact_or_refused)
{
    int64_t v = -7;
    CHECK(conf_parse_bytes("0", &v) && v == 0);
    CHECK(conf_parse_bytes("4096", &v) && v == 4096);
    CHECK(conf_parse_bytes("64KiB", &v) && v == 65536);
    CHECK(conf_parse_bytes("9223372036854775807", &v) && v == INT64_MAX);
    CHECK(conf_parse_bytes("8388607TiB", &v) && v == 8388607LL << 40);
    v = -7;
    static const char *const bad[] = {"",
                                      "-1",
                                      "GiB",
                                      "1 GiB",
                                      "1GB",
                                      "1.5",
                                      "1giB",
                                      "1GiBs",
                                      "8388608TiB",
                                      "9223372036854775808",
                                      "99999999999999999999999999999",
                                      "0x10"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (conf_parse_bytes(bad[i], &v))
            test_fail(__FILE__, __LINE__, "\"%s\" was taken", bad[i]);
    CHECK_INT(v, -7);
}

TEST(conf_nearest_guesses_only_when_near)
{
    static const char *const known[] = {"http.port", "kv.bytes", "name"};
    CHECK_STR(conf_nearest("http.prot", known, 3), "http.port");
    CHECK_STR(conf_nearest("kv.byte", known, 3), "kv.bytes");
    CHECK(conf_nearest("elephants", known, 3) == NULL);
    CHECK(conf_nearest("", known, 3) == NULL);
    char word[4096];
    memset(word, 'a', sizeof(word) - 1);
    word[sizeof(word) - 1] = '\0';
    CHECK(conf_nearest(word, known, 3) == NULL);
    CHECK(conf_nearest("x", known, 0) == NULL);
}
