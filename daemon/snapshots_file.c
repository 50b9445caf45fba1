/* Files of single sessions; see snapshots_file.h. */
#include "daemon/snapshots_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "daemon/snapshots.h"
#include "proto/errors.h"
#include "store/pack.h"
#include "store/snapshot.h"

/* A sink that gives up when it is told to: a disk may be slow, and a daemon has to end. */
struct outlet {
    struct tkv_pack_writer *writer;
    const atomic_bool *stop;
};

static int write_on(void *ctx, const void *bytes, size_t n, struct tkv_report *why)
{
    const struct outlet *o = ctx;

    if (o->stop && atomic_load_explicit(o->stop, memory_order_relaxed))
        return tkv_fail(why, TRIKV_E_DRAINING, "there was no time to write the snapshot");
    return tkv_pack_write(o->writer, bytes, n, why);
}

static int write_in(int directory, const struct tkv_snapshot_place *at,
                    const struct tkv_snapshot_content *c, struct tkv_budget *budget,
                    struct outlet *o, uint64_t *file_bytes, struct tkv_report *why)
{
    const struct tkv_snapshot_sink sink = {.write = write_on, .ctx = o};
    int e = tkv_pack_create(&o->writer, directory, at->name, budget, why);

    e = e ? e : tkv_snapshot_write(&sink, &c->session, 1, c->meta, c->meta_bytes, why);
    e = e ? e : tkv_pack_commit(o->writer, file_bytes, why);
    tkv_pack_writer_destroy(&o->writer);
    return e;
}

int tkv_snapshot_file_write(const struct tkv_snapshot_place *at,
                            const struct tkv_snapshot_content *content, struct tkv_budget *budget,
                            const atomic_bool *stop, uint64_t *file_bytes, struct tkv_report *why)
{
    struct outlet o = {.stop = stop};
    const int directory = tkv_snapshots_open_directory(at->root, at->uid, true, why);
    int e;

    if (directory < 0)
        return why->error;
    e = write_in(directory, at, content, budget, &o, file_bytes, why);
    close(directory);
    return e;
}

/* ---- reading -------------------------------------------------------------------------------- */

static int open_in(struct tkv_snapshot_reading *r, int directory, const char *name,
                   struct tkv_budget *budget, struct tkv_report *why)
{
    const int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct tkv_snapshot_source source = {.read = tkv_pack_read};
    int e;

    if (fd < 0)
        return tkv_fail(why, errno == ENOENT ? TRIKV_E_ARGUMENT : TRIKV_E_SYSTEM, "snapshot %s: %s",
                        name, strerror(errno));
    e = tkv_pack_open(&r->reader, fd, budget, why);
    if (e) {
        close(fd);
        return e;
    }
    source.ctx = r->reader;
    e = tkv_snapshot_open(&r->snapshot, &source, budget, why);
    if (!e && r->snapshot->n_sessions != 1)
        e = tkv_fail(why, TRIKV_E_VALUE, "snapshot %s: %u sessions, want 1", name,
                     r->snapshot->n_sessions);
    return e ? e : tkv_snapshot_meta_check(r->snapshot->meta, r->snapshot->meta_bytes, why);
}

int tkv_snapshot_file_open(struct tkv_snapshot_reading *r, const struct tkv_snapshot_place *at,
                           struct tkv_budget *budget, struct tkv_report *why)
{
    const int directory = tkv_snapshots_open_directory(at->root, at->uid, false, why);
    int e;

    if (directory < 0)
        return why->error;
    e = open_in(r, directory, at->name, budget, why);
    close(directory);
    return e;
}

int tkv_snapshot_file_read(struct tkv_snapshot_reading *r, const struct tkv_kernels *kn,
                           struct tkv_session **session, struct tkv_report *why)
{
    int e = tkv_snapshot_read(r->snapshot, kn, session, why);

    e = e ? e : tkv_pack_end(r->reader, why);
    if (e)
        tkv_session_destroy(session);
    tkv_snapshot_close(&r->snapshot);
    return e;
}

void tkv_snapshot_file_close(struct tkv_snapshot_reading *r)
{
    tkv_snapshot_close(&r->snapshot);
    tkv_pack_reader_destroy(&r->reader);
}

int tkv_snapshot_file_remove(const struct tkv_snapshot_place *at, struct tkv_report *why)
{
    const int directory = tkv_snapshots_open_directory(at->root, at->uid, false, why);
    int e = TRIKV_OK;

    if (directory < 0)
        return why->error;
    if (unlinkat(directory, at->name, 0))
        e = tkv_fail(why, errno == ENOENT ? TRIKV_E_ARGUMENT : TRIKV_E_SYSTEM, "snapshot %s: %s",
                     at->name, strerror(errno));
    close(directory);
    return e;
}
