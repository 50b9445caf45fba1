/*
 * A TriAttention round: every layer keeps `tokens` tokens for each KV head, and those that were folded since
 * the last round; it scores all, keeps `tokens` again, and writes the new blocks. Appends and folds,
 * which encode new tokens, are outside its time; a fold of all layers is timed by itself.
 */
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/scene.h"

enum { LEAST_REPETITIONS = 5, PLAIN_LAYERS = 1 };

struct times {
    struct tkv_samples round_ms;
    struct tkv_samples fold_ms; /* of 64 tokens */
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_machine machine;
    struct times own, halves, plain;
};

static double ms_since(const struct bench *b, uint64_t start)
{
    return (double)(tkv_machine_now_ns(&b->machine) - start) * 1e-6;
}

/* What a round that was asked for would do first: with room in the budget it is all that it does. */
static int time_fold(struct bench *b, struct tkv_scene *s, struct times *t, struct tkv_reason *why)
{
    uint64_t start;

    if (tkv_scene_budget(s, s->size.budget_tokens + TKV_SCENE_BETA, why))
        return -1;
    start = tkv_machine_now_ns(&b->machine);
    if (tkv_scene_round(s, why))
        return -1;
    tkv_samples_add(&t->fold_ms, ms_since(b, start));
    return tkv_scene_budget(s, s->size.budget_tokens, why);
}

static int time_round(struct bench *b, struct tkv_scene *s, struct times *t, struct tkv_reason *why)
{
    uint64_t start;

    for (uint32_t layer = 0; layer < s->size.n_layers; layer++)
        if (tkv_scene_append(s, layer, TKV_SCENE_BETA, why))
            return -1;
    if (time_fold(b, s, t, why))
        return -1;
    start = tkv_machine_now_ns(&b->machine);
    if (tkv_scene_round(s, why))
        return -1;
    tkv_samples_add(&t->round_ms, ms_since(b, start));
    return 0;
}

/* The first round after the filling is not counted. */
static int measure(struct bench *b, const char *codec, uint32_t n_layers,
                   const struct tkv_kernels *kn, size_t least, struct times *t,
                   struct tkv_reason *why)
{
    const struct tkv_scene_size size = {.head_dim = b->o->head_dim,
                                        .n_kv_heads = b->o->kv_heads,
                                        .group = b->o->group,
                                        .n_layers = n_layers,
                                        .n_tokens = b->o->tokens + TKV_SCENE_BETA,
                                        .codec = codec,
                                        .budget_tokens = (uint32_t)b->o->tokens};
    struct tkv_bench_clock clock;
    struct tkv_scene s;
    int e = tkv_scene_init(&s, &size, &b->machine, kn, 7, why);

    if (e)
        return e;
    clock = tkv_bench_clock_start(b->o->seconds, least + 1);
    while (!e && tkv_bench_clock_go_on(&clock)) {
        e = time_round(b, &s, t, why);
        if (clock.n == 1)
            t->round_ms.n = t->fold_ms.n = 0;
    }
    tkv_scene_deinit(&s);
    return e;
}

static void record(struct bench *b, struct tkv_record *r)
{
    const struct tkv_bench_options *o = b->o;
    const double keys = (double)o->layers * o->kv_heads * (double)(o->tokens + TKV_SCENE_BETA);
    const double fold_ms = tkv_samples_spread(&b->own.fold_ms).median;
    const double ms = tkv_samples_spread(&b->own.round_ms).median;

    tkv_machine_describe(&b->machine, r);
    tkv_record_text(r, "codec", "codec", o->codec);
    tkv_record_number(r, "head_dim", "head dimension", o->head_dim);
    tkv_record_number(r, "layers", "layers", o->layers);
    tkv_record_number(r, "kv_heads", "KV heads", o->kv_heads);
    tkv_record_number(r, "group", "query heads for each", o->group);
    tkv_record_number(r, "tokens", "tokens kept", (double)o->tokens);
    tkv_record_number(r, "new_tokens", "new tokens since the last round", TKV_SCENE_BETA);
    tkv_record_spread(r, "ms_per_round", "ms per round", &b->own.round_ms);
    tkv_record_number(r, "ns_per_key", "ns per token and KV head", ms * 1e6 / keys);
    tkv_record_number(r, "us_per_token", "round, us per new token", ms * 1e3 / TKV_SCENE_BETA);
    tkv_record_number(r, "ms_per_fold",
                      "ms per fold (encode 64 tokens), of which there are two between rounds",
                      fold_ms);
    tkv_record_number(r, "fold_us_per_token", "fold, us per new token",
                      fold_ms * 1e3 / TKV_BLOCK_TOKENS);
    if (o->alone)
        return;
    if (b->halves.round_ms.n) {
        const double halves = tkv_samples_spread(&b->halves.round_ms).median;

        tkv_record_number(r, "fp16_ms", "our fp16, ms", halves);
        tkv_record_number(r, "speedup_vs_fp16", "times faster than our fp16", halves / ms);
    }
    if (b->plain.round_ms.n) {
        const double plain =
            tkv_samples_spread(&b->plain.round_ms).median * o->layers / PLAIN_LAYERS;

        tkv_record_number(r, "plain_c_ms", "our plain C kernels, ms (from one layer)", plain);
        tkv_record_number(r, "speedup_vs_plain_c", "times faster than plain C", plain / ms);
    }
}

static int check_tokens(const struct tkv_bench_options *o, struct tkv_reason *why)
{
    const unsigned least = TKV_SCENE_RECENT + TKV_SCENE_PINNED + 1;

    if (o->tokens >= least)
        return 0;
    return tkv_reason_set(why, "--tokens: %u, expected at least %u: %d recent, %d pinned and one",
                          (unsigned)o->tokens, least, TKV_SCENE_RECENT, TKV_SCENE_PINNED);
}

int tkv_bench_round(const struct tkv_bench_options *o, struct tkv_record *r, struct tkv_reason *why)
{
    struct bench *b = calloc(1, sizeof(*b));
    int e;

    if (!b)
        return tkv_reason_set(why, "out of memory");
    b->o = o;
    e = check_tokens(o, why) || tkv_machine_init(&b->machine, o->threads, o->disable, why) ||
        measure(b, o->codec, o->layers, &b->machine.kernels, LEAST_REPETITIONS, &b->own, why);
    if (!e && !o->alone)
        e = measure(b, "f16", o->layers, &b->machine.kernels, 3, &b->halves, why) ||
            measure(b, o->codec, PLAIN_LAYERS, &b->machine.plain, 3, &b->plain, why);
    if (!e)
        record(b, r);
    tkv_machine_deinit(&b->machine);
    free(b);
    return e ? -1 : 0;
}
