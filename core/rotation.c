/*
 * The rotation's parts: signs from SplitMix64, a Hartley table, and the transform.
 * The table is made with + - * / only, since a libm may round differently and
 * packed bytes must not depend on it.
 */
#include "core/rotation.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/kernels.h"

/* SplitMix64 (Steele, Lea, Flood 2014): the next draw of a stream. */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Coordinate j takes bit j % 64 of draw j / 64. */
static void fill_signs(float *signs, uint32_t dim, uint64_t seed, float scale)
{
    uint64_t bits = 0;

    for (uint32_t j = 0; j < dim; j++) {
        if (j % 64 == 0)
            bits = draw(&seed);
        signs[j] = bits >> j % 64 & 1 ? -scale : scale;
    }
}

/*
 * cas(2 pi k / n) = cos + sin = the real plus the imaginary part of exp(i x). The
 * angle is brought to (-pi, pi]; the series then needs x^k / k! < 1e-17, which
 * k = 36 gives, and loses some 1e-15 to cancellation: far below a float's rounding.
 */
static double cas(uint32_t k, uint32_t n)
{
    const double turn = 2 * k > n ? (double)k - (double)n : (double)k;
    const double x = 2 * 3.14159265358979323846 * turn / (double)n;
    double sum = 0, term = 1;

    for (unsigned i = 0; i < 36; i++) {
        sum += i % 4 < 2 ? term : -term;
        term *= x / (double)(i + 1);
    }
    return sum;
}

void tkv_rotation_init(struct tkv_rotation *r, uint32_t dim, uint64_t seed, float *room)
{
    assert(dim >= TKV_MIN_HEAD_DIM && dim <= TKV_MAX_HEAD_DIM && dim % 2 == 0);
    *r =
        (struct tkv_rotation){.dim = dim, .pow2 = dim & -dim, .signs = room, .hartley = room + dim};
    r->odd = dim / r->pow2;
    r->scale = (float)(1 / sqrt((double)dim));
    fill_signs(room, dim, seed, r->scale);
    for (uint32_t k = 0; k < r->odd; k++)
        room[dim + k] = (float)cas(k, r->odd);
}

/* y[pow2] += weight * x[pow2] */
static void add_row(float *restrict y, const float *restrict x, float weight, uint32_t pow2)
{
    for (uint32_t b = 0; b < pow2; b++)
        y[b] += weight * x[b];
}

/*
 * With x seen as [odd][pow2]: Walsh-Hadamard along the rows, then
 *
 *     y[k][b] = sum over a of cas(2 pi a k / odd) x[a][b]
 *
 * down the columns, a ascending. Symmetric, and its own inverse but for a factor dim.
 */
static void mix_columns(const struct tkv_rotation *r, float *x)
{
    float y[TKV_MAX_HEAD_DIM];

    memset(y, 0, r->dim * sizeof(*y));
    for (uint32_t k = 0; k < r->odd; k++)
        for (uint32_t a = 0; a < r->odd; a++)
            add_row(y + k * r->pow2, x + a * r->pow2, r->hartley[a * k % r->odd], r->pow2);
    memcpy(x, y, r->dim * sizeof(*x));
}

static void transform(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *y,
                      const void *x, enum tkv_dtype type, const float *factor)
{
    for (uint32_t at = 0; at < r->dim; at += r->pow2)
        kn->fwht(y + at, (const uint8_t *)x + at * tkv_dtype_bytes(type), type,
                 factor ? factor + at : NULL, r->pow2);
    if (r->odd > 1)
        mix_columns(r, y);
}

typedef float floats4 __attribute__((vector_size(16)));

static void apply_signs(const struct tkv_rotation *r, float *x)
{
    uint32_t j = 0;

    for (; j + 4 <= r->dim; j += 4) {
        floats4 v, sign;

        memcpy(&v, x + j, sizeof(v));
        memcpy(&sign, r->signs + j, sizeof(sign));
        v *= sign;
        memcpy(x + j, &v, sizeof(v));
    }
    for (; j < r->dim; j++)
        x[j] *= r->signs[j];
}

void tkv_rotate(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *y,
                const float *x)
{
    transform(r, kn, y, x, TKV_F32, r->signs);
}

void tkv_rotate_vector(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *y,
                       const struct tkv_vectors *x)
{
    transform(r, kn, y, x->x, x->type, r->signs);
}

void tkv_unrotate(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *x)
{
    transform(r, kn, x, x, TKV_F32, NULL);
    apply_signs(r, x);
}
