/*
 * What happens once a second: the history is written on, the stats page too, and the service manager
 * is told that we live. It is told so only while the workers get on: the loop answers for itself by
 * running this, for the workers it looks at their progress. When the machine is short of memory, a stored
 * prefix goes. Loop thread only.
 */
#ifndef TKV_DAEMON_PULSE_H
#define TKV_DAEMON_PULSE_H

#include "core/types.h" /* wants to come before uv.h */

#include <uv.h>

struct tkv_pool_load;
struct tkv_server;
struct trikv_stats_page;

enum { TKV_PRESSURE_PATH_BYTES = 1024 };

struct tkv_pulse {
    uv_timer_t timer;
    uint64_t watchdog_ms;   /* 0: nobody watches */
    uint64_t last_progress; /* of the pool */
    uint64_t moved_ms;      /* when it was last seen to move, or to have nothing to do */
    bool stalled;           /* it has not moved for long */
    uint64_t n_stalls;      /* beats at which it was stalled */
    struct trikv_stats_page *page;
    char pressure_file[TKV_PRESSURE_PATH_BYTES]; /* "": the kernel does not tell */
    double pressure_percent;
};

/* After the pool is there; never fails: without a page the daemon says so and runs. */
void tkv_pulse_start(struct tkv_server *s);
void tkv_pulse_deinit(struct tkv_server *s);

/* True if work is there and no worker has finished any piece of any for long. */
bool tkv_pulse_stalled(struct tkv_pulse *p, const struct tkv_pool_load *load, uint64_t now_ms);

#endif /* TKV_DAEMON_PULSE_H */
