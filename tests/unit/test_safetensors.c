/* tests/unit/test_safetensors.c - the file format: what we write we read; hostile headers
 * are refused. */
#include "model/safetensors.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "tests/lib/test.h"

static const struct safetensors_declaration declared[] = {
    {"b.bf16", DTYPE_BF16, 2, {2, 3}}, {"a.f32", DTYPE_F32, 1, {2}},
    {"empty", DTYPE_F32, 2, {0, 5}},   {"c.fp8", DTYPE_F8_E4M3, 1, {3}},
    {"d.i32", DTYPE_I32, 0, {0}},
};
enum { N_DECLARED = sizeof declared / sizeof *declared };

static void write_sample(const char *path)
{
    static const uint16_t bf16[6] = {0x3f80, 0x4000, 0x4040, 0xbf80, 0, 0x3f00};
    static const float f32[2] = {0.1f, -7};
    static const uint8_t fp8[3] = {0x38, 0x7f, 0xfe};
    static const int32_t i32 = -5;
    struct safetensors_writer *w;
    CHECK_INT(safetensors_create(path, declared, N_DECLARED, &w, NULL), 0);
    CHECK_INT(safetensors_write(w, bf16, sizeof bf16, NULL), 0);
    CHECK_INT(safetensors_write(w, f32, sizeof f32, NULL), 0);
    CHECK_INT(safetensors_write(w, fp8, sizeof fp8, NULL), 0);
    CHECK_INT(safetensors_write(w, &i32, sizeof i32, NULL), 0);
    CHECK_INT(safetensors_finish(&w, NULL), 0);
    CHECK(w == NULL);
}

TEST(safetensors_reads_what_it_wrote)
{
    struct safetensors *s;
    struct tensor t;
    const char *name;
    float values[6];
    char text[TENSOR_TEXT_BYTES];
    write_sample("m.safetensors");
    CHECK_INT(safetensors_open("m.safetensors", &s, NULL), 0);
    CHECK_INT(safetensors_count(s), N_DECLARED);
    safetensors_at(s, 0, &name, &t);
    CHECK_STR(name, "b.bf16");
    CHECK(safetensors_find(s, "b.bf16", &t));
    CHECK_STR(tensor_text(&t, text), "BF16 [2, 3]");
    tensor_read_f32(&t, 1, 4, values);
    CHECK_NEAR(values[0], 2, 0);
    CHECK_NEAR(values[2], -1, 0);
    CHECK(safetensors_find(s, "a.f32", &t));
    tensor_read_f32(&t, 0, 2, values);
    CHECK_NEAR(values[0], 0.1f, 0);
    CHECK(safetensors_find(s, "c.fp8", &t));
    tensor_read_f32(&t, 0, 3, values);
    CHECK(values[0] == 1 && isnan(values[1]) && values[2] == -448);
    CHECK(safetensors_find(s, "d.i32", &t)); /* a scalar at an odd address */
    CHECK_INT(t.n_dims, 0);
    tensor_read_f32(&t, 0, 1, values);
    CHECK_NEAR(values[0], -5, 0);
    CHECK(safetensors_find(s, "empty", &t));
    CHECK_INT(t.size_bytes, 0);
    CHECK(!safetensors_find(s, "a.f3", &t) && !safetensors_find(s, "", &t));
    safetensors_close(&s);
    safetensors_close(&s);
}

TEST(safetensors_writer_holds_to_its_declarations)
{
    struct safetensors_writer *w;
    struct err e = {0};
    char big[64] = {0};
    CHECK_INT(safetensors_create("m.safetensors", declared, N_DECLARED, &w, NULL), 0);
    CHECK_INT(safetensors_write(w, big, 12, NULL), 0);
    CHECK_INT(safetensors_write(w, big, 64, &e), E_RANGE);
    CHECK_INT(safetensors_finish(&w, &e), E_RANGE);
    CHECK(access("m.safetensors", F_OK) != 0);
    CHECK_INT(safetensors_create("m.safetensors", declared, N_DECLARED, &w, NULL), 0);
    CHECK_INT(safetensors_write(w, big, 12, NULL), 0);
    CHECK_INT(safetensors_finish(&w, &e), E_PRECONDITION);
    CHECK_HAS(e.text, "12 of 27");
    CHECK(access("m.safetensors", F_OK) != 0);
    static const struct safetensors_declaration huge = {
        "x", DTYPE_F32, 3, {1LL << 40, 1LL << 40, 4}};
    CHECK_INT(safetensors_create("m.safetensors", &huge, 1, &w, &e), E_INVALID);
    static const struct safetensors_declaration quoted = {"x\"y", DTYPE_F32, 1, {1}};
    CHECK_INT(safetensors_create("m.safetensors", &quoted, 1, &w, &e), E_INVALID);
    CHECK_INT(safetensors_create("no/such/folder", declared, 1, &w, &e), E_NOT_FOUND);
}

/* Checks a header of this JSON in a file with `data_bytes` of data. */
static int check(const char *json, size_t data_bytes, struct err *e)
{
    struct buf b = {0};
    uint64_t length = strlen(json);
    *e = (struct err){0};
    buf_append(&b, &length, sizeof length); /* tests run on little-endian hosts */
    buf_puts(&b, json);
    int rc = safetensors_check_header(b.data, b.len, b.len + data_bytes, e);
    buf_fini(&b);
    return rc;
}

#define ONE(dtype, shape, offsets) \
    "{\"w\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second) \
    "{\"v\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" first "}," \
    "\"w\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" second "}}"

TEST(safetensors_accepts_good_headers)
{
    struct err e;
    CHECK_INT(check(ONE("F32", "[2,2]", "[0,16]"), 16, &e), 0);
    CHECK_INT(check(ONE("F32", "[]", "[0,4]") "   ", 4, &e), 0);
    CHECK_INT(check("{\"__metadata__\":{\"format\":\"pt\"}}", 0, &e), 0);
    CHECK_INT(check(TWO("[8,16]", "[0,8]"), 16, &e), 0);
    CHECK_INT(check(ONE("I64", "[2]", "[0,16]"), 16, &e), 0); /* a dtype that we do not read */
}

static const struct {
    const char *json;
    size_t data_bytes;
    const char *says;
} hostile[] = {
    {TWO("[0,8]", "[4,12]"), 12, "tensor w overlaps tensor v"},
    {TWO("[0,8]", "[0,8]"), 8, "overlaps"},
    {TWO("[0,8]", "[12,20]"), 20, "belong to none"},
    {ONE("F32", "[2]", "[4,12]"), 12, "belong to none"},
    {ONE("F32", "[-1]", "[0,4]"), 4, "dimension 0 is not a number from 0 on"},
    {ONE("F32", "[1.5]", "[0,4]"), 4, "dimension 0 is not a number"},
    {ONE("F32", "[\"1\"]", "[0,4]"), 4, "dimension 0 is not a number"},
    {ONE("F32", "4", "[0,4]"), 4, "shape: expected an array"},
    {ONE("F32", "[1,1,1,1,1]", "[0,4]"), 4, "has 5 dimensions"},
    {ONE("F32", "[4294967296,4294967296]", "[0,0]"), 0, "number of elements overflows"},
    {ONE("F32", "[4611686018427387904]", "[0,0]"), 0, "number of bytes overflows"},
    {ONE("F32", "[99999999999999999999]", "[0,0]"), 0, "header"},
    {ONE("F32", "[3]", "[0,8]"), 8, "F32 [3] needs 12 bytes, data_offsets span 8"},
    {ONE("BF16", "[3]", "[0,12]"), 12, "BF16 [3] needs 6 bytes"},
    {ONE("F32", "[2]", "[8,0]"), 8, "ascending"},
    {ONE("F32", "[2]", "[-8,0]"), 8, "ascending"},
    {ONE("F32", "[2]", "[0]"), 8, "data_offsets"},
    {ONE("F32", "[2]", "[0,8,16]"), 8, "data_offsets"},
    {ONE("F32", "[2]", "{}"), 8, "data_offsets"},
    {ONE("I64", "[2]", "[0,9223372036854775807]"), 8, "but the file has"},
    {"{\"w\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype: expected a string"},
    {"{\"w\":{\"dtype\":3,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype: expected a string"},
    {"{\"w\":[]}", 0, "dtype: expected a string"},
    {"{\"w\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"w\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}",
     0, "duplicate"},
    {"[]", 0, "expected a JSON object"},
    {"", 0, "header"},
    {"{\"w\":", 0, "header"},
    {"{\"a\\u0000b\":{}}", 0, "header"},
    {"{} x", 0, "header"},
};

TEST(safetensors_refuses_hostile_headers)
{
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        struct err e;
        test_note("%s", hostile[i].json);
        CHECK_INT(check(hostile[i].json, hostile[i].data_bytes, &e), E_CORRUPT);
        CHECK_HAS(e.text, hostile[i].says);
    }
}

TEST(safetensors_refuses_hostile_lengths)
{
    struct err e = {0};
    CHECK_INT(safetensors_check_header("", 0, 0, &e), E_CORRUPT);
    CHECK_INT(safetensors_check_header("\1\0\0\0\0\0\0", 7, 7, &e), E_CORRUPT);
    CHECK_INT(safetensors_check_header("\3\0\0\0\0\0\0\0{}", 10, 10, &e), E_CORRUPT);
    CHECK_HAS(e.text, "header of 3 bytes reaches beyond the file's 10 bytes");
    CHECK_INT(safetensors_check_header("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, 10, &e),
              E_CORRUPT);
    CHECK_HAS(e.text, "limit");
    CHECK_INT(safetensors_check_header("\2\0\0\0\0\0\0\0{}", 10, 10, &e), 0);
}

TEST(safetensors_says_by_how_much_a_file_is_short)
{
    struct safetensors *s;
    struct err e = {0};
    char want[96];
    write_sample("m.safetensors");
    int fd = open("m.safetensors", O_RDWR);
    off_t bytes = lseek(fd, 0, SEEK_END);
    CHECK_INT(ftruncate(fd, bytes - 3), 0);
    CHECK_INT(safetensors_open("m.safetensors", &s, &e), E_CORRUPT);
    snprintf(want, sizeof want,
             "m.safetensors: header says data ends at %lld but the file has %lld bytes",
             (long long)bytes, (long long)bytes - 3);
    CHECK_HAS(e.text, want);
    CHECK_INT(ftruncate(fd, bytes + 1), 0);
    CHECK_INT(safetensors_open("m.safetensors", &s, &e), E_CORRUPT);
    CHECK_INT(ftruncate(fd, 0), 0);
    CHECK_INT(safetensors_open("m.safetensors", &s, &e), E_CORRUPT);
    CHECK_HAS(e.text, "empty");
    close(fd);
    CHECK_INT(safetensors_open("none.safetensors", &s, &e), E_NOT_FOUND);
    CHECK_INT(safetensors_open(".", &s, &e), E_INVALID);
}
