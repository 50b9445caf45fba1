/* Whether a profile fits a model. */
#ifndef TKV_TOOLS_PROFILE_FIT_H
#define TKV_TOOLS_PROFILE_FIT_H

#include "daemon/profile.h"
#include "tools/reason.h"

/* 0 and NULL: not said. */
struct tkv_profile_wish {
    const char *model; /* a GGUF file */
    uint32_t n_layers, n_q_heads, n_kv_heads;
    uint32_t head_dim; /* of keys */
    double theta;
    const char *fingerprint;
};

/* Is anything said? */
bool tkv_profile_wishes(const struct tkv_profile_wish *w);

/* 0, or -1 with a text that names the first field that differs. */
int tkv_profile_fit(const struct tkv_profile *p, const struct tkv_profile_wish *w,
                    struct tkv_reason *why);

/* How many of a head's bands have a concentration over 0.95. */
uint32_t tkv_profile_sharp_bands(const struct tkv_profile *p, uint32_t layer, uint32_t head);

#endif /* TKV_TOOLS_PROFILE_FIT_H */
