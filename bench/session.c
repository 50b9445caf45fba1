/*
 * A session of a real model's geometry through the daemon: opening and closing it; and once it is
 * long, storing it and opening others that begin with its tokens, forking it and going back by some
 * tokens, which must not depend on how long it is; all that with client and daemon on one processor, so
 * that waking another one is not what is measured. Then attention, in the daemon and on a map of it in
 * this process, on all processors.
 */
#include <sched.h>
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/machine.h"
#include "bench/pingpong.h"
#include "bench/service.h"
#include "core/half.h"

enum {
    LEAST_REPETITIONS = 20,
    CHUNK_TOKENS = 4096,
    GUESSED_TOKENS = 16, /* that truncate takes back */
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_bench_service service;
    struct trikv_layer layer;
    struct trikv_session_options options;
    uint16_t *tokens; /* a chunk of keys or values */
    float *out;
    uint32_t *ids; /* of all tokens */
    struct trikv_prefix prefix;
    struct tkv_samples hit_us;
    struct tkv_samples open_us, close_us, fork_us, truncate_us, map_us, local_us, daemon_us;
    uint64_t fork_bytes;
    cpu_set_t all;
};

static size_t row_values(const struct tkv_bench_options *o)
{
    return (size_t)o->kv_heads * o->head_dim;
}

static int make_tokens(struct bench *b, struct tkv_reason *why)
{
    const size_t n = CHUNK_TOKENS * row_values(b->o);
    struct tkv_source source = {5};
    struct tkv_kernels kn;
    float *x = malloc(n * sizeof(*x));

    b->tokens = malloc(n * sizeof(*b->tokens));
    b->out = malloc(row_values(b->o) * b->o->group * sizeof(*b->out));
    b->ids = malloc(b->o->tokens * sizeof(*b->ids));
    for (uint32_t i = 0; b->ids && i < b->o->tokens; i++)
        b->ids[i] = i;
    if (!x || !b->tokens || !b->out || !b->ids) {
        free(x);
        return tkv_reason_set(why, "out of memory for inputs");
    }
    tkv_kernels_init(&kn, 0);
    tkv_source_gauss(&source, x, n);
    (void)tkv_to_f16(&kn, b->tokens, x, TKV_F32, n);
    free(x);
    return 0;
}

static void describe(struct bench *b)
{
    const struct tkv_bench_options *o = b->o;

    b->layer = (struct trikv_layer){.n_q_heads = o->kv_heads * o->group,
                                    .n_kv_heads = o->kv_heads,
                                    .head_dim_k = o->head_dim,
                                    .head_dim_v = o->head_dim};
    b->options = (struct trikv_session_options)TRIKV_SESSION_OPTIONS_INIT;
    b->options.n_layers = o->layers;
    b->options.layers = &b->layer;
    b->options.same_layers = 1;
    b->options.codec_k = b->options.codec_v = o->codec;
    b->options.method = "none";
    b->options.rollback_tokens = GUESSED_TOKENS;
    b->options.fingerprint = "bench";
    b->prefix.size = sizeof(b->prefix);
    b->options.prefix = &b->prefix;
}

static double us_since(uint64_t start)
{
    return (double)(tkv_bench_now_ns() - start) * 1e-3;
}

static int open_and_close(struct bench *b, struct tkv_reason *why)
{
    struct trikv_session *session = NULL;
    uint64_t start = tkv_bench_now_ns();

    if (trikv_open(b->service.client, &b->options, &session))
        return tkv_bench_service_fail(&b->service, "open", why);
    tkv_samples_add(&b->open_us, us_since(start));
    start = tkv_bench_now_ns();
    if (trikv_close(&session))
        return tkv_bench_service_fail(&b->service, "close", why);
    tkv_samples_add(&b->close_us, us_since(start));
    return 0;
}

/* n tokens in every layer; layer 0 tells their ids, if there are any. */
static int append(struct bench *b, struct trikv_session *session, uint32_t n, const uint32_t *ids,
                  struct tkv_reason *why)
{
    for (uint32_t layer = 0; layer < b->o->layers; layer++) {
        const struct trikv_step step = {.size = sizeof(step),
                                        .layer = layer,
                                        .n_tokens = n,
                                        .dtype = TRIKV_F16,
                                        .k = b->tokens,
                                        .v = b->tokens,
                                        .token_ids = layer == 0 ? ids : NULL};

        if (trikv_append(session, &step))
            return tkv_bench_service_fail(&b->service, "append", why);
    }
    return 0;
}

/* All tokens of the long session are there. */
static int open_with_prefix(struct bench *b, struct tkv_reason *why)
{
    struct trikv_session_options o = b->options;
    struct trikv_prefix prefix = b->prefix;
    struct trikv_session *session = NULL;
    struct trikv_prefix_result result;
    uint64_t start;

    prefix.token_ids = b->ids;
    prefix.n_token_ids = (uint32_t)b->o->tokens;
    o.prefix = &prefix;
    start = tkv_bench_now_ns();
    if (trikv_open(b->service.client, &o, &session))
        return tkv_bench_service_fail(&b->service, "open with a prefix", why);
    tkv_samples_add(&b->hit_us, us_since(start));
    trikv_session_prefix(session, &result);
    if (trikv_close(&session))
        return tkv_bench_service_fail(&b->service, "close", why);
    if (result.n_tokens != prefix.n_token_ids)
        return tkv_reason_set(why, "open: %u of %u stored tokens found: %s", result.n_tokens,
                              prefix.n_token_ids, result.reason);
    return 0;
}

/* Each child is appended to, so that it is one, but not while the clock runs. */
static int fork_and_close(struct bench *b, struct trikv_session *session, struct tkv_reason *why)
{
    struct trikv_session *child = NULL;
    const uint64_t start = tkv_bench_now_ns();

    if (trikv_fork(session, NULL, &child))
        return tkv_bench_service_fail(&b->service, "fork", why);
    tkv_samples_add(&b->fork_us, us_since(start));
    b->fork_bytes = trikv_session_reserved_bytes(child);
    if (append(b, child, 1, NULL, why))
        return -1;
    return trikv_close(&child) ? tkv_bench_service_fail(&b->service, "close", why) : 0;
}

static int guess_and_truncate(struct bench *b, struct trikv_session *session,
                              struct tkv_reason *why)
{
    uint64_t start;

    if (append(b, session, GUESSED_TOKENS, NULL, why))
        return -1;
    start = tkv_bench_now_ns();
    if (trikv_truncate(session, GUESSED_TOKENS))
        return tkv_bench_service_fail(&b->service, "truncate", why);
    tkv_samples_add(&b->truncate_us, us_since(start));
    return append(b, session, 1, NULL, why);
}

/* One token in layer 0, in the daemon or here. */
static int attend(struct bench *b, struct trikv_session *session, struct trikv_map *map,
                  struct tkv_samples *us, struct tkv_reason *why)
{
    const struct trikv_step step = {
        .size = sizeof(step), .n_tokens = 1, .dtype = TRIKV_F16, .q = b->tokens, .out = b->out};
    const uint64_t start = tkv_bench_now_ns();

    if (map ? trikv_attend_local(map, &step) : trikv_attend(session, &step))
        return tkv_bench_service_fail(&b->service, "attend", why);
    tkv_samples_add(us, us_since(start));
    return 0;
}

/* Both in turn, so that both have the same weather; the first of each touches the memory. */
static int measure_attention(struct bench *b, struct trikv_session *session, struct tkv_reason *why)
{
    struct tkv_bench_clock clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    struct tkv_samples first = {0};
    struct trikv_map *map = NULL;
    const uint64_t start = tkv_bench_now_ns();
    int e = 0;

    if (trikv_map(b->service.client, trikv_session_id(session), &map))
        return tkv_bench_service_fail(&b->service, "map", why);
    tkv_samples_add(&b->map_us, us_since(start));
    e = attend(b, session, NULL, &first, why) || attend(b, session, map, &first, why);
    while (!e && tkv_bench_clock_go_on(&clock))
        e = attend(b, session, NULL, &b->daemon_us, why) ||
            attend(b, session, map, &b->local_us, why);
    (void)trikv_unmap(&map);
    return e ? -1 : 0;
}

static int measure_long(struct bench *b, struct trikv_session *session, struct tkv_reason *why)
{
    struct tkv_bench_clock clock;

    for (uint64_t done = 0; done < b->o->tokens; done += CHUNK_TOKENS) {
        const uint64_t left = b->o->tokens - done;

        if (append(b, session, left < CHUNK_TOKENS ? (uint32_t)left : CHUNK_TOKENS, b->ids + done,
                   why))
            return -1;
    }
    if (trikv_keep(session, NULL))
        return tkv_bench_service_fail(&b->service, "keep", why);
    clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    while (tkv_bench_clock_go_on(&clock))
        if (open_with_prefix(b, why))
            return -1;
    clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    while (tkv_bench_clock_go_on(&clock))
        if (fork_and_close(b, session, why))
            return -1;
    clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    while (tkv_bench_clock_go_on(&clock))
        if (guess_and_truncate(b, session, why))
            return -1;
    if (tkv_pin_process(0, &b->all, why) || tkv_pin_process(b->service.daemon.pid, &b->all, why))
        return -1;
    return measure_attention(b, session, why);
}

static int pin(struct bench *b, struct tkv_reason *why)
{
    int first = 0;

    if (sched_getaffinity(0, sizeof(b->all), &b->all))
        return tkv_reason_set(why, "cannot learn which processors there are");
    while (first < CPU_SETSIZE - 1 && !CPU_ISSET((unsigned)first, &b->all))
        first++;
    return tkv_pin(first, why);
}

static int measure(struct bench *b, struct tkv_reason *why)
{
    struct tkv_bench_clock clock = tkv_bench_clock_start(b->o->seconds, LEAST_REPETITIONS);
    struct trikv_session *session = NULL;

    describe(b);
    if (make_tokens(b, why))
        return -1;
    while (tkv_bench_clock_go_on(&clock))
        if (open_and_close(b, why))
            return -1;
    if (trikv_open(b->service.client, &b->options, &session))
        return tkv_bench_service_fail(&b->service, "open", why);
    return measure_long(b, session, why);
}

static void put(struct bench *b, struct tkv_record *r)
{
    tkv_record_number(r, "open_hit_us", "open with all tokens stored, us",
                      tkv_samples_spread(&b->hit_us).median);
    tkv_record_number(r, "fork_us", "fork, us", tkv_samples_spread(&b->fork_us).median);
    tkv_record_number(r, "fork_bytes", "bytes of a fork", (double)b->fork_bytes);
    tkv_record_number(r, "truncate_us", "forget 16 tokens, us",
                      tkv_samples_spread(&b->truncate_us).median);
    tkv_record_number(r, "map_us", "map, us", tkv_samples_spread(&b->map_us).median);
    tkv_record_number(r, "daemon_attend_us", "attend to a layer in the daemon, us",
                      tkv_samples_spread(&b->daemon_us).median);
    tkv_record_number(r, "local_attend_us", "attend to a layer on a map, us",
                      tkv_samples_spread(&b->local_us).median);
    tkv_record_number(r, "close_us", "close, us", tkv_samples_spread(&b->close_us).median);
    tkv_record_spread(r, "open_us", "open, us", &b->open_us);
}

int tkv_bench_session(const struct tkv_bench_options *o, struct tkv_record *r,
                      struct tkv_reason *why)
{
    const size_t chunk_bytes = 2 * CHUNK_TOKENS * row_values(o) * sizeof(uint16_t);
    struct bench b = {.o = o};
    struct tkv_machine m;
    int e = tkv_machine_init(&m, 1, NULL, why);

    e = e ? e : pin(&b, why);
    if (!e) {
        tkv_record_text(r, "cpu", "CPU", m.cpu);
        tkv_record_text(r, "features", "kernels", m.features);
        tkv_record_text(r, "codec", "codec", o->codec);
        tkv_record_number(r, "layers", "layers", o->layers);
        tkv_record_number(r, "tokens", "tokens", (double)o->tokens);
        e = tkv_bench_service_start(&b.service, o->threads, chunk_bytes, false, why);
    }
    if (!e) {
        e = measure(&b, why);
        if (!e)
            put(&b, r);
        tkv_bench_service_stop(&b.service);
    }
    free(b.tokens);
    free(b.out);
    free(b.ids);
    tkv_machine_deinit(&m);
    return e;
}
