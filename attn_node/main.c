/* attn_node/main.c - the attention side as a process: options, start, wait for a signal, stop.
 * With attention.lends it is a node that lends its memory instead (lender.h).
 *
 * Told to go, it serves what it has until other sides have computed that, too, and have taken over;
 * where there is none it leaves at once, and its sequences go on from their tokens when one is there.
 *
 * Exit 0 after SIGTERM or SIGINT or when an operator had it go, 1 if it failed or was refused, 2 if
 * it was misused, 3 if an operator wants it to be started again.  A second signal while
 * stopping ends the process at once. */
#include <poll.h>
#include <stdio.h>

#include "attn_node/config.h"
#include "attn_node/lender.h"
#include "attn_node/side.h"
#include "base/cpus.h"
#include "base/log.h"
#include "base/signals.h"
#include "rpc/auth.h"

enum { POLL_MS = 100, DRAIN_POLL_MS = 10, EXIT_FAILED = 1, EXIT_MISUSED = 2, EXIT_RESTART = 3 };

/* Until nobody needs it any more. */
static void drain(struct side *s)
{
    side_drain(s);
    while (!side_may_go(s) && !side_is_refused(s, NULL))
        poll(NULL, 0, DRAIN_POLL_MS);
}

/* Until a signal comes, an operator wants it, or the coordinator has refused this node for good. */
static int wait_for_end(struct side *s, int fd)
{
    struct err why = {0};
    struct pollfd p = {.fd = fd, .events = POLLIN};
    for (bool restart;;) {
        if (poll(&p, 1, POLL_MS) == 1) {
            drain(s);
            return 0;
        }
        if (side_is_told_to_go(s, &restart)) {
            drain(s);
            return restart ? EXIT_RESTART : 0;
        }
        if (side_is_refused(s, &why)) {
            fprintf(stderr, "attn_node: %s\n", why.text);
            return EXIT_FAILED;
        }
    }
}

static int fail(const struct err *e)
{
    fprintf(stderr, "attn_node: %s\n", e->text);
    return EXIT_FAILED;
}

static int run_side(const struct side_config *config, int fd)
{
    struct side *side = NULL;
    struct err e = {0};
    if (side_start(config, &side, &e) < 0)
        return fail(&e);
    int code = wait_for_end(side, fd);
    side_stop(&side);
    return code;
}

struct lending {
    struct loop *loop;
    struct lender *lender;
    int fd;
};

static void on_signal(void *ud, int64_t now_ns)
{
    struct lending *l = ud;
    (void)now_ns;
    loop_remove_fd(l->loop, l->fd);
    lender_drain(l->lender);
}

static int run_lender(const struct side_config *config, int fd)
{
    struct lending l = {.fd = fd};
    struct err e = {0};
    int rc = loop_open(&l.loop, &e);
    if (rc < 0)
        return fail(&e);
    rc = lender_open(config, l.loop, &l.lender, &e);
    if (rc == 0) {
        loop_add_fd(l.loop, fd, on_signal, &l);
        loop_run(l.loop);
        e = *lender_failure(l.lender);
        rc = e.code;
    }
    bool wants_restart = l.lender && lender_wants_restart(l.lender);
    lender_close(&l.lender);
    loop_close(&l.loop);
    return rc < 0 ? fail(&e) : wants_restart ? EXIT_RESTART : 0;
}

static int run(const struct attn_node_config *c)
{
    int fd = signals_open();
    struct err e = {0};
    struct side_config config = attn_node_side(c);
    struct auth_options auth = node_options_auth(&c->node);
    log_init(c->node.name, (enum log_level)c->node.log_level);
    int rc = cpus_take(c->weights.cpus, &e);
    if (rc < 0)
        err_prefix(&e, "compute.cpus");
    else
        rc = auth_start(&auth, &config.auth, &e);
    if (rc < 0)
        return fail(&e);
    int code = c->lends ? run_lender(&config, fd) : run_side(&config, fd);
    auth_stop(&config.auth);
    return code;
}

int main(int argc, char **argv)
{
    struct attn_node_config c;
    switch (conf_main(&attn_node_options, &c, argc, argv, attn_node_check, side_print_version)) {
    case CONF_DONE:
        return 0;
    case CONF_MISUSE:
        return EXIT_MISUSED;
    default:
        break;
    }
    int code = EXIT_MISUSED;
    if (!c.node.model_path[0])
        fprintf(stderr, "attn_node: model.path is not set: name the model's directory in the "
                        "configuration or with --set model.path=DIR\n");
    else
        code = run(&c);
    conf_fini(&attn_node_options, &c);
    return code;
}
