/*
 * A decode step of many layers: their attention through the daemon, one by one by the socket and all
 * at one doorbell by a ring, beside the same attention on a map in this process, which is what it
 * takes at least. On one processor, so that nobody helps.
 */
#include "bench/ipc_layers.h"

#include <stdlib.h>

#include "bench/inputs.h"

enum {
    N_LAYERS = 32,
    N_KV_HEADS = 2,
    GROUP = 4,
    HEAD_DIM = 128,
    CHUNK = 1024,
    N_REPETITIONS = 15,
    K_FLOATS = CHUNK * N_KV_HEADS * HEAD_DIM,
    Q_FLOATS = N_KV_HEADS * GROUP * HEAD_DIM,
};

struct layers {
    const struct tkv_bench_service *service;
    struct trikv_session *session;
    struct trikv_map *map;
    uint32_t n_tokens;
    float *k;   /* [CHUNK] */
    float *q;   /* [N_LAYERS] */
    float *out; /* likewise */
    struct trikv_step steps[N_LAYERS];
    struct tkv_samples local_us, socket_us, ring_us;
};

static int fill(struct layers *l, struct tkv_reason *why)
{
    const struct trikv_layer layer = {.n_q_heads = N_KV_HEADS * GROUP,
                                      .n_kv_heads = N_KV_HEADS,
                                      .head_dim_k = HEAD_DIM,
                                      .head_dim_v = HEAD_DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_step t = {.size = sizeof(t), .k = l->k, .v = l->k};

    o.n_layers = N_LAYERS;
    o.layers = &layer;
    o.same_layers = 1;
    o.codec_k = o.codec_v = "tq4";
    o.method = "none";
    if (trikv_open(l->service->client, &o, &l->session))
        return tkv_bench_service_fail(l->service, "open", why);
    for (t.layer = 0; t.layer < N_LAYERS; t.layer++) {
        for (uint32_t at = 0; at < l->n_tokens; at += t.n_tokens) {
            t.n_tokens = l->n_tokens - at < CHUNK ? l->n_tokens - at : CHUNK;
            if (trikv_append(l->session, &t))
                return tkv_bench_service_fail(l->service, "append", why);
        }
    }
    return 0;
}

static int attend_all(struct layers *l, int (*attend)(struct layers *l), struct tkv_samples *us,
                      struct tkv_reason *why)
{
    const uint64_t start = tkv_bench_now_ns();

    if (attend(l))
        return tkv_bench_service_fail(l->service, "attend", why);
    tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    return 0;
}

static int attend_local(struct layers *l)
{
    int e = 0;

    for (int i = 0; !e && i < N_LAYERS; i++)
        e = trikv_attend_local(l->map, &l->steps[i]);
    return e;
}

static int attend_by_socket(struct layers *l)
{
    int e = 0;

    for (int i = 0; !e && i < N_LAYERS; i++)
        e = trikv_attend(l->session, &l->steps[i]);
    return e;
}

static int attend_by_ring(struct layers *l)
{
    const int e = trikv_ring_submit(l->session, TRIKV_STEP_ATTEND, l->steps, N_LAYERS);

    return e ? e : trikv_ring_wait(l->service->client);
}

/* In turns, so that whatever else the machine does meets all three. */
static int measure(struct layers *l, struct tkv_reason *why)
{
    struct trikv_client *const c = l->service->client;

    if (trikv_map(c, trikv_session_id(l->session), &l->map))
        return tkv_bench_service_fail(l->service, "map", why);
    for (int i = 0; i < N_REPETITIONS; i++) {
        if (attend_all(l, attend_local, &l->local_us, why) ||
            attend_all(l, attend_by_socket, &l->socket_us, why))
            return -1;
        if (trikv_ring_open(c, NULL))
            return tkv_bench_service_fail(l->service, "ring", why);
        if (attend_by_ring(l)) /* a ring's first step finds its memory */
            return tkv_bench_service_fail(l->service, "ring", why);
        if (attend_all(l, attend_by_ring, &l->ring_us, why))
            return -1;
        if (trikv_ring_close(c))
            return tkv_bench_service_fail(l->service, "ring", why);
    }
    return 0;
}

static double median(struct tkv_samples *s)
{
    return tkv_samples_spread(s).median;
}

static void record(struct layers *l, struct tkv_record *r)
{
    const double local = median(&l->local_us);

    tkv_record_number(r, "layers_local_us", "attention of 32 layers, us", local);
    tkv_record_number(r, "layers_socket_percent", "  the socket adds, %",
                      100 * (median(&l->socket_us) / local - 1));
    tkv_record_number(r, "layers_ring_percent", "  the ring adds, all layers at once, %",
                      100 * (median(&l->ring_us) / local - 1));
}

static void prepare(struct layers *l)
{
    struct tkv_source source = {17};

    tkv_source_gauss(&source, l->k, K_FLOATS);
    tkv_source_gauss(&source, l->q, (size_t)N_LAYERS * Q_FLOATS);
    for (uint32_t i = 0; i < N_LAYERS; i++)
        l->steps[i] = (struct trikv_step){.size = sizeof(l->steps[i]),
                                          .layer = i,
                                          .n_tokens = 1,
                                          .dtype = TRIKV_F32,
                                          .q = l->q + (size_t)i * Q_FLOATS,
                                          .out = l->out + (size_t)i * Q_FLOATS};
}

int tkv_bench_ipc_layers(const struct tkv_bench_service *s, uint32_t n_tokens, struct tkv_record *r,
                         struct tkv_reason *why)
{
    struct layers *l = calloc(1, sizeof(*l));
    int e;

    if (!l)
        return tkv_reason_set(why, "out of memory");
    l->service = s;
    l->n_tokens = n_tokens;
    l->k = malloc(K_FLOATS * sizeof(float));
    l->q = malloc((size_t)N_LAYERS * Q_FLOATS * sizeof(float));
    l->out = malloc((size_t)N_LAYERS * Q_FLOATS * sizeof(float));
    if (!l->k || !l->q || !l->out) {
        e = tkv_reason_set(why, "out of memory");
    } else {
        prepare(l);
        e = fill(l, why);
        e = e ? e : measure(l, why);
        if (!e)
            record(l, r);
    }
    trikv_unmap(&l->map);
    trikv_close(&l->session);
    free(l->k);
    free(l->q);
    free(l->out);
    free(l);
    return e;
}
