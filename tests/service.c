/* Starting the daemon, and sessions of three unlike layers with random tensors. */
#include "tests/service.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/rng.h"
#include "tools/spawn.h"

enum { SEED = 777 };

static struct tkv_spawn daemon_of_test;

void service_program(const char *name, char *path, size_t n)
{
    const char *given = getenv("TRIKV_BIN");
    char self[512] = "";
    char *slash;

    if (given) {
        snprintf(path, n, "%s/%s", given, name);
        return;
    }
    assert_true(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
    slash = strrchr(self, '/');
    assert_non_null(slash);
    *slash = '\0';
    snprintf(path, n, "%s/../bin/%s", self, name);
}

const char *service_socket(void)
{
    return daemon_of_test.socket;
}

pid_t service_pid(void)
{
    return daemon_of_test.pid;
}

/* A configuration that takes the instruction sets away that this test run is without. */
static void write_config(char *path)
{
    const char *disabled = getenv("TRIKV_CPU_DISABLE");
    const int fd = mkstemp(path);

    assert_true(fd >= 0);
    dprintf(fd, "workers:\n  threads: 2\n  cpu_disable: \"%s\"\n", disabled ? disabled : "");
    close(fd);
}

int service_start(void **state)
{
    char program[600];
    char config[] = "/tmp/trikv-config-XXXXXX";
    const char *const arguments[] = {"--config",    config,       "--memory-cap",
                                     "256MiB",      "--profiles", "/nonexistent",
                                     "--log-level", "error",      NULL};
    struct tkv_reason why = {{0}};
    int e;

    (void)state;
    service_program("trikvd", program, sizeof(program));
    write_config(config);
    e = tkv_spawn_start(&daemon_of_test, program, arguments, &why);
    unlink(config);
    if (e)
        print_error("%s\n", why.text);
    return e;
}

int service_stop(void **state)
{
    (void)state;
    return tkv_spawn_stop(&daemon_of_test);
}

struct trikv_client *service_connect(size_t staging_bytes)
{
    const struct trikv_options o = {.size = sizeof(o),
                                    .socket = daemon_of_test.socket,
                                    .timeout_ms = 60000,
                                    .staging_bytes = staging_bytes,
                                    .name = "check_roundtrip"};
    struct trikv_client *c = NULL;

    if (trikv_connect(&c, &o))
        fail_msg("connect: %s", trikv_last_error(c));
    return c;
}

/* Three layers that differ in everything that layers may differ in. */
static const float sinks[4] = {0.5f, -1, 2, 0};
const struct trikv_layer service_layers[SERVICE_LAYERS] = {
    {.n_q_heads = 4, .n_kv_heads = 2, .head_dim_k = 32, .head_dim_v = 32},
    {.n_q_heads = 3, .n_kv_heads = 1, .head_dim_k = 64, .head_dim_v = 48, .softcap = 5},
    {.n_q_heads = 4,
     .n_kv_heads = 4,
     .head_dim_k = 16,
     .head_dim_v = 24,
     .scale = 0.3f,
     .window_tokens = 100,
     .sinks = sinks},
};

struct trikv_session_options service_options(const char *codec)
{
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = SERVICE_LAYERS;
    o.layers = service_layers;
    o.codec_k = codec;
    o.codec_v = codec;
    o.method = "none";
    o.beta_tokens = 64;
    o.recent_tokens = 64;
    o.pinned_tokens = 4;
    o.label = "round trip";
    return o;
}

struct trikv_session *service_open(struct trikv_client *c, const char *codec)
{
    const struct trikv_session_options o = service_options(codec);
    struct trikv_session *s = NULL;

    if (trikv_open(c, &o, &s))
        fail_msg("open: %s", trikv_last_error(c));
    return s;
}

static float *gauss(size_t n, struct rng *r)
{
    float *x = calloc(n, sizeof(*x));

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_gauss(r);
    return x;
}

void service_data_init(struct service_data *d, uint32_t layer)
{
    const struct trikv_layer *l = &service_layers[layer];
    struct rng r = {.state = SEED + layer};

    d->layer = l;
    d->k = gauss((size_t)SERVICE_TOKENS * l->n_kv_heads * l->head_dim_k, &r);
    d->v = gauss((size_t)SERVICE_TOKENS * l->n_kv_heads * l->head_dim_v, &r);
    d->q = gauss((size_t)SERVICE_TOKENS * l->n_q_heads * l->head_dim_k, &r);
    d->out = calloc((size_t)SERVICE_TOKENS * l->n_q_heads * l->head_dim_v, sizeof(float));
    d->lse = calloc((size_t)SERVICE_TOKENS * l->n_q_heads, sizeof(float));
    /* Gaps: positions are not indices. */
    for (int32_t t = 0; t < SERVICE_TOKENS; t++)
        d->positions[t] = 5 + t + t / 7;
}

void service_data_deinit(struct service_data *d)
{
    free(d->k);
    free(d->v);
    free(d->q);
    free(d->out);
    free(d->lse);
}

struct trikv_step service_step(const struct service_data *d, uint32_t layer, size_t at, size_t n)
{
    const struct trikv_layer *l = d->layer;

    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = layer,
                               .n_tokens = (uint32_t)n,
                               .dtype = TRIKV_F32,
                               .positions = d->positions + at,
                               .k = d->k + at * l->n_kv_heads * l->head_dim_k,
                               .v = d->v + at * l->n_kv_heads * l->head_dim_v,
                               .q = d->q + at * l->n_q_heads * l->head_dim_k,
                               .out = d->out + at * l->n_q_heads * l->head_dim_v,
                               .lse = d->lse + at * l->n_q_heads};
}

/* Everything of a layer, in requests of `chunk` tokens. */
void service_feed(struct trikv_client *c, struct trikv_session *s, struct service_data *d,
                  uint32_t layer, size_t chunk)
{
    for (size_t at = 0; at < SERVICE_TOKENS; at += chunk) {
        const struct trikv_step t =
            service_step(d, layer, at, SERVICE_TOKENS - at < chunk ? SERVICE_TOKENS - at : chunk);

        if (trikv_append_attend(s, &t))
            fail_msg("layer %u, token %zu: %s", layer, at, trikv_last_error(c));
    }
}
