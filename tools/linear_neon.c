/* The tile kernel for AArch64. */
#if defined(__aarch64__)
#include <arm_neon.h>

#define TILE         tkv_tile_neon
#define READ_Q8      tkv_read_q8_neon
#define VEC          float32x4_t
#define WIDTH        4
#define ROWS         4
#define VECS         4
#define LOAD         vld1q_f32
#define STORE        vst1q_f32
#define SET          vdupq_n_f32
#define FMA(a, b, c) vfmaq_f32(c, a, b)

#include "tools/linear_q8.h"
#include "tools/linear_tile.h"
#else
typedef int tkv_no_tile_neon; /* a translation unit may not be empty */
#endif
