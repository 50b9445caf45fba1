/*
 * The writer of profiles. Every number that a reader compares is printed with all its
 * digits; the policy is the one that the daemon would take anyway, spelt out so that a
 * person can change it.
 */
#include "daemon/profile_text.h"

#include <inttypes.h>
#include <string.h>

#include <xxhash.h>

#include "proto/limits.h"

#define NAME_CHARACTERS "abcdefghijklmnopqrstuvwxyz0123456789._-"

enum {
    BASE64_LINE_BYTES = 57, /* 76 characters a line, as in MIME */
    MAX_NOTE_BYTES = 160,
    MAX_FRAME_BYTES = 4096, /* everything but the statistics */
};

const char *tkv_profile_name_wrong(const char *name)
{
    const size_t n = strlen(name);

    if (n < 1 || n > TRIKV_MAX_NAME_BYTES)
        return "a profile's name has 1 to 64 characters";
    if (strspn(name, NAME_CHARACTERS) != n)
        return "a profile's name has only a-z, 0-9, '.', '_' and '-'";
    return NULL;
}

const char *tkv_profile_facts_wrong(const struct tkv_profile_facts *f)
{
    const size_t n = strlen(f->architecture);
    const char *wrong = tkv_profile_name_wrong(f->name);

    if (wrong)
        return wrong;
    if (n < 1 || n > TRIKV_MAX_NAME_BYTES ||
        strspn(f->architecture, "ABCDEFGHIJKLMNOPQRSTUVWXYZ" NAME_CHARACTERS) != n)
        return "an architecture is 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'";
    if (strcmp(f->fingerprint, "none") != 0 &&
        (strlen(f->fingerprint) != 21 || strncmp(f->fingerprint, "xxh3:", 5) != 0 ||
         strspn(f->fingerprint + 5, "0123456789abcdef") != 16))
        return "a fingerprint is \"xxh3:\" and 16 hexadecimal digits, or none";
    return NULL;
}

static void print_model(FILE *out, const struct tkv_profile_facts *f)
{
    const struct tkv_shape *s = &f->shape;

    fprintf(out,
            "model:\n  architecture: \"%s\"\n  fingerprint: \"%s\"\n"
            "  n_layers: %u\n  n_q_heads: %u\n  n_kv_heads: %u\n",
            f->architecture, f->fingerprint, f->n_layers, s->n_q_heads, s->n_kv_heads);
    if (s->head_dim_k == s->head_dim_v)
        fprintf(out, "  head_dim: %u\n", s->head_dim_k);
    else
        fprintf(out, "  head_dim_k: %u\n  head_dim_v: %u\n", s->head_dim_k, s->head_dim_v);
    if (s->rope_dim > 0)
        fprintf(out, "  rope_dim: %u\n", s->rope_dim);
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
            "  encoding: %s\n  xxh3: \"%016" PRIx64 "\"\n",
            f->n_tokens, f->sidecar ? "f32le" : "base64-f32le",
            XXH3_64bits(f->statistics, n_bytes));
    if (f->sidecar) {
        fprintf(out, "  file: %s\n", f->sidecar);
        return;
    }
    fputs("  data: |\n", out);
    print_base64(out, (const uint8_t *)f->statistics, n_bytes);
}

/* Notes hold what came from a command line or a client: a line end would end the comment. */
static void print_note(FILE *out, const char *note)
{
    fputs("# ", out);
    for (size_t i = 0; i < MAX_NOTE_BYTES && note[i]; i++)
        putc((unsigned char)note[i] < 0x20 || (unsigned char)note[i] > 0x7e ? '?' : note[i], out);
    putc('\n', out);
}

void tkv_profile_print(FILE *out, const struct tkv_profile_facts *f)
{
    for (size_t i = 0; i < TKV_MAX_PROFILE_NOTES && f->notes[i]; i++)
        print_note(out, f->notes[i]);
    fprintf(out, "format: trikv-profile/1\nname: \"%s\"\n", f->name);
    print_model(out, f);
    print_rope(out, &f->rope);
    print_policy(out);
    if (f->errors)
        tkv_profile_print_errors(out, f->errors, (size_t)f->n_layers * f->shape.n_kv_heads,
                                 f->n_error_tokens);
    print_statistics(out, f);
}

size_t tkv_profile_text_bytes(size_t n_statistics)
{
    const size_t n_bytes = n_statistics * sizeof(float);
    const size_t n_lines = n_bytes / BASE64_LINE_BYTES + 1;

    /* indentation, digits, line end */
    return MAX_FRAME_BYTES + n_lines * (4 + 76 + 1);
}
