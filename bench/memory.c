/* How fast this machine reads, by how much there is to read: what the other numbers lean on. */
#include <stdlib.h>

#include "bench/commands.h"
#include "bench/machine.h"

enum { N_LEVELS = 4, LEAST_REPETITIONS = 7 };

static const struct {
    const char *bytes_key, *bytes_label, *key, *label;
} names[N_LEVELS] = {
    {"l1_bytes", "bytes that fit L1", "l1_gbytes_per_s", "GB/s from L1"},
    {"l2_bytes", "bytes that fit L2", "l2_gbytes_per_s", "GB/s from L2"},
    {"l3_bytes", "bytes that fit L3", "l3_gbytes_per_s", "GB/s from L3"},
    {"memory_bytes", "bytes that fit no cache", "memory_gbytes_per_s", "GB/s from memory"},
};

/* A good half of each cache of one core, a quarter of what cores share, and eight times as much. */
static size_t level_bytes(const struct tkv_machine *m, int level)
{
    const size_t last = m->l3_bytes ? m->l3_bytes : m->l2_bytes;

    switch (level) {
    case 0: return m->l1_bytes * 2 / 3;
    case 1: return m->l2_bytes / 2;
    case 2: return m->l3_bytes / 4;
    default: return last ? last * 8 : (size_t)256 << 20;
    }
}

/* Each thread has its own part of the L1 and L2 sizes, and they share the others. */
static int measure(const struct tkv_machine *m, int level, const struct tkv_bench_options *o,
                   struct tkv_samples *gbytes_per_s, struct tkv_reason *why)
{
    const size_t bytes = level_bytes(m, level) * (level < 2 ? m->n_threads : 1);
    struct tkv_bench_clock clock = tkv_bench_clock_start(o->seconds / 4, LEAST_REPETITIONS + 1);
    unsigned times = (unsigned)(((size_t)16 << 20) / bytes);
    struct tkv_reader reader;
    int e = tkv_reader_init(&reader, 1, bytes, m->n_threads, why);

    times = times ? times : 1;
    while (!e && tkv_bench_clock_go_on(&clock)) {
        const uint64_t ns = tkv_reader_time(&reader, m, 0, times);

        if (clock.n > 1)
            tkv_samples_add(gbytes_per_s, (double)reader.slice_bytes * times / (double)ns);
    }
    tkv_reader_deinit(&reader);
    return e;
}

int tkv_bench_memory(const struct tkv_bench_options *o, struct tkv_record *r,
                     struct tkv_reason *why)
{
    struct tkv_machine m;
    int e = tkv_machine_init(&m, o->threads, o->disable, why);

    if (!e)
        tkv_machine_describe(&m, r);
    for (int level = 0; !e && level < N_LEVELS; level++) {
        struct tkv_samples gbytes_per_s = {0};

        if (level_bytes(&m, level) == 0)
            continue;
        e = measure(&m, level, o, &gbytes_per_s, why);
        tkv_record_number(r, names[level].bytes_key, names[level].bytes_label,
                          (double)level_bytes(&m, level));
        tkv_record_number(r, names[level].key, names[level].label,
                          tkv_samples_spread(&gbytes_per_s).median);
    }
    tkv_machine_deinit(&m);
    return e;
}
