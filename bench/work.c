/*
 * One thing done a given number of times and nothing timed: for programs that count instructions
 * (bench/arm64_counts.py), which take the difference of two runs.
 */
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/scene.h"

struct work {
    const struct tkv_bench_options *o;
    struct tkv_machine machine;
    struct tkv_scene scene;
    float *q, *out;
};

static int attend(struct work *w, struct tkv_reason *why)
{
    return tkv_scene_attend(&w->scene, 0, w->q, w->out, why);
}

/* A fold and a round, with the new tokens that they are due for. */
static int round_once(struct work *w, struct tkv_reason *why)
{
    return tkv_scene_append(&w->scene, 0, TKV_SCENE_BETA, why) || tkv_scene_round(&w->scene, why);
}

/* Tokens that are folded, with nothing dropped: they cost what encoding them costs. */
static int encode(struct work *w, struct tkv_reason *why)
{
    return tkv_scene_append(&w->scene, 0, TKV_SCENE_BETA, why);
}

static const struct {
    const char *name;
    int (*run)(struct work *w, struct tkv_reason *why);
    bool evicts;
} kinds[] = {{"attend", attend, false}, {"encode", encode, false}, {"round", round_once, true}};

enum { N_KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static int make(struct work *w, bool evicts, struct tkv_reason *why)
{
    const size_t n = (size_t)w->o->kv_heads * w->o->group * w->o->head_dim;
    const struct tkv_scene_size size = {.head_dim = w->o->head_dim,
                                        .n_kv_heads = w->o->kv_heads,
                                        .group = w->o->group,
                                        .n_layers = 1,
                                        .n_tokens = w->o->tokens,
                                        .codec = w->o->codec,
                                        .budget_tokens = evicts ? (uint32_t)w->o->tokens : 0};

    w->q = malloc(n * sizeof(float));
    w->out = malloc(n * sizeof(float));
    if (!w->q || !w->out)
        return tkv_reason_set(why, "out of memory for queries");
    if (tkv_scene_init(&w->scene, &size, &w->machine, &w->machine.kernels, 1, why))
        return -1;
    tkv_source_gauss(&w->scene.source, w->q, n);
    return 0;
}

static int run(struct work *w, struct tkv_reason *why)
{
    for (size_t k = 0; k < N_KINDS; k++) {
        int e;

        if (strcmp(kinds[k].name, w->o->work) != 0)
            continue;
        e = make(w, kinds[k].evicts, why);
        for (uint32_t i = 0; !e && i < w->o->times; i++)
            e = kinds[k].run(w, why);
        return e;
    }
    return tkv_reason_set(why, "--work: \"%s\", expected attend, encode or round", w->o->work);
}

int tkv_bench_work(const struct tkv_bench_options *o, struct tkv_record *r, struct tkv_reason *why)
{
    struct work w = {.o = o};
    int e = tkv_machine_init(&w.machine, o->threads, o->disable, why) || run(&w, why);

    if (!e) {
        tkv_record_text(r, "features", "kernels", w.machine.features);
        tkv_record_text(r, "work", "work", o->work);
        tkv_record_number(r, "times", "times", o->times);
    }
    tkv_scene_deinit(&w.scene);
    tkv_machine_deinit(&w.machine);
    free(w.q);
    free(w.out);
    return e ? -1 : 0;
}
