/*
 * What the two kinds of tokenizer share: tokens, a hash table from bytes to token,
 * pieces that are found in a text before anything else. Private to tools/tokenizer*.c.
 */
#ifndef TKV_TOOLS_VOCABULARY_H
#define TKV_TOOLS_VOCABULARY_H

#include "tools/merge.h"
#include "tools/tokenizer.h"

/* Values of tokenizer.ggml.token_type. */
enum tkv_token_type {
    TKV_TOKEN_NORMAL = 1,
    TKV_TOKEN_UNKNOWN = 2,
    TKV_TOKEN_CONTROL = 3,
    TKV_TOKEN_USER = 4,
    TKV_TOKEN_UNUSED = 5,
    TKV_TOKEN_BYTE = 6,
};

struct tkv_token {
    struct tkv_text key;   /* as the encoder looks it up; empty if it never does */
    struct tkv_text bytes; /* as the decoder prints it */
    float score;
    enum tkv_token_type type;
};

/* A merge rule: the pair of tokens, in a hash table with open addressing. */
struct tkv_merge_rule {
    int32_t left; /* -1: empty slot */
    int32_t right;
    int32_t merged;
    uint32_t rank;
};

/* Where gpt2-style pre-tokenizers differ. */
struct tkv_splitter {
    const char *name;       /* tokenizer.ggml.pre */
    unsigned max_digits;    /* digits in a word; 0: any number, with a space before */
    bool any_case;          /* 'S is a contraction as 's is */
    bool prefixed_words;    /* a word may start with one other character, not only a space */
    bool newlines;          /* punctuation takes the line ends after it, spaces end with them */
    bool whole_words_first; /* a word that is a token is not split and merged */
};

struct tkv_tokenizer {
    struct tkv_token *tokens;
    size_t n_tokens;
    char *arena; /* bytes behind keys and texts */
    size_t arena_used;
    int32_t *slots;    /* hash table: token, or -1 */
    size_t n_slots;    /* a power of two */
    int32_t *specials; /* user-defined and control tokens: first byte, longest first */
    size_t n_specials;
    int32_t byte_ids[256]; /* the token of a single byte, or -1 */
    int32_t bos, eos, unknown;
    bool add_bos;
    bool add_space_prefix;
    const struct tkv_splitter *splitter; /* NULL: SentencePiece */
    bool splits_at_space; /* SentencePiece: no piece has a space after another character */
    struct tkv_merge_rule *rules;
    size_t n_rule_slots; /* a power of two */
};

/* The token whose key is these bytes, or -1. */
int32_t tkv_vocabulary_find(const struct tkv_tokenizer *t, const char *bytes, size_t n_bytes);

/* Fill tokens, arena, hash table and rules for this kind of tokenizer from the file. */
int tkv_spm_load(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why);
int tkv_bpe_load(struct tkv_tokenizer *t, const struct tkv_gguf *g, struct tkv_reason *why);

/* Encode a stretch of text that has no special in it. False if memory is short. */
bool tkv_spm_encode(const struct tkv_tokenizer *t, struct tkv_merger *m, struct tkv_text text,
                    bool first, struct tkv_ids *ids);
bool tkv_bpe_encode(const struct tkv_tokenizer *t, struct tkv_merger *m, struct tkv_text text,
                    struct tkv_ids *ids);

/* Helpers of the loaders: copy bytes to the arena; enter a token's key into the table. */
struct tkv_text tkv_vocabulary_keep(struct tkv_tokenizer *t, const char *bytes, size_t n_bytes);
void tkv_vocabulary_enter(struct tkv_tokenizer *t, int32_t id);

/* Bytes of the first pre-token of a text that is not empty, by the splitter's rule. */
size_t tkv_splitter_next(const struct tkv_splitter *s, const char *text, size_t n_bytes);
const struct tkv_splitter *tkv_splitter_find(struct tkv_text name);

#endif /* TKV_TOOLS_VOCABULARY_H */
