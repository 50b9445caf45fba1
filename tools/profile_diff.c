/*
 * A head's mean query decides which keys it is taken to ask for: how far it has moved is the
 * angle between the two means, as a cosine over all bands, and the change of its concentration.
 */
#include "tools/profile_diff.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/ctl_text.h"
#include "tools/profile_plot.h"

enum { N_SHOWN = 10, FIELD_BYTES = 80 };

struct fields {
    FILE *out;
    bool json;
    size_t n; /* printed */
};

static void compare_text(struct fields *f, const char *name, const char *a, const char *b)
{
    if (strcmp(a, b) == 0)
        return;
    if (!f->json) {
        fprintf(f->out, "%-20s %s -> %s\n", name, a, b);
    } else {
        fprintf(f->out, "%s{\"field\": \"%s\", \"from\": ", f->n ? ",\n" : "", name);
        ctl_json_string(f->out, a);
        fputs(", \"to\": ", f->out);
        ctl_json_string(f->out, b);
        putc('}', f->out);
    }
    f->n++;
}

static void compare_number(struct fields *f, const char *name, double a, double b)
{
    char x[FIELD_BYTES], y[FIELD_BYTES];

    snprintf(x, sizeof(x), "%.12g", a);
    snprintf(y, sizeof(y), "%.12g", b);
    compare_text(f, name, x, y);
}

static void compare_rope(struct fields *f, const struct tkv_rope_params *p,
                         const struct tkv_rope_params *q)
{
    compare_number(f, "rope.theta", p->theta, q->theta);
    compare_number(f, "rope.rotary_dim", p->rotary_dim, q->rotary_dim);
    compare_text(f, "rope.layout", tkv_rope_layout_names[p->layout],
                 tkv_rope_layout_names[q->layout]);
    compare_text(f, "rope.scaling", tkv_rope_scaling_names[p->scaling],
                 tkv_rope_scaling_names[q->scaling]);
    compare_number(f, "rope.factor", p->factor, q->factor);
    compare_number(f, "rope.original_context", p->original_context, q->original_context);
}

static void compare_policy(struct fields *f, const struct tkv_policy *p, const struct tkv_policy *q)
{
    compare_text(f, "method", tkv_method_names[p->method], tkv_method_names[q->method]);
    compare_number(f, "budget", p->budget_tokens, q->budget_tokens);
    compare_number(f, "beta", p->beta_tokens, q->beta_tokens);
    compare_number(f, "recent", p->recent_tokens, q->recent_tokens);
    compare_number(f, "pinned", p->pinned_tokens, q->pinned_tokens);
    compare_text(f, "eviction_mode", tkv_eviction_mode_names[p->eviction_mode],
                 tkv_eviction_mode_names[q->eviction_mode]);
    compare_number(f, "offset_max", p->offset_max, q->offset_max);
}

static void compare_fields(struct fields *f, const struct tkv_profile *a,
                           const struct tkv_profile *b)
{
    compare_text(f, "architecture", a->architecture, b->architecture);
    compare_text(f, "fingerprint", a->fingerprint, b->fingerprint);
    compare_number(f, "n_layers", a->n_layers, b->n_layers);
    compare_number(f, "n_q_heads", a->shape.n_q_heads, b->shape.n_q_heads);
    compare_number(f, "n_kv_heads", a->shape.n_kv_heads, b->shape.n_kv_heads);
    compare_number(f, "head_dim_k", a->shape.head_dim_k, b->shape.head_dim_k);
    compare_number(f, "head_dim_v", a->shape.head_dim_v, b->shape.head_dim_v);
    compare_rope(f, &a->rope_params, &b->rope_params);
    compare_policy(f, &a->policy, &b->policy);
}

struct move {
    uint32_t layer, head;
    double cosine, from_r, to_r;
};

static struct move measure(const struct tkv_profile *a, const struct tkv_profile *b, uint32_t layer,
                           uint32_t head)
{
    const uint32_t n = a->shape.head_dim_k / 2;
    const float *x = tkv_profile_layer_statistics(a, layer) + (size_t)head * 3 * n;
    const float *y = tkv_profile_layer_statistics(b, layer) + (size_t)head * 3 * n;
    double xy = 0, xx = 0, yy = 0;

    for (uint32_t i = 0; i < 2 * n; i++) {
        xy += (double)x[i] * (double)y[i];
        xx += (double)x[i] * (double)x[i];
        yy += (double)y[i] * (double)y[i];
    }
    return (struct move){layer, head, xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : xx >= yy && yy >= xx,
                         tkv_profile_head_r(a, layer, head), tkv_profile_head_r(b, layer, head)};
}

static int by_cosine(const void *a, const void *b)
{
    const struct move *x = a, *y = b;

    return (x->cosine > y->cosine) - (x->cosine < y->cosine);
}

static void describe(struct ctl_record *r, const struct move *m)
{
    ctl_add_count(r, "layer", "layer", CTL_COUNT, m->layer);
    ctl_add_count(r, "head", "query head", CTL_COUNT, m->head);
    ctl_add_number(r, "cosine", "cosine of means", CTL_NUMBER, m->cosine);
    ctl_add_number(r, "from_r", "R before", CTL_NUMBER, m->from_r);
    ctl_add_number(r, "to_r", "R after", CTL_NUMBER, m->to_r);
}

static void print_moves(FILE *out, const struct move *moves, struct ctl_record *records, size_t n,
                        bool json, bool all)
{
    const size_t n_shown = all || n < N_SHOWN ? n : N_SHOWN;

    for (size_t i = 0; i < n_shown; i++)
        describe(&records[i], &moves[i]);
    if (json) {
        fprintf(out, ", \"median_cosine\": %.6f, \"heads\":\n", moves[n / 2].cosine);
        ctl_json_array(out, records, n_shown);
        return;
    }
    fprintf(out, "\nmean queries of %zu heads: median cosine %.4f, lowest %.4f\n", n,
            moves[n / 2].cosine, moves[0].cosine);
    ctl_print_table(out, records, n_shown);
}

static int diff_heads(FILE *out, const struct tkv_profile *a, const struct tkv_profile *b,
                      bool json, bool all)
{
    const size_t n = (size_t)a->n_layers * a->shape.n_q_heads;
    struct move *moves = calloc(n, sizeof(*moves));
    struct ctl_record *records = calloc(n, sizeof(*records));

    if (moves && records) {
        for (size_t i = 0; i < n; i++)
            moves[i] = measure(a, b, (uint32_t)(i / a->shape.n_q_heads),
                               (uint32_t)(i % a->shape.n_q_heads));
        qsort(moves, n, sizeof(*moves), by_cosine);
        print_moves(out, moves, records, n, json, all);
    }
    free(records);
    free(moves);
    return moves && records ? 1 : -1;
}

static bool same_statistics(const struct tkv_profile *a, const struct tkv_profile *b)
{
    return a->n_statistics == b->n_statistics &&
           (!a->n_statistics ||
            memcmp(a->statistics, b->statistics, a->n_statistics * sizeof(float)) == 0);
}

int tkv_profile_diff(FILE *out, const struct tkv_profile *a, const struct tkv_profile *b, bool json,
                     bool all_heads)
{
    struct fields f = {.out = out, .json = json};
    const bool comparable = a->n_statistics && a->n_layers == b->n_layers &&
                            a->shape.n_q_heads == b->shape.n_q_heads &&
                            a->shape.head_dim_k == b->shape.head_dim_k && b->n_statistics;
    int status;

    if (json)
        fputs("{\"fields\": [", out);
    compare_fields(&f, a, b);
    if (json)
        putc(']', out);
    status = f.n > 0 || !same_statistics(a, b);
    if (!same_statistics(a, b) && comparable)
        status = diff_heads(out, a, b, json, all_heads);
    else if (!same_statistics(a, b) && !json)
        fputs("statistics            of other geometry, or only in one\n", out);
    if (json)
        fputs("}\n", out);
    return status;
}
