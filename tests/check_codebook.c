/* Lloyd-Max codebooks: against published figures, and against the definition. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <jansson.h>

#include "core/codebook.h"

/* Made by another method (Gauss-Legendre and Newton); seven digits after the point. */
static const struct {
    uint32_t dim, bits;
    double mse;
    double centroid[8]; /* the positive ones */
} golden[] = {
    {64, 1, .3583874, {.8010073}},
    {64, 2, .1145258, {.4521190, 1.4999748}},
    {64, 3, .0333908, {.2437534, .7506581, 1.3293429, 2.1113114}},
    {64,
     4,
     .0091315,
     {.1273522, .3847183, .6504941, .9318940, 1.2394042, 1.5908491, 2.0233098, 2.6463705}},
    {128, 1, .3608886, {.7994444}},
    {128, 2, .1160001, {.4524533, 1.5051930}},
    {128, 3, .0339659, {.2444249, .7533302, 1.3365989, 2.1314708}},
    {128,
     4,
     .0093148,
     {.1278732, .3863809, .6536189, .9370970, 1.2477705, 1.6043427, 2.0459254, 2.6888593}},
};

static void test_golden(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(golden) / sizeof(golden[0]); i++) {
        struct tkv_codebook c;

        tkv_codebook_init(&c, golden[i].dim, golden[i].bits);
        assert_int_equal(c.n_levels, 1u << golden[i].bits);
        assert_true(fabs(c.mse - golden[i].mse) < 6e-8);
        for (uint32_t l = 0; l < c.n_levels / 2; l++)
            assert_true(fabs(c.centroid[c.n_levels / 2 + l] - golden[i].centroid[l]) < 6e-8);
    }
}

/* Antisymmetric, ascending, boundaries midway with an exact 0; any accepted dimension. */
static void test_shape(void **state)
{
    (void)state;
    for (uint32_t dim = 4; dim <= 1024; dim += dim < 32 ? 1 : 62) {
        for (uint32_t bits = 1; bits <= TKV_MAX_CODE_BITS; bits++) {
            struct tkv_codebook c;

            tkv_codebook_init(&c, dim, bits);
            assert_true(c.boundary[c.n_levels / 2 - 1] == 0);
            assert_true(c.centroid[c.n_levels - 1] < sqrt((double)dim));
            assert_true(c.mse > 0 && c.mse < 0.3634);
            for (uint32_t i = 0; i < c.n_levels; i++)
                assert_true(c.centroid[i] == -c.centroid[c.n_levels - 1 - i]);
            for (uint32_t i = 0; i + 1 < c.n_levels; i++)
                assert_true(c.centroid[i] < c.boundary[i] && c.boundary[i] < c.centroid[i + 1]);
        }
    }
}

/* (1 - t^2 / d)^((d - 3) / 2), by Simpson's rule over the cell: the centroid is its mean. */
static void test_conditional_means(void **state)
{
    const uint32_t dim = 80, steps = 2000;
    struct tkv_codebook c;

    (void)state;
    tkv_codebook_init(&c, dim, 4);
    for (uint32_t i = 0; i < c.n_levels; i++) {
        const double low = i ? c.boundary[i - 1] : -sqrt(80.0);
        const double high = i + 1 < c.n_levels ? c.boundary[i] : sqrt(80.0);
        double mass = 0, moment = 0;

        for (uint32_t s = 0; s <= steps; s++) {
            const double t = low + (high - low) * s / steps;
            const double weight = s == 0 || s == steps ? 1 : s % 2 ? 4 : 2;
            const double density = weight * pow(fmax(0, 1 - t * t / dim), (dim - 3) / 2.0);

            mass += density;
            moment += density * t;
        }
        assert_true(fabs(moment / mass - c.centroid[i]) < 1e-8);
    }
}

static void compare_with_json(const json_t *levels, uint32_t dim, uint32_t bits)
{
    const json_t *centroids = json_object_get(levels, "centroids");
    const json_t *boundaries = json_object_get(levels, "boundaries");
    struct tkv_codebook c;

    tkv_codebook_init(&c, dim, bits);
    assert_int_equal(json_array_size(centroids), c.n_levels);
    assert_int_equal(json_array_size(boundaries), c.n_levels - 1);
    for (uint32_t i = 0; i < c.n_levels; i++)
        assert_true(fabs(json_number_value(json_array_get(centroids, i)) - c.centroid[i]) < 1e-6);
    for (uint32_t i = 0; i + 1 < c.n_levels; i++)
        assert_true(fabs(json_number_value(json_array_get(boundaries, i)) - c.boundary[i]) < 1e-6);
    assert_true(fabs(json_number_value(json_object_get(levels, "mse")) - c.mse) < 1e-6);
}

static void test_reference_data(void **state)
{
    const char *shared = getenv("TRIKV_SHARED");
    unsigned n_compared = 0;
    char path[4096];
    const char *name;
    json_t *root, *entry;

    (void)state;
    snprintf(path, sizeof(path), "%s/vectors/lloydmax.json", shared ? shared : "../shared");
    root = json_load_file(path, 0, NULL);
    if (!root) {
        print_message("skipped: no %s\n", path);
        skip();
    }
    json_object_foreach(json_object_get(root, "codebooks"), name, entry)
    {
        unsigned dim;

        if (sscanf(name, "d%u", &dim) != 1)
            continue;
        for (uint32_t bits = 1; bits <= TKV_MAX_CODE_BITS; bits++) {
            char levels[8];

            snprintf(levels, sizeof(levels), "L%u", 1u << bits);
            compare_with_json(json_object_get(entry, levels), dim, bits);
            n_compared++;
        }
    }
    json_decref(root);
    print_message("%u codebooks compared\n", n_compared);
    assert_true(n_compared >= 32);
}

/* E |u_1| by a sum over the density, and its limit sqrt(2 / (pi d)). */
static void test_mean_abs(void **state)
{
    static const uint32_t dims[] = {4, 5, 8, 18, 127, 128, 1024};

    (void)state;
    for (size_t k = 0; k < sizeof(dims) / sizeof(dims[0]); k++) {
        const double p = (dims[k] - 3) / 2.0, steps = 1e5;
        double mass = 0, moment = 0;

        for (double s = 0.5; s < steps; s++) {
            const double u = s / steps, density = pow(1 - u * u, p);

            mass += density;
            moment += density * u;
        }
        assert_true(fabs(tkv_sphere_mean_abs(dims[k]) / (moment / mass) - 1) < 1e-6);
    }
    assert_true(fabs(tkv_sphere_mean_abs(1024) * sqrt(acos(-1) * 1024 / 2) - 1) < 3e-4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_conditional_means),
        cmocka_unit_test(test_mean_abs),
        cmocka_unit_test(test_reference_data),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
