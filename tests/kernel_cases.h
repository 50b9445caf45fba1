/*
 * One check for each slot of the kernel table: a variant against the C reference,
 * over sizes, awkward values and guarded memory. A check counts failures, so that a
 * test can also ask whether it notices a kernel that is wrong.
 */
#ifndef TKV_TESTS_KERNEL_CASES_H
#define TKV_TESTS_KERNEL_CASES_H

#include "core/kernels.h"
#include "tests/rng.h"

struct kernel_run {
    struct tkv_kernels ref; /* the C reference */
    struct tkv_kernels now; /* the table under test */
    struct rng rng;
    unsigned n_compared; /* calls compared so far */
    unsigned n_failures;
    char first_failure[160];
};

struct kernel_case {
    const char *name;
    size_t offset; /* of the slot in struct tkv_kernels */
    void (*check)(struct kernel_run *run);
};

enum { N_KERNEL_CASES = 29 };

extern const struct kernel_case kernel_cases[N_KERNEL_CASES];

/* Start a run of `now` against the reference. */
void kernel_run_init(struct kernel_run *run, const struct tkv_kernels *now, uint64_t seed);

#endif /* TKV_TESTS_KERNEL_CASES_H */
