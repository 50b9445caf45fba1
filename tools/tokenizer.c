/*
 * Tokenizers: what both kinds share. The tokens and settings are read from the file
 * here, pieces such as <|im_start|> are cut out of a text here; the encoding of the
 * stretches between them is in tokenizer_spm.c and tokenizer_bpe.c.
 */
#include "tools/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "tools/vocabulary.h"

/* Offsets into a text are 32 bits wide, and SentencePiece writes a space as three bytes. */
enum { MAX_TEXT_BYTES = 1 << 29, MAX_TOKENS = 1 << 24 };

bool tkv_ids_add(struct tkv_ids *ids, int32_t id)
{
    if (ids->n == ids->capacity) {
        const size_t capacity = ids->capacity ? 2 * ids->capacity : 256;
        int32_t *grown = realloc(ids->ids, capacity * sizeof(*grown));

        if (!grown)
            return false;
        ids->ids = grown;
        ids->capacity = capacity;
    }
    ids->ids[ids->n++] = id;
    return true;
}

void tkv_ids_deinit(struct tkv_ids *ids)
{
    free(ids->ids);
    *ids = (struct tkv_ids){0};
}

struct tkv_text tkv_vocabulary_keep(struct tkv_tokenizer *t, const char *bytes, size_t n_bytes)
{
    char *at = t->arena + t->arena_used;

    if (n_bytes)
        memcpy(at, bytes, n_bytes);
    t->arena_used += n_bytes;
    return (struct tkv_text){at, n_bytes};
}

static size_t slot_of(const struct tkv_tokenizer *t, const char *bytes, size_t n_bytes)
{
    size_t i = XXH3_64bits(bytes, n_bytes) & (t->n_slots - 1);

    while (t->slots[i] >= 0) {
        const struct tkv_text key = t->tokens[t->slots[i]].key;

        if (key.n_bytes == n_bytes && memcmp(key.data, bytes, n_bytes) == 0)
            break;
        i = (i + 1) & (t->n_slots - 1);
    }
    return i;
}

void tkv_vocabulary_enter(struct tkv_tokenizer *t, int32_t id)
{
    const struct tkv_text key = t->tokens[id].key;
    const size_t i = slot_of(t, key.data, key.n_bytes);

    if (t->slots[i] < 0) /* of two equal tokens the first counts */
        t->slots[i] = id;
}

int32_t tkv_vocabulary_find(const struct tkv_tokenizer *t, const char *bytes, size_t n_bytes)
{
    return t->slots[slot_of(t, bytes, n_bytes)];
}

/* Room for the tokens, their bytes (at most twice what the file has) and the hash table. */
static int allocate(struct tkv_tokenizer *t, const struct tkv_gguf_entry *list,
                    struct tkv_reason *why)
{
    const uint8_t *cursor = list->data;
    size_t n_text_bytes = 0;

    if (list->n_items < 1 || list->n_items > MAX_TOKENS)
        return tkv_reason_set(why, "key tokenizer.ggml.tokens: %zu items, expected 1 to %d",
                              (size_t)list->n_items, MAX_TOKENS);
    t->n_tokens = (size_t)list->n_items;
    for (size_t i = 0; i < t->n_tokens; i++)
        n_text_bytes += tkv_gguf_next_text(&cursor).n_bytes;
    for (t->n_slots = 64; t->n_slots < 2 * t->n_tokens;)
        t->n_slots *= 2;
    t->tokens = calloc(t->n_tokens, sizeof(*t->tokens));
    t->specials = calloc(t->n_tokens, sizeof(*t->specials));
    t->slots = malloc(t->n_slots * sizeof(*t->slots));
    t->arena = malloc(2 * n_text_bytes + 1);
    if (!t->tokens || !t->specials || !t->slots || !t->arena)
        return tkv_reason_set(why, "out of memory for %zu tokens", t->n_tokens);
    memset(t->slots, 0xff, t->n_slots * sizeof(*t->slots));
    return 0;
}

/* Token types; a file without the list has normal tokens only. */
static int read_types(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *types = NULL;

    if (tkv_gguf_find(g, "tokenizer.ggml.token_type") &&
        tkv_gguf_array(g, "tokenizer.ggml.token_type", TKV_GGUF_I32, &types, why))
        return -1;
    if (types && types->n_items != t->n_tokens)
        return tkv_reason_set(why, "key tokenizer.ggml.token_type: %zu items, expected %zu",
                              (size_t)types->n_items, t->n_tokens);
    for (size_t i = 0; i < t->n_tokens; i++) {
        int32_t type = TKV_TOKEN_NORMAL;

        if (types)
            memcpy(&type, types->data + i * sizeof(type), sizeof(type));
        if (type < TKV_TOKEN_NORMAL || type > TKV_TOKEN_BYTE)
            return tkv_reason_set(why, "token %zu: type %d, expected 1 to 6", i, type);
        t->tokens[i].type = (enum tkv_token_type)type;
    }
    return 0;
}

static int read_id(const struct tkv_tokenizer *t, const struct tkv_gguf *g, const char *key,
                   int32_t *id, struct tkv_reason *why)
{
    uint32_t value = 0;

    *id = -1;
    if (!tkv_gguf_find(g, key))
        return 0;
    if (tkv_gguf_u32(g, key, &value, why))
        return -1;
    if (value >= t->n_tokens)
        return tkv_reason_set(why, "key %s: %u, the vocabulary has %zu tokens", key, value,
                              t->n_tokens);
    *id = (int32_t)value;
    return 0;
}

static int read_flag(const struct tkv_gguf *g, const char *key, bool otherwise, bool *flag,
                     struct tkv_reason *why)
{
    *flag = otherwise;
    return tkv_gguf_find(g, key) ? tkv_gguf_bool(g, key, flag, why) : 0;
}

/* Defaults of a missing key are those of the scheme: SentencePiece models start a sequence with
 * a token and a space, byte-level ones do not. */
static int read_settings(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    const bool spm = t->splitter == NULL;

    if (read_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos, why) ||
        read_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos, why) ||
        read_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unknown, why) ||
        read_flag(g, "tokenizer.ggml.add_bos_token", spm, &t->add_bos, why) ||
        read_flag(g, "tokenizer.ggml.add_space_prefix", spm, &t->add_space_prefix, why))
        return -1;
    if (t->add_bos && t->bos < 0)
        return tkv_reason_set(why, "key tokenizer.ggml.bos_token_id is missing, "
                                   "and sequences start with that token");
    return 0;
}

static int read_splitter(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    struct tkv_text name = {"gpt-2", 5};

    if (tkv_gguf_find(g, "tokenizer.ggml.pre") &&
        tkv_gguf_text(g, "tokenizer.ggml.pre", &name, why))
        return -1;
    t->splitter = tkv_splitter_find(name);
    if (!t->splitter)
        return tkv_reason_set(why, "key tokenizer.ggml.pre: \"%.*s\" is not supported",
                              (int)(name.n_bytes < 64 ? name.n_bytes : 64), name.data);
    return 0;
}

static int load(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why)
{
    const struct tkv_gguf_entry *list;
    struct tkv_text model;

    if (tkv_gguf_text(g, "tokenizer.ggml.model", &model, why) ||
        tkv_gguf_array(g, "tokenizer.ggml.tokens", TKV_GGUF_STRING, &list, why) ||
        allocate(t, list, why) || read_types(t, g, why))
        return -1;
    if (tkv_text_is(model, "llama"))
        return tkv_spm_load(t, g, why) || read_settings(t, g, why);
    if (tkv_text_is(model, "gpt2"))
        return read_splitter(t, g, why) || tkv_bpe_load(t, g, why) || read_settings(t, g, why);
    return tkv_reason_set(why, "key tokenizer.ggml.model: \"%.*s\", expected llama or gpt2",
                          (int)(model.n_bytes < 64 ? model.n_bytes : 64), model.data);
}

static int compare_specials(const void *a, const void *b, void *tokens)
{
    const struct tkv_text x = ((struct tkv_token *)tokens)[*(const int32_t *)a].bytes;
    const struct tkv_text y = ((struct tkv_token *)tokens)[*(const int32_t *)b].bytes;
    const int first = (uint8_t)x.data[0] - (uint8_t)y.data[0];

    return first ? first : (x.n_bytes < y.n_bytes) - (x.n_bytes > y.n_bytes);
}

static void collect_specials(struct tkv_tokenizer *t)
{
    for (size_t i = 0; i < t->n_tokens; i++) {
        const enum tkv_token_type type = t->tokens[i].type;

        if ((type == TKV_TOKEN_USER || type == TKV_TOKEN_CONTROL) && t->tokens[i].bytes.n_bytes)
            t->specials[t->n_specials++] = (int32_t)i;
    }
    qsort_r(t->specials, t->n_specials, sizeof(*t->specials), compare_specials, t->tokens);
}

int tkv_tokenizer_create(struct tkv_tokenizer **tokenizer, const struct tkv_gguf *g,
                         struct tkv_reason *why)
{
    struct tkv_tokenizer *t = calloc(1, sizeof(*t));

    *tokenizer = NULL;
    if (!t)
        return tkv_reason_set(why, "out of memory for a tokenizer");
    if (load(t, g, why)) {
        tkv_tokenizer_destroy(&t);
        return -1;
    }
    collect_specials(t);
    *tokenizer = t;
    return 0;
}

void tkv_tokenizer_destroy(struct tkv_tokenizer **tokenizer)
{
    struct tkv_tokenizer *t = *tokenizer;

    if (!t)
        return;
    free(t->tokens);
    free(t->arena);
    free(t->slots);
    free(t->specials);
    free(t->rules);
    free(t);
    *tokenizer = NULL;
}

/* The longest special that text starts with, or -1. */
static int32_t match_special(const struct tkv_tokenizer *t, struct tkv_text text, unsigned flags)
{
    size_t low = 0, high = t->n_specials;

    while (low < high) { /* the first special with this first byte */
        const size_t middle = (low + high) / 2;

        if ((uint8_t)t->tokens[t->specials[middle]].bytes.data[0] < (uint8_t)text.data[0])
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < t->n_specials; low++) {
        const struct tkv_token *token = &t->tokens[t->specials[low]];

        if (token->bytes.data[0] != text.data[0])
            break;
        if (token->type == TKV_TOKEN_CONTROL && !(flags & TKV_ENCODE_CONTROL))
            continue;
        if (token->bytes.n_bytes <= text.n_bytes &&
            memcmp(token->bytes.data, text.data, token->bytes.n_bytes) == 0)
            return t->specials[low];
    }
    return -1;
}

static bool encode_stretch(const struct tkv_tokenizer *t, struct tkv_merger *m,
                           struct tkv_text text, bool first, struct tkv_ids *ids)
{
    if (!text.n_bytes)
        return true;
    return t->splitter ? tkv_bpe_encode(t, m, text, ids) : tkv_spm_encode(t, m, text, first, ids);
}

static bool encode_text(const struct tkv_tokenizer *t, struct tkv_merger *m, struct tkv_text text,
                        unsigned flags, struct tkv_ids *ids)
{
    const bool space = (flags & TKV_ENCODE_START) && t->add_space_prefix;
    size_t start = 0;

    for (size_t i = 0; i < text.n_bytes && t->n_specials;) {
        const struct tkv_text rest = {text.data + i, text.n_bytes - i};
        const int32_t special = match_special(t, rest, flags);

        if (special < 0) {
            i++;
            continue;
        }
        if (!encode_stretch(t, m, (struct tkv_text){text.data + start, i - start}, space && !start,
                            ids) ||
            !tkv_ids_add(ids, special))
            return false;
        i += t->tokens[special].bytes.n_bytes;
        start = i;
    }
    return encode_stretch(t, m, (struct tkv_text){text.data + start, text.n_bytes - start},
                          space && !start, ids);
}

int tkv_tokenizer_encode(const struct tkv_tokenizer *t, const char *text, size_t n_bytes,
                         unsigned flags, struct tkv_ids *ids, struct tkv_reason *why)
{
    struct tkv_merger merger = {0};
    bool ok = true;

    if (n_bytes > MAX_TEXT_BYTES)
        return tkv_reason_set(why, "text of %zu bytes, expected at most %d", n_bytes,
                              MAX_TEXT_BYTES);
    if ((flags & TKV_ENCODE_START) && t->add_bos)
        ok = tkv_ids_add(ids, t->bos);
    ok = ok && encode_text(t, &merger, (struct tkv_text){text, n_bytes}, flags, ids);
    tkv_merger_deinit(&merger);
    return ok ? 0 : tkv_reason_set(why, "out of memory for the tokens of %zu bytes", n_bytes);
}

struct tkv_text tkv_tokenizer_bytes(const struct tkv_tokenizer *t, int32_t id)
{
    if (id < 0 || (size_t)id >= t->n_tokens || t->tokens[id].type == TKV_TOKEN_CONTROL)
        return (struct tkv_text){"", 0};
    return t->tokens[id].bytes;
}

size_t tkv_tokenizer_n_tokens(const struct tkv_tokenizer *t)
{
    return t->n_tokens;
}

int32_t tkv_tokenizer_bos(const struct tkv_tokenizer *t)
{
    return t->bos;
}

int32_t tkv_tokenizer_eos(const struct tkv_tokenizer *t)
{
    return t->eos;
}
