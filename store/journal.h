/*
 * A session's journal: what a successor of this process needs beside the blocks and buffers in the arena to
 * have the session as it was after its last request. It lies in the arena itself, so that one
 * descriptor carries both.
 *
 *   root    a slab of kind journal: a header, then a cell of two slots for the session and for
 *           each layer. A slot has the numbers that every token changes, and where an image is.
 *   front   a buffer: two places for the session's image, its configuration.
 *   areas   a buffer: for each layer two places for its image, its tables and what it observed, which is
 *           written anew when they change. A fork refers to the areas of its parent, and who of
 *           them first has an image to write makes new ones: so a fork costs its slots alone.
 *   ids     a buffer: the token ids, if the client told them; the session's slot counts them.
 *
 * A commit writes the slots that are not in force, with the number of the transaction, and their images
 * before; then it stores that number in the header. So a process may die between any two of these
 * stores: in force is of each cell the slot with the largest number that is not over the header's.
 * What the old state refers to is neither overwritten nor given back before (tkv_arena_defer).
 */
#ifndef TKV_STORE_JOURNAL_H
#define TKV_STORE_JOURNAL_H

#include "store/image.h"
#include "store/session_priv.h"

#define TKV_JOURNAL_MAGIC UINT64_C(0x4c4e524a56545254) /* "TRTVJRNL" */

struct tkv_journal_header {
    uint64_t magic;
    uint64_t is_live; /* 1 from the first commit to the session's end */
    uint64_t committed;
    uint32_t n_layers;
    uint32_t reserved[9]; /* 0 */
};
_Static_assert(sizeof(struct tkv_journal_header) == 64, "journal layout");

/* state: the part of the image that every token changes (STATE, COUNTERS of store/image.h). */
enum { TKV_JOURNAL_STATE_BYTES = 208 };

struct tkv_journal_slot {
    uint64_t number;       /* of the transaction */
    uint64_t image_place;  /* of the buffer it is in: front or areas */
    uint32_t areas_bytes;  /* its size */
    uint32_t image_offset; /* in it */
    uint32_t image_bytes;
    uint32_t image_hash;
    uint64_t n_ids; /* of the session: token ids that count */
    uint32_t state_bytes;
    uint32_t hash; /* of the slot, itself being 0 */
    uint8_t state[TKV_JOURNAL_STATE_BYTES];
};
_Static_assert(sizeof(struct tkv_journal_slot) == 256, "journal layout");

/* In front of the session's image: what its owner wants to know of it, and where its token ids are. */
struct tkv_journal_front {
    uint64_t ids_place; /* of a buffer; 0: none */
    uint32_t ids_cap;
    uint32_t note_bytes; /* that follow, padded to 8; then CONFIG */
};

/* What is in force, and where the next goes. */
struct tkv_journal_cell {
    struct tkv_journal_slot now;
    uint32_t slot;              /* 0 or 1, where it stands */
    uint32_t area;              /* its image */
    uint64_t generation;        /* of the layer, in the image */
    uint32_t offset, cap_bytes; /* its two places, of cap_bytes each; 0: not its own to write */
};

struct tkv_journal {
    struct tkv_block_id root;
    struct tkv_block_id front, areas;
    size_t root_bytes, front_bytes, areas_bytes;
    struct tkv_block_id ids;
    uint32_t *id; /* [cap_ids], in the arena */
    uint32_t n_ids, cap_ids;
    uint64_t number; /* of the last transaction */
    bool is_changed; /* the session's part: its image is to be written */
    bool is_left;    /* to the successor: the session goes, its journal stays */
    void *note;
    size_t note_bytes;
    struct tkv_half_buffer *spare; /* for a tail that must move: not in force */
    size_t spare_bytes;
    void (*on_step)(void *arg); /* tests: after every store that a successor could see */
    void *on_step_arg;
    struct tkv_journal_cell cells[]; /* the session's, then the layers' */
};

/*
 * Before layers [first, first + n) change: room for their images as far as their tables reach now, for
 * what they may give up, and a spare buffer if a tail may move. Prepare_push: of them only tails get tokens,
 * for which there is room. An error leaves everything in force. Commit cannot fail. All do nothing for a session that is not in a journal.
 */
int tkv_journal_prepare(struct tkv_session *s, uint32_t first, uint32_t n, struct tkv_report *why);
int tkv_journal_prepare_push(struct tkv_session *s, uint32_t first, uint32_t n,
                             struct tkv_report *why);
int tkv_journal_spare(struct tkv_session *s, const struct tkv_layer *l, struct tkv_report *why);
void tkv_journal_commit(struct tkv_session *s, uint32_t first, uint32_t n);
void tkv_journal_end(struct tkv_session *s);

/* What it takes beside the session: private memory, and slabs in the arena. */
uint64_t tkv_journal_bytes(const struct tkv_session *s);

/* True if every layer as it is now can be committed without prepare. */
bool tkv_journal_fits(const struct tkv_session *s);

/* The parts of a layer's image, each with its length before it. */
enum { TKV_JOURNAL_LAYER_PARTS = 3 };
extern const enum tkv_image_part tkv_journal_layer_parts[TKV_JOURNAL_LAYER_PARTS];

struct tkv_journal *tkv_journal_alloc(struct tkv_session *s);
size_t tkv_journal_root_bytes(uint32_t n_layers);
uint32_t tkv_journal_hash(const void *data, size_t n);
void tkv_journal_seal(struct tkv_journal_slot *slot);

#endif /* TKV_STORE_JOURNAL_H */
