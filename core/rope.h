/*
 * Rotary position embedding: frequencies by the rules of the models in use,
 * rotation forward and back. Source: RoFormer (arXiv 2104.09864); llama3 and
 * YaRN (arXiv 2309.00071) frequency rules as the public model configurations
 * define them.
 *
 * Band f of a vector x is the complex number x[re(f)] + i x[im(f)]; position p
 * turns it by p * inv_freq[f] and multiplies it by attention_scaling. Dimensions
 * beyond rotary_dim are not turned: their bands have inv_freq 0 and no scaling.
 */
#ifndef TKV_CORE_ROPE_H
#define TKV_CORE_ROPE_H

#include "core/types.h"

/* Which two elements form band f < rotary_dim/2: (f, f + rotary_dim/2) or (2f, 2f + 1).
 * Bands of the dimensions that are not turned are neighbours, in both layouts. */
enum tkv_rope_layout { TKV_ROPE_HALF = 0, TKV_ROPE_INTERLEAVED = 1 };

enum tkv_rope_scaling {
    TKV_ROPE_DEFAULT = 0,
    TKV_ROPE_LINEAR = 1,
    TKV_ROPE_LLAMA3 = 2,
    TKV_ROPE_YARN = 3
};

/* What a model's configuration says. Unused fields are 0. */
struct tkv_rope_params {
    uint32_t head_dim;
    uint32_t rotary_dim; /* even, <= head_dim */
    enum tkv_rope_layout layout;
    enum tkv_rope_scaling scaling;
    double theta;              /* base; must be > 1: never guessed */
    double factor;             /* linear, llama3, yarn: >= 1 */
    double low_freq_factor;    /* llama3 */
    double high_freq_factor;   /* llama3 */
    double beta_fast;          /* yarn, 0 means 32 */
    double beta_slow;          /* yarn, 0 means 1 */
    double attention_factor;   /* yarn, 0 means 0.1 ln(factor) + 1 */
    uint32_t original_context; /* llama3, yarn: tokens */
    bool no_truncate;          /* yarn: keep the correction range fractional (gpt-oss) */
};

struct tkv_rope {
    uint32_t head_dim;
    uint32_t rotary_dim;
    uint32_t n_bands; /* head_dim / 2 */
    enum tkv_rope_layout layout;
    float attention_scaling;
    float inv_freq[TKV_MAX_BANDS]; /* radians per token, rounded to float as the models do */
};

/* Fill *r. Returns NULL, or a static text that names the wrong field; *r is then undefined. */
const char *tkv_rope_init(struct tkv_rope *r, const struct tkv_rope_params *p);

/* The two element indices of band f < n_bands. */
static inline void tkv_rope_band(const struct tkv_rope *r, uint32_t f, uint32_t *re, uint32_t *im)
{
    const uint32_t half = r->rotary_dim / 2;

    if (f >= half || r->layout == TKV_ROPE_INTERLEAVED) {
        *re = 2 * f;
        *im = 2 * f + 1;
    } else {
        *re = f;
        *im = f + half;
    }
}

/* cs[2 * n_bands]: scaled cosines, then scaled sines, of a position; computed in double.
 * Entries of bands that are not turned are 1 and 0. */
void tkv_rope_angles(const struct tkv_rope *r, int64_t position, float *cs);

/* dst[head_dim] = src turned by the angles cs (tkv_rope_angles). dst may be src. */
void tkv_rope_turn(const struct tkv_rope *r, const float *cs, const float *src, float *dst);

/* The inverse: turns back and divides the scaling out. */
void tkv_rope_turn_back(const struct tkv_rope *r, const float *cs, const float *src, float *dst);

#endif /* TKV_CORE_ROPE_H */
