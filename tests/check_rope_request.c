/* The rotary embedding of a request: what cannot be one, and what is not the profile's, is refused by the name
 * of the field. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "daemon/profile.h"
#include "daemon/requests.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

static char half[] = "half", interleaved[] = "interleaved", unknown[] = "unknown";
static char none[] = "none", llama3[] = "llama3", yarn[] = "yarn";

/* As a model with YaRN has it. */
static Trikv__Rope usual(void)
{
    Trikv__Rope r = TRIKV__ROPE__INIT;

    r.theta = 1e6;
    r.rotary_dim = 64;
    r.layout = half;
    r.scaling = yarn;
    r.has_factor = r.has_original_context = true;
    r.factor = 4;
    r.original_context = 32768;
    return r;
}

static void expect(int code, const struct tkv_report *why, int want, const char *field)
{
    assert_int_equal(code, want);
    if (want && !strstr(why->text, field))
        fail_msg("\"%s\" does not name %s", why->text, field);
}

static void requests_are_read(void **state)
{
    struct tkv_rope_params p;
    struct tkv_report why = {0};
    Trikv__Rope r = usual();

    (void)state;
    r.has_beta_fast = r.has_beta_slow = r.has_attention_factor = r.has_truncate = true;
    r.beta_fast = 16;
    r.beta_slow = 2;
    r.attention_factor = 1.25;
    r.truncate = false;
    expect(tkv_rope_from_request(&r, 64, &p, &why), &why, 0, "");
    assert_int_equal(p.head_dim, 64);
    assert_int_equal(p.original_context, 32768);
    assert_true(p.theta == 1e6 && p.factor == 4 && p.beta_fast == 16 && p.beta_slow == 2);
    assert_true(p.attention_factor == 1.25 && p.no_truncate);
    r = usual();
    r.scaling = llama3;
    r.has_low_freq_factor = r.has_high_freq_factor = true;
    r.low_freq_factor = 1;
    r.high_freq_factor = 4;
    expect(tkv_rope_from_request(&r, 64, &p, &why), &why, 0, "");
    assert_true(p.low_freq_factor == 1 && p.high_freq_factor == 4 && !p.no_truncate);
}

static void what_cannot_be_is_refused(void **state)
{
    struct tkv_rope_params p;
    struct tkv_report why = {0};
    Trikv__Rope r;

    (void)state;
#define EXPECT(change, field)                                                           \
    do {                                                                                \
        r = usual();                                                                    \
        change;                                                                         \
        expect(tkv_rope_from_request(&r, 64, &p, &why), &why, TRIKV_E_ARGUMENT, field); \
    } while (0)
    EXPECT(r.layout = unknown, "layout");
    EXPECT(r.scaling = unknown, "scaling");
    EXPECT(r.rotary_dim = 0, "rotary_dim");
    EXPECT(r.rotary_dim = 63, "rope");
    EXPECT(r.rotary_dim = 128, "rope");
    EXPECT(r.theta = 0, "rope");
    EXPECT(r.has_factor = false, "rope");
#undef EXPECT
}

static void what_is_not_the_profiles_is_refused(void **state)
{
    static struct tkv_profile p = {.name = "small", .has_rope = true};
    struct tkv_report why = {0};
    Trikv__Rope r = usual();

    (void)state;
    assert_int_equal(tkv_rope_from_request(&r, 64, &p.rope_params, &why), 0);
    expect(tkv_rope_fits_profile(&p, &r, &why), &why, 0, "");
    r.has_beta_fast = r.has_truncate = true; /* said, as it is by default */
    r.beta_fast = 32;
    r.truncate = true;
    expect(tkv_rope_fits_profile(&p, &r, &why), &why, 0, "");
#define EXPECT(change, field)                                                       \
    do {                                                                            \
        r = usual();                                                                \
        change;                                                                     \
        expect(tkv_rope_fits_profile(&p, &r, &why), &why, TRIKV_E_GEOMETRY, field); \
    } while (0)
    EXPECT(r.theta = 1e4, "theta");
    EXPECT(r.rotary_dim = 32, "rotary_dim");
    EXPECT(r.layout = interleaved, "layout");
    EXPECT(r.scaling = none, "scaling");
    EXPECT(r.factor = 8, "factor");
    EXPECT(r.original_context = 4096, "original_context");
    EXPECT((r.has_beta_fast = true, r.beta_fast = 16), "beta_fast");
    EXPECT((r.has_beta_slow = true, r.beta_slow = 2), "beta_slow");
    EXPECT((r.has_attention_factor = true, r.attention_factor = 2), "attention_factor");
    EXPECT((r.has_truncate = true, r.truncate = false), "truncate");
    p.has_rope = false;
    EXPECT((void)0, "rope");
#undef EXPECT
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_read),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(what_is_not_the_profiles_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
