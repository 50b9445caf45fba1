#include "store/budget.h"

#include <stdlib.h>
#include <string.h>

void tkv_budget_init_part(struct tkv_budget *b, size_t cap_bytes, struct tkv_budget *whole)
{
    b->whole = whole;
    b->cap_bytes = cap_bytes;
    atomic_init(&b->used_bytes, 0);
    atomic_init(&b->peak_bytes, 0);
    atomic_init(&b->refused, false);
}

void tkv_budget_init(struct tkv_budget *b, size_t cap_bytes)
{
    tkv_budget_init_part(b, cap_bytes, NULL);
}

static void raise_peak(struct tkv_budget *b, size_t used)
{
    size_t peak = atomic_load_explicit(&b->peak_bytes, memory_order_relaxed);

    while (peak < used &&
           !atomic_compare_exchange_weak_explicit(&b->peak_bytes, &peak, used, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
}

static bool reserve_here(struct tkv_budget *b, size_t bytes)
{
    size_t used = atomic_load_explicit(&b->used_bytes, memory_order_relaxed);

    do {
        if (bytes > b->cap_bytes || used > b->cap_bytes - bytes) {
            atomic_store_explicit(&b->refused, true, memory_order_relaxed);
            return false;
        }
    } while (!atomic_compare_exchange_weak_explicit(&b->used_bytes, &used, used + bytes,
                                                    memory_order_relaxed, memory_order_relaxed));
    raise_peak(b, used + bytes);
    return true;
}

static void release_up_to(struct tkv_budget *b, const struct tkv_budget *end, size_t bytes)
{
    for (; b != end; b = b->whole)
        atomic_fetch_sub_explicit(&b->used_bytes, bytes, memory_order_relaxed);
}

bool tkv_budget_reserve(struct tkv_budget *b, size_t bytes)
{
    for (struct tkv_budget *at = b; at; at = at->whole) {
        if (!reserve_here(at, bytes)) {
            release_up_to(b, at, bytes);
            return false;
        }
    }
    return true;
}

void tkv_budget_release(struct tkv_budget *b, size_t bytes)
{
    release_up_to(b, NULL, bytes);
}

void *tkv_budget_take(struct tkv_budget *b, size_t bytes)
{
    void *p;

    if (bytes == 0 || !tkv_budget_reserve(b, bytes))
        return NULL;
    p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p)
        tkv_budget_release(b, bytes);
    return p;
}

void *tkv_budget_alloc(struct tkv_budget *b, size_t bytes)
{
    void *p = tkv_budget_take(b, bytes);

    return p ? memset(p, 0, bytes) : NULL;
}

void tkv_budget_free(struct tkv_budget *b, void *p, size_t bytes)
{
    if (!p)
        return;
    free(p);
    tkv_budget_release(b, bytes);
}
