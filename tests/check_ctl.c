/* trikvctl on a daemon that has sessions: its JSON parses and tells the truth, its text is
 * aligned and safe, its exit status says what happened. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/service.h"

static char output[65536];

/* Run trikvctl with these arguments; its output is left in `output`. Returns its exit status. */
static int ctl(const char *arguments)
{
    char program[600];
    char command[1024];
    size_t n;
    FILE *f;
    int status;

    service_program("trikvctl", program, sizeof(program));
    snprintf(command, sizeof(command), "%s --socket %s %s 2>/dev/null", program, service_socket(),
             arguments);
    f = popen(command, "r");
    assert_non_null(f);
    n = fread(output, 1, sizeof(output) - 1, f);
    output[n] = '\0';
    status = pclose(f);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static json_t *ctl_json(const char *arguments)
{
    json_error_t error;
    char all[256];
    json_t *j;

    snprintf(all, sizeof(all), "--json %s", arguments);
    assert_int_equal(ctl(all), 0);
    j = json_loads(output, JSON_REJECT_DUPLICATES, &error);
    if (!j)
        fail_msg("%s: line %d: %s:\n%s", arguments, error.line, error.text, output);
    return j;
}

/* A session with an unfriendly label and one layer filled. */
static struct trikv_session *filled(struct trikv_client *c)
{
    struct trikv_session_options o = service_options("tq4");
    struct trikv_session *s = NULL;
    struct service_data d;

    o.label = "\033[2J \"quoted\\\" gr\xc3\xbc\xc3\x9f";
    assert_int_equal(trikv_open(c, &o, &s), 0);
    service_data_init(&d, 1);
    service_feed(c, s, &d, 1, 100);
    service_data_deinit(&d);
    return s;
}

static void sessions_are_listed(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = filled(c);
    char id[32];
    json_t *j = ctl_json("sessions");
    const json_t *first = json_array_get(json_object_get(j, "sessions"), 0);

    (void)state;
    snprintf(id, sizeof(id), "%016" PRIx64, trikv_session_id(s));
    assert_int_equal(json_integer_value(json_object_get(j, "total")), 1);
    assert_string_equal(json_string_value(json_object_get(first, "id")), id);
    assert_string_equal(json_string_value(json_object_get(first, "label")),
                        "\033[2J \"quoted\\\" gr\xc3\xbc\xc3\x9f");
    assert_int_equal(json_integer_value(json_object_get(first, "n_seen")), SERVICE_TOKENS);
    json_decref(j);
    assert_int_equal(ctl("sessions"), 0);
    assert_non_null(strstr(output, id));
    assert_null(strchr(output, '\033'));
    trikv_disconnect(&c);
}

static void a_session_is_shown_layer_by_layer(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = filled(c);
    struct trikv_stats stats;
    char arguments[64];
    const json_t *layers;
    json_t *j;

    (void)state;
    snprintf(arguments, sizeof(arguments), "session show %" PRIx64, trikv_session_id(s));
    j = ctl_json(arguments);
    assert_int_equal(trikv_stats(s, &stats), 0);
    assert_int_equal(json_integer_value(json_object_get(j, "resident_bytes")),
                     stats.resident_bytes);
    layers = json_object_get(j, "layers");
    assert_int_equal(json_array_size(layers), SERVICE_LAYERS);
    for (size_t i = 0; i < SERVICE_LAYERS; i++) {
        const json_t *l = json_array_get(layers, i);

        assert_int_equal(json_integer_value(json_object_get(l, "layer")), i);
        assert_int_equal(json_integer_value(json_object_get(l, "n_seen")),
                         i == 1 ? SERVICE_TOKENS : 0);
        assert_string_equal(json_string_value(json_object_get(l, "codec_k")), "tq4");
    }
    json_decref(j);
    assert_int_equal(ctl(arguments), 0);
    assert_non_null(strstr(output, "tq4"));
    trikv_disconnect(&c);
}

static void a_dropped_session_is_gone(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "f16");
    struct trikv_stats stats;
    char arguments[64];

    (void)state;
    snprintf(arguments, sizeof(arguments), "drop 0x%" PRIx64, trikv_session_id(s));
    json_decref(ctl_json(arguments));
    assert_int_equal(ctl(arguments), 1);
    assert_string_equal(output, "");
    assert_int_equal(trikv_stats(s, &stats), TRIKV_E_NO_SESSION);
    assert_int_equal(trikv_close(&s), TRIKV_E_NO_SESSION);
    assert_null(s);
    trikv_disconnect(&c);
}

static void everything_is_json(void **state)
{
    static const char *const commands[] = {"ping", "info", "stats", "profiles", "config"};

    (void)state;
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        json_decref(ctl_json(commands[i]));
        assert_int_equal(ctl(commands[i]), 0);
        assert_true(output[0] != '\0');
    }
}

static void wrong_usage_is_64(void **state)
{
    static const char *const wrong[] = {"",
                                        "bogus",
                                        "session",
                                        "drop",
                                        "drop nothex",
                                        "drop 11112222333344445",
                                        "ping extra",
                                        "--timeout 0 ping",
                                        "--bogus ping"};

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        if (ctl(wrong[i]) != 64)
            fail_msg("'%s' is accepted", wrong[i]);
    }
    assert_int_equal(ctl("session show 123"), 1);
    assert_int_equal(ctl("session show --gate 123"), 1);
    assert_int_equal(ctl("--socket /nonexistent ping"), 69);
    assert_int_equal(ctl("--help"), 0);
    assert_int_equal(ctl("--version"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sessions_are_listed),
        cmocka_unit_test(a_session_is_shown_layer_by_layer),
        cmocka_unit_test(a_dropped_session_is_gone),
        cmocka_unit_test(everything_is_json),
        cmocka_unit_test(wrong_usage_is_64),
    };

    return cmocka_run_group_tests_name("ctl", tests, service_start, service_stop);
}
