/* Where a session's blocks lie, and every byte of its image, follow from what it was fed and from nothing
 * else: not from how many threads work on it, nor from which of them is first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "daemon/pool.h"
#include "store/session_priv.h"
#include "store/snapshot.h"
#include "tests/emulated.h"
#include "tests/rng.h"
#include "tests/scenes.h"

enum { N_TOKENS = 900, SEED = 71 };

/* More heads than are rebuilt at once. */
static const struct tkv_shape many_heads = {12, 6, 32, 32, 0};

/* ---- ways to work -------------------------------------------------------------------------- */

static void run_backwards(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
    (void)ctx;
    while (n > 0)
        fn(arg, --n);
}

/* Each run another order: ctx counts them. */
static void run_shuffled(void *ctx, size_t n, void (*fn)(void *arg, size_t i), void *arg)
{
    struct rng rng = {++*(uint64_t *)ctx};
    size_t order[4096];

    assert_true(n <= 4096);
    for (size_t i = 0; i < n; i++) {
        const size_t j = (size_t)(rng_next(&rng) % (i + 1));

        order[i] = order[j];
        order[j] = i;
    }
    for (size_t i = 0; i < n; i++)
        fn(arg, order[i]);
}

/* ---- what is compared ---------------------------------------------------------------------- */

struct bytes {
    uint8_t *at;
    size_t n;
};

static int add_bytes(void *ctx, const void *bytes, size_t n, struct tkv_report *why)
{
    struct bytes *b = ctx;

    (void)why;
    b->at = realloc(b->at, b->n + n);
    assert_non_null(b->at);
    memcpy(b->at + b->n, bytes, n);
    b->n += n;
    return 0;
}

static void add_number(struct bytes *b, uint64_t x)
{
    (void)add_bytes(b, &x, sizeof(x), NULL);
}

/* Tables with the places of their blocks, what the arena holds and what the session costs. */
static struct bytes layout_of(const struct aid *a)
{
    const struct tkv_session *s = a->session;
    const struct tkv_arena_sizes sizes = tkv_arena_sizes(s->arena);
    struct bytes b = {0};

    add_number(&b, atomic_load(&a->budget.used_bytes));
    add_number(&b, sizes.slab_bytes);
    add_number(&b, sizes.live_bytes);
    for (uint32_t i = 0; i < s->config.n_layers; i++)
        for (uint32_t h = 0; h < s->layers[i].config.shape.n_kv_heads; h++) {
            const struct tkv_head *head = &s->layers[i].heads[h];

            add_number(&b, head->n_blocks);
            if (head->n_blocks > 0)
                (void)add_bytes(&b, head->blocks, head->n_blocks * sizeof(*head->blocks), NULL);
        }
    return b;
}

static struct bytes image_of(const struct aid *a)
{
    const struct tkv_session *s = a->session;
    struct bytes b = {0};
    const struct tkv_snapshot_sink sink = {add_bytes, &b};

    assert_int_equal(tkv_snapshot_write(&sink, &s, 1, "", 0, NULL), 0);
    return b;
}

static void compare(struct bytes a, struct bytes b, const char *what, size_t scene, const char *how)
{
    if (a.n != b.n || memcmp(a.at, b.at, a.n) != 0)
        fail_msg("scene %zu (%s), worked on %s: another %s", scene, scene_name(scene), how, what);
    free(b.at);
}

/* ---- the tests ----------------------------------------------------------------------------- */

static void feed(struct aid *a, const struct aid_tokens *t, const struct tkv_exec *exec)
{
    const struct tkv_shape *s = &a->shape;
    const uint32_t n_step = scene_step(a);

    for (uint32_t i = 0; i < t->n; i += n_step)
        for (uint32_t layer = 0; layer < a->config.n_layers; layer++) {
            const struct tkv_step step = {
                .layer = layer,
                .n_tokens = n_step < t->n - i ? n_step : t->n - i,
                .k = t->k + (size_t)i * s->n_kv_heads * s->head_dim_k,
                .v = t->v + (size_t)i * s->n_kv_heads * s->head_dim_v,
                .q = t->q + (size_t)i * s->n_q_heads * s->head_dim_k,
                .out = t->out + (size_t)i * s->n_q_heads * s->head_dim_v,
                .lse = t->lse + (size_t)i * s->n_q_heads,
            };

            if (tkv_session_append_attend(a->session, &step, exec, &a->why))
                fail_msg("%s", a->why.text);
        }
    if (a->config.method != TKV_METHOD_NONE && tkv_session_round(a->session, exec, &a->why))
        fail_msg("%s", a->why.text);
}

struct way {
    const char *how;
    const struct tkv_exec *exec;
};

static void try_scene(size_t scene, const struct tkv_shape *shape, const struct way *ways, size_t n)
{
    struct bytes layout = {0}, image = {0};

    for (size_t i = 0; i < n; i++) {
        struct aid a;
        struct aid_tokens t;

        scene_configure(&a, scene, shape);
        if (aid_open(&a))
            fail_msg("scene %zu: %s", scene, a.why.text);
        t = aid_tokens(&a, N_TOKENS, SEED);
        feed(&a, &t, ways[i].exec);
        if (i == 0) {
            layout = layout_of(&a);
            image = image_of(&a);
        } else {
            compare(layout, layout_of(&a), "layout", scene, ways[i].how);
            compare(image, image_of(&a), "image", scene, ways[i].how);
        }
        free(t.k);
        scene_close(&a);
    }
    free(layout.at);
    free(image.at);
}

static void order_changes_nothing(void **state)
{
    uint64_t n_runs = SEED;
    const struct tkv_exec backwards = {run_backwards, NULL}, shuffled = {run_shuffled, &n_runs};
    const struct way ways[] = {
        {"in order", NULL}, {"backwards", &backwards}, {"in any order", &shuffled}};

    (void)state;
    for (size_t scene = 0; scene < N_SCENES; scene += slow_step(5))
        try_scene(scene, &many_heads, ways, sizeof(ways) / sizeof(*ways));
}

static void no_notify(void *ctx)
{
    (void)ctx;
}

static void threads_change_nothing(void **state)
{
    struct tkv_pool *pools[2] = {NULL};
    struct way ways[3] = {{"by one thread", NULL}, {"by two", NULL}, {"by three", NULL}};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(tkv_pool_create(&pools[i], i + 1, no_notify, NULL),
                         0); /* and the caller */
        ways[i + 1].exec = tkv_pool_exec(pools[i]);
    }
    for (size_t scene = 0; scene < N_SCENES; scene += 3 * slow_step(2))
        try_scene(scene, &many_heads, ways, 3);
    for (unsigned i = 0; i < 2; i++)
        tkv_pool_destroy(&pools[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_changes_nothing),
        cmocka_unit_test(threads_change_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
