/* Sessions for tests: a small model of keys and values that a test can attend to by itself. */
#ifndef TKV_TESTS_SESSION_AID_H
#define TKV_TESTS_SESSION_AID_H

#include "core/kernels.h"
#include "store/budget.h"
#include "store/session.h"
#include "tests/rng.h"

enum { AID_MAX_LAYERS = 4 };

/* A session with everything it needs. Fill `shape`, `config` and the budget's cap, then aid_open. */
struct aid {
    struct tkv_budget budget;
    struct tkv_kernels kn;
    struct tkv_shape shape;
    struct tkv_rope rope;
    struct tkv_layer_config layers[AID_MAX_LAYERS];
    struct tkv_session_config config;
    struct tkv_session *session;
    float *stats;
    struct tkv_report why;
};

/* Defaults: 2 layers of 4 query heads on 2 KV heads of 64, codec, beta 64, recent 32, pinned 4,
 * method none, a cap of 256 MiB. */
void aid_init(struct aid *a, const char *codec);

/* Random but concentrated query statistics and a rope of theta 10000; method triattention. */
void aid_triattention(struct aid *a, uint32_t budget_tokens, uint64_t seed);

/* Create the session; returns the error, with a->why. */
int aid_open(struct aid *a);

/* Destroys the session; every byte must have come back. */
void aid_close(struct aid *a);

/* n tokens of K, V and Q for one layer, each in one malloc; the caller frees k. Keys have a mean and
 * a few outliers, as real ones do. */
struct aid_tokens {
    uint32_t n;
    float *k, *v, *q;
    float *out, *lse;
};
struct aid_tokens aid_tokens(const struct aid *a, uint32_t n, uint64_t seed);

/* Append and attend tokens first .. first + n - 1 of t in one request. */
int aid_step(struct aid *a, uint32_t layer, const struct aid_tokens *t, uint32_t first, uint32_t n);

/* The positions that a KV head keeps, ascending, in positions[]; returns how many. */
uint32_t aid_kept(const struct aid *a, uint32_t layer, uint32_t kv_head, int32_t *positions,
                  uint32_t cap);

/* The file of a kept arena as it stands: what a successor of a killed process would get. */
int aid_copy_arena(int fd);

#endif /* TKV_TESTS_SESSION_AID_H */
