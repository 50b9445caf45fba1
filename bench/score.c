/*
 * TriAttention scores of what one KV head has cached, computed on the codes, as a round begins with:
 * virtual queries, dot products, norm terms, z-scores. What a round does after them is in round.c.
 */
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/scene.h"
#include "store/session_priv.h"

enum { LEAST_REPETITIONS = 15 };

struct bench {
    struct tkv_machine machine;
    struct tkv_scene scene;
    void *common;
    void *scratch;
    float *scores;
    struct tkv_samples us;
};

static int make(struct bench *b, const struct tkv_bench_options *o, struct tkv_reason *why)
{
    /* These stay halves, and are not scored. */
    const uint64_t beside = TKV_SCENE_RECENT + TKV_SCENE_PINNED;
    const struct tkv_scene_size size = {.head_dim = o->head_dim,
                                        .n_kv_heads = 1,
                                        .group = o->group,
                                        .n_layers = 1,
                                        .n_tokens = o->tokens + beside,
                                        .codec = o->codec,
                                        .budget_tokens = (uint32_t)(o->tokens + 2 * beside)};
    const struct tkv_layer *l;

    /* A round with room in the budget does nothing but fold what is warm. */
    if (tkv_scene_init(&b->scene, &size, &b->machine, &b->machine.kernels, 7, why) ||
        tkv_scene_round(&b->scene, why))
        return -1;
    l = &b->scene.session->layers[0];
    b->common = malloc(tkv_score_common_bytes(b->scene.session));
    b->scratch =
        aligned_alloc(64, tkv_align(tkv_score_bytes(b->scene.session, l, l->heads[0].n_cold), 64));
    b->scores = malloc((l->heads[0].n_cold + 1) * sizeof(*b->scores));
    if (!b->common || !b->scratch || !b->scores)
        return tkv_reason_set(why, "out of memory for scores");
    return l->heads[0].n_cold ? 0 : tkv_reason_set(why, "no token became codes");
}

static void measure(struct bench *b, double seconds)
{
    struct tkv_bench_clock clock = tkv_bench_clock_start(seconds, LEAST_REPETITIONS + 1);
    const struct tkv_session *s = b->scene.session;

    while (tkv_bench_clock_go_on(&clock)) {
        const uint64_t start = tkv_machine_now_ns(&b->machine);

        tkv_score_common(s, &s->layers[0], b->common);
        tkv_score_head(s, &s->layers[0], 0, b->common, b->scores, b->scratch);
        if (clock.n > 1)
            tkv_samples_add(&b->us, (double)(tkv_machine_now_ns(&b->machine) - start) * 1e-3);
    }
}

static void record(struct bench *b, const struct tkv_bench_options *o, struct tkv_record *r)
{
    const double keys = (double)b->scene.session->layers[0].heads[0].n_cold;

    tkv_machine_describe(&b->machine, r);
    tkv_record_text(r, "codec", "codec", o->codec);
    tkv_record_number(r, "head_dim", "head dimension", o->head_dim);
    tkv_record_number(r, "group", "query heads", o->group);
    tkv_record_number(r, "keys", "keys scored", keys);
    tkv_record_spread(r, "us_per_head", "us to score them", &b->us);
    tkv_record_number(r, "ns_per_key", "ns per key",
                      tkv_samples_spread(&b->us).median * 1e3 / keys);
}

int tkv_bench_score(const struct tkv_bench_options *o, struct tkv_record *r, struct tkv_reason *why)
{
    struct bench *b = calloc(1, sizeof(*b));
    int e;

    if (!b)
        return tkv_reason_set(why, "out of memory");
    e = tkv_machine_init(&b->machine, 1, o->disable, why) || make(b, o, why);
    if (!e) {
        measure(b, o->seconds);
        record(b, o, r);
    }
    tkv_scene_deinit(&b->scene);
    tkv_machine_deinit(&b->machine);
    free(b->common);
    free(b->scratch);
    free(b->scores);
    free(b);
    return e ? -1 : 0;
}
