/* Lists of token ids that sessions share. */
#include "daemon/token_ids.h"

#include <stdatomic.h>
#include <string.h>

#include "proto/errors.h"
#include "store/budget.h"

struct tkv_token_list {
    atomic_uint n_refs;
    atomic_uint n; /* written, by whoever of the sharers was first */
    uint32_t cap;
    uint32_t id[];
};

enum { LEAST_IDS = 240 };

static size_t list_bytes(uint32_t cap)
{
    return sizeof(struct tkv_token_list) + (size_t)cap * sizeof(uint32_t);
}

void tkv_token_ids_release(struct tkv_token_ids *t, struct tkv_budget *budget)
{
    if (t->list && atomic_fetch_sub(&t->list->n_refs, 1) == 1)
        tkv_budget_free(budget, t->list, list_bytes(t->list->cap));
    *t = (struct tkv_token_ids){0};
}

void tkv_token_ids_share(struct tkv_token_ids *to, const struct tkv_token_ids *from)
{
    *to = *from;
    if (to->list)
        atomic_fetch_add(&to->list->n_refs, 1);
}

void tkv_token_ids_cut(struct tkv_token_ids *t, uint64_t n)
{
    if (n < t->n)
        t->n = (uint32_t)n;
}

/* Room for ids up to `end` behind this session's own, that nobody else writes to. Of several that go on
 * at once one has the list, and the others copy. */
static int make_room(struct tkv_token_ids *t, struct tkv_budget *budget, uint32_t end,
                     struct tkv_report *why)
{
    struct tkv_token_list *const old = t->list;
    const uint32_t n = t->n;
    const uint32_t cap = end + end / 4 + LEAST_IDS;
    struct tkv_token_list *list;
    unsigned written = n;

    if (old && atomic_load(&old->n_refs) == 1)
        atomic_store(&old->n, n);
    if (old && end <= old->cap && atomic_compare_exchange_strong(&old->n, &written, end))
        return 0;
    list = tkv_budget_alloc(budget, list_bytes(cap));
    if (!list)
        return tkv_fail(why, TRIKV_E_MEMORY_CAP, "memory cap reached: no room for %u token ids",
                        end);
    atomic_init(&list->n_refs, 1);
    atomic_init(&list->n, end);
    list->cap = cap;
    if (n > 0)
        memcpy(list->id, old->id, n * sizeof(uint32_t));
    tkv_token_ids_release(t, budget);
    *t = (struct tkv_token_ids){list, n};
    return 0;
}

int tkv_token_ids_write(struct tkv_token_ids *t, struct tkv_budget *budget, uint64_t at,
                        const uint32_t *ids, uint32_t n, struct tkv_report *why)
{
    const uint32_t known = at < t->n ? (uint32_t)(t->n - at) : 0;
    const uint32_t same = n < known ? n : known;
    int e;

    if (at > t->n)
        return tkv_fail(why, TRIKV_E_STATE,
                        "token_ids: of tokens from %llu on, but only the first %u are known",
                        (unsigned long long)at, t->n);
    for (uint32_t i = 0; i < same; i++)
        if (ids[i] != t->list->id[at + i])
            return tkv_fail(why, TRIKV_E_ARGUMENT,
                            "token_ids: token %llu is %u, in another layer it was %u",
                            (unsigned long long)at + i, ids[i], t->list->id[at + i]);
    if (same == n)
        return 0;
    if (at + n > UINT32_MAX / 8)
        return tkv_fail(why, TRIKV_E_TOO_LARGE, "token_ids: more than %u", UINT32_MAX / 8);
    e = make_room(t, budget, (uint32_t)at + n, why);
    if (e)
        return e;
    memcpy(t->list->id + t->n, ids + same, (n - same) * sizeof(uint32_t));
    return 0;
}

void tkv_token_ids_commit(struct tkv_token_ids *t, uint64_t at, uint32_t n)
{
    if (at + n > t->n)
        t->n = (uint32_t)(at + n);
}

uint32_t tkv_token_ids_common(const struct tkv_token_ids *t, const uint32_t *ids, uint32_t n)
{
    const uint32_t most = t->n < n ? t->n : n;
    uint32_t i = 0;

    /* Most lists agree for long or not at all: look at long stretches first. */
    while (most - i >= 256 && memcmp(t->list->id + i, ids + i, 256 * sizeof(uint32_t)) == 0)
        i += 256;
    while (i < most && t->list->id[i] == ids[i])
        i++;
    return i;
}

const uint32_t *tkv_token_ids_data(const struct tkv_token_ids *t)
{
    return t->list ? t->list->id : NULL;
}
