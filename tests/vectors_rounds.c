/*
 * Golden vectors of a whole generation: prompt, decode steps and the pruning
 * rounds in between, with the reference's trigger (specification 1.8), its habit
 * of keeping only the prompt's head when the prompt fills the budget, and the
 * core's scores and selection.
 */
#include <stdlib.h>
#include <string.h>

#include "core/select.h"
#include "tests/cpu.h"
#include "tests/vectors.h"
#include "tests/z_scores.h"

enum mode { PER_HEAD, PER_LAYER_PERHEAD, UNION };

struct run {
    struct vec_model m;
    enum mode mode;
    size_t prefill;
    size_t n_steps;
    size_t budget;
    size_t divide;
    bool count_prompt;
    bool slack;
    bool compress_prefill;
    bool normalize;
    const float *keys; /* [layers][kv_heads][prefill + n_steps][head_dim] */
    size_t n_rows;     /* layers * kv_heads */
    size_t n_max;      /* positions in all */
    size_t len;        /* slots in use, the same for every row */
    int32_t *slots;    /* [n_rows][n_max]: the position in each slot */
};

static bool read_mode(struct vec_case *c, enum mode *mode)
{
    static const char *const names[] = {"per_head", "per_layer_perhead", "union"};
    const char *text = vec_text(c, "mode");

    for (*mode = PER_HEAD; *mode <= UNION; (*mode)++) {
        if (strcmp(text, names[*mode]) == 0)
            return true;
    }
    vec_fail(c, "mode %s: unknown", text);
    return false;
}

static bool read_run(struct vec_case *c, struct run *r)
{
    if (!vec_model_init(c, &r->m) || !read_mode(c, &r->mode))
        return false;
    r->prefill = (size_t)vec_int(c, "prefill", 1 << 20);
    r->n_steps = (size_t)vec_int(c, "decode_steps", 1 << 20);
    r->budget = (size_t)vec_int(c, "budget", 1 << 20);
    r->divide = (size_t)vec_int(c, "divide_length", 1 << 20);
    r->count_prompt = vec_bool(c, "count_prompt_tokens");
    r->slack = vec_bool(c, "use_slack_trigger");
    r->compress_prefill = vec_bool(c, "allow_prefill_compression");
    r->normalize = vec_bool(c, "normalize");
    r->n_rows = r->m.n_layers * r->m.n_kv_heads;
    r->n_max = r->prefill + r->n_steps;
    r->keys =
        VEC_DATA(c, "k_rot", VEC_F32, r->m.n_layers, r->m.n_kv_heads, r->n_max, r->m.rope.head_dim);
    if (r->divide == 0)
        vec_fail(c, "divide_length must not be 0");
    if (c->n_failures > 0)
        return false;
    r->slots = vec_alloc(r->n_rows * r->n_max, sizeof *r->slots);
    return true;
}

static void append(struct run *r, size_t position)
{
    for (size_t i = 0; i < r->n_rows; i++)
        r->slots[i * r->n_max + r->len] = (int32_t)position;
    r->len++;
}

static bool is_due(const struct run *r, size_t n_seen)
{
    const size_t prompt = r->len < r->prefill ? r->len : r->prefill;
    const size_t counted = r->count_prompt ? r->len : r->len - prompt;

    if (r->slack)
        return counted >= r->budget + r->divide;
    return counted >= r->budget && n_seen % r->divide == 0;
}

/* The group's best z-score of slots first .. len - 1 of every row: [n_rows][len - first]. */
static void score_slots(const struct run *r, size_t first, size_t n_seen, float *best)
{
    const size_t n = r->len - first;
    const size_t dim = r->m.rope.head_dim;
    float *keys = vec_alloc(n * dim, sizeof *keys);
    float *heads = vec_alloc(r->n_rows * r->m.group * n, sizeof *heads);

    for (size_t i = 0; i < r->n_rows; i++) {
        for (size_t t = 0; t < n; t++) {
            const size_t position = (size_t)r->slots[i * r->n_max + first + t];

            memcpy(keys + t * dim, r->keys + (i * r->n_max + position) * dim, dim * sizeof *keys);
        }
        for (size_t g = 0; g < r->m.group; g++) {
            const size_t head = i % r->m.n_kv_heads * r->m.group + g;
            const struct tkv_tri_stats stats = vec_model_stats(&r->m, i / r->m.n_kv_heads, head);
            float *row = heads + (i * r->m.group + g) * n;

            vec_model_score(&r->m, &stats, keys, n, (int64_t)n_seen, row);
            if (r->normalize)
                z_scores(row, n);
        }
    }
    vec_fold_group(&r->m, heads, n, false, best);
    free(keys);
    free(heads);
}

/* Which of the rows that are ranked decides for cache row i (layer-major)? */
static size_t deciding_row(const struct run *r, size_t i)
{
    if (r->mode == PER_LAYER_PERHEAD)
        return i;
    return r->mode == PER_HEAD ? i % r->m.n_kv_heads : 0;
}

/* Keep slots 0 .. first - 1 and the best of the others, moved down in place. */
static void prune(struct run *r, size_t first, size_t n_seen)
{
    const size_t n = r->len - first;
    float *best = vec_alloc(r->n_rows * n, sizeof *best);
    float *ranked = vec_alloc(r->n_rows * n, sizeof *ranked);
    uint32_t *keep = vec_alloc(n, sizeof *keep);
    uint32_t *scratch = vec_alloc(n, sizeof *scratch);

    score_slots(r, first, n_seen, best);
    if (r->mode == PER_HEAD)
        vec_fold_layers(&r->m, best, n, ranked);
    else if (r->mode == UNION)
        vec_fold_all(&r->m, best, n, ranked);
    else
        memcpy(ranked, best, r->n_rows * n * sizeof *ranked);
    for (size_t i = 0; i < r->n_rows; i++) {
        const size_t n_kept = tkv_select_top(cpu_kernels(), ranked + deciding_row(r, i) * n, n,
                                             r->budget - first, keep, scratch);
        int32_t *slots = r->slots + i * r->n_max + first;

        for (size_t t = 0; t < n_kept; t++)
            slots[t] = slots[keep[t]];
    }
    r->len = r->budget;
    free(best);
    free(ranked);
    free(keep);
    free(scratch);
}

static void run_round(struct run *r, size_t n_seen)
{
    const size_t prompt = r->len < r->prefill ? r->len : r->prefill;
    const size_t pinned = r->compress_prefill ? 0 : prompt;

    if (r->len <= r->budget)
        return;
    /* The reference's trap: a pinned prompt that fills the budget loses its own tail, and with it
     * every new token. */
    if (pinned >= r->budget)
        r->len = r->budget;
    else
        prune(r, pinned, n_seen);
}

static void check_number(struct vec_case *c, json_t *round, const char *key, size_t i, size_t got)
{
    const json_t *value = json_object_get(round, key);

    if (!json_is_integer(value) || json_integer_value(value) != (json_int_t)got)
        vec_fail(c, "round %zu: %s: got %zu, want %lld", i, key, got,
                 (long long)json_integer_value(value));
}

/* Compare the cache after round i of the case with what it expects. */
static void check_round(struct vec_case *c, const struct run *r, size_t i, size_t step,
                        size_t len_before, const int32_t *kept)
{
    json_t *round = json_array_get(json_object_get(c->json, "rounds"), i);

    check_number(c, round, "step", i, step);
    check_number(c, round, "abs_pos", i, r->prefill + step + 1);
    check_number(c, round, "len_before", i, len_before);
    check_number(c, round, "len_after", i, r->len);
    for (size_t row = 0; row < r->n_rows; row++) {
        const int32_t *want = kept + (i * r->n_rows + row) * r->budget;

        if (memcmp(want, r->slots + row * r->n_max, r->len * sizeof *want) != 0)
            vec_fail(c, "kept_positions: round %zu, layer %zu, KV head %zu differ", i,
                     row / r->m.n_kv_heads, row % r->m.n_kv_heads);
    }
}

/* A round that finds nothing to drop need not be in the case's list. */
static bool is_listed(const struct vec_case *c, size_t i, size_t step)
{
    json_t *round = json_array_get(json_object_get(c->json, "rounds"), i);

    return round && json_integer_value(json_object_get(round, "step")) == (json_int_t)step;
}

static void generate(struct vec_case *c, struct run *r, const int32_t *kept, const int32_t *lengths)
{
    const size_t n_rounds = json_array_size(json_object_get(c->json, "rounds"));
    size_t n_done = 0;

    for (size_t p = 0; p < r->prefill; p++)
        append(r, p);
    if (lengths[0] != (int32_t)r->len)
        vec_fail(c, "cache_len_after_step: 0: got %zu, want %d", r->len, lengths[0]);
    for (size_t step = 0; step < r->n_steps && c->n_failures == 0; step++) {
        const size_t n_seen = r->prefill + step + 1;
        size_t len_before;

        append(r, n_seen - 1);
        len_before = r->len;
        if (is_due(r, n_seen)) {
            run_round(r, n_seen);
            if (n_done == n_rounds && r->len != len_before)
                vec_fail(c, "a round at step %zu that the case does not list", step);
            else if (r->len != len_before || is_listed(c, n_done, step))
                check_round(c, r, n_done++, step, len_before, kept);
        }
        if (lengths[step + 1] != (int32_t)r->len)
            vec_fail(c, "cache_len_after_step: %zu: got %zu, want %d", step + 1, r->len,
                     lengths[step + 1]);
    }
    if (c->n_failures == 0 && n_done != n_rounds)
        vec_fail(c, "%zu rounds, want %zu", n_done, n_rounds);
}

void vec_run_multi_round(struct vec_case *c)
{
    const size_t n_rounds = json_array_size(json_object_get(c->json, "rounds"));
    struct run r = {0};

    if (read_run(c, &r)) {
        const int32_t *lengths = VEC_DATA(c, "cache_len_after_step", VEC_I32, r.n_steps + 1);
        const int32_t *kept = VEC_DATA(c, "kept_positions", VEC_I32, n_rounds, r.m.n_layers,
                                       r.m.n_kv_heads, r.budget);

        const float *pre =
            VEC_DATA(c, "k_pre", VEC_F32, r.m.n_layers, r.m.n_kv_heads, r.n_max, r.m.rope.head_dim);
        const struct vec_turn turn = {pre, r.n_rows * r.n_max, NULL, r.n_max, false};

        if (pre)
            vec_check_turned(c, &r.m.rope, &turn, vec_find(c, "k_rot"));
        if (lengths && kept)
            generate(c, &r, kept, lengths);
    }
    free(r.slots);
}
