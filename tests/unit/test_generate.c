/* tests/unit/test_generate.c - `polymath generate` and `polymath logits` as a user calls them. */
#include "tools/generate.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "engine/sample.h"
#include "model/utf8.h"
#include "tests/lib/test.h"
#include "tests/lib/tiny_model.h"
#include "tools/logits.h"

enum { MAX_ARGUMENTS = 32, FILE_LIMIT = 16 << 20 };

struct outcome {
    int status;
    struct buf out, err;
};

static void outcome_fini(struct outcome *o)
{
    buf_fini(&o->out);
    buf_fini(&o->err);
}

/* Points a stream at a file; returns the descriptor to give back to restore(). */
static int redirect(FILE *stream, const char *path)
{
    fflush(stream);
    int saved = dup(fileno(stream));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    CHECK(saved >= 0 && fd >= 0);
    CHECK(dup2(fd, fileno(stream)) >= 0);
    close(fd);
    return saved;
}

static void restore(FILE *stream, int saved)
{
    fflush(stream);
    CHECK(dup2(saved, fileno(stream)) >= 0);
    close(saved);
}

/* Arguments as one string with spaces between; "_" in a word stands for a space. */
static struct outcome call(int (*verb)(int, char **), const char *arguments)
{
    struct outcome o = {0};
    char *argv[MAX_ARGUMENTS + 1] = {NULL}, *copy = mem_string(arguments), *state;
    int argc = 0;
    for (char *word = strtok_r(copy, " ", &state); word; word = strtok_r(NULL, " ", &state)) {
        CHECK(argc < MAX_ARGUMENTS);
        argv[argc++] = word;
        for (char *c = strchr(word, '_'); c && word[0] != '/'; c = strchr(c, '_'))
            *c = ' ';
    }
    int out = redirect(stdout, "stdout"), err = redirect(stderr, "stderr");
    o.status = verb(argc, argv);
    restore(stdout, out);
    restore(stderr, err);
    CHECK_INT(buf_read_file(&o.out, "stdout", FILE_LIMIT, NULL), 0);
    CHECK_INT(buf_read_file(&o.err, "stderr", FILE_LIMIT, NULL), 0);
    mem_free(copy);
    return o;
}

/* The output of a call that must succeed; free with mem_free(). */
static char *output_of(const char *arguments)
{
    struct outcome o = call(generate_main, arguments);
    if (o.status != 0)
        test_fail(__FILE__, __LINE__, "%s: exit %d, %s", arguments, o.status,
                  o.err.data ? o.err.data : "");
    char *text = str_copy(buf_str(&o.out));
    outcome_fini(&o);
    return text;
}

#define IDS "generate --model model --ids 5,17,9,33,120,7,8,2,1,250 --print-ids "

TEST(generate_gives_one_answer_with_hashes_for_every_way_to_run)
{
    tiny_model_write("model", 2, 1);
    char *want = output_of(IDS "--temperature 0 --max-tokens 12 --print-hashes --threads 1");
    CHECK_HAS(want, "hashes: ");
    const char *const ways[] = {"--threads 2", "--chunk 1", "--chunk 3 --threads 2",
                                "--kernels portable"};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        char *arguments =
            mem_format("%s %s", IDS "--temperature 0 --max-tokens 12 --print-hashes", ways[i]);
        char *got = output_of(arguments);
        CHECK_STR(got, want);
        mem_free(got);
        mem_free(arguments);
    }
    mem_free(want);
}

static const char *last_line(const char *text)
{
    size_t n = strlen(text);
    CHECK(n > 0 && text[n - 1] == '\n');
    for (n--; n > 0 && text[n - 1] != '\n'; n--)
        continue;
    return text + n;
}

TEST(generate_draws_by_seed_and_stops_at_max_tokens)
{
    tiny_model_write("model", 2, 2);
    char *a = output_of(IDS "--temperature 1.5 --top-k 0 --top-p 1 --max-tokens 9 --seed 3");
    char *b = output_of(IDS "--temperature 1.5 --top-k 0 --top-p 1 --max-tokens 9 --seed 3");
    char *c = output_of(IDS "--temperature 1.5 --top-k 0 --top-p 1 --max-tokens 9 --seed 4");
    CHECK_STR(a, b);
    CHECK(strcmp(a, c) != 0);
    int n_ids = 1;
    for (const char *at = last_line(a); *at; at++)
        n_ids += *at == ',';
    /* An end token may come first, but not by every seed of a flat distribution. */
    CHECK(n_ids == 9 || strstr(last_line(a), "366"));
    mem_free(a);
    mem_free(b);
    mem_free(c);
}

TEST(generate_continues_text_and_answers_chat)
{
    tiny_model_write("model", 1, 3);
    char *text = output_of("generate --model model --prompt the_cat --max-tokens 20 --seed 1");
    CHECK(utf8_is_valid(str_of(text)));
    char *again = output_of("generate --model model --prompt the_cat --max-tokens 20 --seed 1 "
                            "--stats --print-ids");
    CHECK(strncmp(again, text, strlen(text)) == 0);
    char *chat = output_of("generate --model model --chat the_cat --max-tokens 20 --seed 1 "
                           "--print-ids");
    CHECK(strcmp(last_line(chat), last_line(again)) != 0);
    mem_free(text);
    mem_free(again);
    mem_free(chat);
}

TEST(generate_without_a_tokenizer_works_for_ids)
{
    tiny_model_write("model", 1, 4);
    char *with = output_of(IDS "--temperature 0 --max-tokens 5");
    CHECK_INT(unlink("model/tokenizer.json"), 0);
    char *without = output_of(IDS "--temperature 0 --max-tokens 5");
    CHECK_STR(last_line(with), without);
    struct outcome o = call(generate_main, "generate --model model --prompt x");
    CHECK_INT(o.status, 1);
    CHECK_HAS(o.err.data, "tokenizer.json");
    outcome_fini(&o);
    mem_free(with);
    mem_free(without);
}

static void check_failure(int (*verb)(int, char **), const char *arguments, int status,
                          const char *part)
{
    struct outcome o = call(verb, arguments);
    test_note("%s", arguments);
    CHECK_INT(o.status, status);
    CHECK_HAS(o.err.data, part);
    /* One sentence. */
    CHECK(strchr(o.err.data, '\n') == o.err.data + o.err.len - 1);
    outcome_fini(&o);
}

TEST(generate_says_in_one_sentence_what_is_wrong)
{
    tiny_model_write("model", 1, 5);
    const struct {
        const char *arguments;
        int status;
        const char *part;
    } cases[] = {
        {"generate", 2, "--model is needed"},
        {"generate --model model", 2, "one of --prompt, --ids and --chat"},
        {"generate --model model --ids 1 --chat x", 2, "one of --prompt"},
        {"generate --model model --ids 1,,2", 2, "token ids"},
        {"generate --model model --ids 1, ", 2, "token ids"},
        {"generate --model model --ids -4", 2, "token ids"},
        {"generate --model model --ids 99999999999999999999", 2, "token ids"},
        {"generate --model model --ids 1 --format q9", 2, "native|f32"},
        {"generate --model model --ids 1 --combine x", 2, "fixed|expert"},
        {"generate --model model --ids 1 --kernels x", 2, "--kernels x"},
        {"generate --model model --ids 1 --threads 0", 2, "--threads 0"},
        {"generate --model model --ids 1 --chunk 1x", 2, "--chunk 1x"},
        {"generate --model model --ids 1 --temperature nan", 2, "--temperature"},
        {"generate --model model --ids 1 --frobnicate", 2, "--frobnicate"},
        {"generate --model model --ids 1 --seed", 2, "--seed"},
        {"generate --model model --ids 1 more", 2, "more"},
        {"generate --model nowhere --ids 1", 1, "nowhere"},
        {"generate --model model --ids 1,400", 1, "vocabulary of 400"},
        {"generate --model model --ids 1 --max-tokens 1000000", 1, "positions"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        check_failure(generate_main, cases[i].arguments, cases[i].status, cases[i].part);
    check_failure(logits_main, "logits --model model --ids 1", 2, "--out");
    check_failure(logits_main, "logits --model model --ids 1 --out no/such/dir", 1, "no/such/dir");
    check_failure(logits_main, "logits --model model --ids 400 --out file", 1, "vocabulary");
    CHECK(access("file", F_OK) != 0);
}

TEST(generate_and_logits_explain_themselves)
{
    struct outcome o = call(generate_main, "generate --help");
    CHECK_INT(o.status, 0);
    CHECK_HAS(o.out.data, "--print-hashes");
    CHECK_HAS(o.out.data, "--combine");
    outcome_fini(&o);
    o = call(logits_main, "logits --help");
    CHECK_INT(o.status, 0);
    CHECK_HAS(o.out.data, "--out");
    outcome_fini(&o);
}

/* The file holds every row's logits: those that `generate` hashes are among them. */
TEST(logits_writes_every_row)
{
    tiny_model_write("model", 2, 6);
    struct buf all = {0}, chunked = {0};
    struct outcome o = call(logits_main, "logits --model model --ids 5,17,9,33,120 --out all");
    CHECK_INT(o.status, 0);
    outcome_fini(&o);
    o = call(logits_main, "logits --model model --ids 5,17,9,33,120 --out chunked --chunk 2");
    CHECK_INT(o.status, 0);
    outcome_fini(&o);
    CHECK_INT(buf_read_file(&all, "all", FILE_LIMIT, NULL), 0);
    CHECK_INT(buf_read_file(&chunked, "chunked", FILE_LIMIT, NULL), 0);
    CHECK_INT(all.len, 5 * 400 * sizeof(float));
    CHECK_INT(chunked.len, all.len);
    CHECK_BYTES(chunked.data, all.data, all.len);
    float last[400];
    memcpy(last, all.data + 4 * sizeof(last), sizeof(last));
    char *text = output_of("generate --model model --ids 5,17,9,33,120 --temperature 0 "
                           "--max-tokens 1 --print-hashes");
    char *want = mem_format("hashes: %016llx\n", (unsigned long long)sample_logits_hash(last, 400));
    CHECK_STR(last_line(text), want);
    mem_free(text);
    mem_free(want);
    buf_fini(&all);
    buf_fini(&chunked);
}
