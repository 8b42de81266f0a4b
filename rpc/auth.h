/* rpc/auth.h - who we are and whom we let in (protocol.md 5): this process's key pair, the
 * list of keys that may connect, and the ZAP handler (ZeroMQ RFC 27) that asks it.
 *
 * With keys every TCP link is encrypted and both ends prove their keys (CURVE): a client knows
 * the server's public key beforehand, a server asks here about each client.  ipc:// and
 * inproc:// carry no keys: there the file system and the process are the border.
 *
 * Let in are: the coordinator, if `server_key` names it or it is one of several; the keys of the allow-list, which is
 * read again within a second after it changed or when SIGHUP comes; and callers, which a node
 * is told by its coordinator.  A key that is taken off the list can make no new connection, and
 * calls on the one that it has are refused (rpc/server.c).
 *
 * The handler is one thread per process.  It never waits for anybody and keeps nothing about a
 * connection.  A connection that it has not seen has no proven key, and servers refuse its calls.
 *
 * Log events: auth.ready, auth.list (read again), auth.list_refused (the old one stays),
 * auth.refused, auth.callers. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "rpc/key.h"

struct auth_options {
    const char *key_file;   /* own pair; NULL or "": no keys, and nothing is encrypted */
    const char *server_key; /* the coordinator's: Z85 or a .pub file; NULL or "": none */
    const char *allow_file; /* NULL or "": none */
    bool is_insecure;       /* without keys links may bind what is not loopback */
    bool lets_in_itself;    /* others may have our pair, too: coordinators that stand by */
    bool is_client_only;    /* no handler: this process binds nothing with these keys */
};

struct auth;
/* E_EXISTS: the process has a handler already. */
int auth_start(const struct auth_options *o, struct auth **out, struct err *e);
/* After the last link that uses it is closed. */
void auth_stop(struct auth **a);

/* Any thread from here on; NULL is "no keys, loopback only". */
bool auth_has_keys(const struct auth *a);
bool auth_is_insecure(const struct auth *a);
const char *auth_public_key(const struct auth *a); /* "" without keys */
const char *auth_secret_key(const struct auth *a);
/* "" if none was given. */
const char *auth_server_key(const struct auth *a);

/* Further keys to let in, instead of the last ones.  Copied; in force when this returns or soon
 * after. */
void auth_set_callers(struct auth *a, const char (*keys)[KEY_TEXT_BYTES], uint32_t n);

/* Changes whenever somebody is let in or shut out. */
uint64_t auth_generation(const struct auth *a);
/* Is it let in now?  `name` (may be NULL) gets the list's name for it, or "". */
bool auth_allows(const struct auth *a, const char *key, char name[KEY_NAME_BYTES]);

enum auth_refusal {
    AUTH_UNKNOWN_KEY, /* not on the list */
    AUTH_REVOKED_KEY, /* was on it since this process started */
    AUTH_MALFORMED,   /* not a ZAP request as libzmq makes them */
    AUTH_NO_KEY,      /* another mechanism than CURVE */
    AUTH_CRYPTO,      /* another server key than ours, or broken cryptography */
    AUTH_HANDSHAKE,   /* the connection ended in its handshake */
    AUTH_CALL,        /* a call on a connection whose key was revoked */
    AUTH_REFUSALS
};
const char *auth_refusal_name(enum auth_refusal r);
/* What others than the handler see (a link's monitor, a server). */
void auth_note_refusal(struct auth *a, enum auth_refusal r);

struct auth_counters {
    int64_t accepted, refused[AUTH_REFUSALS];
    int64_t n_allowed; /* keys that are let in now */
    int64_t reloads, failed_reloads;
};
void auth_count(const struct auth *a, struct auth_counters *out);
