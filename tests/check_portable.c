/*
 * Files of sessions that an x86-64 machine wrote, in tests/portable: every machine reads them, writes the same
 * bytes again, and writes them too when it makes the session itself; so a file that arm64 writes is the
 * one that x86-64 reads. What attention then gives stands beside them: to the bit with plain C,
 * and nearly so with a machine's own kernels, which add in another order.
 *
 * After a change of the format: TRIKV_WRITE_PORTABLE=1 build/tests/check_portable writes them anew.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/pack.h"
#include "store/session_priv.h"
#include "store/snapshot.h"
#include "tests/image_aid.h"
#include "tests/rng.h"
#include "tests/scenes.h"

#define FOLDER "tests/portable"

enum { N_TOKENS = 420, N_BEFORE = 400, MAX_BYTES = 4 << 20 };

#define TOLERANCE 1e-4f /* of numbers up to 2 */

/* The content of a file, in memory. */
struct content {
    uint8_t *bytes; /* [MAX_BYTES] */
    size_t n;
};

static int add(void *ctx, const void *bytes, size_t n, struct tkv_report *why)
{
    struct content *c = ctx;

    (void)why;
    assert_true(n <= MAX_BYTES - c->n);
    memcpy(c->bytes + c->n, bytes, n);
    c->n += n;
    return 0;
}

static struct content content_of(const struct tkv_session *s)
{
    struct content c = {malloc(MAX_BYTES), 0};
    const struct tkv_snapshot_sink sink = {add, &c};
    struct tkv_report why = {0};

    assert_non_null(c.bytes);
    if (tkv_snapshot_write(&sink, &s, 1, "meta", 4, &why))
        fail_msg("%s", why.text);
    return c;
}

/* ---- what every machine makes alike --------------------------------------------------------- */

static struct aid_tokens tokens_for(const struct aid *a)
{
    struct aid_tokens t = aid_tokens(a, N_TOKENS, 1);
    struct rng rng = {77};
    const size_t n = (size_t)(t.out - t.k);

    for (size_t i = 0; i < n; i++) /* without a library's sine and logarithm */
        t.k[i] = 4 * rng_uniform(&rng) - 2;
    return t;
}

static void open_scene(struct aid *a, size_t scene, bool plain, struct aid_tokens *t)
{
    scene_configure(a, scene, NULL);
    if (plain)
        tkv_kernels_init(&a->kn, 0);
    assert_int_equal(aid_open(a), 0);
    *t = tokens_for(a);
    scene_feed(a, a->session, t, 0, N_BEFORE);
}

/* The rest of the tokens: what attention gives. */
static size_t go_on(struct aid *a, struct tkv_session *s, struct aid_tokens *t, const float **out)
{
    const size_t row = (size_t)a->shape.n_q_heads * a->shape.head_dim_v;

    scene_feed(a, s, t, N_BEFORE, N_TOKENS - N_BEFORE);
    *out = t->out + N_BEFORE * row;
    return (N_TOKENS - N_BEFORE) * row * sizeof(float);
}

/* ---- files ---------------------------------------------------------------------------------- */

static void name_of(size_t scene, const char *kind, char *name, size_t n)
{
    snprintf(name, n, "%zu.%s", scene, kind);
}

static void write_portable(size_t scene)
{
    const int directory = open(FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct tkv_snapshot_sink sink = {.write = tkv_pack_write};
    struct tkv_pack_writer *w = NULL;
    struct tkv_report why = {0};
    struct aid_tokens t;
    const float *out;
    uint64_t file_bytes;
    const struct tkv_session *s;
    char name[32];
    struct aid a;
    size_t n;
    int fd;

    assert_true(directory >= 0);
    open_scene(&a, scene, true, &t);
    s = a.session;
    name_of(scene, "snapshot", name, sizeof(name));
    assert_int_equal(tkv_pack_create(&w, directory, name, &a.budget, &why), 0);
    sink.ctx = w;
    assert_int_equal(tkv_snapshot_write(&sink, &s, 1, "meta", 4, &why), 0);
    assert_int_equal(tkv_pack_commit(w, &file_bytes, &why), 0);
    tkv_pack_writer_destroy(&w);
    n = go_on(&a, a.session, &t, &out);
    name_of(scene, "out", name, sizeof(name));
    fd = openat(directory, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_int_equal(write(fd, out, n), n);
    close(fd);
    close(directory);
    free(t.k);
    scene_close(&a);
}

static int open_file(size_t scene, const char *kind)
{
    char path[64], name[32];
    int fd;

    name_of(scene, kind, name, sizeof(name));
    snprintf(path, sizeof(path), FOLDER "/%s", name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        fail_msg("%s is missing: run from the root of the repository", path);
    return fd;
}

/* The profile is not in the file. */
static struct tkv_session *read_session(struct aid *a, size_t scene)
{
    struct tkv_snapshot_source source = {.read = tkv_pack_read};
    struct tkv_pack_reader *r = NULL;
    struct tkv_snapshot *snapshot = NULL;
    struct tkv_session *s = NULL;
    struct tkv_report why = {0};
    int e = tkv_pack_open(&r, open_file(scene, "snapshot"), &a->budget, &why);

    source.ctx = r;
    e = e ? e : tkv_snapshot_open(&snapshot, &source, &a->budget, &why);
    for (uint32_t l = 0; !e && l < snapshot->configs[0]->config.n_layers; l++) {
        struct tkv_image_config *c = snapshot->configs[0];

        c->layers[l].stats = c->has_stats ? a->layers[l % AID_MAX_LAYERS].stats : NULL;
        c->layers[l].errors = c->has_errors ? a->layers[l % AID_MAX_LAYERS].errors : NULL;
    }
    e = e ? e : tkv_snapshot_read(snapshot, &a->kn, &s, &why);
    e = e ? e : tkv_pack_end(r, &why);
    if (e)
        fail_msg("%s: %s", scene_name(scene), why.text);
    tkv_snapshot_close(&snapshot);
    tkv_pack_reader_destroy(&r);
    return s;
}

static void check_answers(struct aid *a, size_t scene, bool plain, struct tkv_session *s,
                          struct aid_tokens *t)
{
    const float *out;
    const size_t n = go_on(a, s, t, &out);
    float *want = malloc(n);
    const int fd = open_file(scene, "out");

    assert_non_null(want);
    assert_int_equal(read(fd, want, n), n);
    close(fd);
    if (plain && memcmp(want, out, n) != 0)
        fail_msg("%s: other attention", scene_name(scene));
    for (size_t i = 0; i < n / sizeof(float); i++)
        if (fabsf(want[i] - out[i]) > TOLERANCE)
            fail_msg("%s: attention %zu is %g, want %g", scene_name(scene), i, (double)out[i],
                     (double)want[i]);
    free(want);
}

/* A plan depends on the size of pages where it is made (store/ladder_plan.c), so that goes by the file. */
static bool is_made_alike(const struct aid *a)
{
    return a->config.method != TKV_METHOD_DEFAULT;
}

/* What was read is written as it stood in the file, and so is what was made here. */
static void check_bytes(size_t scene, const struct tkv_session *s, struct tkv_budget *budget)
{
    const struct content c = content_of(s);
    uint8_t *want = malloc(c.n);
    struct tkv_pack_reader *r = NULL;
    struct tkv_report why = {0};

    assert_non_null(want);
    assert_int_equal(tkv_pack_open(&r, open_file(scene, "snapshot"), budget, &why), 0);
    if (tkv_pack_read(r, want, c.n, &why) || tkv_pack_end(r, &why) ||
        memcmp(want, c.bytes, c.n) != 0)
        fail_msg("%s: other bytes %s", scene_name(scene), why.text);
    tkv_pack_reader_destroy(&r);
    free(want);
    free(c.bytes);
}

static void check_scene(size_t scene, bool plain)
{
    struct tkv_session *read, *made;
    struct aid_tokens t;
    struct aid a;

    open_scene(&a, scene, plain, &t);
    made = a.session;
    read = read_session(&a, scene);
    check_bytes(scene, read, &a.budget);
    check_answers(&a, scene, plain, read, &t);
    tkv_session_destroy(&read);
    if (plain && is_made_alike(&a)) {
        check_bytes(scene, made, &a.budget);
        check_answers(&a, scene, plain, made, &t);
    }
    a.session = made;
    free(t.k);
    scene_close(&a);
}

static void files_are_the_same_everywhere(void **state)
{
    static const size_t scenes[] = {0, 5, 9, 14};
    const bool writes = getenv("TRIKV_WRITE_PORTABLE") != NULL;

    (void)state;
    for (size_t i = 0; i < sizeof(scenes) / sizeof(scenes[0]); i++) {
        if (writes)
            write_portable(scenes[i]);
        check_scene(scenes[i], true);
        check_scene(scenes[i], false);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_are_the_same_everywhere),
    };

    return cmocka_run_group_tests_name("portable", tests, NULL, NULL);
}
