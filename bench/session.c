/* Opening and closing a session of a real model's geometry, through the daemon. */
#include "bench/commands.h"
#include "bench/machine.h"
#include "bench/service.h"

enum { LEAST_REPETITIONS = 20 };

static int open_and_close(const struct tkv_bench_service *s, const struct trikv_session_options *o,
                          struct tkv_samples *open_us, struct tkv_samples *close_us,
                          struct tkv_reason *why)
{
    struct trikv_session *session = NULL;
    uint64_t start = tkv_bench_now_ns();

    if (trikv_open(s->client, o, &session))
        return tkv_bench_service_fail(s, "open", why);
    tkv_samples_add(open_us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    start = tkv_bench_now_ns();
    if (trikv_close(&session))
        return tkv_bench_service_fail(s, "close", why);
    tkv_samples_add(close_us, (double)(tkv_bench_now_ns() - start) * 1e-3);
    return 0;
}

static int measure(const struct tkv_bench_options *o, const struct tkv_bench_service *s,
                   struct tkv_record *r, struct tkv_reason *why)
{
    const struct trikv_layer layer = {.n_q_heads = o->kv_heads * o->group,
                                      .n_kv_heads = o->kv_heads,
                                      .head_dim_k = o->head_dim,
                                      .head_dim_v = o->head_dim};
    struct trikv_session_options options = TRIKV_SESSION_OPTIONS_INIT;
    struct tkv_bench_clock clock = tkv_bench_clock_start(o->seconds, LEAST_REPETITIONS);
    struct tkv_samples open_us = {0}, close_us = {0};

    options.n_layers = o->layers;
    options.layers = &layer;
    options.same_layers = 1;
    options.codec_k = options.codec_v = o->codec;
    options.method = "none";
    while (tkv_bench_clock_go_on(&clock))
        if (open_and_close(s, &options, &open_us, &close_us, why))
            return -1;
    tkv_record_spread(r, "open_us", "open, us", &open_us);
    tkv_record_number(r, "close_us", "close, us", tkv_samples_spread(&close_us).median);
    return 0;
}

int tkv_bench_session(const struct tkv_bench_options *o, struct tkv_record *r,
                      struct tkv_reason *why)
{
    struct tkv_bench_service s;
    struct tkv_machine m;
    int e = tkv_machine_init(&m, 1, NULL, why);

    if (!e) {
        tkv_record_text(r, "cpu", "CPU", m.cpu);
        tkv_record_text(r, "features", "kernels", m.features);
        tkv_record_text(r, "codec", "codec", o->codec);
        tkv_record_number(r, "layers", "layers", o->layers);
        e = tkv_bench_service_start(&s, o->threads, 0, false, why);
    }
    if (!e) {
        e = measure(o, &s, r, why);
        tkv_bench_service_stop(&s);
    }
    tkv_machine_deinit(&m);
    return e;
}
