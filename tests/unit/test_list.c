/* tests/unit/test_list.c - the intrusive list. */
#include "base/list.h"

#include "tests/lib/test.h"

struct job {
    int id;
    struct list link;
};

TEST(list_keeps_order_at_both_ends)
{
    struct list head = LIST_EMPTY(head);
    struct job jobs[4] = {{.id = 0}, {.id = 1}, {.id = 2}, {.id = 3}};
    CHECK(list_is_empty(&head) && list_pop_front(&head) == NULL);
    list_push_back(&head, &jobs[1].link);
    list_push_back(&head, &jobs[3].link);
    list_push_front(&head, &jobs[0].link);
    list_insert_before(&jobs[3].link, &jobs[2].link);
    int want = 0;
    for (struct list *l = head.next; l != &head; l = l->next)
        CHECK_INT(LIST_ITEM(l, struct job, link)->id, want++);
    CHECK_INT(want, 4);
    for (struct list *l = head.prev; l != &head; l = l->prev)
        CHECK_INT(LIST_ITEM(l, struct job, link)->id, --want);
    list_remove(&jobs[2].link);
    list_remove(&jobs[2].link); /* harmless */
    static const int left[] = {0, 1, 3};
    for (int i = 0; i < 3; i++)
        CHECK_INT(LIST_ITEM(list_pop_front(&head), struct job, link)->id, left[i]);
    CHECK(list_is_empty(&head));
}
