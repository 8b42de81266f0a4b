/* tests/unit/test_err.c - codes that cross the wire and sentences that people read. */
#include "base/err.h"

#include <errno.h>

#include "tests/lib/test.h"

TEST(err_prefixes_read_from_the_outside_in)
{
    struct err e = {0};
    CHECK_INT(err_set(&e, E_CORRUPT, "expected %d, file has %d", 3, 4), E_CORRUPT);
    CHECK_INT(err_prefix(&e, "layer %d", 3), E_CORRUPT);
    CHECK_INT(err_prefix(&e, "load model"), E_CORRUPT);
    CHECK_STR(e.text, "load model: layer 3: expected 3, file has 4");
}

TEST(err_without_a_struct_still_returns_the_code)
{
    CHECK_INT(err_set(NULL, E_BUSY, "full"), E_BUSY);
    CHECK_INT(err_set_errno(NULL, ENOENT, "open"), E_NOT_FOUND);
    CHECK(err_prefix(NULL, "x") < 0);
}

TEST(err_long_texts_are_cut_at_the_end)
{
    char text[4 * ERR_TEXT_BYTES];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    struct err e = {0};
    err_set(&e, E_INVALID, "%s", text);
    CHECK_INT(strlen(e.text), ERR_TEXT_BYTES - 1);
    err_prefix(&e, "outer");
    CHECK_INT(strlen(e.text), ERR_TEXT_BYTES - 1);
    CHECK(strncmp(e.text, "outer: aaa", 10) == 0);
    err_prefix(&e, "%s", text);
    CHECK_INT(strlen(e.text), ERR_TEXT_BYTES - 1);
    CHECK_INT(e.code, E_INVALID);
}

TEST(err_errno_gives_code_and_reason)
{
    struct err e = {0};
    CHECK_INT(err_set_errno(&e, ENOENT, "open %s", "x"), E_NOT_FOUND);
    CHECK_STR(e.text, "open x: No such file or directory");
    CHECK_INT(err_from_errno(EACCES), E_DENIED);
    CHECK_INT(err_from_errno(ENOMEM), E_NOMEM);
    CHECK_INT(err_from_errno(ETIMEDOUT), E_DEADLINE);
    CHECK_INT(err_from_errno(EAGAIN), E_AGAIN);
    CHECK_INT(err_from_errno(99999), E_IO);
    err_set_errno(&e, 99999, "x");
    CHECK_HAS(e.text, "x: ");
}

TEST(err_codes_are_grpc_statuses_and_stay_so)
{
    CHECK_INT(E_CANCELLED, -1);
    CHECK_INT(E_INVALID, -3);
    CHECK_INT(E_DEADLINE, -4);
    CHECK_INT(E_UNAVAILABLE, -14);
    CHECK_INT(E_UNAUTHENTICATED, -16);
    for (int status = 0; status <= 16; status++)
        CHECK_INT(err_to_status(err_from_status(status)), status);
    CHECK_INT(err_from_status(17), E_UNKNOWN);
    CHECK_INT(err_from_status(-1), E_UNKNOWN);
#define CHECK_ON_WIRE(name, number, text) \
    CHECK(err_to_status(name) >= 1 && err_to_status(name) <= 16); \
    CHECK_STR(err_name(name), #name); \
    CHECK_STR(err_text(name), text);
    ERR_LIST(CHECK_ON_WIRE)
    CHECK_INT(err_to_status(-1000), 2);
    CHECK_STR(err_name(0), "OK");
    CHECK_STR(err_text(12345), "unknown error");
}
