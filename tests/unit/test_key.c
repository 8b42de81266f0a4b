/* tests/unit/test_key.c - key files and allow-lists: there and back, and everything hostile. */
#include "rpc/key.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safe_file.h"
#include "rpc/allow.h"
#include "tests/lib/test.h"
#include "tests/unit/wire_random.h"

static void write_text(const char *path, const char *text, mode_t mode)
{
    FILE *f = fopen(path, "w");
    CHECK(f);
    fputs(text, f);
    CHECK_INT(fclose(f), 0);
    CHECK_INT(chmod(path, mode), 0);
}

static mode_t mode_of(const char *path)
{
    struct stat st;
    CHECK_INT(stat(path, &st), 0);
    return st.st_mode & 07777;
}

static struct key_pair new_pair(const char *name)
{
    struct key_pair k;
    struct err e = {0};
    if (key_pair_new(name, &k, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return k;
}

TEST(key_pair_files_come_back_and_are_private)
{
    umask(0); /* the mode must not depend on it */
    struct key_pair k = new_pair("expert-0"), back;
    struct err e = {0};
    CHECK_INT(key_pair_write(&k, ".", &e), 0);
    CHECK_INT(mode_of("expert-0.key"), 0600);
    CHECK_INT(mode_of("expert-0.pub"), 0644);
    CHECK_INT(key_pair_read("expert-0.key", &back, &e), 0);
    CHECK_BYTES(&back, &k, sizeof(k));
    char public_key[KEY_TEXT_BYTES];
    CHECK_INT(key_public_of("expert-0.pub", public_key, &e), 0);
    CHECK_STR(public_key, k.public_key);
    CHECK_INT(key_public_of(k.public_key, public_key, &e), 0);
    CHECK_STR(public_key, k.public_key);

    struct key_pair other = new_pair("expert-0");
    CHECK_INT(key_pair_write(&other, ".", &e), E_EXISTS);
    CHECK_INT(key_pair_read("expert-0.key", &back, &e), 0);
    CHECK_STR(back.secret_key, k.secret_key);
    CHECK_INT(key_pair_write(&k, "nowhere", &e), E_NOT_FOUND);
    CHECK_INT(key_pair_new("a/b", &back, &e), E_INVALID);
    CHECK_INT(key_pair_new("", &back, &e), E_INVALID);
    CHECK_INT(key_pair_new("..", &back, &e), E_INVALID);
}

static void check_read(int code, const char *why)
{
    struct key_pair k;
    struct err e = {0};
    CHECK_INT(key_pair_read("k.key", &k, &e), code);
    CHECK_HAS(e.text, "k.key");
    CHECK_HAS(e.text, why);
    CHECK_STR(k.secret_key, "");
}

TEST(key_file_that_others_can_read_is_refused_by_name)
{
    static const mode_t modes[] = {0640, 0604, 0620, 0602, 0666, 0700 | 0010};
    struct key_pair k = new_pair("k");
    struct err e = {0};
    CHECK_INT(key_pair_write(&k, ".", &e), 0);
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        CHECK_INT(chmod("k.key", modes[i]), 0);
        char mode[16];
        snprintf(mode, sizeof(mode), "%04o", (unsigned)modes[i]);
        check_read(E_DENIED, mode);
    }
    CHECK_INT(chmod("k.key", 0400), 0);
    CHECK_INT(key_pair_read("k.key", &k, &e), 0);
}

TEST(key_file_of_another_kind_is_refused)
{
    struct key_pair k;
    struct err e = {0};
    CHECK_INT(key_pair_read("k.key", &k, &e), E_NOT_FOUND);
    CHECK_INT(mkfifo("k.key", 0600), 0); /* must not hang */
    check_read(E_INVALID, "not a regular file");
    CHECK_INT(unlink("k.key"), 0);
    CHECK_INT(mkdir("k.key", 0700), 0);
    check_read(E_INVALID, "not a regular file");
    CHECK_INT(rmdir("k.key"), 0);
    int fd = open("k.key", O_CREAT | O_WRONLY, 0600);
    CHECK_INT(ftruncate(fd, SAFE_FILE_BYTES + 1), 0);
    close(fd);
    check_read(E_RANGE, "at most");
    if (geteuid() == 0) { /* only root can give a file away */
        write_text("k.key", "x", 0600);
        CHECK_INT(chown("k.key", 12345, 12345), 0);
        CHECK_INT(key_pair_read("k.key", &k, &e), 0 == geteuid() ? E_DENIED : E_CORRUPT);
        CHECK_HAS(e.text, "12345");
    }
}

TEST(key_file_with_wrong_contents_is_refused)
{
    struct key_pair a = new_pair("a"), b = new_pair("b");
    char text[512];
    write_text("k.key", "", 0600);
    check_read(E_CORRUPT, "secret");
    snprintf(text, sizeof(text), "name a\npublic %s\nsecret %s\n", b.public_key, a.secret_key);
    write_text("k.key", text, 0600);
    check_read(E_CORRUPT, "does not belong");
    snprintf(text, sizeof(text), "name a\npublic %s\nsecret %.39s\n", a.public_key, a.secret_key);
    write_text("k.key", text, 0600);
    check_read(E_CORRUPT, "40 characters");
    snprintf(text, sizeof(text), "public %s\nsecret %s\n", a.public_key, a.secret_key);
    write_text("k.key", text, 0600);
    check_read(E_CORRUPT, "name");
    snprintf(text, sizeof(text), "name a\npublic %sx\nsecret %s\n", a.public_key, a.secret_key);
    write_text("k.key", text, 0600);
    check_read(E_CORRUPT, "40 characters");
}

TEST(key_texts_are_checked)
{
    struct key_pair k = new_pair("a");
    CHECK(key_is_valid(k.public_key));
    CHECK(!key_is_valid(""));
    CHECK(!key_is_valid("a"));
    char text[48];
    snprintf(text, sizeof(text), "%s0", k.public_key);
    CHECK(!key_is_valid(text));
    memset(text, '#', 40); /* five of the last digit are more than 32 bits */
    text[40] = '\0';
    CHECK(!key_is_valid(text));
    memset(text, '0', 40);
    CHECK(key_is_valid(text));
    text[7] = '"';
    CHECK(!key_is_valid(text));
}

TEST(allow_list_is_what_the_public_files_say)
{
    struct key_pair a = new_pair("expert-0"), b = new_pair("attn_1"), c = new_pair("c");
    char text[1024];
    snprintf(text, sizeof(text), "# nodes\n\n  %s expert-0  \r\n%s\tattn_1 # rack 2\n#\n#%s c\n",
             a.public_key, b.public_key, c.public_key);
    struct allow list;
    struct err e = {0};
    CHECK_INT(allow_parse(str_of(text), "list", &list, &e), 0);
    CHECK_INT(list.n, 2);
    CHECK_STR(allow_find(&list, a.public_key)->name, "expert-0");
    CHECK_STR(allow_find(&list, b.public_key)->name, "attn_1");
    CHECK(!allow_find(&list, c.public_key));
    CHECK(!allow_find(&list, ""));
    allow_fini(&list);
    CHECK_INT(allow_parse(STR(""), "list", &list, &e), 0);
    CHECK_INT(list.n, 0);
    CHECK(!allow_find(&list, a.public_key));
    allow_fini(&list);
}

/* Z85 has '#' among its characters: such a key is not a comment. */
TEST(allow_list_takes_a_key_that_begins_like_a_comment)
{
    char text[64] = "#00000000000000000000000000000000000000# x\n";
    memcpy(text, "#000", 4);
    text[39] = '0';
    CHECK(strcspn(text, " ") == 40);
    struct allow list;
    struct err e = {0};
    char key[KEY_TEXT_BYTES];
    snprintf(key, sizeof(key), "%.40s", text);
    CHECK(!key_is_valid(key)); /* 84 * 85^4 does not fit in 32 bits, so ... */
    memcpy(text, "0#00", 4);
    CHECK_INT(allow_parse(str_of(text), "list", &list, &e), 0);
    CHECK_INT(list.n, 1);
    allow_fini(&list);
}

TEST(allow_list_names_the_bad_line)
{
    struct key_pair a = new_pair("a"), b = new_pair("b");
    struct {
        const char *format, *why;
    } cases[] = {
        {"%s a\nshort b\n", "line 2: \"short\" is not a public key"},
        {"%s a\n\n%s\n", "line 3: expected"},
        {"%s a\n%s b c\n", "line 2: expected"},
        {"%s a\n%s b/c\n", "line 2: expected"},
    };
    struct allow list;
    struct err e = {0};
    char text[512];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf out = {0};
        const char *at = cases[i].format;
        for (int n = 0; *at; at++) {
            if (at[0] == '%' && at[1] == 's') {
                buf_puts(&out, n++ == 0 ? a.public_key : b.public_key);
                at++;
            } else {
                buf_putc(&out, *at);
            }
        }
        CHECK_INT(allow_parse(buf_str(&out), "the list", &list, &e), E_INVALID);
        CHECK_HAS(e.text, "the list");
        CHECK_HAS(e.text, cases[i].why);
        CHECK_INT(list.n, 0);
        buf_fini(&out);
    }
    snprintf(text, sizeof(text), "%s a\n%s other\n", a.public_key, a.public_key);
    CHECK_INT(allow_parse(str_of(text), "list", &list, &e), E_INVALID);
    CHECK_HAS(e.text, "there already");
    CHECK_INT(allow_parse((struct str){"# a\0b", 5}, "list", &list, &e), E_INVALID);
    CHECK_HAS(e.text, "NUL");
}

TEST(allow_list_that_others_can_write_is_refused)
{
    struct allow list;
    struct err e = {0};
    write_text("allow", "# nobody\n", 0664);
    CHECK_INT(allow_read("allow", &list, &e), E_DENIED);
    CHECK_HAS(e.text, "0664");
    CHECK_INT(chmod("allow", 0646), 0);
    CHECK_INT(allow_read("allow", &list, &e), E_DENIED);
    CHECK_INT(chmod("allow", 0644), 0);
    CHECK_INT(allow_read("allow", &list, &e), 0);
}

TEST(allow_list_finds_each_of_many)
{
    struct rng r = test_rng();
    char keys[300][KEY_TEXT_BYTES];
    struct allow list = {0};
    for (int i = 0; i < 300; i++) {
        do
            wire_random_key(&r, keys[i]);
        while (!keys[i][0]);
        char name[16];
        snprintf(name, sizeof(name), "n%d", i);
        allow_add(&list, keys[i], name);
        allow_add(&list, keys[i], "again"); /* the first name stays */
    }
    CHECK_INT(list.n, 300);
    for (int i = 0; i < 300; i++) {
        char name[16];
        snprintf(name, sizeof(name), "n%d", i);
        CHECK_STR(allow_find(&list, keys[i])->name, name);
        keys[i][0] = keys[i][0] == 'a' ? 'b' : 'a';
        const struct allow_entry *found = allow_find(&list, keys[i]);
        CHECK(!found || strcmp(found->key, keys[i]) == 0);
    }
    allow_fini(&list);
}
