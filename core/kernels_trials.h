/*
 * The kernel try_scales, written once: included after core/kernels_codes.h by one file for each
 * instruction set, which first defines
 *
 *   dot4(sum, a, b)   sum + the four products of bytes in each word, all 0..127
 *   struct indices, split_indices(bytes below 64), lookup_64(table, indices)   a byte for each byte
 */
#ifndef TKV_CORE_KERNELS_TRIALS_H
#define TKV_CORE_KERNELS_TRIALS_H

typedef uint8_t trial_bytes __attribute__((vector_size(LANES)));

enum { TRIAL_BYTES = 4 * LANES, N_SUMS = 2 * TKV_N_TRIALS };

/* |x| * scale as whole numbers up to 127, in bytes. */
INLINE trial_bytes magnitudes(vec_f32 x, float scale)
{
    const vec_f32 size = (vec_f32)((vec_u32)x & 0x7fffffffu) * scale + 0.5f;
    const vec_i32 m = __builtin_convertvector(size, vec_i32);

    return __builtin_convertvector((m | (m > 127)) & 127, trial_bytes);
}

/* Those of x[n], then zeros to a whole number of vectors; returns how many zeros. */
INLINE size_t load_magnitudes(uint8_t *m, const float *x, size_t n, float scale)
{
    const size_t padded = tkv_align(n, TRIAL_BYTES);
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        const trial_bytes four = magnitudes(*(const floats_unaligned *)(x + i), scale);

        memcpy(m + i, &four, LANES);
    }
    if (i < n) {
        const trial_bytes four = magnitudes((vec_f32)load_part(x + i, n - i), scale);

        memcpy(m + i, &four, LANES);
        i += LANES;
    }
    if (i < padded)
        memset(m + i, 0, padded - i);
    return padded - n;
}

/* Lane i of a and lane i ^ h where bit h of i is clear, of b where it is set: added up. */
#define KEEP(h, i)     ((i) & (h) ? LANES + (i) : (i))
#define CROSS(h, i)    ((i) & (h) ? LANES + ((i) ^ (h)) : (i) ^ (h))
#define FOUR(of, h, i) of(h, i), of(h, (i) + 1), of(h, (i) + 2), of(h, (i) + 3)
#if LANES == 4
#define EVERY(of, h) FOUR(of, h, 0)
#elif LANES == 8
#define EVERY(of, h) FOUR(of, h, 0), FOUR(of, h, 4)
#else
#define EVERY(of, h) FOUR(of, h, 0), FOUR(of, h, 4), FOUR(of, h, 8), FOUR(of, h, 12)
#endif
#define MERGE(a, b, h) \
    (__builtin_shufflevector(a, b, EVERY(KEEP, h)) + __builtin_shufflevector(a, b, EVERY(CROSS, h)))

/* Half as many vectors, bit h of a lane now saying which of two it totals up. */
#define MERGE_ALL(v, n, h)              \
    UNROLL                              \
    for (size_t i = 0; i < (n); i += 2) \
    (v)[i / 2] = MERGE((v)[i], (v)[i + 1], h)

/* totals[i] = all lanes of v[i] added up; merging in the order of h makes lanes those of i. */
INLINE void add_up(int32_t *totals, vec_i32 *v)
{
    MERGE_ALL(v, N_SUMS, 1);
    MERGE_ALL(v, N_SUMS / 2, 2);
#if LANES >= 8
    MERGE_ALL(v, N_SUMS / 4, 4);
#endif
#if LANES >= 16
    MERGE_ALL(v, N_SUMS / 8, 8);
#endif
    memcpy(totals, v, N_SUMS * sizeof(*totals));
}

/* Products and squares of the levels that one trial gives to all magnitudes. */
INLINE void try_scale(vec_i32 *product, vec_i32 *square, const uint8_t *m, const struct indices *at,
                      size_t n_vecs, const uint8_t *level)
{
    *product = *square = (vec_i32){0};
    for (size_t i = 0; i < n_vecs; i++) {
        const vec_u32 four = *(const words_unaligned *)(m + i * TRIAL_BYTES);
        const vec_u32 v = (vec_u32)lookup_64(level, &at[i]);

        *product = (vec_i32)dot4(*product, four, v);
        *square = (vec_i32)dot4(*square, v, v);
    }
}

void KERNEL(try_scales)(int32_t (*totals)[TKV_N_TRIALS], const float *x, size_t n, float scale,
                        const uint8_t (*level)[64])
{
    struct indices at[TKV_MAX_HEAD_DIM / TRIAL_BYTES];
    uint8_t m[TKV_MAX_HEAD_DIM];
    const size_t n_zeros = load_magnitudes(m, x, n, scale);
    const size_t n_vecs = (n + n_zeros) / TRIAL_BYTES;
    vec_i32 sum[N_SUMS];

    for (size_t i = 0; i < n_vecs; i++)
        at[i] = split_indices(*(const words_unaligned *)(m + i * TRIAL_BYTES) >> 1 & 0x3f3f3f3fu);
    for (size_t t = 0; t < TKV_N_TRIALS; t++)
        try_scale(&sum[t], &sum[TKV_N_TRIALS + t], m, at, n_vecs, level[t]);
    add_up(totals[0], sum);
    for (size_t t = 0; n_zeros && t < TKV_N_TRIALS; t++)
        totals[1][t] -= (int32_t)n_zeros * level[t][0] * level[t][0];
}

#endif /* TKV_CORE_KERNELS_TRIALS_H */
