/* coordinator/main.c - the front door of a cluster: options, wiring, loop, exit.
 *
 * Threads: the loop (this one) owns everything; the embedded attention side, the journal and the
 * client of etcd bring their own.
 * SIGTERM and SIGINT drain, a second one exits at once. */
#include <errno.h>
#include <linux/close_range.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "attn_node/side.h"
#include "base/cpus.h"
#include "base/err.h"
#include "base/log.h"
#include "base/signals.h"
#include "coordinator/config.h"
#include "coordinator/embed.h"
#include "coordinator/hub.h"
#include "rpc/auth.h"

struct program {
    struct coordinator_config config;
    struct loop *loop;
    struct hub *hub;
    struct embed *embed;
    struct auth *auth;
    int signal_fd, exit_status;
};

static void on_signal(void *ud, int64_t now_ns)
{
    struct program *p = ud;
    (void)now_ns;
    loop_remove_fd(p->loop, p->signal_fd);
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

static int start_auth(struct program *p, struct err *e)
{
    struct auth_options o = {.key_file = p->config.key_file,
                             .allow_file = p->config.allow_file,
                             .is_insecure = p->config.is_insecure,
                             .lets_in_itself = p->config.etcd_endpoints[0] != '\0'};
    return auth_start(&o, &p->auth, e);
}

static int start(struct program *p, struct err *e)
{
    int rc = cpus_take(p->config.weights.cpus, e);
    if (rc < 0)
        return err_prefix(e, "compute.cpus");
    rc = loop_open(&p->loop, e);
    if (rc == 0)
        rc = start_auth(p, e);
    if (rc == 0)
        rc = hub_open(p->loop, &p->config, p->auth, &p->hub, e);
    if (rc < 0)
        return rc;
    p->signal_fd = signals_open();
    loop_add_fd(p->loop, p->signal_fd, on_signal, p);
    struct embed_options embed = {
        .config = &p->config, .auth = p->auth, .on_failed = on_side_failed, .ud = p};
    if (p->config.attention_embedded)
        rc = embed_start(p->loop, &embed, &p->embed, e);
    return rc;
}

static void stop(struct program *p)
{
    /* A load cannot be interrupted, and there is nothing that it could leave behind. */
    if (!embed_can_stop(p->embed)) {
        log_info("program.exit", "why=\"stopped while loading\"");
        embed_abandon(p->embed);
        _exit(p->exit_status);
    }
    embed_stop(&p->embed);
    hub_close(&p->hub);
    auth_stop(&p->auth);
    loop_close(&p->loop);
}

/* Another coordinator leads.  What this process was it must not be for a moment longer, so nothing
 * is closed in good order (which would write and send); the same process begins anew. */
static void begin_anew(const struct program *p, char **argv)
{
    if (signals_hold()) {
        log_info("program.exit", "why=\"told to end, and another coordinator leads\"");
        _exit(p->exit_status);
    }
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
    execv("/proc/self/exe", argv);
    log_error("program.exit", "why=\"cannot begin anew: %s\"", strerror(errno));
    _exit(1);
}

/* The loop has stopped. */
static void see_why(struct program *p, char **argv)
{
    switch (hub_end(p->hub)) {
    case HUB_ENDED:
        return;
    case HUB_BROKEN:
        log_error("program.exit", "why=%s", log_quote(hub_end_text(p->hub)).text);
        fprintf(stderr, "coordinator: %s\n", hub_end_text(p->hub));
        p->exit_status = 1;
        return;
    case HUB_ANEW:
        begin_anew(p, argv);
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
        see_why(&p, argv);
    }
    stop(&p);
    conf_fini(&coordinator_options, &p.config);
    return p.exit_status;
}
