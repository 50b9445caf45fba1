/* Arrays of awkward values between guard pages, and comparisons that count, for kernel checks. */
#ifndef TKV_TESTS_KERNEL_AID_H
#define TKV_TESTS_KERNEL_AID_H

#include "tests/kernel_cases.h"

/* How many kinds of values kernel_floats goes through; turns come in pairs, one for each side of
 * the guarded memory. */
enum { N_FILLS = 8 };

float *kernel_floats(struct kernel_run *run, size_t n, unsigned turn);
uint8_t *kernel_bytes(struct kernel_run *run, size_t n, unsigned turn, unsigned mask);
void *kernel_copy(const void *src, size_t bytes, unsigned turn);

/* Free an output; writing around it is a failure. */
void kernel_release(void *p, size_t bytes, struct kernel_run *run, const char *what);

/* Count a comparison, and describe the first that failed. */
__attribute__((format(printf, 3, 4))) void kernel_expect(struct kernel_run *run, bool fine,
                                                         const char *format, ...);
bool kernel_same(const void *a, const void *b, size_t bytes);
bool kernel_within(double a, double b, double bound);

/* Compare and release two outputs of n floats. */
void kernel_compare(struct kernel_run *run, float *a, float *b, size_t n, const char *what);

/* A logit under its maximum. */
float kernel_under(struct rng *rng, float max);

/* tests/kernel_cases_codes.c: the checks of the kernels that work on codes. */
void check_key_tile(struct kernel_run *run);
void check_value_rows(struct kernel_run *run);
void check_code_dots(struct kernel_run *run);
void check_level_dots(struct kernel_run *run);
void check_code_sums(struct kernel_run *run);
void check_scale_dots(struct kernel_run *run);
void check_weigh(struct kernel_run *run);

/* tests/kernel_cases_vectors.c: of those that take vectors as they come. */
void check_fwht(struct kernel_run *run);
void check_sum_vectors(struct kernel_run *run);

/* tests/kernel_cases_scores.c: of those that work on rows of scores. */
void check_moments(struct kernel_run *run);
void check_fold_scores(struct kernel_run *run);
void check_count_from(struct kernel_run *run);
void check_add_steps(struct kernel_run *run);

/* tests/kernel_cases_picks.c: of those that move codes. */
void check_pick_keys(struct kernel_run *run);
void check_pick_values(struct kernel_run *run);
void check_pick_halves(struct kernel_run *run);
void check_pick_bytes(struct kernel_run *run);

#endif /* TKV_TESTS_KERNEL_AID_H */
