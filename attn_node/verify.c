/* attn_node/verify.c - see verify.h. */
#include "attn_node/verify.h"

#include <stdint.h>
#include <string.h>

#include "base/must.h"

static size_t vector_bytes(const struct verify_case *c)
{
    return (size_t)c->hidden * (c->mode == COMBINE_NODE ? sizeof(uint16_t) : sizeof(float));
}

static bool is_same(const struct verify_case *c, const struct verify_answer *a,
                    const struct verify_answer *b)
{
    if (a->is_off_grid || b->is_off_grid)
        return a->is_off_grid == b->is_off_grid;
    return memcmp(a->data, b->data, vector_bytes(c)) == 0;
}

/* Said one thing and then another. */
static bool is_contradicted(const struct verify_case *c, const struct verify_part *p)
{
    return p->again.is_there && !is_same(c, &p->said, &p->again);
}

static bool is_outvoted(const struct verify_case *c, const struct verify_part *p)
{
    return p->third.is_there && !is_same(c, &p->said, &p->third);
}

/* With the third holders' word for the parts that they see otherwise: do these add up to the
 * whole? */
static bool adds_up(const struct verify_case *c)
{
    const struct verify_answer *parts[VERIFY_MAX_PARTS];
    bool is_off_grid = false;
    for (int i = 0; i < c->n_parts; i++) {
        parts[i] = is_outvoted(c, &c->parts[i]) ? &c->parts[i].third : &c->parts[i].said;
        is_off_grid |= parts[i]->is_off_grid;
    }
    if (is_off_grid || c->whole.said.is_off_grid)
        return is_off_grid == c->whole.said.is_off_grid;
    if (c->n_parts == 1)
        return is_same(c, parts[0], &c->whole.said);
    must(c->mode == COMBINE_FIXED);
    for (int k = 0; k < c->hidden; k++) {
        uint32_t sum = 0;
        for (int i = 0; i < c->n_parts; i++)
            sum += ((const uint32_t *)parts[i]->data)[k];
        if (sum != ((const uint32_t *)c->whole.said.data)[k])
            return false;
    }
    return true;
}

struct verify_verdict verify_judge(const struct verify_case *c)
{
    must(c->n_parts > 0 && c->n_parts <= VERIFY_MAX_PARTS);
    struct verify_verdict v = {.is_whole_wrong = is_contradicted(c, &c->whole)};
    v.is_decided = v.is_whole_wrong;
    for (int i = 0; i < c->n_parts; i++)
        v.is_decided |= v.is_part_wrong[i] = is_contradicted(c, &c->parts[i]);
    if (v.is_decided)
        return v;
    bool is_any_outvoted = false, is_all_backed = true;
    for (int i = 0; i < c->n_parts; i++) {
        is_any_outvoted |= v.is_part_wrong[i] = is_outvoted(c, &c->parts[i]);
        is_all_backed &= c->parts[i].third.is_there && !v.is_part_wrong[i];
    }
    v.is_whole_wrong = is_all_backed;
    v.is_decided = is_all_backed || (is_any_outvoted && adds_up(c));
    if (v.is_decided)
        return v;
    v.is_whole_wrong = true;
    for (int i = 0; i < c->n_parts; i++)
        v.is_part_wrong[i] = !c->parts[i].third.is_there || is_outvoted(c, &c->parts[i]);
    return v;
}
