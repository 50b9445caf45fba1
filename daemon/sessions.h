/*
 * The table of sessions: who owns one, whether a job is working on it, who waits for it.
 * Loop thread only; the session itself belongs to the job while busy is set.
 */
#ifndef TKV_DAEMON_SESSIONS_H
#define TKV_DAEMON_SESSIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/rope.h"
#include "daemon/autosave.h"
#include "daemon/pool.h"
#include "daemon/prefixes.h"
#include "daemon/survey.h"
#include "proto/limits.h"
#include "store/session.h"

struct tkv_call;
struct tkv_client;
struct tkv_observation;
struct tkv_profile;
struct tkv_server;

enum { TKV_SESSION_BUCKETS = 256, TKV_EVICTED_IDS = 64 };

enum tkv_entry_kind {
    TKV_ENTRY_SESSION = 0,
    TKV_ENTRY_MAP,    /* a snapshot that its owner has mapped */
    TKV_ENTRY_PREFIX, /* stored; it has no owner */
    TKV_N_ENTRY_KINDS,
};

struct tkv_session_entry {
    struct tkv_job destruction;
    struct tkv_server *server;
    struct tkv_session_entry *next; /* in its bucket */
    uint64_t id;                    /* never 0, never used again in the life of the daemon */
    struct tkv_session *session; /* NULL until OPEN has succeeded, and once it is to be destroyed */
    struct tkv_session *made;    /* the job's that opens or destroys it */
    struct tkv_client *owner;    /* NULL: it is gone, and so will the session be */
    uid_t uid;
    struct tkv_quota *quota; /* where its memory counts; forks have it in common */
    char label[TRIKV_MAX_NAME_BYTES + 1];
    struct tkv_profile *profile; /* a reference, or NULL */
    bool has_rope;               /* the profile or OPEN said it */
    struct tkv_rope_params rope;
    struct tkv_observation *observation; /* NULL: nothing was observed; the job's while busy */
    enum tkv_method method;
    uint64_t arena_id;    /* of a kept session, whose descriptor somebody holds; else 0 */
    uint64_t boot_id;     /* of the daemon that opened it */
    uint64_t orphaned_ms; /* taken over, and nobody has come back for it since then; 0: not so */
    uint64_t opened_ms;
    uint64_t used_ms;
    bool busy; /* a job works on it, or it is lent to its owner's ring */
    bool is_lent;
    bool ring_used;                      /* since it was lent; the ring's while it is */
    struct tkv_session_entry *next_lent; /* of the ring that has it */
    bool doomed;                         /* no request sees it any more */
    bool never_evict;                    /* for memory, however idle it is */
    enum tkv_entry_kind kind;
    struct tkv_prefix prefix;
    struct tkv_autosave_entry autosave;
    struct tkv_call *waiting;       /* for the end of the job */
    struct tkv_call *closer;        /* to be answered when it is destroyed; may be NULL */
    struct tkv_session_stats stats; /* as of stats_ms; what others see while it is busy */
    uint64_t stats_ms;
    uint32_t n_token_ids;           /* as of stats_ms */
    struct tkv_tiers tiers;         /* as of stats_ms */
    struct tkv_layer_stats *layers; /* [stats.n_layers] as of stats_ms; NULL until somebody asks */
    bool has_layers;                /* they are filled */
};

struct tkv_sessions {
    struct tkv_session_entry *bucket[TKV_SESSION_BUCKETS];
    uint32_t n; /* those being opened and destroyed included */
    uint32_t n_of[TKV_N_ENTRY_KINDS];
    uint64_t last_id;
    uint64_t evicted[TKV_EVICTED_IDS]; /* the last ones, a ring */
    uint64_t n_evicted;                /* sessions ever */
};

/* A new entry in the table, busy, without a session yet, that will share memory with `of` (or with
 * nobody, if that is NULL); NULL over the memory cap. */
struct tkv_session_entry *tkv_sessions_add(struct tkv_client *owner,
                                           const struct tkv_session_entry *of);

/* The same without an owner, and with an id that an earlier daemon gave. */
struct tkv_session_entry *tkv_sessions_add_as(struct tkv_server *s, uint64_t id, uid_t uid,
                                              struct tkv_quota *family);

/* An entry without an owner gets one. */
void tkv_sessions_own(struct tkv_session_entry *e, struct tkv_client *owner);

/* An entry, with its session if there is one, that nobody has heard of yet. */
void tkv_sessions_remove(struct tkv_session_entry *e);

/* The same, leaving the session to the successor. */
void tkv_sessions_leave(struct tkv_session_entry *e);

/*
 * Doom all sessions that have been orphans since until_ms or longer, or store them: how many. Oldest_ms:
 * of those that stay; 0 if there are none.
 */
uint32_t tkv_sessions_doom_orphans(struct tkv_sessions *t, uint64_t until_ms, uint64_t *oldest_ms);

bool tkv_sessions_any_busy(const struct tkv_sessions *t);

/* What a client may still open: 0 or TOO_MANY. */
int tkv_sessions_check_room(const struct tkv_client *c, struct tkv_report *why);

/* 0, or an error if the label (or NULL) is too long. */
int tkv_sessions_check_label(const char *label, struct tkv_report *why);

/* The session of this client, or NULL with the reason. */
struct tkv_session_entry *tkv_sessions_find_own(const struct tkv_client *owner, uint64_t id,
                                                struct tkv_report *why);

/* Say why the session is not there. Returns NULL. */
struct tkv_session_entry *tkv_sessions_missing(const struct tkv_sessions *t, uint64_t id,
                                               struct tkv_report *why);

/* Open and not doomed, or NULL. */
struct tkv_session_entry *tkv_sessions_find(const struct tkv_sessions *t, uint64_t id);

/* The same of another kind. */
struct tkv_session_entry *tkv_sessions_find_kind(const struct tkv_sessions *t, uint64_t id,
                                                 enum tkv_entry_kind kind);

/* From now on it is of this kind; disown: and nobody's. */
void tkv_sessions_turn(struct tkv_session_entry *e, enum tkv_entry_kind kind);
void tkv_sessions_disown(struct tkv_session_entry *e, enum tkv_entry_kind kind);

/* The ids of the tokens that a step appends: write them before it, while nothing is in doubt; they count
 * when the step is done (NULL: it failed). By the loop, or the thread that the session is lent to. */
int tkv_sessions_write_ids(struct tkv_session_entry *e, const struct tkv_step *step,
                           const uint32_t *token_ids, struct tkv_report *why);
void tkv_sessions_commit_ids(struct tkv_session_entry *e, const struct tkv_step *step);

/* A job is at it, as far as one outside can tell. */
static inline bool tkv_session_is_at_work(const struct tkv_session_entry *e)
{
    return e->busy && !e->is_lent;
}

/* The job is over: free to use, or destroyed if doomed; waiting calls are taken up again. */
void tkv_sessions_idle(struct tkv_session_entry *e);

/* The same, but it was not used now. */
void tkv_sessions_settle(struct tkv_session_entry *e);

/* Destroy it, now or after its job; closer (or NULL) is answered then. */
void tkv_sessions_doom(struct tkv_session_entry *e, struct tkv_call *closer);

/* Doom every session of a client that is gone, or store it. */
void tkv_sessions_orphan(struct tkv_sessions *t, struct tkv_client *owner);

/* Take a call out of whatever line it waits in. */
void tkv_sessions_forget(struct tkv_sessions *t, struct tkv_call *call);

/* Statistics that are at most a moment old. */
const struct tkv_session_stats *tkv_sessions_stats(struct tkv_session_entry *e);

/* Each layer's, as old as the others; NULL if they are not known yet (the session was busy) or the
 * memory cap leaves no room for them. */
const struct tkv_layer_stats *tkv_sessions_layers(struct tkv_session_entry *e);

#endif /* TKV_DAEMON_SESSIONS_H */
