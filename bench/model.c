/*
 * The model that comes with TriKV, read and written with its cache in a trikvd and with exact attention
 * over floats in this process, which take turns chunk by chunk, then token by token.
 */
#include <limits.h>
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/samples.h"
#include "bench/service.h"
#include "tools/attention_daemon.h"
#include "tools/attention_local.h"
#include "tools/runner.h"

enum { CHUNK_TOKENS = 256, LEAST_WRITTEN = 24, DAEMON = 0, LOCAL, N_CONTENDERS };

struct contender {
    struct tkv_run run;
    struct tkv_samples read_us;  /* of a token, in the last half of what is read */
    struct tkv_samples write_us; /* of a token behind all that */
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_bench_service service;
    struct tkv_engine engine;
    struct tkv_local *local;
    struct tkv_remote *remote;
    struct contender contenders[N_CONTENDERS];
};

static int make(struct bench *b, struct tkv_reason *why)
{
    struct tkv_remote_options remote = {.chunk_tokens = CHUNK_TOKENS,
                                        .codec_k = b->o->codec,
                                        .codec_v = b->o->codec,
                                        .label = TKV_BENCH_PROGRAM,
                                        .recent_tokens = -1,
                                        .pinned_tokens = -1,
                                        .normalize_scores = -1};
    char path[PATH_MAX];
    const struct tkv_model *m;

    if (tkv_engine_default_path(path, sizeof(path), why) ||
        tkv_engine_init(&b->engine, path, b->o->threads, CHUNK_TOKENS, why) ||
        tkv_bench_service_start(&b->service, b->o->threads, 0, false, why))
        return -1;
    m = b->engine.model;
    remote.socket = b->service.daemon.socket;
    if (tkv_local_create(&b->local, m->config.n_layers, &m->config.shape, &m->math, m->exec, why) ||
        tkv_remote_create(&b->remote, &m->config, &remote, why))
        return -1;
    b->contenders[DAEMON].run.attention = tkv_remote_attention(b->remote);
    b->contenders[LOCAL].run.attention = tkv_local_attention(b->local);
    for (int i = 0; i < N_CONTENDERS; i++) {
        b->contenders[i].run.engine = &b->engine;
        b->contenders[i].run.chunk_tokens = CHUNK_TOKENS;
    }
    return 0;
}

/* Tokens that nobody has to understand. */
static void make_ids(const struct bench *b, uint64_t at, int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)((at + i) * 7919 % b->engine.model->config.n_vocab);
}

static int feed(struct bench *b, struct contender *c, uint64_t at, size_t n, struct tkv_samples *us,
                struct tkv_reason *why)
{
    const uint64_t start = tkv_bench_now_ns();
    int32_t ids[CHUNK_TOKENS];

    make_ids(b, at, ids, n);
    if (tkv_run_feed(&c->run, ids, n, why))
        return -1;
    if (us)
        tkv_samples_add(us, (double)(tkv_bench_now_ns() - start) * 1e-3 / (double)n);
    return 0;
}

static int measure(struct bench *b, struct tkv_reason *why)
{
    const uint64_t n = b->o->tokens;
    struct tkv_bench_clock clock;

    for (uint64_t at = 0; at < n; at += CHUNK_TOKENS)
        for (int i = 0; i < N_CONTENDERS; i++) {
            struct contender *c = &b->contenders[i];
            const size_t now = n - at < CHUNK_TOKENS ? (size_t)(n - at) : CHUNK_TOKENS;

            if (feed(b, c, at, now, at >= n / 2 ? &c->read_us : NULL, why))
                return -1;
        }
    clock = tkv_bench_clock_start(b->o->seconds, LEAST_WRITTEN);
    while (tkv_bench_clock_go_on(&clock))
        for (int i = 0; i < N_CONTENDERS; i++)
            if (feed(b, &b->contenders[i], n + clock.n, 1, &b->contenders[i].write_us, why))
                return -1;
    return 0;
}

static double per_second(struct tkv_samples *us)
{
    return 1e6 / tkv_samples_spread(us).median;
}

static void record(struct bench *b, struct tkv_record *r)
{
    struct contender *c = b->contenders;
    const double read = per_second(&c[DAEMON].read_us), write = per_second(&c[DAEMON].write_us);
    const double local_read = per_second(&c[LOCAL].read_us);
    const double local_write = per_second(&c[LOCAL].write_us);

    tkv_record_text(r, "codec", "codec", b->o->codec);
    tkv_record_number(r, "threads", "threads, of each program", b->o->threads);
    tkv_record_number(r, "tokens", "tokens read before", (double)b->o->tokens);
    tkv_record_number(r, "read_per_s", "tokens read per second, cache in trikvd", read);
    tkv_record_number(r, "local_read_per_s", "exact attention in the process", local_read);
    tkv_record_number(r, "read_ratio", "ratio", read / local_read);
    tkv_record_number(r, "write_per_s", "written per second, cache in trikvd", write);
    tkv_record_number(r, "local_write_per_s", "exact attention in the process", local_write);
    tkv_record_number(r, "write_ratio", "ratio", write / local_write);
    tkv_record_number(r, "write_spread", "spread",
                      (tkv_samples_spread(&c[DAEMON].write_us).p90 -
                       tkv_samples_spread(&c[DAEMON].write_us).p10) *
                          write * 1e-6);
}

int tkv_bench_model(const struct tkv_bench_options *o, struct tkv_record *r, struct tkv_reason *why)
{
    struct bench *b = calloc(1, sizeof(*b));
    int e;

    if (!b)
        return tkv_reason_set(why, "out of memory");
    b->o = o;
    e = make(b, why) || measure(b, why);
    if (!e)
        record(b, r);
    tkv_remote_destroy(&b->remote);
    tkv_local_destroy(&b->local);
    tkv_bench_service_stop(&b->service);
    tkv_engine_deinit(&b->engine);
    free(b);
    return e ? -1 : 0;
}
