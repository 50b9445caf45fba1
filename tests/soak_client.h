/*
 * A client that lives as engines do, only faster: it connects, opens sessions of all kinds, appends,
 * attends, goes back, forks, maps, writes files and reads them, and goes, politely or not. Being refused
 * for memory is a part of life; any other error is told and ends it with exit status 1.
 */
#ifndef TKV_TESTS_SOAK_CLIENT_H
#define TKV_TESTS_SOAK_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Times by logarithm: 32 buckets double, so a quantile is right to 2.2 %. */
enum { SOAK_BUCKETS = 32 * 24 };
struct soak_times {
    atomic_ullong n[SOAK_BUCKETS];
};

/* In memory that all processes of the test share. */
struct soak_counts {
    struct soak_times step;    /* append_attend of one token, one layer */
    struct soak_times machine; /* a fixed piece of work of the client's own, in between */
    atomic_ullong n_lives, n_sessions, n_tokens, n_steps, n_forks, n_files, n_prefix_hits;
    atomic_ullong n_refused, n_evicted;
};

struct soak_client {
    const char *socket;
    uint64_t seed;
    unsigned number;
    double end_s; /* of CLOCK_MONOTONIC */
    bool has_snapshots;
    struct soak_counts *counts;
};

double soak_now_s(void);

/* The q-quantile in microseconds. */
double soak_quantile(struct soak_times *t, double q);

/* Lives one after the other until it is time; does not return. */
_Noreturn void soak_client_run(const struct soak_client *c);

/* A client that wants to hold `want_bytes` and takes what it gets, again and again. */
_Noreturn void soak_glutton_run(const struct soak_client *c, uint64_t want_bytes);

#endif /* TKV_TESTS_SOAK_CLIENT_H */
