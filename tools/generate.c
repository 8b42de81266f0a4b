/* tools/generate.c - see tools/generate.h. */
#include "tools/generate.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "engine/sample.h"
#include "model/chat.h"
#include "model/utf8.h"
#include "tools/local_engine.h"

struct generate_options {
    struct local_engine_options engine;
    const char *prompt, *ids, *chat;
    int64_t max_tokens;
    double temperature, top_k, top_p, min_p; /* NAN: the model's own */
    double repetition_penalty, frequency_penalty, presence_penalty;
    int64_t seed; /* -1: from the system */
    bool print_ids, print_hashes, stats;
};

struct generate {
    const struct generate_options *options;
    struct local_engine engine;
    struct tokenizer *tokenizer; /* NULL if the checkpoint has none */
    struct tokens tokens;        /* prompt, then what was generated */
    size_t n_prompt;
    struct sampler *sampler;
    struct sampling sampling;
    struct utf8_stream utf8;
    struct buf text;
    uint64_t *hashes; /* [max_tokens] */
    int64_t prompt_ns, decode_ns;
};

static void usage(FILE *out)
{
    fputs("usage: polymath generate --model DIR (--prompt TEXT | --ids LIST | --chat TEXT)\n"
          "                         [OPTION]...\n\n"
          "Continues a prompt in this process and prints the text as it comes.\n\n"
          "  --prompt TEXT      continue this text\n"
          "  --ids LIST         continue these token ids, with commas between\n"
          "  --chat TEXT        answer this as the user's message\n"
          "  --max-tokens N     at most so many new tokens (default 128)\n"
          "  --temperature T    0 = greedy (default: the model's own)\n"
          "  --top-k K          0 = off (default: the model's own)\n"
          "  --top-p P          1 = off (default: the model's own)\n"
          "  --min-p P          0 = off (default)\n"
          "  --repetition-penalty P, --frequency-penalty P, --presence-penalty P\n"
          "  --seed N           the same seed draws the same tokens (default: a random one)\n"
          "  --print-ids        last line: the new token ids with commas between\n"
          "  --print-hashes     a line 'hashes: ...': one hash of the logits per new token\n"
          "  --stats            speed and shares of time, to stderr\n" LOCAL_ENGINE_HELP,
          out);
}

/* ---- options ---- */

enum {
    OPTION_PROMPT = 1,
    OPTION_IDS,
    OPTION_CHAT,
    OPTION_MAX_TOKENS,
    OPTION_TEMPERATURE,
    OPTION_TOP_K,
    OPTION_TOP_P,
    OPTION_MIN_P,
    OPTION_REPETITION,
    OPTION_FREQUENCY,
    OPTION_PRESENCE,
    OPTION_SEED,
    OPTION_PRINT_IDS,
    OPTION_PRINT_HASHES,
    OPTION_STATS,
    OPTION_HELP
};

static const struct option long_options[] = {
    LOCAL_ENGINE_GETOPT,
    {"prompt", required_argument, NULL, OPTION_PROMPT},
    {"ids", required_argument, NULL, OPTION_IDS},
    {"chat", required_argument, NULL, OPTION_CHAT},
    {"max-tokens", required_argument, NULL, OPTION_MAX_TOKENS},
    {"temperature", required_argument, NULL, OPTION_TEMPERATURE},
    {"top-k", required_argument, NULL, OPTION_TOP_K},
    {"top-p", required_argument, NULL, OPTION_TOP_P},
    {"min-p", required_argument, NULL, OPTION_MIN_P},
    {"repetition-penalty", required_argument, NULL, OPTION_REPETITION},
    {"frequency-penalty", required_argument, NULL, OPTION_FREQUENCY},
    {"presence-penalty", required_argument, NULL, OPTION_PRESENCE},
    {"seed", required_argument, NULL, OPTION_SEED},
    {"print-ids", no_argument, NULL, OPTION_PRINT_IDS},
    {"print-hashes", no_argument, NULL, OPTION_PRINT_HASHES},
    {"stats", no_argument, NULL, OPTION_STATS},
    {"help", no_argument, NULL, OPTION_HELP},
    {0}};

static int take_number(const char *option, double least, double most, double *out, struct err *e)
{
    char *end;
    double value = strtod(optarg, &end);
    if (end == optarg || *end || !(value >= least && value <= most))
        return err_set(e, E_INVALID, "--%s %s: expected a number from %g to %g", option, optarg,
                       least, most);
    *out = value;
    return 0;
}

static int take_option(struct generate_options *o, int code, struct err *e)
{
    switch (code) {
    case OPTION_PROMPT:
        o->prompt = optarg;
        return 0;
    case OPTION_IDS:
        o->ids = optarg;
        return 0;
    case OPTION_CHAT:
        o->chat = optarg;
        return 0;
    case OPTION_MAX_TOKENS:
        return local_engine_integer("max-tokens", optarg, 1, 1 << 24, &o->max_tokens, e);
    case OPTION_TEMPERATURE:
        return take_number("temperature", 0, 100, &o->temperature, e);
    case OPTION_TOP_K:
        return take_number("top-k", 0, 1 << 24, &o->top_k, e);
    case OPTION_TOP_P:
        return take_number("top-p", 0, 1, &o->top_p, e);
    case OPTION_MIN_P:
        return take_number("min-p", 0, 1, &o->min_p, e);
    case OPTION_REPETITION:
        return take_number("repetition-penalty", 0.01, 100, &o->repetition_penalty, e);
    case OPTION_FREQUENCY:
        return take_number("frequency-penalty", -100, 100, &o->frequency_penalty, e);
    case OPTION_PRESENCE:
        return take_number("presence-penalty", -100, 100, &o->presence_penalty, e);
    case OPTION_SEED:
        return local_engine_integer("seed", optarg, 0, INT64_MAX, &o->seed, e);
    case OPTION_PRINT_IDS:
        o->print_ids = true;
        return 0;
    case OPTION_PRINT_HASHES:
        o->print_hashes = true;
        return 0;
    case OPTION_STATS:
        o->stats = true;
        return 0;
    default:
        return local_engine_take(&o->engine, code, optarg, e);
    }
}

/* 0 to go on, 1 after --help, E_INVALID. */
static int parse(int argc, char **argv, struct generate_options *o, struct err *e)
{
    *o = (struct generate_options){
        .max_tokens = 128, .temperature = NAN, .top_k = NAN, .top_p = NAN, .seed = -1};
    local_engine_defaults(&o->engine);
    optind = 0;
    opterr = 0;
    for (int code; (code = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        if (code == OPTION_HELP)
            return 1;
        if (code == '?')
            return err_set(e, E_INVALID, "%s: unknown option or missing value", argv[optind - 1]);
        int rc = take_option(o, code, e);
        if (rc < 0)
            return rc;
    }
    if (optind < argc)
        return err_set(e, E_INVALID, "%s: unexpected argument", argv[optind]);
    if (!o->engine.model_dir)
        return err_set(e, E_INVALID, "--model is needed");
    if (!!o->prompt + !!o->ids + !!o->chat != 1)
        return err_set(e, E_INVALID, "one of --prompt, --ids and --chat is needed");
    return 0;
}

/* ---- the prompt ---- */

static int render_chat(struct generate *g, struct err *e)
{
    struct chat chat;
    int rc = chat_init(&chat, g->tokenizer, e);
    if (rc < 0)
        return rc;
    struct chat_message message = {.role = CHAT_USER, .content = str_of(g->options->chat)};
    struct chat_prompt prompt = {.messages = &message, .n_messages = 1};
    return chat_render(&chat, &prompt, &g->tokens, e);
}

static int make_prompt(struct generate *g, struct err *e)
{
    const struct generate_options *o = g->options;
    int rc = tokenizer_open(o->engine.model_dir, &g->tokenizer, e);
    if (rc == E_NOT_FOUND && !o->ids)
        return err_set(e, rc,
                       "%s has no tokenizer.json to read a text with; give the prompt as --ids",
                       o->engine.model_dir);
    if (rc < 0 && rc != E_NOT_FOUND)
        return rc;
    *e = (struct err){0};
    if (o->ids)
        rc = 0;
    else if (o->chat)
        rc = render_chat(g, e);
    else
        rc = tokenizer_encode(g->tokenizer, str_of(o->prompt), TOKENIZER_WITH_MARKERS, &g->tokens);
    if (rc < 0)
        return e->code ? rc : err_set(e, rc, "the prompt is too long");
    if (g->tokens.len == 0)
        return err_set(e, E_INVALID, "the prompt has no tokens");
    g->n_prompt = g->tokens.len;
    return 0;
}

static void set_sampling(struct generate *g)
{
    const struct generate_options *o = g->options;
    const struct model_config *c = g->engine.config;
    g->sampling = (struct sampling){
        .temperature = (float)(isnan(o->temperature) ? c->temperature : o->temperature),
        .top_k = isnan(o->top_k) ? c->top_k_sampling : (int)o->top_k,
        .top_p = (float)(isnan(o->top_p) ? c->top_p : o->top_p),
        .min_p = (float)o->min_p,
        .repetition_penalty = (float)o->repetition_penalty,
        .frequency_penalty = (float)o->frequency_penalty,
        .presence_penalty = (float)o->presence_penalty,
        .seed = o->seed < 0 ? rng_entropy() : (uint64_t)o->seed,
        .logits_hash = o->print_hashes};
}

/* ---- generating ---- */

static void print_text(const struct generate *g)
{
    if (g->text.len > 0)
        fwrite(g->text.data, 1, g->text.len, stdout);
}

static void print_token(struct generate *g, int32_t token)
{
    if (!g->tokenizer || tokenizer_is_special(g->tokenizer, token))
        return;
    buf_reset(&g->text);
    utf8_feed(&g->utf8, tokenizer_token_bytes(g->tokenizer, token), &g->text);
    print_text(g);
    fflush(stdout);
}

static void print_end(struct generate *g)
{
    size_t n_new = g->tokens.len - g->n_prompt;
    if (g->tokenizer) {
        buf_reset(&g->text);
        utf8_finish(&g->utf8, &g->text);
        print_text(g);
        putchar('\n');
    }
    if (g->options->print_hashes) {
        fputs("hashes: ", stdout);
        for (size_t i = 0; i < n_new; i++)
            printf("%s%016llx", i ? "," : "", (unsigned long long)g->hashes[i]);
        putchar('\n');
    }
    if (g->options->print_ids) {
        for (size_t i = 0; i < n_new; i++)
            printf("%s%d", i ? "," : "", (int)g->tokens.ids[g->n_prompt + i]);
        putchar('\n');
    }
}

/* All prompt tokens but the last chunk's need no logits. */
static int run_prompt(struct generate *g, const float **logits, struct err *e)
{
    size_t chunk = (size_t)g->engine.chunk_rows;
    int64_t begun_ns = clock_now_ns();
    for (size_t at = 0; at < g->n_prompt;) {
        size_t left = g->n_prompt - at, n = left < chunk ? left : chunk;
        int rc = local_engine_step(&g->engine, g->tokens.ids + at, (int)n,
                                   n == left ? LOCAL_ENGINE_LAST_LOGITS : LOCAL_ENGINE_NO_LOGITS,
                                   logits, e);
        if (rc < 0)
            return rc;
        at += n;
    }
    g->prompt_ns = clock_now_ns() - begun_ns;
    return 0;
}

static int choose_token(struct generate *g, const float *logits, struct sampled *out, struct err *e)
{
    struct sample_history history = {
        .tokens = g->tokens.ids, .n_tokens = (int)g->tokens.len, .n_prompt = (int)g->n_prompt};
    int rc = sample_token(g->sampler, logits, &g->sampling, &history, g->tokens.len, out);
    return rc < 0 ? err_set(e, rc, "token %zu: %s", g->tokens.len,
                            rc == E_CORRUPT ? "a logit is not finite" : err_text(rc))
                  : 0;
}

static int run_decode(struct generate *g, const float *logits, struct err *e)
{
    int64_t begun_ns = clock_now_ns();
    for (int64_t i = 0;; i++) {
        struct sampled sampled;
        int rc = choose_token(g, logits, &sampled, e);
        if (rc < 0)
            return rc;
        g->hashes[i] = sampled.logits_hash;
        tokens_push(&g->tokens, sampled.token);
        print_token(g, sampled.token);
        g->decode_ns = clock_now_ns() - begun_ns;
        if (i + 1 == g->options->max_tokens || config_is_eos(g->engine.config, sampled.token))
            return 0;
        rc = local_engine_step(&g->engine, &sampled.token, 1, LOCAL_ENGINE_LAST_LOGITS, &logits, e);
        if (rc < 0)
            return rc;
    }
}

static void print_stats(const struct generate *g)
{
    /* The first new token comes out of the prompt's last step. */
    double n_decode = (double)(g->tokens.len - g->n_prompt) - 1;
    double prompt_s = (double)g->prompt_ns / CLOCK_S, decode_s = (double)g->decode_ns / CLOCK_S;
    double experts = 100.0 * (double)g->engine.experts_ns / (double)(g->prompt_ns + g->decode_ns);
    fprintf(stderr,
            "prompt: %zu tokens in %.3f s, %.1f tokens/s\n"
            "decode: %.0f tokens in %.3f s, %.2f tokens/s\n"
            "experts: %.0f %% of the time, attention side: %.0f %%\n"
            "kernels: %s, threads: %d, attention side: %.1f MB of weights and scratch\n",
            g->n_prompt, prompt_s, (double)g->n_prompt / prompt_s, n_decode, decode_s,
            decode_s > 0 ? n_decode / decode_s : 0.0, experts, 100.0 - experts,
            g->engine.compute.kernels->name, pool_threads(g->engine.compute.pool),
            (double)forward_bytes(g->engine.forward) / 1e6);
}

static int generate(struct generate *g, struct err *e)
{
    const struct generate_options *o = g->options;
    const float *logits = NULL;
    int rc = local_engine_open(&g->engine, &o->engine, e);
    if (rc == 0)
        rc = make_prompt(g, e);
    if (rc < 0)
        return rc;
    int64_t n_positions = (int64_t)g->n_prompt + o->max_tokens;
    rc = local_engine_load(&g->engine, &o->engine, n_positions, e);
    if (rc < 0)
        return rc;
    g->sampler = sampler_new(g->engine.config->vocab_size);
    g->hashes = mem_array((size_t)o->max_tokens, sizeof(*g->hashes));
    set_sampling(g);
    rc = run_prompt(g, &logits, e);
    if (rc == 0)
        rc = run_decode(g, logits, e);
    if (rc < 0)
        return rc;
    print_end(g);
    if (o->stats)
        print_stats(g);
    return fflush(stdout) == 0 ? 0 : err_set_errno(e, errno, "write");
}

int generate_main(int argc, char **argv)
{
    struct err e = {0};
    struct generate_options o;
    int rc = parse(argc, argv, &o, &e);
    if (rc == 1) {
        usage(stdout);
        return 0;
    }
    struct generate g = {.options = &o};
    if (rc == 0 && o.ids)
        rc = local_engine_ids(o.ids, &g.tokens, &e);
    bool is_misused = rc < 0;
    if (rc == 0)
        rc = generate(&g, &e);
    if (rc < 0)
        fprintf(stderr, "polymath generate: %s\n", e.text);
    mem_free(g.hashes);
    sampler_free(&g.sampler);
    buf_fini(&g.text);
    tokens_fini(&g.tokens);
    tokenizer_free(&g.tokenizer);
    local_engine_close(&g.engine);
    return is_misused ? 2 : rc < 0 ? 1 : 0;
}
