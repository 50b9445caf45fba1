/* Section errors of a profile: what each KV head loses with few bits, or with a window. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/profile_priv.h"
#include "daemon/profile_text.h"

#define ORDER "[layer][kv_head][tq1, tq2, tq3, tq4, window 16, 32, 64, 128, 256, 512, 1024, 2048]"

enum { MAX_HEADS = 1 << 16 };

static bool read_head(const struct tkv_yaml *y, const struct tkv_yaml_node *row, float *out)
{
    size_t i = 0;

    if (row->kind != TKV_YAML_SEQUENCE || row->n != TKV_PLAN_ERRORS) {
        tkv_yaml_error(y, row, "errors.data: want a list of %d numbers for each KV head",
                       TKV_PLAN_ERRORS);
        return false;
    }
    for (const struct tkv_yaml_node *n = row->first; n; n = n->next, i++) {
        double x;

        if (!tkv_yaml_double(y, n, "errors.data", 0, 1e30, &x))
            return false;
        out[i] = (float)x;
    }
    return true;
}

static bool read_rows(struct tkv_profile *p, const struct tkv_yaml *y,
                      const struct tkv_yaml_node *data)
{
    const size_t n_heads = (size_t)p->n_layers * p->shape.n_kv_heads;
    float *out;

    if (data->kind != TKV_YAML_SEQUENCE || data->n != n_heads || n_heads > MAX_HEADS) {
        tkv_yaml_error(y, data, "errors.data: want %zu lists, one for each KV head of each layer",
                       n_heads);
        return false;
    }
    out = p->errors = calloc(n_heads * TKV_PLAN_ERRORS, sizeof(*p->errors));
    if (!out) {
        tkv_yaml_error(y, data, "errors: out of memory");
        return false;
    }
    for (const struct tkv_yaml_node *n = data->first; n; n = n->next, out += TKV_PLAN_ERRORS)
        if (!read_head(y, n, out))
            return false;
    return true;
}

bool tkv_profile_read_errors(struct tkv_profile *p, const struct tkv_yaml *y,
                             const struct tkv_yaml_node *map)
{
    static const char *const keys[] = {"n_tokens", "order", "data", NULL};
    const struct tkv_yaml_node *n_tokens, *order, *data;
    uint32_t n;

    if (!tkv_yaml_check_keys(y, map, "errors", keys))
        return false;
    n_tokens = tkv_profile_need(y, map, "errors", "n_tokens");
    order = tkv_profile_need(y, map, "errors", "order");
    data = tkv_profile_need(y, map, "errors", "data");
    if (!n_tokens || !order || !data ||
        !tkv_yaml_u32(y, n_tokens, "errors.n_tokens", 1, UINT32_MAX, &n))
        return false;
    if (order->kind != TKV_YAML_SCALAR || strcmp(order->text, ORDER) != 0) {
        tkv_yaml_error(y, order, "errors.order: want \"" ORDER "\"");
        return false;
    }
    return read_rows(p, y, data);
}

void tkv_profile_print_errors(FILE *out, const float *errors, size_t n_heads, uint64_t n_tokens)
{
    fprintf(out, "errors:\n  n_tokens: %llu\n  order: \"" ORDER "\"\n  data:\n",
            (unsigned long long)n_tokens);
    for (size_t h = 0; h < n_heads; h++)
        for (size_t i = 0; i < TKV_PLAN_ERRORS; i++)
            fprintf(out, "%s%.4g%s", i ? ", " : "    - [", (double)errors[h * TKV_PLAN_ERRORS + i],
                    i + 1 == TKV_PLAN_ERRORS ? "]\n" : "");
}
