/*
 * Lloyd-Max by Lloyd's iteration, in u = t / sqrt(d) and on the positive half:
 * cell i lies between the boundaries i and i + 1, the first of which is 0 and the
 * last 1. Mass and first moment of a cell come from closed forms, not quadrature.
 */
#include "core/codebook.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { HALF_LEVELS = TKV_MAX_LEVELS / 2 };

/* (1 - u^2)^(m / 2) by squaring: pow() may round differently from libm to libm. */
static double half_power(double u, uint32_t m)
{
    double base = 1 - u * u;
    double result = m % 2 ? sqrt(base) : 1;

    for (m /= 2; m; m /= 2) {
        if (m % 2)
            result *= base;
        base *= base;
    }
    return result;
}

/*
 * Integral of (1 - v^2)^p over 0..1, p = (d - 3) / 2:
 * I_p = 2p / (2p + 1) I_(p - 1), I_(1/2) = pi / 4, I_1 = 2 / 3.
 */
static double total_mass(uint32_t d)
{
    double mass = d % 2 ? 2.0 / 3 : 3.14159265358979323846 / 4;

    for (uint32_t k = d % 2 ? 5 : 4; k < d; k += 2)
        mass *= (double)(k - 1) / (double)k;
    return mass;
}

/*
 * Integral of (1 - v^2)^p over 0..u, the incomplete beta function's series
 *
 *     u (1 - u^2)^(p + 1) sum over k of u^(2k) prod over j < k of (p + 3/2 + j) / (3/2 + j)
 *
 * (NIST DLMF 8.17.8). All terms are positive, so nothing cancels.
 */
static double mass_below(double u, uint32_t d)
{
    double sum = 0, term = 1;

    for (unsigned k = 0; term > 1e-17 * sum; k++) {
        sum += term;
        term *= u * u * ((double)d / 2 + (double)k) / (1.5 + (double)k);
    }
    return u * half_power(u, d - 1) * sum;
}

/* Integral of v (1 - v^2)^p over u..1. */
static double moment_above(double u, uint32_t d)
{
    return half_power(u, d - 1) / (double)(d - 1);
}

/* centroid[n] of the cells between 0, edge[1] ... edge[n - 1], 1; returns sum of mass * centroid^2,
 * with the masses of the half line adding up to 1. */
static double find_centroids(const double *edge, uint32_t n, uint32_t d, double *centroid)
{
    const double all = total_mass(d);
    double energy = 0;
    double mass_low = 0, moment_low = moment_above(0, d);

    for (uint32_t i = 0; i < n; i++) {
        const bool last = i + 1 == n;
        const double mass_high = last ? all : mass_below(edge[i + 1], d);
        const double moment_high = last ? 0 : moment_above(edge[i + 1], d);

        centroid[i] = (moment_low - moment_high) / (mass_high - mass_low);
        energy += (moment_low - moment_high) * centroid[i];
        mass_low = mass_high;
        moment_low = moment_high;
    }
    return energy / all;
}

/* Moves the boundaries midway between the centroids; returns the largest move. */
static double move_edges(double *edge, uint32_t n, const double *centroid)
{
    double moved = 0;

    for (uint32_t i = 1; i < n; i++) {
        const double middle = (centroid[i - 1] + centroid[i]) / 2;

        moved = fmax(moved, fabs(middle - edge[i]));
        edge[i] = middle;
    }
    return moved;
}

void tkv_codebook_init(struct tkv_codebook *c, uint32_t dim, uint32_t bits)
{
    const uint32_t n = 1u << (bits - 1); /* levels on each side */
    const double root = sqrt((double)dim);
    double edge[HALF_LEVELS] = {0}, centroid[HALF_LEVELS];
    double energy;

    assert(bits >= 1 && bits <= TKV_MAX_CODE_BITS && dim >= 4);
    memset(c, 0, sizeof(*c));
    c->bits = bits;
    c->n_levels = 2 * n;
    for (uint32_t i = 1; i < n; i++) /* any start below 1 will do: the density is log-concave */
        edge[i] = (double)i / (double)n / (root / 2);
    do
        energy = find_centroids(edge, n, dim, centroid);
    while (move_edges(edge, n, centroid) > 1e-12); /* well above the rounding of the masses */
    for (uint32_t i = 0; i < n; i++) {
        c->centroid[n + i] = root * centroid[i];
        c->centroid[n - 1 - i] = -c->centroid[n + i];
    }
    for (uint32_t i = 0; i + 1 < c->n_levels; i++)
        c->boundary[i] = (c->centroid[i] + c->centroid[i + 1]) / 2;
    /* E t^2 = 1, and the centroids are conditional means. */
    c->mse = 1 - (double)dim * energy;
}

double tkv_sphere_mean_abs(uint32_t dim)
{
    return moment_above(0, dim) / total_mass(dim);
}
