/*
 * Summing queries. Those after RoPE are turned back first, which also takes the attention
 * scaling out, so that both kinds give the same sums up to rounding.
 */
#include "daemon/observation.h"

#include <math.h>
#include <string.h>

#include "core/calibration.h"
#include "core/half.h"
#include "proto/errors.h"
#include "proto/limits.h"
#include "store/budget.h"
#include "store/session.h"

enum { TILE_TOKENS = 64 }; /* whose angles are made at a time */

struct tkv_observation {
    size_t bytes;
    struct tkv_rope_params rope_params;
    struct tkv_rope rope;
    uint32_t n_layers;
    struct tkv_shape shape;
    uint64_t *n_tokens; /* [layer] */
    double *sums;       /* [layer][q_head][re, im, abs][band] */
    float *angles;      /* [TILE_TOKENS][2 * n_bands] */
    float *rows;        /* [q_head][head_dim_k] */
    uint32_t *wrong;    /* [q_head]: tokens before the first that is not finite */
    char name[TRIKV_MAX_NAME_BYTES + 1];
    char architecture[TRIKV_MAX_NAME_BYTES + 1];
    char fingerprint[32];
};

static size_t n_statistics(const struct tkv_observation *o)
{
    return (size_t)o->n_layers * o->shape.n_q_heads * 3 * o->rope.n_bands;
}

static int check_shapes(const struct tkv_session *s, struct tkv_report *why)
{
    const struct tkv_shape *first = tkv_session_shape(s, 0);

    if (first->rope_dim > 0)
        return tkv_fail(why, TRIKV_E_GEOMETRY,
                        "layer 0 has latents: there is no profile with statistics of them");

    for (uint32_t i = 1; i < tkv_session_n_layers(s); i++) {
        if (memcmp(tkv_session_shape(s, i), first, sizeof(*first)) != 0)
            return tkv_fail(why, TRIKV_E_GEOMETRY,
                            "layer %u has another geometry than layer 0: a profile has one for all",
                            i);
    }
    return TRIKV_OK;
}

/* The next array in base (or NULL, to learn the size), each at a multiple of 64. */
static void *place(char *base, size_t *at, size_t bytes)
{
    void *array = base ? base + *at : NULL;

    *at += tkv_align(bytes, 64);
    return array;
}

/* Where each array is; returns the size of all. */
static size_t lay_out(struct tkv_observation *o, char *base)
{
    const size_t n_heads = o->shape.n_q_heads, dim = o->shape.head_dim_k;
    size_t at = tkv_align(sizeof(*o), 64);

    o->n_tokens = place(base, &at, o->n_layers * sizeof(*o->n_tokens));
    o->sums = place(base, &at, n_statistics(o) * sizeof(*o->sums));
    o->angles = place(base, &at, TILE_TOKENS * dim * sizeof(*o->angles));
    o->rows = place(base, &at, n_heads * dim * sizeof(*o->rows));
    o->wrong = place(base, &at, n_heads * sizeof(*o->wrong));
    return at;
}

int tkv_observation_create(struct tkv_observation **observation, const struct tkv_session *session,
                           const struct tkv_rope_params *rope, struct tkv_budget *budget,
                           struct tkv_report *why)
{
    struct tkv_observation plan = {.rope_params = *rope};
    const char *wrong = tkv_rope_init(&plan.rope, rope);

    *observation = NULL;
    if (check_shapes(session, why))
        return TRIKV_E_GEOMETRY;
    plan.shape = *tkv_session_shape(session, 0);
    plan.n_layers = tkv_session_n_layers(session);
    if (wrong || plan.rope.head_dim != plan.shape.head_dim_k)
        return tkv_fail(why, TRIKV_E_GEOMETRY, "rope: %s",
                        wrong ? wrong : "head_dim is not the session's");
    plan.bytes = lay_out(&plan, NULL);
    *observation = tkv_budget_alloc(budget, plan.bytes);
    if (!*observation)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP,
                        "memory cap reached: no %zu bytes for query statistics", plan.bytes);
    **observation = plan;
    lay_out(*observation, (char *)*observation);
    return TRIKV_OK;
}

void tkv_observation_destroy(struct tkv_observation **o, struct tkv_budget *budget)
{
    if (*o)
        tkv_budget_free(budget, *o, (*o)->bytes);
    *o = NULL;
}

size_t tkv_observation_bytes(const struct tkv_observation *o)
{
    return o ? o->bytes : 0;
}

/* A request's queries on their way into the sums, by tiles of tokens and by heads. */
struct adding {
    struct tkv_observation *o;
    const struct tkv_step *step;
    const struct tkv_kernels *kn;
    bool turned;
    size_t first, n; /* tokens of the tile */
};

/* The query of a token and head as floats, in the head's own row. */
static float *read_row(const struct adding *a, size_t token, size_t head)
{
    const size_t dim = a->o->shape.head_dim_k;
    const size_t at = (token * a->o->shape.n_q_heads + head) * dim;
    float *row = a->o->rows + head * dim;

    tkv_to_f32(a->kn, row, (const char *)a->step->q + at * tkv_dtype_bytes(a->step->dtype),
               a->step->dtype, dim);
    return row;
}

static void check_head(void *arg, size_t head)
{
    const struct adding *a = arg;
    const size_t dim = a->o->shape.head_dim_k;
    uint32_t token = 0;

    for (; token < a->step->n_tokens; token++) {
        const float *row = read_row(a, token, head);
        size_t i = 0;

        while (i < dim && isfinite(row[i]))
            i++;
        if (i < dim)
            break;
    }
    a->o->wrong[head] = token;
}

static void add_head(void *arg, size_t head)
{
    const struct adding *a = arg;
    struct tkv_observation *const o = a->o;
    const size_t dim = o->shape.head_dim_k;
    double *sums = o->sums + (a->step->layer * (size_t)o->shape.n_q_heads + head) * 3 * (dim / 2);

    for (size_t t = 0; t < a->n; t++) {
        float *row = read_row(a, a->first + t, head);

        if (a->turned)
            tkv_rope_turn_back(&o->rope, o->angles + t * dim, row, row);
        tkv_calibration_add(&o->rope, row, dim, 1, sums);
    }
}

static int check_queries(struct adding *a, const struct tkv_exec *exec, struct tkv_report *why)
{
    const struct tkv_step *step = a->step;

    if (a->turned && !step->positions)
        return tkv_fail(why, TRIKV_E_ARGUMENT,
                        "positions: queries after RoPE need them, or before_rope");
    for (uint32_t t = 0; a->turned && t < step->n_tokens; t++) {
        if (step->positions[t] < 0 || step->positions[t] > TRIKV_MAX_POSITION)
            return tkv_fail(why, TRIKV_E_POSITION, "positions[%u] is %d, want 0..%d", t,
                            step->positions[t], TRIKV_MAX_POSITION);
    }
    tkv_exec_run(exec, a->o->shape.n_q_heads, check_head, a);
    for (uint32_t h = 0; h < a->o->shape.n_q_heads; h++) {
        if (a->o->wrong[h] < step->n_tokens)
            return tkv_fail(why, TRIKV_E_VALUE,
                            "layer %u: Q[token %u][head %u] holds a value that is not finite",
                            step->layer, a->o->wrong[h], h);
    }
    return TRIKV_OK;
}

int tkv_observation_add(struct tkv_observation *o, const struct tkv_step *step, bool before_rope,
                        const struct tkv_kernels *kn, const struct tkv_exec *exec,
                        struct tkv_report *why)
{
    struct adding a = {.o = o, .step = step, .kn = kn, .turned = !before_rope};
    const int e = check_queries(&a, exec, why);

    if (e)
        return e;
    for (; a.first < step->n_tokens; a.first += a.n) {
        const size_t left = step->n_tokens - a.first;

        a.n = left < TILE_TOKENS ? left : TILE_TOKENS;
        for (size_t t = 0; a.turned && t < a.n; t++)
            tkv_rope_angles(&o->rope, step->positions[a.first + t],
                            o->angles + t * o->shape.head_dim_k);
        tkv_exec_run(exec, o->shape.n_q_heads, add_head, &a);
    }
    o->n_tokens[step->layer] += step->n_tokens;
    return TRIKV_OK;
}

uint64_t tkv_observation_n_tokens(const struct tkv_observation *o, uint32_t layer)
{
    return o->n_tokens[layer];
}

uint64_t tkv_observation_fewest(const struct tkv_observation *o, uint32_t *layer)
{
    *layer = 0;
    for (uint32_t i = 1; i < o->n_layers; i++) {
        if (o->n_tokens[i] < o->n_tokens[*layer])
            *layer = i;
    }
    return o->n_tokens[*layer];
}

static struct tkv_profile_facts facts_of(const struct tkv_observation *o)
{
    uint32_t layer;

    return (struct tkv_profile_facts){
        .name = o->name,
        .architecture = o->architecture,
        .fingerprint = o->fingerprint,
        .notes = {"Written by trikvd from queries that a client let it observe."},
        .n_layers = o->n_layers,
        .shape = o->shape,
        .rope = o->rope_params,
        .n_tokens = tkv_observation_fewest(o, &layer),
        .n_statistics = n_statistics(o),
    };
}

int tkv_observation_name(struct tkv_observation *o, const char *name, const char *architecture,
                         const char *fingerprint, struct tkv_report *why)
{
    const struct tkv_profile_facts f = {
        .name = name, .architecture = architecture, .fingerprint = fingerprint};
    const char *wrong = tkv_profile_facts_wrong(&f);
    uint32_t layer;

    if (wrong)
        return tkv_fail(why, TRIKV_E_ARGUMENT, "CALIBRATE: %s", wrong);
    if (tkv_observation_fewest(o, &layer) == 0)
        return tkv_fail(why, TRIKV_E_STATE, "CALIBRATE: no query of layer %u was observed", layer);
    memcpy(o->name, name, strlen(name) + 1);
    memcpy(o->architecture, architecture, strlen(architecture) + 1);
    memcpy(o->fingerprint, fingerprint, strlen(fingerprint) + 1);
    return TRIKV_OK;
}

static size_t text_room(const struct tkv_observation *o)
{
    return tkv_align(tkv_profile_text_bytes(n_statistics(o)) + 1, 64);
}

size_t tkv_observation_room(const struct tkv_observation *o)
{
    return text_room(o) + n_statistics(o) * sizeof(float);
}

/* A float's range is the only way to lose a mean of finite queries. */
static int make_means(const struct tkv_observation *o, float *means, struct tkv_report *why)
{
    const size_t per_layer = n_statistics(o) / o->n_layers;

    for (uint32_t l = 0; l < o->n_layers; l++)
        tkv_calibration_mean(o->sums + l * per_layer, o->shape.n_q_heads, o->rope.n_bands,
                             o->n_tokens[l], means + l * per_layer);
    for (size_t i = 0; i < n_statistics(o); i++) {
        if (!isfinite(means[i]))
            return tkv_fail(why, TRIKV_E_VALUE,
                            "layer %zu: a mean of the queries is not a finite float",
                            i / per_layer);
    }
    return TRIKV_OK;
}

int tkv_observation_print(const struct tkv_observation *o, void *memory, size_t *n_bytes,
                          struct tkv_report *why)
{
    struct tkv_profile_facts f = facts_of(o);
    float *means = (float *)(void *)((char *)memory + text_room(o));
    FILE *out;
    long end;

    if (make_means(o, means, why))
        return TRIKV_E_VALUE;
    f.statistics = means;
    out = fmemopen(memory, text_room(o), "w");
    if (!out)
        return tkv_fail(why, TRIKV_E_NO_MEMORY, "no memory to write the profile");
    tkv_profile_print(out, &f);
    end = fflush(out) ? -1 : ftell(out);
    fclose(out);
    if (end < 0)
        return tkv_fail(why, TRIKV_E_INTERNAL, "the profile is longer than %zu bytes",
                        text_room(o));
    *n_bytes = (size_t)end;
    return TRIKV_OK;
}
