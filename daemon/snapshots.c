/* Directories, the daily budget, and what a file says beside the cache. */
#include "daemon/snapshots.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/server.h"
#include "proto/errors.h"
#include "store/snapshot.h"

enum { META_VERSION = 1, DAY_MS = 24 * 3600 * 1000 };

const char *const tkv_snapshot_failures[TKV_SNAPSHOT_N_FAILURES] = {
    "day_budget", "memory", "io", "profile", "file", "deadline", "other"};

/* ---- files ---------------------------------------------------------------------------------- */

void tkv_snapshots_count_failure(struct tkv_snapshots *s, int error)
{
    switch (error) {
    case TRIKV_E_TOO_LARGE: s->n_failed[TKV_SNAPSHOT_NO_BUDGET]++; break;
    case TRIKV_E_MEMORY_CAP:
    case TRIKV_E_QUOTA:
    case TRIKV_E_NO_MEMORY: s->n_failed[TKV_SNAPSHOT_NO_MEMORY]++; break;
    case TRIKV_E_SYSTEM: s->n_failed[TKV_SNAPSHOT_IO]++; break;
    case TRIKV_E_NO_PROFILE:
    case TRIKV_E_GEOMETRY: s->n_failed[TKV_SNAPSHOT_PROFILE]++; break;
    case TRIKV_E_VALUE:
    case TRIKV_E_VERSION:
    case TRIKV_E_CHECKSUM: s->n_failed[TKV_SNAPSHOT_FILE]++; break;
    case TRIKV_E_DRAINING: s->n_failed[TKV_SNAPSHOT_NO_TIME]++; break;
    default: s->n_failed[TKV_SNAPSHOT_OTHER]++; break;
    }
}

int tkv_snapshots_check(const struct tkv_server *s, const char *name, struct tkv_report *why)
{
    static const char allowed[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t n = strlen(name);

    if (!s->config.snapshot_directory[0])
        return tkv_fail(why, TRIKV_E_STATE, "snapshot.directory is \"\": there are no snapshots");
    if (n == 0 || n > TRIKV_MAX_NAME_BYTES || name[0] == '.' || strspn(name, allowed) != n)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "name: want 1 to %d of A-Z a-z 0-9 . _ -, the first not a dot",
                        TRIKV_MAX_NAME_BYTES);
    return TRIKV_OK;
}

int tkv_snapshots_check_budget(struct tkv_server *s, uint64_t bytes, struct tkv_report *why)
{
    struct tkv_snapshots *const t = &s->snapshots;
    const uint64_t now_ms = uv_now(&s->loop);
    const uint64_t most = s->config.snapshot_day_bytes;

    if (now_ms - t->day_began_ms >= DAY_MS) {
        t->day_began_ms = now_ms;
        t->day_bytes = 0;
    }
    if (most == 0 || (t->day_bytes <= most && bytes <= most - t->day_bytes))
        return TRIKV_OK;
    return tkv_fail(why, TRIKV_E_TOO_LARGE,
                    "snapshot.max_bytes_per_day is %llu: %llu are written, %llu more are too many",
                    (unsigned long long)most, (unsigned long long)t->day_bytes,
                    (unsigned long long)bytes);
}

void tkv_snapshots_count_written(struct tkv_server *s, uint64_t bytes)
{
    struct tkv_snapshots *const t = &s->snapshots;

    t->n_written++;
    t->n_written_bytes += bytes;
    t->day_bytes += bytes;
    t->any_written = true;
    t->written_ms = uv_now(&s->loop);
}

int tkv_snapshots_open_directory(const char *directory, uid_t uid, bool make,
                                 struct tkv_report *why)
{
    char path[TKV_CONFIG_PATH_BYTES + 16];
    int fd;

    (void)snprintf(path, sizeof(path), "%s/%lu", directory, (unsigned long)uid);
    if (make && mkdir(path, 0700) && errno != EEXIST) {
        tkv_fail(why, TRIKV_E_SYSTEM, "snapshot.directory: %s: %s", path, strerror(errno));
        return -1;
    }
    fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        tkv_fail(why, errno == ENOENT ? TRIKV_E_ARGUMENT : TRIKV_E_SYSTEM,
                 "snapshot.directory: %s: %s", path, strerror(errno));
    return fd;
}

/* ---- meta ----------------------------------------------------------------------------------- */

size_t tkv_snapshot_meta_bytes(const struct tkv_session_entry *e)
{
    return sizeof(struct tkv_snapshot_meta) + e->prefix.ids.n * sizeof(uint32_t);
}

static void write_rope(const struct tkv_rope_params *r, struct tkv_snapshot_meta *m)
{
    m->theta = r->theta;
    m->factor = r->factor;
    m->low_freq_factor = r->low_freq_factor;
    m->high_freq_factor = r->high_freq_factor;
    m->beta_fast = r->beta_fast;
    m->beta_slow = r->beta_slow;
    m->attention_factor = r->attention_factor;
    m->head_dim = r->head_dim;
    m->rotary_dim = r->rotary_dim;
    m->layout = (uint32_t)r->layout;
    m->scaling = (uint32_t)r->scaling;
    m->original_context = r->original_context;
    m->no_truncate = r->no_truncate;
}

static struct tkv_rope_params read_rope(const struct tkv_snapshot_meta *m)
{
    return (struct tkv_rope_params){.head_dim = m->head_dim,
                                    .rotary_dim = m->rotary_dim,
                                    .layout = (enum tkv_rope_layout)m->layout,
                                    .scaling = (enum tkv_rope_scaling)m->scaling,
                                    .theta = m->theta,
                                    .factor = m->factor,
                                    .low_freq_factor = m->low_freq_factor,
                                    .high_freq_factor = m->high_freq_factor,
                                    .beta_fast = m->beta_fast,
                                    .beta_slow = m->beta_slow,
                                    .attention_factor = m->attention_factor,
                                    .original_context = m->original_context,
                                    .no_truncate = m->no_truncate != 0};
}

void tkv_snapshot_meta_write(const struct tkv_session_entry *e, void *out)
{
    struct tkv_snapshot_meta m = {
        .version = META_VERSION, .n_ids = e->prefix.ids.n, .salt_bytes = e->prefix.key.salt_bytes};

    m.flags = (e->profile ? TKV_META_PROFILE : 0u) | (e->has_rope ? TKV_META_ROPE : 0u) |
              (e->prefix.is_named ? TKV_META_NAMED : 0u) | (e->prefix.keep ? TKV_META_KEEP : 0u) |
              (e->prefix.is_forced ? TKV_META_FORCED : 0u);
    if (e->profile) {
        tkv_profile_digest(e->profile, m.digest);
        memcpy(m.profile, e->profile->name, sizeof(e->profile->name));
    }
    if (e->has_rope)
        write_rope(&e->rope, &m);
    memcpy(m.label, e->label, sizeof(e->label));
    memcpy(m.fingerprint, e->prefix.key.fingerprint, sizeof(e->prefix.key.fingerprint));
    memcpy(m.salt, e->prefix.key.salt, e->prefix.key.salt_bytes);
    memcpy(out, &m, sizeof(m));
    if (m.n_ids > 0)
        memcpy((uint8_t *)out + sizeof(m), tkv_token_ids_data(&e->prefix.ids),
               m.n_ids * sizeof(uint32_t));
}

/* Within its field and for people's eyes, as what a client sends is. */
static bool is_text(const char *text, size_t most)
{
    const size_t n = strnlen(text, most + 1);

    return n <= most && tkv_utf8_check(text, n);
}

int tkv_snapshot_meta_check(const void *meta, size_t bytes, struct tkv_report *why)
{
    struct tkv_snapshot_meta m;
    struct tkv_rope_params params;
    struct tkv_rope rope;
    const char *text;

    if (bytes < sizeof(m))
        return tkv_fail(why, TRIKV_E_VALUE, "snapshot: %zu bytes about the session, want %zu",
                        bytes, sizeof(m));
    memcpy(&m, meta, sizeof(m));
    if (m.version != META_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "snapshot: version %u of what is about the session",
                        m.version);
    if (m.flags & ~(uint32_t)TKV_META_FLAGS || m.salt_bytes > sizeof(m.salt) ||
        (bytes - sizeof(m)) / sizeof(uint32_t) != m.n_ids || bytes % sizeof(uint32_t) != 0)
        return tkv_fail(why, TRIKV_E_VALUE,
                        "snapshot: flags %#x, %u bytes of salt, %u token ids in %zu bytes", m.flags,
                        m.salt_bytes, m.n_ids, bytes - sizeof(m));
    if (!is_text(m.label, TRIKV_MAX_NAME_BYTES) || !is_text(m.profile, TRIKV_MAX_NAME_BYTES) ||
        !is_text(m.fingerprint, TKV_FINGERPRINT_BYTES))
        return tkv_fail(why, TRIKV_E_VALUE, "snapshot: label, profile or fingerprint is no text");
    if (!(m.flags & TKV_META_ROPE))
        return TRIKV_OK;
    params = read_rope(&m);
    text = tkv_rope_init(&rope, &params);
    if (text)
        return tkv_fail(why, TRIKV_E_VALUE, "snapshot: rope: %s", text);
    return TRIKV_OK;
}

int tkv_snapshot_meta_take(struct tkv_session_entry *e, const void *meta, struct tkv_report *why)
{
    struct tkv_prefix *const p = &e->prefix;
    struct tkv_snapshot_meta m;
    int error = 0;

    memcpy(&m, meta, sizeof(m));
    memcpy(e->label, m.label, sizeof(e->label));
    e->has_rope = m.flags & TKV_META_ROPE;
    if (e->has_rope)
        e->rope = read_rope(&m);
    p->is_named = m.flags & TKV_META_NAMED;
    p->keep = m.flags & TKV_META_KEEP;
    p->is_forced = m.flags & TKV_META_FORCED;
    memcpy(p->key.fingerprint, m.fingerprint, sizeof(p->key.fingerprint));
    p->key.salt_bytes = m.salt_bytes;
    memcpy(p->key.salt, m.salt, sizeof(p->key.salt));
    if (m.n_ids > 0)
        error = tkv_token_ids_write(
            &p->ids, &e->server->budget, 0,
            (const uint32_t *)(const void *)((const uint8_t *)meta + sizeof(m)), m.n_ids, why);
    if (!error)
        tkv_token_ids_commit(&p->ids, 0, m.n_ids);
    return error;
}

/* ---- the profile ---------------------------------------------------------------------------- */

static int compare_profile(const struct tkv_profile *p, const struct tkv_snapshot_meta *m,
                           struct tkv_report *why)
{
    uint64_t digest[TKV_N_DIGESTS];

    tkv_profile_digest(p, digest);
    for (int i = 0; i < TKV_N_DIGESTS; i++)
        if (digest[i] != m->digest[i])
            return tkv_fail(why, TRIKV_E_GEOMETRY,
                            "snapshot: profile %s differs from the one it was written with: %s",
                            p->name, tkv_digest_names[i]);
    return TRIKV_OK;
}

/* A file may say that it is of this profile and not be. */
static int give_profile(const struct tkv_profile *p, const struct tkv_image_config *c,
                        struct tkv_report *why)
{
    if (c->config.n_layers != p->n_layers)
        return tkv_fail(why, TRIKV_E_GEOMETRY, "snapshot: %u layers, profile %s has %u",
                        c->config.n_layers, p->name, p->n_layers);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        if (memcmp(&c->layers[i].shape, &p->shape, sizeof(p->shape)) != 0)
            return tkv_fail(why, TRIKV_E_GEOMETRY,
                            "snapshot: layer %u has not the heads of profile %s", i, p->name);
        c->layers[i].stats = tkv_profile_layer_statistics(p, i);
        c->layers[i].errors = tkv_profile_layer_errors(p, i);
    }
    return TRIKV_OK;
}

int tkv_snapshot_take_profile(struct tkv_session_entry *e, const struct tkv_snapshot *snapshot,
                              struct tkv_report *why)
{
    struct tkv_snapshot_meta m;
    struct tkv_profile *p;
    int error;

    memcpy(&m, snapshot->meta, sizeof(m));
    e->method = snapshot->configs[0]->config.method;
    snapshot->configs[0]->config.is_kept = e->server->keep.is_on;
    snapshot->configs[0]->config.owner = e->uid;
    if (!(m.flags & TKV_META_PROFILE))
        return TRIKV_OK;
    p = tkv_profiles_find(&e->server->profiles, m.profile);
    if (!p)
        return tkv_fail(why, TRIKV_E_NO_PROFILE, "profile \"%.64s\" is not loaded", m.profile);
    error = compare_profile(p, &m, why);
    error = error ? error : give_profile(p, snapshot->configs[0], why);
    if (!error)
        e->profile = tkv_profile_ref(p);
    return error;
}
