/* What the loop's side of a ring (ring.c) and its thread (ring_thread.c) share. */
#ifndef TKV_DAEMON_RING_PRIV_H
#define TKV_DAEMON_RING_PRIV_H

#include "daemon/ring.h"

/* Who may use the sessions of the client. */
enum tkv_floor {
    TKV_FLOOR_LOOP = 0,
    TKV_FLOOR_FREE,   /* lent, and nobody is at it */
    TKV_FLOOR_RING,   /* the thread does an entry */
    TKV_FLOOR_WANTED, /* and is to hand the floor over after it */
};

struct tkv_ring {
    struct tkv_client *client;
    struct tkv_server *server;
    struct tkv_ring *next, **link;
    struct tkv_ring_view view;
    struct trikv_ring_shared *shared; /* view.base */
    int doorbell_fd;                  /* the client writes */
    int answer_fd;                    /* we write */
    int own_fd;                       /* the loop wakes the thread */
    int epoll_fd;                     /* of doorbell and own, edge-triggered: nobody reads them */
    pthread_t thread;

    /* of both */
    atomic_int floor;
    atomic_bool stopping;
    atomic_bool wants_floor; /* the thread sleeps until it is lent */
    atomic_bool ended;       /* the thread is at its end */
    atomic_uint_fast64_t n_spins, n_sleeps, n_completed;

    /* of whoever has the floor */
    struct tkv_session_entry *lent; /* by next_lent */
    struct tkv_ring_counts counts;
    struct {
        enum { TKV_RING_ASKS_NOTHING, TKV_RING_ASKS_ROOM, TKV_RING_ASKS_REASON } what;
        uint64_t session;
        bool is_granted;
        struct tkv_report why; /* how it failed; the answer: why not */
    } question;                /* what only the loop can know or do */

    /* the loop's */
    bool is_lent;
    bool is_over;       /* joined; only `why` is left */
    bool request_waits; /* of the client, for the floor */
    bool is_idle;       /* nothing was done between the last two beats */
    uint64_t n_completed_at_beat;
    bool is_recalled; /* somebody else waits */
    struct tkv_call *closer;
    uint64_t n_spins_told, n_sleeps_told, n_completed_told;

    /* the thread's; after its end the loop's */
    uint32_t spin_ns;
    uint64_t n_done;
    bool chain_broken;
    struct tkv_spin spin;
    struct tkv_scratch scratch;
    struct tkv_report why; /* error 0: it ended because it was asked to */
};

/* The signal that gets a thread out of a write to a client that made it block. */
enum { TKV_RING_SIGNAL = 10 /* SIGUSR1 */ };

void *tkv_ring_main(void *ring);

#endif /* TKV_DAEMON_RING_PRIV_H */
