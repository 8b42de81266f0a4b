/* tests/unit/test_node_config.c - the option tables of the nodes: the committed files are
 * what --dump-config prints, and nonsense is refused. */
#include <stdio.h>
#include <stdlib.h>

#include "attn_node/config.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "expert_node/config.h"
#include "tests/lib/test.h"

static void check_file(const struct conf_table *t, void *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    CHECK(out != NULL);
    conf_defaults(t, config);
    conf_dump(t, config, out);
    fclose(out);
    char *path = mem_format("%s/configs/%s.cfg", test_source_dir(), t->program);
    struct buf file = {0};
    struct err e = {0};
    if (buf_read_file(&file, path, 1 << 20, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK_STR(file.data, text);
    /* And reading it gives the defaults back. */
    CHECK_INT(conf_read_file(t, config, path, &e), 0);
    buf_fini(&file);
    mem_free(path);
    free(text);
}

TEST(node_config_files_are_the_defaults)
{
    struct attn_node_config attn = {0};
    check_file(&attn_node_options, &attn);
    CHECK_INT(attn_node_check(&attn, NULL), 0);
    struct side_config side = attn_node_side(&attn);
    CHECK_INT(side.call_timeout_ns, 10 * CLOCK_S);
    CHECK_INT(side.spin_ns, 50 * CLOCK_US);
    conf_fini(&attn_node_options, &attn);
    struct expert_node_config expert = {0};
    check_file(&expert_node_options, &expert);
    CHECK_INT(expert_node_check(&expert, NULL), 0);
    conf_fini(&expert_node_options, &expert);
}

TEST(node_config_checks_formats_and_cpus)
{
    static const struct {
        const char *setting, *why;
    } bad[] = {{"weights.format=q7", "weights.format: "},
               {"weights.format=experts", "weights.format: "},
               {"weights.format=kv=q8", "weights.format: "},
               {"compute.cpus=4-2", "compute.cpus: \"4-2\""},
               {"compute.cpus=most", "compute.cpus: \"most\""}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct expert_node_config expert = {0};
        struct attn_node_config attn = {0};
        struct err e = {0};
        conf_defaults(&expert_node_options, &expert);
        conf_defaults(&attn_node_options, &attn);
        CHECK_INT(conf_set(&expert_node_options, &expert, bad[i].setting, &e), 0);
        CHECK_INT(conf_set(&attn_node_options, &attn, bad[i].setting, &e), 0);
        CHECK_INT(expert_node_check(&expert, &e), E_INVALID);
        CHECK_HAS(e.text, bad[i].why);
        e = (struct err){0};
        CHECK_INT(attn_node_check(&attn, &e), E_INVALID);
        CHECK_HAS(e.text, bad[i].why);
        conf_fini(&expert_node_options, &expert);
        conf_fini(&attn_node_options, &attn);
    }
}

TEST(node_config_passes_formats_and_loading_on)
{
    static const char *const settings[] = {"weights.format=experts=q4,attention=q8,kv=int8",
                                           "weights.lock=true", "weights.verify=true",
                                           "compute.cpus=0-3,8"};
    struct attn_node_config c = {0};
    struct err e = {0};
    conf_defaults(&attn_node_options, &c);
    for (int i = 0; i < 4; i++)
        CHECK_INT(conf_set(&attn_node_options, &c, settings[i], &e), 0);
    CHECK_INT(attn_node_check(&c, &e), 0);
    struct side_config side = attn_node_side(&c);
    CHECK_INT(side.formats.experts, FORMAT_Q4);
    CHECK_INT(side.formats.attention, FORMAT_Q8);
    CHECK_INT(side.formats.head, FORMAT_NATIVE);
    CHECK_INT(side.formats.kv, KV_INT8);
    CHECK(side.checkpoint.locks && side.checkpoint.verifies && !side.checkpoint.copies);
    conf_fini(&attn_node_options, &c);
}

TEST(node_config_refuses_unknown_kernels_and_empty_names)
{
    struct expert_node_config c = {0};
    struct err e = {0};
    conf_defaults(&expert_node_options, &c);
    CHECK_INT(conf_set(&expert_node_options, &c, "weights.kernels=portable", &e), 0);
    CHECK_INT(expert_node_check(&c, &e), 0);
    CHECK_INT(conf_set(&expert_node_options, &c, "weights.kernels=abacus", &e), 0);
    CHECK_INT(expert_node_check(&c, &e), E_INVALID);
    CHECK_HAS(e.text, "abacus");
    CHECK_INT(conf_set(&expert_node_options, &c, "weights.kernels=", &e), 0);
    CHECK_INT(conf_set(&expert_node_options, &c, "node.name=", &e), 0);
    CHECK_INT(expert_node_check(&c, &e), E_INVALID);
    CHECK_HAS(e.text, "node.name");
    CHECK_INT(conf_set(&expert_node_options, &c, "node.name=x", &e), 0);
    CHECK(conf_set(&expert_node_options, &c, "limits.max_rows=5000", &e) < 0);
    CHECK(conf_set(&expert_node_options, &c, "weights.combine=sum", &e) < 0);
    conf_fini(&expert_node_options, &c);
}
