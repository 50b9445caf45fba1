/*
 * Norm terms of TriAttention in a byte. Those of a query head differ little among keys, above all where
 * keys are normalised, but it is their differences that count; so a code is a step on a ruler that the
 * head's first terms lay: base + step * code, 16 of their deviations long, with their mean in the
 * middle. Terms beyond its ends count as its ends.
 */
#ifndef TKV_CORE_RULER_H
#define TKV_CORE_RULER_H

#include "core/types.h"

struct tkv_ruler {
    float base, step;
};

/* From terms[n], n >= 1. One that varies by less than 1/32 of their mean is laid as if they did, in case
 * the first are more alike than those that come; if all are zero, as if their mean was `otherwise`. */
struct tkv_ruler tkv_ruler_lay(const float *terms, size_t n, float otherwise);

uint8_t tkv_ruler_code(const struct tkv_ruler *r, float term);

static inline float tkv_ruler_term(const struct tkv_ruler *r, uint8_t code)
{
    return r->base + r->step * (float)code;
}

#endif /* TKV_CORE_RULER_H */
