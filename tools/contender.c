/*
 * The budget is searched in whole blocks, between bounds, by the straight line that sizes nearly
 * follow; what is left over after that is given to the newest tokens, which are halves. The half
 * tiers take about a quarter of the bytes in all.
 */
#include "tools/contender.h"

#include <stdio.h>
#include <string.h>

enum {
    PINNED_TOKENS = 4,
    MIN_RECENT_TOKENS = 4,
    MAX_RECENT_TOKENS = 64,
};

static const struct tkv_codec *find_codec(const char *name)
{
    return tkv_codec_by_name(strcmp(name, "fp16") == 0 ? "f16" : name);
}

int tkv_contender_parse(struct tkv_contender *c, const char *name, struct tkv_reason *why)
{
    const struct tkv_codec *codec = find_codec(name);
    const char *colon = strchr(name, ':');
    const size_t n_all = colon ? (size_t)(colon - name) : strlen(name);
    const char *plus = memchr(name, '+', n_all);
    const size_t n = plus ? (size_t)(plus - name) : n_all;

    *c = (struct tkv_contender){0};
    if (strlen(name) >= sizeof(c->name) || n >= sizeof(c->method) || n == 0 ||
        n_all - n > sizeof(c->allocator))
        return tkv_reason_set(why, "policy \"%.60s\": expected a name", name);
    (void)strcpy(c->name, name);
    if (codec) {
        (void)strcpy(c->method, "none");
        c->fixed = true;
    } else {
        (void)snprintf(c->method, sizeof(c->method), "%.*s", (int)n, name);
        if (plus)
            (void)snprintf(c->allocator, sizeof(c->allocator), "%.*s", (int)(n_all - n - 1),
                           plus + 1);
        c->planned = strcmp(c->method, "default") == 0;
        codec = tkv_codec_by_name(colon ? colon + 1 : "tq4");
        if (!codec)
            return tkv_reason_set(why, "policy \"%s\": there is no codec \"%s\"", name, colon + 1);
    }
    c->codec = codec->name;
    return 0;
}

struct tkv_remote_options tkv_contender_options(const struct tkv_contender *c,
                                                const struct tkv_remote_options *base)
{
    struct tkv_remote_options o = *base;

    o.label = c->name;
    o.method = c->method;
    o.allocator = *c->allocator ? c->allocator : NULL;
    o.codec_k = o.codec_v = c->codec;
    if (c->fixed)
        o.profile = NULL;
    o.recent_tokens = MAX_RECENT_TOKENS;
    o.beta_tokens = MAX_RECENT_TOKENS;
    o.pinned_tokens = PINNED_TOKENS;
    o.normalize_scores = -1;
    return o;
}

int tkv_contender_check(const struct tkv_contender *c, const struct tkv_engine *engine,
                        const struct tkv_remote_options *base, struct tkv_reason *why)
{
    struct tkv_remote_options o = tkv_contender_options(c, base);
    struct tkv_reason inner;
    struct tkv_remote *remote = NULL;
    int error;

    if (c->planned) { /* any that it can plan for */
        o.budget_bytes = 1 << 30;
        o.max_tokens = TKV_BLOCK_TOKENS;
    }
    error = tkv_remote_create(&remote, &engine->model->config, &o, &inner);
    tkv_remote_destroy(&remote);
    return error ? tkv_reason_set(why, "policy \"%s\": %.300s", c->name, inner.text) : 0;
}

/* ---- fitting ------------------------------------------------------------------------------------- */

/* A search in blocks of coded tokens: `low` is small enough, `high` too large. */
struct search {
    const struct tkv_recording *r;
    struct tkv_remote_options *o;
    double target, low_bytes, high_bytes;
    uint32_t low, high;
    struct tkv_reason *why;
};

static uint32_t half_tokens(const struct tkv_remote_options *o)
{
    return (uint32_t)(o->pinned_tokens + o->recent_tokens);
}

static int probe(struct search *s, uint32_t n_blocks, double *bytes)
{
    struct tkv_replayed found;

    s->o->budget_tokens = half_tokens(s->o) + n_blocks * TKV_BLOCK_TOKENS;
    if (tkv_recording_replay(s->r, s->o, false, &found, s->why))
        return -1;
    *bytes = (double)found.stats.resident_bytes;
    return 0;
}

static double half_token_bytes(const struct tkv_recording *r)
{
    const struct tkv_model_config *c = &r->engine->model->config;

    return 2.0 * c->n_layers * c->shape.n_kv_heads * (c->shape.head_dim_k + c->shape.head_dim_v);
}

/* Half tiers that leave most of the bytes to the policy: a power of two. */
static void choose_tiers(struct search *s)
{
    const double tokens = s->target / half_token_bytes(s->r);
    int32_t recent = MAX_RECENT_TOKENS;

    while (recent > MIN_RECENT_TOKENS && recent > tokens / 8)
        recent /= 2;
    s->o->recent_tokens = recent;
    s->o->beta_tokens = (uint32_t)recent;
}

/* Make the tiers smaller until one block fits. */
static int find_low(struct search *s)
{
    for (choose_tiers(s);; s->o->beta_tokens /= 2, s->o->recent_tokens /= 2) {
        s->low = 1;
        if (probe(s, s->low, &s->low_bytes))
            return -1;
        if (s->low_bytes <= s->target)
            return 0;
        if (s->o->recent_tokens < 2)
            return tkv_reason_set(s->why, "%.0f bytes are out of reach, the least is %.0f",
                                  s->target, s->low_bytes);
    }
}

static uint32_t next_try(const struct search *s, int turn)
{
    const uint32_t width = s->high - s->low;
    const double share = (s->target - s->low_bytes) / (s->high_bytes - s->low_bytes);
    /* A line can stall at one end: every third turn halves. */
    const uint32_t step = turn % 3 == 2 ? width / 2 : (uint32_t)(share * width + 0.5);

    return s->low + (step < 1 ? 1 : step >= width ? width - 1 : step);
}

static int find_blocks(struct search *s)
{
    double bytes;

    for (int turn = 0; s->high - s->low > 1; turn++) {
        const uint32_t n = next_try(s, turn);

        if (probe(s, n, &bytes))
            return -1;
        if (bytes <= s->target) {
            s->low = n;
            s->low_bytes = bytes;
        } else {
            s->high = n;
            s->high_bytes = bytes;
        }
    }
    return 0;
}

static void use_what_is_left(struct search *s)
{
    const double n_tokens = (s->target - s->low_bytes) / half_token_bytes(s->r);
    const uint32_t more = n_tokens > 1 ? (uint32_t)n_tokens : 0;

    s->o->recent_tokens += (int32_t)more;
    s->o->budget_tokens = half_tokens(s->o) + s->low * TKV_BLOCK_TOKENS;
}

static int search(struct search *s)
{
    if (find_low(s))
        return -1;
    s->high = (uint32_t)(s->r->n_tokens / TKV_BLOCK_TOKENS) + 1;
    if (probe(s, s->high, &s->high_bytes))
        return -1;
    if (s->high_bytes <= s->target)
        return 0; /* its codes alone are small enough */
    if (find_blocks(s))
        return -1;
    use_what_is_left(s);
    return 0;
}

/*
 * First newest tokens, for which bytes are exact, if it takes few of them; then whole blocks, for
 * less than one changes no slab; then the half tiers.
 */
static bool shrink_tokens(struct tkv_remote_options *o, uint32_t n_tokens)
{
    const int32_t least = o->beta_tokens > 1 ? (int32_t)o->beta_tokens / 2 : 1;
    uint32_t n_blocks = (o->budget_tokens - half_tokens(o)) / TKV_BLOCK_TOKENS;

    if ((double)n_tokens <= (double)o->recent_tokens - least)
        o->recent_tokens -= (int32_t)n_tokens;
    else if (n_blocks > 1)
        n_blocks--;
    else if (o->recent_tokens > least)
        o->recent_tokens = least;
    else if (o->beta_tokens > 1)
        o->beta_tokens = (uint32_t)(o->recent_tokens = least);
    else
        return false;
    o->budget_tokens = half_tokens(o) + n_blocks * TKV_BLOCK_TOKENS;
    return true;
}

bool tkv_contender_shrink(struct tkv_remote_options *o, const struct tkv_replayed *found,
                          double excess_bytes)
{
    const double per_token = (double)found->stats.fp16_bytes / (double)found->stats.n_seen;

    if (o->budget_bytes == 0)
        return shrink_tokens(o, (uint32_t)(excess_bytes / per_token) + 1);
    if (o->budget_bytes <= (uint64_t)excess_bytes + 1)
        return false;
    o->budget_bytes -= (uint64_t)excess_bytes + 1;
    return true;
}

int tkv_contender_fit(const struct tkv_contender *c, const struct tkv_recording *r,
                      double target_bytes, struct tkv_remote_options *o, struct tkv_replayed *found,
                      struct tkv_reason *why)
{
    struct search s = {.r = r, .o = o, .target = target_bytes, .why = why};
    double excess;

    if (c->planned) {
        o->budget_bytes = (uint64_t)target_bytes;
        o->max_tokens = (uint32_t)r->n_tokens;
    } else if (!c->fixed && search(&s))
        return -1;
    for (;;) {
        if (tkv_recording_replay(r, o, true, found, why))
            return -1;
        excess = (double)found->stats.resident_bytes - target_bytes;
        if (c->fixed || excess <= 0)
            return 0;
        if (!tkv_contender_shrink(o, found, excess))
            return tkv_reason_set(why, "%.0f bytes are out of reach", target_bytes);
    }
}
