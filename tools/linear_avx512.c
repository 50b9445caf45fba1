/* The tile kernel for AVX-512: the whole tile in 16 registers. */
#if defined(__AVX512F__)
#include <immintrin.h>

#define TILE    tkv_tile_avx512
#define READ_Q8 tkv_read_q8_avx512
#define VEC     __m512
#define WIDTH   16
#define ROWS    8
#define VECS    2
#define LOAD    _mm512_loadu_ps
#define STORE   _mm512_storeu_ps
#define SET     _mm512_set1_ps
#define FMA     _mm512_fmadd_ps

#include "tools/linear_q8.h"
#include "tools/linear_tile.h"
#else
typedef int tkv_no_tile_avx512; /* a translation unit may not be empty */
#endif
