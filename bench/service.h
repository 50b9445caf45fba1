/* A trikvd of one's own to measure, and a client of it. */
#ifndef TKV_BENCH_SERVICE_H
#define TKV_BENCH_SERVICE_H

#include <stdbool.h>

#include "client/trikv.h"
#include "tools/spawn.h"

struct tkv_bench_service {
    struct tkv_spawn daemon;
    struct trikv_client *client;
    char folder[64];  /* of its profiles and snapshots; "": none */
    char config[128]; /* its file; "": none */
};

/* The geometry of Qwen3-8B. */
enum {
    TKV_QWEN3_LAYERS = 36,
    TKV_QWEN3_KV_HEADS = 8,
    TKV_QWEN3_GROUP = 4,
    TKV_QWEN3_HEAD_DIM = 128,
};

/* A profile with random statistics for this geometry is called so. */
#define TKV_BENCH_PROFILE "bench"

/*
 * Start the trikvd beside this program (or $TRIKV_BIN) with n_threads workers and connect, with a
 * staging area if staging_bytes. with_profile: it knows TKV_BENCH_PROFILE. 0, or -1 with a text.
 */
int tkv_bench_service_start(struct tkv_bench_service *s, uint32_t n_threads, size_t staging_bytes,
                            bool with_profile, struct tkv_reason *why);

/* The same for a daemon that writes snapshots, to a folder in $TMPDIR or /tmp. */
int tkv_bench_service_start_files(struct tkv_bench_service *s, uint32_t n_threads,
                                  size_t staging_bytes, struct tkv_reason *why);
void tkv_bench_service_stop(struct tkv_bench_service *s);

/* How long the daemon has attended (appending or not) for anybody, ever. 0, or an error of libtrikv. */
int tkv_bench_attention_us(struct trikv_client *c, double *us);

/* A step through the client's ring that asks for nothing: the exchange alone. Likewise. */
int tkv_bench_ring_nothing(struct trikv_client *c);

/* The reason of a client call that failed; returns -1. */
int tkv_bench_service_fail(const struct tkv_bench_service *s, const char *what,
                           struct tkv_reason *why);

#endif /* TKV_BENCH_SERVICE_H */
