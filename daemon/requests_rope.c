/* The rotary embedding that a client says its model has. */
#include <math.h>

#include "daemon/profile.h"
#include "daemon/requests.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

/* A parameter that a request may say; without it the rule's default holds. */
struct parameter {
    const char *field;
    bool has;
    double asked;
    double known; /* the profile's */
    double fallback;
};

enum { N_PARAMETERS = 7 };

static void list_parameters(const Trikv__Rope *r, const struct tkv_rope_params *q,
                            struct parameter *list)
{
    const struct parameter all[N_PARAMETERS] = {
        {"factor", r->has_factor, r->factor, q->factor, 0},
        {"low_freq_factor", r->has_low_freq_factor, r->low_freq_factor, q->low_freq_factor, 0},
        {"high_freq_factor", r->has_high_freq_factor, r->high_freq_factor, q->high_freq_factor, 0},
        {"original_context", r->has_original_context, r->original_context, q->original_context, 0},
        {"beta_fast", r->has_beta_fast, r->beta_fast, q->beta_fast, 32},
        {"beta_slow", r->has_beta_slow, r->beta_slow, q->beta_slow, 1},
        {"attention_factor", r->has_attention_factor, r->attention_factor, q->attention_factor,
         0.1 * log(q->factor > 1 ? q->factor : 1) + 1},
    };

    for (size_t i = 0; i < N_PARAMETERS; i++)
        list[i] = all[i];
}

/* Both come from the same text of a model's configuration: equal means equal. */
static bool differs(double a, double b)
{
    return a < b || a > b || a != a;
}

static int fail_text(struct tkv_report *why, const struct tkv_profile *p, const char *field,
                     const char *want, const char *got)
{
    return tkv_fail(why, TRIKV_E_GEOMETRY, "profile %s: rope.%s is %s, the session has %.32s",
                    p->name, field, want, got);
}

static int fail_real(struct tkv_report *why, const struct tkv_profile *p, const char *field,
                     double want, double got)
{
    return tkv_fail(why, TRIKV_E_GEOMETRY, "profile %s: rope.%s is %.17g, the session has %.17g",
                    p->name, field, want, got);
}

int tkv_rope_fits_profile(const struct tkv_profile *p, const Trikv__Rope *r, struct tkv_report *why)
{
    const struct tkv_rope_params *q = &p->rope_params;
    struct parameter list[N_PARAMETERS];

    if (!p->has_rope)
        return tkv_fail(why, TRIKV_E_GEOMETRY, "profile %s: says nothing of rope", p->name);
    if (differs(r->theta, q->theta))
        return fail_real(why, p, "theta", q->theta, r->theta);
    if (r->rotary_dim != q->rotary_dim)
        return fail_real(why, p, "rotary_dim", q->rotary_dim, r->rotary_dim);
    if (tkv_name_index(tkv_rope_layout_names, r->layout) != (int)q->layout)
        return fail_text(why, p, "layout", tkv_rope_layout_names[q->layout], r->layout);
    if (tkv_name_index(tkv_rope_scaling_names, r->scaling) != (int)q->scaling)
        return fail_text(why, p, "scaling", tkv_rope_scaling_names[q->scaling], r->scaling);
    list_parameters(r, q, list);
    for (size_t i = 0; i < N_PARAMETERS; i++) {
        const struct parameter *l = &list[i];
        const double known = l->known > 0 ? l->known : l->fallback;

        if (l->has && differs(l->asked, known))
            return fail_real(why, p, l->field, known, l->asked);
    }
    if (r->has_truncate && r->truncate == q->no_truncate)
        return fail_text(why, p, "truncate", q->no_truncate ? "false" : "true",
                         r->truncate ? "true" : "false");
    return TRIKV_OK;
}

int tkv_rope_from_request(const Trikv__Rope *r, uint32_t head_dim, struct tkv_rope_params *out,
                          struct tkv_report *why)
{
    const int layout = tkv_name_index(tkv_rope_layout_names, r->layout);
    const int scaling = tkv_name_index(tkv_rope_scaling_names, r->scaling);
    struct tkv_rope rope;
    const char *wrong;

    if (layout < 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "rope.layout: \"%.32s\" is unknown", r->layout);
    if (scaling < 0)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "rope.scaling: \"%.32s\" is unknown", r->scaling);
    if (r->rotary_dim < 2)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "rope.rotary_dim: %u, want at least 2",
                        r->rotary_dim);
    *out = (struct tkv_rope_params){
        .head_dim = head_dim,
        .rotary_dim = r->rotary_dim,
        .layout = (enum tkv_rope_layout)layout,
        .scaling = (enum tkv_rope_scaling)scaling,
        .theta = r->theta,
        .factor = r->has_factor ? r->factor : 0,
        .low_freq_factor = r->has_low_freq_factor ? r->low_freq_factor : 0,
        .high_freq_factor = r->has_high_freq_factor ? r->high_freq_factor : 0,
        .beta_fast = r->has_beta_fast ? r->beta_fast : 0,
        .beta_slow = r->has_beta_slow ? r->beta_slow : 0,
        .attention_factor = r->has_attention_factor ? r->attention_factor : 0,
        .original_context = r->has_original_context ? r->original_context : 0,
        .no_truncate = r->has_truncate && !r->truncate,
    };
    wrong = tkv_rope_init(&rope, out);
    return wrong ? tkv_fail(why, TRIKV_E_ARGUMENT, "rope: %s", wrong) : TRIKV_OK;
}
