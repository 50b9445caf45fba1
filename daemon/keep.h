/*
 * Keeping sessions beyond the life of this process: what the daemon notes of each beside what the store
 * does, and the descriptors of their arenas, which somebody must hold for the successor: the
 * service manager's descriptor store. Loop thread, except where said.
 */
#ifndef TKV_DAEMON_KEEP_H
#define TKV_DAEMON_KEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/report.h"

struct tkv_notify_sockets;
struct tkv_server;
struct tkv_session;
struct tkv_session_entry;

/* In front of the names of descriptors that are arenas. */
#define TKV_KEEP_PREFIX "arena-"

/* Why something that was left was not taken over. */
enum tkv_cold { TKV_COLD_VERSION, TKV_COLD_BROKEN, TKV_COLD_MEMORY, TKV_COLD_PROFILE, TKV_N_COLD };
extern const char *const tkv_cold_names[TKV_N_COLD];

struct tkv_keep {
    bool is_on;
    uint64_t n_sessions; /* taken over */
    uint64_t n_prefixes;
    uint64_t n_cold[TKV_N_COLD]; /* arenas or sessions that were not */
    uint64_t adopt_us;
};

/*
 * From now on the session of e is in the journal, with what the entry says: once it is made (or forked),
 * before anybody hears of it. Parent: what it was forked from just now, or NULL. Any thread that the
 * session belongs to. 0 if the daemon keeps nothing.
 */
int tkv_keep_session(struct tkv_session_entry *e, const struct tkv_session *parent,
                     struct tkv_report *why);

/* The entry says something else; as_prefix: that it is stored. */
int tkv_keep_note(struct tkv_session_entry *e, bool as_prefix, struct tkv_report *why);

/* Somebody holds the descriptor of its arena from now on; and nobody any more, if it was the last. */
void tkv_keep_arena(struct tkv_session_entry *e);
void tkv_keep_forget_arena(struct tkv_server *s, uint64_t arena_id);

/* Take over what a process before this one has left. Closes the descriptors. */
void tkv_keep_adopt(struct tkv_server *s, const struct tkv_notify_sockets *passed);

/* Leave everything to the successor: no session is destroyed any more. */
void tkv_keep_leave(struct tkv_server *s);

#endif /* TKV_DAEMON_KEEP_H */
