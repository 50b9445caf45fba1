/*
 * RoPE frequencies and rotation. Frequencies follow the rules of the public
 * model configurations; a configuration that is not complete is refused, since a
 * guessed frequency gives scores that are wrong and look right.
 */
#include "core/rope.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

static bool at_least(double x, double low)
{
    return isfinite(x) && x >= low;
}

static const char *check_shape(const struct tkv_rope_params *p)
{
    if (p->head_dim < TKV_MIN_HEAD_DIM || p->head_dim > TKV_MAX_HEAD_DIM || p->head_dim % 2)
        return "head_dim must be even, 8 to 1024";
    if (p->rotary_dim > p->head_dim || p->rotary_dim % 2)
        return "rotary_dim must be even and at most head_dim";
    if (p->layout != TKV_ROPE_HALF && p->layout != TKV_ROPE_INTERLEAVED)
        return "layout must be half or interleaved";
    if (!isfinite(p->theta) || p->theta <= 1)
        return "theta must be above 1";
    return NULL;
}

static const char *check_llama3(const struct tkv_rope_params *p)
{
    if (!isfinite(p->low_freq_factor) || p->low_freq_factor <= 0)
        return "low_freq_factor must be above 0";
    if (!isfinite(p->high_freq_factor) || p->high_freq_factor <= p->low_freq_factor)
        return "high_freq_factor must be above low_freq_factor";
    return NULL;
}

static const char *check_yarn(const struct tkv_rope_params *p)
{
    const double fast = p->beta_fast == 0 ? 32 : p->beta_fast;
    const double slow = p->beta_slow == 0 ? 1 : p->beta_slow;

    if (!isfinite(slow) || slow <= 0)
        return "beta_slow must be above 0";
    if (!isfinite(fast) || fast <= slow)
        return "beta_fast must be above beta_slow";
    if (!at_least(p->attention_factor, 0))
        return "attention_factor must be above 0, or 0 for the default";
    return NULL;
}

static const char *check_scaling(const struct tkv_rope_params *p)
{
    switch (p->scaling) {
    case TKV_ROPE_DEFAULT: return NULL;
    case TKV_ROPE_LINEAR:
    case TKV_ROPE_LLAMA3:
    case TKV_ROPE_YARN: break;
    default: return "scaling must be default, linear, llama3 or yarn";
    }
    if (!at_least(p->factor, 1))
        return "factor must be at least 1";
    if (p->scaling == TKV_ROPE_LINEAR)
        return NULL;
    if (!p->original_context)
        return "original_context must be above 0";
    return p->scaling == TKV_ROPE_LLAMA3 ? check_llama3(p) : check_yarn(p);
}

/* Long wavelengths are stretched by factor, short ones kept, those between blended by how
 * many periods fit the original context. */
static double llama3_frequency(const struct tkv_rope_params *p, double w)
{
    const double periods = (double)p->original_context * w / (2 * pi);
    double t;

    if (periods < p->low_freq_factor)
        return w / p->factor;
    if (periods > p->high_freq_factor)
        return w;
    t = (periods - p->low_freq_factor) / (p->high_freq_factor - p->low_freq_factor);
    return (1 - t) * w / p->factor + t * w;
}

/* The band (fractional) that turns r times over the original context. */
static double yarn_band(const struct tkv_rope_params *p, double r)
{
    return (double)p->rotary_dim * log((double)p->original_context / (2 * pi * r)) /
           (2 * log(p->theta));
}

struct ramp {
    double low, high;
};

/* The bands between which YaRN goes from kept to stretched frequencies. */
static struct ramp yarn_ramp(const struct tkv_rope_params *p)
{
    struct ramp r = {
        .low = yarn_band(p, p->beta_fast == 0 ? 32 : p->beta_fast),
        .high = yarn_band(p, p->beta_slow == 0 ? 1 : p->beta_slow),
    };

    if (!p->no_truncate) {
        r.low = floor(r.low);
        r.high = ceil(r.high);
    }
    r.low = fmax(r.low, 0);
    r.high = fmin(r.high, (double)p->rotary_dim - 1);
    if (r.high <= r.low) /* the models' own guard against an empty ramp */
        r.high = r.low + 0.001;
    return r;
}

static double yarn_frequency(const struct tkv_rope_params *p, const struct ramp *r, uint32_t f,
                             double w)
{
    const double t = fmin(fmax(((double)f - r->low) / (r->high - r->low), 0), 1);

    return t * w / p->factor + (1 - t) * w;
}

static void fill_frequencies(struct tkv_rope *r, const struct tkv_rope_params *p)
{
    const uint32_t half = p->rotary_dim / 2;
    const struct ramp ramp = p->scaling == TKV_ROPE_YARN ? yarn_ramp(p) : (struct ramp){0};

    for (uint32_t f = 0; f < half; f++) {
        double w = pow(p->theta, -(double)f / (double)half);

        if (p->scaling == TKV_ROPE_LINEAR)
            w /= p->factor;
        else if (p->scaling == TKV_ROPE_LLAMA3)
            w = llama3_frequency(p, w);
        else if (p->scaling == TKV_ROPE_YARN)
            w = yarn_frequency(p, &ramp, f, w);
        r->inv_freq[f] = (float)w;
    }
}

const char *tkv_rope_init(struct tkv_rope *r, const struct tkv_rope_params *p)
{
    const char *wrong = check_shape(p);

    if (!wrong)
        wrong = check_scaling(p);
    if (wrong)
        return wrong;
    *r = (struct tkv_rope){
        .head_dim = p->head_dim,
        .rotary_dim = p->rotary_dim,
        .n_bands = p->head_dim / 2,
        .layout = p->layout,
        .attention_scaling = 1,
    };
    if (p->scaling == TKV_ROPE_YARN)
        r->attention_scaling =
            (float)(p->attention_factor > 0 ? p->attention_factor : 0.1 * log(p->factor) + 1);
    fill_frequencies(r, p);
    return NULL;
}

void tkv_rope_angles(const struct tkv_rope *r, int64_t position, float *cs)
{
    const double scaling = (double)r->attention_scaling;

    for (uint32_t f = 0; f < r->n_bands; f++) {
        const double angle = (double)position * (double)r->inv_freq[f];
        const double s = f < r->rotary_dim / 2 ? scaling : 1;

        cs[f] = (float)(s * cos(angle));
        cs[r->n_bands + f] = (float)(s * sin(angle));
    }
}

void tkv_rope_turn(const struct tkv_rope *r, const float *cs, const float *src, float *dst)
{
    for (uint32_t f = 0; f < r->n_bands; f++) {
        const float c = cs[f], s = cs[r->n_bands + f];
        uint32_t re, im;
        float a, b;

        tkv_rope_band(r, f, &re, &im);
        a = src[re];
        b = src[im];
        dst[re] = a * c - b * s;
        dst[im] = a * s + b * c;
    }
}

void tkv_rope_turn_back(const struct tkv_rope *r, const float *cs, const float *src, float *dst)
{
    const float unscale = 1 / (r->attention_scaling * r->attention_scaling);

    for (uint32_t f = 0; f < r->n_bands; f++) {
        const float factor = f < r->rotary_dim / 2 ? unscale : 1;
        const float c = cs[f] * factor, s = cs[r->n_bands + f] * factor;
        uint32_t re, im;
        float a, b;

        tkv_rope_band(r, f, &re, &im);
        a = src[re];
        b = src[im];
        dst[re] = a * c + b * s;
        dst[im] = b * c - a * s;
    }
}
