/* attn_node/choice.c - see choice.h. */
#include "attn_node/choice.h"

#include <stdlib.h>

#include "base/mem.h"
#include "base/must.h"

enum {
    MAX_HOLDERS = 4,
    /* Looks at an expert of another node, in the second pass: it bounds the pass on hundreds of
     * experts, whose loads are nearly even anyway. */
    MAX_LOOKS = 4096,
};

/* Measured speeds that differ by less are equal. */
#define SAME_SPEED 0.1

/* One distinct expert of the question. */
struct item {
    uint16_t expert;
    uint16_t n_holders; /* that may be asked */
    uint16_t holders[MAX_HOLDERS];
};

struct choice {
    int n_experts, n_items;
    uint32_t question;
    uint32_t *asked_in; /* [n_experts] the question that named the expert last */
    uint16_t *chosen;   /* [n_experts] */
    struct item *items; /* [n_experts] */
    int *load;          /* the latest question's */
    const int *cost;
};

struct choice *choice_new(int n_experts)
{
    must(n_experts > 0 && n_experts <= CHOICE_NOBODY);
    struct choice *c = mem_alloc(sizeof(*c));
    c->n_experts = n_experts;
    c->asked_in = mem_array((size_t)n_experts, sizeof(*c->asked_in));
    c->chosen = mem_array((size_t)n_experts, sizeof(*c->chosen));
    c->items = mem_array((size_t)n_experts, sizeof(*c->items));
    return c;
}

void choice_free(struct choice **choice)
{
    struct choice *c = *choice;
    if (!c)
        return;
    *choice = NULL;
    mem_free(c->asked_in);
    mem_free(c->chosen);
    mem_free(c->items);
    mem_free(c);
}

/* The holders of the best standing that is allowed and there. */
static void find_holders(const struct choice_question *q, struct item *item)
{
    const uint16_t *holders = q->holders + (size_t)item->expert * (size_t)q->n_replicas;
    int best = STANDING_AWAY;
    item->n_holders = 0;
    for (int i = 0; i < q->n_replicas && holders[i] != CHOICE_NOBODY; i++) {
        int standing = q->standing[holders[i]];
        if (standing > (int)q->worst || standing > best)
            continue;
        if (standing < best)
            item->n_holders = 0;
        best = standing;
        item->holders[item->n_holders++] = holders[i];
    }
}

static void list_items(struct choice *c, const struct choice_question *q)
{
    c->n_items = 0;
    c->question++;
    for (int i = 0; i < q->n_slots; i++) {
        uint16_t expert = q->experts[q->slots[i]];
        if (c->asked_in[expert] == c->question)
            continue;
        c->asked_in[expert] = c->question;
        c->items[c->n_items].expert = expert;
        find_holders(q, &c->items[c->n_items++]);
    }
}

/* How long a node reads, with `more` experts. */
static int64_t time_of(const struct choice *c, uint16_t node, int more)
{
    return (int64_t)(c->load[node] + more) * (c->cost ? c->cost[node] : 1);
}

/* The first of equals wins, from a place that differs from expert to expert. */
static uint16_t soonest(const struct choice *c, const struct item *item)
{
    unsigned n = item->n_holders, first = item->expert % n;
    uint16_t best = item->holders[first];
    for (unsigned i = 1; i < n; i++) {
        uint16_t holder = item->holders[first + i < n ? first + i : first + i - n];
        if (time_of(c, holder, 1) < time_of(c, best, 1))
            best = holder;
    }
    return best;
}

static void give_out(struct choice *c, int n_holders)
{
    for (int i = 0; i < c->n_items; i++) {
        const struct item *item = &c->items[i];
        if (item->n_holders != n_holders)
            continue;
        uint16_t node = soonest(c, item);
        c->chosen[item->expert] = node;
        c->load[node]++;
    }
}

static void move(struct choice *c, const struct item *item, uint16_t to)
{
    c->load[c->chosen[item->expert]]--;
    c->load[to]++;
    c->chosen[item->expert] = to;
}

/* Another holder that is through before `worst` with one expert more, or NOBODY. */
static uint16_t find_room(const struct choice *c, const struct item *item, int64_t worst)
{
    for (int i = 0; i < item->n_holders; i++)
        if (item->holders[i] != c->chosen[item->expert] && time_of(c, item->holders[i], 1) < worst)
            return item->holders[i];
    return CHOICE_NOBODY;
}

/* Takes `item` to a holder that passes one of its own experts on. */
static bool push_on(struct choice *c, const struct item *item, int64_t worst, int *looks)
{
    for (int i = 0; i < item->n_holders; i++) {
        uint16_t to = item->holders[i];
        if (to == c->chosen[item->expert] || time_of(c, to, 0) >= worst)
            continue;
        for (int k = 0; k < c->n_items && (*looks)-- > 0; k++) {
            const struct item *other = &c->items[k];
            if (other->n_holders < 2 || c->chosen[other->expert] != to)
                continue;
            uint16_t on = find_room(c, other, worst);
            if (on == CHOICE_NOBODY)
                continue;
            move(c, other, on);
            move(c, item, to);
            return true;
        }
    }
    return false;
}

static void even_out(struct choice *c)
{
    int looks = MAX_LOOKS;
    int64_t worst = 0;
    for (int i = 0; i < c->n_items; i++)
        if (c->items[i].n_holders > 0) {
            int64_t time = time_of(c, c->chosen[c->items[i].expert], 0);
            worst = time > worst ? time : worst;
        }
    for (int i = 0; i < c->n_items; i++) {
        const struct item *item = &c->items[i];
        if (item->n_holders < 2 || time_of(c, c->chosen[item->expert], 0) != worst)
            continue;
        uint16_t to = find_room(c, item, worst);
        if (to != CHOICE_NOBODY)
            move(c, item, to);
        else
            push_on(c, item, worst, &looks);
    }
}

/* ---- costs ------------------------------------------------------------------------------- */

static int by_speed(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

void choice_costs(const uint64_t *read_bytes_s, int n_nodes, int *cost)
{
    uint64_t *known = mem_array((size_t)n_nodes + 1, sizeof(*known));
    int n = 0;
    for (int i = 0; i < n_nodes; i++)
        if (read_bytes_s[i] > 0)
            known[n++] = read_bytes_s[i];
    qsort(known, (size_t)n, sizeof(*known), by_speed);
    double median = n > 0 ? (double)known[n / 2] : 1;
    for (int i = 0; i < n_nodes; i++) {
        double slower = read_bytes_s[i] > 0 ? median / (double)read_bytes_s[i] : 1;
        if (slower > 1 - SAME_SPEED && slower < 1 + SAME_SPEED)
            slower = 1;
        slower = slower < 1e-2 ? 1e-2 : slower > 1e3 ? 1e3 : slower;
        cost[i] = (int)(slower * CHOICE_COST);
    }
    mem_free(known);
}

/* ---- the question ------------------------------------------------------------------------ */

int choice_make(struct choice *c, const struct choice_question *q)
{
    must(q->n_replicas >= 1 && q->n_replicas <= MAX_HOLDERS && q->worst < STANDING_AWAY);
    c->load = q->load;
    c->cost = q->cost;
    list_items(c, q);
    int n_without = 0;
    for (int i = 0; i < c->n_items; i++)
        if (c->items[i].n_holders == 0) {
            c->chosen[c->items[i].expert] = CHOICE_NOBODY;
            n_without++;
        }
    if (q->is_whole && n_without > 0)
        return n_without;
    for (int n = 1; n <= q->n_replicas; n++)
        give_out(c, n);
    if (q->n_replicas > 1)
        even_out(c);
    return n_without;
}

uint16_t choice_of(const struct choice *c, uint16_t expert)
{
    must(expert < c->n_experts && c->asked_in[expert] == c->question);
    return c->chosen[expert];
}
