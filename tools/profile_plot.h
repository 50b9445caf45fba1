/* A picture of a profile: how concentrated queries are, by layer and band and by layer and head. */
#ifndef TKV_TOOLS_PROFILE_PLOT_H
#define TKV_TOOLS_PROFILE_PLOT_H

#include <stdio.h>

#include "daemon/profile.h"

/* SVG that needs nothing else. The profile has statistics. */
void tkv_profile_plot(FILE *out, const struct tkv_profile *p);

/* Concentration of a layer's band over all query heads, of a head over all bands, and of a
 * layer over both; each the magnitude of means over the mean of magnitudes. */
double tkv_profile_band_r(const struct tkv_profile *p, uint32_t layer, uint32_t band);
double tkv_profile_head_r(const struct tkv_profile *p, uint32_t layer, uint32_t head);
double tkv_profile_layer_r(const struct tkv_profile *p, uint32_t layer);

#endif /* TKV_TOOLS_PROFILE_PLOT_H */
