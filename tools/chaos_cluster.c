/* tools/chaos_cluster.c - the processes of a scenario; see chaos_state.h. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/must.h"
#include "base/safe_file.h"
#include "tools/chaos_state.h"
#include "tools/chaos_watch.h"

enum { HTTP_PORT = 8080, ETCD_PORT = 2379, STATE_MIB = 8, LEASE_MS = 2000, LEADER_LEASE_MS = 1000 };
static const int64_t ready_ns = 180 * CLOCK_S, etcd_ready_ns = 30 * CLOCK_S;

/* ---- settings ---------------------------------------------------------------------------- */

/* Takes `text`, a setting of ours. */
static void set_own(struct chaos_state *r, char *text)
{
    must(r->n_texts < CHAOS_OWN_SETTINGS);
    r->texts[r->n_texts++] = text;
    must(local_cluster_set(&r->cluster, text));
}

/* One of the scenario's: "%d" becomes the run directory, "spare." its name. */
static void set_text(struct chaos_state *r, const char *text)
{
    const char *place = strstr(text, "%d");
    if (strncmp(text, "spare.", 6) == 0)
        set_own(r, mem_format("expert-%d%s", r->cluster.n_experts - 1, text + 5));
    else if (place)
        set_own(r,
                mem_format("%.*s%s%s", (int)(place - text), text, r->cluster.run_dir, place + 2));
    else
        set_own(r, mem_string(text));
}

/* Each coordinator has a directory of its own, and etcd says who leads. */
static void use_etcd(struct chaos_state *r)
{
    set_own(r, mem_format("coordinator.etcd.endpoints=%s", r->etcd.url));
    set_own(r, mem_format("coordinator.etcd.lease_ms=%d", LEADER_LEASE_MS));
    set_own(r, mem_format("standby.state.dir=%s", r->standby_state_dir));
    set_own(r, mem_string("standby.state.standby=false"));
}

static void configure(struct chaos_state *r)
{
    static const char *const programs[] = {"coordinator", "expert_node", "attn_node"};
    const struct chaos_options *o = &r->chaos->options;
    set_text(r, "coordinator.attention.kv_bytes=64MiB");
    set_text(r, "attn_node.attention.kv_bytes=64MiB");
    /* Measuring would disturb the others, who share this machine's memory. */
    set_text(r, "expert_node.memory.read_bytes_s=10GiB");
    set_own(r, mem_format("coordinator.placement.replicas=%d", r->replicas));
    set_own(r, mem_format("coordinator.cluster.lease_ms=%d", LEASE_MS));
    r->result->measures.lease_ns = LEASE_MS * CLOCK_MS;
    for (int i = 0; i < 3 && o->on_hosts && !r->scenario->has_keys; i++)
        set_own(r, mem_format("%s.security.insecure=true", programs[i]));
    if (r->scenario->has_etcd)
        use_etcd(r);
    for (int i = 0; i < CHAOS_MAX_SETTINGS && r->scenario->settings[i]; i++)
        set_text(r, r->scenario->settings[i]);
    for (int i = 0; i < o->n_settings; i++)
        must(local_cluster_set(&r->cluster, o->settings[i]));
}

/* ---- keys --------------------------------------------------------------------------------- */

/* `polymath keys ...`, in whose output a new API key may stand. */
static int keys(struct chaos_state *r, const char *const *arguments, int n, struct buf *out,
                struct err *e)
{
    enum { MOST = 2 * LOCAL_CLUSTER_MAX_NODES + 8 };
    const char *argv[MOST + 3] = {NULL, "keys"};
    char *program = mem_format("%s/polymath", r->chaos->bin_dir);
    must(n <= MOST);
    argv[0] = program;
    memcpy(argv + 2, arguments, (size_t)n * sizeof *argv);
    int rc = chaos_program(argv, out) == 0
                 ? 0
                 : err_set(e, E_IO, "polymath keys: %.200s", out->data ? out->data : "");
    mem_free(program);
    return rc;
}

/* A pair for each process, and the list of the nodes'. */
static int make_pairs(struct chaos_state *r, const char *dir, struct err *e)
{
    const struct local_cluster *c = &r->cluster;
    const char *names[2 * LOCAL_CLUSTER_MAX_NODES + 8] = {"new"};
    char *list = mem_format("%s/allow", dir);
    char *files[2 * LOCAL_CLUSTER_MAX_NODES + 8] = {NULL};
    struct buf out = {0};
    int n = 1;
    for (int i = 0; i < c->n_processes; i++)
        names[n++] = c->processes[i].name;
    names[n++] = "--dir";
    names[n++] = dir;
    int rc = keys(r, names, n, &out, e);
    const char *allow[2 * LOCAL_CLUSTER_MAX_NODES + 8] = {"allow", list};
    for (n = 2; n <= c->n_processes; n++)
        allow[n] = files[n] = mem_format("%s/%s.pub", dir, c->processes[n - 1].name);
    if (rc == 0)
        rc = keys(r, allow, n, &out, e);
    for (int i = 2; i < n; i++)
        mem_free(files[i]);
    mem_free(list);
    buf_fini(&out);
    return rc;
}

/* An administrator's: the clients ask for /cluster, too. */
static int make_api_key(struct chaos_state *r, const char *dir, struct err *e)
{
    char *list = mem_format("%s/api_keys", dir);
    const char *const arguments[] = {"api", "new", "--name", "chaos", "--admin", "--file", list};
    struct buf out = {0}; /* the key, among words to people */
    int rc = keys(r, arguments, 7, &out, e);
    const char *at = strstr(out.data ? out.data : "", "pm-");
    struct str key = {at, at ? strcspn(at, "\n") : 0};
    r->key_path = mem_format("%s/client.api-key", dir);
    if (rc == 0)
        rc = safe_file_create(r->key_path, SAFE_FILE_SECRET, key, e);
    if (rc == 0)
        rc = http_client_use_key(r->http, r->key_path, e);
    buf_fini(&out);
    mem_free(list);
    return rc;
}

static void use_keys(struct chaos_state *r, const char *dir)
{
    set_own(r, mem_format("coordinator.security.api_keys_file=%s/api_keys", dir));
    set_own(r, mem_format("coordinator.security.key_file=%s/coordinator.key", dir));
    set_own(r, mem_format("coordinator.security.allow_file=%s/allow", dir));
    set_own(r, mem_format("expert_node.security.server_key=%s/coordinator.pub", dir));
    set_own(r, mem_format("attn_node.security.server_key=%s/coordinator.pub", dir));
    for (int i = 0; i < r->cluster.n_experts; i++)
        set_own(r, mem_format("expert-%d.security.key_file=%s/expert-%d.key", i, dir, i));
    for (int i = 0; i < r->cluster.n_attention; i++)
        set_own(r, mem_format("attn-%d.security.key_file=%s/attn-%d.key", i, dir, i));
}

/* ---- directories and hosts ----------------------------------------------------------------- */

static int open_net(struct chaos_state *r, struct err *e)
{
    const struct chaos_options *o = &r->chaos->options;
    /* the last one is the clients' */
    int n = 2 + r->cluster.n_experts + r->cluster.n_attention + r->scenario->has_standby +
            r->scenario->has_etcd;
    if (chaos_net_open(n, &o->wire, &r->net, e) < 0 || chaos_net_start(r->net, e) < 0)
        return e->code = E_DENIED;
    r->cluster.net = r->net;
    r->cluster.host = chaos_net_address(r->net, 0);
    if (chaos_net_enter(r->net, n - 1) < 0)
        return err_set_errno(e, errno, "enter the clients' host");
    return 0;
}

/* A file system of a few MiB that only this process and its children see. */
static int mount_state(struct chaos_state *r, struct err *e)
{
    char options[32];
    snprintf(options, sizeof options, "size=%dm,mode=0700", STATE_MIB);
    if (!r->chaos->has_own_mounts &&
        (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0))
        return err_set(e, E_DENIED, "mounts of our own: %s", strerror(errno));
    r->chaos->has_own_mounts = true;
    if (mount("polymath-chaos", r->state_dir, "tmpfs", 0, options) < 0)
        return err_set(e, E_DENIED, "mount a tmpfs: %s", strerror(errno));
    r->has_state_mount = true;
    return 0;
}

/* What an earlier run left in --dir would be gone on with. */
static int make_fresh(const char *dir, struct err *e)
{
    local_cluster_remove_tree(dir);
    return mkdir(dir, 0700) < 0 ? err_set_errno(e, errno, "create %s", dir) : 0;
}

static int make_state(struct chaos_state *r, struct err *e)
{
    r->state_dir = mem_format("%s/state", r->cluster.run_dir);
    r->standby_state_dir = mem_format("%s/standby-state", r->cluster.run_dir);
    int rc = make_fresh(r->state_dir, e);
    if (rc == 0)
        rc = make_fresh(r->standby_state_dir, e);
    if (rc < 0)
        return rc;
    return r->scenario->small_state ? mount_state(r, e) : 0;
}

/* On a host of its own, behind the standby's; until it answers. */
static int start_etcd(struct chaos_state *r, struct err *e)
{
    int host = 2 + r->cluster.n_experts + r->cluster.n_attention;
    char *dir = mem_format("%s/etcd", r->cluster.run_dir);
    int rc = make_fresh(dir, e);
    r->etcd = (struct local_etcd){.dir = dir,
                                  .host = r->net ? chaos_net_address(r->net, host) : "127.0.0.1",
                                  .net = r->net,
                                  .net_host = host,
                                  .client_port = r->net ? ETCD_PORT : 0,
                                  .peer_port = r->net ? ETCD_PORT + 1 : 0};
    if (rc == 0)
        rc = local_etcd_start(&r->etcd, e);
    int64_t deadline_ns = clock_now_ns() + etcd_ready_ns;
    while (rc == 0 && !local_etcd_answers(&r->etcd, r->http)) {
        rc = chaos_pass(r, clock_now_ns() + 20 * CLOCK_MS, e);
        if (rc == 0 && (clock_now_ns() > deadline_ns || r->etcd.pid == 0))
            rc = err_set(e, E_UNAVAILABLE, "etcd does not answer: see %s/etcd.log", dir);
    }
    r->etcd.dir = NULL;
    mem_free(dir);
    return rc;
}

static int make_keys(struct chaos_state *r, const char *dir, struct err *e)
{
    int rc = make_fresh(dir, e);
    if (rc == 0)
        rc = make_pairs(r, dir, e);
    return rc < 0 ? rc : make_api_key(r, dir, e);
}

static void note_urls(struct chaos_state *r)
{
    const struct local_cluster *c = &r->cluster;
    r->urls[r->n_urls++] = mem_format("http://%s:%d", c->host, c->port);
    if (!c->standby_port)
        return;
    int standby_host = (int)(local_cluster_find(&r->cluster, "standby") - c->processes);
    const char *host = r->net ? chaos_net_address(r->net, standby_host) : c->host;
    r->urls[r->n_urls++] = mem_format("http://%s:%d", host, c->standby_port);
}

int chaos_cluster_open(struct chaos_state *r, struct err *e)
{
    const struct chaos_options *o = &r->chaos->options;
    const struct chaos_scenario *s = r->scenario;
    r->cluster = (struct local_cluster){.model = o->model,
                                        .format = o->format,
                                        .host = "127.0.0.1",
                                        .n_experts = o->n_nodes + s->has_spare,
                                        .n_attention = s->n_attention,
                                        .threads = 1,
                                        .death_signal = SIGKILL};
    char *dir = o->dir ? mem_format("%s/%s", o->dir, s->name) : NULL;
    int rc = local_cluster_open(&r->cluster, dir, e);
    mem_free(dir);
    if (rc == 0 && o->on_hosts)
        rc = open_net(r, e);
    if (rc == 0)
        rc = make_state(r, e);
    if (rc == 0 && s->has_etcd)
        rc = start_etcd(r, e);
    if (rc < 0)
        return rc;
    r->cluster.port = o->on_hosts ? HTTP_PORT : local_cluster_free_port();
    if (s->has_standby)
        r->cluster.standby_port = o->on_hosts ? HTTP_PORT : local_cluster_free_port();
    configure(r);
    char *keys_dir = mem_format("%s/keys", r->cluster.run_dir);
    if (s->has_keys)
        use_keys(r, keys_dir);
    local_cluster_plan(&r->cluster);
    note_urls(r);
    if (s->has_keys)
        rc = make_keys(r, keys_dir, e);
    mem_free(keys_dir);
    return rc;
}

void chaos_cluster_close(struct chaos_state *r)
{
    local_cluster_stop(&r->cluster);
    local_etcd_kill(&r->etcd);
    chaos_net_close(&r->net);
    if (r->has_state_mount)
        umount2(r->state_dir, MNT_DETACH);
    local_cluster_close(&r->cluster,
                        r->chaos->options.dir ? LOCAL_CLUSTER_KEEP_LOGS : LOCAL_CLUSTER_DROP_LOGS);
    for (int i = 0; i < r->n_texts; i++)
        mem_free(r->texts[i]);
    for (int i = 0; i < r->n_urls; i++)
        mem_free(r->urls[i]);
    mem_free(r->state_dir);
    mem_free(r->standby_state_dir);
    mem_free(r->key_path);
}

/* ---- processes ------------------------------------------------------------------------------ */

int chaos_start_process(struct chaos_state *r, struct local_process *p, struct err *e)
{
    if (p->pid)
        return err_set(e, E_INTERNAL, "%s runs already", p->name);
    r->is_expected[p - r->cluster.processes] = true;
    return local_cluster_start(&r->cluster, p, e);
}

struct local_process *chaos_spare(struct chaos_state *r)
{
    char name[32];
    snprintf(name, sizeof name, "expert-%d", r->cluster.n_experts - 1);
    return r->scenario->has_spare ? local_cluster_find(&r->cluster, name) : NULL;
}

static bool is_whole(struct chaos_state *r)
{
    pid_t pids[LOCAL_CLUSTER_MAX_PROCESSES];
    struct chaos_crew crew = {
        .replicas = r->replicas, .pids = pids, .has_embedded = !r->cluster.n_attention};
    for (int i = 1; i <= r->cluster.n_experts + r->cluster.n_attention; i++)
        if (r->is_expected[i])
            pids[crew.n_pids++] = r->cluster.processes[i].pid;
    for (int i = 0; i < r->n_urls; i++)
        if (chaos_watch_is_whole(r->http, r->urls[i], &crew))
            return true;
    return false;
}

static bool is_in_step(struct chaos_state *r)
{
    for (int i = 0; i < r->n_urls; i++)
        if (chaos_watch_is_in_step(r->http, r->urls[i]))
            return true;
    return false;
}

static int wait_until(struct chaos_state *r, bool (*is)(struct chaos_state *r), const char *what,
                      int64_t within_ns, struct err *e)
{
    int64_t deadline_ns = clock_now_ns() + within_ns;
    while (!is(r)) {
        if (clock_now_ns() > deadline_ns)
            return err_set(e, E_DEADLINE, "%s after %lld s", what,
                           (long long)(within_ns / CLOCK_S));
        int rc = chaos_pass(r, clock_now_ns() + 20 * CLOCK_MS, e);
        if (rc < 0)
            return rc;
        if (r->result->why.len > 0)
            return err_set(e, E_UNAVAILABLE, "%s: %s", what, r->result->why.data);
    }
    return 0;
}

int chaos_wait_whole(struct chaos_state *r, int64_t within_ns, struct err *e)
{
    return wait_until(r, is_whole, "the cluster is not whole", within_ns, e);
}

int chaos_wait_in_step(struct chaos_state *r, int64_t within_ns, struct err *e)
{
    return wait_until(r, is_in_step, "no standby has the whole token log", within_ns, e);
}

int chaos_cluster_start(struct chaos_state *r, struct err *e)
{
    struct local_process *standby = local_cluster_find(&r->cluster, "standby");
    int64_t begun_ns = clock_now_ns();
    int rc = 0;
    for (int i = 0; i < r->cluster.n_processes && rc == 0; i++) {
        struct local_process *p = &r->cluster.processes[i];
        if (p != chaos_spare(r) && p != standby)
            rc = chaos_start_process(r, p, e);
    }
    if (rc == 0)
        rc = chaos_wait_whole(r, ready_ns, e);
    r->result->measures.start_ns = clock_now_ns() - begun_ns;
    return rc == 0 && standby ? chaos_start_process(r, standby, e) : rc;
}
