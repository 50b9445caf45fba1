/*
 * A request through the daemon: append and attend of one small token, all on one processor and
 * as the system schedules it, beside the least that two processes can do with each other.
 */
#include <sched.h>
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/machine.h"
#include "bench/pingpong.h"
#include "bench/service.h"

enum {
    HEAD_DIM = 64,
    FRESH_AFTER = 32, /* steps on one session: attention itself is not what is measured */
    N_STEPS = 2048,
    WARM_STEPS = 256,
    N_PINGS = 4096,
    STAGING_BYTES = 1 << 20,
    OVERHEAD_BYTES = 128, /* of frame and message, about */
};

struct bench {
    struct tkv_machine machine;
    cpu_set_t all;
    int first, second; /* processors; second is -1 if there is but one */
    float tensors[4][HEAD_DIM];
};

static int open_session(const struct tkv_bench_service *s, struct trikv_session **session,
                        struct tkv_reason *why)
{
    const struct trikv_layer layer = {
        .n_q_heads = 1, .n_kv_heads = 1, .head_dim_k = HEAD_DIM, .head_dim_v = HEAD_DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = 1;
    o.layers = &layer;
    o.codec_k = o.codec_v = "tq4";
    o.method = "none";
    return trikv_open(s->client, &o, session) ? tkv_bench_service_fail(s, "open", why) : 0;
}

static int measure_steps(struct bench *b, const struct tkv_bench_service *s, struct tkv_samples *us,
                         struct tkv_reason *why)
{
    const struct trikv_step step = {.size = sizeof(step),
                                    .n_tokens = 1,
                                    .dtype = TRIKV_F32,
                                    .k = b->tensors[0],
                                    .v = b->tensors[1],
                                    .q = b->tensors[2],
                                    .out = b->tensors[3]};
    struct trikv_session *session = NULL;

    for (int i = 0; i < WARM_STEPS + N_STEPS; i++) {
        uint64_t start;

        if (i % FRESH_AFTER == 0) {
            if (trikv_close(&session))
                return tkv_bench_service_fail(s, "close", why);
            if (open_session(s, &session, why))
                return -1;
        }
        start = tkv_bench_now_ns();
        if (trikv_append_attend(session, &step))
            return tkv_bench_service_fail(s, "append and attend", why);
        if (i >= WARM_STEPS)
            tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    }
    return trikv_close(&session) ? tkv_bench_service_fail(s, "close", why) : 0;
}

struct scene {
    bool pinned;
    size_t staging_bytes;
    const char *p50_key, *p50_label, *p99_key, *p99_label;
};

static const struct scene scenes[] = {
    {true, 0, "socket_p50_us", "socket, one processor, us", "socket_p99_us", "  99 in 100 below"},
    {true, STAGING_BYTES, "staging_p50_us", "socket and staging area, one processor, us",
     "staging_p99_us", "  99 in 100 below"},
    {false, 0, "socket_free_p50_us", "socket, any processor, us", "socket_free_p99_us",
     "  99 in 100 below"},
};

static int measure_scene(struct bench *b, const struct scene *scene, struct tkv_record *r,
                         struct tkv_reason *why)
{
    struct tkv_samples us = {0};
    struct tkv_bench_service s;
    struct tkv_spread d;
    int e;

    if (scene->pinned ? tkv_pin(b->first, why) : sched_setaffinity(0, sizeof(b->all), &b->all))
        return -1;
    e = tkv_bench_service_start(&s, 1, scene->staging_bytes, false, why);
    if (e)
        return e;
    e = measure_steps(b, &s, &us, why);
    tkv_bench_service_stop(&s);
    d = tkv_samples_spread(&us);
    tkv_record_number(r, scene->p50_key, scene->p50_label, d.median);
    tkv_record_number(r, scene->p99_key, scene->p99_label, d.p99);
    return e;
}

static double p50(struct tkv_samples *us)
{
    const double median = tkv_samples_spread(us).median;

    us->n = 0;
    return median;
}

/* Bare exchanges of as many bytes as the request and its reply. */
static int measure_bare(const struct bench *b, struct tkv_record *r, struct tkv_reason *why)
{
    struct tkv_pingpong p = {.here = b->first,
                             .there = b->first,
                             .ping_bytes = 3 * HEAD_DIM * sizeof(float) + OVERHEAD_BYTES,
                             .pong_bytes = HEAD_DIM * sizeof(float) + OVERHEAD_BYTES,
                             .n = N_PINGS};
    struct tkv_samples us = {0};

    if (tkv_pingpong_socket(&p, &us, why))
        return -1;
    tkv_record_number(r, "bare_socket_p50_us", "bare socket, one processor, us", p50(&us));
    if (tkv_pingpong_eventfd(&p, &us, why))
        return -1;
    tkv_record_number(r, "bare_eventfd_p50_us", "bare eventfd, one processor, us", p50(&us));
    if (b->second < 0)
        return 0;
    p.there = b->second;
    if (tkv_pingpong_spin(&p, &us, why))
        return -1;
    tkv_record_number(r, "bare_spin_p50_us", "bare spinning, two processors, us", p50(&us));
    return 0;
}

static int find_processors(struct bench *b, struct tkv_reason *why)
{
    if (sched_getaffinity(0, sizeof(b->all), &b->all))
        return tkv_reason_set(why, "cannot learn which processors there are");
    b->first = b->second = -1;
    for (int i = 0; i < CPU_SETSIZE && b->second < 0; i++) {
        if (!CPU_ISSET((unsigned)i, &b->all))
            continue;
        if (b->first < 0)
            b->first = i;
        else
            b->second = i;
    }
    return 0;
}

int tkv_bench_ipc(const struct tkv_bench_options *o, struct tkv_record *r, struct tkv_reason *why)
{
    struct tkv_source source = {13};
    struct bench b = {0};
    int e;

    (void)o;
    tkv_source_gauss(&source, b.tensors[0], (size_t)3 * HEAD_DIM);
    if (find_processors(&b, why) || tkv_machine_init(&b.machine, 1, NULL, why))
        return -1;
    tkv_record_text(r, "cpu", "CPU", b.machine.cpu);
    tkv_record_text(r, "features", "kernels", b.machine.features);
    tkv_record_number(r, "repetitions", "round trips", N_STEPS);
    e = measure_bare(&b, r, why);
    for (size_t i = 0; !e && i < sizeof(scenes) / sizeof(scenes[0]); i++)
        e = measure_scene(&b, &scenes[i], r, why);
    (void)sched_setaffinity(0, sizeof(b.all), &b.all);
    tkv_machine_deinit(&b.machine);
    return e;
}
