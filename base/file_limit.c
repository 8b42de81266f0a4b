/* base/file_limit.c - see file_limit.h. */
#include "base/file_limit.h"

#include <limits.h>
#include <sys/resource.h>

long file_limit_raise(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return LONG_MAX;
    if (limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* what came of it is read again */
        (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    return limit.rlim_cur > LONG_MAX ? LONG_MAX : (long)limit.rlim_cur;
}
