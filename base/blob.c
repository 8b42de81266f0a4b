/* base/blob.c - reference-counted bytes, and pools of them.
 *
 * Header and bytes are one allocation: the header takes the first MEM_ALIGN bytes.  The
 * count is dropped with release and the last drop acquires, so whoever frees or reuses the
 * bytes sees everything that the other holders did.
 *
 * A pool outlives blob_pool_free() until its last blob has come back; the mutex guards the
 * stack of idle blobs and that book-keeping, never a blob's bytes. */
#include "base/blob.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/mem.h"
#include "base/must.h"

_Static_assert(sizeof(struct blob) <= MEM_ALIGN, "a blob's header fits before its bytes");

struct blob_pool {
    pthread_mutex_t lock;
    size_t blob_bytes;
    int n_blobs, n_idle; /* n_blobs counts those that exist: idle ones and those out */
    bool is_closed;
    struct blob **idle;
};

static void free_blob(struct blob *b, void *ud)
{
    (void)ud;
    mem_free(b);
}

struct blob *blob_new(size_t bytes)
{
    size_t total = 0;
    must(mem_add(bytes, MEM_ALIGN, &total));
    struct blob *b = mem_aligned_raw(total);
    atomic_init(&b->references, 1);
    b->size_bytes = bytes;
    b->data = (char *)b + MEM_ALIGN;
    b->release = free_blob;
    b->ud = NULL;
    return b;
}

struct blob *blob_copy(const void *data, size_t bytes)
{
    struct blob *b = blob_new(bytes);
    if (bytes > 0)
        memcpy(b->data, data, bytes);
    return b;
}

struct blob *blob_ref(struct blob *b)
{
    int before = atomic_fetch_add_explicit(&b->references, 1, memory_order_relaxed);
    must(before > 0);
    return b;
}

void blob_unref(struct blob **blob)
{
    struct blob *b = *blob;
    if (!b)
        return;
    *blob = NULL;
    int before = atomic_fetch_sub_explicit(&b->references, 1, memory_order_acq_rel);
    must(before > 0);
    if (before == 1)
        b->release(b, b->ud);
}

static void free_pool(struct blob_pool *p)
{
    must_zero(pthread_mutex_destroy(&p->lock));
    mem_free(p->idle);
    mem_free(p);
}

static void return_to_pool(struct blob *b, void *ud)
{
    struct blob_pool *p = ud;
    must_zero(pthread_mutex_lock(&p->lock));
    bool is_closed = p->is_closed;
    if (is_closed)
        p->n_blobs--;
    else
        p->idle[p->n_idle++] = b;
    bool is_last = is_closed && p->n_blobs == 0;
    must_zero(pthread_mutex_unlock(&p->lock));
    if (is_closed)
        mem_free(b);
    if (is_last)
        free_pool(p);
}

struct blob_pool *blob_pool_new(size_t blob_bytes, int n_blobs)
{
    must(n_blobs > 0);
    struct blob_pool *p = mem_alloc(sizeof(*p));
    must_zero(pthread_mutex_init(&p->lock, NULL));
    p->blob_bytes = blob_bytes;
    p->idle = mem_array((size_t)n_blobs, sizeof(struct blob *));
    p->n_blobs = p->n_idle = n_blobs;
    for (int i = 0; i < n_blobs; i++) {
        p->idle[i] = blob_new(blob_bytes);
        p->idle[i]->release = return_to_pool;
        p->idle[i]->ud = p;
    }
    return p;
}

struct blob *blob_pool_get(struct blob_pool *p)
{
    struct blob *b = NULL;
    must_zero(pthread_mutex_lock(&p->lock));
    if (p->n_idle > 0)
        b = p->idle[--p->n_idle];
    must_zero(pthread_mutex_unlock(&p->lock));
    if (!b)
        return blob_new(p->blob_bytes);
    atomic_store_explicit(&b->references, 1, memory_order_relaxed);
    b->size_bytes = p->blob_bytes; /* a holder may have shortened it */
    return b;
}

void blob_pool_free(struct blob_pool **pool)
{
    struct blob_pool *p = *pool;
    if (!p)
        return;
    *pool = NULL;
    must_zero(pthread_mutex_lock(&p->lock));
    p->is_closed = true;
    for (int i = 0; i < p->n_idle; i++)
        mem_free(p->idle[i]);
    p->n_blobs -= p->n_idle;
    p->n_idle = 0;
    bool is_last = p->n_blobs == 0;
    must_zero(pthread_mutex_unlock(&p->lock));
    if (is_last)
        free_pool(p);
}
