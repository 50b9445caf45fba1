/*
 * Lloyd-Max codebooks for one coordinate of a random unit vector in d
 * dimensions, whose density is proportional to (1 - u^2)^((d - 3) / 2)
 * (arXiv 2504.19874, Lemma 1). All numbers are in unit variance, t = sqrt(d) u.
 *
 * Computed with + - * / and sqrt only, in a fixed order, so that a codebook, and
 * with it every packed byte, is the same on every machine.
 */
#ifndef TKV_CORE_CODEBOOK_H
#define TKV_CORE_CODEBOOK_H

#include "core/types.h"

enum { TKV_MAX_CODE_BITS = 4, TKV_MAX_LEVELS = 1 << TKV_MAX_CODE_BITS };

struct tkv_codebook {
    uint32_t bits;
    uint32_t n_levels;
    double centroid[TKV_MAX_LEVELS];     /* ascending, antisymmetric */
    double boundary[TKV_MAX_LEVELS - 1]; /* midway between neighbours */
    double mse;                          /* E (t - centroid)^2 */
};

/* bits 1..TKV_MAX_CODE_BITS, dim >= 4. Takes some milliseconds: keep the result. */
void tkv_codebook_init(struct tkv_codebook *c, uint32_t dim, uint32_t bits);

/* E |u_1| for a random unit vector in dim >= 4 dimensions, by the same means. */
double tkv_sphere_mean_abs(uint32_t dim);

#endif /* TKV_CORE_CODEBOOK_H */
