/* What probe queries lose with the tokens that a round drops. */
#include "core/gate.h"

#include <math.h>
#include <string.h>

#include "core/attention_priv.h"
#include "core/kernels.h"

/* What stays of a row's mass is at least this: a row that loses all is off by a large number, not by
 * infinity. */
#define LEAST_LEFT 1e-6f

/* weights[64] = those of the lanes that the row sees, 0 in all others. */
static void weigh_row(const struct tkv_gate_rows *g, const struct tkv_kernels *kn, size_t row,
                      const int32_t *positions, size_t n, float *weights)
{
    const struct tkv_span s = tkv_seen_lanes(&g->attn, positions, n, g->positions[row / g->group]);

    if (s.begin >= s.end) {
        memset(weights, 0, TKV_BLOCK_TOKENS * sizeof(*weights));
        return;
    }
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        weights[t] *= g->attn.scale;
    if (g->attn.softcap > 0)
        tkv_cap_logits(kn, weights, g->attn.softcap);
    for (size_t t = 0; t < TKV_BLOCK_TOKENS; t++)
        weights[t] = t >= s.begin && t < s.end ? fminf(weights[t], g->lse[row]) : -INFINITY;
    (void)kn->exp_sum(weights, TKV_BLOCK_TOKENS, g->lse[row]);
}

void tkv_gate_add(struct tkv_gate_rows *g, const struct tkv_kernels *kn, float sign,
                  const float *tile, const float *values, const int32_t *positions, size_t n,
                  float *weights, float *token_mass)
{
    for (size_t t = 0; token_mass && t < n; t++)
        token_mass[t] = 0;
    kn->logits(weights, g->q, g->n_rows, tile, g->dim_k);
    for (size_t r = 0; r < g->n_rows; r++) {
        float *w = weights + r * TKV_BLOCK_TOKENS;

        weigh_row(g, kn, r, positions, n, w);
        for (size_t t = 0; t < n; t++) {
            if (token_mass)
                token_mass[t] += w[t];
            w[t] *= sign;
            g->mass[r] += w[t];
        }
    }
    kn->accumulate(g->lost, weights, g->n_rows, values, n, g->dim_v);
}

/* |o' - o|^2 = |e - m o|^2 / (1 - m)^2 */
static double row_error(const struct tkv_gate_rows *g, size_t row, double left)
{
    const float *out = g->out + row * g->dim_v, *lost = g->lost + row * g->dim_v;
    double sum = 0;

    for (uint32_t i = 0; i < g->dim_v; i++) {
        const double d = (double)lost[i] - (double)g->mass[row] * (double)out[i];

        sum += d * d;
    }
    return sum / (left * left);
}

struct tkv_gate_measure tkv_gate_measure(const struct tkv_gate_rows *g)
{
    double error = 0, norm = 0, mass = 0, change = 0;

    for (size_t r = 0; r < g->n_rows; r++) {
        const double left = fmax(1 - (double)g->mass[r], (double)LEAST_LEFT);

        for (uint32_t i = 0; i < g->dim_v; i++)
            norm += (double)g->out[r * g->dim_v + i] * (double)g->out[r * g->dim_v + i];
        error += row_error(g, r, left);
        mass += (double)g->mass[r];
        change = fmax(change, -log(left));
    }
    return (struct tkv_gate_measure){
        .output_error = norm > 0 ? (float)sqrt(error / norm) : 0,
        .lse_change = (float)change,
        .lost_mass = g->n_rows > 0 ? (float)(mass / (double)g->n_rows) : 0,
    };
}

bool tkv_gate_is_over(const struct tkv_gate_measure *m, const struct tkv_gate_measure *limits)
{
    /* Not "greater": what is no number is over. */
    return !(m->output_error <= limits->output_error && m->lse_change <= limits->lse_change &&
             m->lost_mass <= limits->lost_mass);
}

void tkv_gate_worst(struct tkv_gate_measure *a, const struct tkv_gate_measure *b)
{
    a->output_error = fmaxf(a->output_error, b->output_error);
    a->lse_change = fmaxf(a->lse_change, b->lse_change);
    a->lost_mass = fmaxf(a->lost_mass, b->lost_mass);
}
