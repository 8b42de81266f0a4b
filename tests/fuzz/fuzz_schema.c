/* tests/fuzz/fuzz_schema.c - a JSON schema is outside data: any bytes, a grammar or one error, in bounded time.
 *
 * First byte: bits 0 and 1 where the schema stands (the answer, a tool's arguments in M2's form, in M3's), the rest a seed.  A
 * grammar is walked at random: until it ends there must always be a way on. */
#include "tests/lib/fuzz.h"

#include <jansson.h>

#include "base/err.h"
#include "base/must.h"
#include "base/rng.h"
#include "model/grammar.h"

enum { STOP = 10, BEGIN = 11, END = 12, NAMESPACE = 13, MAX_STEPS = 120 };

static void walk(struct grammar *g, uint64_t seed)
{
    static const int32_t markers[] = {BEGIN, END, NAMESPACE};
    struct rng r = rng_seed(seed);
    uint32_t state = grammar_start(g);
    must(state != GRAMMAR_DEAD);
    for (int i = 0; i < MAX_STEPS; i++) {
        uint32_t next = GRAMMAR_DEAD;
        int from = (int)rng_below(&r, 256);
        for (int k = 0; k < 256 && next == GRAMMAR_DEAD; k++)
            next = grammar_byte(g, state, (unsigned char)(from + k));
        for (int k = 0; k < 3 && next == GRAMMAR_DEAD; k++)
            next = grammar_marker(g, state, markers[k]);
        if (next == GRAMMAR_DEAD) {
            must(grammar_accepts(g, state));
            return;
        }
        int cut;
        (void)grammar_cut(g, next, &cut);
        must(cut >= 0 && cut <= GRAMMAR_MAX_DEPTH);
        state = next;
    }
}

FUZZ(schema)
{
    if (bytes < 2)
        return;
    json_t *schema =
        json_loadb((const char *)data + 1, bytes - 1, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
    if (!schema)
        return;
    json_t *root = (data[0] & 3) == 0
                       ? json_pack("{s:[i], s:O}", "stops", STOP, "value", schema)
                       : json_pack("{s:[i], s:[i,i], s:b, s:[{s:s, s:O}]}", "stops", STOP, "calls",
                                   BEGIN, END, "forced", 1, "tools", "name", "f", "schema", schema);
    must(root);
    if ((data[0] & 3) > 1)
        json_object_set_new(root, "namespace", json_integer(NAMESPACE));
    char *text = json_dumps(root, 0);
    struct grammar *g = NULL;
    struct err e = {0};
    if (text && grammar_compile(str_of(text), &g, &e) == 0)
        walk(g, data[0]);
    else
        must(!text || e.text[0]);
    grammar_free(&g);
    free(text);
    json_decref(root);
    json_decref(schema);
}
