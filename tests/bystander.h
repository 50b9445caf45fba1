/* A client that wants nothing but its own: a session whose attention gives the same bits, and soon,
 * whatever others do to the daemon meanwhile. */
#ifndef TKV_TESTS_BYSTANDER_H
#define TKV_TESTS_BYSTANDER_H

#include <stddef.h>
#include <stdint.h>

#include "tests/daemon_aid.h"

enum { BYSTANDER_TOKENS = 200, BYSTANDER_MS = 2000 };

struct bystander {
    const struct daemon_aid *daemon;
    int fd;
    uint64_t session;
    float *tokens; /* K, V and Q of all */
    uint8_t *want; /* O and LSE of the last query */
    size_t n_want_bytes;
    struct daemon_rest rest; /* of the daemon with nobody else there */
};

void bystander_init(struct bystander *b, const struct daemon_aid *d);
void bystander_deinit(struct bystander *b);

/* Attends: the same bits within BYSTANDER_MS. */
void bystander_check(struct bystander *b);

/* The same, and that the daemon holds nothing more than when the bystander was alone. */
void bystander_check_alone(struct bystander *b);

#endif /* TKV_TESTS_BYSTANDER_H */
