/*
 * A header is "\x93NUMPY", a version, its length and a dict of three keys in any order, with spaces
 * wherever Python allows them:
 *
 *   {'descr': '<f4', 'fortran_order': False, 'shape': (28, 16, 64), }
 */
#include "tools/npy.h"

#include <stdbool.h>
#include <string.h>

enum {
    PREFIX_BYTES = 8,
    MAX_HEADER_BYTES = 4096,
    MAX_SIDE = 1 << 20, /* numbers along a dimension */
    SEEN_DESCR = 1,
    SEEN_ORDER = 2,
    SEEN_SHAPE = 4,
};

/* What is left of the header. */
struct text {
    const char *p;
    size_t n;
};

static void skip_spaces(struct text *t)
{
    while (t->n > 0 && (*t->p == ' ' || *t->p == '\n')) {
        t->p++;
        t->n--;
    }
}

/* The next word is this; then it is taken. */
static bool take(struct text *t, const char *word)
{
    const size_t n = strlen(word);

    skip_spaces(t);
    if (t->n < n || memcmp(t->p, word, n) != 0)
        return false;
    t->p += n;
    t->n -= n;
    return true;
}

static bool take_number(struct text *t, uint32_t *out)
{
    size_t n = 0;

    skip_spaces(t);
    *out = 0;
    for (; n < t->n && n < 8 && t->p[n] >= '0' && t->p[n] <= '9'; n++)
        *out = *out * 10 + (uint32_t)(t->p[n] - '0');
    t->p += n;
    t->n -= n;
    return n > 0 && *out <= MAX_SIDE;
}

static bool take_shape(struct tkv_npy *a, struct text *t)
{
    bool more = true; /* a comma, or the beginning */

    if (!take(t, "("))
        return false;
    a->n_values = 1;
    while (!take(t, ")")) {
        uint32_t *side = &a->shape[a->n_dims];

        if (!more || a->n_dims == TKV_NPY_MAX_DIMS || !take_number(t, side) ||
            __builtin_mul_overflow(a->n_values, *side, &a->n_values))
            return false;
        a->n_dims++;
        more = take(t, ",");
    }
    return a->n_values <= SIZE_MAX / sizeof(float);
}

static int wrong(struct tkv_reason *why)
{
    return tkv_reason_set(why,
                          "npy: want {'descr': '<f4', 'fortran_order': False, 'shape': (...)}, "
                          "at most %d dimensions",
                          TKV_NPY_MAX_DIMS);
}

static int read_dict(struct tkv_npy *a, struct text *t, struct tkv_reason *why)
{
    unsigned seen = 0;

    if (!take(t, "{"))
        return wrong(why);
    while (!take(t, "}")) {
        unsigned key = 0;
        bool good = false;

        if (take(t, "'descr'") && take(t, ":")) {
            key = SEEN_DESCR;
            good = take(t, "'<f4'");
        } else if (take(t, "'fortran_order'") && take(t, ":")) {
            key = SEEN_ORDER;
            good = take(t, "False");
        } else if (take(t, "'shape'") && take(t, ":")) {
            key = SEEN_SHAPE;
            good = take_shape(a, t);
        }
        if (!good || seen & key)
            return wrong(why);
        seen |= key;
        if (!take(t, ",") && !(t->n > 0 && *t->p == '}'))
            return wrong(why);
    }
    skip_spaces(t);
    return t->n == 0 && seen == (SEEN_DESCR | SEEN_ORDER | SEEN_SHAPE) ? 0 : wrong(why);
}

int tkv_npy_parse(struct tkv_npy *a, const uint8_t *data, size_t n, struct tkv_reason *why)
{
    size_t at = PREFIX_BYTES, n_header;
    struct text t;

    *a = (struct tkv_npy){0};
    if (n < PREFIX_BYTES + 4 || memcmp(data, "\x93NUMPY", 6) != 0)
        return tkv_reason_set(why, "npy: not an array of numpy");
    n_header = (size_t)data[at] | (size_t)data[at + 1] << 8;
    at += 2;
    if (data[6] == 2 || data[6] == 3) {
        n_header |= (size_t)data[at] << 16 | (size_t)data[at + 1] << 24;
        at += 2;
    } else if (data[6] != 1) {
        return tkv_reason_set(why, "npy: version %u, want 1 to 3", data[6]);
    }
    if (n_header > MAX_HEADER_BYTES || n_header > n - at)
        return tkv_reason_set(why, "npy: a header of %zu bytes goes beyond the end", n_header);
    t = (struct text){(const char *)data + at, n_header};
    if (read_dict(a, &t, why))
        return -1;
    at += n_header;
    if (n - at != a->n_values * sizeof(float))
        return tkv_reason_set(why, "npy: %zu bytes of numbers, the shape says %zu", n - at,
                              a->n_values * sizeof(float));
    a->values = data + at;
    return 0;
}
