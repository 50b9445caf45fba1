/* A snapshot, without the file around it (whose checksum no fuzzer would pass): what is taken must work. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "store/session_priv.h"
#include "store/snapshot.h"
#include "tests/fuzz/snapshot_input.h"

enum { MAX_TOKENS = 40, MAX_USED_BYTES = 256 << 20 };

struct input {
    const uint8_t *data;
    size_t n;
};

static int next(void *ctx, void *bytes, size_t n, struct tkv_report *why)
{
    struct input *in = ctx;

    if (n > in->n)
        return tkv_fail(why, 7, "input ends");
    memcpy(bytes, in->data, n);
    in->data += n;
    in->n -= n;
    return 0;
}

/* As a daemon gives a profile's statistics, to layers that are of its shape. */
static void give_statistics(const struct aid *a, const struct tkv_snapshot *s)
{
    for (uint32_t i = 0; i < s->n_sessions; i++)
        for (uint32_t l = 0; l < s->configs[i]->config.n_layers; l++) {
            struct tkv_layer_config *c = &s->configs[i]->layers[l];
            const struct tkv_layer_config *from = &a->layers[l % AID_MAX_LAYERS];

            if (memcmp(&c->shape, &a->shape, sizeof(a->shape)) != 0)
                continue;
            c->stats = a->config.method == TKV_METHOD_TRIATTENTION ? from->stats : NULL;
            c->errors = l < a->config.n_layers ? from->errors : NULL;
        }
}

/* Tokens of any value, in every layer of a small session. */
static void use_layer(struct tkv_session *s, uint32_t layer)
{
    static float x[1 << 17];
    const struct tkv_shape *shape = tkv_session_shape(s, layer);
    struct tkv_step step = {.layer = layer, .n_tokens = MAX_TOKENS};
    const size_t heads = shape->n_q_heads;
    const size_t dim =
        shape->head_dim_k > shape->head_dim_v ? shape->head_dim_k : shape->head_dim_v;
    struct tkv_report why;

    if (heads * dim * MAX_TOKENS > sizeof(x) / sizeof(x[0]) / 2)
        return;
    for (size_t i = 0; i < sizeof(x) / sizeof(x[0]) / 2; i++)
        x[i] = (float)(i % 7) - 3;
    step.k = step.v = step.q = x;
    step.out = x + sizeof(x) / sizeof(x[0]) / 2;
    if (tkv_session_append_attend(s, &step, NULL, &why))
        step.n_tokens = 1;
    (void)tkv_session_append_attend(s, &step, NULL, &why);
}

static void use(struct tkv_session *s)
{
    struct tkv_session_stats stats;
    struct tkv_report why;

    (void)tkv_session_truncate(s, 1, &why);
    for (uint32_t i = 0; i < tkv_session_n_layers(s) && i < 8; i++)
        use_layer(s, i);
    (void)tkv_session_round(s, NULL, &why);
    (void)tkv_session_truncate(s, tkv_session_n_seen(s, 0), &why);
    tkv_session_stats(s, &stats);
}

static void read_sessions(struct aid *a, struct tkv_snapshot *s)
{
    struct tkv_session *sessions[TKV_SNAPSHOT_MAX_SESSIONS];
    struct tkv_report why;

    if (tkv_snapshot_read(s, &a->kn, sessions, &why))
        return;
    for (uint32_t i = 0; i < s->n_sessions; i++)
        use(sessions[i]);
    fuzz_reached();
    for (uint32_t i = 0; i < s->n_sessions; i++)
        tkv_session_destroy(&sessions[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct input in = {data + 1, n - 1};
    const struct tkv_snapshot_source source = {next, &in};
    struct tkv_snapshot *s;
    struct tkv_report why;
    struct aid a;

    if (n == 0)
        return 0;
    scene_configure(&a, data[0] % N_SCENES, &snapshot_input_shape);
    a.budget.cap_bytes = MAX_USED_BYTES;
    if (!tkv_snapshot_open(&s, &source, &a.budget, &why)) {
        give_statistics(&a, s);
        read_sessions(&a, s);
        tkv_snapshot_close(&s);
    }
    free(a.stats);
    if (atomic_load(&a.budget.used_bytes) != 0)
        abort();
    return 0;
}
