/*
 * The loop that both tokenizers share: a row of symbols of which the best adjacent
 * pair is merged again and again, O(n log n) with a heap.
 */
#ifndef TKV_TOOLS_MERGE_H
#define TKV_TOOLS_MERGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tkv_symbol {
    uint32_t at;      /* byte offset in the text that is being encoded */
    uint32_t n_bytes; /* 0: merged into its left neighbour */
    int32_t id;       /* the tokenizer's own: a token or -1 */
    uint32_t prev;    /* index, or TKV_NO_SYMBOL */
    uint32_t next;
};

#define TKV_NO_SYMBOL UINT32_MAX

/* Whether left and right may merge; then *cost (least first, leftmost among equals) and the id
 * of the merged symbol. */
typedef bool tkv_merge_pair(const void *ctx, const struct tkv_symbol *left,
                            const struct tkv_symbol *right, double *cost, int32_t *id);

struct tkv_merge_candidate {
    double cost;
    uint32_t left;
    uint32_t right;
    uint32_t n_bytes; /* of both together, as long as the candidate is valid */
    int32_t id;
};

/* Symbols, in order; those with n_bytes > 0 are the result. Reused from word to word. */
struct tkv_merger {
    struct tkv_symbol *symbols;
    size_t n_symbols;
    size_t capacity;
    struct tkv_merge_candidate *heap;
    size_t n_heap;
};

/* Room for n more words' symbols: empties the merger. False if memory is short. */
bool tkv_merger_reserve(struct tkv_merger *m, size_t n);
void tkv_merger_deinit(struct tkv_merger *m);

/* Append a symbol; there is room (tkv_merger_reserve). */
void tkv_merger_add(struct tkv_merger *m, uint32_t at, uint32_t n_bytes, int32_t id);

/* Merge until no pair is left that `pair` allows. */
void tkv_merger_run(struct tkv_merger *m, tkv_merge_pair *pair, const void *ctx);

#endif /* TKV_TOOLS_MERGE_H */
