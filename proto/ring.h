/*
 * The ring: memory that a client makes and shares with the daemon, so that small steps need no
 * socket. The file, from its start:
 *
 *   struct trikv_ring_shared            8 lines of 64 bytes
 *   struct trikv_ring_entry [n]         what the client wants
 *   struct trikv_completion [n]         what came of it, in the same order
 *   tensors                             wherever the client likes, each at a multiple of 64
 *
 * Two counters are the whole protocol. The client fills entry `submitted` % n and counts it; the daemon
 * does it, fills completion `completed` % n and counts it. Never are more than n submitted and
 * not completed, and the client has read a completion before it uses its slot again.
 *
 * Who waits may sleep: it writes down which count it waits for, looks at the counter once more, and then
 * waits for its eventfd. Who counts then looks at what the other waits for, and wakes it if that is
 * reached. All four are sequentially consistent, so that one of the two sees the other
 * (tests/check_ring_model.c).
 */
#ifndef TRIKV_PROTO_RING_H
#define TRIKV_PROTO_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/report.h"

enum {
    TRIKV_RING_VERSION = 1,
    TRIKV_RING_MAX_ENTRIES = 4096,
    TRIKV_RING_ALIGN = 64,
    TRIKV_RING_MAX_DTYPE = 2, /* enum tkv_dtype */
};
#define TRIKV_RING_MAGIC UINT32_C(0x47525254) /* "TRRG" */

/* Written by the client before it asks for the ring, read once. */
struct trikv_ring_header {
    uint32_t magic;
    uint32_t version;
    uint32_t n_entries;   /* a power of two */
    uint8_t reserved[52]; /* zero */
};
_Static_assert(sizeof(struct trikv_ring_header) == 64, "ring header is 64 bytes");
_Static_assert(offsetof(struct trikv_ring_header, n_entries) == 8, "ring header layout");
_Static_assert(offsetof(struct trikv_ring_header, reserved) == 12, "ring header layout");

/* Each word on a line of its own: the processor that waits for one does not slow down who writes
 * another. All but the header begin as zero. */
struct trikv_ring_shared {
    struct trikv_ring_header header;
    _Alignas(64) _Atomic uint64_t submitted;        /* by the client, ever */
    _Alignas(64) _Atomic uint64_t completed;        /* by the daemon, ever */
    _Alignas(64) _Atomic uint64_t daemon_waits_for; /* `submitted` to wake it at; 0: it is awake */
    _Alignas(64) _Atomic uint64_t client_waits_for; /* `completed` to wake it at, or 0 */
    _Alignas(64) _Atomic uint32_t ended; /* by the daemon: an error number, no more comes */
    _Alignas(64) uint8_t reserved[128];
};
_Static_assert(sizeof(struct trikv_ring_shared) == 512, "8 lines");
_Static_assert(sizeof(_Atomic uint64_t) == 8 && ATOMIC_LLONG_LOCK_FREE == 2, "words are words");
_Static_assert(offsetof(struct trikv_ring_shared, submitted) == 64, "ring layout");
_Static_assert(offsetof(struct trikv_ring_shared, completed) == 128, "ring layout");
_Static_assert(offsetof(struct trikv_ring_shared, daemon_waits_for) == 192, "ring layout");
_Static_assert(offsetof(struct trikv_ring_shared, client_waits_for) == 256, "ring layout");
_Static_assert(offsetof(struct trikv_ring_shared, ended) == 320, "ring layout");

enum trikv_ring_op {
    TRIKV_RING_NOTHING = 0, /* is completed, that is all */
    TRIKV_RING_APPEND = 1,
    TRIKV_RING_ATTEND = 2,
    TRIKV_RING_APPEND_ATTEND = 3,
    TRIKV_RING_N_OPS,
};

/* If this one fails, or is not done because of one before it, the next is not done. */
enum { TRIKV_RING_CHAIN = 1 };

/* A step of one layer, as TokensRequest has it. Tensors are told in units of 64 bytes from the
 * start of the file; 0: there is none. */
struct trikv_ring_entry {
    uint64_t tag; /* the client's choice; its completion repeats it */
    uint64_t session;
    uint16_t op;
    uint8_t dtype;
    uint8_t flags;
    uint32_t layer;
    uint32_t n_tokens;
    uint32_t positions;
    uint32_t k;
    uint32_t v;
    uint32_t q;
    uint32_t out;
    uint32_t lse;
    uint32_t token_ids;  /* a daemon without feature "ring_ids" wants zero */
    uint8_t reserved[8]; /* zero */
};
_Static_assert(sizeof(struct trikv_ring_entry) == 64, "ring entry is 64 bytes");
_Static_assert(offsetof(struct trikv_ring_entry, session) == 8, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, op) == 16, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, dtype) == 18, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, flags) == 19, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, layer) == 20, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, n_tokens) == 24, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, positions) == 28, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, k) == 32, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, v) == 36, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, q) == 40, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, out) == 44, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, lse) == 48, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, token_ids) == 52, "ring entry layout");
_Static_assert(offsetof(struct trikv_ring_entry, reserved) == 56, "ring entry layout");

struct trikv_completion {
    uint64_t tag;
    uint64_t n_seen; /* as in TokensReply */
    uint32_t n_kept;
    uint32_t n_rounds;
    int32_t error;  /* 0, or of proto/errors.h: then nothing has changed, and there is a text */
    char text[228]; /* ends with a 0; only written with an error */
};
_Static_assert(sizeof(struct trikv_completion) == 256, "completion is 256 bytes");
_Static_assert(offsetof(struct trikv_completion, n_seen) == 8, "completion layout");
_Static_assert(offsetof(struct trikv_completion, n_kept) == 16, "completion layout");
_Static_assert(offsetof(struct trikv_completion, n_rounds) == 20, "completion layout");
_Static_assert(offsetof(struct trikv_completion, error) == 24, "completion layout");
_Static_assert(offsetof(struct trikv_completion, text) == 28, "completion layout");

static inline size_t tkv_ring_completions_at(uint32_t n_entries)
{
    return sizeof(struct trikv_ring_shared) + n_entries * sizeof(struct trikv_ring_entry);
}

static inline size_t tkv_ring_tensors_at(uint32_t n_entries)
{
    return tkv_ring_completions_at(n_entries) + n_entries * sizeof(struct trikv_completion);
}

/* The one who counts: true if the other is to be woken. */
static inline bool tkv_ring_publish(_Atomic uint64_t *counter, uint64_t value,
                                    const _Atomic uint64_t *other_waits_for)
{
    uint64_t want;

    atomic_store_explicit(counter, value, memory_order_seq_cst);
    want = atomic_load_explicit(other_waits_for, memory_order_seq_cst);
    return want != 0 && value >= want;
}

/* The one who waits: true if it is not there yet, and it may sleep. */
static inline bool tkv_ring_may_sleep(_Atomic uint64_t *waits_for, const _Atomic uint64_t *counter,
                                      uint64_t want)
{
    atomic_store_explicit(waits_for, want, memory_order_seq_cst);
    return atomic_load_explicit(counter, memory_order_seq_cst) < want;
}

static inline void tkv_ring_awake(_Atomic uint64_t *waits_for)
{
    atomic_store_explicit(waits_for, 0, memory_order_relaxed);
}

/* A header as it was copied out: does it fit a file of this size? */
int tkv_ring_check_header(const struct trikv_ring_header *h, uint64_t file_bytes,
                          struct tkv_report *why);

/* What can be said of an entry without knowing its session. */
int tkv_ring_check_entry(const struct trikv_ring_entry *e, struct tkv_report *why);

/* The n bytes at `at` (in units of 64) lie among the tensors of a file of this size; `name` is
 * for the error. */
int tkv_ring_check_range(uint32_t at, uint64_t n, uint32_t n_entries, uint64_t file_bytes,
                         const char *name, struct tkv_report *why);

/* Copy an entry out of memory that the other side may be writing to, reading each word once. */
void tkv_ring_copy_entry(struct trikv_ring_entry *to, const void *shared);

/*
 * Whether it pays to spin before sleeping: as long as what one spins for mostly comes. When it does not,
 * only every 16th wait tries. Begins zeroed.
 */
struct tkv_spin {
    uint32_t distrust; /* 0..TKV_SPIN_DISTRUST */
    uint32_t n_skipped;
};
enum { TKV_SPIN_DISTRUST = 4, TKV_SPIN_RETRY = 16 };

bool tkv_spin_pays(struct tkv_spin *s);
void tkv_spin_learn(struct tkv_spin *s, bool came);

static inline void tkv_spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

#endif /* TRIKV_PROTO_RING_H */
