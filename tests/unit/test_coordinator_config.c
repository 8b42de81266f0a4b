/* tests/unit/test_coordinator_config.c - the option table, the committed file, and what the
 * table cannot say. */
#include "coordinator/config.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "tests/lib/test.h"

static struct coordinator_config config;

static void set(const char *assignment)
{
    struct err e = {0};
    if (conf_set(&coordinator_options, &config, assignment, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
}

TEST(coordinator_config_file_is_what_dump_config_prints)
{
    char *text = NULL, *path = mem_format("%s/configs/coordinator.cfg", test_source_dir());
    size_t bytes = 0;
    struct buf file = {0};
    struct err e = {0};
    conf_defaults(&coordinator_options, &config);
    FILE *out = open_memstream(&text, &bytes);
    conf_dump(&coordinator_options, &config, out);
    fclose(out);
    CHECK_INT(buf_read_file(&file, path, 1 << 20, &e), 0);
    CHECK_STR(file.data, text);
    free(text);
    buf_fini(&file);
    mem_free(path);
    conf_fini(&coordinator_options, &config);
}

TEST(coordinator_config_has_the_documented_defaults)
{
    conf_defaults(&coordinator_options, &config);
    CHECK_INT(config.http_port, 8080);
    CHECK_INT(config.http_max_body, 8 << 20);
    CHECK_INT(config.cluster_lease_ns, 2 * CLOCK_S);
    CHECK_INT(config.placement_rejoin_ns, 3 * CLOCK_S);
    CHECK_INT(coordinator_replicas(&config), 1);
    CHECK(config.attention_embedded);
    CHECK_INT(config.request_timeout_ns, 600 * CLOCK_S);
    conf_fini(&coordinator_options, &config);
}

TEST(coordinator_config_needs_a_model)
{
    struct err e = {0};
    conf_defaults(&coordinator_options, &config);
    CHECK_INT(coordinator_config_check(&config, &e), E_INVALID);
    CHECK_HAS(e.text, "model.path");
    set("model.path=/somewhere");
    CHECK_INT(coordinator_config_check(&config, &e), 0);
    conf_fini(&coordinator_options, &config);
}

TEST(coordinator_config_takes_one_to_four_replicas_or_auto)
{
    static const struct {
        const char *assignment;
        int replicas;
    } cases[] = {{"placement.replicas=4", 4},   {"placement.replicas=auto", 0},
                 {"placement.replicas=0", -1},  {"placement.replicas=5", -1},
                 {"placement.replicas=2x", -1}, {"placement.replicas=", -1}};
    struct err e = {0};
    conf_defaults(&coordinator_options, &config);
    set("model.path=/somewhere");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        set(cases[i].assignment);
        CHECK_INT(coordinator_replicas(&config), cases[i].replicas);
        CHECK_INT(coordinator_config_check(&config, &e), cases[i].replicas < 0 ? E_INVALID : 0);
    }
    CHECK_HAS(e.text, "placement.replicas");
    conf_fini(&coordinator_options, &config);
}

TEST(coordinator_config_needs_leases_longer_than_heartbeats)
{
    struct err e = {0};
    conf_defaults(&coordinator_options, &config);
    set("model.path=/somewhere");
    set("cluster.lease_ms=300");
    CHECK_INT(coordinator_config_check(&config, &e), E_INVALID);
    CHECK_HAS(e.text, "cluster.lease_ms (300)");
    conf_fini(&coordinator_options, &config);
}

TEST(coordinator_config_checks_formats_and_cpus)
{
    struct err e = {0};
    conf_defaults(&coordinator_options, &config);
    set("model.path=/somewhere");
    set("weights.format=q8,kv=int8");
    set("compute.cpus=all");
    CHECK_INT(coordinator_config_check(&config, &e), 0);
    set("weights.format=q8,kv=q4");
    CHECK_INT(coordinator_config_check(&config, &e), E_INVALID);
    CHECK_HAS(e.text, "weights.format: ");
    set("weights.format=native");
    set("compute.cpus=1,,2");
    CHECK_INT(coordinator_config_check(&config, &e), E_INVALID);
    CHECK_HAS(e.text, "compute.cpus: ");
    conf_fini(&coordinator_options, &config);
}

TEST(coordinator_names_the_model_after_its_directory)
{
    static const char *const cases[][3] = {
        {"/a/M2", "", "M2"}, {"/a/M2//", "", "M2"}, {"M2", "", "M2"}, {"/a/M2", "org/X", "org/X"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[64], name[64];
        conf_defaults(&coordinator_options, &config);
        snprintf(path, sizeof path, "model.path=%s", cases[i][0]);
        snprintf(name, sizeof name, "model.name=%s", cases[i][1]);
        set(path);
        set(name);
        char *got = coordinator_model_name(&config);
        CHECK_STR(got, cases[i][2]);
        mem_free(got);
        conf_fini(&coordinator_options, &config);
    }
}
