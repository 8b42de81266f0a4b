/* tools/loadtest_overload.h - does a cluster that is asked for twice what it can do stay well?
 *
 * Well is: nothing fails but by 429, whoever is let in has the first token in bounded time, and the
 * coordinator's memory is flat: a line through what it held in the last two thirds of the run (caches
 * fill in the first) rises by no more than LOADTEST_FLAT_BYTES.  Pure. */
#pragma once

#include "tools/loadtest_report.h"

#define LOADTEST_FLAT_BYTES 32e6

struct loadtest_overload {
    double capacity;      /* requests per second that were answered in a closed loop */
    double *at_s, *bytes; /* the coordinator's memory; owned */
    int n, room;
    double rise_bytes, rise_bytes_per_minute; /* fitted */
};
void loadtest_overload_fini(struct loadtest_overload *o);
void loadtest_overload_watch(struct loadtest_overload *o, double at_s, double bytes);
/* 0, or E_UNKNOWN with what was not well; fills in the rise. */
int loadtest_overload_judge(struct loadtest_overload *o, const struct loadtest_summary *s,
                            double most_first_ms, struct err *e);
void loadtest_overload_write(const struct loadtest_overload *o, struct buf *out);
