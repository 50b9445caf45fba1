/*
 * Byte-level BPE (GPT-2 and its successors): a word's bytes are merged in the order
 * of the file's rules. The file spells bytes as printable characters; here tokens
 * are kept as the bytes themselves. Where words begin and end is in splitter.c.
 */
#include <stdlib.h>
#include <string.h>

#include "tools/unicode.h"
#include "tools/vocabulary.h"

/*
 * The byte a character of the file's spelling stands for, or -1. Printable Latin-1
 * (21..7e, a1..ac, ae..ff) spells itself; the other 68 bytes, in order, are U+0100 and on.
 */
static int byte_of(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff))
        return (int)c;
    if (c < 0x100 || c > 0x143)
        return -1;
    c -= 0x100;
    if (c <= 0x20)
        return (int)c;
    return (int)(c <= 0x42 ? 0x7f + (c - 0x21) : 0xad);
}

/* Spelt text to bytes (never longer). False if a character spells no byte. */
static bool unspell(struct tkv_text text, char *out, size_t *n_bytes)
{
    uint32_t c;

    *n_bytes = 0;
    for (size_t i = 0; i < text.n_bytes;) {
        i += tkv_unicode_next(text.data + i, text.n_bytes - i, &c);
        if (byte_of(c) < 0)
            return false;
        out[(*n_bytes)++] = (char)byte_of(c);
    }
    return true;
}

static int load_token(struct tkv_tokenizer *t, size_t id, struct tkv_text text,
                      struct tkv_reason *why)
{
    struct tkv_token *token = &t->tokens[id];
    size_t n_bytes;

    if (token->type == TKV_TOKEN_UNUSED)
        return 0;
    if (token->type != TKV_TOKEN_NORMAL) {
        token->bytes = tkv_vocabulary_keep(t, text.data, text.n_bytes);
        return 0;
    }
    if (!unspell(text, t->arena + t->arena_used, &n_bytes) || !n_bytes)
        return tkv_reason_set(why, "token %zu is not spelt in the characters of byte-level BPE",
                              id);
    token->bytes = (struct tkv_text){t->arena + t->arena_used, n_bytes};
    t->arena_used += n_bytes;
    token->key = token->bytes;
    tkv_vocabulary_enter(t, (int32_t)id);
    return 0;
}

static int load_tokens(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *list;
    const uint8_t *cursor;

    if (tkv_gguf_array(g, "tokenizer.ggml.tokens", TKV_GGUF_STRING, &list, why))
        return -1;
    cursor = list->data;
    for (size_t i = 0; i < t->n_tokens; i++) {
        if (load_token(t, i, tkv_gguf_next_text(&cursor), why))
            return -1;
    }
    for (int b = 0; b < 256; b++) {
        const char c = (char)b;

        t->byte_ids[b] = tkv_vocabulary_find(t, &c, 1);
        if (t->byte_ids[b] < 0)
            return tkv_reason_set(why, "no token for byte 0x%02X", b);
    }
    return 0;
}

/* splitmix64's finaliser: spreads the two token numbers over the table. */
static size_t rule_slot(const struct tkv_tokenizer *t, int32_t left, int32_t right)
{
    uint64_t h = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i;

    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9u;
    h = (h ^ h >> 27) * 0x94d049bb133111ebu;
    for (i = (h ^ h >> 31) & (t->n_rule_slots - 1); t->rules[i].left >= 0;
         i = (i + 1) & (t->n_rule_slots - 1)) {
        if (t->rules[i].left == left && t->rules[i].right == right)
            break;
    }
    return i;
}

/* A rule is "left right", spelt; left may not contain a space, since space is spelt otherwise. */
static int load_rule(struct tkv_tokenizer *t, uint32_t rank, struct tkv_text text, char *scratch,
                     struct tkv_reason *why)
{
    const char *space = memchr(text.data, ' ', text.n_bytes);
    size_t n_left = 0, n_right = 0, slot;
    struct tkv_merge_rule rule = {.rank = rank};
    struct tkv_text left, right;

    if (!space)
        return tkv_reason_set(why, "merge %u: expected two tokens and a space", rank);
    left = (struct tkv_text){text.data, (size_t)(space - text.data)};
    right = (struct tkv_text){space + 1, text.n_bytes - left.n_bytes - 1};
    if (!unspell(left, scratch, &n_left) || !unspell(right, scratch + n_left, &n_right))
        return tkv_reason_set(why, "merge %u is not spelt in the characters of byte-level BPE",
                              rank);
    rule.left = tkv_vocabulary_find(t, scratch, n_left);
    rule.right = tkv_vocabulary_find(t, scratch + n_left, n_right);
    rule.merged = tkv_vocabulary_find(t, scratch, n_left + n_right);
    if (rule.left < 0 || rule.right < 0 || rule.merged < 0)
        return tkv_reason_set(why, "merge %u: its parts or their union are no tokens", rank);
    slot = rule_slot(t, rule.left, rule.right);
    if (t->rules[slot].left < 0) /* of two equal rules the first counts */
        t->rules[slot] = rule;
    return 0;
}

static int load_rules(struct tkv_tokenizer *t, const struct tkv_gguf_entry *list, char *scratch,
                      struct tkv_reason *why)
{
    const uint8_t *cursor = list->data;

    memset(t->rules, 0xff, t->n_rule_slots * sizeof(*t->rules));
    for (uint32_t i = 0; i < list->n_items; i++) {
        if (load_rule(t, i, tkv_gguf_next_text(&cursor), scratch, why))
            return -1;
    }
    return 0;
}

/* The longest item of an array of strings. */
static size_t longest(const struct tkv_gguf_entry *list)
{
    const uint8_t *cursor = list->data;
    size_t n_bytes = 0;

    for (uint64_t i = 0; i < list->n_items; i++) {
        const struct tkv_text text = tkv_gguf_next_text(&cursor);

        if (text.n_bytes > n_bytes)
            n_bytes = text.n_bytes;
    }
    return n_bytes;
}

int tkv_bpe_load(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *list;
    char *scratch;
    int error;

    if (load_tokens(t, g, why) ||
        tkv_gguf_array(g, "tokenizer.ggml.merges", TKV_GGUF_STRING, &list, why))
        return -1;
    if (list->n_items > UINT32_MAX / 4)
        return tkv_reason_set(why, "key tokenizer.ggml.merges: %zu items", (size_t)list->n_items);
    for (t->n_rule_slots = 64; t->n_rule_slots < 2 * list->n_items;)
        t->n_rule_slots *= 2;
    t->rules = malloc(t->n_rule_slots * sizeof(*t->rules));
    scratch = malloc(longest(list) + 1);
    error = t->rules && scratch
                ? load_rules(t, list, scratch, why)
                : tkv_reason_set(why, "out of memory for %zu merges", (size_t)list->n_items);
    free(scratch);
    return error;
}

static bool pair(const void *ctx, const struct tkv_symbol *left, const struct tkv_symbol *right,
                 double *cost, int32_t *id)
{
    const struct tkv_tokenizer *t = ctx;
    const struct tkv_merge_rule *rule = &t->rules[rule_slot(t, left->id, right->id)];

    if (rule->left < 0)
        return false;
    *cost = rule->rank;
    *id = rule->merged;
    return true;
}

static bool encode_word(const struct tkv_tokenizer *t, struct tkv_merger *m, const char *word,
                        size_t n, struct tkv_ids *ids)
{
    if (t->splitter->whole_words_first) {
        const int32_t id = tkv_vocabulary_find(t, word, n);

        if (id >= 0)
            return tkv_ids_add(ids, id);
    }
    if (!tkv_merger_reserve(m, n))
        return false;
    for (uint32_t i = 0; i < n; i++)
        tkv_merger_add(m, i, 1, t->byte_ids[(uint8_t)word[i]]);
    tkv_merger_run(m, pair, t);
    for (size_t i = 0; i < m->n_symbols; i++) {
        if (m->symbols[i].n_bytes && !tkv_ids_add(ids, m->symbols[i].id))
            return false;
    }
    return true;
}

bool tkv_bpe_encode(const struct tkv_tokenizer *t, struct tkv_merger *m, struct tkv_text text,
                    struct tkv_ids *ids)
{
    for (size_t at = 0; at < text.n_bytes;) {
        const size_t n = tkv_splitter_next(t->splitter, text.data + at, text.n_bytes - at);

        if (!encode_word(t, m, text.data + at, n, ids))
            return false;
        at += n;
    }
    return true;
}
