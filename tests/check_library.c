/*
 * What the real trikvd says through libtrikv besides attention: errors that name the fault,
 * statistics that add up, the compressed cache itself.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "core/codec.h"
#include "core/kernels.h"
#include "proto/shm_layout.h"
#include "tests/cpu.h"
#include "tests/service.h"

static void expect(struct trikv_client *c, int got, int want, const char *text)
{
    if (got != want || !strstr(trikv_last_error(c), text))
        fail_msg("want error %d with \"%s\", got %d: %s", want, text, got, trikv_last_error(c));
}

static void bad_tensors_change_nothing(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct trikv_stats stats;
    struct service_data d;
    struct trikv_step t;

    (void)state;
    service_data_init(&d, 0);
    t = service_step(&d, 0, 0, 10);
    d.k[3 * 64 + 17] = NAN;
    expect(c, trikv_append_attend(s, &t), TRIKV_E_VALUE, "K[token 3][head 0][17]");
    d.k[3 * 64 + 17] = 0;
    d.positions[5] = d.positions[4];
    expect(c, trikv_append(s, &t), TRIKV_E_POSITION, "");
    assert_int_equal(trikv_stats(s, &stats), 0);
    assert_int_equal(stats.n_seen, 0);
    d.positions[5] = d.positions[4] + 1;
    assert_int_equal(trikv_append_attend(s, &t), 0); /* and the connection lives */
    trikv_disconnect(&c);
    service_data_deinit(&d);
}

static void bad_options_are_named(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = NULL;
    struct trikv_session_options o = service_options("tq4");

    (void)state;
    o.profile = "no-such-profile";
    expect(c, trikv_open(c, &o, &s), TRIKV_E_NO_PROFILE, "no-such-profile");
    o = service_options("tq4");
    o.method = "triattention"; /* and no profile */
    assert_int_not_equal(trikv_open(c, &o, &s), 0);
    assert_true(strstr(trikv_last_error(c), "profile"));
    o = service_options("tq99");
    expect(c, trikv_open(c, &o, &s), TRIKV_E_ARGUMENT, "tq99");
    assert_null(s);
    trikv_disconnect(&c);
}

/* What a session of 4-bit codes says of its size must hold together. */
static void stats_add_up(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct trikv_stats stats;
    double values_k = 0, values_v = 0; /* that are kept */
    double fp16_bytes = 0, bytes, windowed;

    (void)state;
    for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
        struct service_data d;

        service_data_init(&d, layer);
        service_feed(c, s, &d, layer, 64);
        service_data_deinit(&d);
    }
    assert_int_equal(trikv_stats(s, &stats), 0);
    /* n_kept is the mean of 2 + 1 + 4 heads, of which the last layer's keep their window. */
    windowed = (stats.n_kept * 7 - 3 * SERVICE_TOKENS) / 4;
    assert_true(windowed >= 100 && windowed < 100 + 64 + 128 && windowed == floor(windowed));
    for (uint32_t layer = 0; layer < SERVICE_LAYERS; layer++) {
        const struct trikv_layer *l = &service_layers[layer];
        const uint32_t window = l->window_tokens;

        values_k += (window ? windowed : SERVICE_TOKENS) * l->n_kv_heads * l->head_dim_k;
        values_v += (window ? windowed : SERVICE_TOKENS) * l->n_kv_heads * l->head_dim_v;
        fp16_bytes += (window ? window : SERVICE_TOKENS) * 2.0 * l->n_kv_heads *
                      (l->head_dim_k + l->head_dim_v);
    }
    assert_int_equal(stats.session, trikv_session_id(s));
    assert_int_equal(stats.n_seen, SERVICE_TOKENS);
    assert_true((double)stats.fp16_bytes == fp16_bytes);
    /* Honest: the bits of all values are all the bytes there are. */
    bytes = (stats.bits_k * values_k + stats.bits_v * values_v) / 8;
    assert_true(fabs(bytes - (double)stats.resident_bytes) < 1);
    assert_true(stats.bits_k > 4 && stats.bits_v > 4);
    assert_true(stats.resident_bytes >= stats.arena_bytes && stats.arena_bytes > 0);
    assert_true(stats.slack_bytes < stats.arena_bytes);
    assert_true((double)stats.n_evicted == 4 * (SERVICE_TOKENS - windowed));
    assert_int_equal(stats.n_rounds, 0); /* nothing was to be chosen */
    trikv_disconnect(&c);
}

/* Squared errors of decoded vectors, added up. */
struct error_sum {
    double difference;
    double size;
};

/* Add one vector; none may be far off. */
static void add_error(struct error_sum *sum, const float *want, const float *got, size_t n)
{
    double difference = 0;
    double size = 0;

    for (size_t i = 0; i < n; i++) {
        difference += ((double)want[i] - got[i]) * ((double)want[i] - got[i]);
        size += (double)want[i] * want[i];
    }
    if (!(difference < 0.09 * size))
        fail_msg("decoded with error %g of %g", sqrt(difference), sqrt(size));
    sum->difference += difference;
    sum->size += size;
}

/* The index of a position among those of service_data_init. */
static size_t token_at(const struct service_data *d, int64_t position)
{
    for (size_t t = 0; t < SERVICE_TOKENS; t++) {
        if (d->positions[t] == position)
            return t;
    }
    fail_msg("no token has position %lld", (long long)position);
    return 0;
}

/* Decode a block and compare each key and value with what was appended. */
static void check_block(const struct service_data *d, const struct trikv_table_entry *e,
                        const uint8_t *block, const struct tkv_kernels *kn, struct error_sum *sum)
{
    const struct trikv_layer *l = d->layer;
    struct tkv_coder k, v;
    float x[64];

    assert_null(tkv_coder_init(&k, tkv_codec_by_id(e->codec_k), e->head_dim_k, TKV_ROTATION_SEED));
    assert_null(tkv_coder_init(&v, tkv_codec_by_id(e->codec_v), e->head_dim_v, TKV_ROTATION_SEED));
    assert_int_equal(tkv_align(e->k_bytes, 64), tkv_align(k.k_block_bytes, 64));
    assert_int_equal(tkv_align(e->v_bytes, 64), tkv_align(v.v_block_bytes, 64));
    for (size_t i = 0; i < e->n_tokens; i++) {
        uint16_t distance;
        size_t row;

        memcpy(&distance, block + e->k_bytes + e->v_bytes + 2 * i, 2);
        row = token_at(d, (int64_t)e->first_position + distance) * l->n_kv_heads + e->kv_head;
        tkv_decode_key(&k, kn, block, i, x);
        add_error(sum, d->k + row * l->head_dim_k, x, l->head_dim_k);
        tkv_decode_value(&v, kn, block + e->k_bytes, i, x);
        add_error(sum, d->v + row * l->head_dim_v, x, l->head_dim_v);
    }
}

static const uint8_t *map_arena(const struct trikv_handle *h)
{
    const uint8_t *arena = mmap(NULL, h->arena_bytes, PROT_READ, MAP_SHARED, h->fd, 0);

    assert_true(arena != MAP_FAILED);
    /* Read-only means read-only. */
    assert_true(mmap(NULL, h->arena_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, h->fd, 0) ==
                MAP_FAILED);
    return arena;
}

static void handles_show_the_cache(void **state)
{
    struct trikv_client *c = service_connect(0);
    struct trikv_session *s = service_open(c, "tq4");
    struct error_sum sum = {0};
    struct tkv_kernels kn;
    struct service_data d;
    struct trikv_handle h;
    const struct trikv_table_entry *e;
    const uint8_t *arena;
    size_t n_tokens = 0;

    (void)state;
    tkv_kernels_init(&kn, cpu_flags());
    service_data_init(&d, 0);
    service_feed(c, s, &d, 0, 100);
    assert_int_equal(trikv_round(s), 0);
    assert_int_equal(trikv_handle(s, &h), 0);
    arena = map_arena(&h);
    e = (const struct trikv_table_entry *)((const struct trikv_table_header *)h.table + 1);
    for (uint32_t i = 0; i < h.n_blocks; i++) {
        assert_int_equal(e[i].layer, 0);
        assert_in_range(e[i].kv_head, 0, 1);
        check_block(&d, &e[i], arena + e[i].block_offset, &kn, &sum);
        n_tokens += e[i].n_tokens;
    }
    /* After a round only pinned and recent tokens are not in blocks; two KV heads. */
    assert_int_equal(n_tokens, 2 * (SERVICE_TOKENS - 4 - 64));
    /* The 0.00931 that four bits cost at d = 128, and a little for scales as halves. */
    assert_true(sum.difference > 0 && sum.difference < 0.0098 * sum.size);
    munmap((void *)(uintptr_t)arena, h.arena_bytes);
    trikv_handle_release(&h);
    assert_int_equal(h.fd, -1);
    trikv_disconnect(&c);
    service_data_deinit(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_tensors_change_nothing),
        cmocka_unit_test(bad_options_are_named),
        cmocka_unit_test(stats_add_up),
        cmocka_unit_test(handles_show_the_cache),
    };

    return cmocka_run_group_tests_name("library", tests, service_start, service_stop);
}
