/* coordinator/lending.c - see lending.h.  A handful of entries: every look-up is a walk. */
#include "coordinator/lending.h"

#include <string.h>

#include "base/mem.h"
#include "base/must.h"

void lending_fini(struct lending *l)
{
    mem_free(l->sides);
    mem_free(l->hosts);
    *l = (struct lending){0};
}

const struct lending_host *lending_find(const struct lending *l, uint32_t node_id)
{
    for (int i = 0; i < l->n_hosts; i++)
        if (l->hosts[i].node_id == node_id)
            return &l->hosts[i];
    return NULL;
}

static int find_side(const struct lending *l, uint32_t node_id)
{
    for (int i = 0; i < l->n_sides; i++)
        if (l->sides[i].node_id == node_id)
            return i;
    return -1;
}

uint64_t lending_bytes(const struct lending *l, uint32_t side_id)
{
    uint64_t bytes = 0;
    for (int i = 0; i < l->n_hosts; i++)
        if (l->hosts[i].borrower == side_id)
            bytes += l->hosts[i].bytes;
    return bytes;
}

/* 0: nobody borrows. */
static uint32_t neediest(const struct lending *l)
{
    uint32_t best = 0;
    uint64_t least = 0;
    for (int i = 0; i < l->n_sides; i++) {
        uint32_t id = l->sides[i].node_id;
        uint64_t bytes = lending_bytes(l, id);
        if (l->sides[i].is_leaving)
            continue;
        if (best == 0 || bytes < least || (bytes == least && id < best)) {
            best = id;
            least = bytes;
        }
    }
    return best;
}

/* Whoever lends to nobody gets a borrower, if there is one. */
static bool give(struct lending *l)
{
    bool has_changed = false;
    for (int i = 0; i < l->n_hosts; i++) {
        if (l->hosts[i].borrower != 0)
            continue;
        l->hosts[i].borrower = neediest(l);
        has_changed |= l->hosts[i].borrower != 0;
    }
    return has_changed;
}

bool lending_side_joins(struct lending *l, uint32_t node_id)
{
    must(node_id != 0 && find_side(l, node_id) < 0);
    l->sides = mem_resize(l->sides, (size_t)(l->n_sides + 1) * sizeof *l->sides);
    l->sides[l->n_sides++] = (struct lending_side){.node_id = node_id};
    return give(l);
}

void lending_side_leaves(struct lending *l, uint32_t node_id)
{
    int at = find_side(l, node_id);
    if (at >= 0)
        l->sides[at].is_leaving = true;
}

bool lending_side_gone(struct lending *l, uint32_t node_id)
{
    int at = find_side(l, node_id);
    if (at < 0)
        return false;
    l->sides[at] = l->sides[--l->n_sides];
    bool has_changed = false;
    for (int i = 0; i < l->n_hosts; i++)
        if (l->hosts[i].borrower == node_id) {
            l->hosts[i].borrower = 0;
            has_changed = true;
        }
    return give(l) || has_changed;
}

bool lending_host_joins(struct lending *l, uint32_t node_id, uint64_t bytes)
{
    must(node_id != 0 && !lending_find(l, node_id));
    l->hosts = mem_resize(l->hosts, (size_t)(l->n_hosts + 1) * sizeof *l->hosts);
    l->hosts[l->n_hosts++] = (struct lending_host){.node_id = node_id, .bytes = bytes};
    return give(l);
}

bool lending_host_gone(struct lending *l, uint32_t node_id)
{
    for (int i = 0; i < l->n_hosts; i++) {
        if (l->hosts[i].node_id != node_id)
            continue;
        bool was_lent = l->hosts[i].borrower != 0;
        l->n_hosts--;
        memmove(&l->hosts[i], &l->hosts[i + 1], (size_t)(l->n_hosts - i) * sizeof *l->hosts);
        return was_lent;
    }
    return false;
}
