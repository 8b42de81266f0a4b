/* coordinator/hub_admin.c - what operators may do over HTTP; see hub.h.
 *
 * POST /admin/drain?node=NAME[&restart=1]: a node hands over what it holds and ends;
 * with restart it asks whoever supervises it to start it again.
 *
 * GET /admin/heat: {"layers":L, "experts":E, "nodes":[NAME...], "load":[...], "copies":[...],
 * "homes":[...]}, the last three a text for each layer: of every expert two hexadecimal digits for how often
 * it was chosen lately (ff: as often as the layer's favourite), one digit for its live copies, and two for
 * the first of their nodes (ff: nobody).
 *
 * GET /admin/events?after=ID: {"coordinator":"...", "last":ID, "events":[{"id", "time_ms", "level",
 * "kind", "text"}]}, oldest first; level is good, info, warn or bad; another coordinator counts anew. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/must.h"
#include "coordinator/hub_state.h"

static void answer(struct http_exchange *x, int status, json_t *root)
{
    must(root);
    char *text = json_dumps(root, JSON_COMPACT);
    must(text);
    http_reply(x, status, "application/json", str_of(text));
    free(text);
    json_decref(root);
}

/* jansson takes no broken UTF-8. */
static json_t *text_of(const char *s)
{
    json_t *v = json_string(s);
    return v ? v : json_string("?");
}

static void refuse(struct http_exchange *x, int status, const char *why)
{
    answer(x, status,
           json_pack("{s:{s:o,s:s}}", "error", "message", text_of(why), "type",
                     "invalid_request_error"));
}

void hub_admin_drain(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    (void)m;
    const char *name = http_query(x, "node"), *restart = http_query(x, "restart");
    if (!name || !name[0]) {
        refuse(x, 400, "node is missing: POST /admin/drain?node=NAME");
        return;
    }
    struct err e = {0};
    int rc = hub_cluster_drain(h, name, restart && strcmp(restart, "1") == 0, &e);
    if (rc < 0) {
        refuse(x, rc == E_NOT_FOUND ? 404 : 409, e.text);
        return;
    }
    log_info("node.drain_asked", "name=%s restart=%s", log_quote(name).text,
             restart && strcmp(restart, "1") == 0 ? "yes" : "no");
    answer(x, 202, json_pack("{s:o,s:s}", "node", text_of(name), "state", "draining"));
}

void hub_admin_heat(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    struct buf body = {0};
    (void)m;
    admin_heat(h, &body);
    http_reply(x, 200, "application/json", buf_str(&body));
    buf_fini(&body);
}

void hub_admin_events(struct hub *h, struct http_exchange *x, const struct http_message *m)
{
    const char *after = http_query(x, "after");
    struct buf body = {0};
    (void)m;
    if (after && (!after[0] || after[strspn(after, "0123456789")] || strlen(after) > 18)) {
        refuse(x, 400, "after is the id of an event, a number: GET /admin/events?after=17");
        return;
    }
    admin_events(h, after ? strtoull(after, NULL, 10) : 0, &body);
    http_reply(x, 200, "application/json", buf_str(&body));
    buf_fini(&body);
}
