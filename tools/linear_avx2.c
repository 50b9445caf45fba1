/* The tile kernel for AVX2 with FMA: 8 of 16 registers hold sums. */
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#define TILE    tkv_tile_avx2
#define READ_Q8 tkv_read_q8_avx2
#define VEC     __m256
#define WIDTH   8
#define ROWS    4
#define VECS    2
#define LOAD    _mm256_loadu_ps
#define STORE   _mm256_storeu_ps
#define SET     _mm256_set1_ps
#define FMA     _mm256_fmadd_ps

#include "tools/linear_q8.h"
#include "tools/linear_tile.h"
#else
typedef int tkv_no_tile_avx2; /* a translation unit may not be empty */
#endif
