/* The mean of a block: made, coded in planes of bits, read again. */
#include <math.h>

#include "core/codec_priv.h"

/* Fields of b bits over n codes: those from bit `low` of a code on. */
static void put_plane(uint8_t *plane, const uint8_t *codes, size_t n, unsigned b, unsigned low)
{
    const size_t n_bytes = n * b / 8;
    const unsigned mask = (1u << b) - 1;

    for (size_t i = 0; i < n; i++)
        plane[i % n_bytes] =
            (uint8_t)(plane[i % n_bytes] | (codes[i] >> low & mask) << b * (i / n_bytes));
}

typedef uint64_t bytes16 __attribute__((vector_size(16)));

static void get_plane(uint8_t *codes, const uint8_t *plane, size_t n, unsigned b, unsigned low)
{
    const size_t n_bytes = n * b / 8;
    const uint64_t mask = ((1u << b) - 1) * UINT64_C(0x0101010101010101);

    for (size_t at = 0; at < n; at += n_bytes) {
        const unsigned shift = b * (unsigned)(at / n_bytes);
        size_t i = 0;

        for (; i + 16 <= n_bytes; i += 16) {
            bytes16 in, out;

            memcpy(&in, plane + i, sizeof(in));
            memcpy(&out, codes + at + i, sizeof(out));
            out |= (in >> shift & mask) << low;
            memcpy(codes + at + i, &out, sizeof(out));
        }
        for (; i < n_bytes; i++)
            codes[at + i] = (uint8_t)(codes[at + i] | (plane[i] >> shift & mask & 255) << low);
    }
}

void tkv_code_mean(const struct tkv_coder *c, const struct tkv_kernels *kn, enum tkv_side side,
                   struct tkv_vectors x, size_t n, void *mean)
{
    const struct tkv_section *s = &c->mean[side];
    const size_t padded = tkv_align(c->dim, 16);
    uint8_t *to = mean, codes[TKV_MAX_HEAD_DIM] = {0};
    float sum[TKV_MAX_HEAD_DIM], y[TKV_MAX_HEAD_DIM];
    const struct tkv_vectors all = tkv_floats(sum, c->dim);
    struct tkv_search search;
    float norm, scale = 0;
    int exponent = 0;

    if (c->mean_bytes[side] == 0)
        return;
    kn->sum_vectors(sum, &x, n, c->dim, 1 / (float)n);
    norm = tkv_residual(c, kn, &all, NULL, y, &exponent);
    tkv_search_init(&search, s, 1, TKV_SCALE_LEAST_SQUARES);
    if (norm > 0)
        scale = tkv_search_codes(&search, kn, y, norm, norm * c->rotation.scale, codes);
    memset(to, 0, c->mean_bytes[side]);
    tkv_store_half(to, 0, tkv_saturated(ldexpf(scale, exponent)));
    if (s->w == 4) {
        put_plane(to + sizeof(uint16_t), codes, padded, 4, 0);
    } else {
        put_plane(to + sizeof(uint16_t), codes, padded, 2, 0);
        put_plane(to + sizeof(uint16_t) + padded / 4, codes, padded, 1, 2);
    }
}

static bytes16 get_16(const uint8_t *plane, unsigned shift, uint64_t mask)
{
    bytes16 x;

    memcpy(&x, plane, sizeof(x));
    return x >> shift & mask * UINT64_C(0x0101010101010101);
}

/* The plane of n codes of 4 bits: the first half of them low, the other half high. */
static void get_four_bits(uint8_t *codes, const uint8_t *from, size_t n)
{
    for (size_t i = 0; i < n / 2; i += 16) {
        const bytes16 low = get_16(from + i, 0, 15), high = get_16(from + i, 4, 15);

        memcpy(codes + i, &low, sizeof(low));
        memcpy(codes + n / 2 + i, &high, sizeof(high));
    }
}

/* The planes of n codes of 3 bits: an eighth of them is a neighbour in each. */
static void get_three_bits(uint8_t *codes, const uint8_t *from, size_t n)
{
    const size_t eighth = n / 8;

    for (size_t i = 0; i < eighth; i += 16) {
        for (unsigned k = 0; k < 8; k++) {
            const bytes16 x = get_16(from + k % 2 * eighth + i, k / 2 * 2, 3) |
                              get_16(from + 2 * eighth + i, k, 1) << 2;

            memcpy(codes + k * eighth + i, &x, sizeof(x));
        }
    }
}

float tkv_mean_codes(const struct tkv_coder *c, enum tkv_side side, const void *mean,
                     uint8_t *codes)
{
    const struct tkv_section *s = &c->mean[side];
    const size_t padded = tkv_align(c->dim, 16);
    const uint8_t *from = mean;
    uint16_t scale;

    if (c->mean_bytes[side] == 0)
        return 0;
    scale = tkv_load_half(from, 0);
    from += sizeof(scale);
    if (scale == 0)
        return 0;
    /* Where 16 codes are neighbours in each plane: a block's mean is read as often as its codes. */
    if (padded % 128 == 0 && s->w == 4) {
        get_four_bits(codes, from, padded);
    } else if (padded % 128 == 0) {
        get_three_bits(codes, from, padded);
    } else if (memset(codes, 0, tkv_align(padded, 64)), s->w == 4) {
        get_plane(codes, from, padded, 4, 0);
    } else {
        get_plane(codes, from, padded, 2, 0);
        get_plane(codes, from + padded / 4, padded, 1, 2);
    }
    return tkv_f16_to_f32(scale);
}

const float *tkv_load_mean(const struct tkv_coder *c, const struct tkv_kernels *kn,
                           enum tkv_side side, const void *mean, float *m)
{
    uint8_t codes[TKV_MAX_HEAD_DIM];
    const float scale = tkv_mean_codes(c, side, mean, codes);

    if (scale == 0)
        return NULL;
    kn->lookup(m, codes, c->dim, c->mean[side].lut, scale);
    return m;
}
