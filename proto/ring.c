/* Checking what the other side wrote into a ring, and when to spin for more. */
#include "proto/ring.h"

#include <string.h>

#include "proto/errors.h"

static bool is_zero(const uint8_t *p, size_t n)
{
    uint8_t any = 0;

    for (size_t i = 0; i < n; i++)
        any |= p[i];
    return any == 0;
}

int tkv_ring_check_header(const struct trikv_ring_header *h, uint64_t file_bytes,
                          struct tkv_report *why)
{
    if (h->magic != TRIKV_RING_MAGIC)
        return tkv_fail(why, TRIKV_E_PROTOCOL, "ring: magic: want \"TRRG\"");
    if (h->version != TRIKV_RING_VERSION)
        return tkv_fail(why, TRIKV_E_VERSION, "ring: version %u, want %d", h->version,
                        TRIKV_RING_VERSION);
    if (h->n_entries == 0 || h->n_entries > TRIKV_RING_MAX_ENTRIES ||
        (h->n_entries & (h->n_entries - 1)))
        return tkv_fail(why, TRIKV_E_ARGUMENT, "ring: n_entries %u, want a power of two up to %d",
                        h->n_entries, TRIKV_RING_MAX_ENTRIES);
    if (!is_zero(h->reserved, sizeof(h->reserved)))
        return tkv_fail(why, TRIKV_E_PROTOCOL, "ring: reserved: want zeros");
    if (file_bytes < tkv_ring_tensors_at(h->n_entries))
        return tkv_fail(why, TRIKV_E_SIZE, "ring: %u entries need %zu bytes, the file has %llu",
                        h->n_entries, tkv_ring_tensors_at(h->n_entries),
                        (unsigned long long)file_bytes);
    return TRIKV_OK;
}

int tkv_ring_check_entry(const struct trikv_ring_entry *e, struct tkv_report *why)
{
    if (e->op >= TRIKV_RING_N_OPS)
        return tkv_fail(why, TRIKV_E_PROTOCOL, "ring entry: op %u is unknown", e->op);
    if (e->flags & ~TRIKV_RING_CHAIN)
        return tkv_fail(why, TRIKV_E_PROTOCOL, "ring entry: flags 0x%x, only 1 is known", e->flags);
    if (e->dtype > TRIKV_RING_MAX_DTYPE)
        return tkv_fail(why, TRIKV_E_PROTOCOL, "ring entry: dtype %u, want 0 f32, 1 f16 or 2 bf16",
                        e->dtype);
    if (!is_zero(e->reserved, sizeof(e->reserved)))
        return tkv_fail(why, TRIKV_E_PROTOCOL, "ring entry: reserved: want zeros");
    return TRIKV_OK;
}

int tkv_ring_check_range(uint32_t at, uint64_t n, uint32_t n_entries, uint64_t file_bytes,
                         const char *name, struct tkv_report *why)
{
    const uint64_t from = (uint64_t)at * TRIKV_RING_ALIGN;

    if (from < tkv_ring_tensors_at(n_entries) || from > file_bytes || n > file_bytes - from)
        return tkv_fail(why, TRIKV_E_PROTOCOL,
                        "ring entry: %s: %llu + %llu bytes is not within the tensors, %zu to %llu",
                        name, (unsigned long long)from, (unsigned long long)n,
                        tkv_ring_tensors_at(n_entries), (unsigned long long)file_bytes);
    return TRIKV_OK;
}

void tkv_ring_copy_entry(struct trikv_ring_entry *to, const void *shared)
{
    enum { N_WORDS = sizeof(*to) / sizeof(uint64_t) };
    const volatile uint64_t *from = shared;
    uint64_t word[N_WORDS] = {0};

    for (size_t i = 0; i < N_WORDS; i++)
        word[i] = from[i];
    memcpy(to, word, sizeof(*to));
}

bool tkv_spin_pays(struct tkv_spin *s)
{
    if (s->distrust < TKV_SPIN_DISTRUST)
        return true;
    if (++s->n_skipped < TKV_SPIN_RETRY)
        return false;
    s->n_skipped = 0;
    return true;
}

void tkv_spin_learn(struct tkv_spin *s, bool came)
{
    if (came && s->distrust > 0)
        s->distrust--;
    if (!came && s->distrust < TKV_SPIN_DISTRUST)
        s->distrust++;
}
