/* libtrikv against a fake daemon: what OPEN says, and which handles are believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/fake_talk.h"

#include "proto/shm_layout.h"
#include "proto/trikv.pb-c.h"

static void serve_open(int fd, void *arg)
{
    struct fake_request q;

    if (fake_answer_hello(fd) && fake_answer_open(fd, &q))
        *(Trikv__OpenRequest **)arg =
            trikv__open_request__unpack(NULL, q.frame.header_bytes, q.message);
    fake_request_deinit(&q);
}

static Trikv__OpenRequest *message_of_open(const struct trikv_session_options *o)
{
    Trikv__OpenRequest *m = NULL;
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;

    fake_start(&fake, serve_open, &m);
    assert_int_equal(fake_connect(&c, 2000, 0), 0);
    assert_int_equal(trikv_open(c, o, &s), 0);
    trikv_disconnect(&c);
    fake_join(&fake);
    assert_non_null(m);
    return m;
}

static void unsaid_options_stay_unsaid(void **state)
{
    const float sinks[] = {1, 2};
    const struct trikv_layer layer = {
        .n_q_heads = N_Q, .n_kv_heads = N_KV, .head_dim_k = DIM, .head_dim_v = DIM, .sinks = sinks};
    struct trikv_session_options o = {.n_layers = 7, .layers = &layer, .same_layers = 1};
    Trikv__OpenRequest *m;

    (void)state;
    /* A caller built when the struct ended with same_layers: zeros after it are not its own. */
    o.size = offsetof(struct trikv_session_options, profile);
    m = message_of_open(&o);
    assert_null(m->policy);
    assert_null(m->profile);
    assert_int_equal(m->n_layers, 1);
    assert_int_equal(m->layers[0]->repeat, 7);
    assert_int_equal(m->layers[0]->n_sinks, N_Q);
    assert_true(m->layers[0]->sinks[1] == 2);
    assert_false(m->layers[0]->has_scale);
    trikv__open_request__free_unpacked(m, NULL);

    o.size = sizeof(o);
    o.codec_k = "tq3";
    o.pinned_tokens = -1;
    o.normalize_scores = 0;
    m = message_of_open(&o);
    assert_string_equal(m->policy->codec_k, "tq3");
    assert_true(m->policy->has_recent_tokens && m->policy->recent_tokens == 0);
    assert_false(m->policy->has_pinned_tokens);
    assert_true(m->policy->has_normalize_scores && !m->policy->normalize_scores);
    trikv__open_request__free_unpacked(m, NULL);
}

struct table {
    struct trikv_table_header header;
    struct trikv_table_entry entries[2];
};

static struct table good_table(void)
{
    struct table t = {.header = {.magic = TRIKV_SHM_MAGIC,
                                 .version = TRIKV_SHM_VERSION,
                                 .generation = 5,
                                 .arena_bytes = 4096,
                                 .n_entries = 2,
                                 .entry_bytes = sizeof(struct trikv_table_entry)}};

    for (uint16_t i = 0; i < 2; i++)
        t.entries[i] = (struct trikv_table_entry){.block_offset = i * 2048u,
                                                  .block_bytes = 2048,
                                                  .k_bytes = 1000,
                                                  .v_bytes = 1000,
                                                  .n_tokens = 64};
    return t;
}

static int handle_with(const struct table *t, size_t table_bytes, int arena_fd)
{
    Trikv__HandleReply m = TRIKV__HANDLE_REPLY__INIT;
    struct fake_raw a = {.pass_fd = arena_fd, .n_fds = arena_fd >= 0, .after_open = true};
    struct trikv_client *c = NULL;
    struct trikv_session *s = NULL;
    struct trikv_handle h;
    int e;

    m.generation = 5;
    m.arena_bytes = 4096;
    m.n_blocks = 2;
    a.frame = fake_frame_of(TRIKV_HANDLE | TRIKV_REPLY, 3, &m.base, t, table_bytes);
    fake_set_u32(&a.frame, 36, a.n_fds);
    fake_frame_reseal(&a.frame);
    a.n_bytes = a.frame.n_bytes;
    fake_start(&fake, fake_serve_raw, &a);
    fake_open_session(&c, &s, 2000, 0);
    e = trikv_handle(s, &h);
    if (!e)
        assert_memory_equal(h.table, t, table_bytes);
    else
        assert_int_equal(h.fd, -1);
    trikv_handle_release(&h);
    trikv_close(&s);
    trikv_disconnect(&c);
    fake_join(&fake);
    free(a.frame.bytes);
    return e;
}

static int arena(off_t bytes, int seals)
{
    const int fd = memfd_create("arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    assert_int_equal(ftruncate(fd, bytes), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void spoil(struct table *t, int how)
{
    switch (how) {
    case 0: t->header.magic++; break;
    case 1: t->header.version++; break;
    case 2: t->header.generation++; break;
    case 3: t->header.arena_bytes++; break;
    case 4: t->header.n_entries = 0x10000000; break;
    case 5: t->header.entry_bytes = 0; break;
    case 6: t->entries[1].block_offset = 4096; break;
    case 7: t->entries[1].block_offset = UINT64_MAX - 63; break;
    case 8: t->entries[1].block_bytes = UINT32_MAX; break;
    case 9: t->entries[0].block_offset = 1; break;
    case 10: t->entries[0].k_bytes = 2049; break;
    case 11: t->entries[0].v_bytes = UINT32_MAX - 500; break;
    case 12: t->entries[0].n_tokens = 0; break;
    default: t->entries[0].n_tokens = 65; break;
    }
}

static void handles_are_checked(void **state)
{
    const int good = arena(4096, F_SEAL_SHRINK);
    const int loose = arena(4096, F_SEAL_GROW);
    const int small = arena(4095, F_SEAL_SHRINK);
    struct table t = good_table();
    const unsigned n_before = fake_count_fds();

    (void)state;
    assert_int_equal(handle_with(&t, sizeof(t), good), 0);
    assert_int_equal(handle_with(&t, sizeof(t), loose), TRIKV_E_PROTOCOL);
    assert_int_equal(handle_with(&t, sizeof(t), small), TRIKV_E_PROTOCOL);
    assert_int_equal(handle_with(&t, sizeof(t), fake.listen_fd), TRIKV_E_PROTOCOL);
    assert_int_equal(handle_with(&t, sizeof(t), -1), TRIKV_E_PROTOCOL);
    for (size_t n = 0; n < sizeof(t); n += 16)
        assert_int_equal(handle_with(&t, n, good), TRIKV_E_PROTOCOL);
    for (int how = 0; how < 14; how++) {
        t = good_table();
        spoil(&t, how);
        assert_int_equal(handle_with(&t, sizeof(t), good), TRIKV_E_PROTOCOL);
    }
    assert_int_equal(fake_count_fds(), n_before);
    close(good);
    close(loose);
    close(small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unsaid_options_stay_unsaid),
        cmocka_unit_test(handles_are_checked),
    };

    return cmocka_run_group_tests_name("client_open", tests, fake_setup, fake_teardown);
}
