/*
 * The one byte cap. Everything that grows with what clients send is reserved here before it
 * exists: slabs of arenas, half tiers, tables, request buffers. A reservation that
 * would pass the cap fails, and so does whatever asked for it.
 *
 * A budget may be a part of another: what is reserved in it is reserved there, too, so that a user's or
 * a session's share of the whole can have a cap of its own.
 *
 * Any thread may call; the counters are atomic.
 */
#ifndef TKV_STORE_BUDGET_H
#define TKV_STORE_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct tkv_budget {
    struct tkv_budget *whole; /* that this is a part of; NULL: it is the whole */
    size_t cap_bytes;
    atomic_size_t used_bytes;
    atomic_size_t peak_bytes;
    atomic_bool refused; /* its own cap was in the way; for who looks and clears it */
};

void tkv_budget_init(struct tkv_budget *b, size_t cap_bytes);
void tkv_budget_init_part(struct tkv_budget *b, size_t cap_bytes, struct tkv_budget *whole);

/* True and counted, or false and nothing changed. */
bool tkv_budget_reserve(struct tkv_budget *b, size_t bytes);
void tkv_budget_release(struct tkv_budget *b, size_t bytes);

/* Memory as it comes, for scratch; else like tkv_budget_alloc. */
void *tkv_budget_take(struct tkv_budget *b, size_t bytes);

/* Zeroed memory, 64-byte aligned, reserved first; NULL over the cap or out of memory. bytes 0
 * gives NULL. Freed with the same size; NULL is allowed. */
void *tkv_budget_alloc(struct tkv_budget *b, size_t bytes);
void tkv_budget_free(struct tkv_budget *b, void *p, size_t bytes);

#endif /* TKV_STORE_BUDGET_H */
