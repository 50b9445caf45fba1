/* What requests say about stored prefixes: the part of OPEN, and KEEP. */
#include <string.h>

#include "daemon/dispatch.h"
#include "daemon/keep.h"
#include "daemon/requests.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

static int take_key(const Trikv__OpenRequest *m, struct tkv_prefix_key *key, struct tkv_report *why)
{
    const size_t n = m->fingerprint ? strlen(m->fingerprint) : 0;
    const Trikv__Prefix *p = m->prefix;

    if (n == 0 || n > TKV_FINGERPRINT_BYTES)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "prefix: a fingerprint of %zu bytes, want 1 to %d: ids of another model "
                        "mean something else",
                        n, TKV_FINGERPRINT_BYTES);
    if (p->has_salt && p->salt.len > sizeof(key->salt))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "prefix.salt: %zu bytes, want at most %zu",
                        p->salt.len, sizeof(key->salt));
    memcpy(key->fingerprint, m->fingerprint, n + 1);
    key->salt_bytes = p->has_salt ? (uint32_t)p->salt.len : 0;
    if (key->salt_bytes)
        memcpy(key->salt, p->salt.data, key->salt_bytes);
    return TRIKV_OK;
}

int tkv_prefix_of_open(struct tkv_call *call, const Trikv__OpenRequest *m, struct tkv_prefix *out)
{
    const uint64_t got = call->client->conn.in.payload_bytes;
    const uint64_t want = m->prefix ? m->prefix->n_token_ids * (uint64_t)sizeof(uint32_t) : 0;

    *out = (struct tkv_prefix){0};
    if (got != want)
        return tkv_fail(&call->why, TRIKV_E_SIZE, "want %llu bytes (token ids), got %llu",
                        (unsigned long long)want, (unsigned long long)got);
    if (!m->prefix)
        return TRIKV_OK;
    out->is_named = true;
    out->keep = m->prefix->keep;
    return take_key(m, &out->key, &call->why);
}

int tkv_prefix_fork(struct tkv_call *call, const struct tkv_prefix_match *match,
                    struct tkv_session_entry *entry)
{
    struct tkv_session_entry *const stored = match->entry;
    uint64_t least, most;
    int e;

    tkv_quota_unref(&entry->quota);
    entry->quota = tkv_quota_ref(stored->quota);
    e = tkv_session_fork(&entry->session, stored->session, &call->why);
    if (e)
        return e;
    tkv_session_seen(entry->session, &least, &most);
    e = tkv_session_truncate(entry->session, most - match->n, &call->why);
    if (e) {
        entry->doomed = true;
        return e;
    }
    if (stored->uid != entry->uid)
        tkv_session_mark(entry->session, TKV_MARK_MIXED);
    tkv_token_ids_share(&entry->prefix.ids, &stored->prefix.ids);
    tkv_token_ids_cut(&entry->prefix.ids, match->n);
    e = tkv_keep_session(entry, stored->session, &call->why);
    entry->doomed = e != 0;
    tkv_keep_arena(entry);
    return e;
}

/* ---- KEEP ----------------------------------------------------------------------------------- */

/* A fork of e without an owner, for the list of those stored. */
static int store_fork(struct tkv_call *call, const struct tkv_session_entry *e,
                      struct tkv_session_entry *copy)
{
    int error = tkv_session_fork(&copy->session, e->session, &call->why);

    if (error)
        return error;
    copy->method = e->method;
    copy->profile = e->profile ? tkv_profile_ref(e->profile) : NULL;
    copy->has_rope = e->has_rope;
    copy->rope = e->rope;
    memcpy(copy->label, e->label, sizeof(copy->label));
    copy->prefix.is_named = e->prefix.is_named;
    copy->prefix.is_forced = e->prefix.is_forced;
    copy->prefix.key = e->prefix.key;
    tkv_token_ids_share(&copy->prefix.ids, &e->prefix.ids);
    error = tkv_keep_session(copy, e->session, &call->why);
    if (error)
        return error;
    tkv_keep_arena(copy);
    copy->busy = false; /* no job ever was at it */
    return tkv_prefixes_take(copy, &call->why);
}

static void reply_keep(struct tkv_call *call, uint32_t n_tokens, bool was_stored)
{
    Trikv__KeepReply reply = TRIKV__KEEP_REPLY__INIT;

    reply.n_tokens = n_tokens;
    reply.was_stored = was_stored;
    tkv_call_reply(call, &reply.base);
}

static void keep(struct tkv_call *call, const struct tkv_session_entry *e)
{
    struct tkv_session_entry *copy = tkv_sessions_add(call->client, e);
    uint32_t n_tokens;
    int error;

    if (!copy) {
        tkv_fail(&call->why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for a prefix");
        tkv_call_fail(call);
        return;
    }
    error = store_fork(call, e, copy);
    n_tokens = copy->prefix.ids.n;
    if (error) {
        copy->busy = false;
        tkv_sessions_doom(copy, NULL);
    }
    if (error && error != TRIKV_E_EXISTS)
        tkv_call_fail(call);
    else
        reply_keep(call, n_tokens, error == TRIKV_E_EXISTS);
}

void tkv_handle_keep(struct tkv_call *call, const ProtobufCMessage *message)
{
    const struct tkv_session_entry *e;

    call->session_id = ((const Trikv__SessionRequest *)message)->session;
    e = tkv_call_own_session(call);
    if (e)
        keep(call, e);
    else
        tkv_call_fail(call);
}
