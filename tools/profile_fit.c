/* Against numbers given by hand, and against what a model file says of itself. */
#include "tools/profile_fit.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/calibration.h"
#include "tools/model.h"

bool tkv_profile_wishes(const struct tkv_profile_wish *w)
{
    return w->model || w->n_layers || w->n_q_heads || w->n_kv_heads || w->head_dim ||
           w->theta > 0 || w->fingerprint;
}

static int fit_counts(const struct tkv_profile *p, const struct tkv_profile_wish *w,
                      struct tkv_reason *why)
{
    const struct {
        const char *field;
        uint32_t want, got;
    } counts[] = {
        {"n_layers", w->n_layers, p->n_layers},
        {"n_q_heads", w->n_q_heads, p->shape.n_q_heads},
        {"n_kv_heads", w->n_kv_heads, p->shape.n_kv_heads},
        {"head_dim", w->head_dim, p->shape.head_dim_k},
    };

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        if (counts[i].want && counts[i].want != counts[i].got)
            return tkv_reason_set(why, "%s: the profile has %u, the model %u", counts[i].field,
                                  counts[i].got, counts[i].want);
    }
    return 0;
}

static int fit_names(const struct tkv_profile *p, const struct tkv_profile_wish *w,
                     struct tkv_reason *why)
{
    if (w->theta > 0 &&
        (!p->has_rope || w->theta < p->rope_params.theta || w->theta > p->rope_params.theta))
        return tkv_reason_set(why, "rope.theta: the profile has %.17g, the model %.17g",
                              p->has_rope ? p->rope_params.theta : 0, w->theta);
    if (w->fingerprint && strcmp(p->fingerprint, "none") != 0 &&
        strcmp(p->fingerprint, w->fingerprint) != 0)
        return tkv_reason_set(why, "fingerprint: the profile has %s, the model %s", p->fingerprint,
                              w->fingerprint);
    return 0;
}

/* Frequencies as computed: whatever rule they came by, they are what turns the keys. */
static int fit_rope(const struct tkv_profile *p, const struct tkv_model_config *c,
                    struct tkv_reason *why)
{
    if (!p->has_rope)
        return tkv_reason_set(why, "rope: the profile says nothing of it");
    if (p->rope.layout != c->rope.layout)
        return tkv_reason_set(why, "rope.layout: the profile has %s, the model %s",
                              tkv_rope_layout_names[p->rope.layout],
                              tkv_rope_layout_names[c->rope.layout]);
    if (p->rope.rotary_dim != c->rope.rotary_dim)
        return tkv_reason_set(why, "rope.rotary_dim: the profile has %u, the model %u",
                              p->rope.rotary_dim, c->rope.rotary_dim);
    if (p->rope_params.scaling != c->rope_params.scaling)
        return tkv_reason_set(why, "rope.scaling: the profile has %s, the model %s",
                              tkv_rope_scaling_names[p->rope_params.scaling],
                              tkv_rope_scaling_names[c->rope_params.scaling]);
    for (uint32_t f = 0; f < p->rope.n_bands; f++) {
        const double ours = (double)p->rope.inv_freq[f], theirs = (double)c->rope.inv_freq[f];

        if (ours < theirs * (1 - 1e-5) || ours > theirs * (1 + 1e-5))
            return tkv_reason_set(why, "rope: band %u turns by %.9g a token, in the model by %.9g",
                                  f, ours, theirs);
    }
    return 0;
}

static int fit_model(const struct tkv_profile *p, const char *path, struct tkv_reason *why)
{
    struct tkv_model_config c;
    struct tkv_profile_wish w = {0};
    char fingerprint[32];
    struct tkv_gguf g;
    int error;

    if (tkv_gguf_open(&g, path, why))
        return -1;
    error = tkv_model_read_config(&c, &g, why);
    tkv_gguf_close(&g);
    if (error)
        return -1;
    snprintf(fingerprint, sizeof(fingerprint), "xxh3:%016" PRIx64, c.fingerprint);
    w.n_layers = c.n_layers;
    w.n_q_heads = c.shape.n_q_heads;
    w.n_kv_heads = c.shape.n_kv_heads;
    w.head_dim = c.shape.head_dim_k;
    w.theta = c.rope_params.theta;
    w.fingerprint = fingerprint;
    if (fit_counts(p, &w, why))
        return -1;
    if (p->shape.head_dim_v != c.shape.head_dim_v)
        return tkv_reason_set(why, "head_dim_v: the profile has %u, the model %u",
                              p->shape.head_dim_v, c.shape.head_dim_v);
    return fit_names(p, &w, why) || fit_rope(p, &c, why) ? -1 : 0;
}

int tkv_profile_fit(const struct tkv_profile *p, const struct tkv_profile_wish *w,
                    struct tkv_reason *why)
{
    if (fit_counts(p, w, why) || fit_names(p, w, why))
        return -1;
    return w->model ? fit_model(p, w->model, why) : 0;
}

uint32_t tkv_profile_sharp_bands(const struct tkv_profile *p, uint32_t layer, uint32_t head)
{
    const uint32_t n_bands = p->shape.head_dim_k / 2;
    const float *m = tkv_profile_layer_statistics(p, layer) + (size_t)head * 3 * n_bands;
    uint32_t n = 0;

    for (uint32_t f = 0; f < n_bands; f++)
        n += tkv_concentration((double)m[f], (double)m[n_bands + f], (double)m[2 * n_bands + f]) >
             0.95;
    return n;
}
