/* Images of sessions: what is read from one is to the bit the session it was made of, now and for all
 * tokens to come; and no bytes make one that fails later. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "proto/errors.h"
#include "store/image_layout.h"
#include "store/session_priv.h"
#include "tests/emulated.h"
#include "tests/image_aid.h"
#include "tests/scenes.h"

/* One thread does all of this: what is slow for the sake of others sees a part. */
static size_t next_scene(void)
{
#ifdef __SANITIZE_THREAD__
    return 8;
#else
    return emulated_step(8);
#endif
}

enum { MOST_TOKENS = 1100 };

/* ---- round trips ---------------------------------------------------------------------------- */

/* The same tokens for both: the same attention. */
static void feed_both(struct aid *a, struct tkv_session *x, struct tkv_session *y,
                      const struct aid_tokens *t, uint32_t first, uint32_t n)
{
    const size_t n_out = (size_t)n * a->shape.n_q_heads * a->shape.head_dim_v;
    const size_t from = (size_t)first * a->shape.n_q_heads * a->shape.head_dim_v;
    float *out = malloc(n_out * sizeof(*out));

    assert_non_null(out);
    for (uint32_t layer = 0; layer < a->config.n_layers; layer++) {
        a->session = x;
        if (aid_step(a, layer, t, first, n))
            fail_msg("%s", a->why.text);
        memcpy(out, t->out + from, n_out * sizeof(*out));
        a->session = y;
        if (aid_step(a, layer, t, first, n))
            fail_msg("%s", a->why.text);
        assert_memory_equal(out, t->out + from, n_out * sizeof(*out));
    }
    free(out);
}

static void go_on(struct aid *a, struct tkv_session *x, struct tkv_session *y,
                  const struct aid_tokens *t, uint32_t first, uint32_t n)
{
    const uint32_t step = scene_step(a);

    for (uint32_t i = 0; i < n; i += step)
        feed_both(a, x, y, t, first + i, step < n - i ? step : n - i);
    image_aid_compare(x, y);
}

/* What truncate can do now it can do to both. */
static uint32_t go_back(struct aid *a, struct tkv_session *x, struct tkv_session *y, uint32_t seen)
{
    const uint64_t reach = tkv_session_reach(x);

    assert_int_equal(tkv_session_reach(y), reach);
    assert_int_equal(tkv_session_truncate(x, seen - reach, &a->why), 0);
    assert_int_equal(tkv_session_truncate(y, seen - reach, &a->why), 0);
    image_aid_compare(x, y);
    return (uint32_t)reach;
}

static void copy_at(size_t scene, uint32_t n, const struct aid_tokens *t)
{
    struct image_aid *image = malloc(sizeof(*image));
    struct aid a;
    struct tkv_session *x, *y;

    assert_non_null(image);
    scene_open(&a, scene);
    x = a.session;
    scene_feed(&a, x, t, 0, n);
    image_aid_init(image);
    y = image_aid_copy(image, &a, x);
    image_aid_deinit(image);
    image_aid_compare(x, y);
    n = go_back(&a, x, y, n);
    go_on(&a, x, y, t, n, 500);
    tkv_session_destroy(&y);
    a.session = x;
    scene_close(&a);
    free(image);
}

static void copies_go_on_as_their_originals(void **state)
{
    static const uint32_t at[] = {60, 165, 401};
    struct aid a;
    struct aid_tokens t;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, MOST_TOKENS, 5);
    for (size_t i = 0; i < N_SCENES; i += next_scene())
        for (size_t j = 0; j < sizeof(at) / sizeof(at[0]); j += emulated_step(2))
            copy_at(i, at[j], &t);
    free(t.k);
}

/* Three sessions that share blocks, tables and half tiers in one arena. */
static void copy_family(size_t scene, const struct aid_tokens *t)
{
    struct image_aid *image = malloc(sizeof(*image));
    struct tkv_session *x[3], *y[3];
    struct aid a;

    assert_non_null(image);
    scene_open(&a, scene);
    x[0] = a.session;
    scene_feed(&a, x[0], t, 0, 330);
    assert_int_equal(tkv_session_fork(&x[1], x[0], &a.why), 0);
    scene_feed(&a, x[0], t, 330, 7);
    assert_int_equal(tkv_session_fork(&x[2], x[1], &a.why), 0);
    scene_feed(&a, x[1], t, 400, 90);
    image_aid_init(image);
    for (int i = 0; i < 3; i++)
        y[i] = image_aid_copy(image, &a, x[i]);
    image_aid_deinit(image);
    for (int i = 0; i < 3; i++) {
        const uint64_t was = tkv_session_shared_bytes(x[i]), is = tkv_session_shared_bytes(y[i]);

        /* Tables have other room to grow. */
        if (is < was - was / 50 || is > was + was / 50)
            fail_msg("scene %zu: session %d shared %llu bytes, now %llu", scene, i,
                     (unsigned long long)was, (unsigned long long)is);
    }
    for (int i = 0; i < 3; i++) {
        image_aid_compare(x[i], y[i]);
        go_on(&a, x[i], y[i], t, 500 + 60 * (uint32_t)i, 300);
    }
    for (int i = 0; i < 3; i++)
        tkv_session_destroy(&y[i]);
    tkv_session_destroy(&x[1]);
    tkv_session_destroy(&x[2]);
    a.session = x[0];
    scene_close(&a);
    free(image);
}

static void families_share_again(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, MOST_TOKENS, 6);
    for (size_t i = 0; i < N_SCENES; i += next_scene())
        copy_family(i, &t);
    free(t.k);
}

/* ---- hostile bytes -------------------------------------------------------------------------- */

/* One part of an image with one byte changed: refused, or a session that still works. */
struct hostile {
    struct aid *a;
    struct tkv_session *from;
    const struct aid_tokens *t;
    enum tkv_image_part part;
    uint32_t layer;
    size_t at; /* SIZE_MAX: none changed */
    uint8_t flip;
    size_t cut; /* bytes that are missing at the end */
    size_t n_taken;
};

static bool has_block(const struct tkv_head *h, uint64_t name)
{
    for (uint32_t b = 0; h->blocks && b < h->n_blocks; b++)
        if (h->blocks[b].id.place + 1 == name)
            return true;
    return false;
}

/* Is this the name of something in the original? */
static bool is_known(const struct tkv_session *s, uint64_t name)
{
    for (uint32_t i = 0; i < s->config.n_layers; i++) {
        const struct tkv_layer *l = &s->layers[i];

        if (l->halves && l->halves->id.place + 1 == name)
            return true;
        for (uint32_t h = 0; h < l->config.shape.n_kv_heads; h++)
            if (has_block(&l->heads[h], name) ||
                (l->checkpoint.is_live && has_block(&l->checkpoint.heads[h], name)))
                return true;
    }
    return false;
}

static int copy_block(void *ctx, struct tkv_arena *arena, uint64_t name, size_t bytes, bool fixed,
                      struct tkv_block_id *id, struct tkv_report *why)
{
    const struct hostile *h = ctx;
    int e;

    if (!is_known(h->from, name))
        return tkv_fail(why, TRIKV_E_VALUE, "no such block");
    e = fixed ? tkv_arena_buffer(arena, bytes, id, why) : tkv_arena_reserve(arena, bytes, 1, why);
    if (e)
        return e;
    if (!fixed)
        *id = tkv_arena_take(arena, bytes);
    memcpy(tkv_arena_at(arena, *id), tkv_arena_at(h->from->arena, (struct tkv_block_id){name - 1}),
           bytes);
    return 0;
}

/* Tokens, rounds and truncation, whose answers may be wrong or errors. */
static void use(const struct hostile *h, struct tkv_session *s)
{
    const uint32_t step = scene_step(h->a);

    h->a->session = s;
    (void)tkv_session_truncate(s, 1, &h->a->why);
    for (uint32_t i = 0; i < 70; i += step)
        for (uint32_t layer = 0; layer < s->config.n_layers; layer++)
            (void)aid_step(h->a, layer, h->t, 170 + i, step);
    (void)tkv_session_round(s, NULL, &h->a->why);
}

/* The part's bytes, changed if it is the one. */
static uint8_t *bytes_of(const struct hostile *h, enum tkv_image_part part, uint32_t layer,
                         size_t *n)
{
    uint8_t *p;

    *n = tkv_image_bytes(h->from, part, layer, NULL);
    p = malloc(*n);
    assert_non_null(p);
    tkv_image_write(h->from, part, layer, NULL, p);
    if (part == h->part && layer == h->layer) {
        if (h->at < *n)
            p[h->at] ^= h->flip;
        *n -= h->cut;
    }
    return p;
}

static int read_hostile_part(const struct hostile *h, struct tkv_session *s,
                             enum tkv_image_part part, uint32_t layer,
                             struct tkv_image_source *source)
{
    size_t n;
    uint8_t *p = bytes_of(h, part, layer, &n);
    /* Of its own size, so that reading past its end shows. */
    uint8_t *exact = malloc(n ? n : 1);
    int e;

    assert_non_null(exact);
    memcpy(exact, p, n);
    h->a->why = (struct tkv_report){0};
    e = tkv_image_read(s, part, layer, exact, n, source, &h->a->why);
    if (e)
        assert_true(h->a->why.error == e && h->a->why.text[0]);
    free(exact);
    free(p);
    return e;
}

static int open_hostile(const struct hostile *h, struct tkv_session **s)
{
    struct tkv_image_config *c;
    size_t n;
    uint8_t *p = bytes_of(h, TKV_IMAGE_CONFIG, 0, &n);
    int e = tkv_image_read_config(&c, p, n, &h->a->budget, &h->a->why);

    free(p);
    *s = NULL;
    if (e)
        return e;
    for (uint32_t i = 0; i < c->config.n_layers; i++) {
        const uint32_t of = i % AID_MAX_LAYERS;

        c->layers[i].stats = c->has_stats ? h->a->layers[of].stats : NULL;
        c->layers[i].errors = c->has_errors ? h->a->layers[of].errors : NULL;
        /* A daemon compares with the profile: its statistics are of this shape. */
        if (memcmp(&c->layers[i].shape, &h->a->shape, sizeof(h->a->shape)) != 0)
            e = TRIKV_E_GEOMETRY;
    }
    e = e ? e : tkv_image_open(s, c, NULL, &h->a->budget, &h->a->kn, &h->a->why);
    tkv_image_config_destroy(&c);
    return e;
}

/* 0 if it was taken. */
static int read_hostile(const struct hostile *h)
{
    struct tkv_image_source source = {.block = copy_block, .ctx = (void *)(uintptr_t)h};
    struct tkv_session *s;
    int e = open_hostile(h, &s);

    if (!e)
        e = read_hostile_part(h, s, TKV_IMAGE_COUNTERS, 0, &source);
    for (uint32_t i = 0; !e && i < s->config.n_layers && i < h->from->config.n_layers; i++)
        for (int part = TKV_IMAGE_STATE; !e && part < TKV_IMAGE_N_PARTS; part++)
            e = read_hostile_part(h, s, (enum tkv_image_part)part, i, &source);
    if (!e)
        e = tkv_image_finish(s, true, &h->a->why);
    if (!e && h->at != SIZE_MAX)
        use(h, s);
    tkv_image_source_release(&source);
    tkv_session_destroy(&s);
    return e;
}

static void try_byte(struct hostile *h, size_t at, uint8_t flip)
{
    const size_t before = atomic_load(&h->a->budget.used_bytes);

    h->at = at;
    h->flip = flip;
    h->n_taken += read_hostile(h) == 0;
    assert_int_equal(atomic_load(&h->a->budget.used_bytes), before);
}

static void try_part(struct hostile *h, size_t *n_tried)
{
    const size_t n = tkv_image_bytes(h->from, h->part, h->layer, NULL);

    h->cut = 0;
    for (size_t at = 0; at < n; at += (n < 200 ? 1 : n / 50) * emulated_step(3)) {
        try_byte(h, at, at % 2 ? 0x80 : 0x01);
        ++*n_tried;
    }
    h->at = SIZE_MAX;
    for (h->cut = 1; h->cut <= n; h->cut += n / 10 + 1)
        assert_int_not_equal(read_hostile(h), 0);
    h->cut = 0;
}

static void changed_bytes_are_refused_or_harmless(void **state)
{
    struct aid a;
    struct aid_tokens t;
    size_t n_tried = 0;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, 400, 7);
    for (size_t i = 0; i < N_SCENES; i += next_scene()) {
        struct hostile h = {.a = &a, .t = &t};

        scene_open(&a, i);
        scene_feed(&a, a.session, &t, 0, 170);
        h.from = a.session;
        for (int part = TKV_IMAGE_CONFIG; part < TKV_IMAGE_N_PARTS; part++) {
            h.part = (enum tkv_image_part)part;
            h.layer = part < TKV_IMAGE_STATE ? 0 : 1;
            try_part(&h, &n_tried);
        }
        a.session = h.from;
        scene_close(&a);
    }
    assert_true(n_tried > 1000 / emulated_step(3));
    free(t.k);
}

/* Over the cap there is an error, and nothing is kept. */
static void cap_holds_while_reading(void **state)
{
    struct aid a;
    struct aid_tokens t;
    struct hostile h = {.a = &a, .at = SIZE_MAX, .part = TKV_IMAGE_N_PARTS};
    size_t before;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, 400, 7);
    scene_open(&a, 0);
    scene_feed(&a, a.session, &t, 0, 300);
    h.from = a.session;
    before = atomic_load(&a.budget.used_bytes);
    a.budget.cap_bytes = 0;
    for (size_t more = 0; more < before; more += before / 16 + 1) {
        a.budget.cap_bytes = before + more;
        assert_int_equal(read_hostile(&h), TRIKV_E_MEMORY_CAP);
        assert_int_equal(atomic_load(&a.budget.used_bytes), before);
    }
    a.session = h.from;
    scene_close(&a);
    free(t.k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_go_on_as_their_originals),
        cmocka_unit_test(families_share_again),
        cmocka_unit_test(changed_bytes_are_refused_or_harmless),
        cmocka_unit_test(cap_holds_while_reading),
    };

    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
