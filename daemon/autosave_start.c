/*
 * The way back: when the daemon starts it reads the files that earlier ones wrote by themselves. A session
 * whose token ids are known becomes a stored prefix, which clients find by OPEN without
 * knowing of the file. One without ids would be memory that nobody might ask for: it waits in its file for
 * RESTORE by name. What is here already, from a warm restart, is newer than any file.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/autosave.h"
#include "daemon/keep.h"
#include "daemon/server.h"
#include "daemon/snapshots_file.h"
#include "proto/errors.h"
#include "store/snapshot.h"

enum { MAX_FILES = 4096 };

const char *const tkv_autosave_outcomes[TKV_AUTOSAVE_N_OUTCOMES] = {
    "restored", "waits", "held", "broken", "version", "profile", "room", "time", "failed"};

struct found {
    uid_t uid;
    int64_t written_s;
    char name[TRIKV_MAX_NAME_BYTES + 1];
};

struct search {
    struct tkv_server *s;
    struct found *files; /* [MAX_FILES] */
    size_t n;
    size_t n_remnants;
    struct tkv_report why;
};

/* ---- finding -------------------------------------------------------------------------------- */

/* Half of a file, by a daemon that was killed while it wrote it. */
static bool is_remnant(const char *name)
{
    const size_t n = strlen(name);

    return name[0] == '.' && n > 4 && strcmp(name + n - 4, ".tmp") == 0;
}

static void add_file(struct search *f, int directory, uid_t uid, const char *name)
{
    struct stat st;

    if (is_remnant(name)) {
        (void)unlinkat(directory, name, 0);
        f->n_remnants++;
        return;
    }
    if (strncmp(name, TKV_AUTOSAVE_PREFIX, strlen(TKV_AUTOSAVE_PREFIX)) != 0 ||
        strlen(name) > TRIKV_MAX_NAME_BYTES - strlen(TKV_AUTOSAVE_BROKEN) || f->n == MAX_FILES ||
        fstatat(directory, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
        return;
    f->files[f->n].uid = uid;
    f->files[f->n].written_s = st.st_mtim.tv_sec;
    memcpy(f->files[f->n].name, name, strlen(name) + 1);
    f->n++;
}

static void search_user(struct search *f, uid_t uid)
{
    const int directory = tkv_snapshots_open_directory(f->s->autosave.root, uid, false, &f->why);
    DIR *d = directory >= 0 ? fdopendir(directory) : NULL;
    const struct dirent *entry;

    if (!d) {
        if (directory >= 0)
            close(directory);
        return;
    }
    while ((entry = readdir(d)) != NULL)
        add_file(f, directory, uid, entry->d_name);
    closedir(d);
}

static bool search(struct search *f)
{
    DIR *d = opendir(f->s->autosave.root);
    const struct dirent *entry;

    if (!d) {
        tkv_log(&f->s->log, TKV_LOG_WARN, "msg=\"no snapshots\" directory=\"%s\" why=\"%s\"",
                f->s->autosave.root, strerror(errno));
        return false;
    }
    while ((entry = readdir(d)) != NULL) {
        char *end;
        const unsigned long uid = strtoul(entry->d_name, &end, 10);

        if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9' && !*end && uid == (uid_t)uid)
            search_user(f, (uid_t)uid);
    }
    closedir(d);
    return true;
}

static int newest_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;

    if (x->written_s != y->written_s)
        return x->written_s < y->written_s ? 1 : -1;
    return x->uid != y->uid ? (x->uid < y->uid ? -1 : 1) : strcmp(x->name, y->name);
}

/* ---- one file ------------------------------------------------------------------------------- */

static enum tkv_autosave_outcome outcome_of(int error)
{
    switch (error) {
    case TRIKV_OK: return TKV_AUTOSAVE_RESTORED;
    case TRIKV_E_CHECKSUM:
    case TRIKV_E_VALUE: return TKV_AUTOSAVE_BAD;
    case TRIKV_E_VERSION: return TKV_AUTOSAVE_VERSION;
    case TRIKV_E_NO_PROFILE:
    case TRIKV_E_GEOMETRY: return TKV_AUTOSAVE_PROFILE;
    case TRIKV_E_EXISTS: return TKV_AUTOSAVE_HELD;
    case TRIKV_E_MEMORY_CAP:
    case TRIKV_E_NO_MEMORY:
    case TRIKV_E_QUOTA: return TKV_AUTOSAVE_ROOM;
    default: return TKV_AUTOSAVE_FAILED;
    }
}

/* Nobody looks at it again, but who wants to know what became of it. */
static void move_aside(const struct tkv_server *s, const struct found *f)
{
    char name[2 * TRIKV_MAX_NAME_BYTES];
    struct tkv_report why;
    const int directory = tkv_snapshots_open_directory(s->autosave.root, f->uid, false, &why);

    if (directory < 0)
        return;
    (void)snprintf(name, sizeof(name), TKV_AUTOSAVE_BROKEN "%s", f->name);
    if (renameat(directory, f->name, directory, name))
        tkv_log(&s->log, TKV_LOG_ERROR,
                "msg=\"cannot move a broken file aside\" file=\"%s\" why=\"%s\"", f->name,
                strerror(errno));
    close(directory);
}

/* Is what the entry will be here already, and further on? Only what no file was read for is. */
static bool is_held(const struct tkv_session_entry *e)
{
    const struct tkv_token_ids *ids = &e->prefix.ids;

    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *o = e->server->sessions.bucket[b]; o; o = o->next) {
            if (o == e || o->uid != e->uid || o->autosave.name[0] || !o->session)
                continue;
            if ((e->label[0] && strcmp(o->label, e->label) == 0) ||
                (ids->n > 0 &&
                 tkv_token_ids_common(&o->prefix.ids, tkv_token_ids_data(ids), ids->n) == ids->n))
                return true;
        }
    return false;
}

/* The session of an open file, in an entry that is its own and nobody's. */
static int read_session(struct tkv_session_entry *e, struct tkv_snapshot_reading *r,
                        struct tkv_report *why)
{
    int error = tkv_snapshot_take_profile(e, r->snapshot, why);

    error = error ? error : tkv_snapshot_meta_take(e, r->snapshot->meta, why);
    if (!error && is_held(e))
        error = tkv_fail(why, TRIKV_E_EXISTS, "the session was taken over warm");
    error = error ? error : tkv_snapshot_file_read(r, &e->server->kernels, &e->made, why);
    error = error ? error : tkv_keep_session(e, NULL, why);
    if (error)
        tkv_session_destroy(&e->made);
    return error;
}

static int store(struct tkv_session_entry *e, const char *name, struct tkv_report *why)
{
    int error;

    tkv_keep_arena(e);
    tkv_autosave_take(e, name);
    tkv_sessions_idle(e); /* the session is the entry's */
    error = tkv_prefixes_take(e, why);
    if (error)
        tkv_sessions_doom(e, NULL);
    return error;
}

static int restore_in(struct tkv_server *s, const struct found *f, struct tkv_quota *family,
                      struct tkv_snapshot_reading *r, struct tkv_report *why)
{
    struct tkv_session_entry *e = tkv_sessions_add_as(s, s->sessions.last_id + 1, f->uid, family);
    int error;

    if (!e)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a session");
    error = read_session(e, r, why);
    if (!error)
        return store(e, f->name, why);
    tkv_sessions_idle(e); /* without a session that is its end */
    return error;
}

static bool has_ids(const struct tkv_snapshot *snapshot)
{
    struct tkv_snapshot_meta m;

    memcpy(&m, snapshot->meta, sizeof(m));
    return m.n_ids > 0;
}

static enum tkv_autosave_outcome restore_file(struct tkv_server *s, const struct found *f,
                                              struct tkv_report *why)
{
    const struct tkv_snapshot_place at = {.root = s->autosave.root, .uid = f->uid, .name = f->name};
    struct tkv_quota *user = tkv_quota_of_user(s, f->uid);
    struct tkv_quota *family = user ? tkv_quota_of_family(user) : NULL;
    struct tkv_snapshot_reading r = {NULL, NULL};
    bool waits = false;
    int error = TRIKV_OK;

    tkv_quota_unref(&user);
    if (!family)
        return outcome_of(tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached"));
    error = tkv_snapshot_file_open(&r, &at, &family->budget, why);
    waits = !error && !has_ids(r.snapshot);
    if (!error && !waits)
        error = restore_in(s, f, family, &r, why);
    tkv_snapshot_file_close(&r);
    tkv_quota_unref(&family);
    if (waits)
        return TKV_AUTOSAVE_WAITS;
    return outcome_of(error);
}

/* ---- all of them ---------------------------------------------------------------------------- */

static void log_file(const struct tkv_server *s, const struct found *f,
                     enum tkv_autosave_outcome outcome, const struct tkv_report *why)
{
    char text[2 * sizeof(why->text) + 4];
    const bool is_well = outcome <= TKV_AUTOSAVE_HELD;

    tkv_log(&s->log, is_well ? TKV_LOG_INFO : TKV_LOG_WARN,
            "msg=\"file of a session\" uid=%u file=\"%s\" outcome=%s why=%s", (unsigned)f->uid,
            f->name, tkv_autosave_outcomes[outcome], tkv_log_quote(text, sizeof(text), why->text));
}

static void restore_all(struct tkv_server *s, const struct found *files, size_t n)
{
    const uint64_t until_ns = uv_hrtime() + s->config.snapshot_deadline_ms * 1000000;

    for (size_t i = 0; i < n; i++) {
        struct tkv_report why = {0};
        enum tkv_autosave_outcome outcome;

        if (uv_hrtime() >= until_ns)
            outcome = TKV_AUTOSAVE_TIME;
        else if (s->prefixes.n >= s->config.max_prefixes)
            outcome = TKV_AUTOSAVE_ROOM;
        else
            outcome = restore_file(s, &files[i], &why);
        if (outcome == TKV_AUTOSAVE_BAD)
            move_aside(s, &files[i]);
        s->autosave.n_start[outcome]++;
        log_file(s, &files[i], outcome, &why);
    }
}

static void restore_found(struct tkv_server *s, struct search *f)
{
    char text[64];

    (void)snprintf(text, sizeof(text), "EXTEND_TIMEOUT_USEC=%llu",
                   (unsigned long long)(s->config.snapshot_deadline_ms + TKV_AUTOSAVE_GRACE_MS) *
                       1000);
    tkv_notify_send(&s->notify, text);
    qsort(f->files, f->n, sizeof(*f->files), newest_first);
    restore_all(s, f->files, f->n);
    tkv_log(&s->log, TKV_LOG_INFO, "msg=\"sessions restored\" files=%zu restored=%llu", f->n,
            (unsigned long long)s->autosave.n_start[TKV_AUTOSAVE_RESTORED]);
}

void tkv_autosave_restore(struct tkv_server *s)
{
    struct search f = {.s = s};

    if (!s->autosave.pool)
        return;
    f.files = tkv_budget_alloc(&s->budget, MAX_FILES * sizeof(*f.files));
    if (!f.files) {
        tkv_log(&s->log, TKV_LOG_WARN, "msg=\"nothing is restored\" why=\"memory cap reached\"");
        return;
    }
    if (search(&f) && s->config.snapshot_restore)
        restore_found(s, &f);
    if (f.n_remnants > 0)
        tkv_log(&s->log, TKV_LOG_WARN, "msg=\"halves of files removed\" n=%zu", f.n_remnants);
    tkv_budget_free(&s->budget, f.files, MAX_FILES * sizeof(*f.files));
}
