/*
 * A client of a daemon that is killed again and again, in a process of its own: random requests on a few
 * sessions, each given to another daemon, too, that nobody kills. After every crash it comes back for
 * its sessions, sends what was not answered once more, and compares everything that both keep.
 */
#ifndef TKV_TESTS_CRASH_LOAD_H
#define TKV_TESTS_CRASH_LOAD_H

#include <stdatomic.h>
#include <stdint.h>

/* Shared by all clients. */
struct crash_load {
    const char *socket;
    const char *twin_socket;
    atomic_uint stop;
    atomic_ullong n_requests;   /* answered */
    atomic_ullong n_recoveries; /* of a client */
    atomic_ullong n_compared;   /* tokens, of a KV head */
    atomic_ullong n_in_flight;  /* requests that were not answered, and had been done, or in part */
    atomic_ullong n_lost;       /* tokens or sessions that were answered for and are not there */
    atomic_ullong n_wrong;      /* comparisons that failed */
};

/* Until told to stop. 0, or 1 with a line on stderr if something is lost or wrong, or cannot go on. */
int crash_load_run(struct crash_load *load, uint64_t seed);

#endif /* TKV_TESTS_CRASH_LOAD_H */
