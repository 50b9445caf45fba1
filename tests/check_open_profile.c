/*
 * Sessions with a profile, through the real daemon: the shipped profile is loaded on reload, a
 * session that does not fit it is refused by the field's name, and a session keeps its profile
 * when the file goes away.
 */
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

#include "proto/errors.h"
#include "proto/trikv.pb-c.h"
#include "tests/daemon_aid.h"
#include "tests/rng.h"
#include "tests/wire.h"

static struct daemon_aid the_daemon;

enum { WINDOW = 500000 };

/* The geometry that PROFILE_LIST tells of the profile. */
struct model {
    char name[80];
    char fingerprint[40];
    uint32_t n_layers, n_q, n_kv, dim_k, dim_v;
};

static struct model model;

static int start_daemon(void **state)
{
    daemon_start(&the_daemon, "memory:\n  cap: 256MiB\nworkers:\n  threads: 2\n");
    *state = &the_daemon;
    return 0;
}

static int stop_daemon(void **state)
{
    return daemon_stop(*state, SIGTERM);
}

/* With a window in layer 1, larger than any budget here. */
static void copy_profile(const char *from, const char *to)
{
    FILE *in = fopen(from, "r"), *out = fopen(to, "w");
    char line[65536];

    assert_non_null(in);
    assert_non_null(out);
    while (fgets(line, sizeof(line), in)) {
        assert_true(fputs(line, out) >= 0);
        if (strcmp(line, "policy:\n") == 0)
            assert_true(fprintf(out, "  layers:\n    - layers: [1]\n      window: %d\n", WINDOW) >
                        0);
    }
    fclose(in);
    assert_int_equal(fclose(out), 0);
}

/* The first shipped profile that is one file; false if there is none. */
static bool find_profile(char *name, size_t n)
{
    DIR *d = opendir("conf/profiles");
    struct dirent *e;
    bool found = false;

    while (d && !found && (e = readdir(d))) {
        char sidecar[300];
        const size_t length = strlen(e->d_name);

        if (length <= 5 || strcmp(e->d_name + length - 5, ".yaml") != 0)
            continue;
        snprintf(sidecar, sizeof(sidecar), "conf/profiles/%.*s.stats", (int)length - 5, e->d_name);
        found = access(sidecar, F_OK) != 0;
        if (found)
            snprintf(name, n, "%s", e->d_name);
    }
    if (d)
        closedir(d);
    return found;
}

static void check_load(void **state)
{
    const struct daemon_aid *d = *state;
    const int fd = wire_connect_hello(d->socket);
    Trikv__ProfileListReply *list;
    struct wire_reply r;
    char name[256], from[512], to[512];

    if (!find_profile(name, sizeof(name))) {
        close(fd);
        print_message("skipped: no profile in conf/profiles\n");
        skip();
    }
    snprintf(from, sizeof(from), "conf/profiles/%s", name);
    snprintf(to, sizeof(to), "%s/%s", d->directory, name);
    copy_profile(from, to);
    kill(d->pid, SIGHUP);
    assert_true(daemon_logged(d, "msg=\"profiles loaded\" n=1 "));
    assert_int_equal(wire_call(fd, TRIKV_PROFILE_LIST, NULL, NULL, 0, -1, &r), 0);
    list = trikv__profile_list_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_int_equal(list->n_profiles, 1);
    assert_true(list->profiles[0]->has_statistics);
    model = (struct model){.n_layers = list->profiles[0]->n_layers,
                           .n_q = list->profiles[0]->n_q_heads,
                           .n_kv = list->profiles[0]->n_kv_heads,
                           .dim_k = list->profiles[0]->head_dim_k,
                           .dim_v = list->profiles[0]->head_dim_v};
    snprintf(model.name, sizeof(model.name), "%s", list->profiles[0]->name);
    snprintf(model.fingerprint, sizeof(model.fingerprint), "%s", list->profiles[0]->fingerprint);
    trikv__profile_list_reply__free_unpacked(list, NULL);
    wire_reply_deinit(&r);
    close(fd);
}

struct request {
    Trikv__Layer layer;
    Trikv__Layer *layers[1];
    Trikv__Policy policy;
    Trikv__Rope rope;
    Trikv__OpenRequest open;
    char none[8], half[8], wrong[24];
};

/* The request of a session that fits. */
static void fit(struct request *q)
{
    memset(q, 0, sizeof(*q));
    trikv__layer__init(&q->layer);
    trikv__policy__init(&q->policy);
    trikv__rope__init(&q->rope);
    trikv__open_request__init(&q->open);
    strcpy(q->none, "none");
    strcpy(q->half, "half");
    strcpy(q->wrong, "xxh3:00000000000000ff");
    q->layer.n_q_heads = model.n_q;
    q->layer.n_kv_heads = model.n_kv;
    q->layer.head_dim_k = model.dim_k;
    q->layer.head_dim_v = model.dim_v;
    q->layer.has_repeat = 1;
    q->layer.repeat = model.n_layers;
    q->layers[0] = &q->layer;
    q->policy.has_budget_tokens = q->policy.has_recent_tokens = q->policy.has_beta_tokens = 1;
    q->policy.budget_tokens = 96;
    q->policy.recent_tokens = 16;
    q->policy.beta_tokens = 32;
    q->rope.layout = q->half;
    q->rope.scaling = q->none;
    q->open.n_layers = 1;
    q->open.layers = q->layers;
    q->open.profile = model.name;
    q->open.policy = &q->policy;
}

static void refuse(int fd, const struct request *q, int code, const char *part)
{
    char text[256];
    const int got = wire_plain_call(fd, TRIKV_OPEN, &q->open.base, text);

    if (got != code || !strstr(text, part) || !strstr(text, model.name))
        fail_msg("want %d \"%s\", got %d \"%s\"", code, part, got, text);
}

static void check_misfits(void **state)
{
    const int fd = wire_connect_hello(((const struct daemon_aid *)*state)->socket);
    struct request q;

    if (!*model.name)
        skip();
    fit(&q);
    q.layer.repeat++;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "n_layers");
    fit(&q);
    q.layer.n_q_heads *= 2;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "n_q_heads");
    fit(&q);
    q.layer.n_kv_heads++;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "n_kv_heads");
    fit(&q);
    q.layer.head_dim_k += 2;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "head_dim_k");
    fit(&q);
    q.layer.head_dim_v += 2;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "head_dim_v");
    fit(&q);
    q.open.fingerprint = q.wrong;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "made for the model");
    fit(&q);
    q.open.rope = &q.rope;
    q.rope.theta = 1234.5;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "rope.theta");
    fit(&q);
    q.open.fingerprint = model.fingerprint;
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, NULL), 0);
    close(fd);
}

/* Windows of the profile's layers are those of a session that says none, and no other will do. */
static void check_windows(void **state)
{
    const int fd = wire_connect_hello(((const struct daemon_aid *)*state)->socket);
    Trikv__ForkRequest fork = TRIKV__FORK_REQUEST__INIT;
    Trikv__OpenReply *opened;
    Trikv__ForkReply *forked;
    struct wire_reply r;
    struct request q;

    if (!*model.name)
        skip();
    fit(&q);
    q.layer.has_window_tokens = 1;
    q.layer.window_tokens = 7;
    refuse(fd, &q, TRIKV_E_GEOMETRY, "layer 1 has a window of 500000 tokens, the session has 7");
    fit(&q);
    assert_int_equal(wire_call(fd, TRIKV_OPEN, &q.open.base, NULL, 0, -1, &r), 0);
    opened = trikv__open_reply__unpack(NULL, r.frame.header_bytes, r.message);
    fork.session = opened->session;
    trikv__open_reply__free_unpacked(opened, NULL);
    wire_reply_deinit(&r);
    assert_int_equal(wire_call(fd, TRIKV_FORK, &fork.base, NULL, 0, -1, &r), 0);
    forked = trikv__fork_reply__unpack(NULL, r.frame.header_bytes, r.message);
    assert_int_equal(forked->n_layers, 3); /* the first, the second, the others */
    assert_int_equal(forked->layers[0]->window_tokens, 0);
    assert_int_equal(forked->layers[1]->window_tokens, WINDOW);
    assert_int_equal(forked->layers[1]->repeat, 1);
    assert_int_equal(forked->layers[2]->window_tokens, 0);
    trikv__fork_reply__free_unpacked(forked, NULL);
    wire_reply_deinit(&r);
    close(fd);
}

/* Bytes for method default, said as a ratio; budgets that are shared. */
static void check_budgets(void **state)
{
    const int fd = wire_connect_hello(((const struct daemon_aid *)*state)->socket);
    char text[256], method[] = "default", tri[] = "triattention", none[] = "none",
                    allocator[] = "adaptive";
    struct request q;

    if (!*model.name)
        skip();
    fit(&q);
    q.policy.method = tri;
    q.policy.budget_tokens = q.policy.recent_tokens; /* the pinned ones have no room */
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "budget is 16 tokens, want at least"));
    fit(&q);
    q.policy.method = method;
    q.policy.has_target_ratio = q.policy.has_max_tokens = 1;
    q.policy.target_ratio = 8;
    q.policy.max_tokens = 4096;
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, NULL), 0);
    q.policy.target_ratio = 900; /* 4096 tokens as halves, over that: too little for anything */
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "are needed before any token"));
    q.policy.target_ratio = 0.5f;
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "policy.target_ratio"));
    q.policy.target_ratio = 8;
    q.policy.has_budget_bytes = 1;
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "budget_bytes is there, too"));
    fit(&q);
    q.policy.allocator = allocator;
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, NULL), 0);
    q.policy.method = none; /* asked for in vain */
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "allocator: method none"));
    allocator[0] = 'x';
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, text), TRIKV_E_ARGUMENT);
    assert_non_null(strstr(text, "policy.allocator"));
    close(fd);
}

/* Rounds of an open session go on with a profile whose file is gone. */
static void check_profile_outlives_file(void **state)
{
    const struct daemon_aid *d = *state;
    const int fd = wire_connect_hello(d->socket);
    struct request q;
    struct rng rng = {12};
    struct wire_reply r;
    Trikv__OpenReply *opened;
    Trikv__SessionStats *stats;
    uint64_t id;
    char path[256];

    if (!*model.name || model.n_q != 4 || model.n_kv != 2 || model.dim_k != WIRE_DIM)
        skip(); /* the payloads below are of this shape */
    fit(&q);
    assert_int_equal(wire_call(fd, TRIKV_OPEN, &q.open.base, NULL, 0, -1, &r), 0);
    opened = trikv__open_reply__unpack(NULL, r.frame.header_bytes, r.message);
    id = opened->session;
    trikv__open_reply__free_unpacked(opened, NULL);
    wire_reply_deinit(&r);
    snprintf(path, sizeof(path), "%s/%s.yaml", d->directory, model.name);
    assert_int_equal(unlink(path), 0);
    kill(d->pid, SIGHUP);
    assert_true(daemon_logged(d, "msg=\"profiles loaded\" n=0 directory"));
    for (uint32_t layer = 0; layer < model.n_layers; layer++) {
        size_t bytes;
        float *p = wire_payload(&rng, 500, &bytes);

        assert_int_equal(wire_append_attend(fd, id, layer, p, bytes, 500, &r), 0);
        wire_reply_deinit(&r);
        free(p);
    }
    assert_int_equal(wire_session_call(fd, TRIKV_STATS, id, &r), 0);
    stats = trikv__session_stats__unpack(NULL, r.frame.header_bytes, r.message);
    assert_string_equal(stats->profile, model.name);
    assert_string_equal(stats->method, "triattention");
    assert_true(stats->n_rounds > 0);
    assert_true(stats->n_kept < 160);
    assert_true(stats->n_evicted > 0);
    trikv__session_stats__free_unpacked(stats, NULL);
    wire_reply_deinit(&r);
    fit(&q);
    assert_int_equal(wire_plain_call(fd, TRIKV_OPEN, &q.open.base, NULL), TRIKV_E_NO_PROFILE);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_load),
        cmocka_unit_test(check_misfits),
        cmocka_unit_test(check_windows),
        cmocka_unit_test(check_budgets),
        cmocka_unit_test(check_profile_outlives_file),
    };

    return cmocka_run_group_tests(tests, start_daemon, stop_daemon);
}
