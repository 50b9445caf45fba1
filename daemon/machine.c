/* Reading /proc and /sys; see machine.h. */
#include "daemon/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { LEAST_CAP_BYTES = 64 << 20, PATH_BYTES = 512 };

/* By the kernel's estimate; where /proc is hidden (a sandboxed service), by what is free. */
static uint64_t available_bytes(const char *root)
{
    unsigned long long kib = 0;
    char path[PATH_BYTES], line[128];
    struct sysinfo info;
    FILE *f;

    snprintf(path, sizeof(path), "%s/proc/meminfo", root);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f) && sscanf(line, "MemAvailable: %llu kB", &kib) != 1)
        ;
    if (f)
        fclose(f);
    if (kib)
        return kib * 1024;
    return sysinfo(&info) == 0 ? ((uint64_t)info.freeram + info.bufferram) * info.mem_unit : 0;
}

/* A file of the daemon's own control group, unified hierarchy only. */
static bool group_file(const char *root, const char *name, char *path, size_t n)
{
    char own[PATH_BYTES], group[PATH_BYTES] = "";
    FILE *f;
    bool found = false;

    snprintf(own, sizeof(own), "%s/proc/self/cgroup", root);
    f = fopen(own, "re");
    while (f && !found && fgets(group, sizeof(group), f))
        found = strncmp(group, "0::/", 4) == 0;
    if (f)
        fclose(f);
    group[strcspn(group, "\n")] = 0;
    return found && (size_t)snprintf(path, n, "%s/sys/fs/cgroup%s/%s", root, group + 3, name) < n;
}

/* "max" and what is not there are no limit. */
static uint64_t group_limit(const char *root, const char *name)
{
    unsigned long long bytes = 0;
    char path[2 * PATH_BYTES];
    FILE *f = group_file(root, name, path, sizeof(path)) ? fopen(path, "re") : NULL;

    if (f && fscanf(f, "%llu", &bytes) != 1)
        bytes = 0;
    if (f)
        fclose(f);
    return bytes ? bytes : UINT64_MAX;
}

uint64_t tkv_machine_cap_bytes(const char *root)
{
    const uint64_t limits[] = {group_limit(root, "memory.high"), group_limit(root, "memory.max")};
    uint64_t bytes = available_bytes(root);

    for (size_t i = 0; i < 2; i++)
        bytes = limits[i] < bytes ? limits[i] : bytes;
    return bytes / 2 > LEAST_CAP_BYTES ? bytes / 2 : LEAST_CAP_BYTES;
}

bool tkv_machine_pressure(const char *path, double *percent)
{
    FILE *f = fopen(path, "re");
    const bool told = f && fscanf(f, "some avg10=%lf", percent) == 1;

    if (f)
        fclose(f);
    return told;
}

bool tkv_machine_find_pressure(const char *root, char *path, size_t n)
{
    const char *named = getenv("MEMORY_PRESSURE_WATCH");
    double percent;

    if (named && (size_t)snprintf(path, n, "%s%s", root, named) < n &&
        tkv_machine_pressure(path, &percent))
        return true;
    if (group_file(root, "memory.pressure", path, n) && tkv_machine_pressure(path, &percent))
        return true;
    return (size_t)snprintf(path, n, "%s/proc/pressure/memory", root) < n &&
           tkv_machine_pressure(path, &percent);
}
