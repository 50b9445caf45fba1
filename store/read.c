/* READ: what a session keeps, decoded for whoever wants tensors back. */
#include "core/cache.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "store/session_priv.h"

static int check_heads(const struct tkv_session *s, const struct tkv_read *r,
                       struct tkv_report *why)
{
    const uint32_t n = s->layers[r->layer].config.shape.n_kv_heads;

    if (r->n_heads == 0 || r->kv_head >= n || r->n_heads > n - r->kv_head)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer %u: kv_head is %u, want less than %u",
                        r->layer, r->kv_head, n);
    if (r->n_heads > 1 && tkv_layer_evicts(&s->layers[r->layer]))
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "kv_head is not said: this layer evicts, and its heads may keep "
                        "different tokens");
    return 0;
}

static int check_range(const struct tkv_session *s, const struct tkv_read *r,
                       struct tkv_report *why)
{
    const uint64_t n_kept = tkv_session_head_kept(s, r->layer, r->kv_head);

    if (r->n_tokens > TRIKV_MAX_REQUEST_TOKENS)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "n_tokens is %u, want at most %d", r->n_tokens,
                        TRIKV_MAX_REQUEST_TOKENS);
    if (r->n_tokens > 0 && (r->first >= n_kept || r->n_tokens > n_kept - r->first))
        return tkv_fail(why, TRIKV_E_POSITION,
                        "layer %u, KV head %u keeps %llu tokens: there are no %u from %llu on",
                        r->layer, r->kv_head, (unsigned long long)n_kept, r->n_tokens,
                        (unsigned long long)r->first);
    return 0;
}

int tkv_session_read_check(const struct tkv_session *s, const struct tkv_read *r,
                           struct tkv_read_bytes *bytes, struct tkv_report *why)
{
    const struct tkv_shape *shape;
    size_t n;
    int e;

    if (r->layer >= s->config.n_layers)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "layer is %u, the session has %u", r->layer,
                        s->config.n_layers);
    if (r->dtype != TKV_F32 && r->dtype != TKV_F16)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "dtype: %u, want 0 f32 or 1 f16", r->dtype);
    e = check_heads(s, r, why);
    if (!e)
        e = check_range(s, r, why);
    if (e)
        return e;
    shape = &s->layers[r->layer].config.shape;
    n = (size_t)r->n_tokens * r->n_heads * tkv_dtype_bytes(r->dtype);
    *bytes = (struct tkv_read_bytes){.positions = r->n_tokens * sizeof(int32_t),
                                     .k = n * shape->head_dim_k,
                                     .v = n * shape->head_dim_v};
    return 0;
}

static struct tkv_cache_read head_read(const struct tkv_read *r, const struct tkv_shape *shape,
                                       uint32_t i)
{
    const size_t element = tkv_dtype_bytes(r->dtype);

    return (struct tkv_cache_read){
        .kv_head = r->kv_head + i,
        .first = r->first,
        .n_tokens = r->n_tokens,
        .dtype = r->dtype,
        .positions = r->positions,
        .k = (uint8_t *)r->k + i * shape->head_dim_k * element,
        .v = (uint8_t *)r->v + i * shape->head_dim_v * element,
        .k_stride = (size_t)r->n_heads * shape->head_dim_k,
        .v_stride = (size_t)r->n_heads * shape->head_dim_v,
    };
}

void tkv_session_read(const struct tkv_session *s, const struct tkv_read *r)
{
    const struct tkv_cache c = tkv_layer_cache(s, &s->layers[r->layer]);

    for (uint32_t i = 0; i < r->n_heads; i++) {
        const struct tkv_cache_read head = head_read(r, &c.shape, i);

        tkv_cache_read(&c, &head);
    }
}

uint64_t tkv_session_head_kept(const struct tkv_session *s, uint32_t layer, uint32_t kv_head)
{
    const struct tkv_cache c = tkv_layer_cache(s, &s->layers[layer]);

    return tkv_cache_n_kept(&c, kv_head);
}

bool tkv_session_read_is_exact(const struct tkv_session *s, const struct tkv_read *r)
{
    const struct tkv_cache c = tkv_layer_cache(s, &s->layers[r->layer]);
    const struct tkv_cache_read first = {
        .kv_head = r->kv_head, .first = r->first, .n_tokens = r->n_tokens};

    return tkv_cache_is_exact(&c, &first);
}
