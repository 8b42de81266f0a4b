/* tests/unit/test_recall.c - tasks whose evidence can be checked by reading them, and what
 * `polymath eval recall` says where the answer is known beforehand. */
#include <jansson.h>
#include <string.h>

#include "base/mem.h"
#include "base/rng.h"
#include "tests/lib/cluster.h"
#include "tests/lib/test.h"
#include "tools/recall_tasks.h"
#include "tools/synth.h"

enum { VOCAB = 1024 };

static bool is_evidence(const struct recall_item *item, int position)
{
    for (int i = 0; i < item->n_evidence; i++)
        if (item->evidence[i] == position)
            return true;
    return false;
}

/* Where "MARK key IS value" states this key, from `from` on; -1. */
static int find_key(const struct recall_item *item, int32_t key, int from)
{
    int32_t mark = item->ids[item->n_prompt - 3], is = item->ids[item->n_prompt - 1];
    for (int i = from; i + 3 < item->n_prompt - 3; i++)
        if (item->ids[i] == mark && item->ids[i + 1] == key && item->ids[i + 2] == is)
            return i;
    return -1;
}

/* Follows the context alone, as a perfect reader would; counts the evidence that it used. */
static int check_statements(const struct recall_item *item, enum recall_task task)
{
    int32_t key = item->ids[item->n_prompt - 2];
    int n_used = 0, at = -1;
    for (int i = 0; i < item->n_answer; i++) {
        at = find_key(item, key, at + 1);
        while (task == RECALL_TRACKING && at >= 0 && item->ids[at + 3] != item->answer[0]) {
            CHECK(is_evidence(item, at + 1) && is_evidence(item, at + 3));
            n_used += 2;
            at = find_key(item, item->ids[at + 3], 0);
        }
        CHECK(at >= 0);
        CHECK_INT(item->ids[at + 3], item->answer[i]);
        CHECK(is_evidence(item, at + 1) && is_evidence(item, at + 3));
        n_used += 2;
    }
    return n_used;
}

static int check_words(const struct recall_item *item)
{
    int n = 0;
    for (int i = 0; i < item->n_prompt - 3; i++) {
        bool is_asked = false;
        for (int k = 0; k < item->n_answer; k++)
            is_asked |= item->ids[i] == item->answer[k];
        CHECK_INT(is_evidence(item, i), is_asked);
        n += is_asked;
    }
    return n;
}

TEST(recall_tasks_can_be_answered_from_their_evidence)
{
    struct rng r = test_rng();
    for (int task = 0; task < RECALL_TASKS; task++)
        for (int i = 0; i < 20; i++) {
            struct recall_item item, again;
            struct err e = {0};
            int length = 128 + (int)rng_below(&r, 2000);
            uint64_t seed = rng_next(&r);
            test_note("%s, %d tokens", recall_task_name((enum recall_task)task), length);
            CHECK_INT(recall_item_make((enum recall_task)task, length, VOCAB, seed, &item, &e), 0);
            CHECK_INT(item.length, length);
            CHECK_INT(item.length, item.n_prompt + item.n_answer - 1);
            CHECK(item.n_evidence > 0);
            for (int at = 0; at < item.length; at++)
                CHECK(item.ids[at] >= VOCAB / 8 && item.ids[at] < VOCAB * 3 / 4);
            for (int k = 0; k + 1 < item.n_answer; k++)
                CHECK_INT(item.ids[item.n_prompt + k], item.answer[k]);
            int n = task >= RECALL_COMMON ? check_words(&item)
                                          : check_statements(&item, (enum recall_task)task);
            CHECK_INT(n, item.n_evidence);
            CHECK_INT(recall_item_make((enum recall_task)task, length, VOCAB, seed, &again, &e), 0);
            CHECK_BYTES(again.ids, item.ids, (size_t)length * sizeof *item.ids);
            recall_item_fini(&again);
            recall_item_fini(&item);
        }
}

TEST(recall_tasks_that_have_no_room_are_refused)
{
    struct recall_item item;
    struct err e = {0};
    CHECK_INT(recall_item_make(RECALL_NEEDLE, 127, VOCAB, 1, &item, &e), E_RANGE);
    CHECK_HAS(e.text, "127 tokens are too few");
    CHECK_INT(recall_item_make(RECALL_NEEDLE, 128, 400, 1, &item, &e), E_RANGE);
    CHECK_HAS(e.text, "vocabulary of 400");
}

/* ---- through a model ---- */

/* Two sparse layers that see 256 positions. */
static void write_m3(void)
{
    struct synth_options o;
    struct err e = {0};
    synth_defaults(&o);
    CHECK_INT(synth_preset("m3-tiny", &o.config, NULL), 0);
    o.config.n_layers = 3;
    o.config.sparse.top_k = 16;
    o.dir = "m3";
    CHECK_INT(synth_write(&o, &e), 0);
}

static json_t *recall(const char *lengths)
{
    const char *const arguments[] = {"eval",      "recall", "--model", "m3",
                                     "--lengths", lengths,  "--tasks", "needle,tracking",
                                     "--items",   "2",      "--json",  NULL};
    struct buf output = {0};
    int code = cluster_run("polymath", arguments, &output);
    test_note("%s", output.data);
    CHECK_INT(code, 0);
    const char *text = strstr(output.data, "{\n");
    CHECK(text != NULL);
    json_t *root = json_loads(text, JSON_DISABLE_EOF_CHECK, NULL);
    CHECK(root != NULL);
    buf_fini(&output);
    return root;
}

static double value_of(json_t *root, const char *name, const char *metric)
{
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(root, "rows"), i,
                       row) if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0)
    {
        json_t *value = json_object_get(json_object_get(row, metric), "median");
        CHECK(value != NULL);
        return json_number_value(value);
    }
    test_fail(__FILE__, __LINE__, "no row %s", name);
}

/* Where sparse attention sees everything it is full attention; past that it misses some. */
TEST_WITHIN(recall_of_what_is_all_in_sight_is_perfect, 60)
{
    write_m3();
    json_t *root = recall("200");
    CHECK_NEAR(value_of(root, "msa 200 needle", "visible"), 100, 0);
    CHECK_NEAR(value_of(root, "msa 200 tracking", "reached"), 100, 0);
    CHECK_NEAR(value_of(root, "msa 200 tracking", "kl"), 0, 0);
    CHECK_NEAR(value_of(root, "msa 200 needle", "top1"), 100, 0);
    CHECK_NEAR(value_of(root, "window 200 needle", "visible"), 100, 0);
    CHECK_NEAR(value_of(root, "window 200 tracking", "kl"), 0, 0);
    json_decref(root);
    root = recall("1024");
    CHECK(value_of(root, "msa 1024 tracking", "visible") < 100);
    CHECK(value_of(root, "msa 1024 tracking", "kl") > 0);
    CHECK_NEAR(value_of(root, "full 1024 tracking", "kl"), 0, 0);
    /* A window has logits of its own. */
    CHECK(value_of(root, "window 1024 tracking", "kl") > 0);
    CHECK(value_of(root, "window 1024 tracking", "kl") !=
          value_of(root, "msa 1024 tracking", "kl"));
    CHECK(value_of(root, "window 1024 tracking", "visible") < 100);
    CHECK_NEAR(value_of(root, "full 1024 tracking", "visible"), 100, 0);
    CHECK(value_of(root, "msa 1024 tracking", "reached") >=
          value_of(root, "msa 1024 tracking", "visible"));
    json_decref(root);
}

TEST(recall_names_what_is_wrong)
{
    static const struct {
        const char *option, *value, *says;
        int code;
    } rows[] = {{"--tasks", "needles", "\"needles\" is none of needle,multi-key", 2},
                {"--kinds", "all", "none of full,msa,window", 2},
                {"--lengths", "100", "--lengths 100: expected a whole number from 128", 2},
                {"--lengths", "512,5000", "max_position_embeddings of m3 is 4096", 1}};
    write_m3();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *const arguments[] = {"eval",         "recall",      "--model", "m3",
                                         rows[i].option, rows[i].value, NULL};
        struct buf output = {0};
        CHECK_INT(cluster_run("polymath", arguments, &output), rows[i].code);
        CHECK_HAS(output.data, rows[i].says);
        buf_fini(&output);
    }
}
