/* Snapshots in files: sessions come back to the bit and go on as they would have; a file that was changed
 * or cut anywhere is refused; over the cap nothing is kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/errors.h"
#include "store/pack.h"
#include "store/session_priv.h"
#include "store/snapshot.h"
#include "tests/emulated.h"
#include "tests/image_aid.h"
#include "tests/scenes.h"

enum { N_TOKENS = 1100 };

/* ---- files ---------------------------------------------------------------------------------- */

static int open_directory(char *path)
{
    int fd;

    strcpy(path, "/tmp/trikv-snapshot.XXXXXX");
    assert_non_null(mkdtemp(path));
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static void close_directory(int fd, const char *path)
{
    (void)unlinkat(fd, "a", 0);
    close(fd);
    assert_int_equal(rmdir(path), 0); /* nothing else was left in it */
}

static int save(int directory, struct tkv_budget *budget, const struct tkv_session *const *s,
                uint32_t n, uint64_t *file_bytes, struct tkv_report *why)
{
    struct tkv_pack_writer *w;
    int e = tkv_pack_create(&w, directory, "a", budget, why);
    const struct tkv_snapshot_sink sink = {tkv_pack_write, w};

    e = e ? e : tkv_snapshot_write(&sink, s, n, "meta", 4, why);
    e = e ? e : tkv_pack_commit(w, file_bytes, why);
    tkv_pack_writer_destroy(&w);
    return e;
}

static void give_profile(const struct aid *a, struct tkv_snapshot *s)
{
    for (uint32_t i = 0; i < s->n_sessions; i++)
        for (uint32_t l = 0; l < s->configs[i]->config.n_layers; l++) {
            const struct tkv_image_config *c = s->configs[i];
            const uint32_t of = l % AID_MAX_LAYERS;

            c->layers[l].stats = c->has_stats ? a->layers[of].stats : NULL;
            c->layers[l].errors = c->has_errors ? a->layers[of].errors : NULL;
        }
}

static int load(int fd, struct aid *a, struct tkv_session **sessions, struct tkv_report *why)
{
    struct tkv_pack_reader *r;
    struct tkv_snapshot *s = NULL;
    struct tkv_snapshot_source source = {tkv_pack_read, NULL};
    int e = tkv_pack_open(&r, fd, &a->budget, why);

    if (e) {
        close(fd);
        return e;
    }
    source.ctx = r;
    e = tkv_snapshot_open(&s, &source, &a->budget, why);
    if (!e) {
        assert_int_equal(s->meta_bytes, 4);
        assert_memory_equal(s->meta, "meta", 4);
        give_profile(a, s);
        e = tkv_snapshot_read(s, &a->kn, sessions, why);
    }
    e = e ? e : tkv_pack_end(r, why);
    tkv_snapshot_close(&s);
    tkv_pack_reader_destroy(&r);
    return e;
}

static void round_trip(struct aid *a, struct tkv_session *const *from, struct tkv_session **to,
                       uint32_t n)
{
    char path[64];
    const int directory = open_directory(path);
    struct tkv_report why = {0};
    uint64_t file_bytes = 0;
    struct stat st;
    int fd;

    if (save(directory, &a->budget, (const struct tkv_session *const *)from, n, &file_bytes, &why))
        fail_msg("%s", why.text);
    fd = openat(directory, "a", O_RDONLY | O_CLOEXEC);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, file_bytes);
    assert_int_equal(st.st_mode & 0777, 0600);
    if (load(fd, a, to, &why))
        fail_msg("%s", why.text);
    close_directory(directory, path);
}

/* ---- round trips ---------------------------------------------------------------------------- */

static void feed_both(struct aid *a, struct tkv_session *x, struct tkv_session *y,
                      struct aid_tokens *t, uint32_t first, uint32_t n)
{
    const size_t n_out = (size_t)a->shape.n_q_heads * (a->shape.head_dim_v + 1) * N_TOKENS;
    float *out = malloc(n_out * sizeof(*out));

    assert_non_null(out);
    scene_feed(a, x, t, first, n);
    memcpy(out, t->out, n_out * sizeof(*out));
    memset(t->out, 0, n_out * sizeof(*out));
    scene_feed(a, y, t, first, n);
    for (uint32_t i = first; i < first + n; i++)
        for (size_t d = 0; d < (size_t)a->shape.n_q_heads * a->shape.head_dim_v; d++) {
            const size_t at = (size_t)i * a->shape.n_q_heads * a->shape.head_dim_v + d;

            assert_memory_equal(out + at, t->out + at, sizeof(float));
        }
    free(out);
}

static void sessions_come_back_and_go_on(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, N_TOKENS, 9);
    for (size_t i = 0; i < N_SCENES; i += emulated_step(8)) {
        struct tkv_session *x, *y;

        scene_open(&a, i);
        x = a.session;
        scene_feed(&a, x, &t, 0, 401);
        round_trip(&a, &x, &y, 1);
        image_aid_compare(x, y);
        feed_both(&a, x, y, &t, 401, 500);
        image_aid_compare(x, y);
        tkv_session_destroy(&y);
        a.session = x;
        scene_close(&a);
    }
    free(t.k);
}

/* Blocks of a family stand once in its file, and once in memory when it is back. */
static void families_come_back_sharing(void **state)
{
    struct aid a;
    struct aid_tokens t;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, N_TOKENS, 10);
    for (size_t i = 0; i < N_SCENES; i += emulated_step(8)) {
        struct tkv_session *x[3], *y[3];

        scene_open(&a, i);
        x[0] = a.session;
        scene_feed(&a, x[0], &t, 0, 330);
        assert_int_equal(tkv_session_fork(&x[1], x[0], &a.why), 0);
        scene_feed(&a, x[0], &t, 330, 7);
        assert_int_equal(tkv_session_fork(&x[2], x[1], &a.why), 0);
        round_trip(&a, x, y, 3);
        for (int j = 0; j < 3; j++) {
            const uint64_t was = tkv_session_shared_bytes(x[j]);
            const uint64_t is = tkv_session_shared_bytes(y[j]);

            assert_true(was - was / 50 <= is && is <= was + was / 50);
            image_aid_compare(x[j], y[j]);
        }
        for (int j = 0; j < 3; j++)
            feed_both(&a, x[j], y[j], &t, 500 + 60 * (uint32_t)j, 200);
        for (int j = 0; j < 3; j++)
            tkv_session_destroy(&y[j]);
        tkv_session_destroy(&x[1]);
        tkv_session_destroy(&x[2]);
        a.session = x[0];
        scene_close(&a);
    }
    free(t.k);
}

/* A snapshot of one of two that share has nothing of the other. */
static void file_holds_only_its_session(void **state)
{
    struct tkv_session *x, *other;
    struct aid a;
    struct aid_tokens t;
    char path[2][64];
    uint64_t bytes[2] = {0};
    int directory[2];

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, N_TOKENS, 11);
    scene_open(&a, 0);
    x = a.session;
    scene_feed(&a, x, &t, 0, 300);
    for (int i = 0; i < 2; i++) {
        const struct tkv_session *s = x;

        directory[i] = open_directory(path[i]);
        assert_int_equal(save(directory[i], &a.budget, &s, 1, &bytes[i], &a.why), 0);
        if (i > 0)
            break;
        assert_int_equal(tkv_session_fork(&other, x, &a.why), 0);
        scene_feed(&a, other, &t, 300, 400);
    }
    assert_int_equal(bytes[0], bytes[1]);
    for (int i = 0; i < 2; i++)
        close_directory(directory[i], path[i]);
    tkv_session_destroy(&other);
    a.session = x;
    scene_close(&a);
    free(t.k);
}

/* ---- hostile files -------------------------------------------------------------------------- */

static uint8_t *slurp(int directory, size_t n)
{
    const int fd = openat(directory, "a", O_RDONLY | O_CLOEXEC);
    uint8_t *p = malloc(n);

    assert_non_null(p);
    assert_int_equal(read(fd, p, n), n);
    close(fd);
    return p;
}

static int load_bytes(struct aid *a, const uint8_t *p, size_t n)
{
    const size_t before = atomic_load(&a->budget.used_bytes);
    struct tkv_session *s = NULL;
    const int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    int e;

    assert_true(fd >= 0);
    assert_int_equal(write(fd, p, n), n);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    a->why = (struct tkv_report){0};
    e = load(fd, a, &s, &a->why);
    assert_int_equal(a->why.error, e);
    tkv_session_destroy(&s);
    assert_int_equal(atomic_load(&a->budget.used_bytes), before);
    return e;
}

static void changed_and_cut_files_are_refused(void **state)
{
    const struct tkv_session *s;
    struct aid a;
    struct aid_tokens t;
    char path[64];
    const int directory = open_directory(path);
    uint64_t n = 0;
    uint8_t *p;

    (void)state;
    aid_init(&a, "tq2");
    a.shape = (struct tkv_shape){.n_q_heads = 1, .n_kv_heads = 1, .head_dim_k = 8, .head_dim_v = 8};
    a.config.n_layers = 1;
    a.config.pinned_tokens = 0;
    a.config.recent_tokens = 0;
    assert_int_equal(aid_open(&a), 0);
    t = aid_tokens(&a, 70, 12);
    assert_int_equal(aid_step(&a, 0, &t, 0, 70), 0);
    s = a.session;
    assert_int_equal(save(directory, &a.budget, &s, 1, &n, &a.why), 0);
    p = slurp(directory, n);
    assert_int_equal(load_bytes(&a, p, n), 0);
    for (size_t i = 0; i < n; i += emulated_step(3)) {
        assert_true(load_bytes(&a, p, i) != 0);
        p[i] ^= (uint8_t)(1u << i % 8);
        assert_true(load_bytes(&a, p, n) != 0);
        p[i] ^= (uint8_t)(1u << i % 8);
    }
    assert_true(n > 500);
    free(p);
    free(t.k);
    close_directory(directory, path);
    aid_close(&a);
}

static void cap_holds(void **state)
{
    const struct tkv_session *s;
    struct aid a;
    struct aid_tokens t;
    char path[64];
    const int directory = open_directory(path);
    uint64_t n = 0;
    size_t before, more;
    uint8_t *p;

    (void)state;
    scene_most(&a);
    t = aid_tokens(&a, N_TOKENS, 13);
    scene_open(&a, 3);
    scene_feed(&a, a.session, &t, 0, N_TOKENS);
    s = a.session;
    assert_int_equal(save(directory, &a.budget, &s, 1, &n, &a.why), 0);
    p = slurp(directory, n);
    before = atomic_load(&a.budget.used_bytes);
    for (more = 0; more < 64 << 20; more += 100000 * emulated_step(5)) {
        a.budget.cap_bytes = before + more;
        if (load_bytes(&a, p, n) == 0)
            break;
        assert_int_equal(a.why.error, TRIKV_E_MEMORY_CAP);
        a.budget.cap_bytes = before + more / 2; /* writing needs some, too, and leaves nothing */
        if (more < 1 << 20)
            assert_int_equal(save(directory, &a.budget, &s, 1, &n, &a.why), TRIKV_E_MEMORY_CAP);
    }
    assert_true(more > 2 << 20 && more < 64 << 20);
    a.budget.cap_bytes = (size_t)256 << 20;
    free(p);
    free(t.k);
    close_directory(directory, path);
    scene_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sessions_come_back_and_go_on),
        cmocka_unit_test(families_come_back_sharing),
        cmocka_unit_test(file_holds_only_its_session),
        cmocka_unit_test(changed_and_cut_files_are_refused),
        cmocka_unit_test(cap_holds),
    };

    return cmocka_run_group_tests_name("snapshot", tests, NULL, NULL);
}
