/* Sharing a budget of tokens among layers and heads. */
#include "core/allocate.h"

#include <math.h>

#include "core/select.h"

enum { PYRAMID_BETA = 20 };

void tkv_allocate_pyramid(uint32_t *out, uint32_t n_layers, uint32_t mean, uint32_t most)
{
    double max = 2.0 * mean - (double)(mean / PYRAMID_BETA);
    double step;

    max = max > most ? most : max;
    step = n_layers > 1 ? 2 * (max - mean) / (n_layers - 1) : 0;
    for (uint32_t l = 0; l < n_layers; l++)
        out[l] = mean;
    /* A layer and the one as far from the end have 2 B together. */
    for (uint32_t l = 0; l < n_layers / 2; l++) {
        out[l] = (uint32_t)(max - l * step + 0.5);
        out[n_layers - 1 - l] = 2 * mean - out[l];
    }
}

void tkv_allocate_by_weight(uint32_t *out, const float *weights, uint32_t n, uint64_t total,
                            uint32_t least)
{
    const uint64_t shared = total - (uint64_t)n * least;
    double sum = 0, until = 0;
    uint64_t given = 0;

    for (uint32_t i = 0; i < n; i++)
        sum += (double)weights[i];
    /* Each gets what the sum up to it grows by, so that roundings do not add up. */
    for (uint32_t i = 0; i < n; i++) {
        uint64_t end = shared;

        until += sum > 0 ? (double)weights[i] / sum : 1.0 / n;
        if (i + 1 < n)
            end = (uint64_t)(fmin(until, 1) * (double)shared + 0.5);
        out[i] = least + (uint32_t)(end - given);
        given = end;
    }
}

float tkv_spread_of_queries(const float *stats, uint32_t group, uint32_t n_bands)
{
    double means = 0, sizes = 0;

    for (uint32_t g = 0; g < group; g++) {
        const float *re = stats + (size_t)g * 3 * n_bands;
        const float *im = re + n_bands, *abs = im + n_bands;

        for (uint32_t f = 0; f < n_bands; f++) {
            means += hypot((double)re[f], (double)im[f]);
            sizes += (double)abs[f];
        }
    }
    return sizes > 0 ? (float)fmax(1 - means / sizes, 0) : 0;
}

static uint32_t row_least(const struct tkv_score_row *row, uint32_t least)
{
    return row->n < least ? row->n : least;
}

/* What a row keeps if scores with this order (tkv_score_order) and better ones are kept. */
static uint32_t count_row(const struct tkv_score_row *row, uint32_t order, uint32_t least)
{
    const uint32_t at_least = row_least(row, least);
    uint32_t n = 0;

    for (uint32_t i = 0; i < row->n; i++)
        n += tkv_score_order(row->scores[i]) >= order;
    return n > at_least ? n : at_least;
}

static uint64_t count_all(const struct tkv_score_row *rows, uint32_t n_rows, uint32_t order,
                          uint32_t least)
{
    uint64_t n = 0;

    for (uint32_t r = 0; r < n_rows; r++)
        n += count_row(&rows[r], order, least);
    return n;
}

void tkv_allocate_adaptive(uint32_t *out, const struct tkv_score_row *rows, uint32_t n_rows,
                           uint64_t total, uint32_t least)
{
    uint32_t low = 0, high = UINT32_MAX; /* the lowest order that keeps no more than the total */
    uint64_t left = total;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;

        if (count_all(rows, n_rows, middle, least) <= total)
            high = middle;
        else
            low = middle + 1;
    }
    for (uint32_t r = 0; r < n_rows; r++) {
        out[r] = count_row(&rows[r], low, least);
        left -= out[r];
    }
    for (uint32_t r = 0; low > 0 && left > 0 && r < n_rows; r++) { /* ties just below it */
        const uint32_t more = count_row(&rows[r], low - 1, least) - out[r];
        const uint32_t n = more < left ? more : (uint32_t)left;

        out[r] += n;
        left -= n;
    }
}
