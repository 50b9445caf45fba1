/* One profile from its YAML: each part read and checked, all errors told. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/profile_priv.h"

#define FORMAT "trikv-profile/1"

enum { MAX_CONTEXT = 1 << 30 };

const char *const tkv_rope_layout_names[] = {"half", "interleaved", NULL};
const char *const tkv_rope_scaling_names[] = {"none", "linear", "llama3", "yarn", NULL};

const struct tkv_yaml_node *tkv_profile_need(const struct tkv_yaml *y,
                                             const struct tkv_yaml_node *map, const char *what,
                                             const char *key)
{
    const struct tkv_yaml_node *n = tkv_yaml_find(map, key);

    if (!n)
        tkv_yaml_error(y, map, "%s: \"%s\" is missing", what, key);
    return n;
}

/* A part that is a mapping with these keys; NULL, after an error, if not. */
const struct tkv_yaml_node *tkv_profile_part(struct tkv_profile_reader *r,
                                             const struct tkv_yaml_node *map, const char *what,
                                             const char *key, const char *const *names, bool needed)
{
    const struct tkv_yaml_node *n =
        needed ? tkv_profile_need(r->y, map, what, key) : tkv_yaml_find(map, key);

    if (!n) {
        r->good &= !needed;
        return NULL;
    }
    if (!tkv_yaml_check_keys(r->y, n, key, names))
        r->good = false;
    return n->kind == TKV_YAML_MAPPING ? n : NULL;
}

/* A whole number; true if it is there and right. An absent one is an error if needed. */
bool tkv_profile_number(struct tkv_profile_reader *r, const struct tkv_yaml_node *map,
                        const char *what, const char *key, bool needed, uint32_t min, uint32_t max,
                        uint32_t *out)
{
    const struct tkv_yaml_node *n =
        needed ? tkv_profile_need(r->y, map, what, key) : tkv_yaml_find(map, key);
    char name[96];

    snprintf(name, sizeof(name), "%s.%s", what, key);
    if (n && tkv_yaml_u32(r->y, n, name, min, max, out))
        return true;
    r->good &= !n && !needed;
    return false;
}

static bool real(struct tkv_profile_reader *r, const struct tkv_yaml_node *map, const char *key,
                 bool needed, double min, double max, double *out)
{
    const struct tkv_yaml_node *n =
        needed ? tkv_profile_need(r->y, map, "rope", key) : tkv_yaml_find(map, key);
    char name[96];

    snprintf(name, sizeof(name), "rope.%s", key);
    if (n && tkv_yaml_double(r->y, n, name, min, max, out))
        return true;
    r->good &= !n && !needed;
    return false;
}

bool tkv_profile_choice(struct tkv_profile_reader *r, const struct tkv_yaml_node *map,
                        const char *what, const char *key, bool needed, const char *const *names,
                        uint32_t *out)
{
    const struct tkv_yaml_node *n =
        needed ? tkv_profile_need(r->y, map, what, key) : tkv_yaml_find(map, key);
    char name[96];

    snprintf(name, sizeof(name), "%s.%s", what, key);
    if (n && tkv_yaml_enum(r->y, n, name, names, out))
        return true;
    r->good &= !n && !needed;
    return false;
}

static void text(struct tkv_profile_reader *r, const struct tkv_yaml_node *map, const char *what,
                 const char *key, char *out, size_t out_bytes)
{
    const struct tkv_yaml_node *n = tkv_profile_need(r->y, map, what, key);
    char name[96];

    snprintf(name, sizeof(name), "%s.%s", what, key);
    if (!n || !tkv_yaml_text(r->y, n, name, out, out_bytes))
        r->good = false;
}

/* The name is that of the file, so that one finds the other. */
static void read_name(struct tkv_profile_reader *r)
{
    const struct tkv_yaml_node *n = tkv_profile_need(r->y, r->y->root, "profile", "name");
    const char *base = strrchr(r->y->file, '/');
    const size_t length = n && n->kind == TKV_YAML_SCALAR ? n->text_bytes : 0;

    r->good &= n != NULL;
    if (!n)
        return;
    base = base ? base + 1 : r->y->file;
    if (length == 0 || length > TRIKV_MAX_NAME_BYTES ||
        strspn(n->text, "abcdefghijklmnopqrstuvwxyz0123456789._-") != length) {
        tkv_yaml_error(r->y, n, "name: want 1..%d of a-z 0-9 . _ -", TRIKV_MAX_NAME_BYTES);
        r->good = false;
    } else if (strncmp(base, n->text, length) != 0 || strcmp(base + length, ".yaml") != 0) {
        tkv_yaml_error(r->y, n, "name: \"%s\" is not the name of the file, %s", n->text, base);
        r->good = false;
    } else {
        memcpy(r->p->name, n->text, length + 1);
    }
}

static void read_fingerprint(struct tkv_profile_reader *r, const struct tkv_yaml_node *model)
{
    char *const f = r->p->fingerprint;

    text(r, model, "model", "fingerprint", f, sizeof(r->p->fingerprint));
    if (!*f || strcmp(f, "none") == 0)
        return;
    if (strncmp(f, "xxh3:", 5) == 0 && strlen(f) == 21 && strspn(f + 5, "0123456789abcdef") == 16)
        return;
    tkv_yaml_error(r->y, tkv_yaml_find(model, "fingerprint"),
                   "model.fingerprint: want \"xxh3:\" and 16 hexadecimal digits, or none");
    r->good = false;
}

static void read_head_dims(struct tkv_profile_reader *r, const struct tkv_yaml_node *model)
{
    struct tkv_shape *s = &r->p->shape;
    const bool both = tkv_yaml_find(model, "head_dim") == NULL;
    const uint32_t min = TKV_MIN_HEAD_DIM, max = TKV_MAX_HEAD_DIM;

    if (both) {
        tkv_profile_number(r, model, "model", "head_dim_k", true, min, max, &s->head_dim_k);
        tkv_profile_number(r, model, "model", "head_dim_v", true, min, max, &s->head_dim_v);
    } else {
        tkv_profile_number(r, model, "model", "head_dim", true, min, max, &s->head_dim_k);
        s->head_dim_v = s->head_dim_k;
        if (tkv_yaml_find(model, "head_dim_k") || tkv_yaml_find(model, "head_dim_v")) {
            tkv_yaml_error(r->y, model, "model: want head_dim, or head_dim_k and head_dim_v");
            r->good = false;
        }
    }
    if (s->head_dim_k % 2 || s->head_dim_v % 2) {
        tkv_yaml_error(r->y, model, "model: head_dim must be even");
        r->good = false;
    }
}

/* Of a model with latents. */
static void read_rope_dim(struct tkv_profile_reader *r, const struct tkv_yaml_node *model)
{
    struct tkv_shape *s = &r->p->shape;

    tkv_profile_number(r, model, "model", "rope_dim", false, 2, TKV_MAX_HEAD_DIM, &s->rope_dim);
    if (s->rope_dim == 0 ||
        (s->rope_dim % 2 == 0 && s->n_kv_heads == 1 && s->rope_dim < s->head_dim_k &&
         s->head_dim_v == s->head_dim_k - s->rope_dim))
        return;
    tkv_yaml_error(r->y, tkv_yaml_find(model, "rope_dim"),
                   "model.rope_dim: latents have 1 KV head, and a head_dim_v of head_dim_k less "
                   "rope_dim, which is even");
    r->good = false;
}

static void read_model(struct tkv_profile_reader *r)
{
    static const char *const keys[] = {"architecture", "fingerprint", "n_layers",   "n_q_heads",
                                       "n_kv_heads",   "head_dim",    "head_dim_k", "head_dim_v",
                                       "rope_dim",     NULL};
    const struct tkv_yaml_node *m = tkv_profile_part(r, r->y->root, "profile", "model", keys, true);
    struct tkv_shape *s = &r->p->shape;

    if (!m)
        return;
    text(r, m, "model", "architecture", r->p->architecture, sizeof(r->p->architecture));
    read_fingerprint(r, m);
    tkv_profile_number(r, m, "model", "n_layers", true, 1, TRIKV_MAX_LAYERS, &r->p->n_layers);
    tkv_profile_number(r, m, "model", "n_q_heads", true, 1, TRIKV_MAX_HEADS, &s->n_q_heads);
    tkv_profile_number(r, m, "model", "n_kv_heads", true, 1, TRIKV_MAX_HEADS, &s->n_kv_heads);
    read_head_dims(r, m);
    read_rope_dim(r, m);
    if (s->n_kv_heads && (s->n_q_heads % s->n_kv_heads || tkv_group(s) > TKV_MAX_GROUP)) {
        tkv_yaml_error(r->y, m, "model: n_kv_heads must divide n_q_heads, in groups of at most %d",
                       TKV_MAX_GROUP);
        r->good = false;
    }
}

/* The parameters that a scaling rule needs, and none that it does not know. */
static void read_scaling(struct tkv_profile_reader *r, const struct tkv_yaml_node *m)
{
    static const struct {
        const char *key;
        unsigned allowed; /* bits by enum tkv_rope_scaling */
        unsigned needed;
    } use[] = {
        {"factor", 1 << TKV_ROPE_LINEAR | 1 << TKV_ROPE_LLAMA3 | 1 << TKV_ROPE_YARN,
         1 << TKV_ROPE_LINEAR | 1 << TKV_ROPE_LLAMA3 | 1 << TKV_ROPE_YARN},
        {"low_freq_factor", 1 << TKV_ROPE_LLAMA3, 1 << TKV_ROPE_LLAMA3},
        {"high_freq_factor", 1 << TKV_ROPE_LLAMA3, 1 << TKV_ROPE_LLAMA3},
        {"original_context", 1 << TKV_ROPE_LLAMA3 | 1 << TKV_ROPE_YARN,
         1 << TKV_ROPE_LLAMA3 | 1 << TKV_ROPE_YARN},
        {"beta_fast", 1 << TKV_ROPE_YARN, 0},
        {"beta_slow", 1 << TKV_ROPE_YARN, 0},
        {"attention_factor", 1 << TKV_ROPE_YARN, 0},
        {"truncate", 1 << TKV_ROPE_YARN, 0},
    };
    const unsigned rule = r->p->rope_params.scaling;

    for (size_t i = 0; i < sizeof(use) / sizeof(use[0]); i++) {
        const struct tkv_yaml_node *n = tkv_yaml_find(m, use[i].key);

        if (n && !(use[i].allowed >> rule & 1)) {
            tkv_yaml_error(r->y, n->key, "rope.%s: means nothing with scaling %s", use[i].key,
                           tkv_rope_scaling_names[rule]);
            r->good = false;
        } else if (!n && use[i].needed >> rule & 1) {
            tkv_yaml_error(r->y, m, "rope: scaling %s needs \"%s\"", tkv_rope_scaling_names[rule],
                           use[i].key);
            r->good = false;
        }
    }
}

static void read_rope_numbers(struct tkv_profile_reader *r, const struct tkv_yaml_node *m)
{
    struct tkv_rope_params *q = &r->p->rope_params;
    const struct tkv_yaml_node *truncate = tkv_yaml_find(m, "truncate");
    bool value = true;

    real(r, m, "theta", true, 1, 1e30, &q->theta);
    real(r, m, "factor", false, 1, 1e9, &q->factor);
    real(r, m, "low_freq_factor", false, 1e-9, 1e9, &q->low_freq_factor);
    real(r, m, "high_freq_factor", false, 1e-9, 1e9, &q->high_freq_factor);
    real(r, m, "beta_fast", false, 1e-9, 1e9, &q->beta_fast);
    real(r, m, "beta_slow", false, 1e-9, 1e9, &q->beta_slow);
    real(r, m, "attention_factor", false, 1e-9, 1e9, &q->attention_factor);
    tkv_profile_number(r, m, "rope", "original_context", false, 1, MAX_CONTEXT,
                       &q->original_context);
    if (truncate)
        r->good &= tkv_yaml_bool(r->y, truncate, "rope.truncate", &value);
    q->no_truncate = !value;
}

static void read_rope(struct tkv_profile_reader *r)
{
    static const char *const keys[] = {
        "layout",    "theta",           "rotary_dim",       "scaling",
        "factor",    "low_freq_factor", "high_freq_factor", "original_context",
        "beta_fast", "beta_slow",       "attention_factor", "truncate",
        NULL};
    const struct tkv_yaml_node *m = tkv_profile_part(r, r->y->root, "profile", "rope", keys, false);
    struct tkv_rope_params *q = &r->p->rope_params;
    uint32_t layout = 0, scaling = 0;
    const char *wrong;

    if (!m)
        return;
    q->head_dim = r->p->shape.head_dim_k;
    tkv_profile_choice(r, m, "rope", "layout", true, tkv_rope_layout_names, &layout);
    tkv_profile_number(r, m, "rope", "rotary_dim", true, 2, TKV_MAX_HEAD_DIM, &q->rotary_dim);
    read_rope_numbers(r, m);
    q->layout = (enum tkv_rope_layout)layout;
    if (tkv_profile_choice(r, m, "rope", "scaling", true, tkv_rope_scaling_names, &scaling)) {
        q->scaling = (enum tkv_rope_scaling)scaling;
        read_scaling(r, m);
    }
    if (!r->good)
        return;
    wrong = tkv_rope_init(&r->p->rope, q);
    r->p->has_rope = !wrong;
    r->good = !wrong;
    if (wrong)
        tkv_yaml_error(r->y, m, "rope: %s", wrong);
}

static void read_statistics(struct tkv_profile_reader *r, const char *directory)
{
    const struct tkv_yaml_node *m = tkv_yaml_find(r->y->root, "statistics");
    const bool needed = r->p->policy.method == TKV_METHOD_TRIATTENTION;

    if (needed && !m) {
        tkv_yaml_error(r->y, r->y->root, "profile: method triattention needs \"statistics\"");
        r->good = false;
    }
    if ((needed || m) && !tkv_yaml_find(r->y->root, "rope")) {
        tkv_yaml_error(r->y, r->y->root, "profile: statistics need \"rope\"");
        r->good = false;
    }
    /* Sizes follow from the geometry: with a wrong one every number would be wrong. */
    if (m && r->good)
        r->good = tkv_profile_read_statistics(r->p, r->y, m, directory);
}

static void read_errors(struct tkv_profile_reader *r)
{
    const struct tkv_yaml_node *m = tkv_yaml_find(r->y->root, "errors");

    if (!m && r->p->policy.method == TKV_METHOD_DEFAULT) {
        tkv_yaml_error(r->y, r->y->root, "profile: method default needs \"errors\"");
        r->good = false;
    }
    if (m && r->good)
        r->good = tkv_profile_read_errors(r->p, r->y, m);
}

static void read_profile(struct tkv_profile_reader *r, const char *directory)
{
    static const char *const keys[] = {"format", "name",       "model",  "rope",
                                       "policy", "statistics", "errors", NULL};
    const struct tkv_yaml_node *format;

    if (!tkv_yaml_check_keys(r->y, r->y->root, "profile", keys))
        r->good = false;
    if (r->y->root->kind != TKV_YAML_MAPPING)
        return;
    format = tkv_profile_need(r->y, r->y->root, "profile", "format");
    r->good &= format != NULL;
    if (format && (format->kind != TKV_YAML_SCALAR || strcmp(format->text, FORMAT) != 0)) {
        tkv_yaml_error(r->y, format, "format: want " FORMAT);
        r->good = false;
    }
    read_name(r);
    read_model(r);
    r->p->layers = calloc(r->p->n_layers ? r->p->n_layers : 1, sizeof(*r->p->layers));
    if (!r->p->layers) {
        tkv_yaml_error(r->y, r->y->root, "out of memory");
        r->good = false;
        return;
    }
    read_rope(r);
    tkv_profile_read_policy(r);
    read_statistics(r, directory);
    read_errors(r);
}

struct tkv_profile *tkv_profile_parse(const char *name, const char *directory, const char *text_,
                                      size_t n, struct tkv_diag *diag)
{
    struct tkv_profile *p = calloc(1, sizeof(*p));
    struct tkv_yaml y;
    struct tkv_profile_reader r = {.p = p, .y = &y};

    if (!p) {
        tkv_diag_add(diag, name, 0, 0, "out of memory");
        return NULL;
    }
    p->n_refs = 1;
    r.good = tkv_yaml_parse(&y, name, text_, n, diag);
    if (y.root)
        read_profile(&r, directory);
    else if (r.good)
        tkv_yaml_error(&y, NULL, "profile: empty");
    tkv_yaml_deinit(&y);
    if (!r.good || !p->layers)
        tkv_profile_unref(&p);
    return p;
}

struct tkv_profile *tkv_profile_load(const char *file, struct tkv_diag *diag)
{
    const char *slash = strrchr(file, '/');
    char *directory = slash ? strndup(file, (size_t)(slash - file)) : strdup(".");
    struct tkv_profile *p = NULL;
    char *content = NULL;
    size_t n;

    if (!directory)
        tkv_diag_add(diag, file, 0, 0, "out of memory");
    else if (tkv_yaml_read_file(file, TKV_MAX_PROFILE_FILE_BYTES, &content, &n, diag))
        p = tkv_profile_parse(file, directory, content, n, diag);
    free(content);
    free(directory);
    return p;
}
