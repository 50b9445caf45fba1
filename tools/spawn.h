/* A trikvd of one's own: started on a private socket in a temporary folder, stopped at the end. */
#ifndef TKV_TOOLS_SPAWN_H
#define TKV_TOOLS_SPAWN_H

#include <sys/types.h>

#include "tools/reason.h"

struct tkv_spawn {
    pid_t pid;
    char folder[64];
    char socket[96];
};

/* The trikvd in the folder of this program, in path[n]; just its name if that cannot be known. */
void tkv_spawn_daemon_path(char *path, size_t n);

/*
 * Start the daemon `program` with --socket on a new private path and the NULL-ended further
 * arguments, and wait until it listens. 0, or -1 with a text and nothing left behind.
 */
int tkv_spawn_start(struct tkv_spawn *s, const char *program, const char *const *arguments,
                    struct tkv_reason *why);

/* Ask it to stop, wait for it, remove the folder. A zeroed *s is allowed. Returns its exit status,
 * -1 if it was killed by a signal. */
int tkv_spawn_stop(struct tkv_spawn *s);

#endif /* TKV_TOOLS_SPAWN_H */
