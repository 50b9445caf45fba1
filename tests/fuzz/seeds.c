/* Writes seed inputs for the fuzz targets that need a well-formed file to begin with:
 * seeds FOLDER makes FOLDER/gguf/<n>, and so for import, ring, dispatch and snapshot. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "proto/frame.h"
#include "proto/ring.h"
#include "proto/trikv.pb-c.h"
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
static int make_seed(const char *folder, size_t i)
{
    static struct tiny_vocabulary vocabulary;
    struct tiny_vocabulary *const v = &vocabulary;
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

/* ---- requests ------------------------------------------------------------------------------- */

struct script {
    uint8_t bytes[4096];
    size_t n;
};

/* A frame as fuzz_dispatch.c has it; the sessions are numbered from 1 on. */
static void put(struct script *s, uint8_t type, uint8_t flags, const ProtobufCMessage *message)
{
    const size_t n = message ? protobuf_c_message_get_packed_size(message) : 0;
    const uint8_t head[] = {type, flags, (uint8_t)n, (uint8_t)(n >> 8)};

    memcpy(s->bytes + s->n, head, sizeof(head));
    if (message)
        (void)protobuf_c_message_pack(message, s->bytes + s->n + sizeof(head));
    s->n += sizeof(head) + n;
}

static void put_open(struct script *s)
{
    Trikv__Layer layer = TRIKV__LAYER__INIT, *layers = &layer;
    Trikv__Policy policy = TRIKV__POLICY__INIT;
    Trikv__OpenRequest m = TRIKV__OPEN_REQUEST__INIT;
    char codec[] = "tq3", method[] = "keydiff";

    layer.n_q_heads = 2;
    layer.n_kv_heads = 1;
    layer.head_dim_k = layer.head_dim_v = 32;
    policy.codec_k = policy.codec_v = codec;
    policy.method = method;
    policy.has_budget_tokens = policy.has_beta_tokens = policy.has_recent_tokens =
        policy.has_pinned_tokens = true;
    policy.budget_tokens = 8;
    policy.beta_tokens = 4;
    policy.recent_tokens = 2;
    policy.pinned_tokens = 1;
    m.n_layers = 1;
    m.layers = &layers;
    m.policy = &policy;
    put(s, TRIKV_OPEN, 0, &m.base);
}

static void put_step(struct script *s, uint8_t type, uint32_t n_tokens, uint8_t n_units)
{
    Trikv__TokensRequest m = TRIKV__TOKENS_REQUEST__INIT;

    m.session = 1;
    m.n_tokens = n_tokens;
    put(s, type, n_units, &m.base);
}

static void put_session(struct script *s, uint8_t type)
{
    Trikv__SessionRequest m = TRIKV__SESSION_REQUEST__INIT;

    m.session = 1;
    put(s, type, 0, &m.base);
}

static void put_fork_and_back(struct script *s)
{
    Trikv__ForkRequest fork_of = TRIKV__FORK_REQUEST__INIT;
    Trikv__TruncateRequest back = TRIKV__TRUNCATE_REQUEST__INIT;
    Trikv__ReadRequest read_of = TRIKV__READ_REQUEST__INIT;

    fork_of.session = back.session = read_of.session = 1;
    back.n_tokens = 13;
    read_of.n_tokens = 2;
    put(s, TRIKV_FORK, 0, &fork_of.base);
    put(s, TRIKV_TRUNCATE, 0, &back.base);
    put(s, TRIKV_READ, 0, &read_of.base);
}

/* Files of 64 KiB come with them. */
static void put_memory(struct script *s)
{
    Trikv__StagingRequest staging = TRIKV__STAGING_REQUEST__INIT;
    Trikv__RingRequest ring = TRIKV__RING_REQUEST__INIT;

    staging.staging_bytes = ring.ring_bytes = 64 << 10;
    put(s, TRIKV_STAGING, 16, &staging.base);
    put(s, TRIKV_RING, 16, &ring.base);
    put(s, TRIKV_RING_CLOSE, 0, NULL);
}

static int make_dispatch_seed(const char *folder, size_t i)
{
    static struct script s;

    s.n = 0;
    put_open(&s);
    put_step(&s, TRIKV_APPEND_ATTEND, 15, 15);
    switch (i) {
    case 0:
        put_step(&s, TRIKV_APPEND, 2, 1);
        put_step(&s, TRIKV_ATTEND, 2, 1);
        put_session(&s, TRIKV_STATS);
        put_session(&s, TRIKV_CLOSE);
        break;
    case 1:
        put_fork_and_back(&s);
        put_session(&s, TRIKV_MAP);
        put_session(&s, TRIKV_HANDLE);
        put_session(&s, TRIKV_GATE);
        break;
    case 2:
        put_memory(&s);
        put_session(&s, TRIKV_ROUND);
        put_session(&s, TRIKV_DROP);
        break;
    default:
        put_step(&s, TRIKV_OBSERVE, 2, 1);
        put(&s, TRIKV_DAEMON_STATS, 0, NULL);
        put(&s, TRIKV_SESSION_LIST, 0, NULL);
        put(&s, TRIKV_PREFIX_LIST, 0, NULL);
        put(&s, TRIKV_PROFILE_LIST, 0, NULL);
        put(&s, TRIKV_CONFIG, 0, NULL);
        break;
    }
    return write_file(folder, "dispatch", i, s.bytes, s.n);
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
    const struct {
        const char *target;
        size_t n;
        int (*make)(const char *folder, size_t i);
    } targets[] = {
        {"gguf", n_tiny_models, make_seed},
        {"import", AID_KINDS, make_import_seed},
        {"ring", 2, make_ring_seed},
        {"dispatch", 4, make_dispatch_seed},
        {"snapshot", N_SCENES, make_snapshot_seed},
    };
    char folder[512];

    if (argc != 2)
        return 64;
    for (size_t t = 0; t < sizeof(targets) / sizeof(targets[0]); t++) {
        (void)snprintf(folder, sizeof(folder), "%s/%s", argv[1], targets[t].target);
        (void)mkdir(folder, 0777);
        for (size_t i = 0; i < targets[t].n; i++)
            if (targets[t].make(argv[1], i)) {
                (void)fprintf(stderr, "cannot write seeds to %s\n", folder);
                return 1;
            }
    }
    return 0;
}
