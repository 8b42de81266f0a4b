/* tools/quality_ids.c - see quality.h: which ids to run. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tools/quality.h"

enum { LINE_MAX_BYTES = 1 << 24 };

static void end_sequence(struct quality_ids *q)
{
    size_t begin = q->n ? q->ends[q->n - 1] : 0;
    if (q->ids.len == begin)
        return;
    if (q->n == q->size) {
        q->size = q->size ? 2 * q->size : 16;
        q->ends = mem_resize(q->ends, q->size * sizeof(*q->ends));
    }
    q->ends[q->n++] = q->ids.len;
}

void quality_ids_fini(struct quality_ids *q)
{
    tokens_fini(&q->ids);
    mem_free(q->ends);
    *q = (struct quality_ids){0};
}

static int parse_line(const char *line, int number, struct quality_ids *q, struct err *e)
{
    static const char between[] = ", \t\r";
    for (const char *at = line + strspn(line, between); *at; at += strspn(at, between)) {
        char *end;
        errno = 0;
        long value = strtol(at, &end, 10);
        bool is_digit = *at >= '0' && *at <= '9';
        if (!is_digit || errno || value > INT32_MAX || (*end && !strchr(between, *end)))
            return err_set(e, E_INVALID, "line %d: found \"%.20s\", expected token ids", number,
                           at);
        tokens_push(&q->ids, (int32_t)value);
        at = end;
    }
    end_sequence(q);
    return 0;
}

int quality_ids_parse(struct str text, struct quality_ids *out, struct err *e)
{
    int rc = 0, number = 1;
    *out = (struct quality_ids){0};
    for (size_t at = 0; at < text.len && rc == 0; number++) {
        const char *end = memchr(text.ptr + at, '\n', text.len - at);
        size_t len = end ? (size_t)(end - text.ptr) - at : text.len - at;
        if (len > LINE_MAX_BYTES) {
            rc = err_set(e, E_INVALID, "line %d is too long", number);
            break;
        }
        char *line = str_copy((struct str){text.ptr + at, len});
        rc = parse_line(line, number, out, e);
        mem_free(line);
        at += len + 1;
    }
    if (rc == 0 && out->n == 0)
        rc = err_set(e, E_INVALID, "there are no token ids");
    if (rc < 0)
        quality_ids_fini(out);
    return rc;
}

int quality_ids_from_text(struct str text, const char *model_dir, int length,
                          struct quality_ids *out, struct err *e)
{
    struct tokenizer *tokenizer;
    struct tokens all = {0};
    *out = (struct quality_ids){0};
    int rc = tokenizer_open(model_dir, &tokenizer, e);
    if (rc < 0)
        return rc;
    rc = tokenizer_encode(tokenizer, text, TOKENIZER_WITH_MARKERS, &all);
    if (rc < 0)
        rc = err_set(e, rc, "the text is too long");
    else if (all.len == 0)
        rc = err_set(e, E_INVALID, "the text is empty");
    for (size_t i = 0; i < all.len && rc == 0; i++) {
        tokens_push(&out->ids, all.ids[i]);
        if ((i + 1) % (size_t)length == 0)
            end_sequence(out);
    }
    end_sequence(out);
    tokens_fini(&all);
    tokenizer_free(&tokenizer);
    return rc;
}
