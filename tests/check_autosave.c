/* Snapshots that nobody asks for, through real daemons: what changed is written in time and when the
 * daemon stops, comes back to the bit, and whatever goes wrong with a file is said and harms nothing else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/http_aid.h"
#include "tests/manager.h"
#include "tests/service.h"

enum { PATIENCE = 1000, BASE = 500 }; /* times 10 ms; the first token's id */

/* Daemons one after the other, and the directory that they have in common. */
struct place {
    struct daemon_aid daemon;
    char directory[64];
    char files[96]; /* this user's */
    char metrics[96];
    struct trikv_client *client;
    struct service_data data[SERVICE_LAYERS], want[SERVICE_LAYERS];
    uint32_t ids[SERVICE_TOKENS];
};

static void begin(struct place *p)
{
    memset(p, 0, sizeof(*p));
    strcpy(p->directory, "/tmp/trikv-autosave-XXXXXX");
    assert_non_null(mkdtemp(p->directory));
    snprintf(p->files, sizeof(p->files), "%s/%u", p->directory, (unsigned)getuid());
    snprintf(p->metrics, sizeof(p->metrics), "%s/metrics", p->directory);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        service_data_init(&p->data[i], i);
        service_data_init(&p->want[i], i);
    }
    for (uint32_t i = 0; i < SERVICE_TOKENS; i++)
        p->ids[i] = BASE + i;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void end(struct place *p)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        service_data_deinit(&p->data[i]);
        service_data_deinit(&p->want[i]);
    }
    (void)chmod(p->files, 0700);
    assert_int_equal(nftw(p->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* `more` goes on in the section of snapshots. */
static void start(struct place *p, const char *more)
{
    const struct trikv_options o = {.size = sizeof(o), .timeout_ms = 60000, .name = "check"};
    struct trikv_options at = o;
    char config[600];

    snprintf(config, sizeof(config),
             "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\nmetrics:\n  socket: %s\nsnapshot:\n"
             "  directory: %s\n%s",
             p->metrics, p->directory, more);
    daemon_start(&p->daemon, config);
    at.socket = p->daemon.socket;
    if (trikv_connect(&p->client, &at))
        fail_msg("connect: %s", trikv_last_error(p->client));
}

/* The daemon stops while the client is there. */
static void stop(struct place *p)
{
    assert_int_equal(daemon_stop(&p->daemon, SIGTERM), 0);
    trikv_disconnect(&p->client);
}

static struct trikv_session *open_session(struct place *p, const char *label, bool has_ids,
                                          uint32_t n_asked)
{
    struct trikv_session_options o = service_options("tq3");
    const struct trikv_prefix prefix = {
        .size = sizeof(prefix), .token_ids = p->ids, .n_token_ids = n_asked, .keep = 1};
    struct trikv_session *s = NULL;

    o.label = label;
    o.fingerprint = "model";
    o.prefix = has_ids ? &prefix : NULL;
    if (trikv_open(p->client, &o, &s))
        fail_msg("open: %s", trikv_last_error(p->client));
    return s;
}

static void feed(struct place *p, struct trikv_session *s, struct service_data *d, bool has_ids,
                 size_t at, size_t n)
{
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        struct trikv_step t = service_step(&d[i], i, at, n);

        t.positions = NULL;
        t.token_ids = has_ids ? p->ids + at : NULL;
        if (trikv_append_attend(s, &t))
            fail_msg("layer %u: %s", i, trikv_last_error(p->client));
    }
}

/* The same tokens for the session that came back, the same attention. */
static void compare(struct place *p, struct trikv_session *s, bool has_ids, size_t at, size_t n)
{
    feed(p, s, p->data, has_ids, at, n);
    for (uint32_t i = 0; i < SERVICE_LAYERS; i++) {
        const size_t row = (size_t)p->data[i].layer->n_q_heads * p->data[i].layer->head_dim_v;

        assert_memory_equal(p->data[i].out + at * row, p->want[i].out + at * row,
                            n * row * sizeof(float));
    }
}

static double metric(const struct place *p, const char *name)
{
    char *text = malloc(HTTP_REPLY_BYTES);
    double value;

    assert_non_null(text);
    assert_int_equal(http_get(p->metrics, "/metrics", false, text), 200);
    value = http_sample(text, name);
    free(text);
    return value;
}

static void wait_for_metric(const struct place *p, const char *name, double least)
{
    for (int i = 0; i < PATIENCE; i++) {
        if (metric(p, name) >= least)
            return;
        sleep_ms(10);
    }
    fail_msg("%s stays %g, want %g", name, metric(p, name), least);
}

static bool is_there(const struct place *p, const char *name)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/%s", p->files, name);
    return access(path, F_OK) == 0;
}

/* How many names the user's directory has, those of temporary files included. */
static unsigned count_files(const struct place *p)
{
    DIR *d = opendir(p->files);
    struct dirent *e;
    unsigned n = 0;

    while (d && (e = readdir(d)))
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    if (d)
        closedir(d);
    return n;
}

#define BY_PERIOD "trikv_autosaved_snapshots_total{when=\"period\"}"

/* ---- in time -------------------------------------------------------------------------------- */

static void what_changed_is_there_after_a_kill(void **state)
{
    struct trikv_session *s, *back;
    struct trikv_stats stats;
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "  every: 200ms\n");
    s = open_session(&p, "chat", false, 0);
    (void)open_session(&p, "empty", false, 0);
    feed(&p, open_session(&p, NULL, false, 0), p.data, false, 0, 10); /* nothing leads back to it */
    feed(&p, s, p.want, false, 0, 100);
    wait_for_metric(&p, BY_PERIOD, 1);
    assert_true(is_there(&p, "auto.chat"));
    feed(&p, s, p.want, false, 100, 100);
    wait_for_metric(&p, "trikv_unsaved_sessions", 1);
    wait_for_metric(&p, BY_PERIOD, 2);
    assert_true(metric(&p, "trikv_autosaved_bytes_total{when=\"period\"}") > 10000);
    feed(&p, s, p.want, false, 200, 50);
    wait_for_metric(&p, BY_PERIOD, 3);
    sleep_ms(600); /* it does not change, so nothing is written */
    assert_true(metric(&p, BY_PERIOD) == 3);
    assert_true(metric(&p, "trikv_unsaved_sessions") == 0);
    assert_int_equal(count_files(&p), 1);
    feed(&p, s, p.want, false, 250, 50);
    assert_int_not_equal(daemon_stop(&p.daemon, SIGKILL), 0);
    trikv_disconnect(&p.client);

    start(&p, "  every: 0\n");
    assert_int_equal(trikv_restore(p.client, "auto.chat", &back), 0);
    assert_int_equal(trikv_stats(back, &stats), 0);
    assert_int_equal(stats.n_seen, 250);
    compare(&p, back, false, 250, 50);
    stop(&p);
    end(&p);
}

/* A client that says so is done with it; one that is only gone may want it back. */
static void the_file_goes_with_what_is_closed(void **state)
{
    struct trikv_session *a, *b, *c;
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "  every: 200ms\n");
    a = open_session(&p, "a b", false, 0); /* no name for a file */
    b = open_session(&p, "same", false, 0);
    c = open_session(&p, "same", false, 0);
    feed(&p, a, p.data, false, 0, 20);
    feed(&p, b, p.data, false, 0, 20);
    feed(&p, c, p.data, false, 0, 20);
    wait_for_metric(&p, BY_PERIOD, 3);
    assert_int_equal(count_files(&p), 3);
    assert_true(is_there(&p, "auto.same") && is_there(&p, "auto.same.2"));
    assert_int_equal(trikv_close(&a), 0);
    assert_int_equal(count_files(&p), 2);
    trikv_disconnect(&p.client);
    for (int i = 0; i < PATIENCE && metric(&p, "trikv_sessions") > 0; i++)
        sleep_ms(10);
    assert_int_equal(count_files(&p), 2);
    assert_int_equal(daemon_stop(&p.daemon, SIGTERM), 0);
    end(&p);
}

/* ---- when the daemon stops and starts ------------------------------------------------------- */

static void assert_prefix(const struct trikv_session *s, uint32_t n)
{
    struct trikv_prefix_result r;

    trikv_session_prefix(s, &r);
    assert_int_equal(r.n_tokens, n);
}

static void what_stops_goes_on(void **state)
{
    struct trikv_session *s, *back;
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "  on_stop: true\n");
    s = open_session(&p, "named", true, 0);
    feed(&p, s, p.want, true, 0, 200);
    feed(&p, open_session(&p, "plain", false, 0), p.data, false, 0, 30);
    feed(&p, open_session(&p, NULL, false, 0), p.data, false, 0, 30);
    stop(&p);
    assert_int_equal(count_files(&p), 2);
    assert_true(is_there(&p, "auto.named") && is_there(&p, "auto.plain"));

    start(&p, "  restore_on_start: true\n");
    assert_true(metric(&p, "trikv_autosaved_files_at_start_total{outcome=\"restored\"}") == 1);
    assert_true(metric(&p, "trikv_autosaved_files_at_start_total{outcome=\"waits\"}") == 1);
    back = open_session(&p, "named", true, 200);
    assert_prefix(back, 200);
    s = open_session(&p, "other", true, 200); /* the one that goes on alone has the same bits */
    assert_prefix(s, 200);
    feed(&p, s, p.want, true, 200, 100);
    compare(&p, back, true, 200, 100);
    assert_int_equal(trikv_restore(p.client, "auto.plain", &s), 0);
    stop(&p);
    end(&p);
}

/* What the service manager kept is newer than the file: that stays a file. Without it the file counts. */
static void what_is_kept_warm_wins(void **state)
{
    const struct trikv_options o = {.size = sizeof(o), .timeout_ms = 60000};
    struct trikv_options at = o;
    struct trikv_session *s;
    struct manager m;
    char config[400];
    struct place p;

    (void)state;
    begin(&p);
    snprintf(config, sizeof(config),
             "memory:\n  cap: 64MiB\nmetrics:\n  socket: %s\nsnapshot:\n  directory: %s\n"
             "  restore_on_start: true\n",
             p.metrics, p.directory);
    manager_init(&m, config);
    (void)manager_start(&m);
    at.socket = m.socket;
    assert_int_equal(trikv_connect(&p.client, &at), 0);
    s = open_session(&p, "warm", true, 0);
    feed(&p, s, p.data, true, 0, 100);
    assert_int_equal(trikv_snapshot(s, "auto.warm", NULL), 0);
    feed(&p, s, p.data, true, 100, 100);
    (void)manager_stop(&m, SIGKILL);
    (void)manager_start(&m);
    assert_true(metric(&p, "trikv_adopted_sessions_total") == 1);
    assert_true(metric(&p, "trikv_autosaved_files_at_start_total{outcome=\"held\"}") == 1);
    assert_true(metric(&p, "trikv_prefixes") == 0);
    assert_int_equal(trikv_reconnect(p.client), 0);
    assert_int_equal(trikv_reattach(s, NULL), 0);
    feed(&p, s, p.data, true, 200, 10);
    (void)manager_stop(&m, SIGKILL);
    while (m.n_kept > 0)
        close(m.kept[--m.n_kept].fd); /* as when the machine starts anew */
    (void)manager_start(&m);
    assert_true(metric(&p, "trikv_autosaved_files_at_start_total{outcome=\"restored\"}") == 1);
    assert_true(metric(&p, "trikv_prefixes") == 1);
    trikv_disconnect(&p.client);
    assert_int_equal(manager_stop(&m, SIGTERM), 0);
    manager_deinit(&m);
    end(&p);
}

/* ---- what goes wrong ------------------------------------------------------------------------ */

static void change_byte(const struct place *p, const char *name, off_t from_end)
{
    char path[200], byte;
    struct stat st;
    int fd;

    snprintf(path, sizeof(path), "%s/%s", p->files, name);
    fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(pread(fd, &byte, 1, st.st_size - from_end), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, st.st_size - from_end), 1);
    close(fd);
}

static void write_file(const struct place *p, const char *name, const char *text)
{
    char path[200];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", p->files, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static struct stat file_of(const struct place *p, const char *name)
{
    char path[200];
    struct stat st;

    snprintf(path, sizeof(path), "%s/%s", p->files, name);
    assert_int_equal(stat(path, &st), 0);
    return st;
}

static void broken_files_are_moved_aside(void **state)
{
    char path[200];
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "  on_stop: true\n");
    feed(&p, open_session(&p, "cut", true, 0), p.data, true, 0, 100);
    feed(&p, open_session(&p, "good", true, 0), p.data, true, 0, 200);
    feed(&p, open_session(&p, "changed", true, 0), p.data, true, 0, 300);
    stop(&p);
    change_byte(&p, "auto.changed", 1000);
    snprintf(path, sizeof(path), "%s/auto.cut", p.files);
    assert_int_equal(truncate(path, file_of(&p, "auto.cut").st_size / 2), 0);
    write_file(&p, "auto.nothing", "");
    write_file(&p, ".auto.good.7f00.tmp", "half of it"); /* of one that was killed */

    start(&p, "  restore_on_start: true\n");
    assert_true(metric(&p, "trikv_autosaved_files_at_start_total{outcome=\"broken\"}") == 3);
    assert_true(metric(&p, "trikv_autosaved_files_at_start_total{outcome=\"restored\"}") == 1);
    assert_true(daemon_logged(&p.daemon, "auto.cut"));
    assert_true(is_there(&p, "broken.auto.cut") && is_there(&p, "broken.auto.changed") &&
                is_there(&p, "broken.auto.nothing") && is_there(&p, "auto.good"));
    assert_int_equal(count_files(&p), 4);
    assert_prefix(open_session(&p, "x", true, 300), 200);
    stop(&p);
    end(&p);
}

#define FAILED_BY_IO "trikv_snapshots_failed_total{reason=\"io\"}"

/* Nowhere to write to: said, counted, tried again, and the daemon serves. */
static void without_a_place_the_daemon_serves(void **state)
{
    struct trikv_session *s;
    struct place p;
    int fd;

    (void)state;
    begin(&p);
    start(&p, "  every: 200ms\n  on_stop: true\n");
    fd = open(p.files, O_WRONLY | O_CREAT | O_CLOEXEC, 0600); /* no directory */
    assert_true(fd >= 0);
    close(fd);
    s = open_session(&p, "a", false, 0);
    feed(&p, s, p.data, false, 0, 100);
    wait_for_metric(&p, FAILED_BY_IO, 2);
    assert_true(daemon_logged(&p.daemon, "label=\"a\""));
    assert_true(metric(&p, "trikv_unsaved_oldest_seconds") >= 0.2);
    feed(&p, s, p.data, false, 100, 100);
    assert_int_equal(unlink(p.files), 0);
    wait_for_metric(&p, BY_PERIOD, 1);
    feed(&p, s, p.data, false, 200, 10);
    stop(&p);
    end(&p);
}

/* The disk is full from the middle of a file on: nothing of it stays, and what was there does. */
static void a_full_disk_leaves_the_old_file(void **state)
{
    const struct rlimit little = {40000, RLIM_INFINITY}, much = {RLIM_INFINITY, RLIM_INFINITY};
    struct stat before, after;
    struct trikv_session *s;
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "  every: 200ms\n");
    s = open_session(&p, "a", false, 0);
    feed(&p, s, p.data, false, 0, 10);
    wait_for_metric(&p, BY_PERIOD, 1);
    before = file_of(&p, "auto.a");
    assert_int_equal(prlimit(p.daemon.pid, RLIMIT_FSIZE, &little, NULL), 0);
    feed(&p, s, p.data, false, 10, 390);
    wait_for_metric(&p, FAILED_BY_IO, 1);
    after = file_of(&p, "auto.a");
    assert_int_equal(count_files(&p), 1);
    assert_true(before.st_ino == after.st_ino && before.st_size == after.st_size);
    assert_int_equal(prlimit(p.daemon.pid, RLIMIT_FSIZE, &much, NULL), 0);
    wait_for_metric(&p, BY_PERIOD, 2);
    stop(&p);
    end(&p);
}

/* What the day has no bytes for is not written: neither in time nor at the end. */
static void the_days_bytes_hold(void **state)
{
    struct trikv_session *s;
    struct place p;

    (void)state;
    begin(&p);
    start(&p, "  every: 200ms\n  on_stop: true\n  max_bytes_per_day: 4KiB\n");
    s = open_session(&p, "a", false, 0);
    feed(&p, s, p.data, false, 0, 100);
    wait_for_metric(&p, "trikv_snapshots_failed_total{reason=\"day_budget\"}", 1);
    stop(&p);
    assert_int_equal(count_files(&p), 0);
    end(&p);
}

/* ---- time ----------------------------------------------------------------------------------- */

/* A daemon that is killed while it writes leaves the file of before or that of after, and the next one
 * takes away what was half done. */
static void a_kill_while_it_writes_breaks_nothing(void **state)
{
    struct place p;

    (void)state;
    begin(&p);
    for (unsigned i = 0; i < 6; i++) {
        struct trikv_session *s = NULL;
        struct trikv_stats stats;

        start(&p, "  every: 200ms\n");
        if (trikv_restore(p.client, "auto.a", &s) == 0) {
            assert_int_equal(trikv_stats(s, &stats), 0);
            assert_int_equal(stats.n_seen, SERVICE_TOKENS);
            assert_true(count_files(&p) == 1);
            assert_int_equal(trikv_close(&s), 0);
        } else {
            assert_int_equal(count_files(&p), 0);
        }
        s = open_session(&p, "a", false, 0);
        feed(&p, s, p.data, false, 0, SERVICE_TOKENS);
        for (int k = 0; k < PATIENCE && count_files(&p) == 0; k++)
            sleep_ms(1); /* the half or the whole file */
        sleep_ms(i);
        assert_int_not_equal(daemon_stop(&p.daemon, SIGKILL), 0);
        trikv_disconnect(&p.client);
    }
    end(&p);
}

static unsigned count_lines(const struct place *p, const char *text)
{
    FILE *f = fopen(p->daemon.log, "r");
    char line[1024];
    unsigned n = 0;

    while (f && fgets(line, sizeof(line), f))
        n += strstr(line, text) != NULL;
    if (f)
        fclose(f);
    return n;
}

/* What does not fit into the deadline is named, and the daemon ends in time. */
static void the_end_comes_in_time(void **state)
{
    enum { N_SESSIONS = 40 };
    unsigned n;
    struct place p;
    int status;

    (void)state;
    begin(&p);
    start(&p, "  on_stop: true\n  deadline: 10ms\n");
    for (unsigned i = 0; i < N_SESSIONS; i++) {
        char label[16];

        snprintf(label, sizeof(label), "s%u", i);
        feed(&p, open_session(&p, label, false, 0), p.data, false, 0, SERVICE_TOKENS);
    }
    assert_int_equal(kill(p.daemon.pid, SIGTERM), 0);
    assert_int_equal(waitpid(p.daemon.pid, &status, 0), p.daemon.pid);
    assert_int_equal(status, 0);
    p.daemon.pid = 0;
    assert_true(daemon_logged(&p.daemon, "snapshot.deadline is over"));
    assert_true(daemon_logged(&p.daemon, "session not saved"));
    n = count_files(&p);
    assert_true(n < N_SESSIONS);
    assert_int_equal(count_lines(&p, "session not saved"), N_SESSIONS - n);
    (void)daemon_stop(&p.daemon, 0); /* its directory */
    trikv_disconnect(&p.client);
    end(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_changed_is_there_after_a_kill),
        cmocka_unit_test(the_file_goes_with_what_is_closed),
        cmocka_unit_test(what_stops_goes_on),
        cmocka_unit_test(what_is_kept_warm_wins),
        cmocka_unit_test(broken_files_are_moved_aside),
        cmocka_unit_test(without_a_place_the_daemon_serves),
        cmocka_unit_test(a_full_disk_leaves_the_old_file),
        cmocka_unit_test(the_days_bytes_hold),
        cmocka_unit_test(a_kill_while_it_writes_breaks_nothing),
        cmocka_unit_test(the_end_comes_in_time),
    };

    return cmocka_run_group_tests_name("autosave", tests, NULL, NULL);
}
