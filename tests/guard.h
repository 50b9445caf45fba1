/*
 * Memory between two pages that may not be touched, for kernels that must not read
 * or write outside their arrays. It starts at the first page or ends at the second;
 * what is left of its pages on the other side is filled with a pattern.
 */
#ifndef TKV_TESTS_GUARD_H
#define TKV_TESTS_GUARD_H

#include <stdbool.h>
#include <stddef.h>

enum guard_side { GUARD_START, GUARD_END };

/* bytes may be 0. Ends the test if there is no memory. */
void *guard_alloc(size_t bytes, enum guard_side side);

/* Whether the pattern around the memory is untouched. */
bool guard_intact(const void *p, size_t bytes);

void guard_free(void *p, size_t bytes);

#endif /* TKV_TESTS_GUARD_H */
