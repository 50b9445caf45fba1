/*
 * The few constants and enums that every layer shares. Shapes in this project
 * are always written outermost first and in one order:
 * [layer][kv_head][token][dim] for caches, [token][head][dim] for requests.
 */
#ifndef TKV_CORE_TYPES_H
#define TKV_CORE_TYPES_H

#ifdef UV_H
#error "core knows nothing of the event loop"
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TKV_BLOCK_TOKENS = 64,   /* tokens in a full cold block, and lanes of a tile */
    TKV_MIN_HEAD_DIM = 8,    /* even numbers from here ... */
    TKV_MAX_HEAD_DIM = 1024, /* ... to here are accepted */
    TKV_MAX_BANDS = TKV_MAX_HEAD_DIM / 2,
    TKV_MAX_GROUP = 128, /* query heads that share one KV head */
};

/* Element type of a tensor in a request. The values are wire values. */
enum tkv_dtype { TKV_F32 = 0, TKV_F16 = 1, TKV_BF16 = 2 };

/* Vectors of a tensor, at any address: `stride` elements from the first of one to that of the next. */
struct tkv_vectors {
    const void *x;
    enum tkv_dtype type;
    size_t stride;
};

/*
 * One attention layer. group = n_q_heads / n_kv_heads, without remainder.
 *
 * A layer of latents (multi-head latent attention, DeepSeek-V2, arXiv 2405.04434) has one KV head, whose
 * keys are a latent of head_dim_v and, behind it, rope_dim coordinates that carry the position.
 * Its value is the latent again: it is a view of the key, and nothing is stored for it.
 */
struct tkv_shape {
    uint32_t n_q_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim_k; /* also the dimension of a query */
    uint32_t head_dim_v; /* also the dimension of an output */
    uint32_t rope_dim;   /* of latents; 0: keys and values are apart */
};

/* Of a value that comes and is stored beside its key. */
static inline uint32_t tkv_stored_dim_v(const struct tkv_shape *s)
{
    return s->rope_dim > 0 ? 0 : s->head_dim_v;
}

/* Of a key, what a codec codes. */
static inline uint32_t tkv_coded_dim_k(const struct tkv_shape *s)
{
    return s->head_dim_k - s->rope_dim;
}

static inline uint32_t tkv_group(const struct tkv_shape *s)
{
    return s->n_q_heads / s->n_kv_heads;
}

static inline size_t tkv_dtype_bytes(enum tkv_dtype t)
{
    return t == TKV_F32 ? 4 : 2;
}

static inline struct tkv_vectors tkv_floats(const float *x, size_t stride)
{
    return (struct tkv_vectors){.x = x, .type = TKV_F32, .stride = stride};
}

static inline struct tkv_vectors tkv_halves(const uint16_t *x, size_t stride)
{
    return (struct tkv_vectors){.x = x, .type = TKV_F16, .stride = stride};
}

/* Those from vector t on. */
static inline struct tkv_vectors tkv_vectors_from(struct tkv_vectors v, size_t t)
{
    v.x = (const uint8_t *)v.x + t * v.stride * tkv_dtype_bytes(v.type);
    return v;
}

static inline size_t tkv_align(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* *out = a * b; false, and *out untouched, if that overflows. */
static inline bool tkv_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

/*
 * A way to run fn(arg, 0) ... fn(arg, n - 1), in any order, perhaps on several
 * threads; returns when all are done. The caller of core and store decides what
 * threads there are; a NULL executor runs everything in the calling thread.
 */
struct tkv_exec {
    void (*run)(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg);
    void *ctx;
};

static inline void tkv_exec_run(const struct tkv_exec *e, size_t n, void (*fn)(void *arg, size_t i),
                                void *arg)
{
    if (e && n > 1) {
        e->run(e->ctx, n, fn, arg);
        return;
    }
    for (size_t i = 0; i < n; i++)
        fn(arg, i);
}

#endif /* TKV_CORE_TYPES_H */
