/* AVX2 with AVX-VNNI, for processors that have no AVX-512: the kernels on codes. */
#if defined(__x86_64__)
#include "core/avx2_codes.h"

#define ISA      avxvnni
#define PAIRS    0
#define SLICES_1 4
#define SLICES_2 2
#define SLICES_4 1
#define FIELDS_4 1

static inline sums dot4(sums sum, words a, words b)
{
    return (sums)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}

#include "core/kernels_codes.h"

#include "core/kernels_trials.h"
#endif
