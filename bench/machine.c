#include "bench/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cpu.h"

/* The value of the first line of /proc/cpuinfo that begins with `name`; "" if there is none. */
static void read_cpuinfo(const char *name, char *value, size_t n)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];

    value[0] = '\0';
    while (f && !value[0] && fgets(line, sizeof(line), f)) {
        const char *colon = strchr(line, ':');

        if (!colon || strncmp(line, name, strlen(name)) != 0)
            continue;
        line[strcspn(line, "\n")] = '\0';
        (void)snprintf(value, n, "%s", colon + 1 + strspn(colon + 1, " "));
    }
    if (f)
        (void)fclose(f);
}

static void name_cpu(char *text, size_t n)
{
    char model[48], family[8], number[8];

    read_cpuinfo("model name", model, sizeof(model));
    read_cpuinfo("cpu family", family, sizeof(family));
    read_cpuinfo("model\t", number, sizeof(number));
    if (model[0] && family[0] && number[0])
        (void)snprintf(text, n, "%s (family %s, model %s)", model, family, number);
    else
        (void)snprintf(text, n, "%s", model[0] ? model : "unnamed");
}

static bool read_line(char *line, int n, unsigned index, const char *name)
{
    char path[96];
    FILE *f;
    bool good;

    (void)snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%u/%s", index,
                   name);
    f = fopen(path, "re");
    if (!f)
        return false;
    good = fgets(line, n, f) != NULL;
    (void)fclose(f);
    return good;
}

/* The data cache of this level as the kernel knows it: the C library asks the CPU, which in a
 * virtual machine tells of caches that other machines use too. 0: none, or nobody knows. */
static size_t cache_bytes(int level)
{
    char line[32];

    for (unsigned i = 0; read_line(line, sizeof(line), i, "level"); i++) {
        char *unit;
        size_t n;

        if (atoi(line) != level || !read_line(line, sizeof(line), i, "type") || line[0] == 'I' ||
            !read_line(line, sizeof(line), i, "size"))
            continue;
        n = strtoul(line, &unit, 10);
        return *unit == 'M' ? n << 20 : *unit == 'K' ? n << 10 : n;
    }
    return 0;
}

int tkv_machine_init(struct tkv_machine *m, unsigned n_threads, const char *disable,
                     struct tkv_reason *why)
{
    const char *left_out = disable ? disable : getenv("TRIKV_CPU_DISABLE");
    const unsigned flags = tkv_cpu_flags(left_out);

    *m = (struct tkv_machine){.n_threads = n_threads ? n_threads : 1};
    name_cpu(m->cpu, sizeof(m->cpu));
    (void)tkv_cpu_names(flags, m->features, sizeof(m->features));
    m->l1_bytes = cache_bytes(1);
    m->l2_bytes = cache_bytes(2);
    m->l3_bytes = cache_bytes(3);
    if (!m->l1_bytes) { /* no /sys: caches as large as they may be, so that data outgrows them */
        m->l1_bytes = 64 << 10;
        m->l2_bytes = 2 << 20;
        m->l3_bytes = 64 << 20;
    }
    m->n_cpus = tkv_team_default_threads();
    tkv_kernels_init(&m->kernels, flags);
    tkv_kernels_init(&m->plain, 0);
    m->peers = tkv_peer_kernels_best(left_out);
    if (tkv_team_create(&m->team, m->n_threads, why))
        return -1;
    m->exec = m->n_threads > 1 ? tkv_team_exec(m->team) : NULL;
    return 0;
}

void tkv_machine_deinit(struct tkv_machine *m)
{
    tkv_team_destroy(&m->team);
}

void tkv_machine_describe(const struct tkv_machine *m, struct tkv_record *r)
{
    tkv_record_text(r, "cpu", "CPU", m->cpu);
    tkv_record_text(r, "features", "kernels", m->features);
    tkv_record_number(r, "threads", "threads", m->n_threads);
    tkv_record_text(r, "clock", "clock", m->n_threads > 1 ? "wall" : "CPU time of the thread");
}

uint64_t tkv_machine_now_ns(const struct tkv_machine *m)
{
    struct timespec t;

    clock_gettime(m->n_threads > 1 ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

enum { READ_STEP_BYTES = 512 };

int tkv_reader_init(struct tkv_reader *r, size_t n_slices, size_t slice_bytes, size_t n_parts,
                    struct tkv_reason *why)
{
    const size_t part_bytes = tkv_align(slice_bytes / n_parts + 1, READ_STEP_BYTES);
    const size_t bytes = part_bytes * n_parts * n_slices;

    *r = (struct tkv_reader){.n_slices = n_slices, .n_parts = n_parts};
    r->slice_bytes = part_bytes * n_parts;
    r->bytes = aligned_alloc(READ_STEP_BYTES, bytes);
    r->sums = calloc(n_parts, sizeof(*r->sums));
    if (!r->bytes || !r->sums)
        return tkv_reason_set(why, "out of memory for %zu bytes to read", bytes);
    memset(r->bytes, 1, bytes);
    return 0;
}

void tkv_reader_deinit(struct tkv_reader *r)
{
    free(r->bytes);
    free(r->sums);
    *r = (struct tkv_reader){0};
}

struct reading {
    const struct tkv_reader *reader;
    const struct tkv_peer_kernels *kn;
    size_t slice;
    unsigned times;
};

static void read_part(void *arg, size_t part)
{
    const struct reading *a = arg;
    const size_t n = a->reader->slice_bytes / a->reader->n_parts;
    const uint8_t *p = a->reader->bytes + a->slice * a->reader->slice_bytes + part * n;
    uint64_t sum = 0;

    for (unsigned i = 0; i < a->times; i++)
        sum += a->kn->read(p, n);
    a->reader->sums[part] += sum;
}

uint64_t tkv_reader_time(struct tkv_reader *r, const struct tkv_machine *m, size_t slice,
                         unsigned times)
{
    struct reading a = {r, m->peers, slice, times};
    const uint64_t start = tkv_machine_now_ns(m);

    tkv_exec_run(m->exec, r->n_parts, read_part, &a);
    return tkv_machine_now_ns(m) - start;
}
