/* coordinator/main.c - the front door of a cluster: options, wiring, loop, exit.
 *
 * Threads: the loop (this one) owns everything; the embedded attention side brings its own.
 * SIGTERM and SIGINT drain, a second one exits at once. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "attn_node/side.h"
#include "base/err.h"
#include "base/log.h"
#include "base/must.h"
#include "coordinator/config.h"
#include "coordinator/embed.h"
#include "coordinator/hub.h"

struct program {
    struct coordinator_config config;
    struct loop *loop;
    struct hub *hub;
    struct embed *embed;
    int signals; /* descriptor */
    int exit_status, n_signals;
};

static void on_signal(void *ud, int64_t now_ns)
{
    struct program *p = ud;
    struct signalfd_siginfo what;
    (void)now_ns;
    if (read(p->signals, &what, sizeof what) != (ssize_t)sizeof what)
        return;
    if (++p->n_signals > 1) {
        log_info("program.exit", "why=\"second signal\"");
        _exit(1);
    }
    hub_drain(p->hub);
}

static void on_side_failed(void *ud, const struct err *e)
{
    struct program *p = ud;
    log_error("attention.failed", "why=%s", log_quote(e->text).text);
    fprintf(stderr, "coordinator: %s\n", e->text);
    p->exit_status = 1;
    loop_stop(p->loop);
}

/* Before any thread starts, so that all threads leave these signals to the loop. */
static int take_signals(struct program *p, struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    must_zero(sigprocmask(SIG_BLOCK, &set, NULL));
    signal(SIGPIPE, SIG_IGN);
    p->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    return p->signals < 0 ? err_set_errno(e, errno, "signalfd") : 0;
}

static int start(struct program *p, struct err *e)
{
    int rc = take_signals(p, e);
    if (rc == 0)
        rc = loop_open(&p->loop, e);
    if (rc < 0)
        return rc;
    loop_add_fd(p->loop, p->signals, on_signal, p);
    rc = hub_open(p->loop, &p->config, &p->hub, e);
    if (rc == 0 && p->config.attention_embedded)
        rc = embed_start(p->loop, &p->config, on_side_failed, p, &p->embed, e);
    return rc;
}

static void stop(struct program *p)
{
    /* A load cannot be interrupted, and there is nothing that it could leave behind. */
    if (!embed_can_stop(p->embed)) {
        log_info("program.exit", "why=\"stopped while loading\"");
        _exit(p->exit_status);
    }
    embed_stop(&p->embed);
    hub_close(&p->hub);
    if (p->loop) {
        loop_remove_fd(p->loop, p->signals);
        loop_close(&p->loop);
    }
    if (p->signals >= 0)
        close(p->signals);
}

int main(int argc, char **argv)
{
    static struct program p = {.signals = -1};
    struct err e = {0};
    switch (conf_main(&coordinator_options, &p.config, argc, argv, coordinator_config_check,
                      side_print_version)) {
    case CONF_MISUSE:
        return 2;
    case CONF_DONE:
        return 0;
    case CONF_RUN:
        break;
    }
    log_init(p.config.node_name, (enum log_level)p.config.log_level);
    if (start(&p, &e) < 0) {
        fprintf(stderr, "coordinator: %s\n", e.text);
        p.exit_status = 1;
    } else {
        loop_run(p.loop);
    }
    stop(&p);
    conf_fini(&coordinator_options, &p.config);
    return p.exit_status;
}
