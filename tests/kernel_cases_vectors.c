/* The checks of the kernels that take vectors as they come: floats, halves or bfloats at any address. */
#include <string.h>

#include "core/half.h"
#include "tests/guard.h"
#include "tests/kernel_aid.h"

static const enum tkv_dtype types[] = {TKV_F32, TKV_F16, TKV_BF16};
enum { N_TYPES = 3 };

/* Elements between guard pages; every other one lies at an odd address. */
struct elements {
    uint8_t *memory;
    size_t bytes;
    const void *x;
};

/* A finite half: what a float rounds to, or any bits, subnormal ones too. */
static uint16_t finite_half(struct kernel_run *run, float x)
{
    uint16_t h = tkv_f32_to_f16(x);

    if (rng_below(&run->rng, 4) == 0)
        h = (uint16_t)rng_next(&run->rng);
    return (h & 0x7c00) == 0x7c00 ? (uint16_t)(h & 0xfbff) : h;
}

static struct elements make_elements(struct kernel_run *run, enum tkv_dtype type, size_t n,
                                     unsigned turn)
{
    const size_t element_bytes = tkv_dtype_bytes(type);
    struct elements e = {.bytes = n * element_bytes + turn % 2};
    float *x = kernel_floats(run, n, turn / 2);
    uint8_t *to;

    e.memory = guard_alloc(e.bytes, turn % 4 < 2 ? GUARD_START : GUARD_END);
    e.x = to = e.memory + turn % 2;
    for (size_t i = 0; i < n; i++) {
        const uint16_t h = type == TKV_F16 ? finite_half(run, x[i]) : tkv_f32_to_bf16(x[i]);

        memcpy(to + i * element_bytes, type == TKV_F32 ? (const void *)&x[i] : &h, element_bytes);
    }
    guard_free(x, n * sizeof(*x));
    return e;
}

/* From elsewhere, with factors and without. */
static void compare_fwht(struct kernel_run *run, enum tkv_dtype type, size_t n, unsigned turn)
{
    const size_t bytes = n * sizeof(float);
    struct elements e = make_elements(run, type, n, turn);
    float *factor = kernel_floats(run, n, turn / 4);
    float *a = kernel_copy(factor, bytes, turn), *b = kernel_copy(factor, bytes, turn);

    run->ref.fwht(a, e.x, type, NULL, n);
    run->now.fwht(b, e.x, type, NULL, n);
    kernel_expect(run, kernel_same(a, b, bytes), "fwht type=%d n=%zu", (int)type, n);
    run->ref.fwht(a, e.x, type, factor, n);
    run->now.fwht(b, e.x, type, factor, n);
    guard_free(e.memory, e.bytes);
    guard_free(factor, bytes);
    kernel_compare(run, a, b, n, "fwht with factors");
}

static void compare_fwht_in_place(struct kernel_run *run, size_t n, unsigned turn)
{
    float *a = kernel_floats(run, n, turn), *b = kernel_copy(a, n * sizeof(*a), turn);

    run->ref.fwht(a, a, TKV_F32, NULL, n);
    run->now.fwht(b, b, TKV_F32, NULL, n);
    kernel_compare(run, a, b, n, "fwht in place");
}

void check_fwht(struct kernel_run *run)
{
    for (unsigned turn = 0; turn < 4 * N_FILLS; turn++) {
        for (size_t n = 1; n <= 1024; n *= 2) {
            compare_fwht_in_place(run, n, turn);
            for (size_t t = 0; t < N_TYPES; t++)
                compare_fwht(run, types[t], n, turn);
        }
    }
}

static void compare_sums(struct kernel_run *run, enum tkv_dtype type, size_t dim, unsigned turn)
{
    const size_t n = rng_below(&run->rng, turn % 8 ? 8 : 66),
                 stride = dim + rng_below(&run->rng, 3) * 7;
    struct elements e = make_elements(run, type, n > 0 ? (n - 1) * stride + dim : 0, turn);
    const struct tkv_vectors x = {.x = e.x, .type = type, .stride = stride};
    float *a = kernel_floats(run, dim, turn), *b = kernel_floats(run, dim, turn);

    run->ref.sum_vectors(a, &x, n, dim, 1 / (float)(n + 1));
    run->now.sum_vectors(b, &x, n, dim, 1 / (float)(n + 1));
    guard_free(e.memory, e.bytes);
    kernel_expect(run, kernel_same(a, b, dim * sizeof(*a)), "sum_vectors type=%d n=%zu dim=%zu",
                  (int)type, n, dim);
    kernel_release(a, dim * sizeof(*a), run, "sum_vectors");
    kernel_release(b, dim * sizeof(*b), run, "sum_vectors");
}

void check_sum_vectors(struct kernel_run *run)
{
    static const size_t large[] = {512, 576, 1024};

    for (unsigned turn = 0; turn < 4 * N_FILLS; turn++) {
        for (size_t t = 0; t < N_TYPES; t++) {
            for (size_t dim = 0; dim < 140; dim += 1 + (turn + t) % 7)
                compare_sums(run, types[t], dim, turn);
            compare_sums(run, types[t], large[turn % 3], turn);
        }
    }
}
