/*
 * Stored prefixes: sessions that nobody works on any more, kept with the ids of their tokens, so that
 * another session which begins with the same ids can begin as a fork. They are entries of the session
 * table without an owner, the least recently used go first: when there are more than
 * the configuration allows, and whenever a request would fail for memory. Loop thread only.
 *
 * What is found is never a guess: ids are compared one by one, and the state is what appending the
 * same ids would give, or it is not used.
 */
#ifndef TKV_DAEMON_PREFIXES_H
#define TKV_DAEMON_PREFIXES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "daemon/token_ids.h"
#include "proto/limits.h"

struct tkv_call;
struct tkv_profile;
struct tkv_server;
struct tkv_session_config;
struct tkv_session_entry;

enum { TKV_FINGERPRINT_BYTES = 128 };

/* What must be the same beside the ids. */
struct tkv_prefix_key {
    char fingerprint[TKV_FINGERPRINT_BYTES + 1]; /* of the model */
    uint8_t salt[TRIKV_MAX_NAME_BYTES];
    uint32_t salt_bytes;
};

/* A session's part in this. */
struct tkv_prefix {
    bool is_named;  /* it was opened so that its tokens have ids */
    bool keep;      /* when it ends it is stored */
    bool is_forced; /* by ROUND, or a budget given later: appending alone gives another state */
    struct tkv_prefix_key key;
    struct tkv_token_ids ids;
    struct tkv_session_entry *newer, *older; /* of those stored, by last use */
    uint64_t n_hits;
};

enum tkv_prefix_outcome {
    TKV_PREFIX_NOT_ASKED,
    TKV_PREFIX_HIT,
    TKV_PREFIX_PARTIAL,
    TKV_PREFIX_MISS
};

/* Why not more was found: the reason of the candidate that came furthest. */
enum tkv_prefix_reason {
    TKV_PREFIX_OK,
    TKV_PREFIX_OFF,      /* nothing is stored by configuration */
    TKV_PREFIX_METHOD,   /* of policies that look at queries too */
    TKV_PREFIX_NONE,     /* nothing is stored for this user and salt */
    TKV_PREFIX_MODEL,    /* nothing of this fingerprint */
    TKV_PREFIX_GEOMETRY, /* nothing of these layers */
    TKV_PREFIX_PROFILE,  /* nothing of this profile, as it is loaded now */
    TKV_PREFIX_POLICY,   /* nothing of this policy */
    TKV_PREFIX_IDS,      /* nothing that goes on with these ids */
    TKV_PREFIX_POINT,    /* it goes on, but its state here is gone */
    TKV_PREFIX_N_REASONS,
};
enum { TKV_PREFIX_N_OUTCOMES = TKV_PREFIX_MISS + 1 };

extern const char *const tkv_prefix_outcomes[TKV_PREFIX_N_OUTCOMES];
extern const char *const tkv_prefix_reasons[TKV_PREFIX_N_REASONS];

struct tkv_prefixes {
    struct tkv_session_entry *newest, *oldest;
    uint32_t n; /* those being destroyed not included */
    uint64_t n_lookups[TKV_PREFIX_N_OUTCOMES][TKV_PREFIX_N_REASONS];
    uint64_t n_asked_tokens;
    uint64_t n_found_tokens;
    uint64_t n_kept;
    uint64_t n_evicted; /* for memory or for newer ones */
};

struct tkv_prefix_query {
    uid_t uid;
    const struct tkv_prefix_key *key;
    const uint32_t *ids;
    uint32_t n;
    const struct tkv_profile *profile;
    const struct tkv_session_config *config;
};

struct tkv_prefix_match {
    struct tkv_session_entry *entry; /* NULL: a miss */
    uint32_t n_asked;
    uint32_t n; /* of these are the first of the entry */
    enum tkv_prefix_outcome outcome;
    enum tkv_prefix_reason reason;
};

/* The stored prefix that has most of the query's ids. It is the newest from now on. */
struct tkv_prefix_match tkv_prefixes_find(struct tkv_server *s, const struct tkv_prefix_query *q);
void tkv_prefixes_count(struct tkv_prefixes *p, const struct tkv_prefix_match *m);

/*
 * Store an idle session, which leaves its owner for that, as far as its ids are known. EXISTS: just
 * this is stored already. After any error the entry is as it was, but for tokens without ids.
 */
int tkv_prefixes_take(struct tkv_session_entry *e, struct tkv_report *why);

/* An entry without an owner is stored from now on: it was by an earlier daemon. */
void tkv_prefixes_restore(struct tkv_session_entry *e);

/* A stored entry is on its way out. */
void tkv_prefixes_forget(struct tkv_session_entry *e);

/* Destroy the oldest ones until n are left. */
void tkv_prefixes_trim(struct tkv_server *s, uint32_t n);

/* Destroy this one. */
void tkv_prefixes_evict(struct tkv_session_entry *e);

#endif /* TKV_DAEMON_PREFIXES_H */
