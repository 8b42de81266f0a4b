/* attn_node/forward_call.c - see forward_call.h. */
#include "attn_node/forward_call.h"

#include <string.h>

#include "base/must.h"

enum { POOLED_BLOBS = 16 /* of each kind */ };

void forward_calls_init(struct forward_calls *f, int max_rows, int top_k)
{
    uint32_t n = (uint32_t)max_rows;
    struct wire_forward most = {
        .n_rows = n, .hidden = (uint32_t)f->hidden, .group = (uint32_t)f->group};
    size_t rows_bytes;
    must(wire_forward_rows_bytes(&most, &rows_bytes));
    f->route_blobs = blob_pool_new(wire_forward_routes_bytes(n, n * (uint32_t)top_k), POOLED_BLOBS);
    f->row_blobs = blob_pool_new(rows_bytes, POOLED_BLOBS);
}

void forward_calls_fini(struct forward_calls *f)
{
    blob_pool_free(&f->route_blobs);
    blob_pool_free(&f->row_blobs);
    buf_fini(&f->message);
}

struct wire_forward forward_describe(const struct forward_calls *f, const struct forward_about *a,
                                     const struct round_parcel *p)
{
    return (struct wire_forward){
        .fingerprint = f->fingerprint,
        .epoch = a->epoch,
        .step = a->step,
        .layer = (uint32_t)a->layer,
        .lane = (uint32_t)a->lane,
        .n_rows = (uint32_t)p->n_rows,
        .hidden = (uint32_t)f->hidden,
        .n_routes = (uint32_t)p->n_routes,
        .group = (uint32_t)f->group,
        .mode = p->mode,
    };
}

static struct blob *pack_routes(struct forward_calls *f, const struct wire_forward *w,
                                const struct round_parcel *p)
{
    struct blob *b = blob_pool_get(f->route_blobs);
    b->size_bytes = wire_forward_routes_bytes(w->n_rows, w->n_routes);
    wire_forward_pack_routes(w, p->first_route, p->exponents, p->experts, p->weights, b->data);
    return b;
}

static struct blob *pack_rows(struct forward_calls *f, const struct wire_forward *w,
                              const struct round_parcel *p, const struct rows *rows)
{
    struct blob *b = blob_pool_get(f->row_blobs);
    size_t hidden = w->hidden, n = w->n_rows, n_groups = wire_forward_groups(w);
    must(wire_forward_rows_bytes(w, &b->size_bytes));
    char *out = b->data, *scales = out + n * hidden;
    for (size_t i = 0; i < n; i++) {
        size_t row = (size_t)p->rows[i];
        if (w->group == 0) {
            memcpy(out + i * hidden * sizeof(float), rows->f32 + row * rows->f32_stride,
                   hidden * sizeof(float));
            continue;
        }
        memcpy(out + i * hidden, rows->q8 + row * rows->q8_stride, hidden);
        memcpy(scales + i * n_groups * sizeof(float), rows->scales + row * rows->scale_stride,
               n_groups * sizeof(float));
    }
    return b;
}

int forward_send(struct forward_calls *f, struct channel *c, const struct forward_request *r,
                 uint64_t *call_id, uint64_t *bytes)
{
    struct wire_forward w = forward_describe(f, &r->about, r->parcel);
    buf_reset(&f->message);
    wire_forward_encode(&w, &f->message);
    struct blob *payloads[] = {pack_routes(f, &w, r->parcel), pack_rows(f, &w, r->parcel, r->rows)};
    struct call call = {
        .method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
        .message = &f->message,
        .payloads = payloads,
        .n_payloads = 2,
        .deadline_ns = r->deadline_ns,
        .trace_id = r->trace_id,
        .done = r->done,
        .ud = r->ud,
    };
    *bytes = payloads[0]->size_bytes + payloads[1]->size_bytes;
    int rc = channel_call(c, &call, call_id);
    blob_unref(&payloads[0]);
    blob_unref(&payloads[1]);
    return rc;
}
