/* engine/attention_weights.c - a layer's weights for attention.h, packed. */
#include "base/mem.h"
#include "engine/attention.h"

float *attention_vector(const struct tensor *t, bool is_offset)
{
    float *v = mem_array((size_t)t->dims[0], sizeof(*v));
    tensor_read_f32(t, 0, t->dims[0], v);
    for (int64_t i = 0; i < t->dims[0] && is_offset; i++)
        v[i] += 1.0f;
    return v;
}

/* As stored, whatever the others' format (engine/msa.h). */
static int load_index(struct attention_weights *w, const struct layer_view *view,
                      const struct compute *c, struct err *e)
{
    w->is_sparse = view->is_sparse;
    if (!view->is_sparse)
        return 0;
    int rc = matrix_pack(&w->index_q, &view->index_q, FORMAT_NATIVE, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->index_k, &view->index_k, FORMAT_NATIVE, NULL, c, e);
    if (rc < 0)
        return rc;
    w->index_q_norm = attention_vector(&view->index_q_norm, view->has_offset_norms);
    w->index_k_norm = attention_vector(&view->index_k_norm, view->has_offset_norms);
    return 0;
}

int attention_load(struct attention_weights *w, const struct layer_view *view,
                   enum weight_format format, const struct compute *c, struct err *e)
{
    *w = (struct attention_weights){0};
    int rc = matrix_pack(&w->wq, &view->wq, format, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wk, &view->wk, format, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wv, &view->wv, format, NULL, c, e);
    if (rc == 0)
        rc = matrix_pack(&w->wo, &view->wo, format, NULL, c, e);
    if (rc == 0)
        rc = load_index(w, view, c, e);
    if (rc < 0) {
        attention_fini(w);
        return rc;
    }
    w->input_norm = attention_vector(&view->input_norm, view->has_offset_norms);
    w->q_norm = attention_vector(&view->q_norm, view->has_offset_norms);
    w->k_norm = attention_vector(&view->k_norm, view->has_offset_norms);
    return 0;
}

void attention_fini(struct attention_weights *w)
{
    matrix_fini(&w->wq);
    matrix_fini(&w->wk);
    matrix_fini(&w->wv);
    matrix_fini(&w->wo);
    matrix_fini(&w->index_q);
    matrix_fini(&w->index_k);
    mem_free(w->index_q_norm);
    mem_free(w->index_k_norm);
    mem_free(w->input_norm);
    mem_free(w->q_norm);
    mem_free(w->k_norm);
    *w = (struct attention_weights){0};
}

size_t attention_bytes(const struct attention_weights *w)
{
    return matrix_bytes(&w->wq) + matrix_bytes(&w->wk) + matrix_bytes(&w->wv) +
           matrix_bytes(&w->wo) + matrix_bytes(&w->index_q) + matrix_bytes(&w->index_k);
}
