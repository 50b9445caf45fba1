#include "tests/fault/wide.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/trikv.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"

enum { N_LAYERS = 2, N_TOKENS = 60, N_STEPS = 6, HEADS = 4, KV_HEADS = 2, DIM = 64 };
enum { CALL_MS = 5000, N_ALL = N_TOKENS * N_STEPS };

static const char profile_text[] = "format: trikv-profile/1\n"
                                   "name: wide\n"
                                   "model:\n"
                                   "  architecture: test\n"
                                   "  fingerprint: none\n"
                                   "  n_layers: 2\n"
                                   "  n_q_heads: 4\n"
                                   "  n_kv_heads: 2\n"
                                   "  head_dim: 64\n"
                                   "policy:\n"
                                   "  tokens:\n"
                                   "    method: streaming\n"
                                   "    budget: 128\n"
                                   "    beta: 64\n"
                                   "    recent: 32\n"
                                   "    pinned: 4\n"
                                   "    allocator: adaptive\n"
                                   "  bits:\n"
                                   "    k: tq4\n"
                                   "    v: tq4\n"
                                   "  layers:\n"
                                   "    - layers: [1]\n"
                                   "      method: snapkv\n"
                                   "  gate:\n"
                                   "    lost_mass: 0.05\n"
                                   "    surplus: 16\n"
                                   "    probes: 12\n";

static char files[] = "/tmp/trikv-fault-files-XXXXXX";

void wide_init(char *config, unsigned long n)
{
    assert_non_null(mkdtemp(files));
    snprintf(config, n,
             "memory:\n  cap: 64MiB\nworkers:\n  threads: 2\nlog:\n  level: error\n"
             "snapshot:\n  directory: %s\n",
             files);
}

static void user_directory(char *path, size_t n)
{
    snprintf(path, n, "%s/%u", files, (unsigned)getuid());
}

/* Nothing but the one file that is asked for may ever be there; it goes. */
static void clear_files(void)
{
    char path[96], file[400];
    struct dirent *entry;
    DIR *d;

    user_directory(path, sizeof(path));
    d = opendir(path);
    if (!d)
        return; /* the daemon could not make it */
    while ((entry = readdir(d)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (strcmp(entry->d_name, "session") != 0)
            fail_msg("%s is left of a file", entry->d_name);
        snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
        assert_int_equal(unlink(file), 0);
    }
    closedir(d);
}

void wide_deinit(void)
{
    char path[96];

    user_directory(path, sizeof(path));
    (void)rmdir(path);
    assert_int_equal(rmdir(files), 0);
    memcpy(files + sizeof(files) - 7, "XXXXXX", 6);
}

/* ---- the script --------------------------------------------------------------------------- */

struct wide {
    struct trikv_client *client;
    struct trikv_session *session;
    const char *at;
    bool sticky;
    bool lost;
    float *tokens; /* q of all steps; k and v are parts of it */
    float *out;
    uint32_t ids[N_ALL];
};

static bool went_well(struct wide *w, const char *at, int error)
{
    w->at = at;
    switch (error) {
    case 0: return true;
    case TRIKV_E_CONNECT:
    case TRIKV_E_DISCONNECTED: w->lost = true; return false;
    case TRIKV_E_DEADLINE:
        w->lost = true;
        if (!w->sticky)
            fail_msg("%s: no answer", at);
        return false;
    case TRIKV_E_MEMORY_CAP:
    case TRIKV_E_NO_MEMORY:
    case TRIKV_E_SYSTEM: return false;
    default: fail_msg("%s: error %d, %s", at, error, trikv_last_error(w->client));
    }
    return false;
}

static int connect_to(struct wide *w, const char *socket)
{
    const struct trikv_options o = {
        .size = sizeof(o), .socket = socket, .timeout_ms = CALL_MS, .staging_bytes = 1 << 18};

    return trikv_connect(&w->client, &o);
}

static int open_session(struct wide *w)
{
    const struct trikv_layer layer = {
        .n_q_heads = HEADS, .n_kv_heads = KV_HEADS, .head_dim_k = DIM, .head_dim_v = DIM};
    const struct trikv_prefix prefix = {.size = sizeof(prefix),
                                        .token_ids = w->ids,
                                        .n_token_ids = N_ALL,
                                        .salt = "s",
                                        .salt_bytes = 1};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    o.n_layers = N_LAYERS;
    o.layers = &layer;
    o.same_layers = 1;
    o.profile = "wide";
    o.fingerprint = "model";
    o.label = "wide";
    o.rollback_tokens = 16;
    o.prefix = &prefix;
    return trikv_open(w->client, &o, &w->session);
}

static struct trikv_step step_of(const struct wide *w, uint32_t layer, uint32_t i)
{
    const float *at = w->tokens + (size_t)i * N_TOKENS * HEADS * DIM;

    return (struct trikv_step){.size = sizeof(struct trikv_step),
                               .layer = layer,
                               .n_tokens = N_TOKENS,
                               .dtype = TRIKV_F32,
                               .k = at,
                               .v = at + (size_t)N_TOKENS * KV_HEADS * DIM,
                               .q = at,
                               .out = w->out,
                               .token_ids = w->ids + i * N_TOKENS};
}

/* Steps [first, first + n) of all layers; false if one of them did not come in. */
static bool feed(struct wide *w, const char *at, uint32_t first, uint32_t n)
{
    for (uint32_t i = first; i < first + n; i++)
        for (uint32_t l = 0; l < N_LAYERS; l++) {
            const struct trikv_step step = step_of(w, l, i);

            if (w->lost || !went_well(w, at, trikv_append_attend(w->session, &step)))
                return false;
        }
    return true;
}

/* Three steps in flight at once, then the ring ends. */
static bool feed_ring(struct wide *w, uint32_t i)
{
    const struct trikv_ring_options o = {.size = sizeof(o), .n_entries = 4, .spin_us = -1};
    bool good;

    if (w->lost || !went_well(w, "ring", trikv_ring_open(w->client, &o)))
        return false;
    good = feed(w, "append by the ring", i, 1);
    for (uint32_t l = 0; good && l < N_LAYERS; l++) {
        const struct trikv_step step = step_of(w, l, i + 1);

        good = went_well(w, "submit", trikv_ring_submit(w->session, TRIKV_STEP_APPEND, &step, 1));
    }
    good = !w->lost && went_well(w, "wait", trikv_ring_wait(w->client)) && good;
    return !w->lost && went_well(w, "end of the ring", trikv_ring_close(w->client)) && good;
}

static void ask_gate(struct wide *w)
{
    struct trikv_gate gate[N_LAYERS];

    if (!w->lost)
        went_well(w, "gate", trikv_gate(w->session, gate));
    if (!w->lost)
        went_well(w, "round", trikv_round(w->session));
}

static void attend(struct wide *w, struct trikv_session *session, float *out)
{
    struct trikv_step step = step_of(w, 1, 0);
    int32_t position = 100000;

    step.n_tokens = 1;
    step.positions = &position;
    step.out = out;
    step.token_ids = NULL;
    memset(out, 0, HEADS * DIM * sizeof(*out));
    went_well(w, "attend", trikv_attend(session, &step));
}

/* To a file and back: both answer the same. */
static void write_and_restore(struct wide *w)
{
    struct trikv_session *back = NULL;
    float here[HEADS * DIM], there[HEADS * DIM];
    bool before;

    if (w->lost || !went_well(w, "snapshot", trikv_snapshot(w->session, "session", NULL)) ||
        !went_well(w, "restore", trikv_restore(w->client, "session", &back)))
        return;
    attend(w, w->session, here);
    before = strcmp(w->at, "attend") == 0 && !w->lost;
    if (before)
        attend(w, back, there);
    if (!w->lost && here[0] != 0 && there[0] != 0)
        assert_memory_equal(here, there, sizeof(here));
    if (!w->lost)
        went_well(w, "close what came back", trikv_close(&back));
    if (!w->lost)
        went_well(w, "delete", trikv_snapshot_delete(w->client, "session"));
}

static void init(struct wide *w)
{
    struct rng rng = {11};

    w->tokens = malloc((size_t)N_ALL * HEADS * DIM * sizeof(float));
    w->out = malloc((size_t)N_TOKENS * HEADS * DIM * sizeof(float));
    assert_true(w->tokens && w->out);
    for (size_t i = 0; i < (size_t)N_ALL * HEADS * DIM; i++)
        w->tokens[i] = rng_gauss(&rng);
    for (uint32_t i = 0; i < N_ALL; i++)
        w->ids[i] = 1000 + i;
}

static void deinit(struct wide *w)
{
    trikv_disconnect(&w->client);
    free(w->tokens);
    free(w->out);
}

const char *wide_play(const char *socket, bool sticky)
{
    struct wide w = {.at = "start", .sticky = sticky};

    init(&w);
    if (went_well(&w, "connect", connect_to(&w, socket)) &&
        went_well(&w, "open", open_session(&w))) {
        if (feed(&w, "append", 0, N_STEPS - 3) && feed_ring(&w, N_STEPS - 3))
            feed(&w, "append", N_STEPS - 1, 1);
        ask_gate(&w);
        write_and_restore(&w);
        if (!w.lost)
            went_well(&w, "close", trikv_close(&w.session));
    }
    deinit(&w);
    clear_files();
    return w.at;
}

void wide_add_profile(const struct daemon_aid *d)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof(path), "%s/wide.yaml", d->directory);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(profile_text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    kill(d->pid, SIGHUP);
    for (int i = 0, e = -1; e; i++) {
        struct wide w = {.at = "start"};

        init(&w);
        e = connect_to(&w, d->socket);
        e = e ? e : open_session(&w);
        if (e && i == 200)
            fail_msg("profile: %s", trikv_last_error(w.client));
        deinit(&w);
        sleep_ms(e ? 10 : 0);
    }
}
