/*
 * A session of a real model's geometry goes to a file and comes back: how large that is, how fast it goes, and
 * what another client of the daemon waits meanwhile, for a step on a small session that goes
 * through a worker. Its steps are timed in turn without and with a snapshot being written.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/machine.h"
#include "bench/service.h"
#include "core/half.h"

enum { LEAST_REPETITIONS = 3, CHUNK_TOKENS = 2048, OTHER_TOKENS = 4096 };

#define FILE_NAME "bench"

/* Another client, in a thread of its own. */
struct other {
    struct trikv_client *client;
    struct trikv_session *session;
    const uint16_t *q;
    float *out;
    atomic_bool over, is_written; /* a snapshot, now */
    struct tkv_samples quiet_ms, busy_ms;
    bool failed;
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_bench_service service;
    struct trikv_layer layer;
    uint16_t *tokens; /* halves, two chunks of keys or values */
    uint64_t n_chunks;
    struct other other;
    struct trikv_stats stats;
    uint64_t file_bytes;
    struct tkv_samples write_s, read_s;
};

static void sleep_us(long us)
{
    const struct timespec t = {0, us * 1000};

    (void)nanosleep(&t, NULL);
}

static size_t row_values(const struct tkv_bench_options *o)
{
    return (size_t)o->kv_heads * o->head_dim;
}

static int make_tokens(struct bench *b, struct tkv_reason *why)
{
    const size_t n = 2 * CHUNK_TOKENS * row_values(b->o);
    struct tkv_source source = {5};
    struct tkv_kernels kn;
    float *x = malloc(n * sizeof(*x));

    b->tokens = malloc(n * sizeof(*b->tokens));
    b->other.out = malloc(row_values(b->o) * b->o->group * sizeof(*b->other.out));
    if (!x || !b->tokens || !b->other.out) {
        free(x);
        return tkv_reason_set(why, "out of memory for inputs");
    }
    b->other.q = b->tokens;
    tkv_kernels_init(&kn, 0);
    tkv_source_gauss(&source, x, n);
    (void)tkv_to_f16(&kn, b->tokens, x, TKV_F32, n);
    free(x);
    return 0;
}

/* A chunk that begins elsewhere (7919 is prime) each time: no two have a vector in common, so that a file has nothing to find twice. */
static const uint16_t *chunk(struct bench *b)
{
    const size_t n = CHUNK_TOKENS * row_values(b->o);

    return b->tokens + b->n_chunks++ * 7919 % n;
}

static int open_and_fill(struct bench *b, struct trikv_client *c, uint32_t n_layers,
                         uint64_t n_tokens, struct trikv_session **session, struct tkv_reason *why)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = n_layers;
    o.layers = &b->layer;
    o.same_layers = 1;
    o.codec_k = o.codec_v = b->o->codec;
    o.method = "none";
    if (trikv_open(c, &o, session))
        return tkv_reason_set(why, "open: %s", trikv_last_error(c));
    for (uint64_t done = 0; done < n_tokens; done += CHUNK_TOKENS)
        for (uint32_t l = 0; l < n_layers; l++) {
            const uint64_t left = n_tokens - done;
            const struct trikv_step step = {.size = sizeof(step),
                                            .layer = l,
                                            .n_tokens =
                                                left < CHUNK_TOKENS ? (uint32_t)left : CHUNK_TOKENS,
                                            .dtype = TRIKV_F16,
                                            .k = chunk(b),
                                            .v = chunk(b)};

            if (trikv_append(*session, &step))
                return tkv_reason_set(why, "append: %s", trikv_last_error(c));
        }
    return 0;
}

/* ---- the other client ----------------------------------------------------------------------- */

/* A step counts as beside a snapshot if one was written when it began and when it ended. */
static void *run_other(void *arg)
{
    struct other *const x = arg;
    const struct trikv_step step = {
        .size = sizeof(step), .n_tokens = 1, .dtype = TRIKV_F16, .q = x->q, .out = x->out};

    while (!atomic_load(&x->over) && !x->failed) {
        const bool before = atomic_load(&x->is_written);
        const uint64_t start = tkv_bench_now_ns();
        double ms;

        x->failed = trikv_attend(x->session, &step) != 0;
        ms = (double)(tkv_bench_now_ns() - start) * 1e-6;
        if (before == atomic_load(&x->is_written) && ms > 0)
            tkv_samples_add(before ? &x->busy_ms : &x->quiet_ms, ms);
        sleep_us(500);
    }
    return NULL;
}

/* ---- measuring ------------------------------------------------------------------------------ */

static double seconds_since(uint64_t start)
{
    return (double)(tkv_bench_now_ns() - start) * 1e-9;
}

static int write_once(struct bench *b, struct trikv_session *session, struct tkv_reason *why)
{
    const uint64_t start = tkv_bench_now_ns();
    int e;

    atomic_store(&b->other.is_written, true);
    e = trikv_snapshot(session, FILE_NAME, &b->file_bytes);
    atomic_store(&b->other.is_written, false);
    if (e)
        return tkv_bench_service_fail(&b->service, "snapshot", why);
    tkv_samples_add(&b->write_s, seconds_since(start));
    sleep_us(100000); /* of quiet, for the other client */
    return 0;
}

static int read_once(struct bench *b, struct tkv_reason *why)
{
    struct trikv_session *session = NULL;
    const uint64_t start = tkv_bench_now_ns();

    if (trikv_restore(b->service.client, FILE_NAME, &session))
        return tkv_bench_service_fail(&b->service, "restore", why);
    tkv_samples_add(&b->read_s, seconds_since(start));
    return trikv_close(&session) ? tkv_bench_service_fail(&b->service, "close", why) : 0;
}

static int measure_writing(struct bench *b, struct trikv_session *session, struct tkv_reason *why)
{
    struct tkv_bench_clock clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    pthread_t thread;
    int e = 0;

    if (pthread_create(&thread, NULL, run_other, &b->other))
        return tkv_reason_set(why, "no thread for another client");
    sleep_us(200000);
    while (!e && tkv_bench_clock_go_on(&clock))
        e = write_once(b, session, why);
    atomic_store(&b->other.over, true);
    pthread_join(thread, NULL);
    if (!e && b->other.failed)
        e = tkv_reason_set(why, "attend: %s", trikv_last_error(b->other.client));
    return e;
}

static int measure(struct bench *b, struct tkv_reason *why)
{
    const struct trikv_options o = {.size = sizeof(o),
                                    .socket = b->service.daemon.socket,
                                    .timeout_ms = 600000,
                                    .name = "other"};
    struct tkv_bench_clock clock;
    struct trikv_session *session = NULL;
    int e;

    if (trikv_connect(&b->other.client, &o))
        return tkv_reason_set(why, "connect: %s", trikv_last_error(b->other.client));
    if (open_and_fill(b, b->other.client, 1, OTHER_TOKENS, &b->other.session, why) ||
        open_and_fill(b, b->service.client, b->o->layers, b->o->tokens, &session, why))
        return -1;
    if (trikv_stats(session, &b->stats))
        return tkv_bench_service_fail(&b->service, "stats", why);
    e = measure_writing(b, session, why);
    clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    while (!e && tkv_bench_clock_go_on(&clock))
        e = read_once(b, why);
    if (!e && trikv_snapshot_delete(b->service.client, FILE_NAME))
        e = tkv_bench_service_fail(&b->service, "delete", why);
    return e;
}

static void put(struct bench *b, struct tkv_record *r)
{
    const double resident = (double)b->stats.resident_bytes, file = (double)b->file_bytes;
    const struct tkv_spread quiet = tkv_samples_spread(&b->other.quiet_ms);
    const struct tkv_spread busy = tkv_samples_spread(&b->other.busy_ms);
    const size_t n_busy = b->other.busy_ms.n;

    tkv_record_number(r, "resident_bytes", "bytes in memory", resident);
    tkv_record_number(r, "file_bytes", "bytes of the file", file);
    tkv_record_number(r, "bytes_per_token", "bytes of the file per token",
                      file / (double)b->o->tokens);
    tkv_record_number(r, "ratio", "file / memory", file / resident);
    tkv_record_number(r, "fp16_ratio", "file / 16-bit cache", file / (double)b->stats.fp16_bytes);
    tkv_record_number(r, "write_mb_per_s", "MB of memory written per second",
                      resident * 1e-6 / tkv_samples_spread(&b->write_s).median);
    tkv_record_number(r, "read_mb_per_s", "MB of memory read back per second",
                      resident * 1e-6 / tkv_samples_spread(&b->read_s).median);
    tkv_record_number(r, "other_ms", "a step of another client, ms", quiet.median);
    tkv_record_number(r, "other_p99_ms", "its p99, ms", quiet.p99);
    tkv_record_number(r, "stalled_ms", "the same while a file is written, ms", busy.median);
    tkv_record_number(r, "stalled_p99_ms", "its p99, ms", busy.p99);
    tkv_record_number(r, "stalled_most_ms", "the longest, ms",
                      n_busy ? b->other.busy_ms.value[n_busy - 1] : 0);
    tkv_record_number(r, "stalled_steps", "steps while a file was written", (double)n_busy);
}

int tkv_bench_snapshot(const struct tkv_bench_options *o, struct tkv_record *r,
                       struct tkv_reason *why)
{
    const size_t chunk_bytes = 2 * CHUNK_TOKENS * row_values(o) * sizeof(uint16_t);
    struct bench *b = calloc(1, sizeof(*b));
    struct tkv_machine m = {0};
    int e = b ? tkv_machine_init(&m, 1, NULL, why) : tkv_reason_set(why, "out of memory");

    if (!e) {
        b->o = o;
        b->layer = (struct trikv_layer){.n_q_heads = o->kv_heads * o->group,
                                        .n_kv_heads = o->kv_heads,
                                        .head_dim_k = o->head_dim,
                                        .head_dim_v = o->head_dim};
        tkv_record_text(r, "cpu", "CPU", m.cpu);
        tkv_record_text(r, "codec", "codec", o->codec);
        tkv_record_number(r, "layers", "layers", o->layers);
        tkv_record_number(r, "tokens", "tokens", (double)o->tokens);
        e = make_tokens(b, why) ||
            tkv_bench_service_start_files(&b->service, o->threads, chunk_bytes, why);
        e = e || measure(b, why);
        if (!e)
            put(b, r);
        trikv_disconnect(&b->other.client);
        tkv_bench_service_stop(&b->service);
        free(b->tokens);
        free(b->other.out);
    }
    tkv_machine_deinit(&m);
    free(b);
    return e ? -1 : 0;
}
