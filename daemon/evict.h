/*
 * What has to go when memory is short, before a request is refused: working memory that connections
 * keep, then stored prefixes, the least recently used one first, then whole sessions that have been
 * idle for limits.evict_idle_after, likewise. Those that said so in OPEN stay, and so do maps and
 * sessions at work. What goes for a user's quota is that user's own. Loop thread only.
 */
#ifndef TKV_DAEMON_EVICT_H
#define TKV_DAEMON_EVICT_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/report.h"

struct tkv_call;
struct tkv_client;
struct tkv_quota;
struct tkv_server;

/*
 * The call failed for memory. True: something is gone or on its way out, and the call is served anew
 * after that. False: it stays failed, and call->why says whose limit was in the way.
 */
bool tkv_evict_for(struct tkv_call *call);

/* The same at once, for a step of a session that a ring has failed to do. */
bool tkv_evict_for_ring(struct tkv_client *client, uint64_t session, struct tkv_report *why);

/* The same at once, for those who cannot wait; user: whose quota may be in the way, or NULL. */
bool tkv_evict_now(struct tkv_server *s, struct tkv_quota *user);

#endif /* TKV_DAEMON_EVICT_H */
