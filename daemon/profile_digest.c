#include "daemon/profile_digest.h"

#include <xxhash.h>

#include "daemon/profile.h"

const char *const tkv_digest_names[TKV_N_DIGESTS] = {"geometry", "rope", "statistics", "errors"};

static uint64_t digest_geometry(const struct tkv_profile *p)
{
    const uint32_t x[] = {p->n_layers, p->shape.n_q_heads, p->shape.n_kv_heads, p->shape.head_dim_k,
                          p->shape.head_dim_v};

    return XXH3_64bits(x, sizeof(x));
}

/* The parameters, not what follows from them: those are numbers of this machine's libm. */
static uint64_t digest_rope(const struct tkv_profile *p)
{
    const struct tkv_rope_params *r = &p->rope_params;
    const double x[] = {r->head_dim,
                        r->rotary_dim,
                        (double)r->layout,
                        (double)r->scaling,
                        r->theta,
                        r->factor,
                        r->low_freq_factor,
                        r->high_freq_factor,
                        r->beta_fast,
                        r->beta_slow,
                        r->attention_factor,
                        r->original_context,
                        r->no_truncate ? 1 : 0};

    return p->has_rope ? XXH3_64bits(x, sizeof(x)) : 0;
}

void tkv_profile_digest(const struct tkv_profile *p, uint64_t digest[TKV_N_DIGESTS])
{
    const size_t n_errors = (size_t)p->n_layers * p->shape.n_kv_heads * TKV_PLAN_ERRORS;

    digest[TKV_DIGEST_GEOMETRY] = digest_geometry(p);
    digest[TKV_DIGEST_ROPE] = digest_rope(p);
    digest[TKV_DIGEST_STATISTICS] =
        p->n_statistics ? XXH3_64bits(p->statistics, p->n_statistics * sizeof(float)) : 0;
    digest[TKV_DIGEST_ERRORS] = p->errors ? XXH3_64bits(p->errors, n_errors * sizeof(float)) : 0;
}
