/* Notes of sessions, descriptors of arenas, and taking over both. */
#include "daemon/keep.h"

#include <string.h>
#include <unistd.h>

#include "daemon/profile_digest.h"
#include "daemon/server.h"
#include "proto/errors.h"
#include "store/adopt.h"
#include "store/arena.h"

const char *const tkv_cold_names[TKV_N_COLD] = {"version", "broken", "memory", "profile"};

enum { NOTE_VERSION = 3 };

/* What a journal notes for the daemon. Texts end with a zero byte. */
struct note {
    uint32_t version;
    uint32_t uid;
    uint64_t id;
    uint64_t boot_id; /* of the daemon that opened it */
    uint64_t orphaned_ms;
    uint64_t profile[TKV_N_DIGESTS];
    struct tkv_rope_params rope;
    uint32_t salt_bytes;
    uint8_t is_prefix, is_named, keeps, is_forced, has_rope, reserved[3];
    char label[TRIKV_MAX_NAME_BYTES + 1];
    char profile_name[TRIKV_MAX_NAME_BYTES + 1]; /* "": none */
    char fingerprint[TKV_FINGERPRINT_BYTES + 1];
    uint8_t salt[TRIKV_MAX_NAME_BYTES];
};

/* ---- notes ------------------------------------------------------------------------------ */

static void write_note(const struct tkv_session_entry *e, bool as_prefix, struct note *n)
{
    const struct tkv_prefix *p = &e->prefix;

    memset(n, 0, sizeof(*n)); /* its padding, too, stands in shared memory */
    n->version = NOTE_VERSION;
    n->uid = e->uid;
    n->id = e->id;
    n->boot_id = e->boot_id;
    n->orphaned_ms = e->orphaned_ms;
    n->is_prefix = as_prefix;
    n->is_named = p->is_named;
    n->keeps = p->keep;
    n->is_forced = p->is_forced;
    n->has_rope = e->has_rope;
    n->rope = e->rope;
    memcpy(n->label, e->label, sizeof(e->label));
    memcpy(n->fingerprint, p->key.fingerprint, sizeof(p->key.fingerprint));
    memcpy(n->salt, p->key.salt, sizeof(n->salt));
    n->salt_bytes = p->key.salt_bytes;
    if (e->profile) {
        memcpy(n->profile_name, e->profile->name, sizeof(n->profile_name));
        tkv_profile_digest(e->profile, n->profile);
    }
}

/* What a job has made is not the entry's before the job is over. */
static struct tkv_session *session_of(const struct tkv_session_entry *e)
{
    return e->made ? e->made : e->session;
}

int tkv_keep_session(struct tkv_session_entry *e, const struct tkv_session *parent,
                     struct tkv_report *why)
{
    struct tkv_session *const s = session_of(e);
    const struct tkv_token_ids *ids = &e->prefix.ids;
    struct note n;
    int error;

    if (!e->server->keep.is_on || tkv_session_is_kept(s) || tkv_session_arena_id(s) == 0)
        return 0;
    write_note(e, e->kind == TKV_ENTRY_PREFIX, &n);
    error = tkv_session_keep(s, parent, &n, sizeof(n), why);
    if (!error && ids->n > 0)
        error = tkv_session_write_ids(s, 0, tkv_token_ids_data(ids), ids->n, why);
    if (!error)
        tkv_session_commit_ids(s, ids->n);
    return error;
}

int tkv_keep_note(struct tkv_session_entry *e, bool as_prefix, struct tkv_report *why)
{
    struct note n;

    if (!tkv_session_is_kept(e->session))
        return 0;
    write_note(e, as_prefix, &n);
    return tkv_session_note(e->session, &n, sizeof(n), why);
}

/* ---- descriptors ------------------------------------------------------------------------ */

static void name_arena(char *text, size_t n, const char *command, uint64_t arena_id)
{
    (void)snprintf(text, n, "%s\nFDNAME=" TKV_KEEP_PREFIX "%016llx", command,
                   (unsigned long long)arena_id);
}

static bool holds(const struct tkv_server *s, uint64_t arena_id)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (const struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next)
            if (e->arena_id == arena_id)
                return true;
    return false;
}

void tkv_keep_arena(struct tkv_session_entry *e)
{
    struct tkv_session *const s = session_of(e);
    char text[96];
    bool is_held;

    if (!s || !tkv_session_is_kept(s) || e->arena_id != 0)
        return;
    is_held = holds(e->server, tkv_session_arena_id(s));
    e->arena_id = tkv_session_arena_id(s);
    if (is_held)
        return;
    name_arena(text, sizeof(text), "FDSTORE=1", e->arena_id);
    tkv_notify_send_fd(&e->server->notify, text, tkv_session_arena_own_fd(s));
}

void tkv_keep_forget_arena(struct tkv_server *s, uint64_t arena_id)
{
    char text[96];

    if (arena_id == 0 || holds(s, arena_id))
        return;
    name_arena(text, sizeof(text), "FDSTOREREMOVE=1", arena_id);
    tkv_notify_send(&s->notify, text);
}

/* ---- taking over ------------------------------------------------------------------------ */

static void count_cold(struct tkv_server *s, enum tkv_cold reason, const struct tkv_report *why)
{
    char quoted[sizeof(why->text) + 64];

    s->keep.n_cold[reason]++;
    tkv_log(&s->log, TKV_LOG_WARN, "msg=\"starts cold\" reason=%s why=%s", tkv_cold_names[reason],
            tkv_log_quote(quoted, sizeof(quoted), why->text));
}

static enum tkv_cold reason_of(int error)
{
    switch (error) {
    case TRIKV_E_VERSION: return TKV_COLD_VERSION;
    case TRIKV_E_MEMORY_CAP:
    case TRIKV_E_NO_MEMORY: return TKV_COLD_MEMORY;
    case TRIKV_E_NO_PROFILE: return TKV_COLD_PROFILE;
    default: return TKV_COLD_BROKEN;
    }
}

static bool ends(const char *text, size_t n)
{
    return memchr(text, 0, n);
}

static int check_note(const struct tkv_adopted *x, struct note *n, struct tkv_report *why)
{
    if (x->note_bytes != sizeof(*n))
        return tkv_fail(why, TRIKV_E_VERSION, "a note of %zu bytes, want %zu", x->note_bytes,
                        sizeof(*n));
    memcpy(n, x->note, sizeof(*n));
    if (n->version != NOTE_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "a note of version %u, want %d", n->version,
                        NOTE_VERSION);
    if (n->id == 0 || n->salt_bytes > sizeof(n->salt) || n->is_prefix > 1 || n->is_named > 1 ||
        n->keeps > 1 || n->is_forced > 1 || n->has_rope > 1 || !ends(n->label, sizeof(n->label)) ||
        !ends(n->profile_name, sizeof(n->profile_name)) ||
        !ends(n->fingerprint, sizeof(n->fingerprint)))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "a note is broken");
    return 0;
}

/* The profile that is loaded under the name must be the one that was. */
static int compare_profile(const struct tkv_profile *p, const struct note *n,
                           struct tkv_report *why)
{
    uint64_t digest[TKV_N_DIGESTS];

    tkv_profile_digest(p, digest);
    for (int i = 0; i < TKV_N_DIGESTS; i++)
        if (digest[i] != n->profile[i])
            return tkv_fail(why, TRIKV_E_NO_PROFILE, "profile %s is not as it was: %s", p->name,
                            tkv_digest_names[i]);
    return 0;
}

/* The session's profile and its views in the layers. */
static int find_profile(struct tkv_server *s, const struct note *n, struct tkv_image_config *c,
                        struct tkv_profile **p, struct tkv_report *why)
{
    int e;

    *p = NULL;
    if (!n->profile_name[0])
        return c->has_stats || c->has_errors
                   ? tkv_fail(why, TRIKV_E_ARGUMENT, "a session wants a profile and names none")
                   : 0;
    *p = tkv_profiles_find(&s->profiles, n->profile_name);
    if (!*p)
        return tkv_fail(why, TRIKV_E_NO_PROFILE, "profile %s is not loaded", n->profile_name);
    e = compare_profile(*p, n, why);
    if (e)
        return e;
    if ((*p)->n_layers != c->config.n_layers)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "%u layers, profile %s has %u", c->config.n_layers,
                        (*p)->name, (*p)->n_layers);
    for (uint32_t i = 0; i < c->config.n_layers; i++) {
        c->layers[i].stats = tkv_profile_layer_statistics(*p, i);
        c->layers[i].errors = tkv_profile_layer_errors(*p, i);
    }
    return 0;
}

static void fill_entry(struct tkv_session_entry *e, const struct note *n, struct tkv_profile *p)
{
    struct tkv_prefix *prefix = &e->prefix;

    e->boot_id = n->boot_id;
    e->orphaned_ms = n->orphaned_ms;
    e->profile = p ? tkv_profile_ref(p) : NULL;
    e->has_rope = n->has_rope;
    e->rope = n->rope;
    memcpy(e->label, n->label, sizeof(e->label));
    prefix->is_named = n->is_named;
    prefix->keep = n->keeps;
    prefix->is_forced = n->is_forced;
    memcpy(prefix->key.fingerprint, n->fingerprint, sizeof(prefix->key.fingerprint));
    memcpy(prefix->key.salt, n->salt, sizeof(n->salt));
    prefix->key.salt_bytes = n->salt_bytes;
}

/* Ids of tokens that never came to be are not its own. */
static int take_ids(struct tkv_session_entry *e, const struct tkv_adopted *x,
                    struct tkv_report *why)
{
    uint64_t least, most;
    int error = 0;

    tkv_session_seen(e->session, &least, &most);
    if (x->n_ids > 0)
        error = tkv_token_ids_write(&e->prefix.ids, &e->server->budget, 0, x->ids, x->n_ids, why);
    if (!error)
        tkv_token_ids_commit(&e->prefix.ids, 0, x->n_ids);
    tkv_token_ids_cut(&e->prefix.ids, most);
    if (!error)
        tkv_session_commit_ids(e->session, e->prefix.ids.n);
    return error;
}

static struct tkv_session_entry *new_entry(struct tkv_server *s, const struct note *n,
                                           struct tkv_quota *family, struct tkv_report *why)
{
    struct tkv_session_entry *e = NULL;

    for (int k = 0; k < TKV_N_ENTRY_KINDS; k++)
        if (tkv_sessions_find_kind(&s->sessions, n->id, (enum tkv_entry_kind)k)) {
            tkv_fail(why, TRIKV_E_ARGUMENT, "there are two sessions %llu",
                     (unsigned long long)n->id);
            return NULL;
        }
    e = tkv_sessions_add_as(s, n->id, n->uid, family);
    if (!e)
        tkv_fail(why, TRIKV_E_MEMORY_CAP, "no room for a session");
    return e;
}

static int take_session(struct tkv_server *s, struct tkv_adoption *a, const struct tkv_adopted *x,
                        struct tkv_quota *family, struct tkv_report *why)
{
    struct tkv_profile *p = NULL;
    struct tkv_session_entry *e;
    struct note n;
    int error = check_note(x, &n, why);

    error = error ? error : find_profile(s, &n, x->config, &p, why);
    if (error)
        return error;
    e = new_entry(s, &n, family, why);
    if (!e)
        return why->error;
    fill_entry(e, &n, p);
    e->method = x->config->config.method;
    error = tkv_adoption_take(a, &e->session, why);
    error = error ? error : take_ids(e, x, why);
    if (error) {
        tkv_sessions_remove(e);
        return error;
    }
    e->arena_id = tkv_adoption_arena_id(a);
    if (n.is_prefix)
        tkv_prefixes_restore(e);
    s->keep.n_prefixes += n.is_prefix;
    s->keep.n_sessions += !n.is_prefix;
    return 0;
}

/* All that an arena has. Entries come to life when all arenas have been looked at. */
static void take_arena(struct tkv_server *s, struct tkv_adoption *a, struct tkv_quota *family)
{
    for (;;) {
        struct tkv_adopted x;
        struct tkv_report why = {0};
        bool found;
        int error = tkv_adoption_next(a, &found, &x, &why);

        if (!error && !found)
            return;
        error = error ? error : take_session(s, a, &x, family, &why);
        if (error) {
            count_cold(s, reason_of(error), &why);
            tkv_adoption_refuse(a);
        }
    }
}

/* The share that what is in the arena counts in: as when it was made. */
static struct tkv_quota *family_of(struct tkv_server *s, int fd)
{
    struct tkv_quota *user, *family;
    uint32_t owner;

    if (!tkv_arena_owner(fd, &owner))
        return NULL;
    user = tkv_quota_of_user(s, owner);
    family = user ? tkv_quota_of_family(user) : NULL;
    tkv_quota_unref(&user);
    return family;
}

static void adopt_arena(struct tkv_server *s, int fd, uint64_t name)
{
    struct tkv_quota *family = family_of(s, fd);
    struct tkv_adoption *a = NULL;
    struct tkv_report why = {0};
    int error = family ? 0 : tkv_fail(&why, TRIKV_E_ARGUMENT, "the descriptor is no arena");

    error = error ? error : tkv_adoption_begin(&a, fd, &family->budget, &s->kernels, &why);
    if (error)
        count_cold(s, reason_of(error), &why);
    else
        take_arena(s, a, family);
    tkv_adoption_end(&a);
    tkv_quota_unref(&family);
    tkv_keep_forget_arena(s, name); /* unless somebody lives in it */
}

static void wake_entries(struct tkv_server *s)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next)
            tkv_sessions_idle(e);
}

/* Who has not come back for a session by now does not. */
static void on_grace_over(uv_timer_t *timer)
{
    struct tkv_server *const s = timer->data;
    const uint64_t now_ms = uv_now(&s->loop), grace_ms = s->config.grace_ms;
    uint64_t oldest_ms;
    const uint32_t n = tkv_sessions_doom_orphans(
        &s->sessions, now_ms > grace_ms ? now_ms - grace_ms : 0, &oldest_ms);

    if (n > 0)
        tkv_log(&s->log, TKV_LOG_INFO, "msg=\"sessions that nobody came back for\" n=%u", n);
    if (oldest_ms)
        uv_timer_start(timer, on_grace_over, oldest_ms + grace_ms - now_ms, 0);
}

/*
 * Since when nobody has come for them goes into their notes, for the next successor: a daemon that
 * dies again and again would give every one of them the whole time anew, and drown in them. The clock is the
 * machine's, not the process's. What cannot be noted for want of memory has its time anew.
 */
static void begin_grace(struct tkv_server *s)
{
    const uint64_t now_ms = uv_now(&s->loop);

    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        for (struct tkv_session_entry *e = s->sessions.bucket[b]; e; e = e->next) {
            struct tkv_report why;

            if (e->kind != TKV_ENTRY_SESSION || (e->orphaned_ms && e->orphaned_ms <= now_ms))
                continue;
            e->orphaned_ms = now_ms;
            (void)tkv_keep_note(e, false, &why);
        }
    on_grace_over(&s->grace);
}

void tkv_keep_adopt(struct tkv_server *s, const struct tkv_notify_sockets *passed)
{
    const uint64_t began_ns = uv_hrtime();

    uv_timer_init(&s->loop, &s->grace);
    s->grace.data = s;
    for (size_t i = 0; i < passed->n_arenas; i++) {
        adopt_arena(s, passed->arena[i].fd, passed->arena[i].id);
        close(passed->arena[i].fd);
    }
    if (passed->n_arenas == 0)
        return;
    wake_entries(s);
    tkv_prefixes_trim(s, s->config.max_prefixes);
    s->keep.adopt_us = (uv_hrtime() - began_ns) / 1000;
    tkv_log(&s->log, TKV_LOG_INFO,
            "msg=adopted arenas=%zu sessions=%llu prefixes=%llu bytes=%zu us=%llu",
            passed->n_arenas, (unsigned long long)s->keep.n_sessions,
            (unsigned long long)s->keep.n_prefixes, atomic_load(&s->budget.used_bytes),
            (unsigned long long)s->keep.adopt_us);
    begin_grace(s);
}

void tkv_keep_leave(struct tkv_server *s)
{
    for (size_t b = 0; b < TKV_SESSION_BUCKETS; b++)
        while (s->sessions.bucket[b])
            tkv_sessions_leave(s->sessions.bucket[b]);
}
