/*
 * Decode attention: one query token over N cached tokens, in the store, beside the same on our own
 * halves, on our plain C kernels, and on the rows of other formats. All take turns in one loop,
 * so that whatever else the machine does falls on all of them. Every step has fresh queries, and
 * goes to the next of several layers, so that long caches come from memory as they do in a model.
 */
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/scene.h"

enum {
    SCENE_OF_CODEC = 0,
    SCENE_OF_HALVES,
    PEER_Q8,
    PEER_Q4,
    N_CONTENDERS,
    MAX_LAYERS = 64,
    LEAST_REPETITIONS = 7,
    PLAIN_TOKENS = 512, /* plain C takes the same time for every token, and much of it */
};

/* Comparisons stop growing here: beyond it all comes from memory, at the same time for a token. */
#define MAX_COMPARED_BYTES ((size_t)512 << 20)

struct contender {
    uint64_t n_tokens; /* 0: not measured */
    uint32_t n_layers;
    struct tkv_scene scene;
    struct tkv_peer_cache *peer;
    double error;          /* of a peer: the first step against plain attention */
    struct tkv_samples ns; /* per token and KV head */
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_machine machine;
    struct contender contenders[N_CONTENDERS];
    struct contender plain;
    struct tkv_machine single;   /* the same machine, one thread */
    struct contender one_thread; /* with more than one: the codec's scene, borrowed */
    struct tkv_reader reader;
    struct tkv_samples read_gbytes_per_s;
    struct tkv_source source;
    float *q;
    float *out;
    size_t code_bytes; /* of a layer */
};

static const struct {
    const char *key, *label, *ratio_key, *ratio_label, *error_key, *error_label;
} names[N_CONTENDERS] = {
    {NULL, NULL, NULL, NULL, NULL, NULL},
    {"fp16_ns", "our fp16, ns", "speedup_vs_fp16", "times faster than our fp16", NULL, NULL},
    {"q8_0_ns", "q8_0 rows, ns", "speedup_vs_q8_0", "times faster than q8_0 rows", "q8_0_error",
     "  their error against plain attention on the rows"},
    {"q4_0_ns", "q4_0 rows, ns", "speedup_vs_q4_0", "times faster than q4_0 rows", "q4_0_error",
     "  their error against plain attention on the rows"},
};

/* How many layers to go round in so that a step finds nothing of the last round in the caches. */
static uint32_t layers_of(const struct bench *b, size_t layer_bytes)
{
    const size_t caches = b->machine.l3_bytes ? b->machine.l3_bytes : b->machine.l2_bytes;
    const size_t n = 2 * caches / layer_bytes + 1;

    if (b->o->resident)
        return 1;
    return n < MAX_LAYERS ? (uint32_t)n : MAX_LAYERS;
}

static void size_contender(struct bench *b, int which, size_t token_bytes)
{
    struct contender *c = &b->contenders[which];
    const size_t most = MAX_COMPARED_BYTES / token_bytes;

    c->n_tokens = b->o->tokens;
    if (which != SCENE_OF_CODEC && c->n_tokens > most)
        c->n_tokens = most;
    c->n_layers = layers_of(b, c->n_tokens * token_bytes);
}

static int make_scene(struct bench *b, struct contender *c, const char *codec,
                      const struct tkv_kernels *kn, struct tkv_reason *why)
{
    const struct tkv_scene_size size = {.head_dim = b->o->head_dim,
                                        .n_kv_heads = b->o->kv_heads,
                                        .group = b->o->group,
                                        .rope_dim = b->o->rope_dim,
                                        .n_layers = c->n_layers,
                                        .n_tokens = c->n_tokens,
                                        .codec = codec};

    return tkv_scene_init(&c->scene, &size, &b->machine, kn, 1, why);
}

static int make_peer(struct bench *b, int which, struct tkv_reason *why)
{
    struct contender *c = &b->contenders[which];
    struct tkv_peer_size size = {.format = which == PEER_Q8 ? TKV_PEER_Q8_0 : TKV_PEER_Q4_0,
                                 .dim = b->o->head_dim,
                                 .n_kv_heads = b->o->kv_heads,
                                 .group = b->o->group};

    size_contender(b, which, 2 * size.n_kv_heads * tkv_peer_row_bytes(size.format, b->o->head_dim));
    size.n_layers = c->n_layers;
    size.n_tokens = c->n_tokens;
    return tkv_peer_cache_create(&c->peer, &size, b->machine.peers, 2, why);
}

static int make_comparisons(struct bench *b, struct tkv_reason *why)
{
    const size_t half_bytes = (size_t)b->o->kv_heads * b->o->head_dim * 2 * sizeof(uint16_t);

    if (strcmp(b->o->codec, "f16") != 0) {
        size_contender(b, SCENE_OF_HALVES, half_bytes);
        if (make_scene(b, &b->contenders[SCENE_OF_HALVES], "f16", &b->machine.kernels, why))
            return -1;
    }
    b->plain.n_tokens = b->o->tokens < PLAIN_TOKENS ? b->o->tokens : PLAIN_TOKENS;
    b->plain.n_layers = 1;
    if (make_scene(b, &b->plain, b->o->codec, &b->machine.plain, why))
        return -1;
    if (b->o->rope_dim > 0 || !tkv_peer_fits(b->o->head_dim, b->o->group))
        return 0;
    return make_peer(b, PEER_Q8, why) ? -1 : make_peer(b, PEER_Q4, why);
}

static int make(struct bench *b, struct tkv_reason *why)
{
    const struct tkv_codec *codec = tkv_codec_by_name(b->o->codec);
    const size_t n = (size_t)b->o->kv_heads * b->o->group * b->o->head_dim;
    const size_t token_bits =
        (size_t)b->o->kv_heads * b->o->head_dim * ((size_t)codec->bits_first + codec->bits_second);
    struct contender *own = &b->contenders[SCENE_OF_CODEC];

    b->source.state = 3;
    b->q = malloc(n * sizeof(float));
    b->out = malloc(n * sizeof(float));
    if (!b->q || !b->out)
        return tkv_reason_set(why, "out of memory for queries");
    size_contender(b, SCENE_OF_CODEC, token_bits / 8);
    if (make_scene(b, own, b->o->codec, &b->machine.kernels, why))
        return -1;
    b->code_bytes = tkv_scene_code_bytes(&own->scene, 0);
    if (b->o->threads > 1) {
        b->one_thread = *own;
        b->one_thread.scene.machine = &b->single;
    }
    if (tkv_reader_init(&b->reader, own->n_layers, b->code_bytes, b->o->kv_heads, why))
        return -1;
    return b->o->alone ? 0 : make_comparisons(b, why);
}

static int step(struct bench *b, struct contender *c, uint32_t layer, struct tkv_reason *why)
{
    if (c->scene.session)
        return tkv_scene_attend(&c->scene, layer, b->q, b->out, why);
    tkv_peer_cache_attend(c->peer, layer, b->q, b->out, b->machine.exec);
    return 0;
}

/* One timed step; when the cache may stay resident, one before it brings it in. */
static int time_step(struct bench *b, struct contender *c, size_t turn, struct tkv_reason *why)
{
    const uint32_t layer = (uint32_t)(turn % c->n_layers);
    uint64_t start, ns;

    tkv_source_gauss(&b->source, b->q, (size_t)b->o->kv_heads * b->o->group * b->o->head_dim);
    if (b->o->resident && step(b, c, layer, why))
        return -1;
    start = tkv_machine_now_ns(&b->machine);
    if (step(b, c, layer, why))
        return -1;
    ns = tkv_machine_now_ns(&b->machine) - start;
    if (turn == 0 && c->peer)
        c->error = tkv_peer_cache_error(c->peer, layer, b->q, b->out);
    if (turn > 0)
        tkv_samples_add(&c->ns, (double)ns / (double)(c->n_tokens * b->o->kv_heads));
    return 0;
}

static void time_reading(struct bench *b, size_t turn)
{
    const size_t slice = turn % b->reader.n_slices;
    uint64_t ns;

    if (b->o->resident)
        (void)tkv_reader_time(&b->reader, &b->machine, slice, 1);
    ns = tkv_reader_time(&b->reader, &b->machine, slice, 1);
    if (turn > 0 && ns > 0)
        tkv_samples_add(&b->read_gbytes_per_s, (double)b->reader.slice_bytes / (double)ns);
}

static int measure(struct bench *b, struct tkv_reason *why)
{
    const double seconds = b->o->seconds * (b->o->alone ? 1 : 2);
    struct tkv_bench_clock clock = tkv_bench_clock_start(seconds, LEAST_REPETITIONS + 1);

    while (tkv_bench_clock_go_on(&clock)) {
        for (int i = 0; i < N_CONTENDERS; i++)
            if (b->contenders[i].n_tokens && time_step(b, &b->contenders[i], clock.n - 1, why))
                return -1;
        if (b->one_thread.n_tokens && time_step(b, &b->one_thread, clock.n - 1, why))
            return -1;
        time_reading(b, clock.n - 1);
    }
    clock = tkv_bench_clock_start(b->o->seconds / 8, 4);
    while (b->plain.n_tokens && tkv_bench_clock_go_on(&clock))
        if (time_step(b, &b->plain, clock.n - 1, why))
            return -1;
    return 0;
}

static void record_comparisons(struct bench *b, double ns, struct tkv_record *r)
{
    if (strcmp(b->o->codec, "f16") == 0)
        tkv_record_number(r, names[SCENE_OF_HALVES].ratio_key, names[SCENE_OF_HALVES].ratio_label,
                          1);
    for (int i = SCENE_OF_HALVES; i < N_CONTENDERS; i++) {
        double other;

        if (!b->contenders[i].n_tokens)
            continue;
        other = tkv_samples_spread(&b->contenders[i].ns).median;
        tkv_record_number(r, names[i].key, names[i].label, other);
        tkv_record_number(r, names[i].ratio_key, names[i].ratio_label, other / ns);
        if (b->contenders[i].peer)
            tkv_record_number(r, names[i].error_key, names[i].error_label, b->contenders[i].error);
    }
    if (b->plain.n_tokens) {
        const double plain = tkv_samples_spread(&b->plain.ns).median;

        tkv_record_number(r, "plain_c_ns", "our plain C kernels, ns", plain);
        tkv_record_number(r, "speedup_vs_plain_c", "times faster than plain C", plain / ns);
    }
    if (b->contenders[PEER_Q8].n_tokens)
        tkv_record_text(r, "peer_kernels", "q8_0 and q4_0 rows with", b->machine.peers->name);
}

static void record(struct bench *b, struct tkv_record *r)
{
    struct contender *own = &b->contenders[SCENE_OF_CODEC];
    const double ns = tkv_samples_spread(&own->ns).median;
    const double heads = (double)(own->n_tokens * b->o->kv_heads);
    const double gbytes_per_s = (double)b->code_bytes / (ns * heads);
    const double floor = tkv_samples_spread(&b->read_gbytes_per_s).median;

    tkv_machine_describe(&b->machine, r);
    tkv_record_text(r, "codec", "codec", b->o->codec);
    tkv_record_number(r, "head_dim", "head dimension", b->o->head_dim);
    tkv_record_number(r, "tokens", "tokens", (double)own->n_tokens);
    tkv_record_number(r, "kv_heads", "KV heads", b->o->kv_heads);
    tkv_record_number(r, "group", "query heads for each", b->o->group);
    if (b->o->rope_dim > 0)
        tkv_record_number(r, "rope_dim", "of the head dimension with the position", b->o->rope_dim);
    tkv_record_number(r, "layers", "layers in turn", own->n_layers);
    tkv_record_spread(r, "ns_per_token_kv_head", "ns per token and KV head", &own->ns);
    tkv_record_number(r, "bytes_per_token_kv_head", "bytes per token and KV head",
                      (double)b->code_bytes / heads);
    tkv_record_number(r, "gbytes_per_s", "GB/s of codes", gbytes_per_s);
    tkv_record_number(r, "read_gbytes_per_s", "GB/s of reading alone", floor);
    tkv_record_number(r, "floor_share", "share of reading alone",
                      floor > 0 ? gbytes_per_s / floor : 0);
    if (b->one_thread.n_tokens) {
        const struct tkv_spread one = tkv_samples_spread(&b->one_thread.ns);

        tkv_record_number(r, "one_thread_ns", "one thread, ns", one.median);
        tkv_record_number(r, "speedup_vs_one_thread", "times faster than one thread",
                          one.median / ns);
        tkv_record_number(r, "speedup_undisturbed", "the same by the fastest tenths",
                          one.p10 / tkv_samples_spread(&own->ns).p10);
    }
    record_comparisons(b, ns, r);
}

static void drop(struct bench *b)
{
    for (int i = 0; i < N_CONTENDERS; i++) {
        tkv_scene_deinit(&b->contenders[i].scene);
        tkv_peer_cache_destroy(&b->contenders[i].peer);
    }
    tkv_scene_deinit(&b->plain.scene);
    tkv_reader_deinit(&b->reader);
    tkv_machine_deinit(&b->machine);
    free(b->q);
    free(b->out);
    free(b);
}

int tkv_bench_attend(const struct tkv_bench_options *o, struct tkv_record *r,
                     struct tkv_reason *why)
{
    struct bench *b = calloc(1, sizeof(*b));
    int e;

    if (!b)
        return tkv_reason_set(why, "out of memory");
    b->o = o;
    e = tkv_machine_init(&b->machine, o->threads, o->disable, why);
    b->single = b->machine;
    b->single.exec = NULL;
    e = e || make(b, why) || measure(b, why);
    if (!e)
        record(b, r);
    drop(b);
    return e ? -1 : 0;
}
