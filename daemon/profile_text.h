/*
 * A profile as the YAML of docs/profiles.md. Where the text goes is the caller's: the tools
 * make a file of it, the daemon a reply.
 */
#ifndef TKV_DAEMON_PROFILE_TEXT_H
#define TKV_DAEMON_PROFILE_TEXT_H

#include <stdio.h>

#include "core/rope.h"

enum { TKV_MAX_PROFILE_NOTES = 4 };

struct tkv_profile_facts {
    const char *name;
    const char *architecture;
    const char *fingerprint;                  /* "xxh3:" and 16 hexadecimal digits, or "none" */
    const char *notes[TKV_MAX_PROFILE_NOTES]; /* lines of comment; up to the first NULL */
    uint32_t n_layers;
    struct tkv_shape shape;
    struct tkv_rope_params rope;
    uint64_t n_tokens;       /* 0: not known */
    const float *statistics; /* [layer][q_head][mean_re, mean_im, mean_abs][band] */
    size_t n_statistics;
    const float *errors;     /* [layer][kv_head][TKV_PLAN_ERRORS]; NULL: none */
    uint64_t n_error_tokens; /* that they were measured over */
    const char *sidecar; /* the file beside the profile that holds them; NULL: they are inline */
};

/* NULL, or why this is no name for a profile: 1 to 64 of a-z 0-9 . _ - */
const char *tkv_profile_name_wrong(const char *name);

/* NULL, or what is wrong with a text of the facts. */
const char *tkv_profile_facts_wrong(const struct tkv_profile_facts *f);

/* The text of right facts. Its length is at most tkv_profile_text_bytes(). */
void tkv_profile_print(FILE *out, const struct tkv_profile_facts *f);
size_t tkv_profile_text_bytes(size_t n_statistics);

/* The section errors alone. */
void tkv_profile_print_errors(FILE *out, const float *errors, size_t n_heads, uint64_t n_tokens);

#endif /* TKV_DAEMON_PROFILE_TEXT_H */
