#include "tests/codec_aid.h"

#include <stdio.h>
#include <stdlib.h>

void codec_aid_fill(struct rng *rng, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        x[i] = -2;
        for (int k = 0; k < 4; k++)
            x[i] += rng_uniform(rng);
    }
}

uint64_t codec_aid_hash(const void *bytes, size_t n, uint64_t hash)
{
    const unsigned char *p = bytes;

    for (size_t i = 0; i < n; i++)
        hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

void codec_aid_coder(struct tkv_coder *c, const struct tkv_codec *codec, uint32_t dim)
{
    const char *wrong = tkv_coder_init(c, codec, dim, TKV_ROTATION_SEED);

    if (!wrong)
        return;
    fprintf(stderr, "%s, dim %u: %s\n", codec->name, dim, wrong);
    abort();
}

/* The vectors have lengths from tiny to huge, so that scales take all values. */
uint64_t codec_aid_fingerprint(const struct tkv_kernels *kn, const struct tkv_codec *codec,
                               uint32_t dim)
{
    struct rng rng = {dim};
    float *x = malloc(TKV_BLOCK_TOKENS * dim * sizeof(*x));
    struct tkv_coder *c = malloc(sizeof(*c));
    uint8_t *block, mean[TKV_MAX_MEAN_BYTES];
    uint64_t hash;

    if (!x || !c)
        abort();
    codec_aid_coder(c, codec, dim);
    codec_aid_fill(&rng, x, TKV_BLOCK_TOKENS * dim);
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        for (size_t j = 0; j < dim; j++)
            x[t * dim + j] = ldexpf(x[t * dim + j], (int)t - 40);
    block = malloc(c->k_block_bytes + c->v_block_bytes);
    if (!block)
        abort();
    tkv_code_mean(c, kn, TKV_KEYS, tkv_floats(x + 30 * dim, dim), 8, mean);
    tkv_encode_keys(c, kn, mean, tkv_floats(x, dim), TKV_BLOCK_TOKENS, block);
    tkv_code_mean(c, kn, TKV_VALUES, tkv_floats(x + 30 * dim, dim), 8, mean);
    if (c->v_block_bytes)
        tkv_encode_values(c, kn, mean, tkv_floats(x, dim), TKV_BLOCK_TOKENS,
                          block + c->k_block_bytes);
    hash = codec_aid_hash(block, c->k_block_bytes + c->v_block_bytes, CODEC_AID_HASH);
    free(block);
    free(c);
    free(x);
    return hash;
}
