/* What of a profile a session depends on, as hashes: is the one that is loaded now the same? */
#ifndef TKV_DAEMON_PROFILE_DIGEST_H
#define TKV_DAEMON_PROFILE_DIGEST_H

#include <stdint.h>

struct tkv_profile;

enum tkv_profile_section {
    TKV_DIGEST_GEOMETRY = 0,
    TKV_DIGEST_ROPE,
    TKV_DIGEST_STATISTICS,
    TKV_DIGEST_ERRORS,
    TKV_N_DIGESTS,
};

/* Their names, in this order, as messages say them. */
extern const char *const tkv_digest_names[TKV_N_DIGESTS];

/* XXH3 (64 bits) of the numbers of each section, little-endian; the same on every machine. */
void tkv_profile_digest(const struct tkv_profile *p, uint64_t digest[TKV_N_DIGESTS]);

#endif /* TKV_DAEMON_PROFILE_DIGEST_H */
