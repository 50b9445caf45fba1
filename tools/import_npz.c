/*
 * Arrays of numpy in a zip, stored or deflated: q_mean_re, q_mean_im and q_abs_mean, float32
 * [layer][query head][band]; and inv_freq [band], if it is there, which what is said of RoPE has to
 * agree with. Everything else in the file is not looked at.
 */
#include <stdlib.h>
#include <string.h>

#include "tools/import.h"
#include "tools/npy.h"
#include "tools/zip.h"

enum { MAX_ARRAY_BYTES = TKV_MAX_IMPORT_BYTES };

static const char *const parts[] = {"q_mean_re.npy", "q_mean_im.npy", "q_abs_mean.npy"};

static const struct tkv_zip_member *find(const struct tkv_zip *z, const char *name)
{
    return tkv_zip_find(z, name, strlen(name));
}

bool tkv_import_is_npz(const uint8_t *data, size_t n)
{
    struct tkv_reason why = {""};
    struct tkv_zip z;
    bool is = false;

    if (tkv_zip_parse(&z, data, n, &why) == 0)
        is = find(&z, parts[0]) != NULL;
    tkv_zip_deinit(&z);
    return is;
}

/* A member as an array, in *bytes, which the caller frees. */
static int open_array(const struct tkv_zip_member *m, struct tkv_npy *a, uint8_t **bytes,
                      struct tkv_reason *why)
{
    *bytes = NULL;
    if (m->n_bytes == 0 || m->n_bytes > MAX_ARRAY_BYTES)
        return tkv_reason_set(why, "%zu bytes, want 1..%d", m->n_bytes, MAX_ARRAY_BYTES);
    *bytes = malloc(m->n_bytes);
    if (!*bytes)
        return tkv_reason_set(why, "out of memory for %zu bytes", m->n_bytes);
    return tkv_zip_read(m, *bytes, why) || tkv_npy_parse(a, *bytes, m->n_bytes, why) ? -1 : 0;
}

/* The first part says the geometry, the others must have it, too. */
static int take_geometry(struct tkv_import *im, const struct tkv_npy *a, size_t part,
                         struct tkv_reason *why)
{
    if (a->n_dims != 3)
        return tkv_reason_set(why, "%u dimensions, want [layer][query head][band]", a->n_dims);
    if (part == 0) {
        im->n_layers = a->shape[0];
        im->n_q_heads = a->shape[1];
        im->n_bands = a->shape[2];
        im->head_dim = 2 * im->n_bands;
        return tkv_import_alloc(im, why);
    }
    if (a->shape[0] != im->n_layers || a->shape[1] != im->n_q_heads || a->shape[2] != im->n_bands)
        return tkv_reason_set(why, "[%u][%u][%u], %s is [%u][%u][%u]", a->shape[0], a->shape[1],
                              a->shape[2], parts[0], im->n_layers, im->n_q_heads, im->n_bands);
    return 0;
}

static void copy_part(struct tkv_import *im, const struct tkv_npy *a, size_t part)
{
    const size_t row_bytes = im->n_bands * sizeof(float);

    for (size_t i = 0; i < (size_t)im->n_layers * im->n_q_heads; i++)
        memcpy(im->statistics + (i * 3 + part) * im->n_bands, a->values + i * row_bytes, row_bytes);
}

static int read_part(struct tkv_import *im, const struct tkv_zip *z, size_t part,
                     struct tkv_reason *why)
{
    const struct tkv_zip_member *m = find(z, parts[part]);
    struct tkv_reason inner = {""};
    struct tkv_npy a;
    uint8_t *bytes;
    int error;

    if (!m)
        return tkv_reason_set(why, "npz: no member %s", parts[part]);
    error = open_array(m, &a, &bytes, &inner) || take_geometry(im, &a, part, &inner);
    if (!error)
        copy_part(im, &a, part);
    free(bytes);
    return error ? tkv_reason_set(why, "%s: %.250s", parts[part], inner.text) : 0;
}

static int read_frequencies(struct tkv_import *im, const struct tkv_zip *z, struct tkv_reason *why)
{
    const struct tkv_zip_member *m = find(z, "inv_freq.npy");
    struct tkv_reason inner = {""};
    struct tkv_npy a;
    uint8_t *bytes;
    int error;

    if (!m)
        return 0;
    error = open_array(m, &a, &bytes, &inner);
    if (!error && (a.n_dims != 1 || a.shape[0] != im->n_bands))
        error = tkv_reason_set(&inner, "want %u numbers, one for each band", im->n_bands);
    if (!error) {
        memcpy(im->inv_freq, a.values, im->n_bands * sizeof(float));
        im->has_inv_freq = true;
    }
    free(bytes);
    return error ? tkv_reason_set(why, "inv_freq.npy: %.250s", inner.text) : 0;
}

int tkv_import_npz(struct tkv_import *im, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    struct tkv_zip z;
    int error = tkv_zip_parse(&z, data, n, why);

    (void)strcpy(im->format, "npz");
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]) && !error; i++)
        error = read_part(im, &z, i, why);
    error = error ? error : read_frequencies(im, &z, why);
    tkv_zip_deinit(&z);
    return error;
}
