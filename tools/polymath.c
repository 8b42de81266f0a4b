/* tools/polymath.c - the command: one verb, one file. */
#include <stdio.h>
#include <string.h>

#include "base/version.h"
#include "tools/bench.h"
#include "tools/chaos.h"
#include "tools/chat.h"
#include "tools/drain.h"
#include "tools/eval.h"
#include "tools/generate.h"
#include "tools/keys.h"
#include "tools/load.h"
#include "tools/loadtest.h"
#include "tools/logits.h"
#include "tools/pack.h"
#include "tools/plan.h"
#include "tools/quality.h"
#include "tools/roll.h"
#include "tools/simulate.h"
#include "tools/status.h"
#include "tools/synth.h"
#include "tools/up.h"

struct verb {
    const char *name, *summary;
    int (*main)(int argc, char **argv);
};

static const struct verb verbs[] = {
    {"up", "start a coordinator and its nodes on this machine, and keep them running", up_main},
    {"chat", "talk to a running cluster in the terminal", chat_main},
    {"status", "show a running cluster: nodes, placement, requests", status_main},
    {"plan", "what some machines would hold of a model, may lose, and give", plan_main},
    {"simulate", "clusters of any size as numbers, with lateness and losses", simulate_main},
    {"drain", "let an expert node go without anybody noticing", drain_main},
    {"roll", "restart the expert nodes of a running cluster one after another", roll_main},
    {"chaos", "disturb a cluster of its own under load and print what that cost", chaos_main},
    {"generate", "continue a prompt in this process, without a network", generate_main},
    {"logits", "write the logits of a list of token ids to a file", logits_main},
    {"eval", "tasks with known answers: to a running cluster, or what attention sees", eval_main},
    {"bench", "measure the inner loops and whole models beside this machine's ceilings",
     bench_main},
    {"pack", "write a checkpoint in the form that the kernels read", pack_main},
    {"loadtest", "many clients at once: latencies, goodput and errors of a running cluster",
     loadtest_main},
    {"load", "measure how fast a model's experts are ready, beside reading its files", load_main},
    {"quality", "what a weight format costs in answers, against another", quality_main},
    {"keys", "make and list the keys of programs and clients", keys_main},
    {"synth", "write a random checkpoint in the released format", synth_main},
};
enum { N_VERBS = sizeof verbs / sizeof verbs[0] };

static void usage(FILE *out)
{
    fprintf(out, "polymath %s\n\nusage: polymath VERB [OPTION]...\n\n", version_string());
    for (int i = 0; i < N_VERBS; i++)
        fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
    fprintf(out, "\npolymath VERB --help tells a verb's options.\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    const char *word = argv[1];
    if (strcmp(word, "--help") == 0 || strcmp(word, "help") == 0) {
        usage(stdout);
        return 0;
    }
    if (strcmp(word, "--version") == 0) {
        printf("polymath %s\n", version_string());
        return 0;
    }
    for (int i = 0; i < N_VERBS; i++)
        if (strcmp(word, verbs[i].name) == 0)
            return verbs[i].main(argc - 1, argv + 1);
    fprintf(stderr, "polymath: unknown verb '%s'; polymath --help lists them\n", word);
    return 2;
}
