/*
 * A table of 64 bytes by four shuffles of 16, for instruction sets that know no wider one. Included
 * before core/kernels_simd.h by a file that first defines words, pick_bytes (zero where bit 7 of a
 * place is set) and spread_16(table of 16).
 */
#ifndef TKV_CORE_KERNELS_SHUFFLE_H
#define TKV_CORE_KERNELS_SHUFFLE_H

/* Indices into each of the four, with bit 7 set where they are into another. */
struct indices {
    words of[4];
};

static inline struct indices split_indices(words index)
{
    struct indices s;

    for (unsigned i = 0; i < 4; i++)
        s.of[i] = (index ^ i * 0x10101010u) + 0x70707070u;
    return s;
}

static inline words lookup_64(const uint8_t *table, const struct indices *s)
{
    words found = {0};

    for (size_t i = 0; i < 4; i++)
        found |= pick_bytes(spread_16(table + 16 * i), s->of[i]);
    return found;
}

#endif /* TKV_CORE_KERNELS_SHUFFLE_H */
