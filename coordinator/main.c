/* coordinator/main.c - the front door of a cluster: options, wiring, loop, exit.
 *
 * Threads: the loop (this one) owns everything; the embedded attention side brings its own.
 * SIGTERM and SIGINT drain, a second one exits at once.  They are caught by a handler, not a
 * signalfd: OpenBLAS starts threads before main(), which cannot be told to block them. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/eventfd.h>
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
    int exit_status;
};

/* For the handler, which has no other way to know. */
static int signal_fd = -1;
static volatile sig_atomic_t n_signals;

static void on_raw_signal(int number)
{
    const uint64_t one = 1;
    (void)number;
    int saved = errno;
    if (++n_signals > 1 || write(signal_fd, &one, sizeof one) != (ssize_t)sizeof one)
        _exit(1);
    errno = saved;
}

static void on_signal(void *ud, int64_t now_ns)
{
    struct program *p = ud;
    uint64_t count;
    (void)now_ns;
    if (read(signal_fd, &count, sizeof count) == (ssize_t)sizeof count)
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

static int take_signals(struct err *e)
{
    struct sigaction action = {.sa_handler = on_raw_signal, .sa_flags = SA_RESTART};
    signal_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (signal_fd < 0)
        return err_set_errno(e, errno, "eventfd");
    signal(SIGPIPE, SIG_IGN);
    must_zero(sigaction(SIGTERM, &action, NULL));
    must_zero(sigaction(SIGINT, &action, NULL));
    return 0;
}

static int start(struct program *p, struct err *e)
{
    int rc = loop_open(&p->loop, e);
    if (rc == 0)
        rc = hub_open(p->loop, &p->config, &p->hub, e);
    if (rc == 0)
        rc = take_signals(e);
    if (rc < 0)
        return rc;
    loop_add_fd(p->loop, signal_fd, on_signal, p);
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
        if (signal_fd >= 0)
            loop_remove_fd(p->loop, signal_fd);
        loop_close(&p->loop);
    }
}

int main(int argc, char **argv)
{
    static struct program p;
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
