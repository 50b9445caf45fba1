/* Inputs and fingerprints for tests of what must be the same bytes on every machine. */
#ifndef TKV_TESTS_CODEC_AID_H
#define TKV_TESTS_CODEC_AID_H

#include "core/codec.h"
#include "core/kernels.h"
#include "tests/rng.h"

/* x[n] bell-shaped, from sums of uniforms: no libm, whose last bits differ between machines. */
void codec_aid_fill(struct rng *rng, float *x, size_t n);

/* FNV-1a over bytes, going on from `hash`; the first call takes CODEC_AID_HASH. */
#define CODEC_AID_HASH UINT64_C(0xcbf29ce484222325)
uint64_t codec_aid_hash(const void *bytes, size_t n, uint64_t hash);

/* Fingerprint of the key and value blocks that a codec makes of 64 fixed vectors. */
uint64_t codec_aid_fingerprint(const struct tkv_kernels *kn, const struct tkv_codec *codec,
                               uint32_t dim);

/* Fail the test unless the coder can be made. */
void codec_aid_coder(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim);

#endif /* TKV_TESTS_CODEC_AID_H */
