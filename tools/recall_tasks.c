/* tools/recall_tasks.c - see recall_tasks.h. */
#include "tools/recall_tasks.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "base/rng.h"

enum {
    STATEMENT = 4, /* MARK key IS value */
    VALUES = 4,    /* of multi-value */
    HOPS = 4,      /* of a chain */
    TOP = 3,       /* words that common and frequent ask for */
    /* One statement of multi-key for so many tokens. */
    TOKENS_PER_KEY = 32,
    MOST_KEYS = 64,
    /* Of the tokens of `common`, so many for each common word. */
    TOKENS_PER_COMMON = 20,
    LEAST_VOCAB = 512,
};

static const char *const names[RECALL_TASKS] = {"needle",   "multi-key", "multi-value",
                                                "tracking", "common",    "frequent"};

const char *recall_task_name(enum recall_task t)
{
    return names[t];
}

bool recall_task_parse(const char *text, enum recall_task *out)
{
    for (int t = 0; t < RECALL_TASKS; t++)
        if (strcmp(text, names[t]) == 0) {
            *out = (enum recall_task)t;
            return true;
        }
    return false;
}

void recall_item_fini(struct recall_item *item)
{
    mem_free(item->ids);
    mem_free(item->evidence);
    *item = (struct recall_item){0};
}

/* ---- words ---- */

/* The middle of the vocabulary, where no added tokens are: markers, words, keys, values. */
struct words {
    int mark, is, ask;
    int filler, n_filler, key, n_keys, value, n_values;
};

static struct words words_of(int vocab)
{
    int first = vocab / 8, span = vocab / 4;
    return (struct words){.mark = first,
                          .is = first + 1,
                          .ask = first + 2,
                          .filler = first + 8,
                          .n_filler = span,
                          .key = first + 8 + span,
                          .n_keys = span / 2,
                          .value = first + 8 + span + span / 2,
                          .n_values = span / 2};
}

struct making {
    struct recall_item *item;
    struct words words;
    struct rng rng;
    int32_t *slots; /* [n_slots] places for statements, shuffled */
    int n_slots, n_used;
};

/* n different numbers below `bound`, in random order. */
static void draw_different(struct rng *r, int bound, int n, int32_t *out)
{
    must(n <= bound);
    for (int i = 0; i < n;) {
        int32_t value = (int32_t)rng_below(r, (uint64_t)bound);
        int seen = 0;
        while (seen < i && out[seen] != value)
            seen++;
        if (seen == i)
            out[i++] = value;
    }
}

static void fill(struct making *m, int n)
{
    for (int i = 0; i < n; i++)
        m->item->ids[i] =
            m->words.filler + (int32_t)rng_below(&m->rng, (uint64_t)m->words.n_filler);
}

static void note(struct making *m, int position)
{
    m->item->evidence[m->item->n_evidence++] = position;
}

static int compare_positions(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* ---- statements ---- */

static void shuffle_slots(struct making *m, int body)
{
    m->n_slots = body / STATEMENT;
    m->slots = mem_array((size_t)m->n_slots, sizeof *m->slots);
    for (int i = 0; i < m->n_slots; i++) {
        int j = (int)rng_below(&m->rng, (uint64_t)i + 1);
        m->slots[i] = m->slots[j];
        m->slots[j] = i * STATEMENT;
    }
}

/* n further places, ascending. */
static void take_slots(struct making *m, int n, int32_t *out)
{
    must(m->n_used + n <= m->n_slots);
    memcpy(out, m->slots + m->n_used, (size_t)n * sizeof *out);
    m->n_used += n;
    qsort(out, (size_t)n, sizeof *out, compare_positions);
}

static void state(struct making *m, int at, int32_t key, int32_t value, bool matters)
{
    const int32_t statement[STATEMENT] = {m->words.mark, key, m->words.is, value};
    memcpy(m->item->ids + at, statement, sizeof statement);
    if (matters) {
        note(m, at + 1);
        note(m, at + 3);
    }
}

static void ask_for(struct making *m, int32_t key)
{
    int32_t *to = m->item->ids + m->item->n_prompt - (STATEMENT - 1);
    to[0] = m->words.mark;
    to[1] = key;
    to[2] = m->words.is;
}

/* `n_keys` statements with different keys, each with its value; the first drawn is asked for. */
static void make_keys(struct making *m, int n_keys)
{
    int32_t keys[MOST_KEYS], values[MOST_KEYS], slots[MOST_KEYS];
    draw_different(&m->rng, m->words.n_keys, n_keys, keys);
    draw_different(&m->rng, m->words.n_values, n_keys, values);
    take_slots(m, n_keys, slots);
    int asked = (int)rng_below(&m->rng, (uint64_t)n_keys);
    for (int i = 0; i < n_keys; i++)
        state(m, slots[i], m->words.key + keys[i], m->words.value + values[i], i == asked);
    ask_for(m, m->words.key + keys[asked]);
    m->item->answer[0] = m->words.value + values[asked];
}

static void make_values(struct making *m)
{
    int32_t key, values[VALUES], slots[VALUES];
    draw_different(&m->rng, m->words.n_keys, 1, &key);
    draw_different(&m->rng, m->words.n_values, VALUES, values);
    take_slots(m, VALUES, slots);
    for (int i = 0; i < VALUES; i++) {
        m->item->answer[i] = m->words.value + values[i];
        state(m, slots[i], m->words.key + key, m->item->answer[i], true);
    }
    ask_for(m, m->words.key + key);
}

/* Every key is the value of the next one's statement. */
static void make_chain(struct making *m, const int32_t *keys, int32_t value, bool matters)
{
    int32_t slots[HOPS];
    take_slots(m, HOPS, slots);
    for (int i = 0; i < HOPS; i++)
        state(m, slots[i], m->words.key + keys[i], i > 0 ? m->words.key + keys[i - 1] : value,
              matters);
}

static void make_tracking(struct making *m)
{
    int32_t keys[2 * HOPS], values[2];
    draw_different(&m->rng, m->words.n_keys, 2 * HOPS, keys);
    draw_different(&m->rng, m->words.n_values, 2, values);
    m->item->answer[0] = m->words.value + values[0];
    make_chain(m, keys, m->item->answer[0], true);
    make_chain(m, keys + HOPS, m->words.value + values[1], false);
    ask_for(m, m->words.key + keys[HOPS - 1]);
}

/* ---- words that come often ---- */

static void ask_for_words(struct making *m, int body)
{
    struct recall_item *item = m->item;
    item->ids[body] = m->words.mark;
    item->ids[body + 1] = m->words.ask;
    item->ids[body + 2] = m->words.is;
    for (int i = 0; i < body; i++)
        for (int k = 0; k < item->n_answer; k++)
            if (item->ids[i] == item->answer[k])
                note(m, i);
}

static void make_common(struct making *m, int body)
{
    struct recall_item *item = m->item;
    int32_t words[TOP];
    int times = body / TOKENS_PER_COMMON, n_answer = 0;
    draw_different(&m->rng, m->words.n_values, TOP, words);
    for (int k = 0; k < TOP; k++)
        for (int i = 0; i < times; i++)
            item->ids[rng_below(&m->rng, (uint64_t)body)] = m->words.value + words[k];
    for (int i = 0; i < body && n_answer < TOP; i++) {
        int seen = 0;
        bool is_common = item->ids[i] >= m->words.value;
        while (seen < n_answer && item->answer[seen] != item->ids[i])
            seen++;
        if (is_common && seen == n_answer)
            item->answer[n_answer++] = item->ids[i];
    }
    /* Another word may have taken all places of one. */
    for (; n_answer < TOP; n_answer++)
        item->answer[n_answer] = item->answer[0];
    ask_for_words(m, body);
}

/* Word k is drawn with a weight of 1 / (k + 1)^2. */
static void make_frequent(struct making *m, int body)
{
    enum { WORDS = 64 };
    struct recall_item *item = m->item;
    int32_t words[WORDS];
    double below[WORDS], sum = 0;
    draw_different(&m->rng, m->words.n_values, WORDS, words);
    for (int k = 0; k < WORDS; k++)
        below[k] = sum += 1.0 / ((k + 1) * (k + 1));
    for (int i = 0; i < body; i++) {
        double drawn = rng_unit(&m->rng) * sum;
        int k = 0;
        while (k < WORDS - 1 && below[k] <= drawn)
            k++;
        item->ids[i] = m->words.value + words[k];
    }
    for (int k = 0; k < TOP; k++)
        item->answer[k] = m->words.value + words[k];
    ask_for_words(m, body);
}

/* ---- the door ---- */

static int n_answers(enum recall_task t)
{
    static const int n[RECALL_TASKS] = {1, 1, VALUES, 1, TOP, TOP};
    return n[t];
}

static void make(struct making *m, enum recall_task task, int body)
{
    int n_keys = body / TOKENS_PER_KEY;
    fill(m, m->item->n_prompt);
    shuffle_slots(m, body);
    switch (task) {
    case RECALL_NEEDLE:
        make_keys(m, 1);
        break;
    case RECALL_MULTI_KEY:
        n_keys = n_keys > MOST_KEYS ? MOST_KEYS : n_keys;
        make_keys(m, n_keys > m->words.n_keys ? m->words.n_keys : n_keys);
        break;
    case RECALL_MULTI_VALUE:
        make_values(m);
        break;
    case RECALL_TRACKING:
        make_tracking(m);
        break;
    case RECALL_COMMON:
        make_common(m, body);
        break;
    default:
        make_frequent(m, body);
        break;
    }
    mem_free(m->slots);
}

int recall_item_make(enum recall_task task, int length, int vocab, uint64_t seed,
                     struct recall_item *out, struct err *e)
{
    *out = (struct recall_item){0};
    if (vocab < LEAST_VOCAB)
        return err_set(e, E_RANGE,
                       "a vocabulary of %d tokens is too small for tasks; %d are needed", vocab,
                       LEAST_VOCAB);
    if (length < RECALL_LEAST_LENGTH)
        return err_set(e, E_RANGE, "%d tokens are too few for a task; %d are needed", length,
                       RECALL_LEAST_LENGTH);
    int n_answer = n_answers(task), n_prompt = length - (n_answer - 1);
    *out = (struct recall_item){.length = length,
                                .n_prompt = n_prompt,
                                .n_answer = n_answer,
                                .ids = mem_array((size_t)length, sizeof *out->ids),
                                .evidence = mem_array((size_t)length, sizeof *out->evidence)};
    struct making m = {.item = out,
                       .words = words_of(vocab),
                       .rng = rng_stream(seed, (uint64_t)task << 32 | (uint64_t)length)};
    make(&m, task, n_prompt - (STATEMENT - 1));
    for (int i = 0; i < n_answer - 1; i++)
        out->ids[n_prompt + i] = out->answer[i];
    qsort(out->evidence, (size_t)out->n_evidence, sizeof *out->evidence, compare_positions);
    return 0;
}
