/* SNAPSHOT, RESTORE, SNAPSHOT_LIST and SNAPSHOT_DELETE. Whatever touches a file is done by a thread: a
 * disk may be slow, so what only writes or looks has one for itself, and only RESTORE takes a worker.
 * SNAPSHOT forks the session, so that it can go on at once. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "daemon/dispatch.h"
#include "daemon/keep.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "daemon/snapshots_file.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "store/snapshot.h"

enum { MAX_LISTED = 400 }; /* that fit into a message */

struct listed {
    char name[TRIKV_MAX_NAME_BYTES + 1];
    uint64_t file_bytes;
    double age_s;
};

struct tkv_snapshot_job {
    uid_t uid;
    /* Its own: a worker must not read the configuration, a reload writes it. */
    char root[TKV_CONFIG_PATH_BYTES];
    char name[TRIKV_MAX_NAME_BYTES + 1];
    char label[TRIKV_MAX_NAME_BYTES + 1];
    bool has_label;
    struct tkv_session *session; /* SNAPSHOT: the fork, */
    struct tkv_quota *quota;     /* and where its memory counts, whatever becomes of its parent */
    uint8_t *meta;
    size_t meta_bytes;
    uint64_t n_seen, file_bytes;
    struct tkv_snapshot_reading reading; /* RESTORE */
    struct listed *listed;               /* SNAPSHOT_LIST, [MAX_LISTED] */
    uint32_t n_listed, n_files;
};

static struct tkv_snapshot_job *job_of(struct tkv_call *call, const char *name)
{
    struct tkv_snapshot_job *j = NULL;

    if (!tkv_snapshots_check(call->client->server, name, &call->why)) {
        j = tkv_budget_alloc(&call->client->server->budget, sizeof(*j));
        if (!j)
            tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a snapshot");
    }
    call->snapshot = j;
    if (!j)
        return NULL;
    j->uid = call->client->conn.peer_uid;
    memcpy(j->root, call->client->server->config.snapshot_directory, sizeof(j->root));
    memcpy(j->name, name, strlen(name) + 1);
    return j;
}

static void free_job(struct tkv_call *call)
{
    struct tkv_budget *const budget = &call->client->server->budget;
    struct tkv_snapshot_job *const j = call->snapshot;

    if (!j)
        return;
    tkv_session_destroy(&j->session);
    tkv_quota_unref(&j->quota);
    tkv_snapshot_file_close(&j->reading);
    tkv_budget_free(budget, j->meta, j->meta_bytes);
    tkv_budget_free(budget, j->listed, MAX_LISTED * sizeof(*j->listed));
    tkv_budget_free(budget, j, sizeof(*j));
    call->snapshot = NULL;
}

/* The end of every call here but those that succeed. */
static void fail_call(struct tkv_call *call)
{
    tkv_snapshots_count_failure(&call->client->server->snapshots, call->why.error);
    tkv_call_fail(call);
}

static struct tkv_snapshot_place place_of(const struct tkv_snapshot_job *j)
{
    return (struct tkv_snapshot_place){.root = j->root, .uid = j->uid, .name = j->name};
}

/* ---- SNAPSHOT ------------------------------------------------------------------------------- */

static void snapshot_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_snapshot_job *const j = call->snapshot;
    const struct tkv_snapshot_place at = place_of(j);
    const struct tkv_snapshot_content content = {j->session, j->meta, j->meta_bytes};

    (void)tkv_snapshot_file_write(&at, &content, &call->client->server->budget,
                                  &call->client->server->autosave.stop, &j->file_bytes, &call->why);
    tkv_session_destroy(&j->session);
}

static void snapshot_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_server *const s = call->client->server;
    Trikv__SnapshotReply reply = TRIKV__SNAPSHOT_REPLY__INIT;

    reply.file_bytes = call->snapshot->file_bytes;
    reply.n_seen = call->snapshot->n_seen;
    if (!call->why.error)
        tkv_snapshots_count_written(s, reply.file_bytes);
    free_job(call);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error)
        fail_call(call);
    else
        tkv_call_reply(call, &reply.base);
}

static int begin_snapshot(struct tkv_call *call, struct tkv_session_entry *e, const char *name)
{
    struct tkv_snapshot_job *const j = job_of(call, name);
    int error;

    if (!j)
        return call->why.error;
    error =
        tkv_snapshots_check_budget(e->server, tkv_sessions_stats(e)->resident_bytes, &call->why);
    if (error)
        return error;
    j->n_seen = e->stats.n_seen;
    j->meta_bytes = tkv_snapshot_meta_bytes(e);
    j->meta = tkv_budget_alloc(&e->server->budget, j->meta_bytes);
    if (!j->meta) {
        j->meta_bytes = 0;
        return tkv_fail(&call->why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no room for a snapshot");
    }
    tkv_snapshot_meta_write(e, j->meta);
    j->quota = tkv_quota_ref(e->quota);
    return tkv_session_fork(&j->session, e->session, &call->why);
}

void tkv_handle_snapshot(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__SnapshotRequest *m = (const Trikv__SnapshotRequest *)message;
    struct tkv_session_entry *e;

    call->session_id = m->session;
    e = tkv_call_users_session(call);
    if (!e) {
        tkv_call_fail(call);
    } else if (e->busy) {
        tkv_call_wait(call, e);
    } else if (begin_snapshot(call, e, m->name)) {
        free_job(call);
        fail_call(call);
    } else {
        tkv_call_start_file(call, snapshot_work, snapshot_done);
    }
}

/* ---- RESTORE: a worker opens the file, the loop finds the profile, a worker reads the rest ---- */

static void open_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_snapshot_job *const j = call->snapshot;
    const struct tkv_snapshot_place at = place_of(j);

    (void)tkv_snapshot_file_open(&j->reading, &at, &call->entry->quota->budget, &call->why);
}

static void restore_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_server *const s = call->client->server;

    if (!tkv_snapshot_file_read(&call->snapshot->reading, &s->kernels, &call->entry->made,
                                &call->why) &&
        tkv_keep_session(call->entry, NULL, &call->why))
        tkv_session_destroy(&call->entry->made);
}

static void restore_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_session_entry *const e = call->entry;

    tkv_keep_arena(e);
    e->server->snapshots.n_restored += !call->why.error;
    if (e->made)
        tkv_autosave_take(e, call->snapshot->name);
    free_job(call);
    tkv_sessions_idle(e);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error)
        fail_call(call);
    else
        tkv_call_reply_session(call, e, tkv_sessions_stats(e)->resident_bytes);
}

static int take_entry(struct tkv_call *call)
{
    const struct tkv_snapshot_job *const j = call->snapshot;
    struct tkv_session_entry *const e = call->entry;
    int error = tkv_snapshot_take_profile(e, j->reading.snapshot, &call->why);

    error = error ? error : tkv_snapshot_meta_take(e, j->reading.snapshot->meta, &call->why);
    if (!error && j->has_label)
        memcpy(e->label, j->label, sizeof(e->label));
    return error;
}

static void open_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);

    if (call->why.error || take_entry(call))
        restore_done(job);
    else
        tkv_call_start(call, restore_work, restore_done);
}

void tkv_handle_restore(struct tkv_call *call, const ProtobufCMessage *message)
{
    const Trikv__RestoreRequest *m = (const Trikv__RestoreRequest *)message;
    struct tkv_snapshot_job *j = NULL;

    if (!tkv_sessions_check_room(call->client, &call->why) &&
        !tkv_sessions_check_label(m->label, &call->why))
        j = job_of(call, m->name);
    if (j) {
        j->has_label = m->label != NULL;
        if (m->label)
            memcpy(j->label, m->label, strlen(m->label) + 1);
        call->entry = tkv_sessions_add(call->client, NULL);
        if (!call->entry)
            tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a session");
    }
    if (call->why.error) {
        free_job(call);
        fail_call(call);
        return;
    }
    tkv_call_start(call, open_work, open_done);
}

/* ---- SNAPSHOT_LIST -------------------------------------------------------------------------- */

static void list_file(struct tkv_snapshot_job *j, int directory, const char *name)
{
    struct listed *l = &j->listed[j->n_listed];
    struct timespec now;
    struct stat st;

    if (name[0] == '.' || strlen(name) > TRIKV_MAX_NAME_BYTES ||
        fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
        return;
    j->n_files++;
    if (j->n_listed == MAX_LISTED)
        return;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    memcpy(l->name, name, strlen(name) + 1);
    l->file_bytes = (uint64_t)st.st_size;
    l->age_s = (double)(now.tv_sec - st.st_mtim.tv_sec);
    l->age_s = l->age_s < 0 ? 0 : l->age_s;
    j->n_listed++;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct listed *)a)->name, ((const struct listed *)b)->name);
}

static void list_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const struct tkv_snapshot_job *const j = call->snapshot;
    const int directory = tkv_snapshots_open_directory(j->root, j->uid, true, &call->why);
    DIR *d = directory >= 0 ? fdopendir(directory) : NULL;
    const struct dirent *entry;

    if (!d) {
        if (directory >= 0)
            close(directory);
        if (!call->why.error)
            tkv_fail(&call->why, TRIKV_E_SYSTEM, "snapshot.directory: %s", strerror(errno));
        return;
    }
    while ((entry = readdir(d)) != NULL)
        list_file(call->snapshot, directory, entry->d_name);
    closedir(d);
    qsort(call->snapshot->listed, call->snapshot->n_listed, sizeof(struct listed), by_name);
}

static void reply_list(struct tkv_call *call)
{
    const struct tkv_snapshot_job *const j = call->snapshot;
    Trikv__SnapshotListReply reply = TRIKV__SNAPSHOT_LIST_REPLY__INIT;
    Trikv__Snapshot item[MAX_LISTED];
    Trikv__Snapshot *items[MAX_LISTED];

    for (uint32_t i = 0; i < j->n_listed; i++) {
        trikv__snapshot__init(&item[i]);
        item[i].name = j->listed[i].name;
        item[i].file_bytes = j->listed[i].file_bytes;
        item[i].age_s = j->listed[i].age_s;
        items[i] = &item[i];
    }
    reply.n_snapshots = j->n_listed;
    reply.snapshots = items;
    reply.snapshots_total = j->n_files;
    tkv_call_reply(call, &reply.base);
}

static void list_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    struct tkv_server *const s = call->client->server;
    struct tkv_snapshot_job *const j = call->snapshot;

    if (!tkv_call_ended(call)) { /* the call may be gone, its job is not */
        tkv_budget_free(&s->budget, j->listed, MAX_LISTED * sizeof(*j->listed));
        tkv_budget_free(&s->budget, j, sizeof(*j));
        return;
    }
    if (!call->why.error)
        reply_list(call);
    free_job(call);
    if (call->why.error)
        tkv_call_fail(call);
}

void tkv_handle_snapshot_list(struct tkv_call *call, const ProtobufCMessage *message)
{
    struct tkv_snapshot_job *const j = job_of(call, "-");

    (void)message;
    if (j) {
        j->listed =
            tkv_budget_alloc(&call->client->server->budget, MAX_LISTED * sizeof(*j->listed));
        if (!j->listed)
            tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a list");
    }
    if (call->why.error) {
        free_job(call);
        tkv_call_fail(call);
        return;
    }
    tkv_call_start_file(call, list_work, list_done);
}

/* ---- SNAPSHOT_DELETE ------------------------------------------------------------------------ */

static void delete_work(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const struct tkv_snapshot_place at = place_of(call->snapshot);

    (void)tkv_snapshot_file_remove(&at, &call->why);
}

static void delete_done(struct tkv_job *job)
{
    struct tkv_call *const call = tkv_call_of(job);
    const Trikv__Empty reply = TRIKV__EMPTY__INIT;

    free_job(call);
    if (!tkv_call_ended(call))
        return;
    if (call->why.error)
        tkv_call_fail(call);
    else
        tkv_call_reply(call, &reply.base);
}

void tkv_handle_snapshot_delete(struct tkv_call *call, const ProtobufCMessage *message)
{
    if (job_of(call, ((const Trikv__SnapshotNameRequest *)message)->name))
        tkv_call_start_file(call, delete_work, delete_done);
    else
        tkv_call_fail(call);
}
