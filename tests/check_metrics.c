/* A daemon that is looked at: its metrics tell the truth from the first moment, its pages escape what
 * clients chose, and those who look can neither hold it up nor fill it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/stats_page.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/http_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

enum { TIMEOUT_MS = 300 };

struct watched {
    struct daemon_aid d;
    char directory[64];
    char metrics[96];
    char page[96];
    char *text; /* [HTTP_REPLY_BYTES] */
};

static int start(void **state)
{
    struct watched *w = calloc(1, sizeof(*w));
    char config[1024];

    *state = w;
    assert_non_null(w);
    w->text = malloc(HTTP_REPLY_BYTES);
    snprintf(w->directory, sizeof(w->directory), "/tmp/trikv-test-XXXXXX");
    assert_non_null(mkdtemp(w->directory));
    snprintf(w->metrics, sizeof(w->metrics), "%s/metrics", w->directory);
    snprintf(w->page, sizeof(w->page), "%s/page", w->directory);
    snprintf(config, sizeof(config),
             "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\nlimits:\n  request_timeout: %dms\n"
             "metrics:\n  socket: %s\n  mode: \"0600\"\n  page: %s\n",
             TIMEOUT_MS, w->metrics, w->page);
    daemon_start(&w->d, config);
    return 0;
}

static int stop(void **state)
{
    struct watched *w = *state;
    struct stat s;

    assert_int_equal(daemon_stop(&w->d, SIGTERM), 0);
    assert_int_not_equal(stat(w->metrics, &s), 0); /* both are gone with the daemon */
    assert_int_not_equal(stat(w->page, &s), 0);
    assert_int_equal(rmdir(w->directory), 0);
    free(w->text);
    free(w);
    return 0;
}

static double sample(struct watched *w, const char *name)
{
    assert_int_equal(http_get(w->metrics, "/metrics", false, w->text), 200);
    return http_sample(w->text, name);
}

/* Before any client has come, everything that can be counted is there. */
static void check_first_second(void **state)
{
    static const char *const names[] = {
        "trikv_memory_cap_bytes",
        "trikv_sessions",
        "trikv_appended_tokens_total",
        "trikv_compression_ratio",
        "trikv_tier_bytes{tier=\"cold_keys\"}",
        "trikv_requests_total{kind=\"APPEND_ATTEND\"}",
        "trikv_requests_total{kind=\"unknown\"}",
        "trikv_errors_total{kind=\"MEMORY_CAP\"}",
        "trikv_attend_seconds_bucket{le=\"+Inf\"}",
        "trikv_attend_seconds_sum",
        "trikv_queue_seconds_count",
        "process_resident_memory_bytes",
        "process_open_fds",
    };
    struct watched *w = *state;
    struct stat s;

    assert_int_equal(stat(w->metrics, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    assert_int_equal(http_get(w->metrics, "/metrics", false, w->text), 200);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (http_sample(w->text, names[i]) < 0)
            fail_msg("%s is not there", names[i]);
    assert_null(strstr(w->text, "# EOF"));
    assert_null(strstr(w->text, "# UNIT"));
    assert_int_equal(http_get(w->metrics, "/metrics", true, w->text), 200);
    assert_string_equal(w->text + strlen(w->text) - 6, "# EOF\n");
    assert_non_null(strstr(w->text, "# UNIT trikv_memory_cap_bytes bytes\n"));
    assert_non_null(strstr(w->text, "# TYPE trikv_rounds counter\n"));
}

static uint64_t open_labelled(int fd, const char *label)
{
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    Trikv__Layer layer = wire_layer(3), *layers = &layer;
    uint64_t session;
    char copy[64];
    int code;

    m.n_layers = 1;
    m.layers = &layers;
    snprintf(copy, sizeof(copy), "%s", label);
    m.label = copy;
    session = wire_open_as(fd, &m, &code);
    assert_int_equal(code, 0);
    return session;
}

static uint64_t feed(int fd, const char *label, uint32_t n_tokens)
{
    const uint64_t session = open_labelled(fd, label);
    struct rng rng = {11};
    struct wire_reply r;
    size_t bytes;
    float *p = wire_payload(&rng, n_tokens, &bytes);

    assert_int_equal(wire_append_attend(fd, session, 0, p, bytes, n_tokens, &r), 0);
    wire_reply_deinit(&r);
    free(p);
    return session;
}

static void check_counts(void **state)
{
    struct watched *w = *state;
    const int fd = wire_connect_hello(w->d.socket);
    char name[128], tiers[256];
    struct wire_reply r;
    const uint64_t session = feed(fd, "a \"b\" <i>", 500);
    double sum = 0;

    assert_int_equal(wire_session_call(fd, TRIKV_ROUND, 999, &r), TRIKV_E_NO_SESSION);
    wire_reply_deinit(&r);
    assert_int_equal((int)sample(w, "trikv_requests_total{kind=\"APPEND_ATTEND\"}"), 1);
    assert_int_equal((int)http_sample(w->text, "trikv_errors_total{kind=\"NO_SESSION\"}"), 1);
    assert_int_equal((int)http_sample(w->text, "trikv_appended_tokens_total"), 500);
    assert_int_equal((int)http_sample(w->text, "trikv_attended_rows_total"), 500);
    assert_int_equal((int)http_sample(w->text, "trikv_attend_seconds_count"), 1);
    assert_true(http_sample(w->text, "trikv_attend_seconds_sum") > 0);
    assert_true(http_sample(w->text, "trikv_queue_seconds_sum") > 0);
    assert_int_equal((int)http_sample(w->text, "trikv_sessions"), 1);
    snprintf(name, sizeof(name), "trikv_session_seen_tokens{session=\"%016llx\"}",
             (unsigned long long)session);
    assert_int_equal((int)http_sample(w->text, name), 500);
    assert_non_null(strstr(w->text, "label=\"a \\\"b\\\" <i>\""));
    snprintf(name, sizeof(name), "session=\"%016llx\"", (unsigned long long)session);
    for (int i = 0; i < TRIKV_STATS_TIERS; i++) {
        static const char *const tier[] = {"pinned",      "tail",      "cold_keys",
                                           "cold_values", "cold_meta", "other"};

        snprintf(tiers, sizeof(tiers), "trikv_session_tier_bytes{%s,tier=\"%s\"}", name, tier[i]);
        assert_true(http_sample(w->text, tiers) >= 0);
        sum += http_sample(w->text, tiers);
    }
    snprintf(tiers, sizeof(tiers), "trikv_session_resident_bytes{%s}", name);
    assert_int_equal((int)http_sample(w->text, tiers), (int)sum);
    close(fd);
}

static void check_layers(void **state)
{
    struct watched *w = *state;
    const int fd = wire_connect_hello(w->d.socket);
    const unsigned long long session = feed(fd, "layers", 300);
    char name[128];

    snprintf(name, sizeof(name), "trikv_layer_seen_tokens{session=\"%016llx\",layer=\"0\"}",
             session);
    assert_true(sample(w, name) < 0); /* nobody asked */
    assert_int_equal(http_get(w->metrics, "/metrics?layers=1", false, w->text), 200);
    assert_int_equal((int)http_sample(w->text, name), 300);
    assert_non_null(strstr(w->text, "codec_k=\"tq4\""));
    assert_int_equal(http_get(w->metrics, "/metrics?layers=1&session=fff", false, w->text), 200);
    assert_null(strstr(w->text, "session=\"00"));
    close(fd);
}

static void check_status_page(void **state)
{
    struct watched *w = *state;
    const int fd = wire_connect_hello(w->d.socket);

    assert_int_equal(http_get(w->metrics, "/", false, w->text), 200);
    assert_non_null(strstr(w->text, "Nobody keeps a cache"));
    feed(fd, "<script>alert(1)</script>\"'", 300);
    assert_int_equal(http_get(w->metrics, "/", false, w->text), 200);
    assert_null(strstr(w->text, "<script"));
    assert_non_null(strstr(w->text, "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;"));
    assert_null(strstr(w->text, "http://"));
    assert_non_null(strstr(w->text, "</html>"));
    assert_int_equal(http_get(w->metrics, "/healthz", false, w->text), 200);
    assert_string_equal(w->text, "ok\n");
    close(fd);
}

static void check_head(void **state)
{
    struct watched *w = *state;

    assert_int_equal(http_exchange(w->metrics, "HEAD /metrics HTTP/1.1\r\n\r\n", w->text), 200);
    assert_string_equal(strstr(w->text, "\r\n\r\n"), "\r\n\r\n");
    assert_null(strstr(w->text, "Content-Length: 0"));
    assert_int_equal(http_exchange(w->metrics, "PUT / HTTP/1.1\r\n\r\n", w->text), 405);
    assert_non_null(strstr(w->text, "Allow: GET, HEAD\r\n"));
}

/* Requests that trickle in, never end, or whose replies nobody takes; and more of them than there is
 * room for. The daemon goes on, and afterwards there is room again. */
static void check_slow(void **state)
{
    struct watched *w = *state;
    const unsigned n_before = daemon_fds(&w->d);
    char byte;
    int fd[20];

    for (size_t i = 0; i < 20; i++) {
        fd[i] = wire_connect(w->metrics);
        assert_true(fd[i] >= 0);
        wire_write(fd[i], i % 2 ? "GET /metrics HTTP/1.1\r\n\r\n" : "GET /m", i % 2 ? 25 : 6, -1);
    }
    wire_serve_well(w->d.socket);
    sleep_ms(TIMEOUT_MS);
    for (int i = 0; i < 500 && daemon_fds(&w->d) > n_before; i++)
        sleep_ms(20);
    assert_true(daemon_fds(&w->d) <= n_before); /* the aid's own connection may be in the first */
    for (size_t i = 0; i < 20; i++) {
        while (recv(fd[i], &byte, 1, 0) > 0)
            ;
        close(fd[i]);
    }
    assert_true(sample(w, "trikv_scrapes_refused_total") >= 12);
}

static void check_oversize(void **state)
{
    struct watched *w = *state;
    char *large = malloc(65537);

    memset(large, 'a', 65536);
    large[65536] = 0;
    assert_int_equal(http_exchange(w->metrics, large, w->text), 431);
    free(large);
}

/* A page that can be read while the daemon does nothing at all. */
static void check_stats_page(void **state)
{
    struct watched *w = *state;
    const int client = wire_connect_hello(w->d.socket);
    const uint64_t session = feed(client, "on the page", 300);
    struct trikv_stats_page *p;
    const int fd = open(w->page, O_RDONLY);
    struct stat s;

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &s), 0);
    assert_int_equal(s.st_mode & 0777, 0600);
    assert_int_equal(s.st_size, sizeof(*p));
    p = mmap(NULL, sizeof(*p), PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(p, MAP_FAILED);
    for (int i = 0; i < 300 && atomic_load(&p->sequence) < 4; i++)
        sleep_ms(10);
    kill(w->d.pid, SIGSTOP);
    assert_int_equal(p->magic, TRIKV_STATS_MAGIC);
    assert_int_equal(p->pid, w->d.pid);
    for (int i = 0; i < 300 && p->n_listed == 0; i++) {
        kill(w->d.pid, SIGCONT);
        sleep_ms(10);
        kill(w->d.pid, SIGSTOP);
    }
    assert_int_equal(p->n_listed, 1);
    assert_int_equal(p->session[0].session, session);
    assert_string_equal(p->session[0].label, "on the page");
    assert_int_equal(p->session[0].n_seen, 300);
    kill(w->d.pid, SIGCONT);
    munmap(p, sizeof(*p));
    close(fd);
    close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(check_first_second, start, stop),
        cmocka_unit_test_setup_teardown(check_counts, start, stop),
        cmocka_unit_test_setup_teardown(check_layers, start, stop),
        cmocka_unit_test_setup_teardown(check_status_page, start, stop),
        cmocka_unit_test_setup_teardown(check_head, start, stop),
        cmocka_unit_test_setup_teardown(check_slow, start, stop),
        cmocka_unit_test_setup_teardown(check_oversize, start, stop),
        cmocka_unit_test_setup_teardown(check_stats_page, start, stop),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
