/*
 * What the fuzz targets share. With TRIKV_FUZZ_PLANT set, reaching the heart of a target is a crash:
 * `make check-fuzz` runs each target so once, and fails if the fuzzer does not get there.
 */
#ifndef TKV_TESTS_FUZZ_H
#define TKV_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Call where an input has been accepted. */
static inline void fuzz_reached(void)
{
    if (getenv("TRIKV_FUZZ_PLANT"))
        abort();
}

#endif /* TKV_TESTS_FUZZ_H */
