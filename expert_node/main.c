/* expert_node/main.c - options, rooms, the control loop until a signal, exit.
 *
 * SIGTERM and SIGINT drain the node (node.h) and then end it; a second signal ends it at once.
 * Exit 0 when it was drained, 1 if it failed or was refused, 2 if it was misused, 3 if it was
 * drained by an operator who wants it to be started again. */
#include <stdio.h>

#include "base/cpus.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/version.h"
#include "engine/kernels.h"
#include "expert_node/config.h"
#include "expert_node/node.h"
#include "rpc/auth.h"

enum { EXIT_FAILED = 1, EXIT_MISUSED = 2, EXIT_RESTART = 3 };

struct control {
    struct loop *loop;
    struct node *node;
    int signal_fd;
};

static void on_signal(void *ud, int64_t now_ns)
{
    struct control *c = ud;
    (void)now_ns;
    loop_remove_fd(c->loop, c->signal_fd);
    node_drain(c->node);
}

static int run(const struct expert_node_config *config)
{
    struct control control = {.signal_fd = signals_open()};
    struct node *node = NULL;
    struct auth *auth = NULL;
    struct auth_options keys = node_options_auth(&config->node);
    struct err e = {0};
    log_init(config->node.name, (enum log_level)config->node.log_level);
    int rc = cpus_take(config->weights.cpus, &e);
    if (rc < 0)
        err_prefix(&e, "compute.cpus");
    else
        rc = loop_open(&control.loop, &e);
    if (rc == 0)
        rc = auth_start(&keys, &auth, &e);
    if (rc == 0)
        rc = node_open(config, auth, control.loop, &node, &e);
    if (rc == 0) {
        control.node = node;
        loop_add_fd(control.loop, control.signal_fd, on_signal, &control);
        loop_run(control.loop);
        e = *node_failure(node);
        rc = e.code;
    }
    bool wants_restart = node && node_wants_restart(node);
    node_close(&node);
    auth_stop(&auth);
    loop_close(&control.loop);
    if (rc == 0)
        return wants_restart ? EXIT_RESTART : 0;
    fprintf(stderr, "expert_node: %s\n", e.text);
    return EXIT_FAILED;
}

static void print_version(FILE *out)
{
    fprintf(out, "polymath %s\nkernels %s\n", version_string(), kernels_best()->name);
}

int main(int argc, char **argv)
{
    struct expert_node_config c;
    switch (conf_main(&expert_node_options, &c, argc, argv, expert_node_check, print_version)) {
    case CONF_DONE:
        return 0;
    case CONF_MISUSE:
        return EXIT_MISUSED;
    default:
        break;
    }
    int code = EXIT_MISUSED;
    if (!c.node.model_path[0])
        fprintf(stderr, "expert_node: model.path is not set: name the model's directory in the "
                        "configuration or with --set model.path=DIR\n");
    else
        code = run(&c);
    conf_fini(&expert_node_options, &c);
    return code;
}
