/*
 * From a session to a map and back to attention, without a daemon between: sessions whose KV heads have codecs
 * of their own give the same bits on both sides, and a payload that is wrong is refused or harmless.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/map.h"
#include "store/session_priv.h"
#include "tests/session_aid.h"

enum { N_TOKENS = 900, N_LAYERS = 3, N_HEADS = 2, N_QUERIES = 9, N_MUTATIONS = 4000 };

/* Heads that differ in what bits and windows cost them, so that they get several codecs. */
static void open_planned(struct aid *a, float *errors)
{
    aid_init(a, "tq4");
    a->config.n_layers = N_LAYERS;
    a->config.method = TKV_METHOD_DEFAULT;
    a->config.budget_bytes = (uint64_t)N_TOKENS * N_LAYERS * N_HEADS * 128 * 2 / 3;
    a->config.max_tokens = N_TOKENS;
    for (uint32_t i = 0; i < N_LAYERS * N_HEADS; i++) {
        float *e = errors + i * TKV_PLAN_ERRORS;

        for (uint32_t t = 0; t < TKV_PLAN_TIERS; t++)
            e[t] = (i % 2 ? 1e-4f : 1.0f) / (float)(1u << 2 * t);
        for (uint32_t r = 0; r < TKV_PLAN_REACHES; r++)
            e[TKV_PLAN_TIERS + r] = (i % 2 ? 1e-2f * (float)i : 50.0f) / (float)(1u << 2 * r);
    }
    for (uint32_t i = 0; i < N_LAYERS; i++)
        a->layers[i].errors = errors + (size_t)i * N_HEADS * TKV_PLAN_ERRORS;
    assert_int_equal(aid_open(a), 0);
}

/* The map of a session, as a MAP reply carries it, and a reader of it on the session's own arena. */
struct mapped {
    uint8_t *payload;
    size_t bytes;
    struct trikv_map map;
};

static void make_map(struct aid *a, struct mapped *m)
{
    assert_int_equal(tkv_session_pin(a->session, 77, &a->why), 0);
    *m = (struct mapped){.bytes = tkv_session_map_bytes(a->session)};
    m->payload = malloc(m->bytes);
    assert_non_null(m->payload);
    tkv_session_map(a->session, m->payload);
}

static const char *read_map(struct aid *a, struct mapped *m, const void *payload, size_t bytes)
{
    m->map = (struct trikv_map){.kn = a->kn,
                                .base = tkv_arena_at(a->session->arena, (struct tkv_block_id){0}),
                                .arena_bytes = tkv_arena_capacity_bytes(a->session->arena)};
    return tkv_map_read(&m->map, payload, bytes);
}

static void attend_mapped(const struct trikv_map *m, uint32_t layer, const struct tkv_step *step)
{
    const struct tkv_cache *c = &m->caches[layer];
    const size_t bytes = tkv_align(tkv_cache_attend_bytes(c, step->n_tokens), 64);
    const struct tkv_queries q = {.n_tokens = step->n_tokens,
                                  .dtype = TKV_F32,
                                  .positions = step->positions,
                                  .q = step->q,
                                  .out = step->out,
                                  .lse = step->lse};
    void *memory = aligned_alloc(64, bytes);

    assert_non_null(memory);
    tkv_cache_attend(c, &q, memory, NULL);
    free(memory);
}

static void fill(struct aid *a, const struct aid_tokens *t)
{
    for (uint32_t at = 0; at < N_TOKENS; at += 50)
        for (uint32_t l = 0; l < N_LAYERS; l++)
            if (aid_step(a, l, t, at, 50))
                fail_msg("%s", a->why.text);
}

static uint32_t count_codecs(const struct tkv_layer *l)
{
    uint32_t tiers = 0;

    for (uint32_t h = 0; h < N_HEADS; h++)
        for (uint32_t b = 0; b < l->heads[h].n_blocks; b++)
            tiers |= 1u << l->heads[h].blocks[b].tier;
    return (uint32_t)__builtin_popcount(tiers);
}

static void planned_sessions_have_maps(void **state)
{
    static float want[N_QUERIES * 4 * 64], got[N_QUERIES * 4 * 64];
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    float lse[N_QUERIES * 4], mapped_lse[N_QUERIES * 4];
    int32_t positions[N_QUERIES];
    struct aid_tokens t;
    struct mapped m;
    struct aid a;
    uint32_t most = 0;

    (void)state;
    open_planned(&a, errors);
    t = aid_tokens(&a, N_TOKENS, 5);
    fill(&a, &t);
    make_map(&a, &m);
    assert_null(read_map(&a, &m, m.payload, m.bytes));
    for (int32_t i = 0; i < N_QUERIES; i++)
        positions[i] = N_TOKENS + i;
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        struct tkv_step step = {.layer = l,
                                .n_tokens = N_QUERIES,
                                .positions = positions,
                                .q = t.q,
                                .out = want,
                                .lse = lse};

        assert_int_equal(tkv_session_attend(a.session, &step, NULL, &a.why), 0);
        step.out = got;
        step.lse = mapped_lse;
        attend_mapped(&m.map, l, &step);
        assert_memory_equal(want, got, sizeof(want));
        assert_memory_equal(lse, mapped_lse, sizeof(lse));
        most =
            count_codecs(&a.session->layers[l]) > most ? count_codecs(&a.session->layers[l]) : most;
    }
    assert_true(most > 1); /* else this has shown nothing */
    tkv_map_forget(&m.map);
    free(m.payload);
    free(t.k);
    aid_close(&a);
}

static void wrong_payloads_are_harmless(void **state)
{
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    struct rng rng = {6};
    uint32_t n_refused = 0;
    struct aid_tokens t;
    struct mapped m;
    struct aid a;
    uint8_t *copy;

    (void)state;
    open_planned(&a, errors);
    t = aid_tokens(&a, N_TOKENS, 5);
    fill(&a, &t);
    make_map(&a, &m);
    copy = malloc(m.bytes);
    assert_non_null(copy);
    for (size_t n = 0; n < m.bytes; n += 61) { /* cut short */
        assert_non_null(read_map(&a, &m, m.payload, n));
        tkv_map_forget(&m.map);
    }
    for (uint32_t i = 0; i < N_MUTATIONS; i++) {
        memcpy(copy, m.payload, m.bytes);
        for (uint64_t k = 0; k <= i % 3; k++)
            copy[rng_next(&rng) % m.bytes] = (uint8_t)rng_next(&rng);
        n_refused += read_map(&a, &m, copy, m.bytes) != NULL;
        tkv_map_forget(&m.map);
    }
    assert_true(n_refused > N_MUTATIONS / 10); /* many numbers in it may be any */
    free(copy);
    free(m.payload);
    free(t.k);
    aid_close(&a);
}

/* Blocks and layouts that are nowhere are not followed. */
static void wrong_layouts_are_refused(void **state)
{
    float errors[N_LAYERS * N_HEADS * TKV_PLAN_ERRORS];
    struct trikv_map_header *header;
    struct trikv_map_layer *layers;
    struct trikv_map_layout *layouts;
    struct aid_tokens t;
    struct mapped m;
    struct aid a;

    (void)state;
    open_planned(&a, errors);
    t = aid_tokens(&a, N_TOKENS, 5);
    fill(&a, &t);
    make_map(&a, &m);
    header = (struct trikv_map_header *)(void *)m.payload;
    layers = (struct trikv_map_layer *)(void *)(header + 1);
    layouts =
        (struct trikv_map_layout *)(void *)(m.payload + m.bytes -
                                            tkv_align(header->n_layouts * sizeof(*layouts), 64));
    assert_true(header->n_layouts > 0);
    layers[0].n_layouts--; /* a block of the last one, or too many for all */
    assert_non_null(read_map(&a, &m, m.payload, m.bytes));
    tkv_map_forget(&m.map);
    layers[0].n_layouts += 2;
    assert_non_null(read_map(&a, &m, m.payload, m.bytes));
    tkv_map_forget(&m.map);
    layers[0].n_layouts--;
    layouts[0].codec_k = TKV_CODEC_F16; /* not in the rotated domain */
    assert_non_null(read_map(&a, &m, m.payload, m.bytes));
    tkv_map_forget(&m.map);
    layouts[0].codec_k = 0;
    assert_string_equal(read_map(&a, &m, m.payload, m.bytes),
                        "a layer has a codec that is not known here");
    tkv_map_forget(&m.map);
    free(m.payload);
    free(t.k);
    aid_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(planned_sessions_have_maps),
        cmocka_unit_test(wrong_payloads_are_harmless),
        cmocka_unit_test(wrong_layouts_are_refused),
    };

    return cmocka_run_group_tests_name("map_read", tests, NULL, NULL);
}
