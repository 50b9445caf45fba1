/* Writes seed inputs for the fuzz targets that need a well-formed file to begin with:
 * seeds FOLDER makes FOLDER/gguf/<n>, FOLDER/import/<n>, FOLDER/ring/<n> and FOLDER/snapshot/<n>. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/ring.h"
#include "store/snapshot.h"
#include "tests/fuzz/snapshot_input.h"
#include "tests/import_aid.h"
#include "tests/tiny_model.h"
#include "tests/tiny_vocabulary.h"

static int write_file(const char *folder, const char *target, size_t i, const uint8_t *bytes,
                      size_t n)
{
    char path[512];
    FILE *f;

    (void)snprintf(path, sizeof(path), "%s/%s/%zu", folder, target, i);
    f = fopen(path, "wb");
    if (!f)
        return -1;
    if (fwrite(bytes, 1, n, f) != n) {
        (void)fclose(f);
        return -1;
    }
    return fclose(f);
}

/* Model i with a vocabulary of one kind or the other. */
static int make_seed(const char *folder, size_t i, struct tiny_vocabulary *v)
{
    struct rng rng = {i + 1};
    struct gguf_aid g = {0};
    uint8_t *bytes;
    size_t n;
    int error;

    memset(v, 0, sizeof(*v));
    if (i % 2) {
        tiny_vocabulary_make_bpe(v, &rng);
        tiny_vocabulary_put_bpe(&g, v, "qwen2");
    } else {
        tiny_vocabulary_make_spm(v, &rng, false);
        gguf_aid_string(&g, "tokenizer.ggml.model", "llama");
        tiny_vocabulary_put(&g, v);
        gguf_aid_array(&g, "tokenizer.ggml.scores", TKV_GGUF_F32, v->scores, v->n, 4);
        gguf_aid_u32(&g, "tokenizer.ggml.bos_token_id", 1);
        gguf_aid_u32(&g, "tokenizer.ggml.unknown_token_id", 0);
        gguf_aid_bool(&g, "tokenizer.ggml.add_space_prefix", 0);
    }
    tiny_model_put(&g, &tiny_models[i], 3);
    bytes = gguf_aid_finish(&g, &n);
    error = write_file(folder, "gguf", i, bytes, n);
    free(bytes);
    return error;
}

static int make_import_seed(const char *folder, size_t i)
{
    size_t n;
    uint8_t *bytes = import_aid_make((enum import_aid_kind)i, &n);
    const int error = write_file(folder, "import", i, bytes, n);

    free(bytes);
    return error;
}

/* A ring of two entries: i = 0 appends and attends, 1 appends and then attends. */
static int make_ring_seed(const char *folder, size_t i)
{
    enum { N_ENTRIES = 2 };
    const uint32_t at = (uint32_t)(tkv_ring_tensors_at(N_ENTRIES) / TRIKV_RING_ALIGN);
    const struct trikv_ring_header h = {
        .magic = TRIKV_RING_MAGIC, .version = TRIKV_RING_VERSION, .n_entries = N_ENTRIES};
    uint8_t bytes[sizeof(struct trikv_ring_shared) + N_ENTRIES * sizeof(struct trikv_ring_entry)] =
        {0};

    memcpy(bytes, &h, sizeof(h));
    for (uint32_t n = 0; n < N_ENTRIES; n++) {
        const bool appends = i == 0 || n == 0;
        const bool attends = i == 0 || n == 1;
        const struct trikv_ring_entry e = {
            .op = (uint16_t)(appends * TRIKV_RING_APPEND + attends * TRIKV_RING_ATTEND),
            .n_tokens = 1,
            .k = appends ? at : 0,
            .v = appends ? at + 8 : 0,
            .q = attends ? at + 16 : 0,
            .out = attends ? at + 24 : 0,
        };

        memcpy(bytes + sizeof(struct trikv_ring_shared) + n * sizeof(e), &e, sizeof(e));
    }
    return write_file(folder, "ring", i, bytes, sizeof(bytes));
}

/* ---- snapshots ------------------------------------------------------------------------------ */

struct growing {
    uint8_t *p;
    size_t n;
};

static int grow(void *ctx, const void *bytes, size_t n, struct tkv_report *why)
{
    struct growing *g = ctx;
    uint8_t *p = realloc(g->p, g->n + n);

    (void)why;
    if (!p)
        return -1;
    memcpy(p + g->n, bytes, n);
    g->p = p;
    g->n += n;
    return 0;
}

/* A session of one scene, and a fork of it in every other file. */
static int make_snapshot_seed(const char *folder, size_t scene)
{
    const uint8_t first = (uint8_t)scene;
    struct growing g = {0};
    const struct tkv_snapshot_sink sink = {grow, &g};
    struct tkv_session *s[2] = {0};
    struct aid_tokens t;
    struct aid a;
    int e;

    scene_configure(&a, scene, &snapshot_input_shape);
    if (aid_open(&a))
        return -1;
    s[0] = a.session;
    t = aid_tokens(&a, 200, 5);
    scene_feed(&a, s[0], &t, 0, 170);
    e = tkv_session_fork(&s[1], s[0], NULL);
    e = e ? e : grow(&g, &first, 1, NULL);
    e = e ? e
          : tkv_snapshot_write(&sink, (const struct tkv_session *const *)s, 1 + (uint32_t)scene % 2,
                               "meta", 4, NULL);
    e = e ? e : write_file(folder, "snapshot", scene, g.p, g.n);
    tkv_session_destroy(&s[1]);
    a.session = s[0];
    scene_close(&a);
    free(t.k);
    free(g.p);
    return e;
}

int main(int argc, char **argv)
{
    static struct tiny_vocabulary vocabulary;
    char folder[512];

    if (argc != 2)
        return 64;
    (void)snprintf(folder, sizeof(folder), "%s/gguf", argv[1]);
    (void)mkdir(folder, 0777);
    for (size_t i = 0; i < n_tiny_models; i++)
        if (make_seed(argv[1], i, &vocabulary)) {
            (void)fprintf(stderr, "cannot write seeds to %s\n", folder);
            return 1;
        }
    (void)snprintf(folder, sizeof(folder), "%s/import", argv[1]);
    (void)mkdir(folder, 0777);
    for (size_t i = 0; i < AID_KINDS; i++)
        if (make_import_seed(argv[1], i)) {
            (void)fprintf(stderr, "cannot write seeds to %s\n", folder);
            return 1;
        }
    (void)snprintf(folder, sizeof(folder), "%s/ring", argv[1]);
    (void)mkdir(folder, 0777);
    for (size_t i = 0; i < 2; i++)
        if (make_ring_seed(argv[1], i)) {
            (void)fprintf(stderr, "cannot write seeds to %s\n", folder);
            return 1;
        }
    (void)snprintf(folder, sizeof(folder), "%s/snapshot", argv[1]);
    (void)mkdir(folder, 0777);
    for (size_t i = 0; i < N_SCENES; i++)
        if (make_snapshot_seed(argv[1], i)) {
            (void)fprintf(stderr, "cannot write seeds to %s\n", folder);
            return 1;
        }
    return 0;
}
