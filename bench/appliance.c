/*
 * The whole thing: a session of Qwen3-8B's geometry takes a long text through the daemon, with
 * TriAttention and codes, and the time of appends, rounds and attention is taken all along, since
 * none of it may grow once the budget is full.
 *
 * Keys, values and queries are windows of one random stream, each at a place of its own, so
 * that making them costs nothing. Attention is asked for at one token of each `beta`, in every
 * layer.
 */
#include <stdlib.h>
#include <string.h>

#include "bench/commands.h"
#include "bench/inputs.h"
#include "bench/machine.h"
#include "bench/service.h"
#include "core/half.h"

enum {
    CHUNK_TOKENS = 128, /* beta: a round falls due with each chunk */
    RECENT_TOKENS = 128,
    ROW = TKV_QWEN3_KV_HEADS * TKV_QWEN3_HEAD_DIM,
    CHUNK_VALUES = CHUNK_TOKENS * ROW,
    STREAM_VALUES = 32 * CHUNK_VALUES,
    STAGING_BYTES = 4 << 20,
};

/* Time as the client waits, and that of all threads of the daemon. */
struct phase {
    struct tkv_samples wall, cpu;
};

struct moment {
    uint64_t wall_ns, cpu_ns;
};

struct bench {
    const struct tkv_bench_options *o;
    struct tkv_bench_service service;
    struct trikv_session *session;
    struct tkv_source source;
    uint16_t *stream;
    float *out;
    struct phase append;               /* of a token: all layers, us */
    struct phase round;                /* all layers, ms */
    struct phase attend;               /* of a token: all layers, us */
    struct tkv_samples resident_bytes; /* before the round of a chunk */
    uint64_t most_resident_bytes;
    struct trikv_stats stats;
};

static int make_stream(struct bench *b, struct tkv_reason *why)
{
    struct tkv_kernels kn;
    float *x = malloc(STREAM_VALUES * sizeof(*x));

    b->stream = malloc(STREAM_VALUES * sizeof(*b->stream));
    b->out = malloc((size_t)ROW * TKV_QWEN3_GROUP * sizeof(*b->out));
    if (!x || !b->stream || !b->out) {
        free(x);
        return tkv_reason_set(why, "out of memory for inputs");
    }
    tkv_kernels_init(&kn, 0);
    tkv_source_gauss(&b->source, x, STREAM_VALUES);
    (void)tkv_to_f16(&kn, b->stream, x, TKV_F32, STREAM_VALUES);
    free(x);
    return 0;
}

/* A window of n values somewhere in the stream. */
static const uint16_t *window(struct bench *b, size_t n)
{
    float place;

    tkv_source_gauss(&b->source, &place, 1);
    return b->stream + b->source.state % (STREAM_VALUES - n) + (place > 0);
}

static int open_session(struct bench *b, struct tkv_reason *why)
{
    const struct trikv_layer layer = {.n_q_heads = TKV_QWEN3_KV_HEADS * TKV_QWEN3_GROUP,
                                      .n_kv_heads = TKV_QWEN3_KV_HEADS,
                                      .head_dim_k = TKV_QWEN3_HEAD_DIM,
                                      .head_dim_v = TKV_QWEN3_HEAD_DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = TKV_QWEN3_LAYERS;
    o.layers = &layer;
    o.same_layers = 1;
    o.profile = TKV_BENCH_PROFILE;
    o.codec_k = o.codec_v = b->o->codec;
    o.method = "triattention";
    o.budget_tokens = (uint32_t)b->o->budget;
    o.beta_tokens = CHUNK_TOKENS;
    o.recent_tokens = RECENT_TOKENS;
    o.label = "appliance";
    return trikv_open(b->service.client, &o, &b->session)
               ? tkv_bench_service_fail(&b->service, "open", why)
               : 0;
}

static struct moment now(const struct bench *b)
{
    struct moment m = {.wall_ns = tkv_bench_now_ns()};
    struct timespec t;
    clockid_t clock;

    if (!clock_getcpuclockid(b->service.daemon.pid, &clock) && !clock_gettime(clock, &t))
        m.cpu_ns = (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
    return m;
}

static void add_since(const struct bench *b, struct moment start, double unit_ns, struct phase *p)
{
    const struct moment end = now(b);

    tkv_samples_add(&p->wall, (double)(end.wall_ns - start.wall_ns) / unit_ns);
    tkv_samples_add(&p->cpu, (double)(end.cpu_ns - start.cpu_ns) / unit_ns);
}

static int append_chunk(struct bench *b, struct tkv_reason *why)
{
    const struct moment start = now(b);

    for (uint32_t layer = 0; layer < TKV_QWEN3_LAYERS; layer++) {
        const struct trikv_step step = {.size = sizeof(step),
                                        .layer = layer,
                                        .n_tokens = CHUNK_TOKENS,
                                        .dtype = TRIKV_F16,
                                        .k = window(b, CHUNK_VALUES),
                                        .v = window(b, CHUNK_VALUES)};

        if (trikv_append(b->session, &step))
            return tkv_bench_service_fail(&b->service, "append", why);
    }
    add_since(b, start, 1e3 * CHUNK_TOKENS, &b->append);
    return 0;
}

static int attend_token(struct bench *b, struct tkv_reason *why)
{
    const struct moment start = now(b);

    for (uint32_t layer = 0; layer < TKV_QWEN3_LAYERS; layer++) {
        const struct trikv_step step = {.size = sizeof(step),
                                        .layer = layer,
                                        .n_tokens = 1,
                                        .dtype = TRIKV_F16,
                                        .q = window(b, (size_t)ROW * TKV_QWEN3_GROUP),
                                        .out = b->out};

        if (trikv_attend(b->session, &step))
            return tkv_bench_service_fail(&b->service, "attend", why);
    }
    add_since(b, start, 1e3, &b->attend);
    return 0;
}

static int hold_round(struct bench *b, struct tkv_reason *why)
{
    const struct moment start = now(b);

    if (trikv_round(b->session))
        return tkv_bench_service_fail(&b->service, "round", why);
    add_since(b, start, 1e6, &b->round);
    return 0;
}

static int look(struct bench *b, struct tkv_reason *why)
{
    b->stats = (struct trikv_stats){0};
    if (trikv_stats(b->session, &b->stats))
        return tkv_bench_service_fail(&b->service, "stats", why);
    if (b->stats.resident_bytes > b->most_resident_bytes)
        b->most_resident_bytes = b->stats.resident_bytes;
    return 0;
}

/* A line of /proc/PID/status in bytes; 0 if there is none. */
static double daemon_bytes(const struct bench *b, const char *name)
{
    char path[64], line[128];
    unsigned long kib = 0;
    FILE *f;

    (void)snprintf(path, sizeof(path), "/proc/%d/status", (int)b->service.daemon.pid);
    f = fopen(path, "re");
    while (f && !kib && fgets(line, sizeof(line), f))
        if (strncmp(line, name, strlen(name)) == 0)
            kib = strtoul(line + strlen(name), NULL, 10);
    if (f)
        (void)fclose(f);
    return (double)kib * 1024;
}

/* The median of the samples from first to end, which are still in the order they were taken. */
static double median_of(const struct tkv_samples *s, size_t first, size_t end)
{
    struct tkv_samples part = {0};

    for (size_t i = first; i < end && i < s->n; i++)
        tkv_samples_add(&part, s->value[i]);
    return tkv_samples_spread(&part).median;
}

enum { N_QUARTERS = 4, N_PER_QUARTER = 7 };

#define QUARTER_KEYS(q)                                                                 \
    {                                                                                   \
        "resident_" q "_bytes", "append_" q "_us", "round_" q "_ms", "attend_" q "_us", \
            "append_" q "_cpu_us", "round_" q "_cpu_ms", "attend_" q "_cpu_us"          \
    }
#define QUARTER_LABELS(q)                                                                    \
    {                                                                                        \
        "bytes of the session, quarter " q, "append, quarter " q ", us per token",           \
            "round, quarter " q ", ms", "attend, quarter " q ", us per token",               \
            "append, quarter " q ", us of CPU per token", "round, quarter " q ", ms of CPU", \
            "attend, quarter " q ", us of CPU per token"                                     \
    }

/* What one quarter of the run came to, from the first full budget on. */
static void record_quarter(const struct bench *b, size_t q, size_t first, size_t end,
                           struct tkv_record *r)
{
    static const char *const keys[N_QUARTERS][N_PER_QUARTER] = {
        QUARTER_KEYS("q1"), QUARTER_KEYS("q2"), QUARTER_KEYS("q3"), QUARTER_KEYS("q4")};
    static const char *const labels[N_QUARTERS][N_PER_QUARTER] = {
        QUARTER_LABELS("1"), QUARTER_LABELS("2"), QUARTER_LABELS("3"), QUARTER_LABELS("4")};
    const struct tkv_samples *samples[N_PER_QUARTER] = {
        &b->resident_bytes, &b->append.wall, &b->round.wall, &b->attend.wall,
        &b->append.cpu,     &b->round.cpu,   &b->attend.cpu};

    for (size_t i = 0; i < N_PER_QUARTER; i++)
        tkv_record_number(r, keys[q][i], labels[q][i], median_of(samples[i], first, end));
}

static void record_quarters(const struct bench *b, struct tkv_record *r)
{
    const size_t full = b->o->budget / CHUNK_TOKENS + 1, n = b->attend.wall.n;

    for (size_t q = 0; n >= full + N_QUARTERS && q < N_QUARTERS; q++)
        record_quarter(b, q, full + (n - full) * q / N_QUARTERS,
                       full + (n - full) * (q + 1) / N_QUARTERS, r);
}

static void record(struct bench *b, double seconds, struct tkv_record *r)
{
    const size_t full = b->o->budget / CHUNK_TOKENS + 1;
    const size_t n = b->attend.wall.n;
    const size_t first = n > full ? full : 0;
    const double rounds_ms = median_of(&b->round.wall, first, n);

    tkv_record_text(r, "codec", "codec", b->o->codec);
    tkv_record_number(r, "tokens", "tokens", (double)b->stats.n_seen);
    tkv_record_number(r, "budget", "budget, tokens", (double)b->o->budget);
    tkv_record_number(r, "n_kept", "kept for each KV head", b->stats.n_kept);
    tkv_record_number(r, "resident_bytes", "bytes of the session, the most",
                      (double)b->most_resident_bytes);
    tkv_record_number(r, "fp16_bytes", "bytes as halves, nothing dropped",
                      (double)b->stats.fp16_bytes);
    tkv_record_number(r, "compression", "times smaller",
                      (double)b->stats.fp16_bytes / (double)b->most_resident_bytes);
    tkv_record_number(r, "daemon_rss_bytes", "resident bytes of the process, now",
                      daemon_bytes(b, "VmRSS:"));
    tkv_record_number(r, "daemon_peak_bytes", "resident bytes of the process, peak",
                      daemon_bytes(b, "VmHWM:"));
    tkv_record_number(r, "append_us_per_token", "append, all layers, us per token",
                      median_of(&b->append.wall, first, n));
    tkv_record_number(r, "round_ms", "round, all layers, ms", rounds_ms);
    tkv_record_number(r, "round_us_per_token", "round, us per token",
                      rounds_ms * 1e3 / CHUNK_TOKENS);
    tkv_record_number(r, "attend_us_per_token", "attend, all layers, us per token",
                      median_of(&b->attend.wall, first, n));
    record_quarters(b, r);
    tkv_record_number(r, "seconds", "seconds in all", seconds);
}

static int stream(struct bench *b, struct tkv_reason *why)
{
    const uint64_t n_chunks = b->o->tokens / CHUNK_TOKENS;

    for (uint64_t i = 0; i < n_chunks; i++) {
        if (append_chunk(b, why) || attend_token(b, why) || look(b, why) || hold_round(b, why))
            return -1;
        tkv_samples_add(&b->resident_bytes, (double)b->stats.resident_bytes);
    }
    return look(b, why);
}

static int run(struct bench *b, struct tkv_record *r, struct tkv_reason *why)
{
    const uint64_t start = tkv_bench_now_ns();
    struct tkv_machine m;
    int e = tkv_machine_init(&m, 1, NULL, why);

    if (e)
        return e;
    tkv_record_text(r, "cpu", "CPU", m.cpu);
    tkv_record_text(r, "features", "kernels", m.features);
    tkv_record_number(r, "threads", "worker threads", b->o->threads);
    tkv_machine_deinit(&m);
    e = make_stream(b, why) ||
        tkv_bench_service_start(&b->service, b->o->threads, STAGING_BYTES, true, why) ||
        open_session(b, why) || stream(b, why);
    if (!e)
        record(b, (double)(tkv_bench_now_ns() - start) * 1e-9, r);
    return e ? -1 : 0;
}

int tkv_bench_appliance(const struct tkv_bench_options *o, struct tkv_record *r,
                        struct tkv_reason *why)
{
    struct bench *b;
    int e;

    if (o->tokens < CHUNK_TOKENS || o->tokens / CHUNK_TOKENS > TKV_MAX_SAMPLES)
        return tkv_reason_set(why, "--tokens: %u, expected %d to %d", (unsigned)o->tokens,
                              CHUNK_TOKENS, CHUNK_TOKENS * TKV_MAX_SAMPLES);
    b = calloc(1, sizeof(*b));
    if (!b)
        return tkv_reason_set(why, "out of memory");
    b->o = o;
    b->source.state = 17;
    e = run(b, r, why);
    tkv_bench_service_stop(&b->service);
    free(b->stream);
    free(b->out);
    free(b);
    return e;
}
