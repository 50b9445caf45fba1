/* Sums over queries and what follows from them. Where queries come from is the caller's. */
#include "core/calibration.h"

#include <math.h>

void tkv_calibration_add(const struct tkv_rope *rope, const float *q, size_t stride,
                         size_t n_tokens, double *sums)
{
    double *re_sum = sums, *im_sum = re_sum + rope->n_bands, *abs_sum = im_sum + rope->n_bands;

    for (size_t t = 0; t < n_tokens; t++, q += stride) {
        for (uint32_t f = 0; f < rope->n_bands; f++) {
            uint32_t re, im;
            double x, y;

            tkv_rope_band(rope, f, &re, &im);
            x = (double)q[re];
            y = (double)q[im];
            re_sum[f] += x;
            im_sum[f] += y;
            abs_sum[f] += sqrt(x * x + y * y);
        }
    }
}

void tkv_calibration_mean(const double *sums, size_t n_heads, uint32_t n_bands, uint64_t n_tokens,
                          float *means)
{
    const double n = (double)n_tokens;

    for (size_t head = 0; head < n_heads; head++, sums += 3 * n_bands) {
        float *re = means + head * 3 * n_bands, *im = re + n_bands, *abs = im + n_bands;

        for (uint32_t f = 0; f < n_bands; f++) {
            re[f] = (float)(sums[f] / n);
            im[f] = (float)(sums[n_bands + f] / n);
            abs[f] = (float)(sums[2 * n_bands + f] / n);
            while ((double)abs[f] < hypot((double)re[f], (double)im[f]))
                abs[f] = nextafterf(abs[f], INFINITY);
        }
    }
}

double tkv_concentration(double re, double im, double abs)
{
    return abs > 0 ? fmin(hypot(re, im) / abs, 1) : 0;
}

double tkv_head_concentration(const float *means, uint32_t n_bands)
{
    double of_mean = 0, of_abs = 0;

    for (uint32_t f = 0; f < n_bands; f++) {
        of_mean += hypot((double)means[f], (double)means[n_bands + f]);
        of_abs += (double)means[2 * n_bands + f];
    }
    return of_abs > 0 ? fmin(of_mean / of_abs, 1) : 0;
}
