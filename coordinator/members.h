/* coordinator/members.h - who is in the cluster: joins, heartbeats, leases.
 *
 * Pure: time comes with every call, changes go back to the caller (coordinator/hub_cluster.c),
 * who tells placement and scheduler.  A node lives as long as its lease, which every
 * heartbeat renews; nothing else makes it dead but its own Leave.
 *
 * Trust: an attention side that got a wrong answer from a node, or none for MEMBERS_PATIENCE_NS,
 * says so.  The node is then quarantined or suspect, and is asked for a self-test; it is
 * trusted again when it has passed and a pause is over that doubles with every time, from
 * MEMBERS_PAUSE_NS to MEMBERS_PAUSE_MAX_NS, and is forgotten after as long without a word.
 *
 * Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "rpc/wire.h"

/* What every node must share with the coordinator. */
#define MEMBERS_PATIENCE_NS 1000000000LL
#define MEMBERS_PAUSE_NS 1000000000LL
#define MEMBERS_PAUSE_MAX_NS 600000000000LL

struct members_config {
    uint64_t fingerprint;
    struct format_set formats; /* resolved: checkpoint_formats() */
    enum combine_mode combine;
    int64_t lease_ns;
    /* The lease of an expert or context node whose connection to an attention side broke; 0: the same. */
    int64_t missed_ns;
};

struct node {
    struct wire_join join; /* as it introduced itself */
    uint32_t id;           /* never 0, never used twice */
    enum node_state state; /* NODE_GONE entries stay for show until their name comes back */
    int64_t joined_ns, seen_ns;
    struct wire_heartbeat last; /* all-zero before the first */
    bool drain, restart;        /* an operator wants it to go */
    bool is_missed;             /* gone, and a side's connection to it broke */

    enum node_trust trust;
    int64_t doubted_ns;         /* since when sides get no answer; 0: they do */
    int64_t pause_ns, until_ns; /* before it is trusted again */
    int64_t distrusted_ns;      /* the last time */
    uint64_t test;              /* newest self-test that it was asked for */
    uint64_t trust_epoch;       /* sides with an older table speak of the past */
};

struct members {
    struct members_config config;
    struct node **nodes;
    int n_nodes, room;
    uint32_t last_id;
};

void members_init(struct members *m, const struct members_config *c);
void members_fini(struct members *m);

/* What a Join did.  `gone_id` is the node that the newcomer displaced, or 0: a process that
 * holds the same address on the same host proves that its predecessor is dead. */
struct members_joined {
    struct node *node;
    bool is_new; /* false: the same process said it again */
    uint32_t gone_id;
};
/* E_PRECONDITION: protocol, model, format or combine mode differ (the text names the field and
 * both values); E_EXISTS: the name belongs to another live process; E_BUSY: too many nodes. */
int members_join(struct members *m, const struct wire_join *j, int64_t now_ns,
                 struct members_joined *out, struct err *e);
/* Renews the lease and takes the report.  E_NOT_FOUND: unknown, gone or another process:
 * the node shall join again. */
int members_heartbeat(struct members *m, const struct wire_heartbeat *h, int64_t now_ns,
                      struct node **out);
/* The node is GONE at once.  E_NOT_FOUND as above. */
int members_leave(struct members *m, const struct wire_leave *l, struct node **out);
/* Everybody's lease by the time for which we ourselves did not listen. */
void members_extend(struct members *m, int64_t by_ns);
/* The next node whose lease has ended, now GONE; NULL when there is none left. */
struct node *members_expire(struct members *m, int64_t now_ns);

/* What an attention side with the table of `side_epoch` says of a node's answers; `epoch` is the
 * newest.  true if its trust has changed. */
struct members_opinion {
    uint32_t node_id;
    uint64_t incarnation;
    bool is_wrong;  /* it gave a wrong answer */
    bool is_silent; /* it gives none */
    uint64_t side_epoch, epoch;
};
bool members_judge(struct members *m, const struct members_opinion *o, int64_t now_ns);
/* The next node that is trusted again; NULL when there is none left. */
struct node *members_forgive(struct members *m, uint64_t epoch, int64_t now_ns);

/* NULL if unknown or gone. */
struct node *members_find(const struct members *m, uint32_t id);
struct node *members_find_name(const struct members *m, const char *name);
int members_count(const struct members *m, enum node_role role);
