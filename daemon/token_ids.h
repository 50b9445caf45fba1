/*
 * The token ids of a session, as its client told them: what a stored prefix is found by. Forks share
 * a list as they share blocks: the first who goes on writes behind what all have, the others
 * copy. A list may be used by several threads, each with a tkv_token_ids of its own; to share one, or to
 * look beyond one's own ids, takes the loop, to which all that share belong then.
 */
#ifndef TKV_DAEMON_TOKEN_IDS_H
#define TKV_DAEMON_TOKEN_IDS_H

#include <stdint.h>

#include "proto/report.h"

struct tkv_budget;
struct tkv_token_list;

/* The first n ids of a list; list NULL: none. */
struct tkv_token_ids {
    struct tkv_token_list *list;
    uint32_t n;
};

/*
 * The ids of n tokens, the first of them being number `at`: those that are known must be the same, the
 * others are written down but count only once committed, when their tokens are in the cache.
 * 0, or an error and nothing has changed. ids may lie in memory that a client writes.
 */
int tkv_token_ids_write(struct tkv_token_ids *t, struct tkv_budget *budget, uint64_t at,
                        const uint32_t *ids, uint32_t n, struct tkv_report *why);
void tkv_token_ids_commit(struct tkv_token_ids *t, uint64_t at, uint32_t n);

/* Forget all but the first n. */
void tkv_token_ids_cut(struct tkv_token_ids *t, uint64_t n);

void tkv_token_ids_share(struct tkv_token_ids *to, const struct tkv_token_ids *from);
void tkv_token_ids_release(struct tkv_token_ids *t, struct tkv_budget *budget);

/* How many of the first ids are the same as ids[n]. */
uint32_t tkv_token_ids_common(const struct tkv_token_ids *t, const uint32_t *ids, uint32_t n);

const uint32_t *tkv_token_ids_data(const struct tkv_token_ids *t);

#endif /* TKV_DAEMON_TOKEN_IDS_H */
