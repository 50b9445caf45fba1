#include "tools/recorded.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/half.h"
#include "daemon/yaml_value.h"

enum { MAX_JSON_BYTES = 1 << 20, MAX_TOKENS = 1 << 20 };

/* JSON is YAML as far as these files go. */
static bool read_shapes(struct tkv_recorded *r, const struct tkv_yaml *y)
{
    const struct {
        const char *name;
        uint32_t max;
        uint32_t *out;
    } fields[] = {{"n_q_heads", 1024, &r->n_q_heads},
                  {"n_kv_heads", 1024, &r->n_kv_heads},
                  {"head_dim", TKV_MAX_HEAD_DIM, &r->head_dim},
                  {"n_tokens", MAX_TOKENS, &r->n_tokens}};
    const struct tkv_yaml_node *layers = tkv_yaml_find(y->root, "layers");
    bool ok = layers && layers->kind == TKV_YAML_SEQUENCE && layers->n > 0 && layers->n <= 512;

    if (!ok)
        tkv_yaml_error(y, layers, "layers: expected a list of 1..512 layer numbers");
    r->n_layers = ok ? (uint32_t)layers->n : 0;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const struct tkv_yaml_node *n = tkv_yaml_find(y->root, fields[i].name);

        if (!n)
            tkv_yaml_error(y, NULL, "%s is missing", fields[i].name);
        ok &= n && tkv_yaml_u32(y, n, fields[i].name, 1, fields[i].max, fields[i].out);
    }
    return ok && r->n_q_heads % r->n_kv_heads == 0;
}

static int read_json(struct tkv_recorded *r, const char *path, struct tkv_reason *why)
{
    struct tkv_diag diag = {0};
    struct tkv_yaml y = {0};
    char *text = NULL;
    size_t n;
    bool ok = tkv_yaml_read_file(path, MAX_JSON_BYTES, &text, &n, &diag);

    if (ok) {
        ok = tkv_yaml_parse(&y, path, text, n, &diag) && read_shapes(r, &y);
        tkv_yaml_deinit(&y);
    }
    if (!ok)
        (void)tkv_reason_set(why, "%s", diag.n ? diag.line[0] : "the shapes do not fit together");
    free(text);
    tkv_diag_deinit(&diag);
    return ok ? 0 : -1;
}

static int read_tensor(const char *path, float *x, size_t n, struct tkv_reason *why)
{
    uint16_t part[4096];
    FILE *f = fopen(path, "rb");
    size_t done = 0;

    if (!f)
        return tkv_reason_set(why, "cannot open %s", path);
    while (done < n) {
        const size_t want = n - done < 4096 ? n - done : 4096;

        if (fread(part, sizeof(*part), want, f) != want)
            break;
        for (size_t i = 0; i < want; i++)
            x[done + i] = tkv_f16_to_f32(part[i]);
        done += want;
    }
    if (done == n && fgetc(f) == EOF)
        n = 0;
    (void)fclose(f);
    return n ? tkv_reason_set(why, "%s: expected %zu halves, read %zu", path, n, done) : 0;
}

int tkv_recorded_init(struct tkv_recorded *r, const char *path, struct tkv_reason *why)
{
    const size_t stem = strlen(path) - strlen(".json");
    char file[4096];
    size_t n_q, n_k;

    *r = (struct tkv_recorded){0};
    if (read_json(r, path, why))
        return -1;
    n_q = (size_t)r->n_layers * r->n_q_heads * r->n_tokens * r->head_dim;
    n_k = (size_t)r->n_layers * r->n_kv_heads * r->n_tokens * r->head_dim;
    r->q = malloc((n_q + 2 * n_k) * sizeof(float));
    if (!r->q)
        return tkv_reason_set(why, "out of memory for %zu numbers", n_q + 2 * n_k);
    r->k = r->q + n_q;
    r->v = r->k + n_k;
    for (int i = 0; i < 3; i++) {
        (void)snprintf(file, sizeof(file), "%.*s.%c.f16", (int)stem, path, "qkv"[i]);
        if (read_tensor(file, i == 0 ? r->q : i == 1 ? r->k : r->v, i ? n_k : n_q, why))
            return -1;
    }
    return 0;
}

void tkv_recorded_deinit(struct tkv_recorded *r)
{
    free(r->q);
    *r = (struct tkv_recorded){0};
}
