/* coordinator/placement_plan.h - what shall be held where: fills in the `want` of every expert.
 *
 * 1. Copies for each expert: as many for all as fit, and one more for the hottest.
 * 2. In rounds (every expert's first copy, then every second one, ...), so that a first copy
 *    never lacks the memory that a second one takes: a copy that is there already stays; the
 *    others are packed, heaviest first, onto the node that is then least busy for its speed
 *    and memory in that layer.  Two copies share a rack only if no other rack
 *    has room, and a host only if no other host has.
 * 3. Evenness: copies move from the busiest node of a layer to the idlest, if that makes
 *    the layer faster by PLAN_GAIN at least; because at small batch the time of a layer is
 *    that of the node with most distinct experts to read.
 *
 * Planning again without a change wants the same.  Pure; owner: coordinator loop. */
#pragma once

#include <stdbool.h>

#include "coordinator/placement.h"

/* Sets `want` of all experts; true if it is another one for any of them.  Memory that is still to
 * be freed may stand in the way of a better plan, so after a change it pays to plan again when
 * everything is where it shall be. */
bool placement_plan(struct placement *p);
