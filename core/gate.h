/*
 * The coherence gate: what the attention of probe queries loses with tokens that a round would drop.
 * For a query with output o and weights p over all tokens, dropping the set D gives
 *
 *   m  = sum over D of p           lost mass
 *   e  = sum over D of p v         lost output
 *   o' = (o - e) / (1 - m)         the output without D
 *   lse' - lse = log(1 - m)        the change of the log-sum-exp
 *
 * so that only dropped tokens are looked at, once the output is known. Which tokens those are, and
 * what follows from the measure, is left to the caller (store/gate.c).
 */
#ifndef TKV_CORE_GATE_H
#define TKV_CORE_GATE_H

#include "core/attention.h"
#include "core/types.h"

struct tkv_kernels;

/* What a KV head's probes lose; or the most that they may lose, INFINITY for no limit. */
struct tkv_gate_measure {
    float output_error; /* sqrt(sum |o' - o|^2 / sum |o|^2), sums over the probes */
    float lse_change;   /* the largest of the probes */
    float lost_mass;    /* mean over the probes */
};

/* The rows of one KV head and what they lose: row r = probe * group + head in group. */
struct tkv_gate_rows {
    struct tkv_attn_params attn;
    size_t n_rows;
    uint32_t group;
    uint32_t dim_k, dim_v;
    const int32_t *positions; /* [n_rows / group] */
    const float *q;           /* [n_rows][dim_k] */
    const float *out;         /* [n_rows][dim_v]: o */
    const float *lse;         /* [n_rows] */
    float *mass;              /* [n_rows]: m */
    float *lost;              /* [n_rows][dim_v]: e */
};

/*
 * Add n <= 64 tokens to what is lost, or with sign -1 take them from it again: keys as a tile
 * [dim_k][64], values as rows [n][dim_v], positions ascending. weights[n_rows][64] is scratch.
 * token_mass[n], unless NULL, becomes the sum over rows of each token's weight.
 */
void tkv_gate_add(struct tkv_gate_rows *g, const struct tkv_kernels *kn, float sign,
                  const float *tile, const float *values, const int32_t *positions, size_t n,
                  float *weights, float *token_mass);

/* No rows lose nothing. */
struct tkv_gate_measure tkv_gate_measure(const struct tkv_gate_rows *g);

/* Is one of the three over its limit, or no number? */
bool tkv_gate_is_over(const struct tkv_gate_measure *m, const struct tkv_gate_measure *limits);

/* a becomes the larger of both, field by field. */
void tkv_gate_worst(struct tkv_gate_measure *a, const struct tkv_gate_measure *b);

#endif /* TKV_CORE_GATE_H */
