/* tests/cluster/test_forms.c - an answer of a certain form is one answer too: a model of random weights, which would
 * say anything, held to a schema on clusters of different sizes. */
#include <stdlib.h>

#include "tests/lib/cluster.h"
#include "tests/lib/test.h"

static const char body[] =
    "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"max_tokens\": 200, \"seed\": 9, "
    "\"temperature\": 1.2, \"chat_template_kwargs\": {\"enable_thinking\": false}, "
    "\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"p\", "
    "\"schema\": "
    "{\"type\": \"object\", \"properties\": {\"id\": {\"type\": \"integer\", \"minimum\": 1, "
    "\"maximum\": 500}, \"side\": {\"enum\": [\"left\", \"right\"]}, \"note\": {\"type\": "
    "\"string\", "
    "\"maxLength\": 8}}, \"required\": [\"id\", \"side\", \"note\"], \"additionalProperties\": "
    "false}}}}";

static char *answer(int n_experts, int n_attention)
{
    struct cluster c;
    cluster_start(&c, n_experts, n_attention, NULL);
    json_t *root = cluster_ask_json(&c, "/v1/chat/completions", body);
    const char *text = json_string_value(cluster_at(root, "choices.0.message.content"));
    test_note("%s", text);
    json_t *v = json_loads(text, 0, NULL);
    CHECK(v != NULL);
    json_int_t id = json_integer_value(json_object_get(v, "id"));
    CHECK(id >= 1 && id <= 500);
    const char *side = json_string_value(json_object_get(v, "side"));
    CHECK(strcmp(side, "left") == 0 || strcmp(side, "right") == 0);
    CHECK_STR(json_string_value(cluster_at(root, "choices.0.finish_reason")), "stop");
    char *copy = json_dumps(v, 0);
    json_decref(v);
    json_decref(root);
    cluster_stop(&c);
    /* the next cluster starts with fresh logs */
    CHECK(system("rm -f *.log *.sock") == 0);
    return copy;
}

TEST_WITHIN(forms_are_the_same_on_every_cluster, 120)
{
    char *one = answer(1, 0), *three = answer(3, 0), *apart = answer(2, 1);
    CHECK_STR(three, one);
    CHECK_STR(apart, one);
    free(one);
    free(three);
    free(apart);
}
