/*
 * u64 magic, geometry, work (struct header), f64 sums, XXH3-64 of all before. Little-endian. The
 * sums are exact, so a calibration that was resumed ends with the same bits.
 */
#include "tools/calibration_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "tools/engine.h"
#include "tools/profile_write.h"

#define MAGIC UINT64_C(0x31454154534c4143) /* "CALSTAE1" */

struct header {
    uint64_t magic;
    uint64_t n_layers, n_q_heads, n_bands;
    uint64_t n_seen; /* tokens in the sums */
    struct tkv_calibration_work work;
};
_Static_assert(sizeof(struct header) == 80, "a file format");

struct state {
    struct header header;
    const struct tkv_calibration *c;
};

static struct header header_of(const struct tkv_calibration *c,
                               const struct tkv_calibration_work *w)
{
    return (struct header){
        .magic = MAGIC,
        .n_layers = c->n_layers,
        .n_q_heads = c->n_q_heads,
        .n_bands = c->n_bands,
        .n_seen = c->n_tokens,
        .work = *w,
    };
}

static size_t sums_bytes(const struct tkv_calibration *c)
{
    return tkv_calibration_n_floats(c) * sizeof(*c->sums);
}

static uint64_t hash(const struct header *h, const void *sums, size_t n)
{
    return XXH3_64bits_withSeed(sums, n, XXH3_64bits(h, sizeof(*h)));
}

static void print(const void *arg, FILE *out)
{
    const struct state *s = arg;
    const size_t n = sums_bytes(s->c);
    const uint64_t check = hash(&s->header, s->c->sums, n);

    fwrite(&s->header, sizeof(s->header), 1, out);
    fwrite(s->c->sums, 1, n, out);
    fwrite(&check, sizeof(check), 1, out);
}

int tkv_calibration_save(const char *path, const struct tkv_calibration *c,
                         const struct tkv_calibration_work *w, struct tkv_reason *why)
{
    const struct state s = {header_of(c, w), c};

    return tkv_write_file(path, print, &s, why);
}

/* What the state is of against what is to be done. */
static int check_work(const char *path, const struct header *got, const struct header *want,
                      struct tkv_reason *why)
{
    if (got->work.model != want->work.model)
        return tkv_reason_set(why, "%s: is of another model", path);
    if (got->work.text != want->work.text || got->work.n_tokens != want->work.n_tokens)
        return tkv_reason_set(why, "%s: is of another text, or of another number of its tokens",
                              path);
    if (got->work.n_context != want->work.n_context)
        return tkv_reason_set(why, "%s: was made with --context %llu, not %llu", path,
                              (unsigned long long)got->work.n_context,
                              (unsigned long long)want->work.n_context);
    return 0;
}

static int take(const char *path, const char *data, size_t n, struct tkv_calibration *c,
                struct tkv_calibration_work *w, struct tkv_reason *why)
{
    const struct header want = header_of(c, w);
    struct header got;
    uint64_t check;

    if (n < sizeof(got) + sizeof(check))
        return tkv_reason_set(why, "%s: is no state of a calibration, or cut off", path);
    memcpy(&got, data, sizeof(got));
    memcpy(&check, data + n - sizeof(check), sizeof(check));
    if (got.magic != MAGIC)
        return tkv_reason_set(why, "%s: is no state of a calibration", path);
    if (check_work(path, &got, &want, why))
        return -1;
    if (got.n_layers != want.n_layers || got.n_q_heads != want.n_q_heads ||
        got.n_bands != want.n_bands || n != sizeof(got) + sums_bytes(c) + sizeof(check) ||
        got.work.n_done > got.work.n_tokens ||
        hash(&got, data + sizeof(got), sums_bytes(c)) != check)
        return tkv_reason_set(why, "%s: is damaged; remove it to start anew", path);
    memcpy(c->sums, data + sizeof(got), sums_bytes(c));
    c->n_tokens = got.n_seen;
    w->n_done = got.work.n_done;
    return 0;
}

int tkv_calibration_resume(const char *path, struct tkv_calibration *c,
                           struct tkv_calibration_work *w, struct tkv_reason *why)
{
    char *data = NULL;
    size_t n = 0;
    int error;

    if (access(path, F_OK) && errno == ENOENT)
        return 0;
    if (tkv_engine_read_text(path, &data, &n, why))
        return -1;
    error = take(path, data, n, c, w, why);
    free(data);
    return error;
}
