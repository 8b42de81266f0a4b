/* rpc/link.h - one ZeroMQ socket with one owner thread (protocol.md 4).
 *
 * A client link is a DEALER that dials one endpoint; a server link is a ROUTER bound to
 * one.  Nothing here blocks but link_wait().  libzmq loses accepted messages silently
 * when a connection breaks: only call ids, deadlines and retries (rpc/channel.h) make a
 * call reliable.
 *
 * Endpoints: tcp://host:port (port 0 or * binds a free one), ipc://path, inproc://name.
 * With keys (rpc/auth.h) every tcp link is encrypted and both ends are known; without them a
 * server link binds loopback, ipc and inproc only, unless it is told to be insecure. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/blob.h"
#include "base/err.h"
#include "rpc/key.h"

enum { LINK_MAX_FRAMES = 12, LINK_ENDPOINT_BYTES = 256, LINK_PEER_BYTES = 64 };
enum { LINK_MAX_WAIT = 4096 }; /* links that one thread waits for at a time */

/* A received frame; valid until its message is freed; may be misaligned. */
struct frame {
    const void *data;
    size_t size_bytes;
};

/* A message.  All-zero is empty.  For a server, `peer` says who sent it or shall get it. */
struct message {
    int n_frames;
    struct frame frames[LINK_MAX_FRAMES];
    uint8_t peer[LINK_PEER_BYTES];
    size_t peer_bytes;
    void *received; /* what a received message keeps alive */
};
/* On the thread of the link that it came from. */
void message_fini(struct message *m);
/* The public key that the sender proved; "" if the connection has no keys.  Valid until
 * message_fini(). */
const char *message_key(const struct message *m);

enum link_role { LINK_CLIENT, LINK_SERVER };
struct link_options {
    enum link_role role;
    const char *endpoint;
    size_t max_frame_bytes; /* a peer that sends more is disconnected; 0 = 256 MiB */
    int high_water;         /* messages per direction and peer; 0 = 64 */
    /* Received and not yet read, per peer, if that shall be less; a peer that sends more waits
     * in its own memory. */
    int receive_high_water;
    struct auth *auth;      /* borrowed until link_close(); NULL: no keys */
    const char *server_key; /* of a client with keys: whom it expects there */
};

struct link; /* Owner: the thread that opened it. */
/* E_INVALID: malformed endpoint, a non-loopback bind without keys, or keys and a tcp server
 * whose key is not known; E_EXISTS: address in use (tried
 * for 50 ms, as a link closed just now may still hold it). */
int link_open(const struct link_options *o, struct link **out, struct err *e);
/* Last messages get 200 ms to leave, in the background. */
void link_close(struct link **l);
/* The endpoint as bound (real port) or as dialled. */
const char *link_endpoint(const struct link *l);

/* Queues a message of small frames (copied) followed by blobs (not copied: a reference is
 * kept until ZeroMQ has sent them).  `peer` is for servers.  0; E_BUSY: high-water mark;
 * E_UNAVAILABLE: no such peer, or a client link that is not connected. */
struct link_send {
    const uint8_t *peer;
    size_t peer_bytes;
    const struct frame *frames;
    int n_frames;
    struct blob *const *blobs;
    int n_blobs;
};
int link_send(struct link *l, const struct link_send *s);
/* One message, or E_AGAIN.  Messages with too many frames are dropped and counted. */
int link_receive(struct link *l, struct message *out);

/* What happened to the connection since the last call; drained first in every turn.
 * LINK_REFUSED: the handshake failed; it is tried again. */
enum link_event { LINK_NOTHING, LINK_CONNECTED, LINK_DISCONNECTED, LINK_REFUSED };
enum link_event link_next_event(struct link *l);
/* When link_next_event() has something to do by itself; CLOCK_NEVER: not. */
int64_t link_deadline_ns(const struct link *l);
bool link_is_connected(const struct link *l);
/* Encrypted, and both ends have proved their keys. */
bool link_has_keys(const struct link *l);

/* Spins for spin_ns, then sleeps, until one of the links may have a message or an event,
 * `extra_fd` (-1: none) is readable, or the deadline has passed.  Spurious returns happen.
 * What has come is known of the links then as after link_look(), but events may be seen later. */
void link_wait(struct link *const *links, int n_links, int extra_fd, int64_t deadline_ns,
               int64_t spin_ns);

/* Asks of all links at once what has come since they were last asked: one system call, however many
 * they are.  A link that is quiet then has neither message nor event (its deadline apart).  Not for
 * links that rpc/loop.c polls. */
void link_look(struct link *const *links, int n_links);
bool link_is_quiet(const struct link *l);
/* Likewise of events alone: false, there is none. */
bool link_may_have_event(const struct link *l);

struct link_counters {
    int64_t sent_messages, sent_bytes, received_messages, received_bytes, refused_messages;
    int64_t failed_handshakes;
};
void link_count(const struct link *l, struct link_counters *out);

/* libzmq's context of this process, for rpc/auth.c. */
void *link_context(void);
/* For rpc/loop.c, which polls them: libzmq's sockets; the monitor may be NULL. */
void *link_socket(const struct link *l);
void *link_monitor(const struct link *l);
/* Something waits that no socket shows (the first event of an inproc client). */
bool link_has_news(const struct link *l);
