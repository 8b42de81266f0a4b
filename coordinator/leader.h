/* coordinator/leader.h - who of several coordinators leads: a lease in etcd, kept by one.
 *
 * Two keys: `leader`, put under a lease by whoever finds it absent, gone when that lease ends; and
 * `last`, put in the same transaction without a lease, whose revision is the term.  A leader renews
 * its lease and looks at its key; who stands by looks until the key is gone, and puts its own.
 *
 * A third key names the standbys that had the whole of the leader's log when it last spoke of them.
 * While it names any, another one that finds no leader lets them go first: for the time of a lease.
 *
 * Fencing is by the lease's own clock: a lease that was granted or kept alive by a request that
 * left here at t ends in etcd not before t + ttl, so its holder acts until t + 7/8 ttl and no longer;
 * the rest is for clocks that run at different rates and for acts on their way.  Therefore:
 * before anything else after a wait, leader_tick().
 *
 *   STANDBY --LEAD--> LEADS --SUSPEND--> SUSPENDED --RESUME--> LEADS
 *                       +------STEP_DOWN---->  OVER  <--STEP_DOWN--+
 *
 * SUSPENDED: the lease may have ended, and whether somebody else leads is not known.  If nobody has
 * (`last` is still ours) it leads again as if nothing had been; else it is OVER, and
 * its owner begins anew as a standby, with nothing of what it was.
 *
 * Pure: events in, one request at a time out, time passed in.  Owner: coordinator loop. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct leader_config {
    uint64_t instance; /* of this life of this process; not 0 */
    int64_t lease_ns;  /* what is asked for; etcd may give more */
};

enum leader_state { LEADER_STANDBY, LEADER_LEADS, LEADER_SUSPENDED, LEADER_OVER };

/* What etcd is asked. */
enum leader_ask {
    LEADER_LOOK,  /* at both keys */
    LEADER_GRANT, /* a lease */
    LEADER_TAKE,  /* put both keys, if `leader` is absent and, with a term, `last` is of that one,
                   * which is the one that was seen */
    LEADER_KEEP,  /* the lease alive */
};
struct leader_request {
    enum leader_ask ask;
    uint64_t number;
    int64_t lease, ttl_ns;
    uint64_t term; /* of TAKE; 0: any */
    int64_t timeout_ns;
};

/* NO: TAKE found a key that is in its way, KEEP found no lease.  FAILED: anything may have happened. */
enum leader_outcome { LEADER_DONE, LEADER_NO, LEADER_FAILED };
struct leader_keys {
    uint64_t holder; /* instance; 0: nobody */
    int64_t lease;   /* of the holder's key */
    uint64_t last, term;
    bool others_have_more; /* there are standbys with the whole log, and this is none of them */
};
struct leader_answer {
    uint64_t number;
    enum leader_outcome outcome;
    int64_t lease, ttl_ns;   /* GRANT, KEEP */
    struct leader_keys keys; /* LOOK, and TAKE either way */
};

/* What its owner must do at once. */
enum leader_turn { LEADER_GO_ON, LEADER_LEAD, LEADER_SUSPEND, LEADER_RESUME, LEADER_STEP_DOWN };

enum leader_sight {
    LEADER_UNSEEN,
    LEADER_SEES_NOBODY,
    LEADER_SEES_HEIRS, /* nobody, and it is others' turn first */
    LEADER_SEES_ITSELF,
    LEADER_SEES_ANOTHER,
};

struct leader {
    struct leader_config config;
    enum leader_state state;
    uint64_t term; /* of the present lead; 0: none yet */
    int64_t lease; /* 0: none */
    int64_t sure_ns;
    enum leader_sight sight; /* of the newest look at the keys */
    uint64_t seen_term;
    int64_t
        vacant_ns; /* since when nobody was seen to lead; 0: somebody was, or nothing is known */
    bool is_out, wants_look;
    struct leader_request out;
    int64_t sent_ns, next_ns, kept_ns, heard_ns;
    uint64_t n_requests;
};

void leader_init(struct leader *l, const struct leader_config *c, int64_t now_ns);
/* Does it certainly lead at this moment? */
static inline bool leader_is_sure(const struct leader *l, int64_t now_ns)
{
    return l->state == LEADER_LEADS && now_ns < l->sure_ns;
}
/* Time has passed. */
enum leader_turn leader_tick(struct leader *l, int64_t now_ns);
/* true: this is to be asked now; its answer must come, after timeout_ns as FAILED. */
bool leader_ask(struct leader *l, int64_t now_ns, struct leader_request *out);
enum leader_turn leader_answer(struct leader *l, const struct leader_answer *a, int64_t now_ns);
/* When leader_tick() and leader_ask() have something to do next. */
int64_t leader_next_ns(const struct leader *l);
