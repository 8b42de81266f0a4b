/* rpc/endpoint.c - what may be dialled and bound.  No state; any thread.
 *
 * libzmq resolves no names where it binds, so "localhost" is written out there. */
#include "rpc/endpoint.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "base/buf.h"

enum { HOST_BYTES = 200 };

static int malformed(const char *text, const char *why, struct err *e)
{
    return err_set(e, E_INVALID, "endpoint \"%.200s\": %s", text, why);
}

/* "*" gives 0; -1 if it is no port. */
static int parse_port(const char *text)
{
    if (strcmp(text, "*") == 0)
        return 0;
    size_t len = strlen(text);
    if (len == 0 || len > 5)
        return -1;
    int port = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        port = port * 10 + (text[i] - '0');
    }
    return port <= 65535 ? port : -1;
}

static bool is_loopback(const char *host, bool is_ipv6)
{
    if (is_ipv6) {
        struct in6_addr a;
        return inet_pton(AF_INET6, host, &a) == 1 && IN6_IS_ADDR_LOOPBACK(&a);
    }
    struct in_addr a;
    return inet_pton(AF_INET, host, &a) == 1 && ntohl(a.s_addr) >> 24 == 127;
}

static bool is_host_text(const char *host)
{
    for (const char *c = host; *c; c++)
        if (!isalnum((unsigned char)*c) && !strchr(".-_:%*", *c))
            return false;
    return *host != '\0';
}

/* Splits "host:port" or "[host]:port". */
static int split_host(const char *text, const char *rest, char host[HOST_BYTES],
                      struct endpoint *out, const char **port, struct err *e)
{
    const char *colon = strrchr(rest, ':');
    if (!colon)
        return malformed(text, "a port is missing", e);
    *port = colon + 1;
    size_t len = (size_t)(colon - rest);
    out->is_ipv6 = len >= 2 && rest[0] == '[' && rest[len - 1] == ']';
    if (out->is_ipv6) {
        rest++;
        len -= 2;
    }
    if (len >= HOST_BYTES)
        return malformed(text, "the host is too long", e);
    memcpy(host, rest, len);
    host[len] = '\0';
    if (!is_host_text(host) || (!out->is_ipv6 && strchr(host, ':')))
        return malformed(text, "not a host (an IPv6 address is written in brackets)", e);
    return 0;
}

static int parse_tcp(const char *text, const char *rest, enum link_role role, struct endpoint *out,
                     struct err *e)
{
    char host[HOST_BYTES];
    const char *port_text = NULL;
    int rc = split_host(text, rest, host, out, &port_text, e);
    if (rc < 0)
        return rc;
    int port = parse_port(port_text);
    if (port < 0)
        return malformed(text, "not a port", e);
    if (role == LINK_CLIENT && (port == 0 || strchr(host, '*')))
        return malformed(text, "cannot be dialled: a host and a port are needed", e);
    if (role == LINK_SERVER && strcmp(host, "localhost") == 0)
        snprintf(host, sizeof(host), "127.0.0.1");
    out->is_local = is_loopback(host, out->is_ipv6) || strcmp(host, "localhost") == 0;
    out->is_wildcard =
        strcmp(host, "*") == 0 || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
    char digits[16];
    snprintf(digits, sizeof(digits), "%d", port);
    snprintf(out->text, sizeof(out->text), out->is_ipv6 ? "tcp://[%s]:%s" : "tcp://%s:%s", host,
             port == 0 ? "*" : digits);
    return 0;
}

int endpoint_parse(const char *text, enum link_role role, struct endpoint *out, struct err *e)
{
    memset(out, 0, sizeof(*out));
    if (!text || !*text)
        return err_set(e, E_INVALID, "an endpoint is missing");
    if (strlen(text) >= LINK_ENDPOINT_BYTES)
        return malformed(text, "too long", e);
    struct str s = str_of(text);
    if (str_has_prefix(s, STR("tcp://"))) {
        out->kind = ENDPOINT_TCP;
        return parse_tcp(text, text + strlen("tcp://"), role, out, e);
    }
    snprintf(out->text, sizeof(out->text), "%s", text);
    out->is_local = true;
    if (str_has_prefix(s, STR("ipc://"))) {
        out->kind = ENDPOINT_IPC;
        snprintf(out->path, sizeof(out->path), "%s", text + strlen("ipc://"));
        if (out->path[0] == '\0' || strcmp(out->path, "*") == 0)
            return malformed(text, "a path is missing", e);
        if (strlen(out->path) >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
            return malformed(text, "the path is too long for a socket", e);
        return 0;
    }
    if (str_has_prefix(s, STR("inproc://"))) {
        out->kind = ENDPOINT_INPROC;
        return s.len > strlen("inproc://") ? 0 : malformed(text, "a name is missing", e);
    }
    return malformed(text, "must begin with tcp://, ipc:// or inproc://", e);
}

int endpoint_advertise(const char *bound, const char *advertise, char out[LINK_ENDPOINT_BYTES],
                       struct err *e)
{
    struct endpoint b, a;
    int rc = endpoint_parse(bound, LINK_SERVER, &b, e);
    if (rc < 0)
        return rc;
    if (!advertise[0] && b.is_wildcard)
        return malformed(bound,
                         "is every address of this host: say under which one others reach it", e);
    snprintf(out, LINK_ENDPOINT_BYTES, "%s", bound);
    if (!advertise[0])
        return 0;
    if (b.kind != ENDPOINT_TCP)
        return malformed(bound, "is not tcp, so there is nothing else to say", e);
    const char *port = strrchr(bound, ':'), *colon = strrchr(advertise, ':');
    bool has_port = colon && advertise[strlen(advertise) - 1] != ']';
    int n = snprintf(out, LINK_ENDPOINT_BYTES, "tcp://%s%s", advertise, has_port ? "" : port);
    if (n >= LINK_ENDPOINT_BYTES)
        return malformed(advertise, "too long", e);
    return endpoint_parse(out, LINK_CLIENT, &a, e);
}
