/* A ring by hand, for tests that must be able to do it wrong. */
#ifndef TKV_TESTS_RING_AID_H
#define TKV_TESTS_RING_AID_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/ring.h"

struct ring_aid {
    int fd; /* of the connection; the test's */
    struct trikv_ring_shared *shared;
    uint8_t *base;
    size_t bytes;
    uint32_t n_entries;
    int doorbell_fd, answer_fd;
    uint64_t n_written;
};

/* A file that could be a ring of n_entries and tensor_bytes; seals: of F_ADD_SEALS. */
int ring_aid_file(uint32_t n_entries, size_t bytes, unsigned seals);

/* Ask for a ring; the code of the reply, its text (or NULL) into text[256]. On success *r has it. */
int ring_aid_ask(struct ring_aid *r, int fd, int file, uint64_t bytes, char *text);

/* A good one; asserts that it is given. */
void ring_aid_open(struct ring_aid *r, int fd, uint32_t n_entries, size_t tensor_bytes);

/* RING_CLOSE: the code of the reply; and let go of what this side has. */
int ring_aid_close(struct ring_aid *r, char *text);
void ring_aid_drop(struct ring_aid *r);

/* Where tensors may lie: byte `at` of them, as pointer and as an entry has it. */
void *ring_aid_tensor(const struct ring_aid *r, size_t at);
uint32_t ring_aid_place(const struct ring_aid *r, size_t at);

/* Put an entry into its slot; and tell the daemon, as far as is written. */
void ring_aid_put(struct ring_aid *r, const struct trikv_ring_entry *e);
void ring_aid_submit(struct ring_aid *r);

/* Until all is done: false if the ring ends or nothing happens for long. */
bool ring_aid_wait(struct ring_aid *r);

/* Wait for the end of the ring: its error, 0 if it does not come. */
uint32_t ring_aid_ended(struct ring_aid *r);

/* The completion of the last entry written. */
const struct trikv_completion *ring_aid_last(const struct ring_aid *r);

/* Put, submit, wait: its error, or -1. */
int ring_aid_do(struct ring_aid *r, const struct trikv_ring_entry *e);

/* An APPEND_ATTEND of n tokens to a layer of a session of wire_open, K at tensor byte 0, the others behind
 * it, O behind those; LSE not wanted. */
struct trikv_ring_entry ring_aid_step(const struct ring_aid *r, uint64_t session, uint32_t n);

/* Fill K, V and Q of such a step. */
struct rng;
void ring_aid_fill(const struct ring_aid *r, uint32_t n, struct rng *rng);

#endif /* TKV_TESTS_RING_AID_H */
