/*
 * The price of a byte is searched by bisection: at a price every head takes what is cheapest for it
 * alone, error and bytes together. Two neighbouring prices remain, one that spends too little and one that
 * spends too much, by as much as the largest step of a head. From below what is left is spent one step after
 * the other, the largest gain for a byte first; from above steps are taken back, the smallest loss first.
 * The better of the two is the plan.
 */
#include "core/plan.h"

#include <float.h>
#include <math.h>

#include "core/block.h"

const char *const tkv_plan_codecs[TKV_PLAN_TIERS] = {"tq1", "tq2", "tq3", "tq4"};
const uint32_t tkv_plan_reaches[TKV_PLAN_REACHES] = {16, 32, 64, 128, 256, 512, 1024, 2048};

/* Part of a tier's error that is left within a reach: most of it is where most attention is. */
static const double near_part = 0.7;

/* Blocks of a reach: whole ones are dropped, so that a token more than some would cost as much as a
 * block. No step is over a quarter, since a budget is mostly lost in steps that are too large for it. */
static const uint8_t reach_blocks[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32};

enum {
    N_REACHES = sizeof(reach_blocks) / sizeof(reach_blocks[0]),
    N_OPTIONS = 1 + TKV_PLAN_TIERS * (1 + N_REACHES),
    N_TURNS = 80,
};

/* Option 0 keeps nothing cold; then for each tier the reaches, all tokens last. False if the tier may
 * not be used, or a reach is as much as there is. */
static bool option_at(const struct tkv_plan *p, uint32_t i, struct tkv_plan_choice *c)
{
    const uint32_t reach = (i - 1) % (1 + N_REACHES);

    *c = (struct tkv_plan_choice){0};
    if (i == 0)
        return true;
    c->tier = (i - 1) / (1 + N_REACHES);
    c->reach_tokens =
        reach < N_REACHES ? (uint32_t)reach_blocks[reach] * TKV_BLOCK_TOKENS : TKV_PLAN_ALL;
    return (p->tiers >> c->tier & 1) &&
           (c->reach_tokens < p->n_cold_tokens || c->reach_tokens == TKV_PLAN_ALL);
}

static bool may_have(const struct tkv_plan_head *h, struct tkv_plan_choice c)
{
    return !h->is_bound || (c.tier <= h->most_tier && c.reach_tokens <= h->most_reach);
}

uint64_t tkv_plan_bytes(const struct tkv_plan *p, uint32_t head, struct tkv_plan_choice c)
{
    const struct tkv_plan_head *h = &p->heads[head];
    uint64_t n = p->n_cold_tokens;

    if (c.reach_tokens == 0)
        return 0;
    /* Whole blocks are dropped, so that nearly one more stays. */
    if (c.reach_tokens < n)
        n = (uint64_t)c.reach_tokens + TKV_BLOCK_TOKENS - 1;
    return n / TKV_BLOCK_TOKENS * h->block_bytes[c.tier] + h->block_bytes[tkv_plan_open_tier(p, c)];
}

uint32_t tkv_plan_used(const struct tkv_plan *p, const struct tkv_plan_choice *c)
{
    uint32_t used = 0;

    for (uint32_t h = 0; h < p->n_heads; h++)
        if (c[h].reach_tokens > 0)
            used |= 1u << c[h].tier | 1u << tkv_plan_open_tier(p, c[h]);
    return used;
}

/* The error of a window of n tokens, between the measured ones around it as a function of 1 / n. */
static double window_error(const float *errors, uint64_t n)
{
    const float *e = errors + TKV_PLAN_TIERS;
    uint32_t i = 0;
    double low, high;

    while (i + 1 < TKV_PLAN_REACHES && tkv_plan_reaches[i + 1] <= n)
        i++;
    if (i + 1 == TKV_PLAN_REACHES || n <= tkv_plan_reaches[i])
        return (double)e[i];
    low = 1 / (double)tkv_plan_reaches[i];
    high = 1 / (double)tkv_plan_reaches[i + 1];
    return (double)e[i + 1] +
           ((double)e[i] - (double)e[i + 1]) * (1 / (double)n - high) / (low - high);
}

double tkv_plan_error(const struct tkv_plan *p, uint32_t head, struct tkv_plan_choice c)
{
    const float *errors = p->heads[head].errors;

    if (c.reach_tokens == 0)
        return window_error(errors, p->n_hot_tokens);
    if (c.reach_tokens >= p->n_cold_tokens)
        return (double)errors[c.tier];
    return near_part * (double)errors[c.tier] +
           window_error(errors, (uint64_t)c.reach_tokens + p->n_hot_tokens);
}

/* What is cheapest for a head if a byte costs so much. Ties go to the first. */
static struct tkv_plan_choice cheapest(const struct tkv_plan *p, uint32_t head, double price)
{
    struct tkv_plan_choice c, best = {0};
    double least = DBL_MAX;

    for (uint32_t i = 0; i < N_OPTIONS; i++) {
        double cost;

        if (!option_at(p, i, &c) || !may_have(&p->heads[head], c))
            continue;
        cost = tkv_plan_error(p, head, c) + price * (double)tkv_plan_bytes(p, head, c);
        if (cost < least) {
            least = cost;
            best = c;
        }
    }
    return best;
}

static uint64_t choose_all(const struct tkv_plan *p, double price, struct tkv_plan_choice *out)
{
    uint64_t bytes = 0;

    for (uint32_t h = 0; h < p->n_heads; h++) {
        out[h] = cheapest(p, h, price);
        bytes += tkv_plan_bytes(p, h, out[h]);
    }
    return bytes;
}

/* The step with the largest gain for a byte that `left` bytes allow; false if there is none. */
static bool best_step(const struct tkv_plan *p, const struct tkv_plan_choice *now, uint64_t left,
                      uint32_t *head, struct tkv_plan_choice *to)
{
    double most = 0;

    for (uint32_t h = 0; h < p->n_heads; h++) {
        const double error = tkv_plan_error(p, h, now[h]);
        const uint64_t bytes = tkv_plan_bytes(p, h, now[h]);

        for (uint32_t i = 0; i < N_OPTIONS; i++) {
            struct tkv_plan_choice c;
            double gain, more;

            if (!option_at(p, i, &c) || !may_have(&p->heads[h], c))
                continue;
            gain = error - tkv_plan_error(p, h, c);
            more = (double)tkv_plan_bytes(p, h, c) - (double)bytes;
            if (gain <= 0 || more > (double)left)
                continue;
            gain = more > 0 ? gain / more : DBL_MAX;
            if (gain > most) {
                most = gain;
                *head = h;
                *to = c;
            }
        }
    }
    return most > 0;
}

/* The step that loses least for a byte of the excess that it saves. */
static bool best_cut(const struct tkv_plan *p, const struct tkv_plan_choice *now, uint64_t excess,
                     uint32_t *head, struct tkv_plan_choice *to)
{
    double least = DBL_MAX;

    for (uint32_t h = 0; h < p->n_heads; h++) {
        const double error = tkv_plan_error(p, h, now[h]);
        const uint64_t bytes = tkv_plan_bytes(p, h, now[h]);

        for (uint32_t i = 0; i < N_OPTIONS; i++) {
            struct tkv_plan_choice c;
            uint64_t saved;
            double loss;

            if (!option_at(p, i, &c) || !may_have(&p->heads[h], c) ||
                tkv_plan_bytes(p, h, c) >= bytes)
                continue;
            saved = bytes - tkv_plan_bytes(p, h, c);
            loss = (tkv_plan_error(p, h, c) - error) / (double)(saved < excess ? saved : excess);
            if (loss < least) {
                least = loss;
                *head = h;
                *to = c;
            }
        }
    }
    return least < DBL_MAX;
}

static uint64_t take_step(const struct tkv_plan *p, uint64_t bytes, struct tkv_plan_choice *c,
                          uint32_t head, struct tkv_plan_choice to)
{
    bytes = bytes - tkv_plan_bytes(p, head, c[head]) + tkv_plan_bytes(p, head, to);
    c[head] = to;
    return bytes;
}

/* All choices at a price, brought to the budget step by step; their bytes, and the sum of errors. */
static uint64_t settle(const struct tkv_plan *p, double price, uint64_t budget_bytes,
                       struct tkv_plan_choice *out, double *error)
{
    uint64_t bytes = choose_all(p, price, out);
    struct tkv_plan_choice to = {0};
    uint32_t head = 0;

    while (bytes > budget_bytes && best_cut(p, out, bytes - budget_bytes, &head, &to))
        bytes = take_step(p, bytes, out, head, to);
    while (best_step(p, out, budget_bytes - bytes, &head, &to))
        bytes = take_step(p, bytes, out, head, to);
    *error = 0;
    for (uint32_t h = 0; h < p->n_heads; h++)
        *error += tkv_plan_error(p, h, out[h]);
    return bytes;
}

uint64_t tkv_plan_solve(const struct tkv_plan *p, uint64_t budget_bytes,
                        struct tkv_plan_choice *out)
{
    double low = 1e-30, high = 1e30; /* prices: too low, high enough that nothing is kept */
    double from_above, from_below;
    uint64_t bytes;

    for (int i = 0; i < N_TURNS; i++) {
        const double middle = sqrt(low) * sqrt(high);

        if (choose_all(p, middle, out) <= budget_bytes)
            high = middle;
        else
            low = middle;
    }
    (void)settle(p, low, budget_bytes, out, &from_above);
    bytes = settle(p, high, budget_bytes, out, &from_below);
    return from_below <= from_above ? bytes : settle(p, low, budget_bytes, out, &from_above);
}
