/* The order of eviction; see evict.h. */
#include "daemon/evict.h"

#include "daemon/dispatch.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"

/* `user` NULL: everybody's. */
static bool is_of(const struct tkv_session_entry *e, const struct tkv_quota *user)
{
    return !user || e->quota->user == user;
}

static struct tkv_session_entry *oldest_prefix(const struct tkv_server *s,
                                               const struct tkv_quota *user)
{
    struct tkv_session_entry *e = s->prefixes.oldest;

    while (e && !is_of(e, user))
        e = e->prefix.newer;
    return e;
}

static bool may_go(const struct tkv_session_entry *e, uint64_t now_ms)
{
    const uint64_t limit_ms = e->server->config.evict_idle_ms;

    return e->kind == TKV_ENTRY_SESSION && e->session && !e->busy && !e->doomed &&
           !e->never_evict && !e->waiting && limit_ms && now_ms - e->used_ms >= limit_ms;
}

static struct tkv_session_entry *idlest_session(const struct tkv_server *s,
                                                const struct tkv_quota *user, uint64_t but_id)
{
    const uint64_t now_ms = uv_now(&s->loop);
    struct tkv_session_entry *found = NULL;

    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next)
            if (e->id != but_id && is_of(e, user) && may_go(e, now_ms) &&
                (!found || e->used_ms < found->used_ms))
                found = e;
    return found;
}

/* The next to go, NULL if there is none; the session of the request itself is not. */
static struct tkv_session_entry *next_victim(const struct tkv_server *s,
                                             const struct tkv_quota *user, uint64_t but_id)
{
    struct tkv_session_entry *e = oldest_prefix(s, user);

    return e ? e : idlest_session(s, user, but_id);
}

static void evict_session(struct tkv_session_entry *e)
{
    struct tkv_sessions *const t = &e->server->sessions;

    tkv_log(&e->server->log, TKV_LOG_INFO,
            "msg=\"session evicted\" session=%llu uid=%u idle_ms=%llu resident_bytes=%llu",
            (unsigned long long)e->id, (unsigned)e->uid,
            (unsigned long long)(uv_now(&e->server->loop) - e->used_ms),
            (unsigned long long)e->stats.resident_bytes);
    t->evicted[t->n_evicted++ % TKV_EVICTED_IDS] = e->id;
    tkv_sessions_doom(e, NULL);
}

static void evict(struct tkv_session_entry *e)
{
    if (e->kind == TKV_ENTRY_PREFIX)
        tkv_prefixes_evict(e);
    else
        evict_session(e);
}

/* The share of the session that the call is about; NULL if that is not known any more. */
static struct tkv_quota *family_of(const struct tkv_call *call)
{
    const struct tkv_session_entry *e =
        call->entry ? call->entry
                    : tkv_sessions_find(&call->client->server->sessions, call->session_id);

    return e ? e->quota : NULL;
}

/* What connections keep from step to step; each takes it again when it needs it. */
static bool drop_scratch(const struct tkv_server *s, const struct tkv_quota *user)
{
    bool any = false;

    for (struct tkv_client *c = s->clients; c; c = c->next) {
        if (c->call.running || !c->scratch.memory || (user && c->quota != user))
            continue;
        tkv_scratch_free(&c->scratch, &c->quota->budget);
        any = true;
    }
    return any;
}

bool tkv_evict_for(struct tkv_call *call)
{
    struct tkv_client *const client = call->client;
    struct tkv_quota *family = family_of(call);
    struct tkv_quota *user = client->quota;
    struct tkv_session_entry *victim;

    if (client->server->draining)
        return false;
    if (family && tkv_quota_explain(family, &call->why))
        return false; /* its own memory is what is too much */
    if (!tkv_quota_explain(user, &call->why))
        user = NULL;
    if (drop_scratch(client->server, user)) {
        *call = (struct tkv_call){.client = client};
        tkv_call_again(call);
        return true;
    }
    victim = next_victim(client->server, user, call->session_id);
    if (!victim)
        return false;
    evict(victim);
    *call = (struct tkv_call){.client = client};
    tkv_call_wait(call, victim);
    return true;
}

static bool evict_at_once(struct tkv_server *s, const struct tkv_quota *user, uint64_t but_id)
{
    struct tkv_session_entry *victim;

    if (drop_scratch(s, user))
        return true;
    victim = next_victim(s, user, but_id);
    if (!victim)
        return false;
    (void)tkv_sessions_stats(victim); /* the last there is to count */
    tkv_session_destroy(&victim->session);
    evict(victim);
    return true;
}

bool tkv_evict_now(struct tkv_server *s, struct tkv_quota *user)
{
    struct tkv_report why = {0};

    if (user && !tkv_quota_explain(user, &why))
        user = NULL;
    return evict_at_once(s, user, 0);
}

bool tkv_evict_for_ring(struct tkv_client *client, uint64_t session, struct tkv_report *why)
{
    struct tkv_server *const s = client->server;
    const struct tkv_session_entry *e = tkv_sessions_find(&s->sessions, session);
    struct tkv_quota *user = client->quota;

    if (s->draining || (e && tkv_quota_explain(e->quota, why)))
        return false;
    if (!tkv_quota_explain(user, why))
        user = NULL;
    return evict_at_once(s, user, session);
}
