/*
 * The seeded randomised rotation that TurboQuant applies before coding: signs,
 * then an orthogonal transform that mixes all channels (arXiv 2504.19874,
 * section 3; the Hadamard form is the usual fast one).
 *
 * dim = pow2 * odd. For odd = 1 the transform is Walsh-Hadamard. Otherwise it is
 * the Kronecker product of a discrete Hartley transform of size odd (orthogonal,
 * its own inverse, no zero entry) and a Walsh-Hadamard transform of size pow2:
 * exact orthogonality for every dimension and no padding.
 */
#ifndef TKV_CORE_ROTATION_H
#define TKV_CORE_ROTATION_H

#include "core/types.h"

struct tkv_kernels;

struct tkv_rotation {
    uint32_t dim;
    uint32_t pow2;
    uint32_t odd;
    float scale;          /* 1 / sqrt(dim) */
    const float *signs;   /* [dim] +scale or -scale */
    const float *hartley; /* [odd] cas(2 pi k / odd) */
};

enum { TKV_ROTATION_ROOM = TKV_MAX_HEAD_DIM + TKV_MAX_HEAD_DIM / 2 };

/* Floats that the tables of a rotation take, at most TKV_ROTATION_ROOM. */
static inline size_t tkv_rotation_room(uint32_t dim)
{
    return dim + dim / (dim & -dim);
}

/* dim is even, TKV_MIN_HEAD_DIM..TKV_MAX_HEAD_DIM. Same seed, same rotation, on every machine. Its tables
 * are laid into room[tkv_rotation_room(dim)], which must stay where it is. */
void tkv_rotation_init(struct tkv_rotation *r, uint32_t dim, uint64_t seed, float *room);

/* y[dim] = x[dim] rotated; y may be x. Same bits on every CPU. */
void tkv_rotate(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *y,
                const float *x);

/* The same of the first of some vectors, dim elements. */
void tkv_rotate_vector(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *y,
                       const struct tkv_vectors *x);

/* The inverse (transpose), in place. */
void tkv_unrotate(const struct tkv_rotation *r, const struct tkv_kernels *kn, float *x);

#endif /* TKV_CORE_ROTATION_H */
