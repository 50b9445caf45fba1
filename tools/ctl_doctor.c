/* The examination of a machine; see ctl_doctor.h. */
#include "tools/ctl_doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "core/cpu.h"
#include "proto/errors.h"
#include "tools/ctl_commands.h"
#include "tools/ctl_text.h"

struct exam {
    const char *root;
    struct ctl_finding *out;
    size_t n;
};

static void find(struct exam *x, const char *name, enum ctl_verdict verdict, const char *meaning,
                 const char *format, ...) __attribute__((format(printf, 5, 6)));
static void find(struct exam *x, const char *name, enum ctl_verdict verdict, const char *meaning,
                 const char *format, ...)
{
    struct ctl_finding *f = &x->out[x->n];
    va_list args;

    if (x->n == CTL_MAX_FINDINGS)
        return;
    x->n++;
    *f = (struct ctl_finding){.name = name, .verdict = verdict, .meaning = meaning};
    va_start(args, format);
    vsnprintf(f->value, sizeof(f->value), format, args);
    va_end(args);
}

/* The start of a file, "" if it cannot be read; without the newline of a file of one line. */
static const char *slurp(const struct exam *x, const char *path, char *buf, size_t n)
{
    char full[512];
    FILE *f;
    size_t got = 0;

    snprintf(full, sizeof(full), "%s%s", x->root, path);
    f = fopen(full, "re");
    if (f) {
        got = fread(buf, 1, n - 1, f);
        fclose(f);
    }
    buf[got] = 0;
    if (got && strchr(buf, '\n') == buf + got - 1)
        buf[got - 1] = 0;
    return buf;
}

static const char *bytes_text(uint64_t bytes, char *buf, size_t n)
{
    const struct ctl_field f = {.kind = CTL_BYTES, .count = bytes, .text = ""};

    ctl_format(&f, buf, n);
    return buf;
}

static void look_at_cpu(struct exam *x)
{
    const unsigned flags = tkv_cpu_flags(NULL);
    char names[64];

    tkv_cpu_names(flags, names, sizeof(names));
    if (!flags)
        find(x, "instruction sets", CTL_PROBLEM,
             "only the plain C kernels run here: correct, and many times slower", "%s", names);
    else if (flags & (TKV_CPU_VNNI | TKV_CPU_DOTPROD))
        find(x, "instruction sets", CTL_FINE, "attention in codes runs on integer dot products",
             "%s", names);
    else
        find(x, "instruction sets", CTL_NOTE,
             "no integer dot products (VNNI, dotprod): attention in codes takes longer", "%s",
             names);
}

static void look_at_threads(struct exam *x)
{
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    cpu_set_t set;
    const int allowed =
        sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : (int)online;

    if (allowed < online)
        find(x, "CPUs", CTL_NOTE,
             "workers.threads: 0 starts one thread for each CPU there is, not for each allowed: "
             "set it",
             "%d of %ld allowed", allowed, online);
    else
        find(x, "CPUs", CTL_FINE, "workers.threads: 0 starts as many threads", "%ld", online);
}

static void look_at_pages(struct exam *x)
{
    const long page = sysconf(_SC_PAGESIZE);

    if (page == 4096)
        find(x, "page size", CTL_FINE, "the usual one", "%ld", page);
    else
        find(x, "page size", CTL_FINE,
             "larger pages (a Raspberry Pi 5 has 16384): slabs are cut in them, so that small "
             "sessions "
             "have a little more slack",
             "%ld", page);
}

static uint64_t meminfo(const struct exam *x, const char *key)
{
    char text[8192];
    const char *at = strstr(slurp(x, "/proc/meminfo", text, sizeof(text)), key);

    return at ? strtoull(at + strlen(key), NULL, 10) * 1024 : 0;
}

static void look_at_memory(struct exam *x)
{
    const uint64_t total = meminfo(x, "MemTotal:"), available = meminfo(x, "MemAvailable:");
    char a[32], b[32];

    if (!available)
        find(x, "memory", CTL_NOTE, "memory.cap: auto goes by what is free: better give a number",
             "/proc/meminfo does not say");
    else
        find(x, "memory", CTL_FINE, "memory.cap: auto takes half of what is available at the start",
             "%s available of %s", bytes_text(available, a, sizeof(a)),
             bytes_text(total, b, sizeof(b)));
    if (meminfo(x, "SwapTotal:"))
        find(x, "swap", CTL_NOTE, "caches may be swapped out, and then answers wait for the disk",
             "%s", bytes_text(meminfo(x, "SwapTotal:"), a, sizeof(a)));
}

/* Shared memory is charged to whoever touches it first, that is to trikvd. */
static void look_at_memory_limit(struct exam *x)
{
    char group[512], path[700], limit[64];
    const char *own = strstr(slurp(x, "/proc/self/cgroup", group, sizeof(group)), "0::");

    if (!own)
        return;
    snprintf(path, sizeof(path), "/sys/fs/cgroup%.*s/memory.max", (int)strcspn(own + 3, "\n"),
             own + 3);
    slurp(x, path, limit, sizeof(limit));
    if (limit[0] && strcmp(limit, "max") != 0)
        find(x, "memory limit here", CTL_NOTE,
             "of the cgroup this ran in: memory.cap must stay well below that of the daemon's own",
             "%s bytes", limit);
}

static void look_at_cgroup(struct exam *x)
{
    char controllers[256];

    slurp(x, "/sys/fs/cgroup/cgroup.controllers", controllers, sizeof(controllers));
    if (!controllers[0])
        find(x, "memory cgroup", CTL_NOTE,
             "no unified cgroups here: MemoryMax of the unit does nothing, memory.cap holds anyway",
             "unknown");
    else if (!strstr(controllers, "memory"))
        find(x, "memory cgroup", CTL_PROBLEM,
             "MemoryMax of the unit does nothing, only memory.cap holds. On Raspberry Pi OS add "
             "cgroup_enable=memory to /boot/firmware/cmdline.txt",
             "off");
    else
        find(x, "memory cgroup", CTL_FINE, "MemoryMax of the unit works, as second line", "on");
    look_at_memory_limit(x);
}

static void look_at_pressure(struct exam *x)
{
    char text[256];

    if (slurp(x, "/proc/pressure/memory", text, sizeof(text))[0])
        find(x, "memory pressure", CTL_FINE, "the kernel says when memory gets short (PSI)", "%.*s",
             (int)strcspn(text, "\n"), text);
    else
        find(x, "memory pressure", CTL_NOTE,
             "the kernel does not measure it (PSI); psi=1 on its command line would",
             "not measured");
}

static void look_at_overcommit(struct exam *x)
{
    char text[32];

    slurp(x, "/proc/sys/vm/overcommit_memory", text, sizeof(text));
    if (text[0] == '2')
        find(x, "overcommit", CTL_NOTE,
             "strict: a sparse arena counts with its whole size when it is mapped; sessions may be "
             "refused though memory is there",
             "%s", text);
    else if (text[0])
        find(x, "overcommit", CTL_FINE, "sparse arenas cost what is used of them", "%s", text);
}

/* The choice in force is the one in brackets. */
static void look_at_huge_pages(struct exam *x)
{
    char text[128];
    const char *at;

    slurp(x, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", text, sizeof(text));
    at = strchr(text, '[');
    if (!at)
        return;
    at++;
    find(
        x, "huge pages", strncmp(at, "always", 6) == 0 ? CTL_NOTE : CTL_FINE,
        strncmp(at, "always", 6) == 0
            ? "for shared memory always: a small session takes 2 MiB that memory.cap does not count"
            : "not for shared memory unless asked: memory.cap counts every page",
        "%.*s", (int)strcspn(at, "]"), at);
}

static void look_at_descriptors(struct exam *x)
{
    struct rlimit r = {0};

    getrlimit(RLIMIT_NOFILE, &r);
    find(x, "descriptors", r.rlim_max < 1024 ? CTL_PROBLEM : CTL_FINE,
         r.rlim_max < 1024 ? "a connection takes one or two, a session two: raise LimitNOFILE"
                           : "the daemon raises its soft limit to this",
         "%llu", (unsigned long long)r.rlim_max);
}

static void look_at_file_size(struct exam *x)
{
    struct rlimit r = {0};

    getrlimit(RLIMIT_FSIZE, &r);
    if (r.rlim_cur == RLIM_INFINITY)
        return;
    find(x, "file size limit", CTL_PROBLEM,
         "arenas are files in memory, sparse and large: with this limit sessions cannot be opened",
         "%llu", (unsigned long long)r.rlim_cur);
}

/* What an arena does: made, sealed, reopened for reading. */
static const char *try_memfd(void)
{
    const int fd = memfd_create("trikvctl-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    const char *wrong = NULL;
    char path[64];
    int again = -1;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (fd < 0)
        wrong = "cannot be made";
    else if (ftruncate(fd, (off_t)1 << 36) < 0)
        wrong = "cannot be 64 GiB large, sparse";
    else if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        wrong = "cannot be sealed";
    else if ((again = open(path, O_RDONLY | O_CLOEXEC)) < 0)
        wrong = "cannot be reopened read-only: is /proc mounted?";
    if (again >= 0)
        close(again);
    if (fd >= 0)
        close(fd);
    return wrong;
}

static void look_at_memfd(struct exam *x)
{
    const char *wrong = try_memfd();
    struct utsname u;

    uname(&u);
    if (wrong)
        find(x, "sealed memory files", CTL_PROBLEM, "without them there are no sessions",
             "%s (%.40s)", wrong, u.release);
    else
        find(x, "sealed memory files", CTL_FINE, "arenas can be made, and lent read-only",
             "work (kernel %.40s)", u.release);
}

size_t ctl_doctor_examine(const char *root, struct ctl_finding *out)
{
    struct exam x = {.root = root, .out = out};

    look_at_cpu(&x);
    look_at_threads(&x);
    look_at_pages(&x);
    look_at_memory(&x);
    look_at_cgroup(&x);
    look_at_pressure(&x);
    look_at_overcommit(&x);
    look_at_huge_pages(&x);
    look_at_descriptors(&x);
    look_at_file_size(&x);
    look_at_memfd(&x);
    return x.n;
}

static void print_json(const struct ctl_finding *f, size_t n)
{
    static const char *const words[] = {"fine", "note", "problem"};
    struct ctl_record records[CTL_MAX_FINDINGS] = {{.n_fields = 0}};

    for (size_t i = 0; i < n; i++) {
        ctl_add_text(&records[i], "name", "", f[i].name);
        ctl_add_text(&records[i], "verdict", "", words[f[i].verdict]);
        ctl_add_text(&records[i], "value", "", f[i].value);
        ctl_add_text(&records[i], "meaning", "", f[i].meaning);
    }
    fputs("{\"findings\":\n", stdout);
    ctl_json_array(stdout, records, n);
    puts("}");
}

int ctl_doctor(const struct ctl_context *x)
{
    static const char *const marks[] = {"ok  ", "note", "BAD "};
    struct ctl_finding findings[CTL_MAX_FINDINGS];
    const size_t n = ctl_doctor_examine("", findings);
    int worst = CTL_FINE;

    for (size_t i = 0; i < n; i++)
        worst = (int)findings[i].verdict > worst ? (int)findings[i].verdict : worst;
    if (x->json)
        print_json(findings, n);
    for (size_t i = 0; i < n && !x->json; i++)
        printf("%s  %-20s %s\n      %s\n", marks[findings[i].verdict], findings[i].name,
               findings[i].value, findings[i].meaning);
    return worst == CTL_PROBLEM ? TRIKV_E_SYSTEM : TRIKV_OK;
}
