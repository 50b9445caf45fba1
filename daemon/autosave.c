/* Which session is written next, and its way into a file; see autosave.h. */
#include "daemon/autosave.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "daemon/autosave_priv.h"
#include "daemon/server.h"
#include "daemon/snapshots_file.h"
#include "proto/errors.h"

enum { BEAT_MS = 1000, LEAST_BEAT_MS = 20, LEAST_WAIT_MS = 100 };

const char *const tkv_autosave_whens[TKV_AUTOSAVE_N_WHEN] = {"period", "stop"};

static struct tkv_autosave_item *item_of(struct tkv_job *job)
{
    return (struct tkv_autosave_item *)((char *)job - offsetof(struct tkv_autosave_item, job));
}

/* ---- what there is to save ------------------------------------------------------------------ */

/* Of the sessions that can be found again. One whose client is done with it is none of them. */
static bool is_ours(const struct tkv_session_entry *e)
{
    return e->session && !e->doomed && e->kind != TKV_ENTRY_MAP && !e->autosave.forget &&
           (e->label[0] || e->prefix.ids.n > 0);
}

/* Only of one that no job is at: see whether it changed. */
static void look(struct tkv_session_entry *e)
{
    struct tkv_autosave_entry *const a = &e->autosave;
    uint64_t least, most;

    if (a->unsaved_ms != 0 || tkv_session_n_changes(e->session) == a->n_changes)
        return;
    tkv_session_seen(e->session, &least, &most);
    if (most > 0)
        a->unsaved_ms = uv_now(&e->server->loop);
}

/* True if it is due, given that all of this age are. */
static bool is_due(const struct tkv_session_entry *e, uint64_t age_ms)
{
    const struct tkv_autosave_entry *const a = &e->autosave;
    const uint64_t now_ms = uv_now(&e->server->loop);

    return is_ours(e) && a->unsaved_ms && now_ms - a->unsaved_ms >= age_ms && now_ms >= a->retry_ms;
}

static struct tkv_session_entry *find_oldest(const struct tkv_server *s, uint64_t age_ms, bool busy)
{
    struct tkv_session_entry *found = NULL;

    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next) {
            if (e->busy != busy)
                continue;
            if (!busy && is_ours(e))
                look(e);
            if (is_due(e, age_ms) &&
                (!found || e->autosave.unsaved_ms < found->autosave.unsaved_ms))
                found = e;
        }
    return found;
}

void tkv_autosave_debt(const struct tkv_server *s, struct tkv_autosave_debt *out)
{
    const uint64_t now_ms = uv_now(&s->loop);

    *out = (struct tkv_autosave_debt){.n_sessions = 0};
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next) {
            const double age_s = (double)(now_ms - e->autosave.unsaved_ms) / 1000;

            if (!is_ours(e) || !e->autosave.unsaved_ms)
                continue;
            out->n_sessions++;
            out->oldest_s = age_s > out->oldest_s ? age_s : out->oldest_s;
        }
}

/* ---- items ---------------------------------------------------------------------------------- */

static void free_item(struct tkv_autosave_item *i)
{
    struct tkv_server *const s = i->server;
    struct tkv_autosave_item **at = &s->autosave.items;

    while (*at && *at != i)
        at = &(*at)->next;
    if (*at) {
        *at = i->next;
        s->autosave.n_items--;
    }
    tkv_session_destroy(&i->fork);
    tkv_quota_unref(&i->quota);
    tkv_budget_free(&s->budget, i->meta, i->meta_bytes);
    tkv_budget_free(&s->budget, i, sizeof(*i));
}

static void log_failure(const struct tkv_autosave_item *i)
{
    char label[2 * TRIKV_MAX_NAME_BYTES + 4], text[2 * sizeof(i->why.text) + 4];

    tkv_log(&i->server->log, TKV_LOG_WARN,
            "msg=\"session not saved\" session=%llu uid=%u label=%s file=\"%s\" why=%s",
            (unsigned long long)i->id, (unsigned)i->uid,
            tkv_log_quote(label, sizeof(label), i->label), i->name,
            tkv_log_quote(text, sizeof(text), i->why.text));
}

static struct tkv_session_entry *find_entry(const struct tkv_server *s, uint64_t id)
{
    struct tkv_session_entry *e = tkv_sessions_find(&s->sessions, id);

    return e ? e : tkv_sessions_find_kind(&s->sessions, id, TKV_ENTRY_PREFIX);
}

/* It stays unsaved since when it was, and is tried again after a while. */
static void fail_item(struct tkv_autosave_item *i)
{
    struct tkv_server *const s = i->server;
    struct tkv_session_entry *e = find_entry(s, i->id);
    const uint64_t wait_ms =
        s->config.snapshot_every_ms > LEAST_WAIT_MS ? s->config.snapshot_every_ms : LEAST_WAIT_MS;

    tkv_snapshots_count_failure(&s->snapshots, i->why.error);
    log_failure(i);
    if (i->why.error == TRIKV_E_TOO_LARGE)
        s->autosave.pause_ms = uv_now(&s->loop) + wait_ms;
    if (e) {
        e->autosave.unsaved_ms = i->unsaved_ms;
        e->autosave.retry_ms = uv_now(&s->loop) + wait_ms;
    }
    free_item(i);
}

static int fill_item(struct tkv_autosave_item *i, struct tkv_session_entry *e)
{
    i->about_bytes = tkv_sessions_stats(e)->resident_bytes;
    i->meta_bytes = tkv_snapshot_meta_bytes(e);
    i->meta = tkv_budget_alloc(&e->server->budget, i->meta_bytes);
    if (!i->meta) {
        i->meta_bytes = 0;
        return tkv_fail(&i->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a snapshot");
    }
    tkv_snapshot_meta_write(e, i->meta);
    i->quota = tkv_quota_ref(e->quota);
    return tkv_session_fork(&i->fork, e->session, &i->why);
}

static void link_item(struct tkv_autosave_item *i)
{
    struct tkv_autosave_item **at = &i->server->autosave.items;

    while (*at && (*at)->unsaved_ms <= i->unsaved_ms)
        at = &(*at)->next;
    i->next = *at;
    *at = i;
    i->server->autosave.n_items++;
}

/* An idle session as it is now, in line to be written. */
static void make_item(struct tkv_session_entry *e, enum tkv_autosave_when when)
{
    struct tkv_server *const s = e->server;
    struct tkv_autosave_item *i = tkv_budget_alloc(&s->budget, sizeof(*i));

    e->autosave.wanted = false;
    if (!i) {
        tkv_snapshots_count_failure(&s->snapshots, TRIKV_E_MEMORY_CAP);
        tkv_log(&s->log, TKV_LOG_WARN, "msg=\"session not saved\" session=%llu why=\"memory cap\"",
                (unsigned long long)e->id);
        e->autosave.retry_ms = uv_now(&s->loop) + LEAST_WAIT_MS;
        return;
    }
    tkv_autosave_name(e);
    i->server = s;
    i->id = e->id;
    i->uid = e->uid;
    i->when = when;
    i->unsaved_ms = e->autosave.unsaved_ms;
    memcpy(i->name, e->autosave.name, sizeof(i->name));
    memcpy(i->label, e->label, sizeof(i->label));
    link_item(i);
    if (fill_item(i, e)) {
        fail_item(i);
        return;
    }
    e->autosave.n_changes = tkv_session_n_changes(i->fork);
    e->autosave.unsaved_ms = 0;
}

/* ---- jobs ----------------------------------------------------------------------------------- */

static void pump(struct tkv_server *s);

static struct tkv_snapshot_place place_of(const struct tkv_autosave_item *i)
{
    return (struct tkv_snapshot_place){
        .root = i->server->autosave.root, .uid = i->uid, .name = i->name};
}

static void write_work(struct tkv_job *job)
{
    struct tkv_autosave_item *const i = item_of(job);
    const struct tkv_snapshot_place at = place_of(i);
    const struct tkv_snapshot_content content = {i->fork, i->meta, i->meta_bytes};

    (void)tkv_snapshot_file_write(&at, &content, &i->server->budget, &i->server->autosave.stop,
                                  &i->file_bytes, &i->why);
    tkv_session_destroy(&i->fork);
}

static void remove_work(struct tkv_job *job)
{
    struct tkv_autosave_item *const i = item_of(job);
    const struct tkv_snapshot_place at = place_of(i);

    (void)tkv_snapshot_file_remove(&at, &i->why);
}

static void finish(struct tkv_server *s)
{
    s->autosave.n_running--;
    pump(s);
    tkv_server_check_drained(s);
}

static void remove_done(struct tkv_job *job)
{
    struct tkv_server *const s = item_of(job)->server;

    free_item(item_of(job));
    finish(s);
}

static void submit(struct tkv_autosave_item *i, void (*work)(struct tkv_job *job),
                   void (*done)(struct tkv_job *job))
{
    struct tkv_server *const s = i->server;

    i->job.work = work;
    i->job.done = done;
    tkv_pool_submit(s->draining ? s->pool : s->autosave.pool, &i->job);
}

static void write_done(struct tkv_job *job)
{
    struct tkv_autosave_item *const i = item_of(job);
    struct tkv_server *const s = i->server;

    s->autosave.running_bytes -= i->about_bytes;
    if (i->why.error) {
        fail_item(i);
    } else {
        tkv_snapshots_count_written(s, i->file_bytes);
        s->autosave.n_written[i->when]++;
        s->autosave.n_bytes[i->when] += i->file_bytes;
        if (i->discard) {
            submit(i, remove_work, remove_done);
            return;
        }
        free_item(i);
    }
    finish(s);
}

static void run_item(struct tkv_autosave_item *i)
{
    struct tkv_autosave *const a = &i->server->autosave;

    i->running = true;
    a->n_running++;
    a->running_bytes += i->about_bytes;
    submit(i, write_work, write_done);
}

/* The oldest of those in line, if the day has bytes for it; those that it has none for are out. */
static bool run_next(struct tkv_server *s)
{
    struct tkv_autosave_item *i = s->autosave.items;

    while (i && i->running)
        i = i->next;
    if (!i)
        return false;
    if (tkv_snapshots_check_budget(s, s->autosave.running_bytes + i->about_bytes, &i->why))
        fail_item(i);
    else
        run_item(i);
    return true;
}

static void pump(struct tkv_server *s)
{
    const uint32_t most = s->draining ? s->n_threads : 1;

    while (s->autosave.n_running < most && run_next(s))
        ;
}

/* ---- when ----------------------------------------------------------------------------------- */

/* Often enough to be in time, by a tenth. */
static uint64_t beat_ms(uint64_t every_ms)
{
    if (every_ms == 0 || every_ms / 10 > BEAT_MS)
        return BEAT_MS;
    return every_ms / 10 > LEAST_BEAT_MS ? every_ms / 10 : LEAST_BEAT_MS;
}

static void on_beat(uv_timer_t *timer)
{
    struct tkv_server *const s = timer->data;
    const uint64_t every_ms = s->config.snapshot_every_ms;
    struct tkv_session_entry *e;

    if (s->draining)
        return;
    uv_timer_start(timer, on_beat, beat_ms(every_ms), 0);
    e = find_oldest(s, every_ms, false); /* which looks at all of them */
    if (!every_ms || s->autosave.n_items || uv_now(&s->loop) < s->autosave.pause_ms)
        return;
    if (e) {
        make_item(e, TKV_AUTOSAVE_PERIOD);
        pump(s);
        return;
    }
    e = find_oldest(s, every_ms, true);
    if (!e)
        return;
    e->autosave.wanted = true;
    if (e->is_lent && e->owner)
        tkv_ring_recall(e->owner->ring);
}

void tkv_autosave_settle(struct tkv_session_entry *e)
{
    struct tkv_server *const s = e->server;
    const bool stops = s->autosave.is_last && !atomic_load(&s->autosave.stop);

    if (!s->autosave.pool || !is_ours(e))
        return;
    look(e);
    if (e->autosave.unsaved_ms && (stops || (e->autosave.wanted && !s->autosave.n_items))) {
        make_item(e, stops ? TKV_AUTOSAVE_STOP : TKV_AUTOSAVE_PERIOD);
        pump(s);
    }
}

void tkv_autosave_forget(struct tkv_session_entry *e)
{
    e->autosave.forget = true;
    for (struct tkv_autosave_item *i = e->server->autosave.items; i; i = i->next)
        i->discard |= i->id == e->id;
}

void tkv_autosave_remove(const struct tkv_session_entry *e)
{
    const struct tkv_snapshot_place at = {
        .root = e->server->autosave.root, .uid = e->uid, .name = e->autosave.name};
    struct tkv_report why; /* it may never have been written */

    if (e->autosave.forget && e->autosave.name[0])
        (void)tkv_snapshot_file_remove(&at, &why);
}

void tkv_autosave_take(struct tkv_session_entry *e, const char *name)
{
    const struct tkv_session *session = e->made ? e->made : e->session;

    if (strncmp(name, TKV_AUTOSAVE_PREFIX, strlen(TKV_AUTOSAVE_PREFIX)) != 0 ||
        tkv_autosave_is_taken(e->server, e->uid, name))
        return;
    memcpy(e->autosave.name, name, strlen(name) + 1);
    e->autosave.n_changes = tkv_session_n_changes(session);
}

/* ---- the end -------------------------------------------------------------------------------- */

static void on_deadline(uv_timer_t *timer)
{
    struct tkv_server *const s = timer->data;
    struct tkv_autosave_item *next;

    atomic_store(&s->autosave.stop, true);
    for (struct tkv_autosave_item *i = s->autosave.items; i; i = next) {
        next = i->next;
        if (i->running) /* its worker notices */
            continue;
        tkv_fail(&i->why, TRIKV_E_DRAINING, "snapshot.deadline is over");
        fail_item(i);
    }
    tkv_server_check_drained(s);
}

void tkv_autosave_drain(struct tkv_server *s)
{
    const uint64_t most_ms = s->config.snapshot_deadline_ms;
    char text[64];

    /* A successor that is there takes over what is in memory. */
    if (!s->autosave.pool || !s->config.snapshot_on_stop || s->handover.peer_fd >= 0)
        return;
    s->autosave.is_last = true;
    (void)snprintf(text, sizeof(text), "EXTEND_TIMEOUT_USEC=%llu",
                   (unsigned long long)(most_ms + TKV_AUTOSAVE_GRACE_MS) * 1000);
    tkv_notify_send(&s->notify, text);
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next) {
            if (e->busy || !is_ours(e))
                continue;
            look(e);
            if (e->autosave.unsaved_ms)
                make_item(e, TKV_AUTOSAVE_STOP);
        }
    uv_timer_start(&s->autosave.deadline, on_deadline, most_ms, 0);
    pump(s);
}

bool tkv_autosave_is_busy(const struct tkv_server *s)
{
    return s->autosave.n_items > 0;
}

static void on_jobs_done(uv_async_t *async)
{
    struct tkv_server *const s = async->data;

    for (struct tkv_job *job = tkv_pool_take_done(s->autosave.pool), *next; job; job = next) {
        next = job->next;
        job->done(job);
    }
}

static void wake_loop(void *ctx)
{
    uv_async_send(ctx);
}

int tkv_autosave_start(struct tkv_server *s)
{
    struct tkv_autosave *const a = &s->autosave;

    if (!s->config.snapshot_directory[0])
        return 0;
    memcpy(a->root, s->config.snapshot_directory, sizeof(a->root));
    uv_async_init(&s->loop, &a->jobs_done, on_jobs_done);
    a->jobs_done.data = s;
    uv_timer_init(&s->loop, &a->deadline);
    a->deadline.data = s;
    uv_timer_init(&s->loop, &a->beat);
    a->beat.data = s;
    uv_timer_start(&a->beat, on_beat, LEAST_BEAT_MS, 0);
    return tkv_pool_create(&a->pool, 1, wake_loop, &a->jobs_done);
}

void tkv_autosave_stop(struct tkv_server *s)
{
    atomic_store(&s->autosave.stop, true);
    tkv_pool_destroy(&s->autosave.pool);
}

void tkv_autosave_deinit(struct tkv_server *s)
{
    while (s->autosave.items)
        free_item(s->autosave.items);
}
