/*
 * The real trikvd through the real libtrikv: what goes in comes out as attention, whatever
 * the way the tensors take and however they are cut.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "tests/naive.h"
#include "tests/service.h"

/* The largest differences from the naive result, over every 7th token. */
static void compare(const struct service_data *d, double *worst_out, double *worst_lse)
{
    const struct trikv_layer *l = d->layer;
    const struct naive n = {.shape = {l->n_q_heads, l->n_kv_heads, l->head_dim_k, l->head_dim_v, 0},
                            .scale = l->scale > 0 ? l->scale : 1 / sqrt(l->head_dim_k),
                            .softcap = l->softcap,
                            .window_tokens = l->window_tokens,
                            .sinks = l->sinks,
                            .n_keys = SERVICE_TOKENS,
                            .key_positions = d->positions,
                            .k = d->k,
                            .v = d->v};
    double out[64];

    *worst_out = *worst_lse = 0;
    for (size_t t = 0; t < SERVICE_TOKENS; t += 7) {
        for (uint32_t h = 0; h < l->n_q_heads; h++) {
            const size_t row = t * l->n_q_heads + h;
            const double lse =
                naive_attend(&n, h, d->positions[t], d->q + row * l->head_dim_k, out);

            *worst_lse = naive_worse(*worst_lse, lse - d->lse[row]);
            for (uint32_t i = 0; i < l->head_dim_v; i++)
                *worst_out = naive_worse(*worst_out, out[i] - d->out[row * l->head_dim_v + i]);
        }
    }
}

/* Run all layers and compare with the naive result. */
static void run_codec(const char *codec, double bound_out, double bound_lse)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, codec);

    for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
        struct service_data d;
        double worst_out, worst_lse;

        service_data_init(&d, layer);
        service_feed(c, s, &d, layer, 64);
        compare(&d, &worst_out, &worst_lse);
        if (!(worst_out <= bound_out && worst_lse <= bound_lse))
            fail_msg("%s, layer %u: output off by %g (bound %g), LSE by %g (bound %g)", codec,
                     layer, worst_out, bound_out, worst_lse, bound_lse);
        service_data_deinit(&d);
    }
    assert_int_equal(trikv_close(&s), 0);
    trikv_disconnect(&c);
}

/* Halves keep 11 bits: a logit of |q| |k| / sqrt(d) about 6 is off by 6 * 2^-11 / sqrt(d) or
 * so, a value of 4 by 4 * 2^-12. */
static void halves_attend_as_exactly_as_halves_can(void **state)
{
    (void)state;
    run_codec("f16", 2e-3, 1e-3);
}

/* Relative error of a 4-bit code is sqrt(0.0093), of noise without any structure: close, and
 * clearly not f16. */
static void four_bits_come_close(void **state)
{
    (void)state;
    run_codec("tq4", 0.25, 0.25);
}

/* The first run of a layer is kept as the measure of another: same session shape, new way. */
static void feed_both_ways(const char *codec, size_t chunk_a, size_t staging_a, size_t chunk_b,
                           size_t staging_b, uint32_t layer, struct service_data *a,
                           struct service_data *b)
{
    struct trikv_client *ca = service_connect(staging_a);
    struct trikv_client *cb = service_connect(staging_b);
    struct trikv_session *sa = service_open(ca, codec);
    struct trikv_session *sb = service_open(cb, codec);

    service_data_init(a, layer);
    service_data_init(b, layer);
    service_feed(ca, sa, a, layer, chunk_a);
    service_feed(cb, sb, b, layer, chunk_b);
    assert_int_equal(trikv_close(&sa), 0);
    trikv_disconnect(&ca);
    trikv_disconnect(&cb); /* takes sb along */
}

static void inline_and_staged_give_the_same_bits(void **state)
{
    const char *const codecs[] = {"f16", "tq4", "tq2.5"};

    (void)state;
    for (int i = 0; i < 3; i++) {
        for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
            const struct trikv_layer *l = &service_layers[layer];
            struct service_data a, b;

            /* 64 KiB: the 100-token requests of the larger layers do not fit and go inline. */
            feed_both_ways(codecs[i], 100, 0, 100, 65536, layer, &a, &b);
            assert_memory_equal(a.out, b.out,
                                (size_t)SERVICE_TOKENS * l->n_q_heads * l->head_dim_v *
                                    sizeof(float));
            assert_memory_equal(a.lse, b.lse,
                                (size_t)SERVICE_TOKENS * l->n_q_heads * sizeof(float));
            service_data_deinit(&a);
            service_data_deinit(&b);
        }
    }
}

static void cutting_does_not_matter(void **state)
{
    const char *const codecs[] = {"f16", "tq4"};
    /* A few rows are attended with queries of 14 bits, many with floats (core/fused.h). */
    const double bounds[] = {1e-5, 3e-4};

    (void)state;
    for (int i = 0; i < 2; i++) {
        for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
            const struct trikv_layer *l = &service_layers[layer];
            const size_t n = (size_t)SERVICE_TOKENS * l->n_q_heads * l->head_dim_v;
            struct service_data a, b;
            double worst = 0;

            feed_both_ways(codecs[i], 1, 65536, 64, 0, layer, &a, &b);
            for (size_t j = 0; j < n; j++)
                worst = naive_worse(worst, (double)a.out[j] - b.out[j]);
            if (!(worst <= bounds[i]))
                fail_msg("%s, layer %u: one by one differs by %g", codecs[i], layer, worst);
            service_data_deinit(&a);
            service_data_deinit(&b);
        }
    }
}

/* Append, then attend apart: the last tokens' queries give what append_attend gave. */
static void append_then_attend(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "f16");
    struct service_data d;
    struct trikv_step t;
    float out[4 * 32];

    (void)state;
    service_data_init(&d, 0);
    t = service_step(&d, 0, 0, SERVICE_TOKENS);
    assert_int_equal(trikv_append(s, &t), 0);
    t = service_step(&d, 0, SERVICE_TOKENS - 1, 1);
    t.positions = NULL;
    t.out = out;
    assert_int_equal(trikv_attend(s, &t), 0);
    trikv_close(&s);

    s = service_open(c, "f16");
    service_feed(c, s, &d, 0, SERVICE_TOKENS);
    for (int i = 0; i < 4 * 32; i++)
        assert_true(fabsf(out[i] - d.out[(SERVICE_TOKENS - 1) * 4 * 32 + i]) <= 1e-5f);
    trikv_disconnect(&c);
    service_data_deinit(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halves_attend_as_exactly_as_halves_can),
        cmocka_unit_test(four_bits_come_close),
        cmocka_unit_test(inline_and_staged_give_the_same_bits),
        cmocka_unit_test(cutting_does_not_matter),
        cmocka_unit_test(append_then_attend),
    };

    return cmocka_run_group_tests_name("roundtrip", tests, service_start, service_stop);
}
