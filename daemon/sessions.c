/* Entries of the session table and their end. */
#include "daemon/sessions.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/keep.h"
#include "daemon/observation.h"
#include "daemon/server.h"
#include "proto/errors.h"

enum { STATS_AGE_MS = 200 }; /* how old what others see of a busy session may get */

static struct tkv_session_entry **bucket_of(struct tkv_sessions *t, uint64_t id)
{
    return &t->bucket[id % TKV_SESSION_BUCKETS];
}

struct tkv_session_entry *tkv_sessions_add_as(struct tkv_server *s, uint64_t id, uid_t uid,
                                              struct tkv_quota *family)
{
    struct tkv_session_entry *e = tkv_budget_alloc(&s->budget, sizeof(*e));
    struct tkv_session_entry **bucket;

    if (!e)
        return NULL;
    e->quota = tkv_quota_ref(family);
    e->server = s;
    e->uid = uid;
    e->busy = true;
    e->opened_ms = e->used_ms = uv_now(&s->loop);
    e->id = id;
    e->boot_id = s->boot_id;
    if (id > s->sessions.last_id)
        s->sessions.last_id = id;
    bucket = bucket_of(&s->sessions, e->id);
    e->next = *bucket;
    *bucket = e;
    s->sessions.n++;
    s->sessions.n_of[TKV_ENTRY_SESSION]++;
    return e;
}

void tkv_sessions_own(struct tkv_session_entry *e, struct tkv_client *owner)
{
    assert(!e->owner);
    e->owner = owner;
    owner->n_sessions++;
}

struct tkv_session_entry *tkv_sessions_add(struct tkv_client *owner,
                                           const struct tkv_session_entry *of)
{
    struct tkv_server *const s = owner->server;
    struct tkv_quota *family = of ? tkv_quota_ref(of->quota) : tkv_quota_of_family(owner->quota);
    struct tkv_session_entry *e = NULL;

    if (family)
        e = tkv_sessions_add_as(s, s->sessions.last_id + 1, owner->conn.peer_uid, family);
    tkv_quota_unref(&family);
    if (e)
        tkv_sessions_own(e, owner);
    return e;
}

int tkv_sessions_check_room(const struct tkv_client *c, struct tkv_report *why)
{
    const struct tkv_config *config = &c->server->config;
    const struct tkv_sessions *t = &c->server->sessions;
    const uint32_t n = t->n - t->n_of[TKV_ENTRY_PREFIX];

    if (n >= config->max_sessions)
        return tkv_fail(why, TRIKV_E_TOO_MANY, "%u sessions are open, the limit is %u", n,
                        config->max_sessions);
    if (c->n_sessions >= config->max_sessions_per_connection)
        return tkv_fail(why, TRIKV_E_TOO_MANY,
                        "%u sessions are open on this connection, the limit is %u", c->n_sessions,
                        config->max_sessions_per_connection);
    return TRIKV_OK;
}

int tkv_sessions_check_label(const char *label, struct tkv_report *why)
{
    if (label && strlen(label) > TRIKV_MAX_NAME_BYTES)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "label: %zu bytes, want at most %d", strlen(label),
                        TRIKV_MAX_NAME_BYTES);
    return TRIKV_OK;
}

struct tkv_session_entry *tkv_sessions_find_kind(const struct tkv_sessions *t, uint64_t id,
                                                 enum tkv_entry_kind kind)
{
    for (struct tkv_session_entry *e = t->bucket[id % TKV_SESSION_BUCKETS]; e; e = e->next) {
        if (e->id == id && e->session && !e->doomed && e->kind == kind)
            return e;
    }
    return NULL;
}

struct tkv_session_entry *tkv_sessions_missing(const struct tkv_sessions *t, uint64_t id,
                                               struct tkv_report *why)
{
    const uint64_t n = t->n_evicted < TKV_EVICTED_IDS ? t->n_evicted : TKV_EVICTED_IDS;

    for (uint64_t i = 0; i < n; i++) {
        if (t->evicted[i] != id)
            continue;
        tkv_fail(why, TRIKV_E_EVICTED, "session %llu was idle when memory was needed: it is gone",
                 (unsigned long long)id);
        return NULL;
    }
    tkv_fail(why, TRIKV_E_NO_SESSION, "session %llu is not open", (unsigned long long)id);
    return NULL;
}

struct tkv_session_entry *tkv_sessions_find(const struct tkv_sessions *t, uint64_t id)
{
    return tkv_sessions_find_kind(t, id, TKV_ENTRY_SESSION);
}

struct tkv_session_entry *tkv_sessions_find_own(const struct tkv_client *owner, uint64_t id,
                                                struct tkv_report *why)
{
    const struct tkv_sessions *const t = &owner->server->sessions;
    struct tkv_session_entry *e = tkv_sessions_find(t, id);

    if (!e)
        return tkv_sessions_missing(t, id, why);
    if (e->owner == owner)
        return e;
    tkv_fail(why, TRIKV_E_DENIED, "session %llu was opened on another connection",
             (unsigned long long)id);
    return NULL;
}

void tkv_sessions_turn(struct tkv_session_entry *e, enum tkv_entry_kind kind)
{
    e->server->sessions.n_of[e->kind]--;
    e->kind = kind;
    e->server->sessions.n_of[kind]++;
}

void tkv_sessions_disown(struct tkv_session_entry *e, enum tkv_entry_kind kind)
{
    tkv_sessions_turn(e, kind);
    if (e->owner)
        e->owner->n_sessions--;
    e->owner = NULL;
    e->doomed = false;
}

static void remove_entry(struct tkv_session_entry *e)
{
    struct tkv_server *const s = e->server;
    struct tkv_session_entry **at = bucket_of(&s->sessions, e->id);
    const uint64_t arena_id = e->arena_id;

    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    s->sessions.n--;
    s->sessions.n_of[e->kind]--;
    if (e->owner)
        e->owner->n_sessions--;
    tkv_profile_unref(&e->profile);
    tkv_token_ids_release(&e->prefix.ids, &s->budget);
    tkv_budget_free(&s->budget, e->layers, e->stats.n_layers * sizeof(e->layers[0]));
    tkv_quota_unref(&e->quota);
    tkv_budget_free(&s->budget, e, sizeof(*e));
    tkv_keep_forget_arena(s, arena_id);
    tkv_server_check_drained(s);
}

void tkv_sessions_remove(struct tkv_session_entry *e)
{
    tkv_session_destroy(&e->session);
    remove_entry(e);
}

void tkv_sessions_leave(struct tkv_session_entry *e)
{
    e->arena_id = 0; /* it stays held */
    if (e->session)
        tkv_session_leave(&e->session);
    tkv_observation_destroy(&e->observation, &e->server->budget);
    remove_entry(e);
}

bool tkv_sessions_any_busy(const struct tkv_sessions *t)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *e = t->bucket[b]; e; e = e->next)
            if (e->busy)
                return true;
    return false;
}

static void destroy_work(struct tkv_job *job)
{
    struct tkv_session_entry *e =
        (struct tkv_session_entry *)((char *)job - offsetof(struct tkv_session_entry, destruction));

    tkv_session_destroy(&e->made);
    tkv_autosave_remove(e);
    tkv_observation_destroy(&e->observation, &e->quota->budget);
}

/* Those who wait look the session up again: it may be gone. */
static void wake(struct tkv_call *list)
{
    while (list) {
        struct tkv_call *const call = list;

        list = call->next_waiting;
        call->waiting = false;
        tkv_call_again(call);
    }
}

static void wake_waiting(struct tkv_session_entry *e)
{
    struct tkv_call *const list = e->waiting;

    e->waiting = NULL;
    wake(list);
}

static void destroy_done(struct tkv_job *job)
{
    struct tkv_session_entry *e =
        (struct tkv_session_entry *)((char *)job - offsetof(struct tkv_session_entry, destruction));
    struct tkv_call *const closer = e->closer;
    struct tkv_call *const waiting = e->waiting; /* for its memory */

    remove_entry(e);
    if (closer)
        tkv_call_closed(closer);
    wake(waiting);
}

/* Giving back the memory of a large session takes a while: a worker does it. */
static void start_destruction(struct tkv_session_entry *e)
{
    if (e->session)
        tkv_sessions_stats(e); /* the last there is to count */
    e->made = e->session;
    e->session = NULL;
    e->busy = true;
    e->destruction.work = destroy_work;
    e->destruction.done = destroy_done;
    tkv_pool_submit(e->server->pool, &e->destruction);
}

/* Its owner left while a job was at it: stored if it wants that and can be. */
static bool outlives_owner(struct tkv_session_entry *e)
{
    struct tkv_report why;

    return e->session && !e->owner && e->prefix.keep && !tkv_prefixes_take(e, &why);
}

void tkv_sessions_idle(struct tkv_session_entry *e)
{
    e->used_ms = uv_now(&e->server->loop);
    tkv_sessions_settle(e);
}

void tkv_sessions_settle(struct tkv_session_entry *e)
{
    struct tkv_server *const s = e->server;
    const uint64_t now_ms = uv_now(&s->loop);

    assert(e->busy);
    e->busy = false;
    if (e->made) {
        e->session = e->made;
        e->made = NULL;
    }
    if (e->session && now_ms - e->stats_ms > STATS_AGE_MS)
        tkv_sessions_stats(e);
    tkv_autosave_settle(e);
    if ((e->doomed || !e->session) && !outlives_owner(e)) {
        e->doomed = true;
        start_destruction(e);
    }
    wake_waiting(e);
    tkv_server_check_drained(s); /* if it was the last that a successor waits for */
}

void tkv_sessions_doom(struct tkv_session_entry *e, struct tkv_call *closer)
{
    assert(!e->closer || !closer);
    if (closer) {
        closer->running = true;
        e->closer = closer;
    }
    if (e->doomed)
        return;
    e->doomed = true;
    if (e->kind == TKV_ENTRY_PREFIX)
        tkv_prefixes_forget(e);
    if (!e->busy) {
        start_destruction(e);
        wake_waiting(e);
    }
}

/* A daemon that stops leaves it to the next one, whose clients come back. */
static bool is_left(const struct tkv_session_entry *e)
{
    return e->server->draining && e->kind != TKV_ENTRY_MAP && !e->doomed && e->arena_id != 0;
}

void tkv_sessions_orphan(struct tkv_sessions *t, struct tkv_client *owner)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++) {
        struct tkv_session_entry *next;

        for (struct tkv_session_entry *e = t->bucket[b]; e; e = next) {
            next = e->next;
            if (e->owner != owner)
                continue;
            e->owner = NULL;
            if (is_left(e))
                continue;
            if (e->busy || e->doomed || !outlives_owner(e))
                tkv_sessions_doom(e, NULL);
        }
    }
    owner->n_sessions = 0;
}

int tkv_sessions_write_ids(struct tkv_session_entry *e, const struct tkv_step *step,
                           const uint32_t *token_ids, struct tkv_report *why)
{
    const uint64_t at = tkv_session_n_seen(e->session, step->layer);
    const uint32_t n = step->n_tokens, n_known = e->prefix.ids.n;
    int error;

    if (!e->prefix.is_named)
        return tkv_fail(why, TRIKV_E_STATE, "token_ids: only of a session opened with a prefix");
    error = tkv_token_ids_write(&e->prefix.ids, &e->server->budget, at, token_ids, n, why);
    if (error || at + n <= n_known)
        return error;
    return tkv_session_write_ids(e->session, n_known, tkv_token_ids_data(&e->prefix.ids) + n_known,
                                 (uint32_t)(at + n - n_known), why);
}

void tkv_sessions_commit_ids(struct tkv_session_entry *e, const struct tkv_step *step)
{
    if (step)
        tkv_token_ids_commit(&e->prefix.ids,
                             tkv_session_n_seen(e->session, step->layer) - step->n_tokens,
                             step->n_tokens);
    tkv_session_commit_ids(e->session, e->prefix.ids.n);
}

uint32_t tkv_sessions_doom_orphans(struct tkv_sessions *t, uint64_t until_ms, uint64_t *oldest_ms)
{
    uint32_t n = 0;

    *oldest_ms = 0;
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++) {
        struct tkv_session_entry *next;

        for (struct tkv_session_entry *e = t->bucket[b]; e; e = next) {
            next = e->next;
            if (e->orphaned_ms == 0 || e->doomed || e->kind != TKV_ENTRY_SESSION)
                continue;
            if (e->orphaned_ms > until_ms) {
                if (*oldest_ms == 0 || e->orphaned_ms < *oldest_ms)
                    *oldest_ms = e->orphaned_ms;
                continue;
            }
            n++;
            if (e->busy || !outlives_owner(e))
                tkv_sessions_doom(e, NULL);
        }
    }
    return n;
}

void tkv_sessions_forget(struct tkv_sessions *t, struct tkv_call *call)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++) {
        for (struct tkv_session_entry *e = t->bucket[b]; e; e = e->next) {
            struct tkv_call **at = &e->waiting;

            while (*at && *at != call)
                at = &(*at)->next_waiting;
            if (*at)
                *at = call->next_waiting;
        }
    }
    call->waiting = false;
}

static void take_layers(struct tkv_session_entry *e)
{
    uint64_t rest_bytes = e->stats.resident_bytes;

    e->tiers = (struct tkv_tiers){.bytes = {0}};
    for (uint32_t i = 0; i < e->stats.n_layers; i++) {
        struct tkv_layer_stats l;
        struct tkv_tiers tiers;

        tkv_session_layer_stats(e->session, i, &l);
        tkv_tiers_of_layer(&l, &tiers);
        for (size_t t = 0; t < TKV_N_TIERS; t++) {
            e->tiers.bytes[t] += tiers.bytes[t];
            rest_bytes -= tiers.bytes[t];
        }
        if (e->layers)
            e->layers[i] = l;
    }
    e->tiers.bytes[TKV_TIER_OTHER] = rest_bytes;
    e->has_layers = e->layers != NULL;
}

const struct tkv_session_stats *tkv_sessions_stats(struct tkv_session_entry *e)
{
    if (!e->busy) {
        const uint64_t n_evicted = e->stats.n_evicted;

        tkv_session_stats(e->session, &e->stats);
        e->server->metrics.n_evicted += e->stats.n_evicted - n_evicted;
        take_layers(e);
        e->n_token_ids = e->prefix.ids.n;
        e->stats_ms = uv_now(&e->server->loop);
    }
    return &e->stats;
}

const struct tkv_layer_stats *tkv_sessions_layers(struct tkv_session_entry *e)
{
    if (!e->layers && e->stats.n_layers) {
        e->layers = tkv_budget_alloc(&e->server->budget, e->stats.n_layers * sizeof(e->layers[0]));
        tkv_sessions_stats(e);
    }
    return e->has_layers ? e->layers : NULL;
}
