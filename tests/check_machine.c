/* What the daemon reads off the machine: memory, limits of the control group, pressure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/machine.h"

#define GIB (UINT64_C(1) << 30)

static char root[64];

static void put(const char *name, const char *text)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof(path), "%s%s", root, name);
    for (char *p = path + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(path, 0755);
    }
    f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int remove_one(const char *path, const struct stat *s, int kind, struct FTW *at)
{
    (void)s;
    (void)kind;
    (void)at;
    return remove(path);
}

static int set_up(void **state)
{
    (void)state;
    unsetenv("MEMORY_PRESSURE_WATCH");
    snprintf(root, sizeof(root), "/tmp/trikv-machine-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int tear_down(void **state)
{
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void the_cap_is_half_of_the_least(void **state)
{
    (void)state;
    put("/proc/meminfo", "MemTotal:  9 kB\nMemAvailable:    8388608 kB\n");
    assert_int_equal(tkv_machine_cap_bytes(root), 4 * GIB);
    put("/proc/self/cgroup", "1:name=systemd:/old\n0::/system.slice/trikvd.service\n");
    assert_int_equal(tkv_machine_cap_bytes(root), 4 * GIB); /* the group says nothing */
    put("/sys/fs/cgroup/system.slice/trikvd.service/memory.max", "max\n");
    assert_int_equal(tkv_machine_cap_bytes(root), 4 * GIB);
    put("/sys/fs/cgroup/system.slice/trikvd.service/memory.max", "2147483648\n");
    assert_int_equal(tkv_machine_cap_bytes(root), GIB);
    put("/sys/fs/cgroup/system.slice/trikvd.service/memory.high", "1073741824\n");
    assert_int_equal(tkv_machine_cap_bytes(root), GIB / 2);
    put("/sys/fs/cgroup/system.slice/trikvd.service/memory.high", "1048576\n");
    assert_int_equal(tkv_machine_cap_bytes(root), 64 << 20);
}

static void pressure_is_read_where_it_is_closest(void **state)
{
    char path[256];
    double percent = -1;

    (void)state;
    assert_false(tkv_machine_find_pressure(root, path, sizeof(path)));
    put("/proc/pressure/memory", "some avg10=1.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=9\n");
    assert_true(tkv_machine_find_pressure(root, path, sizeof(path)));
    assert_true(tkv_machine_pressure(path, &percent));
    assert_true(percent == 1.25);
    put("/proc/self/cgroup", "0::/a\n");
    put("/sys/fs/cgroup/a/memory.pressure", "some avg10=33.00 avg60=0.00 avg300=0.00 total=1\n");
    assert_true(tkv_machine_find_pressure(root, path, sizeof(path)));
    assert_true(tkv_machine_pressure(path, &percent));
    assert_true(percent == 33);
    put("/named", "garbage\n");
    setenv("MEMORY_PRESSURE_WATCH", "/named", 1);
    assert_true(tkv_machine_find_pressure(root, path, sizeof(path)));
    assert_non_null(strstr(path, "/sys/fs/cgroup/a/"));
    put("/named", "some avg10=0.50 avg60=0.00 avg300=0.00 total=1\n");
    assert_true(tkv_machine_find_pressure(root, path, sizeof(path)));
    assert_non_null(strstr(path, "/named"));
    assert_false(tkv_machine_find_pressure(root, path, 4)); /* does not fit: not cut */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_cap_is_half_of_the_least, set_up, tear_down),
        cmocka_unit_test_setup_teardown(pressure_is_read_where_it_is_closest, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
