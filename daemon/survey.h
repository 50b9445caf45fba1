/*
 * All sessions at a glance, for those who look at the daemon from outside: metrics, status page,
 * stats page. Loop thread only; a survey is a view until the loop goes on.
 */
#ifndef TKV_DAEMON_SURVEY_H
#define TKV_DAEMON_SURVEY_H

#include <stddef.h>
#include <stdint.h>

struct tkv_layer_stats;
struct tkv_server;
struct tkv_session_entry;

/* Where the bytes of a session are; together they are its resident_bytes. */
enum tkv_tier {
    TKV_TIER_PINNED = 0,
    TKV_TIER_TAIL,
    TKV_TIER_COLD_KEYS,
    TKV_TIER_COLD_VALUES,
    TKV_TIER_COLD_META, /* headers, positions, norm terms of blocks */
    TKV_TIER_OTHER,     /* slack of slabs, tables, coders, scratch */
    TKV_N_TIERS,
};

/* "pinned", "tail", ...: as labels. */
extern const char *const tkv_tier_names[TKV_N_TIERS];

struct tkv_tiers {
    uint64_t bytes[TKV_N_TIERS];
};

/* Those of one layer; a layer has no "other". */
void tkv_tiers_of_layer(const struct tkv_layer_stats *l, struct tkv_tiers *out);

struct tkv_survey {
    struct tkv_session_entry **entry; /* in order of their ids, statistics fresh */
    size_t n;
    struct tkv_tiers tiers; /* sums over all of them */
    uint64_t resident_bytes;
    uint64_t fp16_bytes;
};

/* Never fails: without memory for the list it is empty. */
void tkv_survey_take(struct tkv_survey *v, struct tkv_server *s);
void tkv_survey_deinit(struct tkv_survey *v);

/* fp16_bytes over resident_bytes; 0 if there is nothing. */
double tkv_compression_ratio(uint64_t fp16_bytes, uint64_t resident_bytes);

#endif /* TKV_DAEMON_SURVEY_H */
