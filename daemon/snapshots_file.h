/*
 * One session, one file: writing it and reading it back. Calls block, so that workers make them, or the
 * start before there are clients; what is in a file beside the cache is daemon/snapshots.h's matter.
 */
#ifndef TKV_DAEMON_SNAPSHOTS_FILE_H
#define TKV_DAEMON_SNAPSHOTS_FILE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/report.h"

struct tkv_budget;
struct tkv_kernels;
struct tkv_pack_reader;
struct tkv_session;
struct tkv_snapshot;

/* A file of a user, in the directory of snapshots. */
struct tkv_snapshot_place {
    const char *root;
    uid_t uid;
    const char *name;
};

struct tkv_snapshot_content {
    const struct tkv_session *session; /* nobody else's meanwhile */
    const void *meta;
    size_t meta_bytes;
};

/* Whole and on the disk, or not at all. stop: NULL, or what ends the writing once it is true. */
int tkv_snapshot_file_write(const struct tkv_snapshot_place *at,
                            const struct tkv_snapshot_content *content, struct tkv_budget *budget,
                            const atomic_bool *stop, uint64_t *file_bytes, struct tkv_report *why);

/* A file that is being read: it was checked whole, and has one session. */
struct tkv_snapshot_reading {
    struct tkv_pack_reader *reader;
    struct tkv_snapshot *snapshot;
};
int tkv_snapshot_file_open(struct tkv_snapshot_reading *r, const struct tkv_snapshot_place *at,
                           struct tkv_budget *budget, struct tkv_report *why);

/* Its session; the caller has given the configuration its profile. */
int tkv_snapshot_file_read(struct tkv_snapshot_reading *r, const struct tkv_kernels *kn,
                           struct tkv_session **session, struct tkv_report *why);
void tkv_snapshot_file_close(struct tkv_snapshot_reading *r);

/* Nothing has this name any more. */
int tkv_snapshot_file_remove(const struct tkv_snapshot_place *at, struct tkv_report *why);

#endif /* TKV_DAEMON_SNAPSHOTS_FILE_H */
