/* tests/unit/test_buf.c - growing bytes, views and whole files. */
#include "base/buf.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/mem.h"
#include "tests/lib/test.h"

TEST(buf_grows_and_stays_terminated)
{
    struct buf b = {0};
    CHECK_INT(buf_str(&b).len, 0);
    struct rng r = test_rng();
    char want[5000];
    size_t n = 0;
    while (n < 4000) {
        size_t more = (size_t)rng_below(&r, 200);
        for (size_t i = 0; i < more; i++)
            want[n + i] = (char)rng_next(&r);
        buf_append(&b, want + n, more);
        n += more;
        CHECK_INT(b.len, n);
        CHECK_INT(b.data[b.len], 0);
    }
    CHECK_BYTES(b.data, want, n);
    buf_drop(&b, 1000);
    CHECK_BYTES(b.data, want + 1000, n - 1000);
    CHECK_INT(b.data[b.len], 0);
    buf_drop(&b, b.len);
    CHECK_STR(b.data, "");
    buf_fini(&b);
    CHECK(b.data == NULL && b.size == 0);
}

TEST(buf_prints_and_appends)
{
    struct buf b = {0};
    buf_printf(&b, "%d-%s", 7, "x");
    buf_puts(&b, "y");
    buf_putc(&b, 'z');
    buf_append_str(&b, STR("!?"));
    buf_append(&b, NULL, 0);
    CHECK_STR(b.data, "7-xyz!?");
    buf_reset(&b);
    CHECK_STR(b.data, "");
    buf_printf(&b, "%300s", "wide");
    CHECK_INT(b.len, 300);
    buf_fini(&b);
}

TEST(buf_views_compare_and_find)
{
    CHECK(str_equal(STR(""), str_of(NULL)));
    CHECK(!str_equal(STR("a"), STR("ab")));
    CHECK(str_has_prefix(STR("abc"), STR("ab")) && !str_has_prefix(STR("a"), STR("ab")));
    CHECK_INT(str_find(STR("hello"), STR("llo")), 2);
    CHECK(str_find(STR("hello"), STR("lloo")) == SIZE_MAX);
    CHECK(str_find(STR("a"), STR("ab")) == SIZE_MAX);
    CHECK_INT(str_find(STR("a\0b"), (struct str){"\0b", 2}), 1);
    CHECK_INT(str_find(STR(""), STR("")), 0);
    char *copy = str_copy((struct str){"abcdef", 3});
    CHECK_STR(copy, "abc");
    mem_free(copy);
}

TEST(buf_files_round_trip_and_respect_the_limit)
{
    struct buf b = {0}, back = {0};
    struct err e = {0};
    for (int i = 0; i < 100000; i++)
        buf_append(&b, &i, sizeof(i));
    CHECK_INT(buf_write_file(&b, "f", &e), 0);
    CHECK(access("f.tmp", F_OK) != 0);
    CHECK_INT(buf_read_file(&back, "f", b.len, &e), 0);
    CHECK_INT(back.len, b.len);
    CHECK_BYTES(back.data, b.data, b.len);
    CHECK_INT(buf_read_file(&back, "f", b.len - 1, &e), E_RANGE);
    CHECK_INT(back.len, 0);
    CHECK_INT(buf_read_file(&back, "gone", 10, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "open gone: No such file");
    CHECK_INT(buf_read_file(&back, ".", 10, &e), E_INVALID);
    buf_fini(&b);
    buf_fini(&back);
}

TEST(buf_failed_write_keeps_the_old_file)
{
    struct buf b = {0};
    struct err e = {0};
    buf_puts(&b, "new");
    CHECK_INT(buf_write_file(&b, "none/f", &e), E_NOT_FOUND);
    CHECK_INT(mkdir("d", 0700), 0);
    CHECK(buf_write_file(&b, "d", &e) < 0);
    CHECK(access("d.tmp", F_OK) != 0);
    buf_fini(&b);
}
