/* The least that two processes can do with each other, to measure a request against. */
#ifndef TKV_BENCH_PINGPONG_H
#define TKV_BENCH_PINGPONG_H

#include <sched.h>
#include <sys/types.h>

#include "bench/samples.h"
#include "tools/reason.h"

struct tkv_pingpong {
    int here;  /* the processor of this process */
    int there; /* that of the other */
    size_t ping_bytes;
    size_t pong_bytes;
    size_t n;
};

/* Microseconds of each round trip. The calling process stays on `here`. 0, or -1 with a text. */
int tkv_pingpong_socket(const struct tkv_pingpong *p, struct tkv_samples *us,
                        struct tkv_reason *why);
int tkv_pingpong_eventfd(const struct tkv_pingpong *p, struct tkv_samples *us,
                         struct tkv_reason *why);
/* On a word of shared memory, without sleeping: here and there must differ. */
int tkv_pingpong_spin(const struct tkv_pingpong *p, struct tkv_samples *us, struct tkv_reason *why);

/* Keep the calling thread, and what it starts from now on, on one processor. */
int tkv_pin(int cpu, struct tkv_reason *why);

/* All threads that a process has now; pid 0: the calling thread. */
int tkv_pin_process(pid_t pid, const cpu_set_t *set, struct tkv_reason *why);

/* Where things may run. */
struct tkv_places {
    cpu_set_t all;
    int first, second; /* processors; second is -1 if there is but one */
};

#endif /* TKV_BENCH_PINGPONG_H */
