/*
 * The model: against a naive forward pass in double on small random models of every
 * architecture, against golden losses on the reference model; attention_local against
 * three loops; products with matrices against two; what must be refused.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"
#include "tests/rng.h"
#include "tests/tiny_model.h"
#include "tools/attention_local.h"
#include "tools/metrics.h"
#include "tools/model.h"
#include "tools/team.h"

#define MODEL  "models/trikv-ref-6m.gguf"
#define GOLDEN "models/golden/heldout-300.txt"

enum { N_TOKENS = 40, MAX_GOLDEN = 1000 };

/* A model over a file in memory or on disk, with the judge's attention and two threads. */
struct bench {
    uint8_t *bytes;
    struct tkv_gguf file;
    struct tkv_team *team;
    struct tkv_model *model;
    struct tkv_local *local;
};

static void start(struct bench *b)
{
    struct tkv_reason why = {""};

    if (tkv_team_create(&b->team, 2, &why) ||
        tkv_model_create(&b->model, &b->file, 64, tkv_team_exec(b->team), &why) ||
        tkv_local_create(&b->local, b->model->config.n_layers, &b->model->config.shape,
                         &b->model->math, tkv_team_exec(b->team), &why))
        fail_msg("%s", why.text);
}

static void start_tiny(struct bench *b, const struct tiny_model *m, uint64_t seed)
{
    struct gguf_aid g = {0};
    struct tkv_reason why = {""};
    size_t n_bytes;

    tiny_model_put(&g, m, seed);
    b->bytes = gguf_aid_finish(&g, &n_bytes);
    if (tkv_gguf_parse(&b->file, b->bytes, n_bytes, &why))
        fail_msg("%s", why.text);
    start(b);
}

static void stop(struct bench *b)
{
    tkv_local_destroy(&b->local);
    tkv_model_destroy(&b->model);
    tkv_team_destroy(&b->team);
    tkv_gguf_close(&b->file);
    free(b->bytes);
    *b = (struct bench){0};
}

/* Runs ids in chunks of this size from an empty cache; logits[n][n_vocab]. */
static void run_chunks(struct bench *b, const int32_t *ids, size_t n, size_t chunk, float *logits)
{
    const struct tkv_attention attention = tkv_local_attention(b->local);
    const size_t n_vocab = b->model->config.n_vocab;
    struct tkv_reason why = {""};

    tkv_local_reset(b->local);
    for (size_t at = 0; at < n; at += chunk) {
        const size_t now = n - at < chunk ? n - at : chunk;

        if (tkv_model_forward(b->model, ids + at, now, (int32_t)at, &attention, &why))
            fail_msg("%s", why.text);
        tkv_model_logits(b->model, tkv_model_states(b->model), now, logits + at * n_vocab);
    }
}

static void test_tiny_models(void **state)
{
    static double want[N_TOKENS * 64];
    static float got[N_TOKENS * 64];
    static const size_t chunks[] = {N_TOKENS, 1, 7};

    (void)state;
    for (size_t i = 0; i < n_tiny_models; i++) {
        const struct tiny_model *m = &tiny_models[i];
        struct rng rng = {i + 1};
        struct bench b = {0};
        int32_t ids[N_TOKENS];
        double worst = 0;

        start_tiny(&b, m, i + 1);
        for (size_t t = 0; t < N_TOKENS; t++)
            ids[t] = (int32_t)rng_below(&rng, m->n_vocab);
        tiny_model_forward(m, &b.file, ids, N_TOKENS, want);
        for (size_t c = 0; c < 3; c++) { /* prefill, one by one, and between */
            run_chunks(&b, ids, N_TOKENS, chunks[c], got);
            for (size_t j = 0; j < N_TOKENS * m->n_vocab; j++)
                worst = fmax(worst, fabs((double)got[j] - want[j]));
        }
        print_message("%s %zu: worst logit off by %.2g\n", m->architecture, i, worst);
        assert_true(worst < 1e-4);
        stop(&b);
    }
}

/* What the hook and the attention saw of layer 1. */
struct seen {
    struct tkv_attention inner;
    size_t n;
    float before[3 * 6 * 32];
    float after[3 * 6 * 32];
};

static void see_query(void *ctx, uint32_t layer, size_t n_tokens, const float *q)
{
    struct seen *seen = ctx;

    if (layer == 1)
        memcpy(seen->before, q, n_tokens * 6 * 32 * sizeof(*q));
}

static int see_step(void *ctx, const struct tkv_attention_step *step, struct tkv_reason *why)
{
    struct seen *seen = ctx;

    if (step->layer == 1) {
        memcpy(seen->after, step->q, step->n_tokens * 6 * 32 * sizeof(*step->q));
        seen->n += step->n_tokens;
    }
    return seen->inner.step(seen->inner.ctx, step, why);
}

/* The hook's queries, turned, are those that attention gets. */
static void test_hook(void **state)
{
    const int32_t ids[] = {1, 2, 3};
    struct tkv_attention attention;
    struct seen seen = {.n = 0};
    struct tkv_reason why = {""};
    struct bench b = {0};

    (void)state;
    start_tiny(&b, &tiny_models[5], 1);
    seen.inner = tkv_local_attention(b.local);
    attention = (struct tkv_attention){see_step, &seen};
    b.model->hook = (struct tkv_query_hook){see_query, &seen};
    assert_int_equal(tkv_model_forward(b.model, ids, 3, 100, &attention, &why), 0);
    assert_int_equal(seen.n, 3);
    assert_memory_not_equal(seen.before, seen.after, sizeof(seen.before));
    for (size_t head = 0; head < 3 * 6; head++) {
        float cs[32], turned[32];

        tkv_rope_angles(&b.model->config.rope, 100 + (int64_t)head / 6, cs);
        tkv_rope_turn(&b.model->config.rope, cs, seen.before + head * 32, turned);
        assert_memory_equal(turned, seen.after + head * 32, sizeof(turned));
    }
    stop(&b);
}

/* Lines "id loss top1". */
static size_t read_golden(int32_t *ids, double *losses, int32_t *top1)
{
    FILE *file = fopen(GOLDEN, "r");
    size_t n = 0;

    if (!file)
        return 0;
    while (n < MAX_GOLDEN && fscanf(file, "%d %lf %d", &ids[n], &losses[n], &top1[n]) == 3)
        n++;
    fclose(file);
    return n;
}

/* The second largest logit's distance to the largest. */
static float margin(const float *logits, size_t n_vocab)
{
    const size_t best = (size_t)tkv_metrics_top1(logits, n_vocab);
    float second = -INFINITY;

    for (size_t i = 0; i < n_vocab; i++) {
        if (i != best && logits[i] > second)
            second = logits[i];
    }
    return logits[best] - second;
}

static void test_golden(void **state)
{
    int32_t ids[MAX_GOLDEN + 1], top1[MAX_GOLDEN];
    double losses[MAX_GOLDEN], worst = 0;
    const size_t n = read_golden(ids + 1, losses, top1);
    struct tkv_reason why = {""};
    struct bench b = {0};
    float *logits;

    (void)state;
    if (!n || tkv_gguf_open(&b.file, MODEL, &why)) {
        print_message("skipped: no " MODEL " or " GOLDEN "\n");
        skip();
    }
    start(&b);
    assert_int_equal(tkv_gguf_u32(&b.file, "tokenizer.ggml.bos_token_id", (uint32_t *)ids, &why),
                     0);
    logits = malloc(n * b.model->config.n_vocab * sizeof(*logits));
    assert_non_null(logits);
    run_chunks(&b, ids, n, 64, logits);
    for (size_t t = 0; t < n; t++) {
        const float *row = logits + t * b.model->config.n_vocab;
        const double loss = tkv_metrics_loss(row, b.model->config.n_vocab, ids[t + 1]);

        worst = fmax(worst, fabs(loss - losses[t]));
        if (margin(row, b.model->config.n_vocab) > 1e-3f)
            assert_int_equal(tkv_metrics_top1(row, b.model->config.n_vocab), top1[t]);
    }
    print_message("%zu tokens, worst loss off by %.2g nats\n", n, worst);
    assert_true(worst < 2e-3);
    free(logits);
    stop(&b);
}

/* The definition of attention for the last n of all tokens, in double. */
static void naive_attention(const struct tkv_shape *s, const struct tkv_attention_step *all,
                            size_t first, double *out)
{
    double *w = calloc(all->n_tokens, sizeof(*w));

    assert_non_null(w);
    for (size_t row = first * s->n_q_heads; row < all->n_tokens * s->n_q_heads; row++) {
        const size_t token = row / s->n_q_heads, head = row % s->n_q_heads / tkv_group(s);
        double max = -INFINITY, sum = 0;

        for (size_t t = 0; t <= token; t++) {
            w[t] = 0;
            for (size_t i = 0; i < s->head_dim_k; i++)
                w[t] += (double)all->q[row * s->head_dim_k + i] *
                        (double)all->k[(t * s->n_kv_heads + head) * s->head_dim_k + i];
            w[t] /= sqrt(s->head_dim_k);
            max = fmax(max, w[t]);
        }
        for (size_t t = 0; t <= token; t++)
            sum += w[t] = exp(w[t] - max);
        for (size_t i = 0; i < s->head_dim_v; i++) {
            double *o = &out[(row - first * s->n_q_heads) * s->head_dim_v + i];

            *o = 0;
            for (size_t t = 0; t <= token; t++)
                *o += w[t] / sum * (double)all->v[(t * s->n_kv_heads + head) * s->head_dim_v + i];
        }
    }
    free(w);
}

static float *random_floats(struct rng *rng, size_t n, float scale)
{
    float *x = malloc(n * sizeof(*x));

    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = scale * rng_gauss(rng);
    return x;
}

static double check_local(const struct tkv_shape *s, size_t n, const struct tkv_exec *exec,
                          uint64_t seed)
{
    const size_t cut = n * 3 / 4, n_last = n - cut, n_out = n_last * s->n_q_heads * s->head_dim_v;
    struct rng rng = {seed};
    float *q = random_floats(&rng, n * s->n_q_heads * s->head_dim_k, 3);
    float *k = random_floats(&rng, n * s->n_kv_heads * s->head_dim_k, 1);
    float *v = random_floats(&rng, n * s->n_kv_heads * s->head_dim_v, 1);
    float *out = random_floats(&rng, n * s->n_q_heads * s->head_dim_v, 1);
    int32_t *positions = malloc(n * sizeof(*positions));
    double *want = malloc(n_out * sizeof(*want)), worst = 0;
    struct tkv_attention_step step = {.q = q, .k = k, .v = v, .out = out, .positions = positions};
    struct tkv_local *local;
    struct tkv_math math;
    struct tkv_reason why = {""};

    assert_true(positions && want);
    for (size_t t = 0; t < n; t++)
        positions[t] = (int32_t)(3 * t); /* gaps do not matter */
    tkv_math_init(&math, tkv_cpu_flags(NULL));
    assert_int_equal(tkv_local_create(&local, 1, s, &math, exec, &why), 0);
    step.n_tokens = cut;
    assert_int_equal(tkv_local_attention(local).step(local, &step, &why), 0);
    step.n_tokens = n;
    naive_attention(s, &step, cut, want);
    step = (struct tkv_attention_step){.n_tokens = n_last,
                                       .q = q + cut * s->n_q_heads * s->head_dim_k,
                                       .k = k + cut * s->n_kv_heads * s->head_dim_k,
                                       .v = v + cut * s->n_kv_heads * s->head_dim_v,
                                       .out = out,
                                       .positions = positions + cut};
    assert_int_equal(tkv_local_attention(local).step(local, &step, &why), 0);
    for (size_t i = 0; i < n_out; i++)
        worst = fmax(worst, fabs((double)out[i] - want[i]));
    tkv_local_destroy(&local);
    free(q);
    free(k);
    free(v);
    free(out);
    free(positions);
    free(want);
    return worst;
}

static void test_local(void **state)
{
    static const struct tkv_shape shapes[] = {{4, 2, 64, 64, 0},
                                              {8, 1, 32, 48, 0},
                                              {3, 3, 8, 8, 0},
                                              {14, 2, 64, 64, 0},
                                              {2, 1, 80, 130, 0}};
    static const size_t lengths[] = {4, 31, 33, 511, 513, 1300};
    struct tkv_reason why = {""};
    struct tkv_team *team;
    double worst = 0;

    (void)state;
    assert_int_equal(tkv_team_create(&team, 3, &why), 0);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        for (size_t j = 0; j < sizeof(lengths) / sizeof(lengths[0]); j++) {
            if (lengths[j] * shapes[i].n_q_heads <= 4096)
                worst = fmax(worst, check_local(&shapes[i], lengths[j],
                                                j % 2 ? tkv_team_exec(team) : NULL, 10 * i + j));
        }
    }
    print_message("worst output off by %.2g\n", worst);
    assert_true(worst < 1e-5);
    tkv_team_destroy(&team);
}

/* One product against the definition, within 2 n eps sum |x w|. */
static void check_product(const struct tkv_math *math, const struct tkv_gguf_tensor *t, size_t n,
                          struct rng *rng)
{
    const struct tkv_matrix w = {(enum tkv_ggml_type)t->type, (uint32_t)t->dims[1],
                                 (uint32_t)t->dims[0], t->data};
    float *x = random_floats(rng, n * w.n_in, 1), *y = random_floats(rng, n * w.n_out, 1);
    float *row = random_floats(rng, w.n_in, 1);

    tkv_linear(math, NULL, &w, x, n, y);
    for (size_t o = 0; o < w.n_out; o++) {
        tkv_matrix_row(math, &w, o, 0, w.n_in, row);
        for (size_t r = 0; r < n; r++) {
            double sum = 0, size = 0;

            for (size_t i = 0; i < w.n_in; i++) {
                sum += (double)x[r * w.n_in + i] * (double)row[i];
                size += fabs((double)x[r * w.n_in + i] * (double)row[i]);
            }
            if (fabs((double)y[r * w.n_out + o] - sum) > 2 * w.n_in * (double)FLT_EPSILON * size)
                fail_msg("type %u, %u x %u, %zu rows: y[%zu][%zu] = %g, expected %g", t->type,
                         w.n_out, w.n_in, n, r, o, (double)y[r * w.n_out + o], sum);
        }
    }
    free(x);
    free(y);
    free(row);
}

/* Every tile variant of this machine, every weight type, shapes around the tile's edges. */
static void test_products(void **state)
{
    static const uint32_t types[] = {TKV_GGML_F32, TKV_GGML_F16, TKV_GGML_BF16, TKV_GGML_Q8_0};
    static const uint32_t outs[] = {1, 31, 33}, ins[] = {32, 96, 544};
    static const size_t rows[] = {1, 3, 4, 8, 13};
    const unsigned all = tkv_cpu_flags(NULL);
    const unsigned sets[] = {0, all & ~(unsigned)TKV_CPU_AVX512, all};
    struct rng rng = {8};

    (void)state;
    for (size_t i = 0; i < 3 * 4 * 3 * 3; i++) {
        const uint32_t n_in = ins[i / 12 % 3], n_out = outs[i / 36];
        float *values = random_floats(&rng, (size_t)n_in * n_out, 1);
        struct gguf_aid g = {0};
        struct tkv_gguf file;
        struct tkv_reason why = {""};
        struct tkv_math math;
        uint8_t *bytes;
        size_t n_bytes;

        gguf_aid_tensor(&g, "w", types[i % 4], n_in, n_out, values);
        bytes = gguf_aid_finish(&g, &n_bytes);
        if (tkv_gguf_parse(&file, bytes, n_bytes, &why))
            fail_msg("%s", why.text);
        tkv_math_init(&math, sets[i / 4 % 3]);
        for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++)
            check_product(&math, tkv_gguf_tensor(&file, "w"), rows[r], &rng);
        tkv_gguf_close(&file);
        free(bytes);
        free(values);
    }
}

static void test_metrics(void **state)
{
    const float p[] = {0, logf(2), logf(5)}, q[] = {1, 1, 1}; /* 1/8 2/8 5/8; thirds */
    const int32_t target = 2;
    const struct tkv_metrics_batch batch = {
        .logits = q, .other = p, .targets = &target, .n = 1, .n_vocab = 3};
    const double kl = log(3) + (log(1.0 / 8) + 2 * log(2.0 / 8) + 5 * log(5.0 / 8)) / 8;
    struct tkv_metrics m = {0};

    (void)state;
    assert_true(fabs(tkv_metrics_loss(p, 3, 1) - log(4)) < 1e-7);
    assert_true(fabs(tkv_metrics_kl(p, q, 3) - kl) < 1e-7);
    assert_true(fabs(tkv_metrics_kl(p, p, 3)) < 1e-15);
    assert_int_equal(tkv_metrics_top1(q, 3), 0);
    tkv_metrics_add(&m, &batch, NULL);
    assert_int_equal(m.n_compared, 1);
    assert_int_equal(m.n_same_top1, 0);
    assert_true(fabs(m.loss - log(3)) < 1e-7 && fabs(m.kl - kl) < 1e-7);
}

/* Expects a file to be refused as a model with a text that holds `part`. */
static void refuse(struct gguf_aid *g, const char *part)
{
    struct tkv_reason why = {""};
    struct tkv_model *model;
    struct tkv_gguf file;
    size_t n_bytes;
    uint8_t *bytes = gguf_aid_finish(g, &n_bytes);

    if (tkv_gguf_parse(&file, bytes, n_bytes, &why))
        fail_msg("%s", why.text);
    assert_int_equal(tkv_model_create(&model, &file, 8, NULL, &why), -1);
    assert_null(model);
    if (!strstr(why.text, part))
        fail_msg("\"%s\" does not say \"%s\"", why.text, part);
    tkv_gguf_close(&file);
    free(bytes);
}

static void test_refusals(void **state)
{
    const float values[64] = {NAN};
    struct tiny_model m = tiny_models[5];
    struct gguf_aid g = {0};

    (void)state;
    refuse(&g, "general.architecture is missing");
    m.architecture = "gemma3";
    tiny_model_put(&g, &m, 1);
    refuse(&g, "\"gemma3\", expected llama, qwen2 or qwen3");
    m = tiny_models[5];
    gguf_aid_u32(&g, "qwen3.expert_count", 8);
    tiny_model_put(&g, &m, 1);
    refuse(&g, "qwen3.expert_count: 8 is not supported");
    gguf_aid_u32(&g, "qwen3.attention.sliding_window", 4096);
    tiny_model_put(&g, &m, 1);
    refuse(&g, "sliding_window: 4096 is not supported");
    gguf_aid_string(&g, "qwen3.rope.scaling.type", "longrope");
    tiny_model_put(&g, &m, 1);
    refuse(&g, "\"longrope\", expected none, linear or yarn");
    gguf_aid_tensor(&g, "blk.0.attn_sinks.weight", TKV_GGML_F32, 6, 0, values);
    tiny_model_put(&g, &m, 1);
    refuse(&g, "blk.0.attn_sinks.weight is not part of a qwen3 model");
    m.n_layers = 0;
    tiny_model_put(&g, &m, 1);
    refuse(&g, "qwen3.block_count: 0, expected 1");
    m = tiny_models[5];
    m.n_kv_heads = 4;
    tiny_model_put(&g, &m, 1);
    refuse(&g, "4 KV heads for 6 query heads");
    m = tiny_models[5];
    m.theta = 1;
    tiny_model_put(&g, &m, 1);
    refuse(&g, "RoPE of the model");
}

static void test_wrong_tensors(void **state)
{
    struct tiny_model m = tiny_models[5], other = tiny_models[5];
    struct gguf_aid g = {0}, keys = {0};

    (void)state;
    other.d_ff = 64; /* tensors of one model under the keys of another */
    tiny_model_put(&keys, &m, 1);
    tiny_model_put(&g, &other, 1);
    free(g.entries.bytes);
    g.entries = keys.entries;
    g.n_entries = keys.n_entries;
    free(keys.tensors.bytes);
    free(keys.data.bytes);
    refuse(&g, "expected 64 x 96");
    m.n_layers = 3;
    keys = (struct gguf_aid){0};
    tiny_model_put(&keys, &m, 1);
    tiny_model_put(&g, &tiny_models[5], 1);
    free(g.entries.bytes);
    g.entries = keys.entries;
    g.n_entries = keys.n_entries;
    free(keys.tensors.bytes);
    free(keys.data.bytes);
    refuse(&g, "tensor blk.2.");
}

static void test_forward_errors(void **state)
{
    int32_t ids[65] = {0};
    struct tkv_attention attention;
    struct tkv_reason why = {""};
    struct bench b = {0};

    (void)state;
    start_tiny(&b, &tiny_models[0], 1);
    attention = tkv_local_attention(b.local);
    assert_int_equal(tkv_model_forward(b.model, ids, 65, 0, &attention, &why), -1);
    assert_int_equal(tkv_model_forward(b.model, ids, 0, 0, &attention, &why), -1);
    assert_int_equal(tkv_model_forward(b.model, ids, 2, INT32_MAX - 1, &attention, &why), -1);
    ids[1] = 50;
    assert_int_equal(tkv_model_forward(b.model, ids, 2, 0, &attention, &why), -1);
    assert_non_null(strstr(why.text, "token 1 is 50, the vocabulary has 50"));
    stop(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_models),    cmocka_unit_test(test_hook),
        cmocka_unit_test(test_golden),         cmocka_unit_test(test_local),
        cmocka_unit_test(test_products),       cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_wrong_tensors),
        cmocka_unit_test(test_forward_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
