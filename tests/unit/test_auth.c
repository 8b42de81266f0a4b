/* tests/unit/test_auth.c - who gets in over real sockets, who does not, and who is thrown out. */
#include "rpc/auth.h"

#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/safe_file.h"
#include "base/signals.h"
#include "rpc/channel.h"
#include "tests/lib/test.h"
#include "tests/unit/rpc_echo.h"

#define PATIENCE_NS (20 * CLOCK_S)

static struct key_pair make_keys(const char *name)
{
    struct key_pair k;
    struct err e = {0};
    if (key_pair_new(name, &k, &e) < 0 || key_pair_write(&k, ".", &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return k;
}

static struct auth *start_auth(const struct auth_options *o)
{
    struct auth *a = NULL;
    struct err e = {0};
    if (auth_start(o, &a, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return a;
}

static void write_list(const struct key_pair *keys, int n)
{
    struct buf text = {0};
    struct err e = {0};
    buf_puts(&text, "# who may come in\n");
    for (int i = 0; i < n; i++)
        buf_printf(&text, "%s %s\n", keys[i].public_key, keys[i].name);
    if (safe_file_replace("allow", SAFE_FILE_PUBLIC, buf_str(&text), &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    buf_fini(&text);
}

/* A program with keys that only dials. */
static struct auth *client_of(const char *name, const char *server_key)
{
    char file[80];
    snprintf(file, sizeof(file), "%s.key", name);
    return start_auth(
        &(struct auth_options){.key_file = file, .server_key = server_key, .is_client_only = true});
}

static struct channel *dial(const char *endpoint, struct auth *a)
{
    struct channel_options o = {
        .endpoint = endpoint, .peer_name = "echo-0", .auth = a, .server_key = auth_server_key(a)};
    struct channel *c = NULL;
    struct err e = {0};
    if (channel_open(&o, &c, &e) < 0)
        test_fail(__FILE__, __LINE__, "%s", e.text);
    return c;
}

static bool wait_connected(struct channel *c, int64_t for_ns)
{
    int64_t deadline_ns = clock_now_ns() + for_ns;
    while (!channel_is_connected(c) && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, deadline_ns, 0);
    return channel_is_connected(c);
}

struct outcome {
    int n_ends, code;
    char text[512];
};

static void note(void *ud, const struct reply *r)
{
    struct outcome *o = ud;
    o->n_ends++;
    o->code = r->code;
    snprintf(o->text, sizeof(o->text), "%s", r->code < 0 ? r->text : "");
}

static int start_call(struct channel *c, const char *text, struct outcome *o)
{
    struct buf message = {0};
    buf_puts(&message, text);
    struct call call = {.method = wire_method(WIRE_EXPERT, EXPERT_FORWARD),
                        .message = &message,
                        .deadline_ns = clock_now_ns() + PATIENCE_NS,
                        .done = note,
                        .ud = o};
    int rc = channel_call(c, &call, NULL);
    buf_fini(&message);
    return rc;
}

static struct outcome ask(struct channel *c, const char *text)
{
    struct outcome o = {0};
    CHECK_INT(start_call(c, text, &o), 0);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (o.n_ends == 0 && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, deadline_ns, 0);
    CHECK_INT(o.n_ends, 1);
    return o;
}

static int64_t refusals(const struct auth *a, enum auth_refusal why)
{
    struct auth_counters n;
    auth_count(a, &n);
    return n.refused[why];
}

/* A server's own thread counts, so it may take a moment; `c` is kept turning meanwhile. */
static void wait_refused(const struct auth *a, enum auth_refusal why, struct channel *c)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (refusals(a, why) == 0 && clock_now_ns() < deadline_ns)
        channel_wait(&c, 1, -1, clock_now_ns() + 5 * CLOCK_MS, 0);
    CHECK(refusals(a, why) > 0);
}

static void wait_generation(const struct auth *a, uint64_t before)
{
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (auth_generation(a) == before && clock_now_ns() < deadline_ns)
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
    CHECK(auth_generation(a) != before);
}

/* A server with keys, one client on its list and one that is not. */
struct scene {
    struct key_pair server, friends[2], stranger;
    struct auth *auth, *friend_auth, *stranger_auth;
    struct rpc_echo *echo;
};

static void open_scene(struct scene *s)
{
    s->server = make_keys("server");
    s->friends[0] = make_keys("friend");
    s->friends[1] = make_keys("other");
    s->stranger = make_keys("stranger");
    write_list(s->friends, 2);
    s->auth = start_auth(&(struct auth_options){.key_file = "server.key", .allow_file = "allow"});
    s->friend_auth = client_of("friend", "server.pub");
    s->stranger_auth = client_of("stranger", "server.pub");
    s->echo = rpc_echo_start_with("tcp://127.0.0.1:0", s->auth, 0);
}

static void close_scene(struct scene *s)
{
    rpc_echo_stop(&s->echo);
    auth_stop(&s->friend_auth);
    auth_stop(&s->stranger_auth);
    auth_stop(&s->auth);
}

TEST(auth_lets_the_list_in_and_nobody_else)
{
    struct scene s;
    open_scene(&s);
    struct channel *friendly = dial(rpc_echo_endpoint(s.echo), s.friend_auth);
    CHECK(wait_connected(friendly, PATIENCE_NS));
    CHECK_INT(ask(friendly, "echo").code, 0);

    struct channel *stranger = dial(rpc_echo_endpoint(s.echo), s.stranger_auth);
    wait_refused(s.auth, AUTH_UNKNOWN_KEY, stranger);
    CHECK(!channel_is_connected(stranger));
    struct outcome o = {0};
    CHECK_INT(start_call(stranger, "echo", &o), E_UNAVAILABLE);

    /* Put on the list, it gets in by itself: neither side starts again. */
    struct key_pair all[3] = {s.friends[0], s.friends[1], s.stranger};
    write_list(all, 3);
    CHECK(wait_connected(stranger, PATIENCE_NS));
    CHECK_INT(ask(stranger, "echo").code, 0);
    CHECK_INT(ask(friendly, "echo").code, 0);
    struct auth_counters n;
    auth_count(s.auth, &n);
    CHECK_INT(n.n_allowed, 3);
    CHECK_INT(n.reloads, 1);
    CHECK(n.accepted >= 2); /* on a busy machine a connection may break and come back */
    channel_close(&stranger);
    channel_close(&friendly);
    close_scene(&s);
}

TEST(auth_refuses_a_client_without_keys)
{
    struct scene s;
    open_scene(&s);
    struct channel *friendly = dial(rpc_echo_endpoint(s.echo), s.friend_auth);
    struct channel *bare = dial(rpc_echo_endpoint(s.echo), NULL);
    /* Who of the two notices first hangs up, and the server cannot always say why. */
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (refusals(s.auth, AUTH_NO_KEY) + refusals(s.auth, AUTH_HANDSHAKE) == 0 &&
           clock_now_ns() < deadline_ns)
        channel_wait(&bare, 1, -1, clock_now_ns() + 5 * CLOCK_MS, 0);
    CHECK(refusals(s.auth, AUTH_NO_KEY) + refusals(s.auth, AUTH_HANDSHAKE) > 0);
    CHECK(!channel_is_connected(bare));
    CHECK(wait_connected(friendly, PATIENCE_NS));
    CHECK_INT(ask(friendly, "echo").code, 0);
    CHECK_INT(refusals(s.auth, AUTH_UNKNOWN_KEY), 0);
    channel_close(&bare);
    channel_close(&friendly);
    close_scene(&s);
}

/* A server that is not the one whose key was pinned learns nothing and is told nothing. */
TEST(auth_refuses_a_server_with_another_key)
{
    struct scene s;
    open_scene(&s);
    struct auth *misled = client_of("other", "friend.pub");
    struct channel *c = dial(rpc_echo_endpoint(s.echo), misled);
    wait_refused(s.auth, AUTH_CRYPTO, c);
    CHECK(!channel_is_connected(c));
    CHECK_INT(refusals(s.auth, AUTH_UNKNOWN_KEY), 0);
    channel_close(&c);
    auth_stop(&misled);
    close_scene(&s);
}

TEST(auth_client_with_keys_does_not_talk_to_a_server_without)
{
    struct scene s;
    open_scene(&s);
    struct rpc_echo *bare = rpc_echo_start("tcp://127.0.0.1:0", 0);
    struct channel *c = dial(rpc_echo_endpoint(bare), s.friend_auth);
    /* Long enough for several handshakes; there is no event to wait for. */
    CHECK(!wait_connected(c, CLOCK_S / 2));
    CHECK_INT(rpc_echo_counters(bare).calls, 0);
    /* When the server comes back with keys the client finds it: nobody starts the client again. */
    char endpoint[LINK_ENDPOINT_BYTES];
    snprintf(endpoint, sizeof(endpoint), "%s", rpc_echo_endpoint(bare));
    rpc_echo_stop(&bare);
    bare = rpc_echo_start_with(endpoint, s.auth, 0);
    CHECK(wait_connected(c, PATIENCE_NS));
    CHECK_INT(ask(c, "echo").code, 0);
    channel_close(&c);
    rpc_echo_stop(&bare);
    close_scene(&s);
}

TEST(auth_revoked_key_is_refused_on_the_connection_that_it_has)
{
    struct scene s;
    open_scene(&s);
    struct auth *other_auth = client_of("other", "server.pub");
    struct channel *friendly = dial(rpc_echo_endpoint(s.echo), s.friend_auth);
    struct channel *other = dial(rpc_echo_endpoint(s.echo), other_auth);
    CHECK(wait_connected(friendly, PATIENCE_NS) && wait_connected(other, PATIENCE_NS));
    CHECK_INT(ask(other, "echo").code, 0);

    uint64_t before = auth_generation(s.auth);
    write_list(s.friends, 1);
    wait_generation(s.auth, before);
    struct outcome o = ask(other, "echo");
    CHECK_INT(o.code, E_DENIED);
    CHECK_HAS(o.text, s.friends[1].public_key);
    CHECK_INT(ask(friendly, "echo").code, 0);
    CHECK_INT(refusals(s.auth, AUTH_CALL), 1);
    CHECK_INT(rpc_echo_counters(s.echo).refused_peers, 1);

    channel_close(&other); /* and a new connection by name */
    other = dial(rpc_echo_endpoint(s.echo), other_auth);
    wait_refused(s.auth, AUTH_REVOKED_KEY, other);
    CHECK(!channel_is_connected(other));
    channel_close(&other);
    channel_close(&friendly);
    auth_stop(&other_auth);
    close_scene(&s);
}

TEST(auth_keeps_its_list_when_the_file_breaks)
{
    struct scene s;
    open_scene(&s);
    struct channel *c = dial(rpc_echo_endpoint(s.echo), s.friend_auth);
    CHECK(wait_connected(c, PATIENCE_NS));
    struct err e = {0};
    CHECK_INT(safe_file_replace("allow", SAFE_FILE_PUBLIC, STR("nonsense\n"), &e), 0);
    struct auth_counters n;
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    do {
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
        auth_count(s.auth, &n);
    } while (n.failed_reloads == 0 && clock_now_ns() < deadline_ns);
    CHECK_INT(n.failed_reloads, 1);
    CHECK_INT(n.n_allowed, 2);
    CHECK_INT(ask(c, "echo").code, 0);
    CHECK_INT(unlink("allow"), 0);
    do {
        clock_sleep_until(clock_now_ns() + CLOCK_MS);
        auth_count(s.auth, &n);
    } while (n.failed_reloads == 1 && clock_now_ns() < deadline_ns);
    CHECK_INT(n.n_allowed, 2);
    channel_close(&c);
    close_scene(&s);
}

TEST(auth_reads_its_list_again_when_it_is_told)
{
    signals_open();
    make_keys("server");
    write_list(NULL, 0);
    struct auth *a =
        start_auth(&(struct auth_options){.key_file = "server.key", .allow_file = "allow"});
    uint64_t before = auth_generation(a);
    CHECK_INT(raise(SIGHUP), 0); /* the file is as it was */
    wait_generation(a, before);
    auth_stop(&a);
}

TEST(auth_takes_callers_and_forgets_them)
{
    struct scene s;
    open_scene(&s);
    struct channel *stranger = dial(rpc_echo_endpoint(s.echo), s.stranger_auth);
    wait_refused(s.auth, AUTH_UNKNOWN_KEY, stranger);
    char keys[1][KEY_TEXT_BYTES];
    memcpy(keys[0], s.stranger.public_key, KEY_TEXT_BYTES);
    auth_set_callers(s.auth, keys, 1);
    CHECK(wait_connected(stranger, PATIENCE_NS));
    CHECK_INT(ask(stranger, "echo").code, 0);
    char name[KEY_NAME_BYTES];
    CHECK(auth_allows(s.auth, s.stranger.public_key, name));
    CHECK_STR(name, "caller-0");
    uint64_t before = auth_generation(s.auth);
    auth_set_callers(s.auth, NULL, 0);
    wait_generation(s.auth, before);
    CHECK_INT(ask(stranger, "echo").code, E_DENIED);
    CHECK(auth_allows(s.auth, s.friends[0].public_key, name)); /* the list is as it was */
    CHECK_STR(name, "friend");
    channel_close(&stranger);
    close_scene(&s);
}

/* The handler is what makes libzmq ask; if it is not there, servers still refuse. */
TEST(auth_without_its_handler_lets_nobody_in)
{
    struct key_pair server = make_keys("server"), friend = make_keys("friend");
    (void)server, (void)friend;
    struct auth *no_handler =
        start_auth(&(struct auth_options){.key_file = "server.key", .is_client_only = true});
    struct auth *client = client_of("friend", "server.pub");
    struct rpc_echo *echo = rpc_echo_start_with("tcp://127.0.0.1:0", no_handler, 0);
    struct channel *c = dial(rpc_echo_endpoint(echo), client);
    CHECK(wait_connected(c, PATIENCE_NS)); /* this is what libzmq does */
    CHECK_INT(ask(c, "echo").code, E_DENIED);
    CHECK_INT(rpc_echo_counters(echo).calls, 0);
    channel_close(&c);
    rpc_echo_stop(&echo);
    auth_stop(&client);
    auth_stop(&no_handler);
}

static int start_code(const struct auth_options *o, struct err *e)
{
    struct auth *a = NULL;
    int rc = auth_start(o, &a, e);
    CHECK((rc == 0) == (a != NULL));
    auth_stop(&a);
    return rc;
}

TEST(auth_start_names_what_is_wrong)
{
    make_keys("server");
    struct err e = {0};
    CHECK_INT(start_code(&(struct auth_options){.key_file = "none.key"}, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "security.key_file: none.key");
    CHECK_INT(chmod("server.key", 0644), 0);
    CHECK_INT(start_code(&(struct auth_options){.key_file = "server.key"}, &e), E_DENIED);
    CHECK_HAS(e.text, "server.key has mode 0644");
    CHECK_INT(chmod("server.key", 0600), 0);
    CHECK_INT(start_code(&(struct auth_options){.allow_file = "allow"}, &e), E_INVALID);
    CHECK_HAS(e.text, "security.key_file is missing");
    struct auth_options o = {.key_file = "server.key", .server_key = "nonsense"};
    CHECK(start_code(&o, &e) < 0);
    CHECK_HAS(e.text, "security.server_key");
    o = (struct auth_options){.key_file = "server.key", .allow_file = "nowhere"};
    CHECK_INT(start_code(&o, &e), E_NOT_FOUND);
    CHECK_HAS(e.text, "security.allow_file: nowhere");
    /* One handler per process. */
    o = (struct auth_options){.key_file = "server.key"};
    struct auth *first = start_auth(&o);
    CHECK_INT(start_code(&o, &e), E_EXISTS);
    auth_stop(&first);
    CHECK_INT(start_code(&(struct auth_options){0}, &e), 0); /* no keys at all is fine */
}

static int bind_code(const char *endpoint, struct auth *a, struct err *e)
{
    struct link_options o = {.role = LINK_SERVER, .endpoint = endpoint, .auth = a};
    struct link *l = NULL;
    int rc = link_open(&o, &l, e);
    link_close(&l);
    return rc;
}

TEST(auth_decides_what_may_be_bound)
{
    make_keys("server");
    struct err e = {0};
    struct auth *none = start_auth(&(struct auth_options){0});
    struct auth *insecure = start_auth(&(struct auth_options){.is_insecure = true});
    struct auth *keys = start_auth(&(struct auth_options){.key_file = "server.key"});
    CHECK_INT(bind_code("tcp://0.0.0.0:0", NULL, &e), E_INVALID);
    CHECK_INT(bind_code("tcp://0.0.0.0:0", none, &e), E_INVALID);
    CHECK_HAS(e.text, "security.insecure = true");
    CHECK_HAS(e.text, "security.key_file");
    CHECK_INT(bind_code("tcp://127.0.0.1:0", none, &e), 0);
    CHECK_INT(bind_code("tcp://0.0.0.0:0", insecure, &e), 0);
    CHECK_INT(bind_code("tcp://0.0.0.0:0", keys, &e), 0);
    CHECK_INT(bind_code("ipc://x.sock", keys, &e), 0);
    /* With keys nothing is dialled whose key is not known. */
    struct link_options o = {.role = LINK_CLIENT, .endpoint = "tcp://127.0.0.1:9", .auth = keys};
    struct link *l = NULL;
    CHECK_INT(link_open(&o, &l, &e), E_INVALID);
    CHECK_HAS(e.text, "public key is not known");
    o.auth = none;
    o.server_key = auth_public_key(keys);
    CHECK_INT(link_open(&o, &l, &e), E_INVALID);
    CHECK_HAS(e.text, "this program has none");
    auth_stop(&keys);
    auth_stop(&insecure);
    auth_stop(&none);
}

/* A peer beyond its share is told so; the others do not notice. */
TEST(server_gives_every_peer_its_share)
{
    struct rpc_echo *echo = rpc_echo_start_with("ipc://echo.sock", NULL, 4);
    struct channel *greedy = dial("ipc://echo.sock", NULL), *modest = dial("ipc://echo.sock", NULL);
    CHECK(wait_connected(greedy, PATIENCE_NS) && wait_connected(modest, PATIENCE_NS));
    struct outcome held[6] = {0};
    for (int i = 0; i < 6; i++)
        CHECK_INT(start_call(greedy, "hold", &held[i]), 0);
    int64_t deadline_ns = clock_now_ns() + PATIENCE_NS;
    while (held[4].n_ends + held[5].n_ends < 2 && clock_now_ns() < deadline_ns)
        channel_wait(&greedy, 1, -1, deadline_ns, 0);
    for (int i = 0; i < 6; i++)
        CHECK_INT(held[i].n_ends, i >= 4);
    CHECK_INT(held[4].code, E_BUSY);
    CHECK_HAS(held[4].text, "its share");
    CHECK_INT(ask(modest, "echo").code, 0);
    CHECK_INT(ask(modest, "release").code, 0); /* whoever says it */
    while (held[3].n_ends == 0 && clock_now_ns() < deadline_ns)
        channel_wait(&greedy, 1, -1, deadline_ns, 0);
    CHECK_INT(ask(greedy, "echo").code, 0); /* its places are its own again */
    CHECK_INT(rpc_echo_counters(echo).over_share, 2);
    channel_close(&greedy);
    channel_close(&modest);
    rpc_echo_stop(&echo);
}
