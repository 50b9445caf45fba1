/*
 * The stats page: a small file that the daemon writes once a second and that anyone who may read it
 * maps, so that the daemon can be looked at while it does not answer. Little-endian.
 *
 * `sequence` is odd while the daemon writes. A reader copies the page and takes the copy if
 * the sequence was even and the same before and after; one that stays odd is what a daemon left that
 * died in the middle. The page tells its age: updated_ms is CLOCK_MONOTONIC, the same for all.
 */
#ifndef TRIKV_PROTO_STATS_PAGE_H
#define TRIKV_PROTO_STATS_PAGE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/limits.h"

enum { TRIKV_STATS_VERSION = 1, TRIKV_STATS_SESSIONS = 256, TRIKV_STATS_TIERS = 6 };
#define TRIKV_STATS_MAGIC UINT32_C(0x53505254) /* "TRPS" */

struct trikv_stats_session {
    uint64_t session;
    uint32_t uid;
    uint32_t busy; /* 1: a job works on it; then the numbers may be a little old */
    uint64_t n_seen;
    double n_kept;
    uint64_t resident_bytes;
    uint64_t fp16_bytes;
    uint64_t tier_bytes[TRIKV_STATS_TIERS]; /* pinned, tail, cold keys, values, meta, other */
    double idle_s;
    uint32_t n_rounds;
    uint32_t n_layers;
    char label[TRIKV_MAX_NAME_BYTES]; /* filled up with zeros */
};
_Static_assert(sizeof(struct trikv_stats_session) == 176, "stats session is 176 bytes");
_Static_assert(offsetof(struct trikv_stats_session, tier_bytes) == 48, "stats session layout");
_Static_assert(offsetof(struct trikv_stats_session, idle_s) == 96, "stats session layout");
_Static_assert(offsetof(struct trikv_stats_session, label) == 112, "stats session layout");

enum trikv_stats_state { TRIKV_STATS_SERVING = 0, TRIKV_STATS_DRAINING, TRIKV_STATS_STALLED };

struct trikv_stats_page {
    uint32_t magic;
    uint32_t version;
    uint32_t page_bytes; /* sizeof(struct trikv_stats_page) */
    uint32_t pid;
    _Atomic uint64_t sequence;
    uint64_t boot_id;
    uint64_t updated_ms;
    uint64_t started_ms;
    uint32_t state; /* enum trikv_stats_state */
    uint32_t n_threads;
    uint32_t n_connections;
    uint32_t n_sessions; /* those of the table and those that did not fit */
    uint32_t n_queued_jobs;
    uint32_t n_running_jobs;
    uint64_t memory_cap_bytes;
    uint64_t memory_used_bytes;
    uint64_t memory_peak_bytes;
    uint64_t n_requests;
    uint64_t n_errors;
    uint64_t n_tokens_appended;
    uint64_t n_rows_attended;
    uint64_t n_rounds;
    uint64_t resident_bytes; /* of all sessions, as the next three */
    uint64_t fp16_bytes;
    uint64_t tier_bytes[TRIKV_STATS_TIERS];
    char trikvd_version[16];
    uint32_t n_listed; /* entries of `session` that are filled */
    uint32_t reserved;
    struct trikv_stats_session session[TRIKV_STATS_SESSIONS];
};
_Static_assert(offsetof(struct trikv_stats_page, sequence) == 16, "stats page layout");
_Static_assert(offsetof(struct trikv_stats_page, memory_cap_bytes) == 72, "stats page layout");
_Static_assert(offsetof(struct trikv_stats_page, tier_bytes) == 152, "stats page layout");
_Static_assert(offsetof(struct trikv_stats_page, session) == 224, "stats page layout");

#endif /* TRIKV_PROTO_STATS_PAGE_H */
