/*
 * Greedy pair merging. Symbols are a doubly linked list in an array, the heap holds
 * candidates that may have become stale: one whose parts have changed since is
 * recognised by its length and dropped when it is popped. Each merge adds at most
 * two candidates, so that 3 n slots are enough for n symbols.
 */
#include "tools/merge.h"

#include <assert.h>
#include <stdlib.h>

bool tkv_merger_reserve(struct tkv_merger *m, size_t n)
{
    size_t capacity = m->capacity ? m->capacity : 64;

    m->n_symbols = 0;
    m->n_heap = 0;
    if (n <= m->capacity)
        return true;
    if (n > UINT32_MAX / 4)
        return false;
    while (capacity < n)
        capacity *= 2;
    tkv_merger_deinit(m);
    m->symbols = calloc(capacity, sizeof(*m->symbols));
    m->heap = calloc(3 * capacity, sizeof(*m->heap));
    if (!m->symbols || !m->heap) {
        tkv_merger_deinit(m);
        return false;
    }
    m->capacity = capacity;
    return true;
}

void tkv_merger_deinit(struct tkv_merger *m)
{
    free(m->symbols);
    free(m->heap);
    *m = (struct tkv_merger){0};
}

void tkv_merger_add(struct tkv_merger *m, uint32_t at, uint32_t n_bytes, int32_t id)
{
    const uint32_t i = (uint32_t)m->n_symbols++;

    assert(m->n_symbols <= m->capacity);
    m->symbols[i] = (struct tkv_symbol){at, n_bytes, id, i ? i - 1 : TKV_NO_SYMBOL, TKV_NO_SYMBOL};
    if (i)
        m->symbols[i - 1].next = i;
}

static bool before(const struct tkv_merge_candidate *a, const struct tkv_merge_candidate *b)
{
    return a->cost < b->cost || (a->cost == b->cost && a->left < b->left);
}

static void push(struct tkv_merger *m, struct tkv_merge_candidate c)
{
    size_t i = m->n_heap++;

    while (i && before(&c, &m->heap[(i - 1) / 2])) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
}

static struct tkv_merge_candidate pop(struct tkv_merger *m)
{
    const struct tkv_merge_candidate top = m->heap[0];
    const struct tkv_merge_candidate last = m->heap[--m->n_heap];
    size_t i = 0;

    for (;;) {
        size_t child = 2 * i + 1;

        if (child >= m->n_heap)
            break;
        if (child + 1 < m->n_heap && before(&m->heap[child + 1], &m->heap[child]))
            child++;
        if (!before(&m->heap[child], &last))
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

static void consider(struct tkv_merger *m, uint32_t left, uint32_t right, tkv_merge_pair *pair,
                     const void *ctx)
{
    struct tkv_merge_candidate c = {.left = left, .right = right};

    if (left == TKV_NO_SYMBOL || right == TKV_NO_SYMBOL)
        return;
    if (!pair(ctx, &m->symbols[left], &m->symbols[right], &c.cost, &c.id))
        return;
    c.n_bytes = m->symbols[left].n_bytes + m->symbols[right].n_bytes;
    push(m, c);
}

/* Both parts are still there, and as long as they were. */
static bool is_valid(const struct tkv_merger *m, const struct tkv_merge_candidate *c)
{
    const struct tkv_symbol *left = &m->symbols[c->left];
    const struct tkv_symbol *right = &m->symbols[c->right];

    return left->n_bytes && right->n_bytes && left->next == c->right &&
           left->n_bytes + right->n_bytes == c->n_bytes;
}

static void apply(struct tkv_merger *m, const struct tkv_merge_candidate *c)
{
    struct tkv_symbol *left = &m->symbols[c->left];
    struct tkv_symbol *right = &m->symbols[c->right];

    left->n_bytes = c->n_bytes;
    left->id = c->id;
    left->next = right->next;
    if (right->next != TKV_NO_SYMBOL)
        m->symbols[right->next].prev = c->left;
    right->n_bytes = 0;
}

void tkv_merger_run(struct tkv_merger *m, tkv_merge_pair *pair, const void *ctx)
{
    for (uint32_t i = 1; i < m->n_symbols; i++)
        consider(m, i - 1, i, pair, ctx);
    while (m->n_heap) {
        const struct tkv_merge_candidate c = pop(m);

        if (!is_valid(m, &c))
            continue;
        apply(m, &c);
        consider(m, m->symbols[c.left].prev, c.left, pair, ctx);
        consider(m, c.left, m->symbols[c.left].next, pair, ctx);
    }
}
