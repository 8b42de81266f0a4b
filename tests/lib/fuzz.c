/* tests/lib/fuzz.c - a fuzz target's corpus, and random changes of it, as a test.
 *
 * Not a replacement for libFuzzer (no feedback): it keeps the corpus green in every build
 * and variant.  Inputs live in blocks of exactly their size, so that AddressSanitizer and
 * valgrind see a read of one byte too many.  The same --seed makes the same inputs. */
#include "tests/lib/fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/mem.h"

enum {
    FUZZ_CHANGES = 4000,
    FUZZ_CHANGES_SLOW = 800,
    FUZZ_SECONDS = 15, /* a slow target makes fewer changes rather than a failed test */
    FUZZ_MAX_BYTES = 1 << 20,
    FUZZ_MAX_FILES = 512,
};

struct corpus {
    struct buf files[FUZZ_MAX_FILES];
    int n_files;
};

static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void read_corpus(struct corpus *c, const char *dir)
{
    struct dirent **entries = NULL;
    int n = scandir(dir, &entries, NULL, compare_names); /* sorted: --seed must repeat a run */
    for (int i = 0; i < n; i++) {
        if (entries[i]->d_name[0] != '.' && c->n_files < FUZZ_MAX_FILES) {
            char *path = mem_format("%s/%s", dir, entries[i]->d_name);
            struct err e = {0};
            if (buf_read_file(&c->files[c->n_files++], path, FUZZ_MAX_BYTES, &e) < 0)
                test_fail(__FILE__, __LINE__, "%s", e.text);
            mem_free(path);
        }
        free(entries[i]);
    }
    free(entries);
    if (c->n_files == 0)
        test_fail(__FILE__, __LINE__, "%s holds no file", dir);
}

static void run_exact(fuzz_body *body, struct str input)
{
    uint8_t *copy = malloc(input.len);
    if (input.len > 0)
        memcpy(copy, input.ptr, input.len);
    body(copy, input.len);
    free(copy);
}

static void insert(struct buf *b, size_t at, struct str piece)
{
    struct buf changed = {0};
    buf_append(&changed, b->data, at);
    buf_append_str(&changed, piece);
    buf_append(&changed, b->data + at, b->len - at);
    buf_fini(b);
    *b = changed;
}

static void erase(struct buf *b, size_t at, size_t bytes)
{
    memmove(b->data + at, b->data + at + bytes, b->len - at - bytes + 1);
    b->len -= bytes;
}

/* A random part of s. */
static struct str any_part(struct rng *r, struct str s, size_t most)
{
    size_t from = (size_t)rng_below(r, s.len + 1), left = s.len - from;
    if (left > most)
        left = most;
    return (struct str){s.ptr + from, (size_t)rng_below(r, left + 1)};
}

static void change_once(struct rng *r, struct buf *b, const struct corpus *c)
{
    static const char edges[] = {0,    1,   -1,  127, -128, ' ',  '"',
                                 '\\', '{', '}', '[', ']',  '\n', '9'};
    size_t at = b->len ? (size_t)rng_below(r, b->len) : 0;
    uint64_t kind = b->len ? rng_below(r, 7) : 6;
    switch (kind) {
    case 0:
        b->data[at] = (char)(b->data[at] ^ (1 << rng_below(r, 8)));
        break;
    case 1:
        b->data[at] = (char)rng_next(r);
        break;
    case 2:
        b->data[at] = edges[rng_below(r, sizeof(edges))];
        break;
    case 3:
        erase(b, at, (size_t)rng_below(r, b->len - at < 64 ? b->len - at + 1 : 64));
        break;
    case 4:
        erase(b, at, b->len - at);
        break;
    case 5: {
        char *copy = str_copy(buf_str(b));
        insert(b, at, any_part(r, (struct str){copy, b->len}, 256));
        mem_free(copy);
        break;
    }
    default:
        insert(b, at, any_part(r, buf_str(&c->files[rng_below(r, (uint64_t)c->n_files)]), 256));
    }
}

void fuzz_replay(const char *name, fuzz_body *body)
{
    char *dir = mem_format("%s/tests/fuzz/corpus/%s", test_source_dir(), name);
    struct corpus *c = mem_alloc(sizeof(*c));
    read_corpus(c, dir);
    for (int i = 0; i < c->n_files; i++)
        run_exact(body, buf_str(&c->files[i]));

    struct rng r = test_rng();
    struct buf input = {0};
    int64_t deadline_ns = clock_now_ns() + FUZZ_SECONDS * CLOCK_S;
    int n_changes = test_is_slow_build() ? FUZZ_CHANGES_SLOW : FUZZ_CHANGES, done = 0;
    for (; done < n_changes && clock_now_ns() < deadline_ns; done++) {
        buf_reset(&input);
        buf_append_str(&input, buf_str(&c->files[rng_below(&r, (uint64_t)c->n_files)]));
        for (uint64_t n = 1 + rng_below(&r, 6); n > 0; n--)
            change_once(&r, &input, c);
        run_exact(body, buf_str(&input));
    }
    test_note("%s: %d files, %d changes of them", name, c->n_files, done);
    buf_fini(&input);
    for (int i = 0; i < c->n_files; i++)
        buf_fini(&c->files[i]);
    mem_free(c);
    mem_free(dir);
}
