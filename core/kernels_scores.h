/*
 * Rows of scores, moments, fold_scores, add_steps and count_from: part of the SIMD body of
 * core/kernels_simd.h, which includes it. Doubles take twice the room: DOUBLES at a time.
 */
#ifndef TKV_CORE_KERNELS_SCORES_H
#define TKV_CORE_KERNELS_SCORES_H

enum { DOUBLES = LANES / 2 };

typedef double doubles __attribute__((vector_size(4 * LANES)));
typedef float few __attribute__((vector_size(2 * LANES)));
typedef uint32_t few_bits __attribute__((vector_size(2 * LANES)));
typedef float few_unaligned __attribute__((vector_size(2 * LANES), aligned(4), may_alias));

INLINE doubles load_doubles(const float *p)
{
    return __builtin_convertvector(*(const few_unaligned *)p, doubles);
}

void KERNEL(moments)(double *out, const float *x, size_t n, double from)
{
    doubles first[16 / DOUBLES] = {{0}}, second[16 / DOUBLES] = {{0}};
    double all_first[16], all_second[16];
    size_t i = 0;

    for (; i + 16 <= n; i += 16) {
        UNROLL
        for (size_t v = 0; v < 16 / DOUBLES; v++) {
            const doubles d = load_doubles(x + i + v * DOUBLES) - from;

            first[v] += d;
            second[v] += d * d;
        }
    }
    memcpy(all_first, first, sizeof(first));
    memcpy(all_second, second, sizeof(second));
    for (; i < n; i++) {
        const double d = (double)x[i] - from;

        all_first[i % 16] += d;
        all_second[i % 16] += d * d;
    }
    out[0] = tkv_fold16_double(all_first);
    out[1] = tkv_fold16_double(all_second);
}

void KERNEL(fold_scores)(float *dst, const float *x, size_t n, double mean, double scale)
{
    size_t i = 0;

    for (; i + DOUBLES <= n; i += DOUBLES) {
        const few z = __builtin_convertvector((load_doubles(x + i) - mean) * scale, few);
        few_unaligned *to = (few_unaligned *)(dst + i);
        const few old = *to;
        const few_bits mask = (few_bits)(z > old);

        *to = (few)(((few_bits)z & mask) | ((few_bits)old & ~mask));
    }
    tkv_fold_scores_c(dst + i, x + i, n - i, mean, scale);
}

void KERNEL(add_steps)(float *dst, const float *x, const uint8_t *codes, size_t n, float base,
                       float step)
{
    for (size_t i = 0; i < n; i += LANES) {
        const vec_i32 code = (vec_i32)bytes_at(codes + i, n - i);
        const vec term = (vec) __builtin_convertvector(code, vec_f32) * step + base;

        store_n(dst + i, load_n(x + i, n - i) + term, n - i);
    }
}

size_t KERNEL(count_from)(const uint32_t *keys, size_t n, uint32_t least)
{
    vec_i32 count[4] = {{0}};
    size_t i = 0, sum;

    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL
    for (size_t v = 0; v < 4; v++)
        count[v] += *(const words_unaligned *)(keys + i + v * LANES) >= least;
    count[0] += count[1] + count[2] + count[3];
    sum = tkv_count_from_c(keys + i, n - i, least);
    for (size_t l = 0; l < LANES; l++)
        sum -= (size_t)count[0][l];
    return sum;
}

#endif /* TKV_CORE_KERNELS_SCORES_H */
