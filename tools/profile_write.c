/*
 * The writer of profiles. Every number that a reader compares is printed with all its
 * digits; the policy is the one that the daemon would take anyway, spelt out so that a
 * person can change it.
 */
#include "tools/profile_write.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

enum { MAX_NAME_BYTES = 64, BASE64_LINE_BYTES = 57 }; /* 76 characters a line, as in MIME */

const char *tkv_profile_check_name(const char *name, const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *file = slash ? slash + 1 : path;
    const size_t n = strlen(name);

    if (n < 1 || n > MAX_NAME_BYTES)
        return "a profile's name has 1 to 64 characters";
    if (strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != n)
        return "a profile's name has only a-z, 0-9, '.', '_' and '-'";
    if (strncmp(file, name, n) != 0 || strcmp(file + n, ".yaml") != 0)
        return "a profile's file has the profile's name and .yaml";
    return NULL;
}

static void print_model(FILE *out, const struct tkv_model_config *m)
{
    const struct tkv_shape *s = &m->shape;

    fprintf(out,
            "model:\n  architecture: %s\n  fingerprint: \"xxh3:%016" PRIx64 "\"\n"
            "  n_layers: %u\n  n_q_heads: %u\n  n_kv_heads: %u\n",
            m->architecture, m->fingerprint, m->n_layers, s->n_q_heads, s->n_kv_heads);
    if (s->head_dim_k == s->head_dim_v)
        fprintf(out, "  head_dim: %u\n", s->head_dim_k);
    else
        fprintf(out, "  head_dim_k: %u\n  head_dim_v: %u\n", s->head_dim_k, s->head_dim_v);
}

/* A parameter that is 0 has the rule's own default and is left out. */
static void print_real(FILE *out, const char *name, double value)
{
    if (value != 0)
        fprintf(out, "  %s: %.17g\n", name, value);
}

static void print_rope(FILE *out, const struct tkv_rope_params *p)
{
    static const char *const scalings[] = {"none", "linear", "llama3", "yarn"};

    fprintf(out, "rope:\n  layout: %s\n  theta: %.17g\n  rotary_dim: %u\n  scaling: %s\n",
            p->layout == TKV_ROPE_HALF ? "half" : "interleaved", p->theta, p->rotary_dim,
            scalings[p->scaling]);
    if (p->scaling == TKV_ROPE_DEFAULT)
        return;
    print_real(out, "factor", p->factor);
    if (p->scaling == TKV_ROPE_LLAMA3) {
        print_real(out, "low_freq_factor", p->low_freq_factor);
        print_real(out, "high_freq_factor", p->high_freq_factor);
    }
    if (p->scaling == TKV_ROPE_YARN) {
        print_real(out, "beta_fast", p->beta_fast);
        print_real(out, "beta_slow", p->beta_slow);
        print_real(out, "attention_factor", p->attention_factor);
        fprintf(out, "  truncate: %s\n", p->no_truncate ? "false" : "true");
    }
    if (p->scaling != TKV_ROPE_LINEAR)
        fprintf(out, "  original_context: %u\n", p->original_context);
}

static void print_policy(FILE *out)
{
    fputs("policy:\n"
          "  tokens:\n"
          "    method: triattention\n"
          "    budget: 2048\n"
          "    eviction_mode: per_layer_perhead\n"
          "    normalize_scores: true\n"
          "    aggregation: mean\n"
          "    offset_max: 65536\n"
          "    beta: 128\n"
          "    recent: 128\n"
          "    pinned: 4\n"
          "  bits:\n"
          "    k: tq4\n"
          "    v: tq4\n",
          out);
}

/* RFC 4648, in lines. */
static void print_base64(FILE *out, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < n; i += 3) {
        const size_t left = n - i;
        const uint32_t group = (uint32_t)bytes[i] << 16 |
                               (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
                               (left > 2 ? bytes[i + 2] : 0);

        if (i % BASE64_LINE_BYTES == 0)
            fputs(i ? "\n    " : "    ", out);
        putc(digits[group >> 18], out);
        putc(digits[group >> 12 & 63], out);
        putc(left > 1 ? digits[group >> 6 & 63] : '=', out);
        putc(left > 2 ? digits[group & 63] : '=', out);
    }
    putc('\n', out);
}

static void print_statistics(FILE *out, const struct tkv_profile_facts *f)
{
    const size_t n_bytes = f->n_statistics * sizeof(*f->statistics);

    fprintf(out,
            "statistics:\n  n_tokens: %" PRIu64 "\n"
            "  order: \"[layer][q_head][mean_re, mean_im, mean_abs][band]\"\n"
            "  encoding: base64-f32le\n  xxh3: \"%016" PRIx64 "\"\n  data: |\n",
            f->n_tokens, XXH3_64bits(f->statistics, n_bytes));
    print_base64(out, (const uint8_t *)f->statistics, n_bytes);
}

/* The name of a file without its folder, which is nobody's business but this machine's. It comes
 * from a command line: a line end in it would end the comment. */
static void print_comment(FILE *out, const char *what, const char *path)
{
    const char *slash = strrchr(path, '/');

    fprintf(out, "# %s: ", what);
    for (const char *c = slash ? slash + 1 : path; *c; c++)
        putc((unsigned char)*c < 0x20 ? '?' : *c, out);
    putc('\n', out);
}

static void print_profile(FILE *out, const struct tkv_profile_facts *f)
{
    fputs("# Written by trikv-calibrate.\n", out);
    print_comment(out, "model", f->model_file);
    print_comment(out, "text", f->text_file);
    fprintf(out, "format: trikv-profile/1\nname: %s\n", f->name);
    print_model(out, f->model);
    print_rope(out, &f->model->rope_params);
    print_policy(out);
    print_statistics(out, f);
}

int tkv_profile_write(const char *path, const struct tkv_profile_facts *facts,
                      struct tkv_reason *why)
{
    char temporary[PATH_MAX];
    FILE *out = NULL;
    int fd, error;

    if (!facts->model->rope_has_rule)
        return tkv_reason_set(why, "the model's RoPE follows no rule that a profile can name");
    if ((size_t)snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= sizeof(temporary))
        return tkv_reason_set(why, "%.100s...: the path is too long", path);
    fd = mkstemp(temporary);
    if (fd < 0)
        return tkv_reason_set(why, "%s: %s", temporary, strerror(errno));
    if (fchmod(fd, 0644) || !(out = fdopen(fd, "w"))) {
        tkv_reason_set(why, "%s: %s", temporary, strerror(errno));
        close(fd);
        unlink(temporary);
        return -1;
    }
    print_profile(out, facts);
    error = fflush(out) || ferror(out) || fsync(fd);
    error = fclose(out) || error || rename(temporary, path);
    if (!error)
        return 0;
    tkv_reason_set(why, "%s: %s", path, strerror(errno));
    unlink(temporary);
    return -1;
}
