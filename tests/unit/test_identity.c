/* tests/unit/test_identity.c - a state directory is known again, and a copy of it is another one. */
#include "coordinator/identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "tests/lib/test.h"

static uint64_t known_as(const char *dir)
{
    uint64_t number = 0;
    struct err e = {0};
    if (identity_of(dir, &number, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    CHECK(number != 0);
    return number;
}

TEST(identity_stays_with_its_directory)
{
    uint64_t number = known_as("state");
    struct stat st;
    CHECK(known_as("state") == number);
    CHECK(known_as("other") != number);
    CHECK(stat("state/identity", &st) == 0);
    CHECK_INT(st.st_mode & 0777, 0600);
    CHECK(rename("state", "moved") == 0);
    CHECK(known_as("moved") == number);
}

TEST(identity_of_a_copy_is_another)
{
    uint64_t number = known_as("state");
    struct buf text = {0};
    CHECK_INT(buf_read_file(&text, "state/identity", 1000, NULL), 0);
    CHECK(mkdir("copy", 0700) == 0);
    CHECK_INT(buf_write_file(&text, "copy/identity", NULL), 0);
    uint64_t copied = known_as("copy");
    CHECK(copied != number);
    CHECK(known_as("copy") == copied);
    CHECK(known_as("state") == number);
    buf_fini(&text);
}

TEST(identity_that_cannot_be_read_is_made_anew)
{
    static const char *const bad[] = {"", "7", "zzzz 1 host", "0000000000000000 1 -", "\n\n\n"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct buf text = {0};
        uint64_t before = known_as("state");
        buf_puts(&text, bad[i]);
        CHECK_INT(buf_write_file(&text, "state/identity", NULL), 0);
        uint64_t after = known_as("state");
        CHECK(after != before && known_as("state") == after);
        buf_fini(&text);
    }
}

TEST(identity_says_what_it_cannot_write)
{
    uint64_t number;
    struct err e = {0};
    CHECK(mkdir("state", 0700) == 0 && mkdir("state/identity", 0700) == 0);
    CHECK(identity_of("state", &number, &e) < 0);
    CHECK_HAS(e.text, "state/identity");
    CHECK(identity_of("no/such/place", &number, &e) < 0);
    CHECK_HAS(e.text, "no/such/place");
}
