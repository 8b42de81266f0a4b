/* tools/cluster_view.c - see cluster_view.h. */
#include "tools/cluster_view.h"

#include <curl/curl.h>
#include <string.h>

#include "base/mem.h"

int cluster_view_open(struct cluster_view *v, const char *url, const char *key, struct err *e)
{
    *v = (struct cluster_view){.http = http_client_new(), .url = url};
    return key ? http_client_use_key(v->http, key, e) : 0;
}

void cluster_view_close(struct cluster_view *v)
{
    json_decref(v->root);
    http_client_free(&v->http);
}

static int exchange(struct cluster_view *v, const char *path, const char *body, struct buf *answer,
                    struct err *e)
{
    char *url = mem_format("%s%s", v->url, path);
    int status = 0;
    struct http_exchange x = {.url = url, .body = body};
    int rc = http_exchange(v->http, &x, &status, answer, e);
    if (rc == 0 && status / 100 != 2) {
        http_error_text(answer, status, e);
        rc = e->code;
    }
    mem_free(url);
    return rc;
}

int cluster_view_read(struct cluster_view *v, struct err *e)
{
    struct buf answer = {0};
    int rc = exchange(v, "/cluster", NULL, &answer, e);
    if (rc == 0) {
        json_decref(v->root);
        v->root = json_loadb(answer.data, answer.len, 0, NULL);
        if (!v->root)
            rc = err_set(e, E_CORRUPT, "%s/cluster: the answer is not JSON", v->url);
    }
    buf_fini(&answer);
    return rc;
}

long long cluster_view_number(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

const char *cluster_view_text(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s ? s : "-";
}

const json_t *cluster_view_node(const struct cluster_view *v, const char *name)
{
    const json_t *nodes = json_object_get(v->root, "nodes");
    for (size_t i = 0; i < json_array_size(nodes); i++) {
        const json_t *n = json_array_get(nodes, i);
        if (strcmp(cluster_view_text(n, "name"), name) == 0 &&
            strcmp(cluster_view_text(n, "state"), "gone") != 0)
            return n;
    }
    return NULL;
}

bool cluster_view_is_settled(const struct cluster_view *v)
{
    const json_t *p = json_object_get(v->root, "placement");
    return json_is_true(json_object_get(v->root, "ready")) &&
           json_is_true(json_object_get(p, "settled")) &&
           cluster_view_number(p, "lowest") >= cluster_view_number(p, "wanted_lowest");
}

int cluster_view_drain(struct cluster_view *v, const char *name, enum cluster_view_end end,
                       struct err *e)
{
    char *quoted = curl_easy_escape(NULL, name, 0);
    if (!quoted)
        return err_set(e, E_NOMEM, "no memory for a node's name");
    char *path = mem_format("/admin/drain?node=%s%s", quoted,
                            end == CLUSTER_VIEW_RESTART ? "&restart=1" : "");
    struct buf answer = {0};
    int rc = exchange(v, path, "{}", &answer, e);
    buf_fini(&answer);
    mem_free(path);
    curl_free(quoted);
    return rc;
}
