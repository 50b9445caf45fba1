/* Query statistics of a profile: base64 in the file or raw beside it, hashed, checked. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/profile_priv.h"

#define ORDER "[layer][q_head][mean_re, mean_im, mean_abs][band]"

enum {
    MAX_VALUE_ERRORS = 5, /* a wrong array is wrong everywhere */
    MAX_STATISTICS_BYTES = 512 << 20,
};

static int base64_digit(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* text, with any white space in it, to out[n] exactly. Returns NULL or what is wrong. */
static const char *decode_base64(const char *text, unsigned char *out, size_t n)
{
    uint32_t bits = 0;
    unsigned n_bits = 0;
    unsigned n_padding = 0;
    size_t n_digits = 0, at = 0;

    for (; *text; text++) {
        int digit;

        if (strchr(" \t\r\n", *text))
            continue;
        n_digits++;
        if (*text == '=') {
            n_padding++;
            continue;
        }
        digit = base64_digit((unsigned char)*text);
        if (digit < 0 || n_padding)
            return digit < 0 ? "holds a character that is not base64" : "goes on after its end";
        bits = bits << 6 | (uint32_t)digit;
        n_bits += 6;
        if (n_bits < 8)
            continue;
        n_bits -= 8;
        if (at == n)
            return "is longer than the geometry says";
        out[at++] = (unsigned char)(bits >> n_bits & 255);
    }
    if (n_digits % 4 || n_padding > 2 || (bits & ((1u << n_bits) - 1)))
        return "is not whole base64: digits or padding are missing";
    return at < n ? "is shorter than the geometry says" : NULL;
}

static bool read_inline(struct tkv_profile *p, const struct tkv_yaml *y,
                        const struct tkv_yaml_node *n, size_t bytes)
{
    const char *wrong;

    if (n->kind != TKV_YAML_SCALAR) {
        tkv_yaml_error(y, n, "statistics.data: want base64 text");
        return false;
    }
    wrong = decode_base64(n->text, (unsigned char *)p->statistics, bytes);
    if (wrong)
        tkv_yaml_error(y, n, "statistics.data: %s (want %zu bytes)", wrong, bytes);
    return !wrong;
}

static bool read_sidecar(struct tkv_profile *p, const struct tkv_yaml *y,
                         const struct tkv_yaml_node *n, const char *directory, size_t bytes)
{
    char name[256], path[2048];
    size_t got;
    FILE *f;

    if (!tkv_yaml_text(y, n, "statistics.file", name, sizeof(name)))
        return false;
    if (!*name || strchr(name, '/') || name[0] == '.') {
        tkv_yaml_error(y, n, "statistics.file: want the name of a file beside the profile");
        return false;
    }
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    f = fopen(path, "re");
    if (!f) {
        tkv_yaml_error(y, n, "statistics.file: cannot open %s", path);
        return false;
    }
    got = fread(p->statistics, 1, bytes, f);
    if (got < bytes || fgetc(f) != EOF) {
        tkv_yaml_error(y, n, "statistics.file: %s: want exactly %zu bytes, got %s", path, bytes,
                       got < bytes ? "fewer" : "more");
        fclose(f);
        return false;
    }
    fclose(f);
    return true;
}

static bool check_hash(const struct tkv_profile *p, const struct tkv_yaml *y,
                       const struct tkv_yaml_node *n)
{
    char want[17];

    if (n->kind != TKV_YAML_SCALAR || n->text_bytes != 16 ||
        strspn(n->text, "0123456789abcdef") != 16) {
        tkv_yaml_error(y, n, "statistics.xxh3: want 16 hexadecimal digits in lower case");
        return false;
    }
    snprintf(want, sizeof(want), "%016llx",
             (unsigned long long)XXH3_64bits(p->statistics, p->n_statistics * sizeof(float)));
    if (strcmp(want, n->text) == 0)
        return true;
    tkv_yaml_error(y, n, "statistics.xxh3: the data's hash is %s, the profile says %s", want,
                   n->text);
    return false;
}

/* |mean| <= mean of magnitudes holds exactly; both were rounded to float. */
static bool sound(double re, double im, double abs)
{
    return isfinite(re) && isfinite(im) && isfinite(abs) && abs >= 0 &&
           sqrt(re * re + im * im) <= abs * (1 + 1e-5) + 1e-30;
}

static bool check_values(const struct tkv_profile *p, const struct tkv_yaml *y,
                         const struct tkv_yaml_node *n)
{
    const uint32_t n_bands = p->shape.head_dim_k / 2;
    const size_t n_heads = (size_t)p->n_layers * p->shape.n_q_heads;
    unsigned n_errors = 0;

    for (size_t h = 0; h < n_heads; h++) {
        const float *re = p->statistics + h * 3 * n_bands;
        const float *im = re + n_bands, *abs = im + n_bands;

        for (uint32_t f = 0; f < n_bands && n_errors < MAX_VALUE_ERRORS; f++) {
            if (sound((double)re[f], (double)im[f], (double)abs[f]))
                continue;
            n_errors++;
            tkv_yaml_error(y, n,
                           "statistics: layer %zu, query head %zu, band %u: mean %g %+gi, mean_abs "
                           "%g: want finite numbers and mean_abs >= |mean|",
                           h / p->shape.n_q_heads, h % p->shape.n_q_heads, f, (double)re[f],
                           (double)im[f], (double)abs[f]);
        }
    }
    return n_errors == 0;
}

static bool check_text(const struct tkv_yaml *y, const struct tkv_yaml_node *map, const char *key,
                       const char *want)
{
    const struct tkv_yaml_node *n = tkv_profile_need(y, map, "statistics", key);

    if (!n)
        return false;
    if (n->kind == TKV_YAML_SCALAR && strcmp(n->text, want) == 0)
        return true;
    tkv_yaml_error(y, n, "statistics.%s: want \"%s\"", key, want);
    return false;
}

/* The fields around the data. */
static bool check_frame(const struct tkv_yaml *y, const struct tkv_yaml_node *map)
{
    const struct tkv_yaml_node *n = tkv_profile_need(y, map, "statistics", "n_tokens");
    const bool has_data = tkv_yaml_find(map, "data") != NULL;
    const bool has_file = tkv_yaml_find(map, "file") != NULL;
    uint32_t n_tokens;
    bool good = n && tkv_yaml_u32(y, n, "statistics.n_tokens", 0, UINT32_MAX, &n_tokens);

    good &= check_text(y, map, "order", ORDER);
    if (has_data)
        good &= check_text(y, map, "encoding", "base64-f32le");
    else if (tkv_yaml_find(map, "encoding"))
        good &= check_text(y, map, "encoding", "f32le");
    if (has_data == has_file) {
        tkv_yaml_error(y, map, "statistics: want either data or file");
        good = false;
    }
    return good;
}

bool tkv_profile_read_statistics(struct tkv_profile *p, const struct tkv_yaml *y,
                                 const struct tkv_yaml_node *map, const char *directory)
{
    static const char *const keys[] = {"n_tokens", "order", "encoding", "xxh3",
                                       "data",     "file",  NULL};
    const size_t n = (size_t)p->n_layers * p->shape.n_q_heads * 3 * (p->shape.head_dim_k / 2);
    const struct tkv_yaml_node *data, *hash;
    bool good;

    if (!tkv_yaml_check_keys(y, map, "statistics", keys) || !check_frame(y, map))
        return false;
    if (n * sizeof(float) > MAX_STATISTICS_BYTES) {
        tkv_yaml_error(y, map, "statistics: %zu numbers are too many", n);
        return false;
    }
    p->statistics = malloc(n * sizeof(float));
    if (!p->statistics) {
        tkv_yaml_error(y, map, "statistics: out of memory");
        return false;
    }
    data = tkv_yaml_find(map, "data");
    if (data) {
        good = read_inline(p, y, data, n * sizeof(float));
    } else {
        data = tkv_yaml_find(map, "file");
        good = read_sidecar(p, y, data, directory, n * sizeof(float));
    }
    if (!good)
        return false;
    p->n_statistics = n;
    hash = tkv_profile_need(y, map, "statistics", "xxh3");
    return hash && check_hash(p, y, hash) && check_values(p, y, data);
}
