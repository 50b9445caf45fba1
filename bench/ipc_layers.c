/*
 * A decode step of many layers: their attention through the daemon, one by one by the socket and all
 * at one doorbell by a ring, beside the same attention on a map in this process, which is what it
 * takes at least. How long attention takes is not the same twice, by more than what is looked for; so the
 * daemon's own time at it is taken from each step, and what is left is what going there adds.
 */
#include "bench/ipc_layers.h"

#include <stdlib.h>

#include "bench/inputs.h"
#include "bench/pingpong.h"

enum {
    N_LAYERS = 32,
    N_KV_HEADS = 2,
    GROUP = 4,
    HEAD_DIM = 128,
    CHUNK = 1024,
    N_REPETITIONS = 41,
    K_FLOATS = CHUNK * N_KV_HEADS * HEAD_DIM,
    Q_FLOATS = N_KV_HEADS * GROUP * HEAD_DIM,
};

/* What was measured of one way to the daemon. */
struct way {
    struct tkv_samples work_us;  /* of the daemon at attention */
    struct tkv_samples added_us; /* to it */
};

struct layers {
    const struct tkv_bench_service *service;
    struct trikv_session *session;
    struct trikv_client *ring_client; /* with a ring, and a fork of the session */
    struct trikv_session *ring_session;
    struct trikv_map *map;
    uint32_t n_tokens;
    float *k;   /* [CHUNK] */
    float *q;   /* [N_LAYERS] */
    float *out; /* likewise */
    struct trikv_step steps[N_LAYERS];
    struct tkv_samples local_us;
    struct way socket, asleep, spinning;
};

static int fail_ring(const struct layers *l, const char *what, struct tkv_reason *why)
{
    return tkv_reason_set(why, "%s: %s", what, trikv_last_error(l->ring_client));
}

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
    if (trikv_map(l->service->client, trikv_session_id(l->session), &l->map))
        return tkv_bench_service_fail(l->service, "map", why);
    return 0;
}

/* Whether it spins or sleeps is said by where both sides are allowed to be just now. */
static int open_ring(struct layers *l, struct tkv_reason *why)
{
    const struct trikv_options o = {.size = sizeof(o),
                                    .socket = l->service->daemon.socket,
                                    .timeout_ms = 600000,
                                    .name = "trikv-bench"};

    if (trikv_connect(&l->ring_client, &o) || trikv_ring_open(l->ring_client, NULL) ||
        trikv_fork_id(l->ring_client, trikv_session_id(l->session), NULL, &l->ring_session))
        return fail_ring(l, "ring", why);
    return 0;
}

/* ---- one step ------------------------------------------------------------------------------- */

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
    const int e = trikv_ring_submit(l->ring_session, TRIKV_STEP_ATTEND, l->steps, N_LAYERS);

    return e ? e : trikv_ring_wait(l->ring_client);
}

static int measure_local(struct layers *l, struct tkv_reason *why)
{
    const uint64_t start = tkv_bench_now_ns();

    if (attend_local(l))
        return tkv_bench_service_fail(l->service, "attend", why);
    tkv_samples_add(&l->local_us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    return 0;
}

/* One step by this client; the daemon says before and after how long it has attended, ever. */
static int measure_way(struct layers *l, struct way *way, struct trikv_client *client,
                       int (*attend)(struct layers *l), struct tkv_reason *why)
{
    double work_us[2], us;
    uint64_t start;
    int e = tkv_bench_attention_us(client, &work_us[0]);

    if (!e &&
        client == l->ring_client) /* so that a step follows upon a step, as in a decode loop */
        e = tkv_bench_ring_nothing(client);
    start = tkv_bench_now_ns();
    e = e ? e : attend(l);
    us = (double)(tkv_bench_now_ns() - start) * 1e-3;
    e = e ? e : tkv_bench_attention_us(client, &work_us[1]);
    if (e)
        return tkv_reason_set(why, "attend: %s", trikv_last_error(client));
    tkv_samples_add(&way->work_us, work_us[1] - work_us[0]);
    tkv_samples_add(&way->added_us, us - (work_us[1] - work_us[0]));
    return 0;
}

/* ---- many ----------------------------------------------------------------------------------- */

/* In turns, so that whatever else the machine does meets all; the first is not counted. */
static int measure_together(struct layers *l, struct tkv_reason *why)
{
    for (int i = 0; i <= N_REPETITIONS; i++) {
        if (measure_local(l, why) ||
            measure_way(l, &l->socket, l->service->client, attend_by_socket, why) ||
            measure_way(l, &l->asleep, l->ring_client, attend_by_ring, why))
            return -1;
        if (i == 0)
            l->local_us.n = l->socket.work_us.n = l->socket.added_us.n = l->asleep.work_us.n =
                l->asleep.added_us.n = 0;
    }
    return 0;
}

static int measure_apart(struct layers *l, struct tkv_reason *why)
{
    for (int i = 0; i <= N_REPETITIONS; i++) {
        if (measure_way(l, &l->spinning, l->ring_client, attend_by_ring, why))
            return -1;
        if (i == 0)
            l->spinning.work_us.n = l->spinning.added_us.n = 0;
    }
    return 0;
}

static int measure(struct layers *l, const struct tkv_places *p, struct tkv_reason *why)
{
    const pid_t daemon = l->service->daemon.pid;
    cpu_set_t first, second;

    CPU_ZERO(&first);
    CPU_ZERO(&second);
    CPU_SET((unsigned)p->first, &first);
    if (tkv_pin_process(0, &first, why) || tkv_pin_process(daemon, &first, why) ||
        open_ring(l, why) || measure_together(l, why))
        return -1;
    trikv_disconnect(&l->ring_client);
    if (p->second < 0)
        return 0;
    CPU_SET((unsigned)p->second, &second);
    return tkv_pin_process(0, &p->all, why) || tkv_pin_process(daemon, &p->all, why) ||
                   open_ring(l, why) || tkv_pin_process(0, &first, why) ||
                   tkv_pin_process(daemon, &second, why)
               ? -1
               : measure_apart(l, why);
}

static double median(struct tkv_samples *s)
{
    return tkv_samples_spread(s).median;
}

static void record_way(struct tkv_record *r, struct way *way, double local_us,
                       const char *const *names)
{
    const double added_us = median(&way->added_us);

    if (way->added_us.n == 0)
        return;
    tkv_record_number(r, names[0], names[1], 100 * added_us / local_us);
    tkv_record_number(r, names[2], "    a layer, us", added_us / N_LAYERS);
}

static void record(struct layers *l, struct tkv_record *r)
{
    static const char *const socket[] = {"layers_socket_percent", "  the socket adds, %",
                                         "layers_socket_us"};
    static const char *const asleep[] = {"layers_ring_percent", "  the ring adds, one processor, %",
                                         "layers_ring_us"};
    static const char *const spinning[] = {
        "layers_ring_spin_percent", "  the ring adds, two processors, %", "layers_ring_spin_us"};
    const double local_us = median(&l->local_us);

    tkv_record_number(r, "layers_local_us", "attention of 32 layers, us", local_us);
    tkv_record_number(r, "layers_daemon_us", "attention of 32 layers in the daemon, us",
                      median(&l->asleep.work_us));
    record_way(r, &l->socket, local_us, socket);
    record_way(r, &l->asleep, local_us, asleep);
    record_way(r, &l->spinning, local_us, spinning);
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

int tkv_bench_ipc_layers(const struct tkv_bench_service *s, uint32_t n_tokens,
                         const struct tkv_places *places, struct tkv_record *r,
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
        e = e ? e : measure(l, places, why);
        if (!e)
            record(l, r);
    }
    trikv_disconnect(&l->ring_client);
    trikv_unmap(&l->map);
    trikv_close(&l->session);
    free(l->k);
    free(l->q);
    free(l->out);
    free(l);
    return e;
}
