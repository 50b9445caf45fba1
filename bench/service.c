#include "bench/service.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/inputs.h"
#include "client/client.h"
#include "proto/trikv.pb-c.h"
#include "tools/profile_write.h"

/* TRIKV_BIN, else trikvd in the folder of this program. */
static void find_daemon(char *path, size_t n)
{
    const char *given = getenv("TRIKV_BIN");
    char self[512] = "";
    ssize_t length;
    char *slash;

    if (given) {
        (void)snprintf(path, n, "%s", given);
        return;
    }
    length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    self[length > 0 ? length : 0] = '\0';
    slash = strrchr(self, '/');
    if (slash)
        *slash = '\0';
    (void)snprintf(path, n, "%s%strikvd", self, slash ? "/" : "");
}

/* [layer][q_head][mean_re, mean_im, mean_abs][band]; no mean is longer than its mean length. */
static float *random_statistics(size_t n_heads, size_t n_bands)
{
    float *x = malloc(n_heads * 3 * n_bands * sizeof(*x));
    struct tkv_source source = {11};

    if (!x)
        return NULL;
    tkv_source_gauss(&source, x, n_heads * 3 * n_bands);
    for (size_t h = 0; h < n_heads; h++)
        for (size_t f = 0; f < n_bands; f++) {
            float *s = x + h * 3 * n_bands + f;

            s[2 * n_bands] = hypotf(s[0], s[n_bands]) + fabsf(s[2 * n_bands]) + 0.01f;
        }
    return x;
}

static int write_profile(const char *path, struct tkv_reason *why)
{
    const size_t n_heads = (size_t)TKV_QWEN3_LAYERS * TKV_QWEN3_KV_HEADS * TKV_QWEN3_GROUP;
    struct tkv_profile_facts facts = {
        .name = TKV_BENCH_PROFILE,
        .architecture = "qwen3",
        .fingerprint = "none",
        .notes = {"Written by trikv-bench: random numbers."},
        .n_layers = TKV_QWEN3_LAYERS,
        .shape = {.n_q_heads = TKV_QWEN3_KV_HEADS * TKV_QWEN3_GROUP,
                  .n_kv_heads = TKV_QWEN3_KV_HEADS,
                  .head_dim_k = TKV_QWEN3_HEAD_DIM,
                  .head_dim_v = TKV_QWEN3_HEAD_DIM},
        .rope = {.head_dim = TKV_QWEN3_HEAD_DIM, .rotary_dim = TKV_QWEN3_HEAD_DIM, .theta = 1e6},
    };
    float *statistics = random_statistics(n_heads, TKV_QWEN3_HEAD_DIM / 2);
    int e;

    if (!statistics)
        return tkv_reason_set(why, "out of memory for statistics");
    facts.statistics = statistics;
    facts.n_statistics = n_heads * 3 * (TKV_QWEN3_HEAD_DIM / 2);
    e = tkv_profile_write(path, &facts, why);
    free(statistics);
    return e;
}

static int make_folder(struct tkv_bench_service *s, const char *parent, struct tkv_reason *why)
{
    const int n = snprintf(s->folder, sizeof(s->folder), "%s/trikv-bench-XXXXXX", parent);

    if (n > 0 && (size_t)n < sizeof(s->folder) && mkdtemp(s->folder))
        return 0;
    s->folder[0] = '\0';
    return tkv_reason_set(why, "cannot make a folder in %s: %s", parent, strerror(errno));
}

static int make_config(struct tkv_bench_service *s, struct tkv_reason *why)
{
    FILE *f;

    (void)snprintf(s->config, sizeof(s->config), "%s/trikvd.yaml", s->folder);
    f = fopen(s->config, "we");
    if (!f || fprintf(f, "snapshot:\n  directory: \"%s\"\n", s->folder) < 0) {
        if (f)
            (void)fclose(f);
        return tkv_reason_set(why, "%s: %s", s->config, strerror(errno));
    }
    return fclose(f) ? tkv_reason_set(why, "%s: %s", s->config, strerror(errno)) : 0;
}

static int make_profile(struct tkv_bench_service *s, struct tkv_reason *why)
{
    char path[128];

    if (make_folder(s, "/tmp", why))
        return -1;
    (void)snprintf(path, sizeof(path), "%s/" TKV_BENCH_PROFILE ".yaml", s->folder);
    return write_profile(path, why);
}

int tkv_bench_attention_us(struct trikv_client *c, double *us)
{
    struct tkv_request r = TKV_REQUEST_INIT;
    int e;

    r.type = TRIKV_DAEMON_STATS;
    r.reply_type = &trikv__daemon_stats__descriptor;
    e = tkv_request_run(c, &r);
    *us = e ? 0 : ((const Trikv__DaemonStats *)r.reply)->attend_s * 1e6;
    tkv_request_deinit(&r);
    return e;
}

int tkv_bench_ring_nothing(struct trikv_client *c)
{
    struct tkv_client_ring *const r = c->ring;
    struct trikv_ring_entry *const entries = (struct trikv_ring_entry *)(void *)(r->shared + 1);

    entries[r->n_written & (r->n_entries - 1)] =
        (struct trikv_ring_entry){.tag = r->n_written, .op = TRIKV_RING_NOTHING};
    r->n_written++;
    return tkv_ring_wait(c);
}

int tkv_bench_service_fail(const struct tkv_bench_service *s, const char *what,
                           struct tkv_reason *why)
{
    return tkv_reason_set(why, "%s: %s", what, trikv_last_error(s->client));
}

static int start(struct tkv_bench_service *s, uint32_t n_threads, size_t staging_bytes,
                 struct tkv_reason *why)
{
    char program[600], threads[16];
    const char *const arguments[] = {
        "--config",    s->config[0] ? s->config : "/dev/null",
        "--threads",   threads,
        "--profiles",  s->folder[0] && !s->config[0] ? s->folder : "/nonexistent",
        "--log-level", "error",
        NULL};
    struct trikv_options o = {.size = sizeof(o),
                              .socket = s->daemon.socket,
                              .timeout_ms = 600000,
                              .staging_bytes = staging_bytes,
                              .name = "trikv-bench"};

    find_daemon(program, sizeof(program));
    (void)snprintf(threads, sizeof(threads), "%u", n_threads);
    if (tkv_spawn_start(&s->daemon, program, arguments, why))
        return -1;
    return trikv_connect(&s->client, &o) ? tkv_bench_service_fail(s, "connect", why) : 0;
}

int tkv_bench_service_start(struct tkv_bench_service *s, uint32_t n_threads, size_t staging_bytes,
                            bool with_profile, struct tkv_reason *why)
{
    *s = (struct tkv_bench_service){0};
    if ((with_profile && make_profile(s, why)) || start(s, n_threads, staging_bytes, why)) {
        tkv_bench_service_stop(s);
        return -1;
    }
    return 0;
}

int tkv_bench_service_start_files(struct tkv_bench_service *s, uint32_t n_threads,
                                  size_t staging_bytes, struct tkv_reason *why)
{
    const char *parent = getenv("TMPDIR");

    *s = (struct tkv_bench_service){0};
    if (make_folder(s, parent ? parent : "/tmp", why) || make_config(s, why) ||
        start(s, n_threads, staging_bytes, why)) {
        tkv_bench_service_stop(s);
        return -1;
    }
    return 0;
}

void tkv_bench_service_stop(struct tkv_bench_service *s)
{
    char path[128];

    trikv_disconnect(&s->client);
    (void)tkv_spawn_stop(&s->daemon);
    if (s->folder[0]) {
        (void)snprintf(path, sizeof(path), "%s/" TKV_BENCH_PROFILE ".yaml", s->folder);
        (void)unlink(path);
        (void)snprintf(path, sizeof(path), "%s/" TKV_BENCH_PROFILE ".stats", s->folder);
        (void)unlink(path);
        (void)snprintf(path, sizeof(path), "%s/%lu", s->folder, (unsigned long)getuid());
        (void)rmdir(path);
        (void)unlink(s->config);
        (void)rmdir(s->folder);
    }
    *s = (struct tkv_bench_service){0};
}
