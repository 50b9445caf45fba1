/* The client's side of a ring (proto/ring.h): where its tensors go, and what is in flight. */
#ifndef TKV_CLIENT_RING_H
#define TKV_CLIENT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/ring.h"

struct tkv_request;
struct trikv_client;
struct trikv_session;
struct trikv_step;

/* The outputs of a step in flight that are to be copied out; bytes 0: none. */
struct tkv_ring_copy {
    void *to;
    const void *from;
    size_t bytes;
};

struct tkv_ring_pending {
    struct tkv_ring_copy out;
    struct tkv_ring_copy lse;
};

struct tkv_client_ring {
    struct trikv_ring_shared *shared;
    uint8_t *base; /* the same */
    size_t bytes;
    uint32_t n_entries;
    size_t tensors_at, tensors_bytes; /* the caller's */
    size_t copies_at, copies_bytes;   /* ours, behind it */
    size_t copies_used;
    int doorbell_fd;
    int answer_fd;
    int epoll_fd;
    uint32_t spin_ns;
    struct tkv_spin spin;
    uint64_t n_written;   /* entries */
    uint64_t n_submitted; /* of them */
    uint64_t n_taken;     /* completions read */
    struct tkv_ring_pending pending[];
};

/*
 * Write an entry for the step whose tensors and outputs *r has; true if it was. False: there is no room for
 * what would have to be copied, not even when nothing is in flight (what is in flight is waited for
 * first, and may fail: then *e is that error).
 */
bool tkv_ring_put(struct trikv_session *s, const struct trikv_step *t, enum trikv_ring_op op,
                  const struct tkv_request *r, uint8_t flags, int *e);

/* Let the daemon see what is written. */
void tkv_ring_submit(struct tkv_client_ring *ring);

/* Wait until all that was submitted is done: the first error of these, or of waiting. */
int tkv_ring_wait(struct trikv_client *c);

/* Steps whose completions have not been taken. */
bool tkv_ring_is_in_flight(const struct tkv_client_ring *ring);

/* The daemon has ended it: forget it, and learn why. Never 0. */
int tkv_ring_end(struct trikv_client *c);

/* Unmap and free, without telling the daemon. */
void tkv_client_ring_free(struct trikv_client *c);

#endif /* TKV_CLIENT_RING_H */
