/* Writes a calibrated profile: the YAML of docs/profiles.md, statistics inline. */
#ifndef TKV_TOOLS_PROFILE_WRITE_H
#define TKV_TOOLS_PROFILE_WRITE_H

#include "tools/model.h"

struct tkv_profile_facts {
    const char *name;
    const char *text_file;  /* what it was calibrated on: a comment */
    const char *model_file; /* a comment */
    const struct tkv_model_config *model;
    uint64_t n_tokens;
    const float *statistics; /* [layer][q_head][mean_re, mean_im, mean_abs][band] */
    size_t n_statistics;
};

/*
 * Write beside `path` and rename, so that a reader never sees half a profile. 0, or -1 with
 * a text and `path` as it was.
 */
int tkv_profile_write(const char *path, const struct tkv_profile_facts *facts,
                      struct tkv_reason *why);

/* NULL, or why this is no name for a profile in this file. */
const char *tkv_profile_check_name(const char *name, const char *path);

#endif /* TKV_TOOLS_PROFILE_WRITE_H */
