/* What observers are told, piece by piece: requests are read, text is bounded and escaped, histograms
 * and history add up, log lines become JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/http_parse.h"
#include "daemon/log.h"
#include "daemon/loopback.h"
#include "daemon/metrics.h"
#include "daemon/pool.h"
#include "daemon/pulse.h"
#include "daemon/text.h"

struct http_case {
    const char *text;
    int any;   /* status on a Unix socket */
    int local; /* on TCP */
};

static const struct http_case http_cases[] = {
    {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, 200},
    {"GET / HTTP/1.1\nHost: LocalHost:9464\n\n", 200, 200},
    {"HEAD /metrics HTTP/1.0\r\nHost: 127.0.0.1:1\r\n\r\n", 200, 200},
    {"GET /healthz HTTP/1.1\r\nHost: [::1]:9464\r\n\r\n", 200, 200},
    {"GET /metrics?layers=1&session=2a HTTP/1.1\r\nhost: 127.1.2.3\r\n\r\n", 200, 200},
    {"GET / HTTP/1.1\r\n\r\n", 200, 421}, /* no Host */
    {"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 200, 421},
    {"GET / HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n", 200, 421},
    {"GET / HTTP/1.1\r\nHost: localhost.evil\r\n\r\n", 200, 421},
    {"GET / HTTP/1.1\r\nHost: [::1].evil\r\n\r\n", 200, 421},
    {"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 200, 421},
    {"GET / HTTP/1.1\r\nHost: 12\r\n\r\n", 200, 421},
    {"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, 404},
    {"GET /metrics/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, 404},
    {"GET /metrics?layers=2 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, 400},
    {"GET /metrics?session=0 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, 400},
    {"GET /metrics?session=12345678901234567 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, 400},
    {"GET /metrics?foo HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, 400},
    {"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, 405},
    {"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 413, 413},
    {"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 413, 413},
    {"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 200, 200},
    {"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, 505},
    {"GET /\r\n\r\n", 400, 421},
    {"\r\n\r\n", 400, 421},
    {"GET / HTTP/1.1\r\nHost: localhost\r\n", 0, 0},
    {"", 0, 0},
};

static void check_http(void **state)
{
    struct tkv_http_request r;

    (void)state;
    for (size_t i = 0; i < sizeof(http_cases) / sizeof(http_cases[0]); i++) {
        const struct http_case *c = &http_cases[i];
        const size_t n = strlen(c->text);
        const int any = tkv_http_parse(c->text, n, false, &r);
        const int local = tkv_http_parse(c->text, n, true, &r);

        if (any != c->any || local != c->local)
            fail_msg("want %d and %d, got %d and %d for:\n%s", c->any, c->local, any, local,
                     c->text);
    }
}

static void check_http_fields(void **state)
{
    static const char text[] = "GET /metrics?session=2a&layers=1 HTTP/1.1\r\n"
                               "ACCEPT: text/html;q=0.1, Application/OpenMetrics-Text ;q=1\r\n\r\n";
    char large[TKV_HTTP_REQUEST_BYTES];
    struct tkv_http_request r;

    (void)state;
    assert_int_equal(tkv_http_parse(text, sizeof(text) - 1, false, &r), 200);
    assert_true(r.openmetrics && r.layers && !r.head);
    assert_int_equal(r.page, TKV_HTTP_METRICS);
    assert_int_equal(r.session, 0x2a);
    for (size_t n = 0; n < sizeof(text) - 1; n++) /* cut anywhere it is not complete */
        assert_int_equal(tkv_http_parse(text, n, false, &r), 0);
    memset(large, 'x', sizeof(large));
    assert_int_equal(tkv_http_parse(large, sizeof(large) - 1, false, &r), 0);
    assert_int_equal(tkv_http_parse(large, sizeof(large), false, &r), 431);
}

static void check_loopback(void **state)
{
    static const char *const good[] = {"127.0.0.1:0", "127.9.9.9:65535", "[::1]:9464"};
    static const char *const wrong[] = {
        "",       "127.0.0.1", "127.0.0.1:", "0.0.0.0:80",      "10.0.0.1:1",   "[::]:80",
        "::1:80", "[::1]",     "[::1:80",    "127.0.0.1:65536", "localhost:80", "127.0.0.1:x",
        ":80",    "[]:1",      "128.0.0.1:1"};
    struct sockaddr_storage a;
    socklen_t n;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        if (!tkv_loopback_parse(good[i], &a, &n))
            fail_msg("\"%s\" is refused", good[i]);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        if (tkv_loopback_parse(wrong[i], &a, &n))
            fail_msg("\"%s\" is taken", wrong[i]);
}

static void check_text(void **state)
{
    static const char hostile[] = "a\"b\\c<d>&'\n\x7f\xff\xc3\xa4\xed\xa0\x80\xc2\x9b";
    char data[256];
    struct tkv_text t;

    (void)state;
    tkv_text_init(&t, data, sizeof(data));
    tkv_text_add_label(&t, hostile);
    tkv_text_add(&t, "|");
    tkv_text_add_html(&t, hostile);
    tkv_text_add(&t, "%s", ""); /* ends with a NUL */
    assert_false(t.overflow);
    assert_string_equal(data, "a\\\"b\\\\c<d>&'???\xc3\xa4?????|"
                              "a&quot;b\\c&lt;d&gt;&amp;&#39;???\xc3\xa4?????");
    for (size_t cap = 1; cap < 8; cap++) {
        memset(data, 'z', sizeof(data));
        tkv_text_init(&t, data, cap);
        tkv_text_add_html(&t, "<<");
        assert_int_equal(t.overflow, cap < 8);
        assert_int_equal(data[cap], 'z');
        tkv_text_add(&t, "more");
        assert_true(t.n_bytes <= cap);
    }
}

static void check_histogram(void **state)
{
    struct tkv_histogram h = {.sum_s = 0};

    (void)state;
    assert_true(tkv_histogram_quantile(&h, 0.5) <= 0);
    for (int i = 0; i < 100; i++)
        tkv_histogram_add(&h, 1e-3 + 1e-9); /* in (1 ms, 2.5 ms] */
    tkv_histogram_add(&h, 1e-5);            /* a bound belongs to its own bucket */
    tkv_histogram_add(&h, 100);
    assert_int_equal(h.n[0], 1);
    assert_int_equal(h.n[7], 100);
    assert_int_equal(h.n[TKV_HISTOGRAM_BUCKETS], 1);
    assert_int_equal(tkv_histogram_count(&h), 102);
    assert_true(tkv_histogram_quantile(&h, 0.5) > 1e-3 && tkv_histogram_quantile(&h, 0.5) < 2.5e-3);
    assert_true(tkv_histogram_quantile(&h, 1) >= 10);
    assert_true(h.sum_s > 100.1 && h.sum_s < 100.11);
}

static void check_history(void **state)
{
    struct tkv_metrics *m = calloc(1, sizeof(*m));

    (void)state;
    assert_non_null(m);
    assert_null(tkv_metrics_history(m, 0));
    for (uint64_t i = 0; i < TKV_HISTORY_SECONDS + 5; i++) {
        const struct tkv_history_item item = {.n_requests = i};

        tkv_metrics_remember(m, &item);
        assert_int_equal(tkv_metrics_history(m, 0)->n_requests, i);
    }
    assert_int_equal(tkv_metrics_history(m, TKV_HISTORY_SECONDS - 1)->n_requests, 5);
    assert_null(tkv_metrics_history(m, TKV_HISTORY_SECONDS));
    tkv_metrics_request(m, 65535);
    tkv_metrics_error(m, -1);
    tkv_metrics_error(m, 100000);
    assert_int_equal(m->n_requests[0], 1);
    assert_int_equal(m->n_errors[0], 2);
    free(m);
}

static void check_log_json(void **state)
{
    static const char line[] =
        "ts=2026-01-01T00:00:00Z level=info msg=\"a \\\"b\\\" \\\\ c=d\" n=12 "
        "x=-1.5 e=1e5 z=007 stray empty= q=\"\" last=word";
    char out[512];
    json_t *j;

    (void)state;
    tkv_log_json(line, out, sizeof(out));
    j = json_loads(out, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(j);
    assert_string_equal(json_string_value(json_object_get(j, "ts")), "2026-01-01T00:00:00Z");
    assert_string_equal(json_string_value(json_object_get(j, "msg")), "a \"b\" \\ c=d");
    assert_int_equal(json_integer_value(json_object_get(j, "n")), 12);
    assert_true(json_real_value(json_object_get(j, "x")) < -1.4);
    assert_string_equal(json_string_value(json_object_get(j, "e")), "1e5");
    assert_string_equal(json_string_value(json_object_get(j, "z")), "007");
    assert_string_equal(json_string_value(json_object_get(j, "empty")), "");
    assert_string_equal(json_string_value(json_object_get(j, "q")), "");
    assert_string_equal(json_string_value(json_object_get(j, "last")), "word");
    assert_int_equal(json_object_size(j), 10);
    json_decref(j);
}

/* Cut lines, whatever they are cut in, and small buffers still give an object. */
static void check_log_json_cut(void **state)
{
    static const char line[] = "level=warn msg=\"bad \\\"frame\\\"\" why=\"\xc3\xa4 \\\\\" n=7";
    char in[128], out[256];

    (void)state;
    for (size_t n = 0; n < sizeof(line); n++) {
        for (size_t room = 8; room < sizeof(out); room += room < 80 ? 1 : 100) {
            json_t *j;

            if (n && line[n - 1] == '\\' && (n < 2 || line[n - 2] != '\\'))
                continue; /* tkv_log never cuts an escape in two */
            memcpy(in, line, n);
            in[n] = 0;
            assert_true(tkv_log_json(in, out, room) < room);
            j = json_loads(out, 0, NULL);
            if (!j)
                fail_msg("no JSON: %s", out);
            json_decref(j);
        }
    }
}

/* Busy is not stalled, idle is not stalled; half a minute of work without any progress is. */
static void check_stall(void **state)
{
    struct tkv_pulse p = {.moved_ms = 1000};
    struct tkv_pool_load load = {.n_running = 1};

    (void)state;
    assert_false(tkv_pulse_stalled(&p, &load, 1000));
    assert_false(tkv_pulse_stalled(&p, &load, 30999));
    assert_true(tkv_pulse_stalled(&p, &load, 31000));
    load.progress++;
    assert_false(tkv_pulse_stalled(&p, &load, 32000));
    assert_false(tkv_pulse_stalled(&p, &load, 61999));
    load = (struct tkv_pool_load){.progress = load.progress}; /* nothing to do */
    assert_false(tkv_pulse_stalled(&p, &load, 100000));
    load.n_queued = 1; /* and nobody takes it */
    assert_false(tkv_pulse_stalled(&p, &load, 129999));
    assert_true(tkv_pulse_stalled(&p, &load, 130000));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_http),      cmocka_unit_test(check_http_fields),
        cmocka_unit_test(check_loopback),  cmocka_unit_test(check_text),
        cmocka_unit_test(check_histogram), cmocka_unit_test(check_history),
        cmocka_unit_test(check_log_json),  cmocka_unit_test(check_log_json_cut),
        cmocka_unit_test(check_stall),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
