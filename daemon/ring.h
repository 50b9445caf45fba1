/*
 * Rings (proto/ring.h): each has a thread that does what its client submits, so that neither a loop
 * turn nor a hand-over stands between a client and its step, and a long one holds up nobody else.
 *
 * A session belongs to one thread at a time. Those of a client with a ring belong to whoever has the
 * *floor*: the loop, which then may serve a request of this client or let others have its sessions; or
 * nobody, and the ring's thread takes it for each entry by one compare-and-exchange. While the
 * loop has lent the floor the sessions are busy, as if a job were at them. The loop takes it back at once if
 * nobody has it, else the thread hands it over after its entry; and it lends it again as soon as
 * neither a request of the client nor a job on one of its sessions needs it.
 */
#ifndef TKV_DAEMON_RING_H
#define TKV_DAEMON_RING_H

#include "core/types.h" /* wants to come before uv.h */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/metrics.h"
#include "proto/report.h"
#include "proto/ring.h"
#include "store/session.h"

struct tkv_call;
struct tkv_client;
struct tkv_ring;
struct tkv_server;
struct tkv_session_entry;

/* Shared memory as one may read it: the size and the count are ours, not the client's. */
struct tkv_ring_view {
    uint8_t *base;
    uint64_t bytes;
    uint32_t n_entries;
};

/* What a ring has done, until the loop adds it to the daemon's own counts. */
struct tkv_ring_counts {
    uint64_t n_entries[TRIKV_RING_N_OPS];
    uint64_t n_errors[TKV_METRICS_ERRORS];
    uint64_t n_tokens;
    uint64_t n_rows;
    uint64_t n_rounds;
    struct tkv_histogram append_s;
    struct tkv_histogram attend_s;
};

/* Totals of all rings. Loop thread only. */
struct tkv_rings {
    struct tkv_ring *first;
    uint32_t n;
    uint64_t n_ever;
    uint64_t n_entries;
    uint64_t n_spins;  /* waits that ended while spinning */
    uint64_t n_sleeps; /* and those that did not */
};

/*
 * The step that an entry (a copy) asks for of this session, and the ids of its tokens or NULL. 0 or an error: PROTOCOL if the entry is not
 * one that a client may make, which ends the ring.
 */
int tkv_ring_step(const struct tkv_ring_view *v, const struct trikv_ring_entry *e,
                  const struct tkv_session *s, struct tkv_step *step, const uint32_t **token_ids,
                  struct tkv_report *why);

/* Once, before the first ring. */
void tkv_rings_init(struct tkv_server *s);

/* A ring in the file fd (which stays the caller's) for this client, which has none. fds[2] are the
 * caller's then: the client writes to the first to wake us, and waits for the second. */
int tkv_ring_open(struct tkv_client *client, int fd, uint64_t bytes, int *fds,
                  struct tkv_report *why);

/* The end of the client's ring, which answers the call; without a call (its socket is closed) the
 * client is released then. */
void tkv_ring_close(struct tkv_ring *r, struct tkv_call *closer);

/* True if the loop may use the client's sessions now; else tkv_dispatch follows when it may. */
bool tkv_ring_yields(struct tkv_ring *r);

/* Somebody else waits for a session of this client: bring it back, soon. */
void tkv_ring_recall(struct tkv_ring *r);

/* What kept the floor from the ring may be over. */
void tkv_ring_resume(struct tkv_ring *r);

/* Has it done anything since the last time that this was asked? */
bool tkv_ring_was_used(struct tkv_ring *r);

/* Once a second: what rings have counted becomes visible. */
void tkv_rings_beat(struct tkv_server *s);

/* The daemon ends: wait for every thread. */
void tkv_rings_deinit(struct tkv_server *s);

#endif /* TKV_DAEMON_RING_H */
