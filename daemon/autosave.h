/*
 * Snapshots that nobody asks for: of sessions that changed, every so often and when the daemon stops, and
 * their way back when it starts. A session is found again by its label or by the ids of its tokens, so
 * one that has neither is left out. Loop thread only, except where said.
 *
 * A session is forked and a worker writes the fork. While the daemon serves, one file at a time is
 * written, by a thread of its own: a slow disk keeps no worker from the clients. When it stops,
 * all workers write.
 */
#ifndef TKV_DAEMON_AUTOSAVE_H
#define TKV_DAEMON_AUTOSAVE_H

#include "core/kernels.h" /* wants to come before uv.h */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/config.h"
#include "proto/limits.h"

struct tkv_pool;
struct tkv_server;
struct tkv_session_entry;

/* Beyond snapshot.deadline, what the service manager is asked to wait. */
enum { TKV_AUTOSAVE_GRACE_MS = 10000 };

/* In front of the names of these files; and of those that were broken when the daemon started. */
#define TKV_AUTOSAVE_PREFIX "auto."
#define TKV_AUTOSAVE_BROKEN "broken."

/* Why one was written. */
enum tkv_autosave_when { TKV_AUTOSAVE_PERIOD = 0, TKV_AUTOSAVE_STOP, TKV_AUTOSAVE_N_WHEN };
extern const char *const tkv_autosave_whens[TKV_AUTOSAVE_N_WHEN];

/* What became of a file when the daemon started. */
enum tkv_autosave_outcome {
    TKV_AUTOSAVE_RESTORED = 0,
    TKV_AUTOSAVE_WAITS,   /* it has no token ids: for RESTORE by its name */
    TKV_AUTOSAVE_HELD,    /* the session is here, taken over from the daemon before */
    TKV_AUTOSAVE_BAD,     /* broken: moved aside */
    TKV_AUTOSAVE_VERSION, /* of another version of the format */
    TKV_AUTOSAVE_PROFILE, /* its profile is missing or another one */
    TKV_AUTOSAVE_ROOM,    /* no memory or no place for a prefix more */
    TKV_AUTOSAVE_TIME,    /* snapshot.deadline was over */
    TKV_AUTOSAVE_FAILED,  /* it could not be read */
    TKV_AUTOSAVE_N_OUTCOMES,
};
extern const char *const tkv_autosave_outcomes[TKV_AUTOSAVE_N_OUTCOMES];

/* A session's part in this. */
struct tkv_autosave_entry {
    char name[TRIKV_MAX_NAME_BYTES + 1]; /* of its file; "": none was written */
    bool forget;                         /* its client is done with it: the file goes with it */
    bool wanted;                         /* as soon as no job is at it */
    uint64_t n_changes;                  /* of the session, when it was last written */
    uint64_t unsaved_ms;                 /* since when it is another one; 0: it is not */
    uint64_t retry_ms;                   /* not before this, after a failure */
};

struct tkv_autosave_item;

struct tkv_autosave {
    char root[TKV_CONFIG_PATH_BYTES]; /* for workers: the configuration is the loop's */
    struct tkv_pool *pool;
    uv_async_t jobs_done;
    uv_timer_t beat, deadline;
    bool is_last;                    /* the daemon stops: what is not written now is lost */
    atomic_bool stop;                /* nothing is written any more */
    struct tkv_autosave_item *items; /* those running first come, then by age */
    uint32_t n_items, n_running;
    uint64_t running_bytes; /* about so many will be written */
    uint64_t pause_ms;      /* until then the day's bytes are used up */
    uint64_t n_written[TKV_AUTOSAVE_N_WHEN];
    uint64_t n_bytes[TKV_AUTOSAVE_N_WHEN];
    uint64_t n_start[TKV_AUTOSAVE_N_OUTCOMES];
};

/* What is not saved yet. */
struct tkv_autosave_debt {
    uint32_t n_sessions;
    double oldest_s;
};

/* 0 or -1; nothing if there is no directory. */
int tkv_autosave_start(struct tkv_server *s);

/* Read back what earlier daemons wrote: before there are clients, within snapshot.deadline. */
void tkv_autosave_restore(struct tkv_server *s);

/* A session is idle, before anybody else gets it or it is destroyed. */
void tkv_autosave_settle(struct tkv_session_entry *e);

/* Its client closes or drops the session: there will be no file of it. */
void tkv_autosave_forget(struct tkv_session_entry *e);

/* The same of the file of an entry that ends; any thread. */
void tkv_autosave_remove(const struct tkv_session_entry *e);

/* The session was just made out of the file of this name, which may be one of these. */
void tkv_autosave_take(struct tkv_session_entry *e, const char *name);

/* The daemon stops: write all that changed. Then it waits until this is not busy any more. */
void tkv_autosave_drain(struct tkv_server *s);
bool tkv_autosave_is_busy(const struct tkv_server *s);

void tkv_autosave_debt(const struct tkv_server *s, struct tkv_autosave_debt *out);

/* Stop threads (before the pool ends), and free what is left (after it). */
void tkv_autosave_stop(struct tkv_server *s);
void tkv_autosave_deinit(struct tkv_server *s);

#endif /* TKV_DAEMON_AUTOSAVE_H */
