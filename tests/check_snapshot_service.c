/* SNAPSHOT and RESTORE through real daemons: what one wrote another one goes on with, to the bit, and
 * whatever does not fit is refused by name. */
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
#include <sys/stat.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/service.h"

static const char PROFILE[] = "format: trikv-profile/1\n"
                              "name: small\n"
                              "model:\n"
                              "  architecture: qwen3\n"
                              "  fingerprint: \"xxh3:0123456789abcdef\"\n"
                              "  n_layers: 2\n"
                              "  n_q_heads: 4\n"
                              "  n_kv_heads: 2\n"
                              "  head_dim: 32\n"
                              "rope:\n"
                              "  layout: half\n"
                              "  theta: %s\n"
                              "  rotary_dim: 32\n"
                              "  scaling: none\n"
                              "policy:\n"
                              "  tokens:\n"
                              "    method: streaming\n"
                              "    budget: 150\n"
                              "    beta: 64\n"
                              "    recent: 32\n"
                              "    pinned: 4\n"
                              "  bits:\n"
                              "    k: tq4\n"
                              "    v: tq3\n";

/* A daemon, and a directory that is there for the next one, too. */
struct place {
    struct daemon_aid daemon;
    char directory[64];
};

static void start(struct place *p, const char *more)
{
    char config[512];

    snprintf(config, sizeof(config),
             "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\nsnapshot:\n  directory: %s\n%s",
             p->directory, more);
    daemon_start(&p->daemon, config);
}

static void begin(struct place *p)
{
    strcpy(p->directory, "/tmp/trikv-snapshots-XXXXXX");
    assert_non_null(mkdtemp(p->directory));
}

/* Every file that a test left is one that it knows. */
static void end(struct place *p, const char *name)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%u/%s", p->directory, (unsigned)getuid(), name);
    (void)unlink(path);
    snprintf(path, sizeof(path), "%s/%u", p->directory, (unsigned)getuid());
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(p->directory), 0);
}

static struct trikv_client *connect_to(const struct place *p)
{
    const struct trikv_options o = {
        .size = sizeof(o), .socket = p->daemon.socket, .timeout_ms = 60000, .name = "check"};
    struct trikv_client *c = NULL;

    if (trikv_connect(&c, &o))
        fail_msg("connect: %s", trikv_last_error(c));
    return c;
}

static void feed(struct trikv_client *c, struct trikv_session *s, struct service_data *d, size_t at,
                 size_t n)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        const struct trikv_step t = service_step(&d[i], i, at, n);

        if (trikv_append_attend(s, &t))
            fail_msg("layer %u: %s", i, trikv_last_error(c));
    }
}

/* The same tokens for both, one of which has another daemon; the same attention. */
static void compare(struct trikv_client *c, struct trikv_session *s, struct service_data *d,
                    struct service_data *want, size_t at, size_t n)
{
    feed(c, s, d, at, n);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        const size_t row = (size_t)d[i].layer->n_q_heads * d[i].layer->head_dim_v;

        assert_memory_equal(d[i].out + at * row, want[i].out + at * row, n * row * sizeof(float));
    }
}

static void another_daemon_goes_on(void **state)
{
    struct service_data d[SERVICE_LAYERS], want[SERVICE_LAYERS];
    struct trikv_session *s, *back;
    struct trikv_client *c;
    struct place p;
    uint64_t file_bytes = 0;
    struct trikv_stats stats;

    (void)state;
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        service_data_init(&d[i], i);
        service_data_init(&want[i], i);
    }
    begin(&p);
    start(&p, "");
    c = connect_to(&p);
    s = service_open(c, "tq3");
    feed(c, s, want, 0, 200);
    assert_int_equal(trikv_snapshot(s, "first", &file_bytes), 0);
    assert_true(file_bytes > 10000);
    feed(c, s, want, 200, 200); /* it goes on as if nothing had happened */
    trikv_disconnect(&c);
    assert_int_equal(daemon_stop(&p.daemon, SIGTERM), 0);

    start(&p, "");
    c = connect_to(&p);
    assert_int_equal(trikv_restore(c, "first", &back), 0);
    assert_int_equal(trikv_stats(back, &stats), 0);
    assert_int_equal(stats.n_seen, 200);
    compare(c, back, d, want, 200, 200);
    assert_int_equal(trikv_close(&back), 0);

    assert_int_equal(trikv_restore(c, "second", &back), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(trikv_last_error(c), "second"));
    assert_int_equal(trikv_restore(c, "../first", &back), TRIKV_E_ARGUMENT);
    assert_int_equal(trikv_restore(c, ".first", &back), TRIKV_E_ARGUMENT);
    assert_int_equal(trikv_snapshot_delete(c, "first"), 0);
    assert_int_equal(trikv_snapshot_delete(c, "first"), TRIKV_E_ARGUMENT);
    trikv_disconnect(&c);
    assert_int_equal(daemon_stop(&p.daemon, SIGTERM), 0);
    end(&p, "first");
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        service_data_deinit(&d[i]);
        service_data_deinit(&want[i]);
    }
}

/* ---- profiles ------------------------------------------------------------------------------- */

static void write_profile(const struct place *p, const char *theta)
{
    char path[200];
    FILE *f;

    snprintf(path, sizeof(path), "%s/small.yaml", p->daemon.directory);
    f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, PROFILE, theta);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(kill(p->daemon.pid, SIGHUP), 0);
}

static struct trikv_session *open_small(struct trikv_client *c)
{
    const struct trikv_layer layer = {
        .n_q_heads = 4, .n_kv_heads = 2, .head_dim_k = 32, .head_dim_v = 32};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_session *s = NULL;

    o.n_layers = 2;
    o.layers = &layer;
    o.same_layers = 1;
    o.profile = "small";
    for (int i = 0; i < 500 && trikv_open(c, &o, &s); i++) /* the reload takes its time */
        sleep_ms(10);
    if (!s)
        fail_msg("open: %s", trikv_last_error(c));
    return s;
}

static void restore_waits_for(struct trikv_client *c, const char *text)
{
    struct trikv_session *s = NULL;

    for (int i = 0; i < 500; i++) {
        const int e = trikv_restore(c, "a", &s);

        if (!text && e == 0) {
            assert_int_equal(trikv_close(&s), 0);
            return;
        }
        if (text && e == TRIKV_E_GEOMETRY && strstr(trikv_last_error(c), text))
            return;
        if (e == 0)
            trikv_close(&s);
        sleep_ms(10);
    }
    fail_msg("restore: %s", trikv_last_error(c));
}

static void other_profiles_are_refused(void **state)
{
    struct trikv_client *c;
    struct trikv_session *s;
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "");
    write_profile(&p, "10000.0");
    c = connect_to(&p);
    s = open_small(c);
    assert_int_equal(trikv_snapshot(s, "a", NULL), 0);
    restore_waits_for(c, NULL);
    write_profile(&p, "20000.0");
    restore_waits_for(c, "rope");
    write_profile(&p, "10000.0");
    restore_waits_for(c, NULL);
    trikv_disconnect(&c);
    assert_int_equal(daemon_stop(&p.daemon, SIGTERM), 0);
    start(&p, "");
    c = connect_to(&p);
    assert_int_equal(trikv_restore(c, "a", &s), TRIKV_E_NO_PROFILE);
    trikv_disconnect(&c);
    assert_int_equal(daemon_stop(&p.daemon, SIGTERM), 0);
    end(&p, "a");
}

/* ---- limits --------------------------------------------------------------------------------- */

static void limits_hold(void **state)
{
    struct trikv_client *c;
    struct trikv_session *s, *back;
    struct place p;
    struct stat st;
    char path[200];
    int fd;

    (void)state;
    begin(&p);
    start(&p, "  max_bytes_per_day: 100KiB\n");
    c = connect_to(&p);
    s = service_open(c, "f16");
    assert_int_equal(trikv_snapshot(s, "a", NULL), 0);
    snprintf(path, sizeof(path), "%s/%u", p.directory, (unsigned)getuid());
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    strcat(path, "/a");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        struct service_data d;

        service_data_init(&d, i);
        service_feed(c, s, &d, i, 100);
        service_data_deinit(&d);
    }
    assert_int_equal(trikv_snapshot(s, "a", NULL), TRIKV_E_TOO_LARGE);
    assert_non_null(strstr(trikv_last_error(c), "max_bytes_per_day"));
    /* What is there is what was, until somebody else writes to it. */
    assert_int_equal(trikv_restore(c, "a", &back), 0);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(pwrite(fd, "x", 1, st.st_size - 1), 1);
    close(fd);
    assert_int_equal(trikv_restore(c, "a", &back), TRIKV_E_CHECKSUM);
    trikv_disconnect(&c);
    assert_int_equal(daemon_stop(&p.daemon, SIGTERM), 0);
    end(&p, "a");
}

static void without_a_directory_there_are_none(void **state)
{
    struct trikv_client *c;
    struct trikv_session *s, *back;
    struct daemon_aid d;
    struct place p;

    (void)state;
    daemon_start(&d, "memory:\n  cap: 64MiB\n");
    p.daemon = d;
    c = connect_to(&p);
    s = service_open(c, "tq4");
    assert_int_equal(trikv_snapshot(s, "a", NULL), TRIKV_E_STATE);
    assert_int_equal(trikv_restore(c, "a", &back), TRIKV_E_STATE);
    assert_null(back);
    trikv_disconnect(&c);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(another_daemon_goes_on),
        cmocka_unit_test(other_profiles_are_refused),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(without_a_directory_there_are_none),
    };

    return cmocka_run_group_tests_name("snapshot service", tests, NULL, NULL);
}
