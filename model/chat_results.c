/* model/chat_results.c - tool results in the order of their calls; see chat.h. */
#include "base/err.h"
#include "model/chat.h"

enum { MAX_CALLS = 256 }; /* of one message; what follows is quadratic in them */

/* Index of the call, or -1. */
static int call_named(const struct chat_message *asked, struct str id)
{
    if (id.len == 0)
        return -1;
    for (int i = 0; i < asked->n_tool_calls; i++)
        if (str_equal(asked->tool_calls[i].id, id))
            return i;
    return -1;
}

/* Ascending by call; stable, so results without an id stay behind the one that they followed. */
static void sort_results(const struct chat_message *asked, struct chat_message *results, int n)
{
    for (int i = 1; i < n; i++) {
        struct chat_message moving = results[i];
        int call = call_named(asked, moving.answers), at = i;
        for (; call >= 0 && at > 0 && call_named(asked, results[at - 1].answers) > call; at--)
            results[at] = results[at - 1];
        results[at] = moving;
    }
}

static int check_results(const struct chat_message *asked, const struct chat_message *results,
                         int n, int first, struct err *e)
{
    for (int i = 0; i < n; i++) {
        struct str id = results[i].answers;
        if (id.len == 0)
            continue;
        if (call_named(asked, id) < 0)
            return err_set(e, E_INVALID,
                           "messages[%d] is the result of the call \"%.*s\", which the assistant's "
                           "message before it does not hold",
                           first + i, id.len > 60 ? 60 : (int)id.len, id.ptr);
        for (int k = 0; k < i; k++)
            if (str_equal(results[k].answers, id))
                return err_set(e, E_INVALID, "messages[%d]: the call \"%.*s\" has two results",
                               first + i, id.len > 60 ? 60 : (int)id.len, id.ptr);
    }
    return 0;
}

int chat_order_results(struct chat_message *messages, int n_messages, struct err *e)
{
    for (int i = 0; i < n_messages; i++) {
        const struct chat_message *asked = &messages[i];
        int n = 0;
        if (asked->role != CHAT_ASSISTANT)
            continue;
        while (i + 1 + n < n_messages && messages[i + 1 + n].role == CHAT_TOOL)
            n++;
        if (asked->n_tool_calls == 0)
            continue; /* chat_render() says what is wrong with a result then */
        if (asked->n_tool_calls > MAX_CALLS)
            return err_set(e, E_INVALID, "messages[%d] has %d tool calls; at most %d", i,
                           asked->n_tool_calls, MAX_CALLS);
        int rc = check_results(asked, messages + i + 1, n, i + 1, e);
        if (rc < 0)
            return rc;
        sort_results(asked, messages + i + 1, n);
        i += n;
    }
    return 0;
}
