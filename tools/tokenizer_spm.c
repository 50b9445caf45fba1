/*
 * SentencePiece BPE: characters are merged in the order of the pieces' scores, the
 * highest first and the leftmost among equals; a character without a piece becomes
 * byte tokens <0xXX>. Spaces are written as U+2581 before that.
 */
#include <stdlib.h>
#include <string.h>

#include "tools/unicode.h"
#include "tools/vocabulary.h"

#define SPACE "\xe2\x96\x81" /* U+2581 */

enum { SPACE_BYTES = 3 };

static bool is_space_sign(const char *s, size_t n)
{
    return n >= SPACE_BYTES && memcmp(s, SPACE, SPACE_BYTES) == 0;
}

/* A copy of the piece with U+2581 as a space. */
static struct tkv_text keep_unescaped(struct tkv_tokenizer *t, struct tkv_text piece)
{
    const struct tkv_text out = {t->arena + t->arena_used, 0};
    size_t n = 0;

    for (size_t i = 0; i < piece.n_bytes; n++) {
        if (is_space_sign(piece.data + i, piece.n_bytes - i)) {
            tkv_vocabulary_keep(t, " ", 1);
            i += SPACE_BYTES;
        } else {
            tkv_vocabulary_keep(t, piece.data + i++, 1);
        }
    }
    return (struct tkv_text){out.data, n};
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* The byte of a piece <0xXX>, or -1. */
static int byte_of(struct tkv_text piece)
{
    if (piece.n_bytes != 6 || memcmp(piece.data, "<0x", 3) != 0 || piece.data[5] != '>' ||
        hex_digit(piece.data[3]) < 0 || hex_digit(piece.data[4]) < 0)
        return -1;
    return hex_digit(piece.data[3]) * 16 + hex_digit(piece.data[4]);
}

static int load_byte(struct tkv_tokenizer *t, size_t id, struct tkv_text piece,
                     struct tkv_reason *why)
{
    const int byte = byte_of(piece);
    const char c = (char)byte;

    if (byte < 0)
        return tkv_reason_set(why, "token %zu: type byte, expected a text like <0x0A>", id);
    t->byte_ids[byte] = (int32_t)id;
    t->tokens[id].bytes = tkv_vocabulary_keep(t, &c, 1);
    return 0;
}

static int load_piece(struct tkv_tokenizer *t, size_t id, struct tkv_text piece,
                      struct tkv_reason *why)
{
    struct tkv_token *token = &t->tokens[id];

    switch (token->type) {
    case TKV_TOKEN_BYTE: return load_byte(t, id, piece, why);
    case TKV_TOKEN_UNUSED:
        return tkv_reason_set(why, "token %zu: type unused is not supported with SentencePiece",
                              id);
    case TKV_TOKEN_NORMAL:
        token->key = tkv_vocabulary_keep(t, piece.data, piece.n_bytes);
        tkv_vocabulary_enter(t, (int32_t)id);
        break;
    default: break;
    }
    token->bytes = keep_unescaped(t, piece);
    return 0;
}

/* No piece has a space sign after another character: then no merge crosses the start of a word. */
static bool pieces_split_at_space(const struct tkv_tokenizer *t)
{
    for (size_t i = 0; i < t->n_tokens; i++) {
        const struct tkv_text key = t->tokens[i].key;

        for (size_t at = 1; at < key.n_bytes; at++) {
            if (is_space_sign(key.data + at, key.n_bytes - at) &&
                !(at >= SPACE_BYTES && is_space_sign(key.data + at - SPACE_BYTES, SPACE_BYTES)))
                return false;
        }
    }
    return true;
}

/* Without all byte tokens, an unknown character has to have the unknown token. */
static int check_fallback(const struct tkv_tokenizer *t, const struct tkv_gguf *g,
                          struct tkv_reason *why)
{
    for (int b = 0; b < 256; b++) {
        if (t->byte_ids[b] < 0 && !tkv_gguf_find(g, "tokenizer.ggml.unknown_token_id"))
            return tkv_reason_set(why, "no token for byte 0x%02X and no unknown token", b);
    }
    return 0;
}

static int check_normalizer(const struct tkv_gguf *g, struct tkv_reason *why)
{
    const char *key = "tokenizer.ggml.remove_extra_whitespaces";
    bool removes = false;

    if (tkv_gguf_find(g, key) && tkv_gguf_bool(g, key, &removes, why))
        return -1;
    return removes ? tkv_reason_set(why, "key %s: true is not supported", key) : 0;
}

int tkv_spm_load(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *pieces, *scores;
    const uint8_t *cursor;

    if (tkv_gguf_array(g, "tokenizer.ggml.tokens", TKV_GGUF_STRING, &pieces, why) ||
        tkv_gguf_array(g, "tokenizer.ggml.scores", TKV_GGUF_F32, &scores, why) ||
        check_normalizer(g, why))
        return -1;
    if (scores->n_items != t->n_tokens)
        return tkv_reason_set(why, "key tokenizer.ggml.scores: %zu items, expected %zu",
                              (size_t)scores->n_items, t->n_tokens);
    memset(t->byte_ids, 0xff, sizeof(t->byte_ids));
    cursor = pieces->data;
    for (size_t i = 0; i < t->n_tokens; i++) {
        memcpy(&t->tokens[i].score, scores->data + i * sizeof(float), sizeof(float));
        if (load_piece(t, i, tkv_gguf_next_text(&cursor), why))
            return -1;
    }
    t->splits_at_space = pieces_split_at_space(t);
    return check_fallback(t, g, why);
}

struct spm {
    const struct tkv_tokenizer *t;
    const char *text;
};

static bool pair(const void *ctx, const struct tkv_symbol *left, const struct tkv_symbol *right,
                 double *cost, int32_t *id)
{
    const struct spm *s = ctx;

    *id = tkv_vocabulary_find(s->t, s->text + left->at, left->n_bytes + right->n_bytes);
    if (*id < 0)
        return false;
    *cost = -(double)s->t->tokens[*id].score;
    return true;
}

/* Bytes of the next stretch that can be merged on its own. */
static size_t next_word(const struct tkv_tokenizer *t, const char *text, size_t n)
{
    if (!t->splits_at_space)
        return n;
    for (size_t i = SPACE_BYTES; i < n; i++) {
        if (is_space_sign(text + i, n - i) && !is_space_sign(text + i - SPACE_BYTES, SPACE_BYTES))
            return i;
    }
    return n;
}

static bool emit(const struct tkv_tokenizer *t, const char *bytes, const struct tkv_symbol *s,
                 struct tkv_ids *ids)
{
    const int32_t id = s->id >= 0 ? s->id : tkv_vocabulary_find(t, bytes, s->n_bytes);

    if (id >= 0)
        return tkv_ids_add(ids, id);
    for (uint32_t i = 0; i < s->n_bytes; i++) {
        const int32_t byte_id = t->byte_ids[(uint8_t)bytes[i]];

        if (!tkv_ids_add(ids, byte_id >= 0 ? byte_id : t->unknown))
            return false;
    }
    return true;
}

static bool encode_word(struct spm s, struct tkv_merger *m, size_t n, struct tkv_ids *ids)
{
    uint32_t c;

    if (!tkv_merger_reserve(m, n))
        return false;
    for (size_t i = 0; i < n;) {
        const size_t n_bytes = tkv_unicode_next(s.text + i, n - i, &c);

        tkv_merger_add(m, (uint32_t)i, (uint32_t)n_bytes, -1);
        i += n_bytes;
    }
    tkv_merger_run(m, pair, &s);
    for (size_t i = 0; i < m->n_symbols; i++) {
        const struct tkv_symbol *symbol = &m->symbols[i];

        if (symbol->n_bytes && !emit(s.t, s.text + symbol->at, symbol, ids))
            return false;
    }
    return true;
}

/* text with its spaces written as U+2581, and one in front if `first`. */
static char *escape(struct tkv_text text, bool first, size_t *n_bytes)
{
    char *out = malloc(SPACE_BYTES * (text.n_bytes + 1));
    size_t n = 0;

    if (!out)
        return NULL;
    if (first) {
        memcpy(out, SPACE, SPACE_BYTES);
        n = SPACE_BYTES;
    }
    for (size_t i = 0; i < text.n_bytes; i++) {
        if (text.data[i] == ' ') {
            memcpy(out + n, SPACE, SPACE_BYTES);
            n += SPACE_BYTES;
        } else {
            out[n++] = text.data[i];
        }
    }
    *n_bytes = n;
    return out;
}

bool tkv_spm_encode(const struct tkv_tokenizer *t, struct tkv_merger *m, struct tkv_text text,
                    bool first, struct tkv_ids *ids)
{
    size_t n_bytes = 0;
    char *escaped = escape(text, first, &n_bytes);
    bool ok = escaped != NULL;

    for (size_t at = 0; ok && at < n_bytes;) {
        const size_t n = next_word(t, escaped + at, n_bytes - at);

        ok = encode_word((struct spm){t, escaped + at}, m, n, ids);
        at += n;
    }
    free(escaped);
    return ok;
}
