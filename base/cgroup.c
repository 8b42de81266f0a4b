/* base/cgroup.c - walks from the process's control group up to the root of the mount.
 *
 * Reads a handful of files of /proc and /sys while a program starts; allocates nothing.
 * Any thread. */
#include "base/cgroup.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CGROUP_MOUNT "/sys/fs/cgroup"

enum { CGROUP_PATH_BYTES = PATH_MAX + 64 };

/* Called for a group's directory and each one above it. */
typedef void (*visit_fn)(const char *dir, bool is_v2, void *ud);

/* First number of a file; "max" and anything unreadable is "no limit": false. */
static bool read_number(const char *dir, const char *name, int64_t *out)
{
    char path[CGROUP_PATH_BYTES];
    if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
        return false;
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fscanf(f, "%" SCNd64, out) == 1;
    fclose(f);
    return ok;
}

static void visit_up(const char *mount, const char *group, bool is_v2, visit_fn visit, void *ud)
{
    char dir[CGROUP_PATH_BYTES];
    if (snprintf(dir, sizeof(dir), "%s%s", mount, group) >= (int)sizeof(dir))
        return;
    size_t mount_len = strlen(mount);
    for (;;) {
        size_t len = strlen(dir);
        while (len > mount_len && dir[len - 1] == '/')
            dir[--len] = '\0';
        visit(dir, is_v2, ud);
        if (len <= mount_len)
            return;
        *strrchr(dir, '/') = '\0';
    }
}

/* true if the comma-separated v1 controller list names `controller`. */
static bool names_controller(const char *list, const char *controller)
{
    size_t len = strlen(controller);
    for (const char *p = list; *p; p += strcspn(p, ","), p += *p == ',')
        if (strcspn(p, ",") == len && strncmp(p, controller, len) == 0)
            return true;
    return false;
}

static void visit_groups(const char *controller, visit_fn visit, void *ud)
{
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f)
        return;
    /* Lines are "0::/path" for v2 and "7:cpu,cpuacct:/path" for v1 (cgroups(7)). */
    char line[PATH_MAX];
    while (fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':');
        char *group = list ? strchr(list + 1, ':') : NULL;
        if (!group)
            continue;
        *list++ = '\0';
        *group++ = '\0';
        char mount[sizeof(CGROUP_MOUNT) + PATH_MAX];
        bool is_v2 = *list == '\0';
        if (is_v2)
            snprintf(mount, sizeof(mount), CGROUP_MOUNT);
        else if (names_controller(list, controller))
            snprintf(mount, sizeof(mount), CGROUP_MOUNT "/%s", controller);
        else
            continue;
        visit_up(mount, group, is_v2, visit, ud);
    }
    fclose(f);
}

/* The value of "name value" in memory.stat, or 0. */
static int64_t read_stat(const char *dir, const char *name)
{
    char path[CGROUP_PATH_BYTES];
    if (snprintf(path, sizeof(path), "%s/memory.stat", dir) >= (int)sizeof(path))
        return 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    int64_t value = 0, found = 0;
    char line[256];
    size_t name_len = strlen(name);
    while (fgets(line, sizeof(line), f))
        if (strncmp(line, name, name_len) == 0 && line[name_len] == ' ' &&
            sscanf(line + name_len, "%" SCNd64, &value) == 1)
            found = value;
    fclose(f);
    return found;
}

static void visit_memory(const char *dir, bool is_v2, void *ud)
{
    int64_t *room = ud, limit, used;
    if (!read_number(dir, is_v2 ? "memory.max" : "memory.limit_in_bytes", &limit) ||
        !read_number(dir, is_v2 ? "memory.current" : "memory.usage_in_bytes", &used))
        return;
    used -= read_stat(dir, is_v2 ? "inactive_file" : "total_inactive_file");
    int64_t left = limit - (used > 0 ? used : 0);
    if (left < 0)
        left = 0;
    if (left < *room)
        *room = left;
}

int64_t cgroup_memory_room_bytes(void)
{
    int64_t room = INT64_MAX;
    visit_groups("memory", visit_memory, &room);
    return room;
}

/* "150000 100000" or "max 100000" in cpu.max. */
static bool read_cpu_max(const char *dir, int64_t *quota, int64_t *period)
{
    char path[CGROUP_PATH_BYTES];
    if (snprintf(path, sizeof(path), "%s/cpu.max", dir) >= (int)sizeof(path))
        return false;
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    bool ok = fscanf(f, "%" SCNd64 " %" SCNd64, quota, period) == 2;
    fclose(f);
    return ok;
}

static void visit_cpu(const char *dir, bool is_v2, void *ud)
{
    double *quota_cpus = ud;
    int64_t quota = 0, period = 0;
    bool ok = is_v2 ? read_cpu_max(dir, &quota, &period)
                    : read_number(dir, "cpu.cfs_quota_us", &quota) &&
                          read_number(dir, "cpu.cfs_period_us", &period);
    if (!ok || quota <= 0 || period <= 0)
        return;
    double cpus = (double)quota / (double)period;
    if (*quota_cpus == 0 || cpus < *quota_cpus)
        *quota_cpus = cpus;
}

double cgroup_cpu_quota(void)
{
    double cpus = 0;
    visit_groups("cpu", visit_cpu, &cpus);
    return cpus;
}
