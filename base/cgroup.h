/* base/cgroup.h - what the control groups of this process allow (v1 and v2).
 *
 * A limit counts wherever it is set: in the process's own group or in any group above it.
 * Inside a container the path that /proc names may not be visible; the root of the mount
 * is then the container's own group, and is read in any case. */
#pragma once

#include <stdint.h>

/* Smallest room (limit minus use, where page cache that can be dropped counts as free);
 * INT64_MAX without a limit. */
int64_t cgroup_memory_room_bytes(void);

/* CPUs that the quota pays for, as a fraction; 0 without a quota. */
double cgroup_cpu_quota(void);
