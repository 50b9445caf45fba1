#include "tests/session_aid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/cpu.h"
#include "store/session_priv.h"

void aid_init(struct aid *a, const char *codec)
{
    memset(a, 0, sizeof(*a));
    tkv_budget_init(&a->budget, (size_t)256 << 20);
    tkv_kernels_init(&a->kn, tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE")));
    a->shape = (struct tkv_shape){4, 2, 64, 64, 0};
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++) {
        a->layers[i].codec_k = a->layers[i].codec_v = tkv_codec_by_name(codec);
        a->layers[i].attn.scale = 0.125f;
    }
    a->config = (struct tkv_session_config){
        .n_layers = 2,
        .layers = a->layers,
        .beta_tokens = 64,
        .recent_tokens = 32,
        .pinned_tokens = 4,
        .normalize_scores = true,
        .tri = {.offset_max = 65536},
    };
}

void aid_triattention(struct aid *a, uint32_t budget_tokens, uint64_t seed)
{
    const struct tkv_rope_params p = {
        .head_dim = a->shape.head_dim_k, .rotary_dim = a->shape.head_dim_k, .theta = 10000};
    const size_t n_bands = a->shape.head_dim_k / 2;
    const size_t n_heads = a->shape.n_q_heads;
    struct rng rng = {seed};

    assert_null(tkv_rope_init(&a->rope, &p));
    a->stats = calloc(AID_MAX_LAYERS * n_heads * 3 * n_bands, sizeof(float));
    assert_non_null(a->stats);
    for (size_t i = 0; i < AID_MAX_LAYERS * n_heads; i++)
        for (size_t f = 0; f < n_bands; f++) {
            float *s = a->stats + i * 3 * n_bands + f;

            s[0] = rng_gauss(&rng);
            s[n_bands] = rng_gauss(&rng);
            s[2 * n_bands] = sqrtf(s[0] * s[0] + s[n_bands] * s[n_bands]) + rng_uniform(&rng);
        }
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++) {
        a->layers[i].stats = a->stats + i * n_heads * 3 * n_bands;
        a->layers[i].budget_tokens = budget_tokens;
    }
    a->config.method = TKV_METHOD_TRIATTENTION;
    a->config.rope = &a->rope;
}

int aid_open(struct aid *a)
{
    for (uint32_t i = 0; i < AID_MAX_LAYERS; i++)
        a->layers[i].shape = a->shape;
    return tkv_session_create(&a->session, &a->config, &a->budget, &a->kn, &a->why);
}

void aid_close(struct aid *a)
{
    tkv_session_destroy(&a->session);
    free(a->stats);
    a->stats = NULL;
    assert_int_equal(atomic_load(&a->budget.used_bytes), 0);
}

struct aid_tokens aid_tokens(const struct aid *a, uint32_t n, uint64_t seed)
{
    const size_t n_k = (size_t)n * a->shape.n_kv_heads * a->shape.head_dim_k;
    const size_t n_v = (size_t)n * a->shape.n_kv_heads * a->shape.head_dim_v;
    const size_t n_q = (size_t)n * a->shape.n_q_heads * a->shape.head_dim_k;
    const size_t n_o = (size_t)n * a->shape.n_q_heads * a->shape.head_dim_v;
    struct rng rng = {seed};
    struct aid_tokens t = {.n = n};

    t.k = calloc(n_k + n_v + n_q + n_o + (size_t)n * a->shape.n_q_heads, sizeof(float));
    assert_non_null(t.k);
    t.v = t.k + n_k;
    t.q = t.v + n_v;
    t.out = t.q + n_q;
    t.lse = t.out + n_o;
    for (size_t i = 0; i < n_k; i++)
        t.k[i] = rng_gauss(&rng) + (i % a->shape.head_dim_k == 5 ? 3.0f : 0.2f);
    for (size_t i = 0; i < n_v + n_q; i++)
        t.v[i] = rng_gauss(&rng);
    return t;
}

int aid_step(struct aid *a, uint32_t layer, const struct aid_tokens *t, uint32_t first, uint32_t n)
{
    const struct tkv_shape *s = &a->shape;
    const struct tkv_step step = {
        .layer = layer,
        .n_tokens = n,
        .k = t->k + (size_t)first * s->n_kv_heads * s->head_dim_k,
        .v = t->v + (size_t)first * s->n_kv_heads * s->head_dim_v,
        .q = t->q + (size_t)first * s->n_q_heads * s->head_dim_k,
        .out = t->out + (size_t)first * s->n_q_heads * s->head_dim_v,
        .lse = t->lse + (size_t)first * s->n_q_heads,
    };

    return tkv_session_append_attend(a->session, &step, NULL, &a->why);
}

uint32_t aid_kept(const struct aid *a, uint32_t layer, uint32_t kv_head, int32_t *positions,
                  uint32_t cap)
{
    const struct tkv_layer *l = &a->session->layers[layer];
    const struct tkv_head *head = &l->heads[kv_head];
    uint32_t n = 0;

    assert_true(head->n_cold + l->pinned.n + l->tail.n <= cap);
    for (uint32_t i = 0; i < l->pinned.n; i++)
        positions[n++] = l->pinned.positions[i];
    for (uint32_t b = 0; b < head->n_blocks; b++) {
        void *block = tkv_arena_at(a->session->arena, head->blocks[b].id);

        for (uint32_t t = 0; t < head->blocks[b].n_tokens; t++)
            positions[n++] =
                head->blocks[b].first_position + tkv_block_positions(&l->layout, block)[t];
    }
    for (uint32_t i = 0; i < l->tail.n; i++)
        positions[n++] = l->tail.positions[i];
    return n;
}

int aid_copy_arena(int fd)
{
    const int copy = memfd_create("copy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat st;
    off_t at = 0;

    assert_true(copy >= 0 && fstat(fd, &st) == 0 && ftruncate(copy, st.st_size) == 0);
    while ((at = lseek(fd, at, SEEK_DATA)) >= 0) {
        const off_t end = lseek(fd, at, SEEK_HOLE);
        off_t from = at;

        while (from < end) {
            uint8_t bytes[16384];
            const ssize_t n = pread(fd, bytes, sizeof(bytes), from);

            assert_true(n > 0 && pwrite(copy, bytes, (size_t)n, from) == n);
            from += n;
        }
        at = end;
    }
    assert_int_equal(fcntl(copy, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    return copy;
}
