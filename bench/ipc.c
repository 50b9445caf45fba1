/*
 * A request through the daemon: append and attend of one small token, by the socket and by a ring, all
 * on one processor and on two, beside the least that two processes can do with each other.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/ipc_layers.h"
#include "bench/machine.h"
#include "bench/pingpong.h"
#include "bench/service.h"

enum {
    HEAD_DIM = 32,
    FRESH_AFTER = 32, /* steps on one session: attention itself is not what is measured */
    N_STEPS = 2048,
    WARM_STEPS = 256,
    N_PINGS = 4096,
    STAGING_BYTES = 1 << 20,
    OVERHEAD_BYTES = 128, /* of frame and message, about */
};

struct bench {
    struct tkv_machine machine;
    struct tkv_places places;
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
    enum { ANYWHERE, TOGETHER, APART } place; /* of this process and the daemon */
    size_t staging_bytes;
    const char *p50_key, *p50_label, *p99_key;
    const char *bare_key; /* what it stands beside, and how many times that it is */
    const char *ratio_key;
    /* Of a ring: entries that ask for nothing; and what a step takes beside such a one. */
    const char *nothing_key, *nothing_ratio_key, *work_key;
};

static const struct scene scenes[] = {
    {.place = TOGETHER,
     .p50_key = "socket_p50_us",
     .p50_label = "socket, one processor, us",
     .p99_key = "socket_p99_us",
     .bare_key = "bare_socket_p50_us",
     .ratio_key = "socket_ratio"},
    {.place = TOGETHER,
     .staging_bytes = STAGING_BYTES,
     .p50_key = "staging_p50_us",
     .p50_label = "socket and staging area, one processor, us",
     .p99_key = "staging_p99_us"},
    {.place = ANYWHERE,
     .p50_key = "socket_free_p50_us",
     .p50_label = "socket, any processor, us",
     .p99_key = "socket_free_p99_us"},
    {.place = TOGETHER,
     .p50_key = "ring_sleep_p50_us",
     .p50_label = "ring asleep, one processor, us",
     .p99_key = "ring_sleep_p99_us",
     .bare_key = "bare_eventfd_p50_us",
     .ratio_key = "ring_sleep_ratio",
     .work_key = "ring_sleep_work_us",
     .nothing_key = "ring_sleep_nothing_p50_us",
     .nothing_ratio_key = "ring_sleep_nothing_ratio"},
    {.place = APART,
     .p50_key = "ring_spin_p50_us",
     .p50_label = "ring spinning, two processors, us",
     .p99_key = "ring_spin_p99_us",
     .bare_key = "bare_spin_p50_us",
     .ratio_key = "ring_spin_ratio",
     .work_key = "ring_spin_work_us",
     .nothing_key = "ring_spin_nothing_p50_us",
     .nothing_ratio_key = "ring_spin_nothing_ratio"},
};

/* The exchange alone: entries that the daemon only completes. */
static int measure_nothing(const struct tkv_bench_service *s, struct tkv_samples *us,
                           struct tkv_reason *why)
{
    for (int i = 0; i < WARM_STEPS + N_STEPS; i++) {
        const uint64_t start = tkv_bench_now_ns();

        if (tkv_bench_ring_nothing(s->client))
            return tkv_bench_service_fail(s, "an entry for nothing", why);
        if (i >= WARM_STEPS)
            tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    }
    return 0;
}

static double p50(struct tkv_samples *us)
{
    const double median = tkv_samples_spread(us).median;

    us->n = 0;
    return median;
}

/* The daemon and this process, each where the scene wants it. */
static int start_scene(const struct bench *b, const struct scene *scene,
                       struct tkv_bench_service *s, struct tkv_reason *why)
{
    const struct tkv_places *const p = &b->places;
    cpu_set_t second;
    int e;

    if (scene->place == TOGETHER ? tkv_pin(p->first, why) : tkv_pin_process(0, &p->all, why))
        return -1;
    e = tkv_bench_service_start(s, 1, scene->staging_bytes, false, why);
    if (e)
        return e;
    if (scene->nothing_key && trikv_ring_open(s->client, NULL))
        e = tkv_bench_service_fail(s, "ring", why);
    if (!e && scene->place == APART) {
        CPU_ZERO(&second);
        CPU_SET((unsigned)p->second, &second);
        e = tkv_pin(p->first, why) || tkv_pin_process(s->daemon.pid, &second, why) ? -1 : 0;
    }
    if (e)
        tkv_bench_service_stop(s);
    return e;
}

static void record_ratio(struct tkv_record *r, const char *key, double us, const char *bare_key)
{
    const struct tkv_field *const bare = tkv_record_find(r, bare_key);

    tkv_record_number(r, key, "  times as long as the bare one", us / bare->number);
}

static int measure_scene(struct bench *b, const struct scene *scene, struct tkv_record *r,
                         struct tkv_reason *why)
{
    struct tkv_samples us = {0};
    struct tkv_bench_service s;
    struct tkv_spread d;
    int e = start_scene(b, scene, &s, why);

    if (e)
        return e;
    e = measure_steps(b, &s, &us, why);
    d = tkv_samples_spread(&us);
    tkv_record_number(r, scene->p50_key, scene->p50_label, d.median);
    tkv_record_number(r, scene->p99_key, "  99 in 100 below", d.p99);
    if (scene->bare_key)
        record_ratio(r, scene->ratio_key, d.median, scene->bare_key);
    if (!e && scene->nothing_key) {
        double nothing_us;

        us.n = 0;
        e = measure_nothing(&s, &us, why);
        nothing_us = p50(&us);
        tkv_record_number(r, scene->nothing_key, "  without any work, us", nothing_us);
        record_ratio(r, scene->nothing_ratio_key, nothing_us, scene->bare_key);
        tkv_record_number(r, scene->work_key, "  the work, us", d.median - nothing_us);
    }
    tkv_bench_service_stop(&s);
    return e;
}

/* Bare exchanges of as many bytes as the request and its reply. */
static int measure_bare(const struct bench *b, struct tkv_record *r, struct tkv_reason *why)
{
    struct tkv_pingpong p = {.here = b->places.first,
                             .there = b->places.first,
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
    if (b->places.second < 0)
        return 0;
    p.there = b->places.second;
    if (tkv_pingpong_spin(&p, &us, why))
        return -1;
    tkv_record_number(r, "bare_spin_p50_us", "bare spinning, two processors, us", p50(&us));
    return 0;
}

static int measure_layers(const struct bench *b, uint32_t n_tokens, struct tkv_record *r,
                          struct tkv_reason *why)
{
    struct tkv_bench_service s;
    int e;

    if (tkv_bench_service_start(&s, 1, STAGING_BYTES, false, why))
        return -1;
    e = tkv_bench_ipc_layers(&s, n_tokens, &b->places, r, why);
    tkv_bench_service_stop(&s);
    return e;
}

static int find_processors(struct bench *b, struct tkv_reason *why)
{
    if (sched_getaffinity(0, sizeof(b->places.all), &b->places.all))
        return tkv_reason_set(why, "cannot learn which processors there are");
    b->places.first = b->places.second = -1;
    for (int i = 0; i < CPU_SETSIZE && b->places.second < 0; i++) {
        if (!CPU_ISSET((unsigned)i, &b->places.all))
            continue;
        if (b->places.first < 0)
            b->places.first = i;
        else
            b->places.second = i;
    }
    return 0;
}

int tkv_bench_ipc(const struct tkv_bench_options *o, struct tkv_record *r, struct tkv_reason *why)
{
    struct tkv_source source = {13};
    struct bench b = {0};
    int e;

    tkv_source_gauss(&source, b.tensors[0], (size_t)3 * HEAD_DIM);
    if (find_processors(&b, why) || tkv_machine_init(&b.machine, 1, NULL, why))
        return -1;
    tkv_record_text(r, "cpu", "CPU", b.machine.cpu);
    tkv_record_text(r, "features", "kernels", b.machine.features);
    tkv_record_number(r, "repetitions", "round trips", N_STEPS);
    e = measure_bare(&b, r, why);
    for (size_t i = 0; !e && i < sizeof(scenes) / sizeof(scenes[0]); i++) {
        if (scenes[i].place != APART || b.places.second >= 0)
            e = measure_scene(&b, &scenes[i], r, why);
    }
    e = e ? e : measure_layers(&b, (uint32_t)o->tokens, r, why);
    (void)sched_setaffinity(0, sizeof(b.places.all), &b.places.all);
    tkv_machine_deinit(&b.machine);
    return e;
}
