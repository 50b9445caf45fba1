/* The machine a number was measured on: its CPU, its caches, and how fast it reads. */
#ifndef TKV_BENCH_MACHINE_H
#define TKV_BENCH_MACHINE_H

#include "bench/peers.h"
#include "bench/record.h"
#include "core/kernels.h"
#include "tools/team.h"

struct tkv_machine {
    char cpu[96];      /* as the system calls it */
    char features[64]; /* instruction sets of the kernels in use */
    size_t l1_bytes;   /* of one core; 0: not known */
    size_t l2_bytes;   /* of one core */
    size_t l3_bytes;
    unsigned n_cpus;
    struct tkv_kernels kernels; /* the best */
    struct tkv_kernels plain;   /* the reference in C */
    const struct tkv_peer_kernels *peers;
    struct tkv_team *team;
    const struct tkv_exec *exec; /* NULL with one thread */
    unsigned n_threads;
};

/* disable names instruction sets to leave out; NULL: $TRIKV_CPU_DISABLE does. 0, or -1 with a
 * text. */
int tkv_machine_init(struct tkv_machine *m, unsigned n_threads, const char *disable,
                     struct tkv_reason *why);
void tkv_machine_deinit(struct tkv_machine *m);

/* The fields "cpu", "features", "threads" and how time was taken. */
void tkv_machine_describe(const struct tkv_machine *m, struct tkv_record *r);

/*
 * The clock of a measurement: with one thread its CPU time, so that a busy machine does
 * not count, with more the time on the wall.
 */
uint64_t tkv_machine_now_ns(const struct tkv_machine *m);

/* Memory that is only read, to learn how fast that can be: the floor of everything else. */
struct tkv_reader {
    uint8_t *bytes;
    size_t n_slices;
    size_t slice_bytes;
    size_t n_parts; /* pieces of a slice that threads share out */
    uint64_t *sums; /* [n_parts] */
};

int tkv_reader_init(struct tkv_reader *r, size_t n_slices, size_t slice_bytes, size_t n_parts,
                    struct tkv_reason *why);
void tkv_reader_deinit(struct tkv_reader *r);

/* Nanoseconds for reading a slice `times` times over. */
uint64_t tkv_reader_time(struct tkv_reader *r, const struct tkv_machine *m, size_t slice,
                         unsigned times);

#endif /* TKV_BENCH_MACHINE_H */
