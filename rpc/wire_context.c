/* rpc/wire_context.c - attention over pages that another host holds: struct <-> frames.
 *
 * Rows are neither packed nor unpacked here: callers fill blobs and servers copy from frames, once each. */
#include <string.h>

#include "base/mem.h"
#include "base/must.h"
#include "proto/context.pb-c.h"
#include "rpc/wire.h"
#include "rpc/wire_codec.h"

/* ---- Open ------------------------------------------------------------------------- */

void wire_context_open_encode(const struct wire_context_open *m, struct buf *message)
{
    Polymath__V1__ContextOpenRequest p;
    polymath__v1__context_open_request__init(&p);
    p.fingerprint = m->fingerprint;
    p.kv = wire_borrow(kv_format_name(m->kv));
    p.protocol_version = m->protocol_version;
    p.owner = wire_borrow(m->owner);
    p.max_rows = m->max_rows;
    wire_pack(&p.base, message);
}

static int read_open(const Polymath__V1__ContextOpenRequest *p, struct wire_context_open *out,
                     struct err *e)
{
    if (!kv_format_parse(p->kv, &out->kv))
        return wire_invalid(e, "kv: \"%.32s\" is none of " KV_FORMAT_CHOICES, p->kv);
    if (p->max_rows == 0 || p->max_rows > WIRE_MAX_ROWS)
        return wire_invalid(e, "max_rows %u, 1 to %d are possible", p->max_rows, WIRE_MAX_ROWS);
    out->fingerprint = p->fingerprint;
    out->protocol_version = p->protocol_version;
    out->max_rows = p->max_rows;
    return wire_text(out->owner, sizeof(out->owner), p->owner, "owner", e);
}

int wire_context_open_decode(struct str message, struct wire_context_open *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__ContextOpenRequest *p =
        wire_unpack(&memory, &polymath__v1__context_open_request__descriptor, message, e);
    int rc = p ? read_open(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}

void wire_context_open_reply_encode(const struct wire_context_open_reply *m, struct buf *message)
{
    Polymath__V1__ContextOpenReply p;
    polymath__v1__context_open_reply__init(&p);
    p.session = m->session;
    p.pages = m->pages;
    p.page_tokens = m->page_tokens;
    p.max_seqs = m->max_seqs;
    wire_pack(&p.base, message);
}

static int read_open_reply(const Polymath__V1__ContextOpenReply *p,
                           struct wire_context_open_reply *out, struct err *e)
{
    *out = (struct wire_context_open_reply){.session = p->session,
                                            .pages = p->pages,
                                            .page_tokens = p->page_tokens,
                                            .max_seqs = p->max_seqs};
    if (p->session == 0)
        return wire_invalid(e, "session 0");
    if (p->pages > INT32_MAX || p->page_tokens == 0 || p->page_tokens > INT32_MAX ||
        p->max_seqs == 0 || p->max_seqs > INT32_MAX)
        return wire_invalid(e, "%u pages of %u tokens for %u sequences", p->pages, p->page_tokens,
                            p->max_seqs);
    return 0;
}

int wire_context_open_reply_decode(struct str message, struct wire_context_open_reply *out,
                                   struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__ContextOpenReply *p =
        wire_unpack(&memory, &polymath__v1__context_open_reply__descriptor, message, e);
    int rc = p ? read_open_reply(p, out, e) : E_INVALID;
    wire_memory_fini(&memory);
    return rc;
}

/* ---- Begin ------------------------------------------------------------------------ */

void wire_context_begin_encode(const struct wire_context_begin *m, struct buf *message,
                               struct blob **payload)
{
    must(m->n_parts <= WIRE_MAX_SEQS && m->n_groups <= WIRE_MAX_ROWS);
    Polymath__V1__ContextPart *parts = mem_array(m->n_parts, sizeof(*parts));
    Polymath__V1__ContextPart **part_pointers =
        mem_array(m->n_parts, sizeof(Polymath__V1__ContextPart *));
    size_t n_pages = 0;
    for (uint32_t i = 0; i < m->n_parts; i++) {
        polymath__v1__context_part__init(&parts[i]);
        parts[i].seq = m->parts[i].seq;
        parts[i].n_kept = m->parts[i].n_kept;
        parts[i].n_new = m->parts[i].n_new;
        part_pointers[i] = &parts[i];
        n_pages += m->parts[i].n_new;
    }
    Polymath__V1__ContextGroup *groups = mem_array(m->n_groups, sizeof(*groups));
    Polymath__V1__ContextGroup **group_pointers =
        mem_array(m->n_groups, sizeof(Polymath__V1__ContextGroup *));
    for (uint32_t i = 0; i < m->n_groups; i++) {
        polymath__v1__context_group__init(&groups[i]);
        groups[i].part = m->groups[i].part;
        groups[i].n_rows = m->groups[i].n_rows;
        groups[i].position = m->groups[i].position;
        groups[i].chooses = m->groups[i].chooses;
        groups[i].ends = m->groups[i].ends;
        group_pointers[i] = &groups[i];
    }
    Polymath__V1__ContextBeginRequest p;
    polymath__v1__context_begin_request__init(&p);
    p.session = m->session;
    p.step = m->step;
    p.lane = m->lane;
    p.n_parts = m->n_parts;
    p.parts = part_pointers;
    p.n_groups = m->n_groups;
    p.groups = group_pointers;
    wire_pack(&p.base, message);
    *payload = n_pages > 0 ? blob_copy(m->pages, n_pages * sizeof(*m->pages)) : NULL;
    mem_free(group_pointers);
    mem_free(groups);
    mem_free(part_pointers);
    mem_free(parts);
}

static int check_parts(const Polymath__V1__ContextBeginRequest *p, uint64_t *n_pages,
                       const struct wire_context_limits *l, struct err *e)
{
    if (p->n_parts > l->max_seqs || p->n_parts > WIRE_MAX_SEQS)
        return wire_invalid(e, "%zu parts, at most %u are taken", p->n_parts, l->max_seqs);
    for (size_t i = 0; i < p->n_parts; i++) {
        const Polymath__V1__ContextPart *part = p->parts[i];
        if (part->seq >= l->max_seqs)
            return wire_invalid(e, "sequence %u, numbers are below %u", part->seq, l->max_seqs);
        if ((uint64_t)part->n_kept + part->n_new > l->n_pages)
            return wire_invalid(e, "sequence %u: %u and %u pages of %u", part->seq, part->n_kept,
                                part->n_new, l->n_pages);
        *n_pages += part->n_new;
    }
    return 0;
}

static int check_groups(const Polymath__V1__ContextBeginRequest *p,
                        const struct wire_context_limits *l, struct err *e)
{
    uint64_t n_rows = 0;
    for (size_t i = 0; i < p->n_groups; i++) {
        const Polymath__V1__ContextGroup *g = p->groups[i];
        if (g->part >= p->n_parts || (i > 0 && g->part < p->groups[i - 1]->part))
            return wire_invalid(e, "group %zu of part %u of %zu, out of order", i, g->part,
                                p->n_parts);
        if (g->n_rows == 0 || g->n_rows > WIRE_CONTEXT_GROUP_ROWS)
            return wire_invalid(e, "group %zu has %u rows, 1 to %d are possible", i, g->n_rows,
                                WIRE_CONTEXT_GROUP_ROWS);
        if (g->position > INT32_MAX - WIRE_CONTEXT_GROUP_ROWS)
            return wire_invalid(e, "group %zu at position %u", i, g->position);
        n_rows += g->n_rows;
    }
    if (n_rows > l->max_rows)
        return wire_invalid(e, "%llu rows, at most %u are taken", (unsigned long long)n_rows,
                            l->max_rows);
    return 0;
}

static int check_begin(const Polymath__V1__ContextBeginRequest *p, const struct frame *payloads,
                       int n_payloads, const struct wire_context_limits *l, struct err *e)
{
    if (p->lane >= WIRE_CONTEXT_LANES)
        return wire_invalid(e, "lane %u of %d", p->lane, WIRE_CONTEXT_LANES);
    uint64_t n_pages = 0;
    int rc = check_parts(p, &n_pages, l, e);
    if (rc == 0)
        rc = check_groups(p, l, e);
    if (rc < 0)
        return rc;
    if (n_payloads != (n_pages > 0) ||
        (n_pages > 0 && payloads[0].size_bytes != n_pages * sizeof(int32_t)))
        return wire_invalid(e, "%d payloads, not one of %llu pages", n_payloads,
                            (unsigned long long)n_pages);
    return 0;
}

/* Everything in one block. */
static int read_begin(const Polymath__V1__ContextBeginRequest *p, const struct frame *payload,
                      const struct wire_context_limits *l, struct wire_context_begin **out,
                      struct err *e)
{
    size_t n_pages = payload ? payload->size_bytes / sizeof(int32_t) : 0;
    struct wire_context_begin *b = mem_try_aligned(
        sizeof(*b) + p->n_parts * sizeof(struct wire_context_part) +
        p->n_groups * sizeof(struct wire_context_group) + n_pages * sizeof(int32_t));
    if (!b)
        return err_set(e, E_NOMEM, "no memory for %zu groups", p->n_groups);
    struct wire_context_part *parts = (struct wire_context_part *)(void *)(b + 1);
    struct wire_context_group *groups = (struct wire_context_group *)(void *)(parts + p->n_parts);
    int32_t *pages = (int32_t *)(void *)(groups + p->n_groups);
    *b = (struct wire_context_begin){.session = p->session,
                                     .step = p->step,
                                     .lane = p->lane,
                                     .n_parts = (uint32_t)p->n_parts,
                                     .n_groups = (uint32_t)p->n_groups,
                                     .parts = parts,
                                     .pages = pages,
                                     .groups = groups};
    for (size_t i = 0; i < p->n_parts; i++)
        parts[i] = (struct wire_context_part){
            .seq = p->parts[i]->seq, .n_kept = p->parts[i]->n_kept, .n_new = p->parts[i]->n_new};
    for (size_t i = 0; i < p->n_groups; i++)
        groups[i] = (struct wire_context_group){.part = p->groups[i]->part,
                                                .n_rows = p->groups[i]->n_rows,
                                                .position = p->groups[i]->position,
                                                .chooses = p->groups[i]->chooses,
                                                .ends = p->groups[i]->ends};
    if (n_pages > 0)
        memcpy(pages, payload->data, n_pages * sizeof(*pages));
    for (size_t i = 0; i < n_pages; i++)
        if (pages[i] < 0 || (uint32_t)pages[i] >= l->n_pages) {
            int rc = wire_invalid(e, "page %d of %u", pages[i], l->n_pages);
            mem_free(b);
            return rc;
        }
    *out = b;
    return 0;
}

int wire_context_begin_decode(struct str message, const struct frame *payloads, int n_payloads,
                              const struct wire_context_limits *limits,
                              struct wire_context_begin **out, struct err *e)
{
    *out = NULL;
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__ContextBeginRequest *p =
        wire_unpack(&memory, &polymath__v1__context_begin_request__descriptor, message, e);
    int rc = p ? check_begin(p, payloads, n_payloads, limits, e) : E_INVALID;
    if (rc == 0)
        rc = read_begin(p, n_payloads > 0 ? &payloads[0] : NULL, limits, out, e);
    wire_memory_fini(&memory);
    return rc;
}

/* ---- Choose and Attend ------------------------------------------------------------ */

void wire_context_call_encode(const struct wire_context_call *m, struct buf *message)
{
    Polymath__V1__ContextCall p;
    polymath__v1__context_call__init(&p);
    p.session = m->session;
    p.step = m->step;
    p.lane = m->lane;
    p.layer = m->layer;
    p.writes = m->has_writes;
    p.states = m->has_states;
    wire_pack(&p.base, message);
}

int wire_context_call_decode(struct str message, struct wire_context_call *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    struct wire_memory memory;
    wire_memory_init(&memory);
    const Polymath__V1__ContextCall *p =
        wire_unpack(&memory, &polymath__v1__context_call__descriptor, message, e);
    int rc = p ? 0 : E_INVALID;
    if (p)
        *out = (struct wire_context_call){.session = p->session,
                                          .step = p->step,
                                          .lane = p->lane,
                                          .layer = p->layer,
                                          .has_writes = p->writes,
                                          .has_states = p->states};
    if (p && p->lane >= WIRE_CONTEXT_LANES)
        rc = wire_invalid(e, "lane %u of %d", p->lane, WIRE_CONTEXT_LANES);
    wire_memory_fini(&memory);
    return rc;
}

struct wire_context_counts wire_context_count(const struct wire_context_begin *m)
{
    struct wire_context_counts n = {0};
    for (uint32_t i = 0; i < m->n_groups; i++) {
        const struct wire_context_group *g = &m->groups[i];
        n.rows += g->n_rows;
        n.ending += g->ends ? g->n_rows : 0;
        n.choosing += g->chooses ? g->n_rows : 0;
    }
    return n;
}

static bool is_sparse(const struct wire_context_model *m, uint32_t layer)
{
    return layer >= m->n_full_layers;
}

size_t wire_context_writes_bytes(const struct wire_context_model *m,
                                 const struct wire_context_counts *n, uint32_t layer)
{
    size_t row = 2 * (size_t)m->n_kv_heads * m->head_dim;
    return n->ending * (row + (is_sparse(m, layer) ? m->index_dim : 0)) * sizeof(float);
}

size_t wire_context_index_q_bytes(const struct wire_context_model *m,
                                  const struct wire_context_counts *n)
{
    return (size_t)n->choosing * m->index_heads * m->index_dim * sizeof(float);
}

size_t wire_context_candidates_bytes(const struct wire_context_model *m,
                                     const struct wire_context_counts *n)
{
    size_t n_each = m->top_k > 0 ? m->top_k - 1 : 0;
    return (size_t)n->choosing * m->index_heads * n_each * sizeof(struct wire_context_candidate);
}

size_t wire_context_q_bytes(const struct wire_context_model *m, const struct wire_context_counts *n)
{
    return (size_t)n->rows * m->n_heads * m->head_dim * sizeof(float);
}

size_t wire_context_blocks_bytes(const struct wire_context_model *m,
                                 const struct wire_context_counts *n, uint32_t layer)
{
    return is_sparse(m, layer) ? (size_t)n->choosing * m->n_kv_heads * m->top_k * sizeof(int32_t)
                               : 0;
}

size_t wire_context_state_bytes(const struct wire_context_model *m,
                                const struct wire_context_counts *n)
{
    return (size_t)n->rows * m->n_heads * 2 * sizeof(float);
}

size_t wire_context_states_bytes(const struct wire_context_model *m,
                                 const struct wire_context_counts *n)
{
    return wire_context_state_bytes(m, n) + wire_context_q_bytes(m, n);
}

/* The payloads that a call has, in their order. */
struct expected {
    int n;
    struct {
        const char *what;
        size_t bytes;
        const void **out;
    } parts[4];
};

static void expect(struct expected *x, const char *what, size_t bytes, const void **out)
{
    x->parts[x->n].what = what;
    x->parts[x->n].bytes = bytes;
    x->parts[x->n++].out = out;
}

static int take_expected(const struct expected *x, const struct frame *payloads, int n_payloads,
                         struct err *e)
{
    if (n_payloads != x->n)
        return wire_invalid(e, "%d payloads, expected %d", n_payloads, x->n);
    for (int i = 0; i < x->n; i++) {
        if (payloads[i].size_bytes != x->parts[i].bytes)
            return wire_invalid(e, "%s: %zu bytes, expected %zu", x->parts[i].what,
                                payloads[i].size_bytes, x->parts[i].bytes);
        *x->parts[i].out = payloads[i].data;
    }
    return 0;
}

static int check_call(const struct wire_context_call *m, const struct wire_context_model *model,
                      const struct wire_context_counts *n, struct err *e)
{
    if (m->layer >= model->n_layers)
        return wire_invalid(e, "layer %u of %u", m->layer, model->n_layers);
    if (n->rows == 0)
        return wire_invalid(e, "no rows were announced in lane %u", m->lane);
    if (m->has_writes && n->ending == 0)
        return wire_invalid(e, "writes, and no row ends here");
    return 0;
}

int wire_context_choose_payloads(const struct wire_context_call *m, const struct frame *payloads,
                                 int n_payloads, const struct wire_context_model *model,
                                 const struct wire_context_counts *counts,
                                 struct wire_context_rows *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    int rc = check_call(m, model, counts, e);
    if (rc < 0)
        return rc;
    if (counts->choosing == 0 || !is_sparse(model, m->layer))
        return wire_invalid(e, "layer %u: nothing is to be chosen", m->layer);
    if (m->has_states)
        return wire_invalid(e, "states, which Choose does not have");
    struct expected x = {0};
    if (m->has_writes)
        expect(&x, "writes", wire_context_writes_bytes(model, counts, m->layer), &out->writes);
    expect(&x, "index_q", wire_context_index_q_bytes(model, counts), &out->index_q);
    return take_expected(&x, payloads, n_payloads, e);
}

int wire_context_attend_payloads(const struct wire_context_call *m, const struct frame *payloads,
                                 int n_payloads, const struct wire_context_model *model,
                                 const struct wire_context_counts *counts,
                                 struct wire_context_rows *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    int rc = check_call(m, model, counts, e);
    if (rc < 0)
        return rc;
    struct expected x = {0};
    if (m->has_writes)
        expect(&x, "writes", wire_context_writes_bytes(model, counts, m->layer), &out->writes);
    expect(&x, "q", wire_context_q_bytes(model, counts), &out->q);
    size_t blocks_bytes = wire_context_blocks_bytes(model, counts, m->layer);
    if (blocks_bytes > 0)
        expect(&x, "blocks", blocks_bytes, &out->blocks);
    if (m->has_states)
        expect(&x, "states", wire_context_states_bytes(model, counts), &out->states);
    return take_expected(&x, payloads, n_payloads, e);
}

/* ---- answers ---------------------------------------------------------------------- */

static int check_candidates(const struct wire_context_candidate *list, uint32_t n, int32_t n_blocks,
                            struct err *e)
{
    for (uint32_t i = 0; i < n; i++) {
        int32_t block = list[i].block;
        if (block < -1 || block >= n_blocks)
            return wire_invalid(e, "block %d of %d", block, n_blocks);
        if (block >= 0 && i > 0 && list[i - 1].block < 0)
            return wire_invalid(e, "block %d behind the end", block);
        for (uint32_t k = 0; block >= 0 && k < i; k++)
            if (list[k].block == block)
                return wire_invalid(e, "block %d twice", block);
    }
    return 0;
}

int wire_context_choose_reply_decode(const struct frame *payloads, int n_payloads,
                                     const struct wire_context_model *model,
                                     const struct wire_context_counts *counts,
                                     const int32_t *n_blocks, struct wire_context_candidate *out,
                                     struct err *e)
{
    const void *data = NULL;
    size_t bytes = wire_context_candidates_bytes(model, counts);
    struct expected x = {0};
    expect(&x, "candidates", bytes, &data);
    int rc = take_expected(&x, payloads, n_payloads, e);
    if (rc == 0 && bytes > 0)
        memcpy(out, data, bytes);
    uint32_t n_each = model->top_k - 1;
    for (size_t i = 0; rc == 0 && bytes > 0 && i < (size_t)counts->choosing * model->index_heads;
         i++)
        rc = check_candidates(out + i * n_each, n_each, n_blocks[i / model->index_heads], e);
    return rc;
}

int wire_context_attend_reply_decode(const struct frame *payloads, int n_payloads,
                                     const struct wire_context_model *model,
                                     const struct wire_context_counts *counts, const void **out,
                                     struct err *e)
{
    *out = NULL;
    struct expected x = {0};
    expect(&x, "states", wire_context_states_bytes(model, counts), out);
    return take_expected(&x, payloads, n_payloads, e);
}
