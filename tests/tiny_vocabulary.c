/* Vocabularies for tests, and the slow encoders: quadratic, and meant to be obvious. */
#include "tests/tiny_vocabulary.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/unicode.h"
#include "tools/vocabulary.h"

enum { MAX_TEXT_BYTES = 4096 };

int32_t tiny_vocabulary_add(struct tiny_vocabulary *p, const char *text, size_t n_bytes,
                            int32_t type, float score)
{
    const size_t i = p->n++;

    if (i >= TINY_MAX_TOKENS || n_bytes > TINY_TOKEN_BYTES)
        abort();
    memcpy(p->text[i], text, n_bytes);
    p->view[i] = (struct tkv_text){p->text[i], n_bytes};
    p->types[i] = type;
    p->scores[i] = score;
    p->left[i] = p->right[i] = -1;
    return (int32_t)i;
}

int32_t tiny_vocabulary_find(const struct tiny_vocabulary *p, const char *text, size_t n_bytes)
{
    for (size_t i = 0; i < p->n; i++) {
        if (p->types[i] == TKV_TOKEN_NORMAL && p->view[i].n_bytes == n_bytes &&
            memcmp(p->view[i].data, text, n_bytes) == 0)
            return (int32_t)i;
    }
    return -1;
}

void tiny_vocabulary_put(struct gguf_aid *g, const struct tiny_vocabulary *p)
{
    gguf_aid_strings(g, "tokenizer.ggml.tokens", p->view, p->n);
    gguf_aid_array(g, "tokenizer.ggml.token_type", TKV_GGUF_I32, p->types, p->n, 4);
}

size_t tiny_vocabulary_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xc0 | c >> 6);
        out[1] = (char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xe0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 63));
        out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xf0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

void tiny_vocabulary_make_spm(struct tiny_vocabulary *p, struct rng *rng, bool cross_spaces)
{
    char text[8];

    p->n = 0;
    tiny_vocabulary_add(p, "<unk>", 5, TKV_TOKEN_UNKNOWN, 0);
    tiny_vocabulary_add(p, "<s>", 3, TKV_TOKEN_CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(text, sizeof(text), "<0x%02X>", (unsigned)b);
        tiny_vocabulary_add(p, text, 6, TKV_TOKEN_BYTE, 0);
    }
    for (const char *c = "abc\n"; *c; c++)
        tiny_vocabulary_add(p, c, 1, TKV_TOKEN_NORMAL, -100);
    tiny_vocabulary_add(p, "\xe2\x96\x81", 3, TKV_TOKEN_NORMAL, -100);
    tiny_vocabulary_add(p, "<tool>", 6, TKV_TOKEN_USER, 0);
    while (p->n < 340) {
        const struct tkv_text a = p->view[258 + rng_below(rng, (uint32_t)p->n - 258)];
        const struct tkv_text b = p->view[258 + rng_below(rng, (uint32_t)p->n - 258)];
        char both[TINY_TOKEN_BYTES];

        if (a.n_bytes + b.n_bytes > 12 || a.data[0] == '<' || b.data[0] == '<' ||
            (!cross_spaces && b.data[0] == '\xe2'))
            continue;
        memcpy(both, a.data, a.n_bytes);
        memcpy(both + a.n_bytes, b.data, b.n_bytes);
        if (tiny_vocabulary_find(p, both, a.n_bytes + b.n_bytes) < 0) /* few scores: many ties */
            tiny_vocabulary_add(p, both, a.n_bytes + b.n_bytes, TKV_TOKEN_NORMAL,
                                -(float)rng_below(rng, 30));
    }
}

/* The definition: again and again the best pair of all, the leftmost of equals. */
size_t tiny_vocabulary_encode_spm(const struct tiny_vocabulary *p, const char *text, size_t n,
                                  int32_t *out)
{
    size_t start[MAX_TEXT_BYTES + 1], n_symbols = 0, n_out = 0;
    uint32_t c;

    for (size_t at = 0; at < n; at += tkv_unicode_next(text + at, n - at, &c))
        start[n_symbols++] = at;
    start[n_symbols] = n;
    for (;;) {
        size_t best = n_symbols;
        float best_score = 0;

        for (size_t i = 0; i + 1 < n_symbols; i++) {
            const int32_t id = tiny_vocabulary_find(p, text + start[i], start[i + 2] - start[i]);

            if (id >= 0 && (best == n_symbols || p->scores[id] > best_score)) {
                best = i;
                best_score = p->scores[id];
            }
        }
        if (best == n_symbols)
            break;
        memmove(&start[best + 1], &start[best + 2], (n_symbols - best - 1) * sizeof(*start));
        n_symbols--;
    }
    for (size_t i = 0; i < n_symbols; i++) {
        const int32_t id = tiny_vocabulary_find(p, text + start[i], start[i + 1] - start[i]);

        if (id >= 0)
            out[n_out++] = id;
        for (size_t at = start[i]; id < 0 && at < start[i + 1]; at++)
            out[n_out++] = 2 + (uint8_t)text[at];
    }
    return n_out;
}

/* The spelling of a byte in the file: see tools/tokenizer_bpe.c. */
static size_t spell(uint8_t byte, char *out)
{
    uint32_t other = 0x100;

    if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae)
        return tiny_vocabulary_utf8(out, byte);
    for (uint32_t b = 0; b < byte; b++)
        other += !((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae);
    return tiny_vocabulary_utf8(out, other);
}

static struct tkv_text spelt(struct tkv_text text, char *out)
{
    size_t n = 0;

    for (size_t i = 0; i < text.n_bytes; i++)
        n += spell((uint8_t)text.data[i], out + n);
    return (struct tkv_text){out, n};
}

void tiny_vocabulary_make_bpe(struct tiny_vocabulary *p, struct rng *rng)
{
    p->n = 0;
    for (int b = 0; b < 256; b++) {
        const char c = (char)b;

        tiny_vocabulary_add(p, &c, 1, TKV_TOKEN_NORMAL, 0);
    }
    while (p->n < 400) {
        static const char common[] = "abc 1.\n";
        const uint32_t n_long = (uint32_t)p->n - 256;
        int32_t part[2], id;
        char both[TINY_TOKEN_BYTES];

        for (int i = 0; i < 2; i++)
            part[i] = n_long && rng_below(rng, 2) ? 256 + (int32_t)rng_below(rng, n_long)
                                                  : common[rng_below(rng, 7)];
        if (p->view[part[0]].n_bytes + p->view[part[1]].n_bytes > 10)
            continue;
        memcpy(both, p->view[part[0]].data, p->view[part[0]].n_bytes);
        memcpy(both + p->view[part[0]].n_bytes, p->view[part[1]].data, p->view[part[1]].n_bytes);
        if (tiny_vocabulary_find(p, both, p->view[part[0]].n_bytes + p->view[part[1]].n_bytes) >= 0)
            continue;
        id = tiny_vocabulary_add(p, both, p->view[part[0]].n_bytes + p->view[part[1]].n_bytes,
                                 TKV_TOKEN_NORMAL, 0);
        p->left[id] = part[0];
        p->right[id] = part[1];
    }
    tiny_vocabulary_add(p, "<|end|>", 7, TKV_TOKEN_CONTROL, 0);
    tiny_vocabulary_add(p, "<think>", 7, TKV_TOKEN_USER, 0);
    tiny_vocabulary_add(p, "<th", 3, TKV_TOKEN_USER, 0); /* the longest special must win */
}

void tiny_vocabulary_put_bpe(struct gguf_aid *g, const struct tiny_vocabulary *p, const char *pre)
{
    static char names[TINY_MAX_TOKENS][2 * TINY_TOKEN_BYTES],
        rules[TINY_MAX_TOKENS][4 * TINY_TOKEN_BYTES];
    struct tkv_text tokens[TINY_MAX_TOKENS], merges[TINY_MAX_TOKENS];
    size_t n_merges = 0;

    for (size_t i = 0; i < p->n; i++) {
        tokens[i] = p->types[i] == TKV_TOKEN_NORMAL ? spelt(p->view[i], names[i]) : p->view[i];
        if (p->left[i] >= 0) {
            const struct tkv_text left = spelt(p->view[p->left[i]], rules[i]);
            const struct tkv_text right = spelt(p->view[p->right[i]], rules[i] + left.n_bytes + 1);

            rules[i][left.n_bytes] = ' ';
            merges[n_merges++] = (struct tkv_text){rules[i], left.n_bytes + 1 + right.n_bytes};
        }
    }
    gguf_aid_string(g, "tokenizer.ggml.model", "gpt2");
    gguf_aid_string(g, "tokenizer.ggml.pre", pre);
    gguf_aid_strings(g, "tokenizer.ggml.tokens", tokens, p->n);
    gguf_aid_array(g, "tokenizer.ggml.token_type", TKV_GGUF_I32, p->types, p->n, 4);
    gguf_aid_strings(g, "tokenizer.ggml.merges", merges, n_merges);
}

/* The definition, on one word: the first rule that applies anywhere, at the leftmost place. */
size_t tiny_vocabulary_encode_bpe(const struct tiny_vocabulary *p, const char *word, size_t n,
                                  int32_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)word[i];
    for (size_t rule = 256; rule < p->n;) {
        bool found = false;

        for (size_t i = 0; i + 1 < n && !found; i++) {
            found = p->left[rule] >= 0 && out[i] == p->left[rule] && out[i + 1] == p->right[rule];
            if (found) {
                out[i] = (int32_t)rule;
                memmove(&out[i + 1], &out[i + 2], (n - i - 2) * sizeof(*out));
                n--;
            }
        }
        rule = found ? 256 : rule + 1;
    }
    return n;
}
