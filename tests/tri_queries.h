/* The virtual queries of one head in one call; a round makes the turns once for all heads. */
#ifndef TKV_TESTS_TRI_QUERIES_H
#define TKV_TESTS_TRI_QUERIES_H

#include "core/triattention.h"

/* w[fold->n_queries][head_dim] */
static inline void tri_queries(const struct tkv_tri_fold *fold, const struct tkv_rope *rope,
                               const struct tkv_tri_stats *stats, int64_t n_seen, float *w)
{
    double turns[TKV_MAX_OFFSETS * 2 * TKV_MAX_BANDS];

    tkv_tri_turns(fold, rope, n_seen, turns);
    tkv_tri_turn_queries(fold, rope, stats, turns, w);
}

#endif /* TKV_TESTS_TRI_QUERIES_H */
