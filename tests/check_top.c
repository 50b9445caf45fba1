/* trikvctl top and doctor: views on screens of every size, a daemon that hangs, machines that lack
 * something. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/service.h"
#include "tests/wire.h"
#include "tools/ctl_doctor.h"
#include "tools/ctl_view.h"

static char output[65536];

static struct trikv_stats_page *example(uint32_t n_sessions)
{
    struct trikv_stats_page *p = calloc(1, sizeof(*p));

    assert_non_null(p);
    p->magic = TRIKV_STATS_MAGIC;
    p->version = TRIKV_STATS_VERSION;
    p->page_bytes = sizeof(*p);
    p->pid = (uint32_t)getpid();
    p->boot_id = 5;
    p->started_ms = 1000;
    p->updated_ms = 61000;
    p->memory_cap_bytes = 1 << 30;
    p->memory_used_bytes = 1 << 28;
    p->resident_bytes = 600;
    p->fp16_bytes = 2400;
    p->n_sessions = p->n_listed = n_sessions;
    for (size_t i = 0; i < TRIKV_STATS_TIERS; i++)
        p->tier_bytes[i] = 100;
    for (uint32_t i = 0; i < n_sessions; i++) {
        struct trikv_stats_session *s = &p->session[i];

        s->session = i + 1;
        s->resident_bytes = 600 + i;
        s->fp16_bytes = 2400;
        s->n_seen = UINT64_MAX / (i + 1);
        memcpy(s->tier_bytes, p->tier_bytes, sizeof(s->tier_bytes));
        snprintf(s->label, sizeof(s->label), "a\033[31m label that is long \xc3\xa4");
    }
    p->trikvd_version[0] = '1';
    return p;
}

static void draw(const struct trikv_stats_page *now, const struct trikv_stats_page *before,
                 const struct ctl_screen *screen)
{
    FILE *f = fmemopen(output, sizeof(output), "w");

    assert_non_null(f);
    ctl_view_draw(f, now, before, screen);
    fclose(f);
}

/* Nothing runs over the edge, and no label speaks to the terminal. */
static void check_fits(const struct ctl_screen *screen)
{
    unsigned n_lines = 0, column = 0;

    for (const char *c = output; *c; c++) {
        assert_int_not_equal(*c, '\033');
        if (*c == '\n') {
            n_lines++;
            column = 0;
        } else if (((unsigned char)*c & 0xc0) != 0x80 && ++column > screen->columns) {
            fail_msg("line %u of a screen of %u x %u:\n%s", n_lines, screen->columns, screen->rows,
                     output);
        }
    }
    assert_true(n_lines <= screen->rows);
}

static void check_sizes(void **state)
{
    (void)state;
    for (uint32_t n = 0; n <= TRIKV_STATS_SESSIONS; n += n < 4 ? 1 : 63) {
        struct trikv_stats_page *p = example(n);

        for (unsigned columns = 1; columns < 200; columns += 3) {
            for (unsigned rows = 1; rows < 40; rows += 4) {
                const struct ctl_screen screen = {
                    .columns = columns, .rows = rows, .has_page = rows % 8 == 1, .now_ms = 61000};

                draw(p, NULL, &screen);
                check_fits(&screen);
            }
        }
        free(p);
    }
}

static void check_content(void **state)
{
    struct ctl_screen screen = {.columns = 120, .rows = 40, .has_page = true, .now_ms = 62000};
    struct trikv_stats_page *before = example(1), *now = example(2);

    (void)state;
    now->updated_ms += 2000;
    now->n_tokens_appended = 4000;
    now->n_requests = 20;
    draw(now, before, &screen);
    assert_non_null(strstr(output, "2000 tokens/s"));
    assert_non_null(strstr(output, "10 requests/s"));
    assert_non_null(strstr(output, "600 B: 4.0x"));
    assert_non_null(strstr(output, "256.0 MiB of 1.0 GiB (25 %)"));
    assert_null(strstr(output, "NO NEWS"));
    assert_true(strstr(output, "       2  a?[31m") < strstr(output, "       1  a?[31m"));
    before->boot_id++; /* another daemon: rates would be nonsense */
    draw(now, before, &screen);
    assert_non_null(strstr(output, "4000 tokens "));
    screen.now_ms = now->updated_ms + 12000;
    draw(now, NULL, &screen);
    assert_non_null(strstr(output, "NO NEWS FOR 12.0 s: process"));
    assert_non_null(strstr(output, "is there but does nothing"));
    now->pid = 0x7ffffff0;
    draw(now, NULL, &screen);
    assert_non_null(strstr(output, "is gone"));
    free(before);
    free(now);
}

static void check_wrong_pages(void **state)
{
    char path[] = "/tmp/trikv-test-XXXXXX";
    const int fd = mkstemp(path);
    struct trikv_stats_page *p = example(1), *out = malloc(sizeof(*out));

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(ctl_view_read_page("/nonexistent", out), ENOENT);
    assert_int_equal(ctl_view_read_page("/tmp", out), EPROTO);
    assert_int_equal(ctl_view_read_page(path, out), EPROTO); /* empty */
    assert_int_equal(pwrite(fd, p, sizeof(*p), 0), sizeof(*p));
    assert_int_equal(ctl_view_read_page(path, out), 0);
    atomic_store(&p->sequence, 7); /* its writer died */
    assert_int_equal(pwrite(fd, p, sizeof(*p), 0), sizeof(*p));
    assert_int_equal(ctl_view_read_page(path, out), 0);
    p->n_listed = TRIKV_STATS_SESSIONS + 1;
    assert_int_equal(pwrite(fd, p, sizeof(*p), 0), sizeof(*p));
    assert_int_equal(ctl_view_read_page(path, out), EPROTO);
    p->n_listed = 1;
    p->version++;
    assert_int_equal(pwrite(fd, p, sizeof(*p), 0), sizeof(*p));
    assert_int_equal(ctl_view_read_page(path, out), EPROTO);
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(ctl_view_read_page(path, out), EPROTO);
    close(fd);
    unlink(path);
    free(p);
    free(out);
}

static int run_top(const char *arguments)
{
    char program[600], command[1024];
    FILE *f;
    size_t n;
    int status;

    service_program("trikvctl", program, sizeof(program));
    snprintf(command, sizeof(command), "%s %s top 2>&1 </dev/null", program, arguments);
    f = popen(command, "r");
    assert_non_null(f);
    n = fread(output, 1, sizeof(output) - 1, f);
    output[n] = 0;
    status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void check_hanging_daemon(void **state)
{
    struct daemon_aid d;
    char page[] = "/tmp/trikv-test-XXXXXX", config[256], arguments[256];
    const int made = mkstemp(page);
    int fd, code;

    (void)state;
    close(made);
    snprintf(config, sizeof(config), "metrics:\n  page: %s\nworkers:\n  threads: 2\n", page);
    daemon_start(&d, config);
    fd = wire_connect_hello(d.socket);
    assert_true(wire_open(fd, 2, &code) > 0);
    snprintf(arguments, sizeof(arguments), "--socket %s", d.socket);
    assert_int_equal(run_top(arguments), 0); /* by requests */
    assert_non_null(strstr(output, "       1  -"));
    snprintf(arguments, sizeof(arguments), "--page %s", page);
    for (int i = 0; i < 40 && (run_top(arguments) || !strstr(output, "       1  -")); i++)
        sleep_ms(100);
    kill(d.pid, SIGSTOP);
    assert_int_equal(run_top(arguments), 0);
    assert_non_null(strstr(output, "       1  -"));
    assert_non_null(strstr(output, "pinned"));
    sleep_ms(4000);
    assert_int_equal(run_top(arguments), 0);
    assert_non_null(strstr(output, "NO NEWS FOR"));
    kill(d.pid, SIGCONT);
    close(fd);
    assert_int_equal(daemon_stop(&d, SIGTERM), 0);
    assert_int_equal(run_top(arguments), 1);
    assert_non_null(strstr(output, "No such file"));
}

static void write_file(const char *root, const char *path, const char *text)
{
    char full[256];
    FILE *f;

    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = 0;
        mkdir(full, 0700);
        *slash = '/';
    }
    f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static const struct ctl_finding *finding(const struct ctl_finding *f, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(f[i].name, name) == 0)
            return &f[i];
    fail_msg("nothing about %s", name);
    return NULL;
}

/* A Raspberry Pi as it comes, then one that was set up. */
static void check_doctor(void **state)
{
    struct ctl_finding f[CTL_MAX_FINDINGS];
    char root[] = "/tmp/trikv-test-XXXXXX", command[64];
    size_t n;

    (void)state;
    assert_non_null(mkdtemp(root));
    write_file(root, "/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
    write_file(root, "/proc/meminfo",
               "MemTotal:  8000000 kB\nMemAvailable:  4000000 kB\nSwapTotal: 204784 kB\n");
    write_file(root, "/proc/sys/vm/overcommit_memory", "2\n");
    write_file(root, "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
               "[always] within_size advise never\n");
    n = ctl_doctor_examine(root, f);
    assert_int_equal(finding(f, n, "memory cgroup")->verdict, CTL_PROBLEM);
    assert_non_null(strstr(finding(f, n, "memory cgroup")->meaning, "cgroup_enable=memory"));
    assert_int_equal(finding(f, n, "memory pressure")->verdict, CTL_NOTE);
    assert_int_equal(finding(f, n, "overcommit")->verdict, CTL_NOTE);
    assert_int_equal(finding(f, n, "huge pages")->verdict, CTL_NOTE);
    assert_string_equal(finding(f, n, "memory")->value, "3.8 GiB available of 7.6 GiB");
    assert_int_equal(finding(f, n, "swap")->verdict, CTL_NOTE);
    assert_int_equal(finding(f, n, "sealed memory files")->verdict, CTL_FINE);
    write_file(root, "/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
    write_file(root, "/proc/pressure/memory", "some avg10=0.00\nfull avg10=0.00\n");
    write_file(root, "/proc/self/cgroup", "0::/user.slice\n");
    write_file(root, "/sys/fs/cgroup/user.slice/memory.max", "1000000\n");
    n = ctl_doctor_examine(root, f);
    assert_int_equal(finding(f, n, "memory cgroup")->verdict, CTL_FINE);
    assert_int_equal(finding(f, n, "memory pressure")->verdict, CTL_FINE);
    assert_string_equal(finding(f, n, "memory limit here")->value, "1000000 bytes");
    snprintf(command, sizeof(command), "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_sizes),       cmocka_unit_test(check_content),
        cmocka_unit_test(check_wrong_pages), cmocka_unit_test(check_hanging_daemon),
        cmocka_unit_test(check_doctor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
