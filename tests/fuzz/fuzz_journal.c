/*
 * Adopting an arena whose every byte may have been written by somebody else. The input is a list of
 * changes to a sound arena of two sessions, apart from its codes: where, and eight bytes or one. Hashes are made good again
 * after them, or no change would get further than that. What is adopted is used.
 */
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/adopt.h"
#include "store/journal.h"
#include "tests/session_aid.h"

enum { N_TOKENS = 150, MOST_BYTES = 4 << 20, CAP = 8 << 20, N_SESSIONS = 2, MOST_CHANGES = 64 };

/* The sound arena, without its holes. */
struct sound {
    struct aid aid;
    struct tkv_session *s[N_SESSIONS];
    off_t capacity;
    uint8_t *bytes;
    struct {
        off_t at;
        size_t n, from; /* in bytes */
    } run[64];
    size_t n_runs, n_bytes;
    bool *is_code; /* [n_bytes]: what an adoption does not look at */
};

static void read_runs(struct sound *x, int fd)
{
    off_t at = 0;

    while (x->n_runs < 64 && (at = lseek(fd, at, SEEK_DATA)) >= 0) {
        const off_t end = lseek(fd, at, SEEK_HOLE);
        const size_t n = (size_t)(end - at);

        if (x->n_bytes + n > MOST_BYTES || pread(fd, x->bytes + x->n_bytes, n, at) != (ssize_t)n)
            abort();
        x->run[x->n_runs].at = at;
        x->run[x->n_runs].from = x->n_bytes;
        x->run[x->n_runs++].n = n;
        x->n_bytes += n;
        at = end;
    }
}

static uint8_t *find(const struct sound *x, uint8_t *bytes, uint64_t at, uint64_t n);

static void mark_codes(struct sound *x)
{
    const struct tkv_kept k = tkv_kept_layout((uint64_t)x->capacity, (uint64_t)getpagesize());
    struct tkv_kept_slab r;
    uint8_t *p;

    x->is_code = calloc(x->n_bytes, sizeof(bool));
    if (!x->is_code)
        abort();
    for (uint64_t i = 0; (p = find(x, x->bytes, k.directory_offset + i * sizeof(r), sizeof(r)));
         i++) {
        memcpy(&r, p, sizeof(r));
        for (uint64_t b = 0; r.kind == TKV_SLAB_BLOCKS && b < r.bytes; b++) {
            p = find(x, x->bytes, r.offset + b, 1);
            if (p)
                x->is_code[p - x->bytes] = true;
        }
    }
}

static void make_sound(struct sound *x)
{
    struct aid_tokens t;
    uint8_t note = 1;

    aid_init(&x->aid, "tq2");
    tkv_budget_init(&x->aid.budget, CAP);
    x->aid.shape =
        (struct tkv_shape){.n_q_heads = 2, .n_kv_heads = 1, .head_dim_k = 16, .head_dim_v = 16};
    x->aid.config.method = TKV_METHOD_STREAMING;
    x->aid.config.rollback_tokens = 8;
    x->aid.config.is_kept = true;
    for (int i = 0; i < AID_MAX_LAYERS; i++)
        x->aid.layers[i].budget_tokens = 100;
    if (aid_open(&x->aid) || tkv_session_keep(x->aid.session, NULL, &note, 1, NULL))
        abort();
    x->s[0] = x->aid.session;
    t = aid_tokens(&x->aid, N_TOKENS, 1);
    for (uint32_t l = 0; l < 2; l++)
        if (aid_step(&x->aid, l, &t, 0, N_TOKENS - 4))
            abort();
    if (tkv_session_fork(&x->s[1], x->s[0], NULL) ||
        tkv_session_keep(x->s[1], x->s[0], &note, 1, NULL) ||
        aid_step(&x->aid, 0, &t, N_TOKENS - 4, 4))
        abort();
    free(t.k);
    x->bytes = malloc(MOST_BYTES);
    if (!x->bytes)
        abort();
    x->capacity = (off_t)tkv_arena_capacity_bytes(x->s[0]->arena);
    read_runs(x, tkv_session_arena_own_fd(x->s[0]));
    mark_codes(x);
}

/* Where a byte of the file lies among the runs, if n of them do. */
static uint8_t *find(const struct sound *x, uint8_t *bytes, uint64_t at, uint64_t n)
{
    for (size_t i = 0; i < x->n_runs; i++)
        if (at >= (uint64_t)x->run[i].at && n <= x->run[i].n &&
            at - (uint64_t)x->run[i].at <= x->run[i].n - n)
            return bytes + x->run[i].from + (at - (uint64_t)x->run[i].at);
    return NULL;
}

static void seal(const struct sound *x, uint8_t *bytes, const struct tkv_session *s)
{
    const uint64_t root = tkv_block_offset(s->journal->root);

    for (uint32_t i = 0; i < 2 * (s->config.n_layers + 1); i++) {
        uint8_t *p = find(x, bytes, root + 64 + i * sizeof(struct tkv_journal_slot),
                          sizeof(struct tkv_journal_slot));
        struct tkv_journal_slot slot;
        const uint8_t *image;

        memcpy(&slot, p, sizeof(slot));
        image = find(x, bytes,
                     tkv_block_offset((struct tkv_block_id){slot.image_place}) + slot.image_offset,
                     slot.image_bytes);
        if (image)
            slot.image_hash = tkv_journal_hash(image, slot.image_bytes);
        tkv_journal_seal(&slot);
        memcpy(p, &slot, sizeof(slot));
    }
}

static void change(const struct sound *x, uint8_t *bytes, const uint8_t *data, size_t n)
{
    for (size_t k = 0; n >= 13 && k < MOST_CHANGES; n -= 13, data += 13, k++) {
        uint32_t at;

        memcpy(&at, data, sizeof(at));
        at %= (uint32_t)x->n_bytes - 8;
        if (x->is_code[at] || x->is_code[at + 7])
            continue;
        if (data[4] & 1)
            memcpy(bytes + at, data + 5, 8);
        else
            bytes[at] ^= data[5];
    }
}

static int write_file(const struct sound *x, const uint8_t *bytes)
{
    const int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, x->capacity))
        abort();
    for (size_t i = 0; i < x->n_runs; i++)
        if (pwrite(fd, bytes + x->run[i].from, x->run[i].n, x->run[i].at) != (ssize_t)x->run[i].n)
            abort();
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        abort();
    return fd;
}

static void use(struct tkv_session *s)
{
    float k[16] = {1}, v[16] = {2}, q[32] = {3}, out[32];
    struct tkv_report why;

    for (uint32_t i = 0; i < 80; i++) {
        const struct tkv_step step = {
            .layer = i % 2, .n_tokens = 1, .k = k, .v = v, .q = q, .out = out};

        (void)tkv_session_append_attend(s, &step, NULL, &why);
    }
    (void)tkv_session_truncate(s, 3, &why);
    (void)tkv_session_round(s, NULL, &why);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct sound x;
    static uint8_t bytes[MOST_BYTES];
    struct tkv_session *s[8] = {NULL};
    struct tkv_adoption *a;
    struct tkv_adopted one;
    struct tkv_budget b;
    struct tkv_report why = {0};
    size_t n_taken = 0;
    int fd;

    if (!x.bytes)
        make_sound(&x);
    memcpy(bytes, x.bytes, x.n_bytes);
    change(&x, bytes, data, n);
    for (int i = 0; i < N_SESSIONS; i++)
        seal(&x, bytes, x.s[i]);
    fd = write_file(&x, bytes);
    tkv_budget_init(&b, CAP);
    if (tkv_adoption_begin(&a, fd, &b, &x.aid.kn, &why) == 0) {
        bool found = true;

        for (int tries = 0; found && tries < 64 && n_taken < 8; tries++) {
            int e = tkv_adoption_next(a, &found, &one, &why);

            if (e) {
                found = true; /* of this one it was what is wrong */
                continue;
            }
            if (found && tkv_adoption_take(a, &s[n_taken], &why) == 0)
                n_taken++;
        }
        tkv_adoption_end(&a);
    } else if (!why.text[0]) {
        abort();
    }
    for (size_t i = 0; i < n_taken; i++)
        use(s[i]);
    for (size_t i = 0; i < n_taken; i++)
        tkv_session_destroy(&s[i]);
    close(fd);
    if (n_taken == N_SESSIONS)
        fuzz_reached();
    if (atomic_load(&b.used_bytes) != 0)
        abort();
    return 0;
}
