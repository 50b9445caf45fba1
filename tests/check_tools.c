/*
 * What stands around the model: command lines, the choice of tokens, scoring a text,
 * calibration against its definition, and a profile that the daemon reads back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "daemon/diag.h"
#include "daemon/profile.h"
#include "tests/rng.h"
#include "tests/tiny_model.h"
#include "tools/attention_local.h"
#include "tools/calibration.h"
#include "tools/calibration_state.h"
#include "tools/options.h"
#include "tools/profile_write.h"
#include "tools/run_options.h"
#include "tools/runner.h"

enum { N_TOKENS = 100, CHUNK = 80, MAX_WORDS = 12 };

/* Parses a command line given in one string. */
static int parse(struct tkv_run_options *o, char *line)
{
    char program[] = "trikv-run", *argv[MAX_WORDS + 1] = {program};
    int argc = 1;

    for (char *word = strtok(line, " "); word && argc < MAX_WORDS; word = strtok(NULL, " "))
        argv[argc++] = word;
    return tkv_run_options_parse(o, argc, argv);
}

static void test_command_lines(void **state)
{
    static const char *const wrong[] = {
        "",
        "--text a --prompt b",
        "--text a --tokens 0",
        "--text a --tokens 12x",
        "--text a --tokens -1",
        "--text a --tokens 99999999999999999999",
        "--text a --chunk 65537",
        "--text a --temperature nan",
        "--text a --threads",
        "--text a --unheard-of",
        "--text a stray",
        "--text a --local --codec tq4",
        "--text a --local --compare-local",
        "--prompt a --compare-local",
        "--prompt a --skip 3",
        "--text a --budget 0",
        "--text a --recent -1",
    };
    struct tkv_run_options o;
    char line[128];

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        snprintf(line, sizeof(line), "%s", wrong[i]);
        if (parse(&o, line) != EX_USAGE)
            fail_msg("\"%s\" is not refused", wrong[i]);
    }
    snprintf(line, sizeof(line), "--prompt a --codec tq4 --codec-v tq3 --recent 0 --budget 2k");
    assert_int_equal(parse(&o, line), -1);
    assert_string_equal(o.remote.codec_k, "tq4");
    assert_string_equal(o.remote.codec_v, "tq3");
    assert_int_equal(o.remote.recent_tokens, 0);
    assert_int_equal(o.remote.pinned_tokens, -1);
    assert_int_equal(o.remote.budget_tokens, 2048);
    assert_int_equal(o.n_generate, 64);
    snprintf(line, sizeof(line), "--text a --local --seed 7 --temperature 0.5");
    assert_int_equal(parse(&o, line), -1);
    assert_int_equal(o.n_generate, 0);
    assert_int_equal(o.seed, 7);
    assert_true(o.temperature == 0.5);
}

/* How often each of four tokens is chosen follows exp(logit / T). */
static void test_sampler(void **state)
{
    const float logits[] = {0, logf(2), logf(4), logf(9)};
    struct tkv_sampler greedy = {0, 1}, sampler = {2, 2026};
    const int n = 40000;
    int counts[4] = {0};
    double sum = 0;

    (void)state;
    assert_int_equal(tkv_sampler_choose(&greedy, logits, 4), 3);
    for (int i = 0; i < n; i++)
        counts[tkv_sampler_choose(&sampler, logits, 4)]++;
    for (int i = 0; i < 4; i++)
        sum += exp((double)logits[i] / 2);
    for (int i = 0; i < 4; i++) {
        const double p = exp((double)logits[i] / 2) / sum;

        assert_true(fabs(counts[i] - n * p) < 4 * sqrt(n * p * (1 - p)));
    }
}

/* A tiny model without a tokenizer, as an engine. */
struct bench {
    uint8_t *bytes;
    struct tkv_engine engine;
    struct tkv_local *local;
};

static void start(struct bench *b, const struct tiny_model *m)
{
    struct gguf_aid g = {0};
    struct tkv_reason why = {""};
    size_t n_bytes;

    tiny_model_put(&g, m, 3);
    b->bytes = gguf_aid_finish(&g, &n_bytes);
    if (tkv_gguf_parse(&b->engine.file, b->bytes, n_bytes, &why) ||
        tkv_team_create(&b->engine.team, 2, &why) ||
        tkv_model_create(&b->engine.model, &b->engine.file, CHUNK, tkv_team_exec(b->engine.team),
                         &why) ||
        tkv_local_create(&b->local, m->n_layers, &b->engine.model->config.shape,
                         &b->engine.model->math, NULL, &why))
        fail_msg("%s", why.text);
}

static void stop(struct bench *b)
{
    tkv_local_destroy(&b->local);
    tkv_engine_deinit(&b->engine);
    free(b->bytes);
}

static void draw_ids(int32_t *ids, uint32_t n_vocab)
{
    struct rng rng = {9};

    for (size_t i = 0; i < N_TOKENS; i++)
        ids[i] = (int32_t)rng_below(&rng, n_vocab);
}

/* Losses by the definition; against itself, no divergence. */
static void test_score(void **state)
{
    const struct tiny_model *m = &tiny_models[6];
    static double want[N_TOKENS * 64];
    double losses[N_TOKENS - 1], sum = 0;
    struct tkv_local *judge;
    struct tkv_reason why = {""};
    struct bench b = {0};
    struct tkv_run run = {.engine = &b.engine, .chunk_tokens = CHUNK};
    int32_t ids[N_TOKENS];

    (void)state;
    start(&b, m);
    draw_ids(ids, m->n_vocab);
    assert_int_equal(tkv_local_create(&judge, m->n_layers, &b.engine.model->config.shape,
                                      &b.engine.model->math, NULL, &why),
                     0);
    run.attention = tkv_local_attention(b.local);
    run.judge = tkv_local_attention(judge);
    assert_int_equal(tkv_run_score(&run, ids, N_TOKENS, losses, &why), 0);
    tiny_model_forward(m, &b.engine.file, ids, N_TOKENS, want);
    for (size_t t = 0; t + 1 < N_TOKENS; t++) {
        const double *row = want + t * m->n_vocab;
        double total = exp(row[0]);

        for (size_t i = 1; i < m->n_vocab; i++)
            total += exp(row[i]);
        assert_true(fabs(log(total) - row[ids[t + 1]] - losses[t]) < 1e-4);
        sum += losses[t];
    }
    assert_int_equal(run.position, N_TOKENS - 1);
    assert_int_equal(run.metrics.n_tokens, N_TOKENS - 1);
    assert_true(fabs(run.metrics.loss - sum) < 1e-9);
    assert_int_equal(run.metrics.n_same_top1, N_TOKENS - 1);
    assert_true(fabs(run.metrics.kl) < 1e-12);
    assert_int_equal(tkv_run_score(&run, ids, 1, NULL, &why), -1);
    tkv_local_destroy(&judge);
    stop(&b);
}

/* Queries of two chunks through the hook, and their means by the definition. */
static void calibrate(struct tkv_calibration *c, const struct tkv_model_config *model, float *means)
{
    const size_t width = (size_t)model->shape.n_q_heads * model->shape.head_dim_k;
    const struct tkv_query_hook hook = tkv_calibration_hook(c);
    struct rng rng = {4};
    float q[7 * 512];

    for (uint32_t layer = 0; layer < model->n_layers; layer++) {
        for (size_t chunk = 3; chunk <= 7; chunk += 4) {
            for (size_t i = 0; i < chunk * width; i++)
                q[i] = rng_gauss(&rng) + (float)layer;
            hook.see(hook.ctx, layer, chunk, q);
        }
    }
    assert_int_equal(c->n_tokens, 10);
    tkv_calibration_means(c, means);
}

static void check_means(const struct tkv_model_config *model, const float *means)
{
    const uint32_t n_heads = model->shape.n_q_heads, dim = model->shape.head_dim_k;
    double *sums = calloc((size_t)model->n_layers * n_heads * dim * 2, sizeof(*sums));
    struct rng rng = {4};
    float q[512];

    assert_non_null(sums);
    for (uint32_t layer = 0; layer < model->n_layers; layer++) {
        for (size_t t = 0; t < 10; t++) {
            double *sum = sums + (size_t)layer * n_heads * dim * 2;

            for (size_t i = 0; i < n_heads * dim; i++)
                q[i] = rng_gauss(&rng) + (float)layer;
            for (size_t i = 0; i < n_heads * dim; i++) {
                const size_t head = i / dim, f = i % dim % (dim / 2); /* half layout */
                const double re = (double)q[head * dim + f];
                const double im = (double)q[head * dim + f + dim / 2];

                sum[head * 2 * dim + i % dim] += (double)q[i] / 10;
                sum[head * 2 * dim + dim + i % dim] += sqrt(re * re + im * im) / 10;
            }
        }
    }
    for (size_t head = 0; head < (size_t)model->n_layers * n_heads; head++) {
        for (size_t i = 0; i < 3 * dim / 2; i++)
            assert_true(fabs((double)means[head * 3 * dim / 2 + i] - sums[head * 2 * dim + i]) <
                        1e-6);
    }
    free(sums);
}

static void read_back(const char *path, const struct tkv_model_config *model, const float *means,
                      size_t n)
{
    struct tkv_diag diag = {0};
    struct tkv_profile *p = tkv_profile_load(path, &diag);

    for (size_t i = 0; i < diag.n; i++)
        print_message("%s\n", diag.line[i]);
    assert_non_null(p);
    assert_int_equal(diag.n, 0);
    assert_string_equal(p->name, "tiny");
    assert_string_equal(p->architecture, model->architecture);
    assert_int_equal(p->n_layers, model->n_layers);
    assert_int_equal(p->shape.head_dim_k, model->shape.head_dim_k);
    assert_int_equal(p->shape.head_dim_v, model->shape.head_dim_v);
    assert_int_equal(p->n_statistics, n);
    assert_memory_equal(p->statistics, means, n * sizeof(*means));
    assert_memory_equal(p->rope.inv_freq, model->rope.inv_freq,
                        model->rope.n_bands * sizeof(*model->rope.inv_freq));
    assert_true(p->rope.attention_scaling == model->rope.attention_scaling);
    tkv_profile_unref(&p);
    tkv_diag_deinit(&diag);
}

/* Each RoPE rule, so that what is written is what is read. */
static const struct tkv_rope_params ropes[] = {
    {.scaling = TKV_ROPE_DEFAULT, .theta = 1e5},
    {.scaling = TKV_ROPE_LINEAR, .theta = 10000, .factor = 4},
    {.scaling = TKV_ROPE_LLAMA3,
     .theta = 5e5,
     .factor = 8,
     .low_freq_factor = 1,
     .high_freq_factor = 4,
     .original_context = 8192},
    {.scaling = TKV_ROPE_YARN, .theta = 1e6, .factor = 4, .original_context = 32768},
};

static void test_profile(void **state)
{
    char folder[] = "/tmp/trikv-tools-XXXXXX", path[64];

    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/tiny.yaml", folder);
    for (size_t i = 0; i < sizeof(ropes) / sizeof(ropes[0]); i++) {
        struct tkv_model_config model = {.architecture = "qwen3",
                                         .n_layers = 2,
                                         .shape = {6, 2, 32, i % 2 ? 16 : 32, 0},
                                         .rope_params = ropes[i],
                                         .rope_has_rule = true,
                                         .fingerprint = 0x123456789abcdef0};
        struct tkv_profile_facts facts;
        struct tkv_calibration c;
        struct tkv_reason why = {""};
        float means[2 * 6 * 3 * 16];
        char fingerprint[32];

        model.rope_params.head_dim = model.rope_params.rotary_dim = 32;
        assert_null(tkv_rope_init(&model.rope, &model.rope_params));
        assert_int_equal(tkv_calibration_init(&c, &model, NULL, &why), 0);
        calibrate(&c, &model, means);
        check_means(&model, means);
        assert_int_equal(tkv_profile_facts_init(&facts, &model, fingerprint, &why), 0);
        facts.name = "tiny";
        facts.notes[0] = "a\nb";
        facts.n_tokens = 10;
        facts.statistics = means;
        facts.n_statistics = tkv_calibration_n_floats(&c);
        if (tkv_profile_write(path, &facts, &why))
            fail_msg("%s", why.text);
        read_back(path, &model, means, facts.n_statistics);
        model.rope_has_rule = false;
        assert_int_equal(tkv_profile_facts_init(&facts, &model, fingerprint, &why), -1);
        tkv_calibration_deinit(&c);
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0); /* nothing temporary is left in it */
}

/* Half of the queries, a state, a new process, the other half: the same bits. */
static void test_resume(void **state)
{
    const struct tkv_calibration_work work = {1, 2, 100, 50, 50};
    struct tkv_model_config model = {.architecture = "qwen3",
                                     .n_layers = 1,
                                     .shape = {2, 1, 8, 8, 0},
                                     .rope = {8, 8, 4, 0, 1, {0}}};
    struct tkv_calibration whole, half, other;
    struct tkv_calibration_work w = work;
    struct tkv_reason why = {""};
    char path[] = "/tmp/trikv-state-XXXXXX";
    struct rng rng = {8};
    float q[2 * 50 * 16];

    (void)state;
    close(mkstemp(path));
    unlink(path);
    for (size_t i = 0; i < sizeof(q) / sizeof(q[0]); i++)
        q[i] = rng_gauss(&rng);
    assert_int_equal(tkv_calibration_init(&whole, &model, NULL, &why), 0);
    assert_int_equal(tkv_calibration_init(&half, &model, NULL, &why), 0);
    assert_int_equal(tkv_calibration_init(&other, &model, NULL, &why), 0);
    tkv_calibration_hook(&whole).see(&whole, 0, 50, q);
    tkv_calibration_hook(&whole).see(&whole, 0, 50, q + 50 * 16);
    tkv_calibration_hook(&half).see(&half, 0, 50, q);
    w.n_done = 0;
    assert_int_equal(tkv_calibration_resume(path, &other, &w, &why), 0); /* none there */
    assert_int_equal(w.n_done, 0);
    assert_int_equal(tkv_calibration_save(path, &half, &work, &why), 0);
    w.model++;
    assert_int_equal(tkv_calibration_resume(path, &other, &w, &why), -1);
    assert_non_null(strstr(why.text, "another model"));
    assert_int_equal(w.n_done, 0);
    w.model--;
    if (tkv_calibration_resume(path, &other, &w, &why))
        fail_msg("%s", why.text);
    assert_int_equal(w.n_done, 50);
    tkv_calibration_hook(&other).see(&other, 0, 50, q + 50 * 16);
    assert_int_equal(other.n_tokens, 100);
    assert_memory_equal(other.sums, whole.sums,
                        tkv_calibration_n_floats(&whole) * sizeof(*whole.sums));
    assert_int_equal(unlink(path), 0);
    tkv_calibration_deinit(&whole);
    tkv_calibration_deinit(&half);
    tkv_calibration_deinit(&other);
}

static void test_profile_names(void **state)
{
    (void)state;
    assert_null(tkv_profile_check_name("a-b_c.1", "dir/a-b_c.1.yaml"));
    assert_non_null(tkv_profile_check_name("A", "A.yaml"));
    assert_non_null(tkv_profile_check_name("", ".yaml"));
    assert_non_null(tkv_profile_check_name("a", "b.yaml"));
    assert_non_null(tkv_profile_check_name("a", "a.yml"));
}

/* Llama 3's divisors are recognised as its rule, others are used as they are. */
static void test_llama3(void **state)
{
    const struct tkv_rope_params llama3 = {.head_dim = 64,
                                           .rotary_dim = 64,
                                           .layout = TKV_ROPE_INTERLEAVED,
                                           .scaling = TKV_ROPE_LLAMA3,
                                           .theta = 5e5,
                                           .factor = 32,
                                           .low_freq_factor = 1,
                                           .high_freq_factor = 4,
                                           .original_context = 8192};
    struct tkv_rope_params plain = llama3;
    struct tkv_rope scaled, bare;
    struct tkv_reason why = {""};
    float divisors[32];

    (void)state;
    plain.scaling = TKV_ROPE_DEFAULT;
    assert_null(tkv_rope_init(&scaled, &llama3));
    assert_null(tkv_rope_init(&bare, &plain));
    for (int known = 0; known < 2; known++) {
        struct tkv_model_config c = {.architecture = "llama", .shape = {1, 1, 64, 64, 0}};
        struct gguf_aid g = {0};
        struct tkv_gguf file;
        size_t n_bytes;
        uint8_t *bytes;

        for (uint32_t f = 0; f < 32; f++)
            divisors[f] = bare.inv_freq[f] / scaled.inv_freq[f];
        divisors[3] *= known ? 1.0f : 1.01f;
        gguf_aid_f32(&g, "llama.rope.freq_base", 5e5f);
        gguf_aid_tensor(&g, "rope_freqs.weight", TKV_GGML_F32, 32, 0, divisors);
        bytes = gguf_aid_finish(&g, &n_bytes);
        assert_int_equal(tkv_gguf_parse(&file, bytes, n_bytes, &why), 0);
        assert_int_equal(tkv_model_read_rope(&c, &file, &why), 0);
        assert_int_equal(c.rope_has_rule, known);
        assert_int_equal(c.rope_params.scaling, known ? TKV_ROPE_LLAMA3 : TKV_ROPE_DEFAULT);
        for (uint32_t f = 0; f < 32; f++)
            assert_true(fabsf(c.rope.inv_freq[f] * divisors[f] - bare.inv_freq[f]) <=
                        1e-6f * bare.inv_freq[f]);
        tkv_gguf_close(&file);
        free(bytes);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_command_lines), cmocka_unit_test(test_sampler),
        cmocka_unit_test(test_score),         cmocka_unit_test(test_profile),
        cmocka_unit_test(test_profile_names), cmocka_unit_test(test_resume),
        cmocka_unit_test(test_llama3),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
