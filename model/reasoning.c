#include "model/reasoning.h"

#define OPENING STR("<think>")

void reasoning_text_fini(struct reasoning_text *text)
{
    buf_fini(&text->thinking);
    buf_fini(&text->content);
}

void reasoning_text_reset(struct reasoning_text *text)
{
    buf_reset(&text->thinking);
    buf_reset(&text->content);
}

void reasoning_init(struct reasoning *r, const struct tokenizer *t, enum reasoning_part begins)
{
    *r = (struct reasoning){.tokenizer = t, .part = begins};
    r->think_id = tokenizer_find(t, OPENING);
    r->end_think_id = tokenizer_find(t, STR("</think>"));
    /* Without the token that ends it, reasoning cannot be told from content. */
    if (r->end_think_id == TOKENIZER_NO_ID) {
        r->part = REASONING_CONTENT;
        r->place = REASONING_IN_TEXT;
    }
}

enum reasoning_part reasoning_where(const struct reasoning *r)
{
    return r->part;
}

/* The last line feed waits, because it is the template's if </think> follows. */
static void put_thinking(struct reasoning *r, struct str text, struct buf *out)
{
    if (text.len == 0)
        return;
    if (r->n_line_feeds > 0)
        buf_putc(out, '\n');
    r->n_line_feeds = text.ptr[text.len - 1] == '\n';
    buf_append(out, text.ptr, text.len - r->n_line_feeds);
}

static void put_content(struct reasoning *r, struct str text, struct buf *out)
{
    for (; text.len > 0 && r->n_line_feeds > 0; r->n_line_feeds--) {
        if (text.ptr[0] != '\n') {
            r->n_line_feeds = 0;
            break;
        }
        text.ptr++;
        text.len--;
    }
    buf_append_str(out, text);
}

static void put(struct reasoning *r, struct str text, struct reasoning_text *out)
{
    if (text.len > 0 && r->place == REASONING_AFTER_OPENING) {
        r->place = REASONING_IN_TEXT;
        if (text.ptr[0] == '\n') {
            text.ptr++;
            text.len--;
        }
    }
    if (r->part == REASONING_THINKING)
        put_thinking(r, text, &out->thinking);
    else
        put_content(r, text, &out->content);
}

static void begin_thinking(struct reasoning *r)
{
    r->part = REASONING_THINKING;
    r->place = REASONING_AFTER_OPENING;
    r->n_opening = 0;
}

/* What looked like an opening is text after all. */
static void give_up_opening(struct reasoning *r, struct reasoning_text *out)
{
    struct str text = {r->opening, r->n_opening};

    if (r->place != REASONING_AT_START)
        return;
    r->place = REASONING_IN_TEXT;
    r->n_opening = 0;
    put(r, text, out);
}

/* Takes characters that agree with "<think>"; returns how many of the text it used. */
static size_t take_opening(struct reasoning *r, struct str text, struct reasoning_text *out)
{
    size_t used = 0;

    while (used < text.len && r->place == REASONING_AT_START) {
        if (text.ptr[used] != OPENING.ptr[r->n_opening]) {
            give_up_opening(r, out);
            break;
        }
        r->opening[r->n_opening++] = text.ptr[used++];
        if (r->n_opening == OPENING.len)
            begin_thinking(r);
    }
    return used;
}

static void put_text(struct reasoning *r, struct str text, struct reasoning_text *out)
{
    size_t used = take_opening(r, text, out);

    put(r, (struct str){text.ptr + used, text.len - used}, out);
}

static void flush_utf8(struct reasoning *r, struct reasoning_text *out)
{
    struct buf text = {0};

    utf8_finish(&r->utf8, &text);
    put_text(r, buf_str(&text), out);
    buf_fini(&text);
}

static void end_thinking(struct reasoning *r, struct reasoning_text *out)
{
    flush_utf8(r, out);
    give_up_opening(r, out);
    r->part = REASONING_CONTENT;
    r->place = REASONING_IN_TEXT;
    r->n_line_feeds = 2; /* the template's, dropped if they come */
}

void reasoning_feed(struct reasoning *r, int32_t id, struct reasoning_text *out)
{
    struct buf text = {0};

    if (tokenizer_is_special(r->tokenizer, id))
        return;
    if (id == r->end_think_id && r->part == REASONING_THINKING) {
        end_thinking(r, out);
        return;
    }
    if (id == r->think_id && r->place == REASONING_AT_START && r->n_opening == 0 &&
        r->utf8.n_held == 0) {
        begin_thinking(r);
        return;
    }
    utf8_feed(&r->utf8, tokenizer_token_bytes(r->tokenizer, id), &text);
    put_text(r, buf_str(&text), out);
    buf_fini(&text);
}

void reasoning_finish(struct reasoning *r, struct reasoning_text *out)
{
    flush_utf8(r, out);
    give_up_opening(r, out);
    if (r->part == REASONING_THINKING && r->n_line_feeds > 0)
        buf_putc(&out->thinking, '\n');
    r->n_line_feeds = 0;
}
