/* Keeping, finding and giving up stored prefixes. */
#include "daemon/prefixes.h"

#include <assert.h>
#include <string.h>

#include "daemon/keep.h"
#include "daemon/observation.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"

const char *const tkv_prefix_outcomes[TKV_PREFIX_N_OUTCOMES] = {"", "hit", "partial", "miss"};

const char *const tkv_prefix_reasons[TKV_PREFIX_N_REASONS] = {
    "none",     "off",     "method", "nothing_stored", "fingerprint",
    "geometry", "profile", "policy", "token_ids",      "point",
};

static struct tkv_prefixes *prefixes_of(const struct tkv_session_entry *e)
{
    return &e->server->prefixes;
}

/* ---- the list --------------------------------------------------------------------------- */

static void link_newest(struct tkv_session_entry *e)
{
    struct tkv_prefixes *const p = prefixes_of(e);

    e->prefix.newer = NULL;
    e->prefix.older = p->newest;
    *(p->newest ? &p->newest->prefix.newer : &p->oldest) = e;
    p->newest = e;
    p->n++;
}

void tkv_prefixes_forget(struct tkv_session_entry *e)
{
    struct tkv_prefixes *const p = prefixes_of(e);
    struct tkv_session_entry *const newer = e->prefix.newer;
    struct tkv_session_entry *const older = e->prefix.older;

    *(newer ? &newer->prefix.older : &p->newest) = older;
    *(older ? &older->prefix.newer : &p->oldest) = newer;
    p->n--;
}

static void touch(struct tkv_session_entry *e)
{
    tkv_prefixes_forget(e);
    link_newest(e);
    e->used_ms = uv_now(&e->server->loop);
}

/* ---- finding ---------------------------------------------------------------------------- */

static bool same_salt(const struct tkv_prefix_key *a, const struct tkv_prefix_key *b)
{
    return a->salt_bytes == b->salt_bytes && memcmp(a->salt, b->salt, a->salt_bytes) == 0;
}

/* Others' prefixes do not exist for this query, not even as a reason. Memory whose descriptor is with
 * one user is not for another's tokens. */
static bool is_visible(const struct tkv_session_entry *e, const struct tkv_prefix_query *q)
{
    if (!same_salt(&e->prefix.key, q->key))
        return false;
    return e->uid == q->uid || (e->server->config.prefix_across_users &&
                                !(tkv_session_marks(e->session) & TKV_MARK_EXPORTED));
}

/* How far a candidate comes, with the ids that it has in common in *n. */
static enum tkv_prefix_reason examine(const struct tkv_session_entry *e,
                                      const struct tkv_prefix_query *q, uint32_t *n)
{
    if (strcmp(e->prefix.key.fingerprint, q->key->fingerprint) != 0)
        return TKV_PREFIX_MODEL;
    switch (tkv_session_compare(e->session, q->config)) {
    case TKV_OTHER_GEOMETRY: return TKV_PREFIX_GEOMETRY;
    case TKV_OTHER_POLICY: return e->profile == q->profile ? TKV_PREFIX_POLICY : TKV_PREFIX_PROFILE;
    case TKV_ALIKE: break;
    }
    if (e->profile != q->profile)
        return TKV_PREFIX_PROFILE;
    *n = tkv_token_ids_common(&e->prefix.ids, q->ids, q->n);
    if (*n == 0)
        return TKV_PREFIX_IDS;
    return *n < tkv_session_reach(e->session) ? TKV_PREFIX_POINT : TKV_PREFIX_OK;
}

static struct tkv_prefix_match search(const struct tkv_prefixes *p,
                                      const struct tkv_prefix_query *q)
{
    struct tkv_prefix_match m = {.outcome = TKV_PREFIX_MISS, .reason = TKV_PREFIX_NONE};
    uint32_t most = 0; /* ids in common, their state gone or not */

    for (struct tkv_session_entry *e = p->newest; e; e = e->prefix.older) {
        enum tkv_prefix_reason reason;
        uint32_t n = 0;

        if (!is_visible(e, q))
            continue;
        reason = examine(e, q, &n);
        most = n > most ? n : most;
        if (reason == TKV_PREFIX_OK && n > m.n) {
            m.entry = e;
            m.n = n;
        } else if (reason > m.reason) {
            m.reason = reason;
        }
    }
    if (m.entry) {
        m.outcome = m.n == q->n ? TKV_PREFIX_HIT : TKV_PREFIX_PARTIAL;
        m.reason = m.n == q->n ? TKV_PREFIX_OK : most > m.n ? TKV_PREFIX_POINT : TKV_PREFIX_IDS;
    }
    return m;
}

static bool observes(enum tkv_method method)
{
    return method == TKV_METHOD_H2O || method == TKV_METHOD_SNAPKV;
}

struct tkv_prefix_match tkv_prefixes_find(struct tkv_server *s, const struct tkv_prefix_query *q)
{
    struct tkv_prefix_match m = {.outcome = TKV_PREFIX_MISS};

    if (q->n == 0) {
        m.outcome = TKV_PREFIX_NOT_ASKED;
    } else if (s->config.max_prefixes == 0) {
        m.reason = TKV_PREFIX_OFF;
    } else if (observes(q->config->method)) {
        m.reason = TKV_PREFIX_METHOD;
    } else {
        m = search(&s->prefixes, q);
        if (m.entry)
            touch(m.entry);
    }
    m.n_asked = q->n;
    return m;
}

void tkv_prefixes_count(struct tkv_prefixes *p, const struct tkv_prefix_match *m)
{
    p->n_lookups[m->outcome][m->reason]++;
    p->n_asked_tokens += m->n_asked;
    p->n_found_tokens += m->n;
    if (m->entry)
        m->entry->prefix.n_hits++;
}

/* ---- keeping ---------------------------------------------------------------------------- */

static struct tkv_session_entry *find_same(const struct tkv_session_entry *e)
{
    const struct tkv_token_ids *ids = &e->prefix.ids;
    struct tkv_session_entry *o = prefixes_of(e)->newest;

    for (; o; o = o->prefix.older) {
        const struct tkv_token_ids *its = &o->prefix.ids;

        if (o->uid == e->uid && o->profile == e->profile && its->n == ids->n &&
            same_salt(&o->prefix.key, &e->prefix.key) &&
            strcmp(o->prefix.key.fingerprint, e->prefix.key.fingerprint) == 0 &&
            tkv_session_is_like(o->session, e->session) &&
            tkv_token_ids_common(its, tkv_token_ids_data(ids), ids->n) == ids->n)
            return o;
    }
    return NULL;
}

static int check_keeps(const struct tkv_session_entry *e, struct tkv_report *why)
{
    const struct tkv_prefix *p = &e->prefix;

    if (e->server->draining || e->server->config.max_prefixes == 0)
        return tkv_fail(why, TRIKV_E_STATE, "keep: prefix.entries is 0, nothing is stored");
    if (!p->is_named || p->ids.n == 0)
        return tkv_fail(why, TRIKV_E_STATE, "keep: the session's token ids are not known");
    if (observes(e->method))
        return tkv_fail(why, TRIKV_E_STATE,
                        "keep: what %s keeps does not follow from the tokens alone",
                        tkv_method_names[e->method]);
    if (p->is_forced)
        return tkv_fail(
            why, TRIKV_E_STATE,
            "keep: after ROUND or FORK with a budget the state does not follow from the "
            "tokens alone");
    return TRIKV_OK;
}

static void take_ids_back(struct tkv_session_entry *e, uint64_t n)
{
    tkv_token_ids_cut(&e->prefix.ids, n);
    tkv_session_commit_ids(e->session, e->prefix.ids.n);
}

/* Back to the last token that all layers have and whose id is known. */
static int cut_to_known(struct tkv_session_entry *e, struct tkv_report *why)
{
    uint64_t n, most;
    int error = 0;

    tkv_session_seen(e->session, &n, &most);
    n = n < e->prefix.ids.n ? n : e->prefix.ids.n;
    if (n == 0)
        return tkv_fail(why, TRIKV_E_STATE, "keep: there is a layer without tokens");
    if (n < most)
        error = tkv_session_truncate(e->session, most - n, why);
    if (!error && !tkv_session_is_contiguous(e->session))
        error = tkv_fail(why, TRIKV_E_STATE, "keep: the tokens' positions are not 0, 1, 2, ...");
    if (!error)
        take_ids_back(e, n);
    return error;
}

int tkv_prefixes_take(struct tkv_session_entry *e, struct tkv_report *why)
{
    struct tkv_server *const s = e->server;
    struct tkv_session_entry *same;
    int error = check_keeps(e, why);

    assert(!e->busy);
    if (!error)
        error = cut_to_known(e, why);
    if (error)
        return error;
    same = find_same(e);
    if (same) {
        touch(same);
        return tkv_fail(why, TRIKV_E_EXISTS, "keep: these %u tokens are stored", e->prefix.ids.n);
    }
    error = tkv_session_is_kept(e->session) ? tkv_keep_note(e, true, why) : 0;
    if (error)
        return error;
    tkv_sessions_disown(e, TKV_ENTRY_PREFIX);
    tkv_observation_destroy(&e->observation, &e->quota->budget);
    link_newest(e);
    s->prefixes.n_kept++;
    e->used_ms = uv_now(&s->loop);
    tkv_prefixes_trim(s, s->config.max_prefixes);
    return TRIKV_OK;
}

void tkv_prefixes_restore(struct tkv_session_entry *e)
{
    tkv_sessions_turn(e, TKV_ENTRY_PREFIX);
    link_newest(e);
}

/* ---- giving up -------------------------------------------------------------------------- */

void tkv_prefixes_evict(struct tkv_session_entry *e)
{
    prefixes_of(e)->n_evicted += !e->server->draining;
    tkv_sessions_doom(e, NULL);
}

void tkv_prefixes_trim(struct tkv_server *s, uint32_t n)
{
    while (s->prefixes.n > n)
        tkv_prefixes_evict(s->prefixes.oldest);
}
