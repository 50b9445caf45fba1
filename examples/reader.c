/*
 * A process that only reads: it looks at the cache of another one, while that one goes on writing.
 *
 *     cc -o reader examples/reader.c $(pkg-config --cflags --libs libtrikv) -lm
 *     ./reader                  writes a cache of its own, and starts a reader on it
 *     ./reader SESSION          reads that session of another process of the same user
 *
 * The reader maps the session as it is now, read-only, and attends to it by itself: the daemon has
 * nothing to do, and the writer is not disturbed.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <trikv.h>

enum { N_HEADS = 2, DIM = 64, ROW = N_HEADS * DIM, N_TOKENS = 1000 };

/* What token t holds: its keys point one of DIM ways, its values are t. */
static void fill_token(size_t t, float *k, float *v)
{
    for (size_t i = 0; i < ROW; i++) {
        k[i] = i % DIM == t % DIM ? 8 : 0;
        v[i] = (float)t;
    }
}

static int append_tokens(struct trikv_session *s, size_t first, size_t n)
{
    for (size_t t = first; t < first + n; t++) {
        float k[ROW], v[ROW];
        const struct trikv_step step = {.size = sizeof(step), .n_tokens = 1, .k = k, .v = v};
        int e;

        fill_token(t, k, v);
        e = trikv_append(s, &step);
        if (e)
            return e;
    }
    return 0;
}

/* Ask for the tokens whose keys point way: attention answers with the mean of their values. */
static int ask(struct trikv_map *m, size_t way, float *mean)
{
    static const int32_t latest = 1 << 30;
    float q[ROW] = {0}, out[ROW];
    const struct trikv_step step = {
        .size = sizeof(step), .n_tokens = 1, .positions = &latest, .q = q, .out = out};
    int e;

    q[way] = q[DIM + way] = 8;
    e = trikv_attend_local(m, &step);
    *mean = out[0];
    return e;
}

/* The mean of way, way + DIM, ... below n. */
static float expected(size_t way, size_t n)
{
    const size_t last = way + (n - 1 - way) / DIM * DIM;

    return (float)(way + last) / 2;
}

static int read_session(struct trikv_client *c, uint64_t id)
{
    struct trikv_map *m = NULL;
    int e = trikv_map(c, id, &m);

    for (size_t way = 0; !e && way < DIM; way += 21) {
        const uint64_t n = trikv_map_n_seen(m, 0);
        const float want = expected(way, n);
        float mean = 0;

        e = ask(m, way, &mean);
        if (!e)
            printf("reader: of %llu tokens those that point way %zu have mean %.1f, want %.1f\n",
                   (unsigned long long)n, way, (double)mean, (double)want);
        if (!e && fabsf(mean - want) > want / 20 + 5) /* codes of 4 bits */
            e = TRIKV_E_VALUE;
    }
    trikv_unmap(&m);
    return e;
}

/* Go on writing while the reader runs. */
static int write_session(struct trikv_client *c, const char *program)
{
    const struct trikv_layer layer = {
        .n_q_heads = N_HEADS, .n_kv_heads = N_HEADS, .head_dim_k = DIM, .head_dim_v = DIM};
    struct trikv_session_options o = TRIKV_SESSION_OPTIONS_INIT;
    struct trikv_session *s = NULL;
    char id[32];
    int e, status = 1;
    pid_t pid;

    o.n_layers = 1;
    o.layers = &layer;
    o.codec_k = o.codec_v = "tq4";
    o.method = "none";
    e = trikv_open(c, &o, &s);
    if (!e)
        e = append_tokens(s, 0, N_TOKENS);
    if (e)
        return e;
    snprintf(id, sizeof(id), "%llu", (unsigned long long)trikv_session_id(s));
    pid = fork();
    if (pid == 0) {
        execl(program, program, id, (char *)NULL);
        _exit(127);
    }
    e = append_tokens(s, N_TOKENS, N_TOKENS);
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return 1;
    trikv_close(&s);
    return e ? e : status != 0;
}

int main(int argc, char **argv)
{
    struct trikv_client *c = NULL;
    int e = trikv_connect(&c, NULL);

    if (!e)
        e = argc > 1 ? read_session(c, strtoull(argv[1], NULL, 10)) : write_session(c, argv[0]);
    if (e)
        fprintf(stderr, "reader: %s: %s\n", trikv_error_text(e), trikv_last_error(c));
    trikv_disconnect(&c);
    return e != 0;
}
