/* What two profiles have different. */
#ifndef TKV_TOOLS_PROFILE_DIFF_H
#define TKV_TOOLS_PROFILE_DIFF_H

#include <stdio.h>

#include "daemon/profile.h"

/* Print fields that differ and, of profiles of one geometry, the heads that moved: the ten that
 * moved most, or all. 0 if nothing differs, 1 if something does, -1 if memory is short. */
int tkv_profile_diff(FILE *out, const struct tkv_profile *a, const struct tkv_profile *b, bool json,
                     bool all_heads);

#endif /* TKV_TOOLS_PROFILE_DIFF_H */
