/* Which format a file has, and whether what it holds can be statistics. */
#include "tools/import.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/limits.h"
#include "tools/engine.h"

/* Makers round mean and magnitude apart: bands may be over by a little. */
#define MAX_EXCESS 1e-3

void tkv_import_deinit(struct tkv_import *im)
{
    free(im->statistics);
    *im = (struct tkv_import){0};
}

int tkv_import_alloc(struct tkv_import *im, struct tkv_reason *why)
{
    if (im->n_layers < 1 || im->n_layers > TRIKV_MAX_LAYERS)
        return tkv_reason_set(why, "n_layers: %u, want 1..%d", im->n_layers, TRIKV_MAX_LAYERS);
    if (im->n_q_heads < 1 || im->n_q_heads > TRIKV_MAX_HEADS)
        return tkv_reason_set(why, "n_q_heads: %u, want 1..%d", im->n_q_heads, TRIKV_MAX_HEADS);
    if (im->n_bands < 1 || im->n_bands > TKV_MAX_BANDS)
        return tkv_reason_set(why, "bands: %u, want 1..%d", im->n_bands, TKV_MAX_BANDS);
    im->statistics =
        calloc((size_t)im->n_layers * im->n_q_heads * 3 * im->n_bands, sizeof(*im->statistics));
    if (!im->statistics)
        return tkv_reason_set(why, "out of memory for %u layers, %u heads, %u bands", im->n_layers,
                              im->n_q_heads, im->n_bands);
    return 0;
}

float *tkv_import_head(const struct tkv_import *im, size_t layer, size_t head)
{
    return im->statistics + (layer * im->n_q_heads + head) * 3 * im->n_bands;
}

/* A band: finite, and |mean| <= mean_abs, which is raised by what rounding took from it. */
static bool mend_band(const float *re, const float *im, float *abs)
{
    const double mean = hypot((double)*re, (double)*im);

    if (!isfinite(*re) || !isfinite(*im) || !isfinite(*abs) || *abs < 0 ||
        mean > (double)*abs * (1 + MAX_EXCESS))
        return false;
    while ((double)*abs < mean)
        *abs = nextafterf(*abs, INFINITY);
    return true;
}

static int check_statistics(struct tkv_import *im, struct tkv_reason *why)
{
    for (size_t l = 0; l < im->n_layers; l++) {
        bool empty = true;

        for (size_t h = 0; h < im->n_q_heads; h++) {
            float *re = tkv_import_head(im, l, h), *imag = re + im->n_bands;
            float *abs = imag + im->n_bands;

            for (uint32_t f = 0; f < im->n_bands; f++) {
                if (!mend_band(&re[f], &imag[f], &abs[f]))
                    return tkv_reason_set(
                        why,
                        "layer %zu, query head %zu, band %u: mean %g %+gi, mean_abs %g: want "
                        "finite numbers and mean_abs >= |mean|",
                        l, h, f, (double)re[f], (double)imag[f], (double)abs[f]);
                empty &= !(abs[f] > 0);
            }
        }
        im->n_empty_layers += empty;
    }
    if (im->n_empty_layers == im->n_layers)
        return tkv_reason_set(why, "all statistics are zero");
    return 0;
}

int tkv_import_raw(struct tkv_import *im, const uint8_t *data, size_t n, uint32_t n_layers,
                   uint32_t n_q_heads, struct tkv_reason *why)
{
    const size_t per_band = (size_t)n_layers * n_q_heads * 3 * sizeof(float);
    int error;

    *im = (struct tkv_import){.format = "raw float32",
                              .n_layers = n_layers,
                              .n_q_heads = n_q_heads,
                              .n_bands = per_band ? (uint32_t)(n / per_band) : 0};
    if (!per_band || n % per_band || im->n_bands > TKV_MAX_BANDS)
        error = tkv_reason_set(why, "%zu bytes are no float32 [%u][%u][3][1..%d]", n, n_layers,
                               n_q_heads, TKV_MAX_BANDS);
    else
        error = tkv_import_alloc(im, why);
    if (!error) {
        memcpy(im->statistics, data, n);
        error = check_statistics(im, why);
    }
    if (error)
        tkv_import_deinit(im);
    return error;
}

int tkv_import_parse(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    int error;

    *im = (struct tkv_import){0};
    if (tkv_import_is_npz(data, n))
        error = tkv_import_npz(im, data, n, why);
    else if (n >= 4 && memcmp(data, "PK\3\4", 4) == 0)
        error = tkv_import_torch(im, data, n, why);
    else if (n >= 4 && memcmp(data, "AIRT", 4) == 0)
        error = tkv_import_tria(im, data, n, why);
    else
        error = tkv_reason_set(why, "neither a torch file or npz (PK) nor a TRIA file (AIRT)");
    if (!error)
        error = check_statistics(im, why);
    if (error)
        tkv_import_deinit(im);
    return error;
}

int tkv_import_read(struct tkv_import *im, const char *path, uint32_t n_layers, uint32_t n_q_heads,
                    struct tkv_reason *why)
{
    struct tkv_reason inner = {""};
    char *data = NULL;
    size_t n = 0;
    int error;

    *im = (struct tkv_import){0};
    if (tkv_engine_read_text(path, &data, &n, why))
        return -1;
    if (n > TKV_MAX_IMPORT_BYTES)
        error = tkv_reason_set(&inner, "%zu bytes, want at most %d", n, TKV_MAX_IMPORT_BYTES);
    else if (n_layers)
        error = tkv_import_raw(im, (const uint8_t *)data, n, n_layers, n_q_heads, &inner);
    else
        error = tkv_import_parse(im, (const uint8_t *)data, n, &inner);
    free(data);
    return error ? tkv_reason_set(why, "%s: %.300s", path, inner.text) : 0;
}
