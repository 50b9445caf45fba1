/*
 * The price of a byte is searched by bisection: at a price every head takes what is cheapest for it
 * alone, error and bytes together. What is left is then spent one step after the other, the largest
 * gain for a byte first. The error is off the best by less than one step of one head.
 */
#include "core/plan.h"

#include <float.h>
#include <math.h>

#include "core/block.h"

const char *const tkv_plan_codecs[TKV_PLAN_TIERS] = {"tq1", "tq2", "tq3", "tq4"};
const uint32_t tkv_plan_reaches[TKV_PLAN_REACHES] = {16, 32, 64, 128, 256, 512, 1024, 2048};

/* Part of a tier's error that is left within a reach: most of it is where most attention is. */
static const double near_part = 0.7;

enum { N_OPTIONS = 1 + TKV_PLAN_TIERS * (1 + TKV_PLAN_REACHES), N_TURNS = 80 };

/* Option 0 keeps nothing cold; then for each tier the reaches, all tokens last. False if the tier may
 * not be used, or a reach is no more than the hot tokens, or more than there are. */
static bool option_at(const struct tkv_plan *p, uint32_t i, struct tkv_plan_choice *c)
{
    const uint32_t reach = (i - 1) % (1 + TKV_PLAN_REACHES);
    uint32_t tokens;

    *c = (struct tkv_plan_choice){0};
    if (i == 0)
        return true;
    c->tier = (i - 1) / (1 + TKV_PLAN_REACHES);
    if (!(p->tiers >> c->tier & 1))
        return false;
    c->reach_tokens = TKV_PLAN_ALL;
    if (reach == TKV_PLAN_REACHES)
        return true;
    tokens = tkv_plan_reaches[reach];
    if (tokens <= p->n_hot_tokens || tokens - p->n_hot_tokens >= p->n_cold_tokens)
        return false;
    c->reach_tokens = tokens - p->n_hot_tokens;
    return true;
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

/* The error of the largest measured window that n tokens hold. */
static double window_error(const float *errors, uint64_t n)
{
    uint32_t i = 0;

    while (i + 1 < TKV_PLAN_REACHES && tkv_plan_reaches[i + 1] <= n)
        i++;
    return (double)errors[TKV_PLAN_TIERS + i];
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

uint64_t tkv_plan_solve(const struct tkv_plan *p, uint64_t budget_bytes,
                        struct tkv_plan_choice *out)
{
    double low = 1e-30, high = 1e30; /* prices: too low, high enough that nothing is kept */
    struct tkv_plan_choice to;
    uint32_t head;
    uint64_t bytes;

    for (int i = 0; i < N_TURNS; i++) {
        const double middle = sqrt(low) * sqrt(high);

        if (choose_all(p, middle, out) <= budget_bytes)
            high = middle;
        else
            low = middle;
    }
    bytes = choose_all(p, high, out);
    while (best_step(p, out, budget_bytes - bytes, &head, &to)) {
        bytes = bytes - tkv_plan_bytes(p, head, out[head]) + tkv_plan_bytes(p, head, to);
        out[head] = to;
    }
    return bytes;
}
