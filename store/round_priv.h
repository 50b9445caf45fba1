/* What preparing a round and running it have in common. Only store/round*.c include this. */
#ifndef TKV_STORE_ROUND_PRIV_H
#define TKV_STORE_ROUND_PRIV_H

#include "store/session_priv.h"

/* Heads whose new blocks live beside the old ones at the same time: the more, the more places a round
 * takes, and the colder is what it read last. */
enum { TKV_HEADS_AT_ONCE = 4 };

/* Of the head that has most. */
size_t tkv_round_most_cold(const struct tkv_layer *l);
size_t tkv_round_most_cap_blocks(const struct tkv_layer *l);

/* Sum over KV heads, which may keep different numbers. */
size_t tkv_round_count_cold(const struct tkv_layer *l);

/* Has a head more than a round leaves it? */
bool tkv_round_is_over(const struct tkv_session *s, const struct tkv_layer *l);

/* Blocks for n tokens up to last_position: all full, but for the last and those cut short by positions. */
size_t tkv_round_packed_blocks(size_t n, int32_t last_position);

/* The rows and index lists of selection for one head. */
size_t tkv_round_select_bytes(size_t n_candidates);

/* Working memory of one head in a round: its selection, places, then scoring, the gate or rebuilding. */
size_t tkv_round_head_bytes(const struct tkv_session *s, const struct tkv_layer *l,
                            size_t n_candidates);

#endif /* TKV_STORE_ROUND_PRIV_H */
