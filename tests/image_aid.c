#include "tests/image_aid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/session_priv.h"

static int copy_block(void *ctx, struct tkv_arena *arena, uint64_t name, size_t bytes, bool fixed,
                      struct tkv_block_id *id, struct tkv_report *why)
{
    struct image_aid *a = ctx;
    size_t i = 0;

    (void)arena;
    while (i < a->n && a->blocks[i].name != name)
        i++;
    if (i == a->n) {
        assert_true(a->n < IMAGE_AID_MAX_BLOCKS);
        a->blocks[a->n].name = name;
        if (fixed) {
            assert_int_equal(tkv_arena_buffer(a->to, bytes, &a->blocks[i].id, why), 0);
        } else {
            assert_int_equal(tkv_arena_reserve(a->to, bytes, 1, why), 0);
            a->blocks[i].id = tkv_arena_take(a->to, bytes);
        }
        memcpy(tkv_arena_at(a->to, a->blocks[i].id),
               tkv_arena_at(a->from->arena, (struct tkv_block_id){name - 1}), bytes);
        a->n++;
    }
    *id = a->blocks[i].id;
    tkv_arena_ref(a->to, *id);
    return 0;
}

void image_aid_init(struct image_aid *a)
{
    memset(a, 0, sizeof(*a));
    a->source.block = copy_block;
    a->source.ctx = a;
}

void image_aid_deinit(struct image_aid *a)
{
    for (size_t i = 0; i < a->n; i++)
        tkv_arena_unref(a->to, a->blocks[i].id);
    tkv_image_source_release(&a->source);
    tkv_session_destroy(&a->empty);
    tkv_arena_destroy(&a->to);
}

static void *write_part(const struct tkv_session *s, enum tkv_image_part part, uint32_t layer,
                        size_t *bytes)
{
    void *p;

    *bytes = tkv_image_bytes(s, part, layer, NULL);
    assert_int_equal(*bytes % 8, 0);
    p = malloc(*bytes);
    assert_non_null(p);
    tkv_image_write(s, part, layer, NULL, p);
    return p;
}

static void read_part(struct image_aid *a, struct tkv_session *to, enum tkv_image_part part,
                      uint32_t layer)
{
    struct tkv_report why = {0};
    size_t bytes;
    void *p = write_part(a->from, part, layer, &bytes);

    if (tkv_image_read(to, part, layer, p, bytes, &a->source, &why))
        fail_msg("%s", why.text);
    free(p);
}

static struct tkv_session *open_again(struct image_aid *a, const struct aid *of)
{
    struct tkv_session *s = NULL;
    struct tkv_budget *budget = a->from->budget;
    struct tkv_image_config *c = NULL;
    struct tkv_report why = {0};
    size_t bytes;
    void *p = write_part(a->from, TKV_IMAGE_CONFIG, 0, &bytes);

    if (tkv_image_read_config(&c, p, bytes, budget, &why))
        fail_msg("%s", why.text);
    free(p);
    for (uint32_t i = 0; i < c->config.n_layers; i++) {
        c->layers[i].stats = c->has_stats ? of->layers[i].stats : NULL;
        c->layers[i].errors = c->has_errors ? of->layers[i].errors : NULL;
    }
    if (a->empty && c->digest == a->digest) {
        assert_int_equal(tkv_session_fork(&s, a->empty, &why), 0);
    } else if (tkv_image_open(&s, c, a->to, budget, a->from->kn, &why)) {
        fail_msg("%s", why.text);
    } else if (!a->empty) {
        a->empty = s;
        a->to = tkv_arena_share(s->arena);
        a->digest = c->digest;
        assert_int_equal(tkv_session_fork(&s, a->empty, &why), 0);
    }
    tkv_image_config_destroy(&c);
    return s;
}

struct tkv_session *image_aid_copy(struct image_aid *a, const struct aid *of,
                                   const struct tkv_session *from)
{
    struct tkv_report why = {0};
    struct tkv_session *s;

    a->from = from;
    s = open_again(a, of);
    read_part(a, s, TKV_IMAGE_COUNTERS, 0);
    for (uint32_t i = 0; i < from->config.n_layers; i++) {
        read_part(a, s, TKV_IMAGE_STATE, i);
        read_part(a, s, TKV_IMAGE_TABLES, i);
        read_part(a, s, TKV_IMAGE_MASS, i);
        read_part(a, s, TKV_IMAGE_PROBES, i);
    }
    if (tkv_image_finish(s, true, &why))
        fail_msg("%s", why.text);
    return s;
}

/* ---- comparing ------------------------------------------------------------------------------ */

static void compare_heads(const struct tkv_session *a, const struct tkv_session *b,
                          const struct tkv_layer *la, const struct tkv_layer *lb,
                          const struct tkv_head *ha, const struct tkv_head *hb)
{
    assert_int_equal(ha->n_blocks, hb->n_blocks);
    assert_int_equal(ha->n_cold, hb->n_cold);
    for (uint32_t i = 0; ha->blocks && i < ha->n_blocks; i++) {
        const struct tkv_block_layout *layout = tkv_layer_layout(la, &ha->blocks[i]);
        uint8_t *x = tkv_arena_at(a->arena, ha->blocks[i].id);
        uint8_t *y = tkv_arena_at(b->arena, hb->blocks[i].id);

        assert_int_equal(ha->blocks[i].n_tokens, hb->blocks[i].n_tokens);
        assert_int_equal(ha->blocks[i].first_position, hb->blocks[i].first_position);
        assert_int_equal(layout->bytes, tkv_layer_layout(lb, &hb->blocks[i])->bytes);
        assert_memory_equal(x, y, layout->positions_offset);
        assert_memory_equal(tkv_block_positions(layout, x), tkv_block_positions(layout, y),
                            ha->blocks[i].n_tokens * sizeof(uint16_t));
        for (uint32_t g = 0; g < layout->n_score_heads; g++)
            assert_memory_equal(tkv_block_scores(layout, x, g), tkv_block_scores(layout, y, g),
                                ha->blocks[i].n_tokens);
    }
}

static void compare_layers(const struct tkv_session *a, const struct tkv_session *b, uint32_t layer)
{
    const struct tkv_layer *la = &a->layers[layer];
    const struct tkv_layer *lb = &b->layers[layer];

    assert_int_equal(la->n_seen, lb->n_seen);
    assert_int_equal(la->n_rounds, lb->n_rounds);
    assert_int_equal(la->last_position, lb->last_position);
    assert_int_equal(la->first_query, lb->first_query);
    assert_memory_equal(&la->gate, &lb->gate, sizeof(la->gate));
    assert_int_equal(la->floor.n_seen, lb->floor.n_seen);
    assert_int_equal(la->tail.n, lb->tail.n);
    assert_int_equal(la->pinned.n, lb->pinned.n);
    assert_int_equal(la->checkpoint.is_live, lb->checkpoint.is_live);
    for (uint32_t h = 0; h < la->config.shape.n_kv_heads; h++) {
        compare_heads(a, b, la, lb, &la->heads[h], &lb->heads[h]);
        if (la->checkpoint.is_live)
            compare_heads(a, b, la, lb, &la->checkpoint.heads[h], &lb->checkpoint.heads[h]);
    }
}

void image_aid_compare(const struct tkv_session *a, const struct tkv_session *b)
{
    assert_int_equal(a->config.n_layers, b->config.n_layers);
    assert_int_equal(a->n_evicted, b->n_evicted);
    for (uint32_t i = 0; i < a->config.n_layers; i++)
        compare_layers(a, b, i);
}
