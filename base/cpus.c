/* base/cpus.c - see cpus.h. */
#include "base/cpus.h"

#include <ctype.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/must.h"

static struct cpus process_cpus;
static bool are_own;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local bool is_pinned;

/* ---- lists --------------------------------------------------------------------------- */

static bool take_number(const char **at, int *out)
{
    if (!isdigit((unsigned char)**at))
        return false;
    char *end;
    long n = strtol(*at, &end, 10);
    if (n >= CPUS_MAX)
        return false;
    *at = end;
    *out = (int)n;
    return true;
}

static void list_marked(const bool marked[CPUS_MAX], struct cpus *out)
{
    out->n = 0;
    for (int i = 0; i < CPUS_MAX; i++)
        if (marked[i])
            out->ids[out->n++] = (uint16_t)i;
}

int cpus_parse(const char *text, struct cpus *out, struct err *e)
{
    bool marked[CPUS_MAX] = {0};
    const char *at = text;
    while (*at) {
        int first, last;
        bool is_fine = take_number(&at, &first);
        last = first;
        if (is_fine && *at == '-') {
            at++;
            is_fine = take_number(&at, &last) && first <= last;
        }
        is_fine = is_fine && (*at == '\0' || (*at == ',' && at[1]));
        if (!is_fine)
            return err_set(e, E_INVALID, "\"%.64s\" is no list of CPUs such as 0-3,8", text);
        at += *at == ',';
        for (int i = first; i <= last; i++)
            marked[i] = true;
    }
    list_marked(marked, out);
    return 0;
}

const char *cpus_text(const struct cpus *c, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0, next; i < c->n; i = next) {
        for (next = i + 1; next < c->n && c->ids[next] == c->ids[next - 1] + 1; next++)
            ;
        char range[24];
        int n = next == i + 1 ? snprintf(range, sizeof(range), "%s%d", i ? "," : "", c->ids[i])
                              : snprintf(range, sizeof(range), "%s%d-%d", i ? "," : "", c->ids[i],
                                         c->ids[next - 1]);
        bool is_last = next == c->n;
        if (used + (size_t)n + (is_last ? 0 : strlen("...")) >= size) {
            snprintf(out + used, size - used, "...");
            return out;
        }
        memcpy(out + used, range, (size_t)n + 1);
        used += (size_t)n;
    }
    return out;
}

/* ---- the process --------------------------------------------------------------------- */

/* The kernel refuses a mask smaller than its own; CPUS_MAX is more than it is built for. */
static void read_process(void)
{
    bool marked[CPUS_MAX] = {0};
    cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
    size_t bytes = CPU_ALLOC_SIZE(CPUS_MAX);
    must(set);
    CPU_ZERO_S(bytes, set);
    if (sched_getaffinity(0, bytes, set) == 0)
        for (int i = 0; i < CPUS_MAX; i++)
            marked[i] = CPU_ISSET_S((size_t)i, bytes, set);
    CPU_FREE(set);
    list_marked(marked, &process_cpus);
    if (process_cpus.n == 0)
        process_cpus.n = 1; /* CPU 0: where the mask cannot be read pinning fails as well */
}

const struct cpus *cpus_of_process(void)
{
    must_zero(pthread_once(&once, read_process));
    return &process_cpus;
}

static int set_affinity(const uint16_t *ids, int n)
{
    cpu_set_t *set = CPU_ALLOC(CPUS_MAX);
    size_t bytes = CPU_ALLOC_SIZE(CPUS_MAX);
    must(set);
    CPU_ZERO_S(bytes, set);
    for (int i = 0; i < n; i++)
        CPU_SET_S(ids[i], bytes, set);
    int rc = sched_setaffinity(0, bytes, set);
    CPU_FREE(set);
    return rc;
}

static bool has(const struct cpus *c, int id)
{
    for (int i = 0; i < c->n; i++)
        if (c->ids[i] == id)
            return true;
    return false;
}

int cpus_check(const char *text, struct err *e)
{
    struct cpus unused;
    return strcmp(text, "all") == 0 ? 0 : cpus_parse(text, &unused, e);
}

int cpus_take(const char *text, struct err *e)
{
    const struct cpus *all = cpus_of_process();
    static struct cpus wanted;
    if (!text || !text[0])
        return 0;
    if (strcmp(text, "all") == 0) {
        are_own = true;
        return 0;
    }
    int rc = cpus_parse(text, &wanted, e);
    if (rc < 0)
        return rc;
    char all_text[128];
    for (int i = 0; i < wanted.n; i++)
        if (!has(all, wanted.ids[i]))
            return err_set(e, E_RANGE, "CPU %d is not among those that this process may use (%s)",
                           wanted.ids[i], cpus_text(all, all_text, sizeof(all_text)));
    if (set_affinity(wanted.ids, wanted.n) != 0)
        return err_set(e, E_RANGE, "the system does not keep this process on CPUs %.64s", text);
    process_cpus = wanted;
    are_own = true;
    return 0;
}

bool cpus_are_own(void)
{
    return are_own;
}

/* ---- threads ------------------------------------------------------------------------- */

void cpus_pin_thread(int index)
{
    const struct cpus *c = cpus_of_process();
    must(index >= 0);
    if (set_affinity(&c->ids[index % c->n], 1) == 0)
        is_pinned = true;
}

void cpus_free_thread(void)
{
    const struct cpus *c = cpus_of_process();
    (void)set_affinity(c->ids, c->n);
    is_pinned = false;
}

bool cpus_is_thread_pinned(void)
{
    return is_pinned;
}
