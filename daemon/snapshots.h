/*
 * Where snapshots are and what of a session they have beside its cache: its label, its profile by name
 * and by digest, its tokens' ids. Files are in a directory of the daemon's, those of each user
 * in one named by its uid, mode 0700; a client says no more than a name.
 */
#ifndef TKV_DAEMON_SNAPSHOTS_H
#define TKV_DAEMON_SNAPSHOTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/rope.h"
#include "daemon/prefixes.h"
#include "daemon/profile_digest.h"
#include "proto/limits.h"
#include "proto/report.h"

struct tkv_profile;
struct tkv_server;
struct tkv_session_entry;
struct tkv_snapshot;

/* Why one could not be written or read. */
enum tkv_snapshot_failure {
    TKV_SNAPSHOT_NO_BUDGET = 0, /* of bytes to write in a day */
    TKV_SNAPSHOT_NO_MEMORY,
    TKV_SNAPSHOT_IO,
    TKV_SNAPSHOT_PROFILE, /* is missing or another one */
    TKV_SNAPSHOT_FILE,    /* is damaged, of another version, or none */
    TKV_SNAPSHOT_NO_TIME, /* the daemon stopped */
    TKV_SNAPSHOT_OTHER,
    TKV_SNAPSHOT_N_FAILURES,
};
extern const char *const tkv_snapshot_failures[TKV_SNAPSHOT_N_FAILURES];

struct tkv_snapshots {
    uint64_t n_written, n_written_bytes;
    uint64_t n_restored;
    uint64_t n_failed[TKV_SNAPSHOT_N_FAILURES];
    bool any_written;
    uint64_t written_ms; /* the last */
    uint64_t day_began_ms;
    uint64_t day_bytes; /* written since then */
};

/* Count a failure by the error that it was answered with. */
void tkv_snapshots_count_failure(struct tkv_snapshots *s, int error);

/* 0, or an error: there is no directory, or this is no name. */
int tkv_snapshots_check(const struct tkv_server *s, const char *name, struct tkv_report *why);

/* 0 if about so many bytes may be written today. */
int tkv_snapshots_check_budget(struct tkv_server *s, uint64_t bytes, struct tkv_report *why);
void tkv_snapshots_count_written(struct tkv_server *s, uint64_t bytes);

/* The user's directory, made if it is not there and `make` says so; a descriptor, or -1 with the reason.
 * Any thread. */
int tkv_snapshots_open_directory(const char *directory, uid_t uid, bool make,
                                 struct tkv_report *why);

/* ---- meta ----------------------------------------------------------------------------------- */

enum {
    TKV_META_PROFILE = 1,
    TKV_META_ROPE = 2,
    TKV_META_NAMED = 4,
    TKV_META_KEEP = 8,
    TKV_META_FORCED = 16,
    TKV_META_FLAGS = 31,
};

/* As it lies in a file, little-endian, the ids of the tokens after it. Texts end with 0. */
struct tkv_snapshot_meta {
    uint32_t version;
    uint32_t flags;
    uint32_t n_ids;
    uint32_t salt_bytes;
    uint64_t digest[TKV_N_DIGESTS];
    double theta, factor, low_freq_factor, high_freq_factor;
    double beta_fast, beta_slow, attention_factor;
    uint32_t head_dim, rotary_dim, layout, scaling, original_context, no_truncate;
    char label[72];
    char profile[72];
    char fingerprint[136];
    uint8_t salt[TRIKV_MAX_NAME_BYTES];
};
_Static_assert(sizeof(struct tkv_snapshot_meta) == 472, "no padding");

size_t tkv_snapshot_meta_bytes(const struct tkv_session_entry *e);
void tkv_snapshot_meta_write(const struct tkv_session_entry *e, void *out);

/* Is what a file has sound? Any thread. */
int tkv_snapshot_meta_check(const void *meta, size_t bytes, struct tkv_report *why);

/* The entry as the meta has it; of the loop thread, as what follows. */
int tkv_snapshot_meta_take(struct tkv_session_entry *e, const void *meta, struct tkv_report *why);

/* The profile that the session had, if it is loaded and still the same, into the entry and the
 * configuration of the session to be. */
int tkv_snapshot_take_profile(struct tkv_session_entry *e, const struct tkv_snapshot *snapshot,
                              struct tkv_report *why);

#endif /* TKV_DAEMON_SNAPSHOTS_H */
