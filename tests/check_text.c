/* What the daemon writes for others to read: bounded text with escapes, log lines as logfmt and JSON. And
 * what it reads of them by hand: addresses of this machine, requests for its pages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/http_parse.h"
#include "daemon/log.h"
#include "daemon/loopback.h"
#include "daemon/metrics.h"
#include "daemon/text.h"

#define COUNT(x) (sizeof(x) / sizeof((x)[0]))

/* ---- text ---------------------------------------------------------------------------------- */

static void what_does_not_fit_is_said(void **state)
{
    char data[8];
    struct tkv_text t;

    (void)state;
    tkv_text_init(&t, data, sizeof(data));
    tkv_text_add(&t, "%d", 1234567);
    assert_false(t.overflow);
    assert_int_equal(t.n_bytes, 7);
    tkv_text_add(&t, "%d", 8); /* its NUL has no room */
    assert_true(t.overflow);
    assert_int_equal(t.n_bytes, 7);
    tkv_text_add(&t, "%s", "");
    tkv_text_add_clean(&t, "a");
    assert_int_equal(t.n_bytes, 7);

    tkv_text_init(&t, data, sizeof(data));
    tkv_text_add_html(&t, "ab&c"); /* the escape fits, what follows does not */
    assert_int_equal(t.n_bytes, 8);
    assert_memory_equal(data, "ab&amp;c", 8);
    assert_false(t.overflow);
    tkv_text_add_clean(&t, "d");
    assert_true(t.overflow);
    assert_int_equal(t.n_bytes, 8);
}

/* Characters as they are, and what becomes of them. */
static const struct {
    const char *from, *to;
} letters[] = {
    {"plain", "plain"},
    {"\x01\x1f\x7f", "???"},
    {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
    {"\xf4\x8f\xbf\xbf", "\xf4\x8f\xbf\xbf"}, /* U+10FFFF */
    {"\xf4\x90\x80\x80", "????"},             /* beyond */
    {"\xf5\x80\x80\x80", "????"},
    {"\xc0\x80", "??"}, /* overlong */
    {"\xe0\x9f\xbf", "???"},
    {"\xe0\xa0\x80", "\xe0\xa0\x80"},
    {"\xf0\x8f\xbf\xbf", "????"},
    {"\xf0\x90\x80\x80", "\xf0\x90\x80\x80"},
    {"\xed\x9f\xbf", "\xed\x9f\xbf"},
    {"\xed\xa0\x80", "???"}, /* a surrogate */
    {"\xc2\x9f", "??"},      /* a C1 control */
    {"\xc2\xa0", "\xc2\xa0"},
    {"\x80", "?"},
    {"\xe2\x82", "??"},
    {"\xc3x", "?x"},
};

static void only_whole_characters_pass(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(letters); i++) {
        char data[64] = {0};
        struct tkv_text t;

        tkv_text_init(&t, data, sizeof(data));
        tkv_text_add_clean(&t, letters[i].from);
        assert_string_equal(data, letters[i].to);
    }
}

static void what_means_something_is_escaped(void **state)
{
    char data[64] = {0};
    struct tkv_text t;

    (void)state;
    tkv_text_init(&t, data, sizeof(data));
    tkv_text_add_label(&t, "a\"b\\c\n<");
    assert_string_equal(data, "a\\\"b\\\\c?<");
    memset(data, 0, sizeof(data));
    tkv_text_init(&t, data, sizeof(data));
    tkv_text_add_html(&t, "<a b='&\">");
    assert_string_equal(data, "&lt;a b=&#39;&amp;&quot;&gt;");
}

/* ---- log lines ----------------------------------------------------------------------------- */

static const struct {
    const char *logfmt, *json;
} lines[] = {
    {"", "{}"},
    {"a=1", "{\"a\":1}"},
    {"a=-1.50 b=0 c=0.5", "{\"a\":-1.50,\"b\":0,\"c\":0.5}"},
    {"a=01 b=- c=1. d=1e3 e=.5 f=", /* none of them is a number of JSON */
     "{\"a\":\"01\",\"b\":\"-\",\"c\":\"1.\",\"d\":\"1e3\",\"e\":\".5\",\"f\":\"\"}"},
    {"msg=\"two words\" n=2", "{\"msg\":\"two words\",\"n\":2}"},
    {"msg=\"a \\\" and a \\\\\"", "{\"msg\":\"a \\\" and a \\\\\"}"},
    {"msg=\"never ends", "{\"msg\":\"never ends\"}"},
    {"word a=b  another", "{\"a\":\"b\"}"},
    {"a=\xff", "{\"a\":\"?\"}"},
};

static void a_line_is_an_object(void **state)
{
    char out[256];

    (void)state;
    for (size_t i = 0; i < COUNT(lines); i++) {
        const size_t n = tkv_log_json(lines[i].logfmt, out, sizeof(out));

        assert_string_equal(out, lines[i].json);
        assert_int_equal(n, strlen(out));
    }
}

static void an_object_is_cut_between_pairs(void **state)
{
    const char *line = "first=1 second=\"some words\" third=3";
    static const char *const wants[] = {"{}", "{\"first\":1}",
                                        "{\"first\":1,\"second\":\"some words\"}",
                                        "{\"first\":1,\"second\":\"some words\",\"third\":3}"};
    size_t before = 0, n_wants = 0;
    char out[64];

    (void)state;
    for (size_t n = 8; n < sizeof(out); n++) {
        size_t wrote;

        memset(out, 'x', sizeof(out));
        wrote = tkv_log_json(line, out, n);
        assert_int_equal(wrote, strlen(out));
        assert_true(wrote < n);
        assert_true(wrote >= before); /* by whole pairs, as there is more room */
        if (wrote != before)
            assert_string_equal(out, wants[n_wants++]);
        before = wrote;
    }
    assert_int_equal(n_wants, COUNT(wants));
}

static void quotes_are_cut_to_fit(void **state)
{
    char out[8], large[32];

    (void)state;
    assert_string_equal(tkv_log_quote(large, sizeof(large), "a\"\\"), "\"a\\\"\\\\\"");
    assert_string_equal(tkv_log_quote(out, sizeof(out), "a\"\\"), "\"a\\\"\"");
    assert_string_equal(tkv_log_quote(large, sizeof(large), "\n\x7f\xc3\xa9"), "\"??\xc3\xa9\"");
    assert_string_equal(tkv_log_quote(out, sizeof(out), "abcdefghij"), "\"abc\"");
}

/* What log writes to stderr, with JOURNAL_STREAM naming it or not. */
static size_t written(enum tkv_log_format format, bool journal, const char *value, char *out,
                      size_t n)
{
    FILE *const file = tmpfile();
    const int before = dup(STDERR_FILENO);
    struct tkv_log log = {.format = format};
    struct stat s;
    char stream[64];
    size_t got;

    assert_non_null(file);
    assert_int_equal(fstat(fileno(file), &s), 0);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)s.st_dev,
             (unsigned long long)s.st_ino + !journal);
    setenv("JOURNAL_STREAM", stream, 1);
    fflush(stderr);
    assert_true(dup2(fileno(file), STDERR_FILENO) >= 0);
    tkv_log_init(&log, TKV_LOG_WARN);
    tkv_log(&log, TKV_LOG_INFO, "msg=\"not asked for\"");
    tkv_log(&log, TKV_LOG_WARN, "msg=\"%s", value);
    fflush(stderr);
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    close(before);
    unsetenv("JOURNAL_STREAM");
    assert_int_equal(log.journal, journal);
    rewind(file);
    got = fread(out, 1, n - 1, file);
    out[got] = 0;
    assert_int_equal(fclose(file), 0);
    return got;
}

static void the_journal_gets_a_priority_and_no_clock(void **state)
{
    char out[4096];

    (void)state;
    written(TKV_LOG_LOGFMT, true, "x\"", out, sizeof(out));
    assert_string_equal(out, "<4>level=warn msg=\"x\"\n");
    written(TKV_LOG_JSON, true, "x\"", out, sizeof(out));
    assert_string_equal(out, "<4>{\"level\":\"warn\",\"msg\":\"x\"}\n");
    written(TKV_LOG_LOGFMT, false, "x\"", out, sizeof(out));
    assert_memory_equal(out, "ts=20", 5);
    assert_string_equal(out + strlen("ts=2026-11-23T06:22:00Z "), "level=warn msg=\"x\"\n");
    written(TKV_LOG_JSON, false, "x\"", out, sizeof(out));
    assert_memory_equal(out, "{\"ts\":\"20", 9);
}

/* No line ends in half an escape, however long it would be. */
static void long_lines_are_cut_whole(void **state)
{
    char value[2048], out[4096];

    (void)state;
    for (size_t n = 980; n < 1020; n++) {
        size_t at, n_slashes = 0;

        memset(value, 'a', n);
        strcpy(value + n, "\\\\\\\\\\\\\\\\ and more that has no room at all, whatever comes: "
                          "some words, and some others");
        written(TKV_LOG_JSON, true, value, out, sizeof(out));
        assert_memory_equal(out, "<4>{\"level\":\"warn\",\"msg\":\"aaa", 28);
        assert_string_equal(out + strlen(out) - 3, "\"}\n");
        assert_true(strlen(out) < 1100);
        for (at = strlen(out) - 3; out[at - 1] == '\\'; at--)
            n_slashes++;
        assert_int_equal(n_slashes % 2, 0);
    }
}

/* ---- addresses ----------------------------------------------------------------------------- */

static void only_this_machine_is_listened_on(void **state)
{
    static const char *const bad[] = {
        "",
        "9464",
        ":9464",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:123456",
        "128.0.0.1:1",
        "0.0.0.0:1",
        "localhost:1",
        "[::1]",
        "[::1:1",
        "[::1]:",
        "[::2]:1",
        "[::]:1",
        "[x]:1",
        "[::1]:99999",
        "127.0.0.1.1:80",
        "1:1",
    };
    struct sockaddr_storage a;
    char host[128];
    socklen_t n;

    (void)state;
    for (size_t i = 0; i < COUNT(bad); i++)
        if (tkv_loopback_parse(bad[i], &a, &n))
            fail_msg("%s passes", bad[i]);
    memset(host, '1', 100);
    strcpy(host + 100, ":1");
    assert_false(tkv_loopback_parse(host, &a, &n));

    assert_true(tkv_loopback_parse("127.9.8.7:65535", &a, &n));
    assert_int_equal(n, sizeof(struct sockaddr_in));
    assert_int_equal(((struct sockaddr_in *)&a)->sin_port, htons(65535));
    assert_int_equal(((struct sockaddr_in *)&a)->sin_addr.s_addr, htonl(0x7f090807));
    assert_true(tkv_loopback_parse("[::1]:0", &a, &n));
    assert_int_equal(n, sizeof(struct sockaddr_in6));
    assert_int_equal(((struct sockaddr_in6 *)&a)->sin6_port, 0);
    assert_true(IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)&a)->sin6_addr));
}

/* ---- requests for pages -------------------------------------------------------------------- */

#define HOST "Host: localhost\r\n"

static const struct {
    const char *text;
    int status;
} requests[] = {
    {"GET / HTTP/1.1\r\n" HOST "\r\n", 200},
    {"GET / HTTP/1.0\n" HOST "\n", 200},
    {"HEAD /metrics HTTP/1.1\n" HOST "\r\n", 200},
    {"GET / HTTP/1.1\r\n" HOST "\r", 0}, /* more is to come */
    {"GET / HTTP/1.1\r\n" HOST, 0},
    {"GET / HTTP/1.1\r\n" HOST "\rx\n", 0},
    {"", 0},
    {"GET / HTTP/2\r\n" HOST "\r\n", 505},
    {"GET / HTTPS\r\n" HOST "\r\n", 400},
    {"GET /\r\n" HOST "\r\n", 400},
    {"GET / HTTP\r\n" HOST "\r\n", 400},
    {"POST / HTTP/1.1\r\n" HOST "\r\n", 405},
    {"GET /other HTTP/1.1\r\n" HOST "\r\n", 404},
    {"GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200},
    {"GET /metrics?layers=1&session=1f HTTP/1.1\r\n" HOST "\r\n", 200},
    {"GET /metrics?layers=0 HTTP/1.1\r\n" HOST "\r\n", 200},
    {"GET /metrics?layers=2 HTTP/1.1\r\n" HOST "\r\n", 400},
    {"GET /metrics?session= HTTP/1.1\r\n" HOST "\r\n", 400},
    {"GET /metrics?session=0 HTTP/1.1\r\n" HOST "\r\n", 400},
    {"GET /metrics?session=1F HTTP/1.1\r\n" HOST "\r\n", 400},
    {"GET /metrics?session=12345678123456781 HTTP/1.1\r\n" HOST "\r\n", 400},
    {"GET /metrics?x HTTP/1.1\r\n" HOST "\r\n", 400},
    {"GET / HTTP/1.1\r\nHost:\t127.0.0.1:9464 \t\r\n\r\n", 200},
    {"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", 200},
    {"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200},
    {"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nHost: [::2]\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nHost: [\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nHost: 127.\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nHost: 127.evil.example\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 421},
    {"GET / HTTP/1.1\r\nAccept: x\r\n\r\n", 421}, /* no host at all */
    {"GET / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n", 200},
    {"GET / HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\n", 413},
    {"GET / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n", 413},
    {"GET /no HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n", 404},
};

static void every_request_has_its_status(void **state)
{
    struct tkv_http_request r;

    (void)state;
    for (size_t i = 0; i < COUNT(requests); i++) {
        const int status = tkv_http_parse(requests[i].text, strlen(requests[i].text), true, &r);

        if (status != requests[i].status)
            fail_msg("%d, not %d: %s", status, requests[i].status, requests[i].text);
    }
}

static void a_request_says_what_is_wanted(void **state)
{
    static const char many[] =
        "HEAD /metrics?session=00ff&layers=1&layers=0 HTTP/1.1\r\n"
        "accept: text/html, Application/OpenMetrics-Text;version=1.0\r\n\r\n";
    static const char zero[] = "GET /metrics?session=1\0 HTTP/1.1\r\n\r\n";
    static const char zero_host[] = "GET / HTTP/1.1\r\nHost: 127.0\0.0.1\r\n\r\n";
    char endless[TKV_HTTP_REQUEST_BYTES];
    struct tkv_http_request r;

    (void)state;
    assert_int_equal(tkv_http_parse(many, strlen(many), false, &r), 200);
    assert_int_equal(r.page, TKV_HTTP_METRICS);
    assert_int_equal(r.session, 255);
    assert_true(r.head && r.openmetrics && !r.layers);
    assert_int_equal(tkv_http_parse(zero, sizeof(zero) - 1, false, &r), 400);
    assert_int_equal(tkv_http_parse(zero_host, sizeof(zero_host) - 1, true, &r), 421);
    assert_int_equal(tkv_http_parse(zero_host, sizeof(zero_host) - 1, false, &r), 200);
    assert_false(r.openmetrics);
    memset(endless, 'a', sizeof(endless));
    assert_int_equal(tkv_http_parse(endless, sizeof(endless) - 1, false, &r), 0);
    assert_int_equal(tkv_http_parse(endless, sizeof(endless), false, &r), 431);
}

/* ---- counters ------------------------------------------------------------------------------ */

static void quantiles_lie_in_their_buckets(void **state)
{
    struct tkv_histogram h = {0};

    (void)state;
    assert_true(tkv_histogram_quantile(&h, 0.5) == 0);
    tkv_histogram_add(&h, 1e-6);
    assert_true(tkv_histogram_quantile(&h, 0.5) > 0 && tkv_histogram_quantile(&h, 0.5) <= 1e-5);
    for (unsigned i = 0; i < 9; i++)
        tkv_histogram_add(&h, 0.3);
    assert_true(tkv_histogram_quantile(&h, 0.5) > 0.25 && tkv_histogram_quantile(&h, 0.5) <= 0.5);
    for (unsigned i = 0; i < 90; i++)
        tkv_histogram_add(&h, 100);
    assert_int_equal(tkv_histogram_count(&h), 100);
    assert_true(tkv_histogram_quantile(&h, 0.99) == 10); /* longer than every bound */
}

static void what_has_no_number_counts_as_unknown(void **state)
{
    struct tkv_metrics *m = calloc(1, sizeof(*m));
    const struct tkv_history_item item = {.n_tokens = 7};

    (void)state;
    assert_non_null(m);
    tkv_metrics_request(m, 5);
    tkv_metrics_request(m, TKV_METRICS_KINDS);
    tkv_metrics_error(m, 3);
    tkv_metrics_error(m, -1);
    tkv_metrics_error(m, TKV_METRICS_ERRORS);
    assert_int_equal(m->n_requests[5], 1);
    assert_int_equal(m->n_requests[0], 1);
    assert_int_equal(m->n_errors[3], 1);
    assert_int_equal(m->n_errors[0], 2);
    assert_null(tkv_metrics_history(m, 0));
    for (unsigned i = 0; i < TKV_HISTORY_SECONDS + 1; i++)
        tkv_metrics_remember(m, &item);
    assert_int_equal(tkv_metrics_history(m, TKV_HISTORY_SECONDS - 1)->n_tokens, 7);
    assert_null(tkv_metrics_history(m, TKV_HISTORY_SECONDS)); /* written over */
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_does_not_fit_is_said),
        cmocka_unit_test(only_whole_characters_pass),
        cmocka_unit_test(what_means_something_is_escaped),
        cmocka_unit_test(a_line_is_an_object),
        cmocka_unit_test(an_object_is_cut_between_pairs),
        cmocka_unit_test(quotes_are_cut_to_fit),
        cmocka_unit_test(the_journal_gets_a_priority_and_no_clock),
        cmocka_unit_test(long_lines_are_cut_whole),
        cmocka_unit_test(only_this_machine_is_listened_on),
        cmocka_unit_test(every_request_has_its_status),
        cmocka_unit_test(a_request_says_what_is_wanted),
        cmocka_unit_test(quantiles_lie_in_their_buckets),
        cmocka_unit_test(what_has_no_number_counts_as_unknown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
