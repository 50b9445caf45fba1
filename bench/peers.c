/* The comparison caches: memory, random contents, and one attention step spread over KV heads. */
#include "bench/peers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/inputs.h"
#include "bench/peers_priv.h"
#include "core/cpu.h"
#include "core/half.h"

struct tkv_peer_cache {
    struct tkv_peer_size size;
    const struct tkv_peer_kernels *kn;
    size_t head_bytes; /* keys, or values, of one KV head */
    uint8_t *rows;     /* [layer][kv_head][keys, values][token] */
    struct tkv_peer_work *work;
};

const struct tkv_peer_kernels *tkv_peer_kernels_best(const char *disable)
{
#if defined(__x86_64__)
    const unsigned flags = tkv_cpu_flags(disable);

    if ((flags & TKV_CPU_AVX512) && __builtin_cpu_supports("avx512vnni"))
        return &tkv_peer_kernels_vnni;
    if (flags & TKV_CPU_AVX2)
        return &tkv_peer_kernels_avx2;
#else
    (void)disable;
#endif
    return &tkv_peer_kernels_c;
}

void tkv_peer_decode(enum tkv_peer_format f, const uint8_t *row, uint32_t dim, float *x)
{
    for (uint32_t i = 0; i < dim;
         i += TKV_PEER_BLOCK, row += tkv_peer_row_bytes(f, TKV_PEER_BLOCK)) {
        uint16_t half;
        float d;

        memcpy(&half, row, sizeof(half));
        d = tkv_f16_to_f32(half);
        for (uint32_t j = 0; j < TKV_PEER_BLOCK; j++) {
            const uint8_t byte = row[2 + (f == TKV_PEER_Q8_0 ? j : j % 16)];

            x[i + j] = d * (float)(f == TKV_PEER_Q8_0 ? (int8_t)byte
                                                      : (j < 16 ? byte & 15 : byte >> 4) - 8);
        }
    }
}

bool tkv_peer_fits(uint32_t dim, uint32_t group)
{
    return dim % TKV_PEER_BLOCK == 0 && dim <= TKV_PEER_MAX_DIM && group <= TKV_PEER_MAX_GROUP;
}

static int fill(struct tkv_peer_cache *c, uint64_t seed, struct tkv_reason *why)
{
    const struct tkv_peer_size *s = &c->size;
    const size_t row_bytes = tkv_peer_row_bytes(s->format, s->dim);
    const size_t n_rows = c->head_bytes / row_bytes * 2 * s->n_kv_heads * s->n_layers;
    struct tkv_source source = {seed};
    float x[TKV_PEER_MAX_DIM];

    c->rows = malloc(n_rows * row_bytes);
    c->work = aligned_alloc(_Alignof(struct tkv_peer_work), s->n_kv_heads * sizeof(*c->work));
    if (!c->rows || !c->work)
        return tkv_reason_set(why, "out of memory for %zu rows of %zu bytes", n_rows, row_bytes);
    for (size_t i = 0; i < n_rows; i++) {
        tkv_source_gauss(&source, x, s->dim);
        c->kn->encode(s->format, c->rows + i * row_bytes, x, s->dim);
    }
    return 0;
}

int tkv_peer_cache_create(struct tkv_peer_cache **cache, const struct tkv_peer_size *size,
                          const struct tkv_peer_kernels *kn, uint64_t seed, struct tkv_reason *why)
{
    struct tkv_peer_cache *c = calloc(1, sizeof(*c));

    *cache = NULL;
    if (!c)
        return tkv_reason_set(why, "out of memory");
    c->size = *size;
    c->kn = kn;
    c->head_bytes = size->n_tokens * tkv_peer_row_bytes(size->format, size->dim);
    if (fill(c, seed, why)) {
        tkv_peer_cache_destroy(&c);
        return -1;
    }
    *cache = c;
    return 0;
}

void tkv_peer_cache_destroy(struct tkv_peer_cache **cache)
{
    if (!*cache)
        return;
    free((*cache)->rows);
    free((*cache)->work);
    free(*cache);
    *cache = NULL;
}

struct step {
    struct tkv_peer_cache *cache;
    uint32_t layer;
    const float *q;
    float *out;
};

static struct tkv_peer_head find_head(const struct tkv_peer_cache *c, uint32_t layer,
                                      size_t kv_head)
{
    const uint8_t *rows =
        c->rows + ((size_t)layer * c->size.n_kv_heads + kv_head) * 2 * c->head_bytes;

    return (struct tkv_peer_head){.format = c->size.format,
                                  .dim = c->size.dim,
                                  .group = c->size.group,
                                  .n_tokens = c->size.n_tokens,
                                  .k = rows,
                                  .v = rows + c->head_bytes};
}

static void attend_head(void *arg, size_t kv_head)
{
    const struct step *s = arg;
    const struct tkv_peer_cache *c = s->cache;
    const struct tkv_peer_head h = find_head(c, s->layer, kv_head);
    const size_t at = kv_head * c->size.group * c->size.dim;

    c->kn->attend(&h, s->q + at, 1 / sqrtf((float)c->size.dim), s->out + at, &c->work[kv_head]);
}

void tkv_peer_cache_attend(struct tkv_peer_cache *cache, uint32_t layer, const float *q, float *out,
                           const struct tkv_exec *exec)
{
    struct step s = {cache, layer, q, out};

    tkv_exec_run(exec, cache->size.n_kv_heads, attend_head, &s);
}

/* Without a maximum: logits of random vectors are small. */
static void attend_plainly(const struct tkv_peer_head *h, const float *q, double *out)
{
    const size_t row_bytes = tkv_peer_row_bytes(h->format, h->dim);
    const double scale = 1 / sqrt(h->dim);
    float k[TKV_PEER_MAX_DIM], v[TKV_PEER_MAX_DIM];
    double sum = 0;

    for (uint32_t i = 0; i < h->dim; i++)
        out[i] = 0;
    for (size_t t = 0; t < h->n_tokens; t++) {
        double weight = 0;

        tkv_peer_decode(h->format, h->k + t * row_bytes, h->dim, k);
        tkv_peer_decode(h->format, h->v + t * row_bytes, h->dim, v);
        for (uint32_t i = 0; i < h->dim; i++)
            weight += (double)q[i] * (double)k[i];
        weight = exp(weight * scale);
        sum += weight;
        for (uint32_t i = 0; i < h->dim; i++)
            out[i] += weight * (double)v[i];
    }
    for (uint32_t i = 0; i < h->dim; i++)
        out[i] /= sum;
}

double tkv_peer_cache_error(const struct tkv_peer_cache *cache, uint32_t layer, const float *q,
                            const float *out)
{
    const struct tkv_peer_head h = find_head(cache, layer, 0);
    double exact[TKV_PEER_MAX_DIM];
    double error = 0, size = 0;

    for (uint32_t g = 0; g < h.group; g++) {
        attend_plainly(&h, q + (size_t)g * h.dim, exact);
        for (uint32_t i = 0; i < h.dim; i++) {
            const double difference = (double)out[(size_t)g * h.dim + i] - exact[i];

            error += difference * difference;
            size += exact[i] * exact[i];
        }
    }
    return sqrt(error / size);
}
