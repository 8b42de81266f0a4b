/* tests/unit/test_blob.c - counted bytes, dropped by whoever is last. */
#include "base/blob.h"

#include <stdatomic.h>

#include "base/mem.h"
#include "base/thread.h"
#include "tests/lib/test.h"

static void count_release(struct blob *b, void *ud)
{
    (void)b;
    ++*(int *)ud;
}

TEST(blob_is_released_with_its_last_reference)
{
    int n_released = 0;
    struct blob own = {.references = 1, .release = count_release, .ud = &n_released};
    struct blob *a = &own, *b = blob_ref(a);
    blob_unref(&a);
    CHECK(a == NULL);
    CHECK_INT(n_released, 0);
    blob_unref(&b);
    CHECK_INT(n_released, 1);
    blob_unref(&b);
    CHECK_INT(n_released, 1);
}

TEST(blob_copies_are_aligned)
{
    struct blob *b = blob_copy("hello", 5), *empty = blob_copy(NULL, 0);
    CHECK((uintptr_t)b->data % MEM_ALIGN == 0);
    CHECK_INT(b->size_bytes, 5);
    CHECK_BYTES(b->data, "hello", 5);
    CHECK_INT(empty->size_bytes, 0);
    blob_unref(&b);
    blob_unref(&empty);
}

static void drop_in_thread(struct thread *t, void *arg)
{
    thread_ready(t, 0, NULL);
    struct blob **b = arg;
    *(char *)(*b)->data = 'x';
    blob_unref(b);
}

/* asan would see a leak or a double free, tsan a write that the next owner does not see. */
TEST(blob_dropped_by_another_thread_goes_back_to_its_pool)
{
    struct blob_pool *p = blob_pool_new(100, 1);
    struct blob *first = blob_pool_get(p), *kept = first;
    struct thread *t = NULL;
    CHECK_INT(thread_start("drop", drop_in_thread, &first, &t, NULL), 0);
    thread_stop(&t, NULL, NULL);
    CHECK(first == NULL);
    struct blob *again = blob_pool_get(p);
    CHECK(again == kept);
    CHECK_INT(*(char *)again->data, 'x');
    blob_unref(&again);
    blob_pool_free(&p);
}

static void churn_in_thread(struct thread *t, void *arg)
{
    struct blob_pool *p = arg;
    thread_ready(t, 0, NULL);
    for (int i = 0; i < 2000; i++) {
        struct blob *a = blob_pool_get(p), *b = blob_pool_get(p);
        memset(a->data, i, a->size_bytes);
        memset(b->data, i, b->size_bytes);
        blob_unref(&a);
        blob_unref(&b);
    }
}

TEST(blob_pool_serves_threads_at_once)
{
    struct blob_pool *p = blob_pool_new(64, 3);
    struct thread *t[3];
    for (int i = 0; i < 3; i++)
        CHECK_INT(thread_start("churn", churn_in_thread, p, &t[i], NULL), 0);
    for (int i = 0; i < 3; i++)
        thread_stop(&t[i], NULL, NULL);
    blob_pool_free(&p);
}

TEST(blob_pool_falls_back_to_the_heap_and_restores_sizes)
{
    struct blob_pool *p = blob_pool_new(64, 1);
    struct blob *pooled = blob_pool_get(p), *extra = blob_pool_get(p);
    CHECK(extra != pooled);
    CHECK_INT(extra->size_bytes, 64);
    pooled->size_bytes = 3;
    blob_unref(&extra);
    blob_unref(&pooled);
    mem_guard_begin("a full pool allocates nothing");
    pooled = blob_pool_get(p);
    size_t size_bytes = pooled->size_bytes;
    blob_unref(&pooled);
    mem_guard_end();
    CHECK_INT(size_bytes, 64);
    blob_pool_free(&p);
    CHECK(p == NULL);
}

TEST(blob_outlives_its_pool)
{
    struct blob_pool *p = blob_pool_new(64, 3);
    struct blob *a = blob_pool_get(p), *b = blob_pool_get(p);
    blob_pool_free(&p);
    memset(a->data, 1, 64);
    blob_unref(&a);
    memset(b->data, 1, 64);
    blob_unref(&b);
}
