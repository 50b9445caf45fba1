/*
 * What a successor needs beside the arenas: the profile of a session as it was, and token ids that come
 * with the tokens themselves, from the socket and from a ring.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/trikv.h"
#include "tests/emulated.h"
#include "tests/manager.h"
#include "tests/rng.h"

enum { N_LAYERS = 6, N_Q = 4, N_KV = 2, DIM = 64, N_TOKENS = 1050, AT_ONCE = 50, N_KILLS = 25 };

static const char *const CONFIG = "memory:\n  cap: 128MiB\nworkers:\n  threads: 2\n";
static const char *const PROFILE = "conf/profiles/trikv-ref-6m.yaml";

static float tensor[AT_ONCE * N_Q * DIM];

static struct trikv_client *connect_to(const struct manager *m)
{
    const struct trikv_options o = {.size = sizeof(o), .socket = m->socket, .timeout_ms = 30000};
    struct trikv_client *c = NULL;

    if (trikv_connect(&c, &o))
        fail_msg("connect: %s", trikv_last_error(c));
    return c;
}

static struct trikv_session *open_with(struct trikv_client *c,
                                       const struct trikv_session_options *also)
{
    const struct trikv_layer layer = {
        .n_q_heads = N_Q, .n_kv_heads = N_KV, .head_dim_k = DIM, .head_dim_v = DIM};
    struct trikv_session_options o = *also;
    struct trikv_session *s = NULL;

    o.layers = &layer;
    o.same_layers = 1;
    o.n_layers = N_LAYERS;
    if (trikv_open(c, &o, &s))
        fail_msg("open: %s", trikv_last_error(c));
    return s;
}

static int feed(struct trikv_session *s, uint32_t layer, uint32_t n, const uint32_t *ids)
{
    const struct trikv_step step = {.size = sizeof(step),
                                    .layer = layer,
                                    .n_tokens = n,
                                    .k = tensor,
                                    .v = tensor,
                                    .q = tensor,
                                    .out = (float[AT_ONCE * N_Q * DIM]){0},
                                    .token_ids = ids};

    return trikv_append_attend(s, &step);
}

static int fill_tensor(void **state)
{
    struct rng rng = {5};

    (void)state;
    for (size_t i = 0; i < sizeof(tensor) / sizeof(tensor[0]); i++)
        tensor[i] = rng_gauss(&rng);
    return 0;
}

/* ---- profiles ------------------------------------------------------------------------------- */

/* The shipped profile in the daemon's folder, `from` being `to` in it (NULL: as it is). */
static void write_profile(const struct manager *m, const char *from, const char *to)
{
    char path[128], line[512];
    FILE *in = fopen(PROFILE, "r"), *out;
    bool found = !from;

    assert_non_null(in);
    snprintf(path, sizeof(path), "%s/trikv-ref-6m.yaml", m->folder);
    out = fopen(path, "w");
    assert_non_null(out);
    while (fgets(line, sizeof(line), in)) {
        char *at = from ? strstr(line, from) : NULL;

        if (at) {
            memcpy(at, to, strlen(to));
            found = true;
        }
        fputs(line, out);
    }
    fclose(in);
    assert_int_equal(fclose(out), 0);
    assert_true(found);
}

struct scene {
    struct manager m;
    struct trikv_client *c;
    struct trikv_session *s;
};

static void begin(struct scene *x, const struct trikv_session_options *o)
{
    manager_init(&x->m, CONFIG);
    write_profile(&x->m, NULL, NULL);
    (void)manager_start(&x->m);
    x->c = connect_to(&x->m);
    x->s = open_with(x->c, o);
}

static void end(struct scene *x)
{
    char path[128];

    trikv_disconnect(&x->c);
    snprintf(path, sizeof(path), "%s/trikv-ref-6m.yaml", x->m.folder);
    unlink(path);
    assert_int_equal(manager_stop(&x->m, SIGTERM), 0);
    manager_deinit(&x->m);
}

static void restart(struct scene *x)
{
    (void)manager_stop(&x->m, SIGKILL);
    (void)manager_start(&x->m);
    assert_int_equal(trikv_reconnect(x->c), 0);
}

static void go_on(struct scene *x, uint32_t n_tokens)
{
    for (uint32_t n = 0; n < n_tokens; n += AT_ONCE)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++)
            if (feed(x->s, layer, AT_ONCE, NULL))
                fail_msg("token %u: %s", n, trikv_last_error(x->c));
}

/* A session whose tokens and bits follow from the profile, and that plans again between the kills. */
static void profiles_must_be_as_they_were(void **state)
{
    static const struct {
        const char *from, *to, *section;
    } changes[] = {{"theta: 100000", "theta: 200000", "rope"},
                   {"[0.002071,", "[0.003071,", "errors"}};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;

    (void)state;
    if (access(PROFILE, R_OK)) {
        print_message("skipped: no %s\n", PROFILE);
        skip();
    }
    o.profile = "trikv-ref-6m";
    o.method = "default";
    o.max_tokens = 2048;
    o.target_ratio = 6;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i += emulated_step(2)) {
        struct scene x;
        char why[96];

        begin(&x, &o);
        go_on(&x, N_TOKENS);
        restart(&x);
        if (trikv_reattach(x.s, NULL))
            fail_msg("reattach: %s", trikv_last_error(x.c));
        go_on(&x, N_TOKENS); /* more than it was planned for */
        restart(&x);
        assert_int_equal(trikv_reattach(x.s, NULL), 0);
        assert_false(manager_logged(&x.m, "starts cold"));
        write_profile(&x.m, changes[i].from, changes[i].to);
        restart(&x);
        assert_int_equal(trikv_reattach(x.s, NULL), TRIKV_E_NO_SESSION);
        snprintf(why, sizeof(why), "profile trikv-ref-6m is not as it was: %s", changes[i].section);
        assert_true(manager_logged(&x.m, "reason=profile"));
        assert_true(manager_logged(&x.m, why));
        end(&x);
    }
}

/* ---- token ids ------------------------------------------------------------------------------ */

/* After so long, whatever the daemon does then. */
static pid_t kill_after(pid_t daemon, uint32_t us)
{
    const pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        usleep(us);
        kill(daemon, SIGKILL);
        _exit(0);
    }
    return child;
}

/* One token after the other, in every layer, until the daemon is gone. */
static void feed_on(struct scene *x, uint64_t *n_seen)
{
    for (;;)
        for (uint32_t layer = 0; layer < N_LAYERS; layer++) {
            const uint32_t id = (uint32_t)n_seen[layer] * 7 + 1;
            const int e = n_seen[layer] > n_seen[N_LAYERS - 1] ? 0 : feed(x->s, layer, 1, &id);

            if (e == TRIKV_E_DISCONNECTED)
                return;
            if (e)
                fail_msg("token %llu: %s", (unsigned long long)n_seen[layer],
                         trikv_last_error(x->c));
            n_seen[layer] += layer == N_LAYERS - 1 || n_seen[layer] == n_seen[N_LAYERS - 1];
        }
}

/* Killed anywhere: there are as many ids as tokens, so the client can always go on. */
static void ids_come_with_their_tokens(void **state)
{
    const bool ring = *(const bool *)*state;
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    const struct trikv_ring_options r = {.size = sizeof(r)};
    const struct trikv_prefix prefix = {.size = sizeof(prefix)};
    uint64_t before[N_LAYERS] = {0}, n_seen[N_LAYERS] = {0};
    struct trikv_progress p = {.size = sizeof(p), .n_seen = n_seen, .n_seen_cap = N_LAYERS};
    struct rng rng = {ring ? 8 : 9};
    struct scene x;

    o.prefix = &prefix;
    o.fingerprint = "xxh3:0123456789abcdef";
    o.method = "none";
    o.codec_k = o.codec_v = "tq4";
    begin(&x, &o);
    for (uint32_t i = 0; i < N_KILLS; i += emulated_step(8)) {
        pid_t killer;

        if (ring && trikv_ring_open(x.c, &r))
            fail_msg("ring: %s", trikv_last_error(x.c));
        killer = kill_after(x.m.pid, 2000 + rng_below(&rng, 20000));
        memcpy(before, n_seen, sizeof(before));
        feed_on(&x, before);
        assert_int_equal(waitpid(killer, NULL, 0), killer);
        restart(&x);
        assert_int_equal(trikv_reattach(x.s, &p), 0);
        assert_int_equal(p.n_token_ids, n_seen[0]);
        for (uint32_t layer = 0; layer < N_LAYERS; layer++)
            assert_in_range(n_seen[layer], before[layer], before[layer] + 1);
    }
    assert_true(n_seen[0] > 0);
    end(&x);
}

int main(void)
{
    static bool no = false, yes = true;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(profiles_must_be_as_they_were),
        cmocka_unit_test_prestate(ids_come_with_their_tokens, &no),
        cmocka_unit_test_prestate(ids_come_with_their_tokens, &yes),
    };

    return cmocka_run_group_tests(tests, fill_tensor, NULL);
}
