/* Kept arenas: what a successor finds in the file of a daemon that is no more, and what it must refuse. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/errors.h"
#include "store/arena.h"
#include "store/budget.h"
#include "tests/rng.h"

enum { BLOCK_BYTES = 4800, N_BLOCKS = 200, CAP = 16 << 20 };

static uint64_t file_bytes(int fd)
{
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* An arena as a daemon leaves it, and its blocks; every third was given back. */
struct left {
    struct tkv_budget budget;
    struct tkv_arena *arena;
    struct tkv_block_id id[N_BLOCKS], buffer, journal;
};

static void leave(struct left *l)
{
    tkv_budget_init(&l->budget, CAP);
    assert_int_equal(tkv_arena_create_kept(&l->arena, 7, &l->budget, NULL), 0);
    assert_int_equal(tkv_arena_reserve(l->arena, BLOCK_BYTES, N_BLOCKS, NULL), 0);
    assert_int_equal(tkv_arena_buffer(l->arena, 10048, &l->buffer, NULL), 0);
    assert_int_equal(tkv_arena_buffer_of(l->arena, TKV_SLAB_JOURNAL, 640, &l->journal, NULL), 0);
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        l->id[i] = tkv_arena_alloc(l->arena, BLOCK_BYTES);
        memset(tkv_arena_at(l->arena, l->id[i]), (int)(i % 251), BLOCK_BYTES);
    }
    for (uint32_t i = 0; i < N_BLOCKS; i += 3)
        tkv_arena_unref(l->arena, l->id[i]);
    tkv_arena_trim(l->arena);
}

static void done(struct left *l)
{
    tkv_arena_destroy(&l->arena);
    assert_int_equal(atomic_load(&l->budget.used_bytes), 0);
}

static void check_blocks(const struct left *l, struct tkv_arena *a, bool shared)
{
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        const uint8_t *p = tkv_arena_at(a, l->id[i]);

        if (i % 3 == 0)
            continue;
        assert_int_equal(p[0], i % 251);
        assert_int_equal(p[BLOCK_BYTES - 1], i % 251);
        assert_int_equal(tkv_arena_count_shared(a, &l->id[i], sizeof(l->id[i]), 1), shared);
    }
}

static void blocks_that_are_claimed_stay(void **state)
{
    struct left l;
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct tkv_block_id at;
    uint32_t next = 0;
    size_t bytes;

    (void)state;
    leave(&l);
    tkv_budget_init(&b, CAP);
    assert_int_equal(tkv_arena_adopt(&a, tkv_arena_fd(l.arena), &b, NULL), 0);
    assert_true(tkv_arena_id(a) == tkv_arena_id(l.arena));
    assert_true(tkv_arena_next(a, TKV_SLAB_JOURNAL, &next, &at, &bytes));
    assert_int_equal(bytes, 640);
    assert_true(at.place == l.journal.place);
    assert_false(tkv_arena_next(a, TKV_SLAB_JOURNAL, &next, &at, &bytes));
    for (int n = 0; n < 2; n++)
        for (uint32_t i = 0; i < N_BLOCKS; i++)
            if (i % 3)
                assert_true(tkv_arena_claim(a, l.id[i], BLOCK_BYTES, TKV_SLAB_BLOCKS));
    assert_true(tkv_arena_claim(a, l.buffer, 10048, TKV_SLAB_BUFFER));
    tkv_arena_adopt_end(a);
    check_blocks(&l, a, true);
    assert_int_equal(tkv_arena_sizes(a).live_bytes, 133 * BLOCK_BYTES + 10048);
    for (uint32_t i = 0; i < N_BLOCKS; i++)
        if (i % 3)
            tkv_arena_unref(a, l.id[i]);
    check_blocks(&l, a, false);
    /* New blocks do not come to lie on claimed ones. */
    assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 500, NULL), 0);
    for (int i = 0; i < 500; i++)
        memset(tkv_arena_at(a, tkv_arena_alloc(a, BLOCK_BYTES)), 0xff, BLOCK_BYTES);
    check_blocks(&l, a, false);
    tkv_arena_destroy(&a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    done(&l);
}

static void what_nobody_claims_is_given_back(void **state)
{
    struct left l;
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    const uint32_t kept = 1;

    (void)state;
    leave(&l);
    tkv_budget_init(&b, CAP);
    assert_int_equal(tkv_arena_adopt(&a, tkv_arena_fd(l.arena), &b, NULL), 0);
    assert_true(atomic_load(&b.used_bytes) >= file_bytes(tkv_arena_fd(a)));
    assert_true(tkv_arena_claim(a, l.id[kept], BLOCK_BYTES, TKV_SLAB_BLOCKS));
    tkv_arena_adopt_end(a);
    assert_true(file_bytes(tkv_arena_fd(a)) < 40 * BLOCK_BYTES);
    assert_true(atomic_load(&b.used_bytes) < 50 * BLOCK_BYTES);
    tkv_arena_destroy(&a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    done(&l);
}

static void places_that_are_none_are_not_claimed(void **state)
{
    struct left l;
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    const uint64_t step = UINT64_C(1) << TKV_SLAB_BITS;

    (void)state;
    leave(&l);
    tkv_budget_init(&b, CAP);
    assert_int_equal(tkv_arena_adopt(&a, tkv_arena_fd(l.arena), &b, NULL), 0);
    assert_false(tkv_arena_claim(a, (struct tkv_block_id){0}, BLOCK_BYTES, TKV_SLAB_BLOCKS));
    assert_false(tkv_arena_claim(a, l.id[1], BLOCK_BYTES + 64, TKV_SLAB_BLOCKS));
    assert_false(tkv_arena_claim(a, l.id[1], BLOCK_BYTES, TKV_SLAB_BUFFER));
    assert_false(tkv_arena_claim(a, l.buffer, 10048, TKV_SLAB_JOURNAL));
    for (uint32_t i = 0; i < N_BLOCKS; i++) {
        const struct tkv_block_id off = {l.id[i].place + step}, slab = {l.id[i].place + 77};

        assert_false(tkv_arena_claim(a, off, BLOCK_BYTES, TKV_SLAB_BLOCKS));
        assert_false(tkv_arena_claim(a, slab, BLOCK_BYTES, TKV_SLAB_BLOCKS));
    }
    assert_false(
        tkv_arena_claim(a, (struct tkv_block_id){UINT64_MAX}, BLOCK_BYTES, TKV_SLAB_BLOCKS));
    tkv_arena_destroy(&a);
    done(&l);
}

/* Every bit of the front of the file turned, one after the other: adopted or refused, nothing else. */
static void broken_files_are_refused(void **state)
{
    struct left l;
    struct tkv_budget b;
    uint8_t *front;
    size_t n_refused = 0;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    (void)state;
    leave(&l);
    front = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, tkv_arena_fd(l.arena), 0);
    assert_true(front != MAP_FAILED);
    for (size_t bit = 0; bit < (40 + 512) * 8; bit++) {
        uint8_t *byte = front + (bit / 8 < 40 ? bit / 8 : page + bit / 8 - 40);
        struct tkv_arena *a = NULL;
        struct tkv_report why = {0};

        *byte ^= (uint8_t)(1u << bit % 8);
        tkv_budget_init(&b, CAP);
        if (tkv_arena_adopt(&a, tkv_arena_fd(l.arena), &b, &why)) {
            assert_true(why.error && why.text[0]);
            n_refused++;
        }
        tkv_arena_destroy(&a);
        assert_int_equal(atomic_load(&b.used_bytes), 0);
        *byte ^= (uint8_t)(1u << bit % 8);
        if (bit == 64)
            assert_int_equal(why.error, TRIKV_E_VERSION);
    }
    assert_true(n_refused > 300);
    munmap(front, 2 * page);
    done(&l);
}

static void other_files_are_refused(void **state)
{
    const int plain = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct tkv_budget b;
    struct tkv_arena *a;
    int pipe_fds[2];

    (void)state;
    tkv_budget_init(&b, CAP);
    assert_int_equal(pipe(pipe_fds), 0);
    assert_int_not_equal(tkv_arena_adopt(&a, pipe_fds[0], &b, NULL), 0);
    assert_int_not_equal(tkv_arena_adopt(&a, plain, &b, NULL), 0);
    assert_int_equal(ftruncate(plain, 1 << 20), 0);
    assert_int_equal(fcntl(plain, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), 0);
    assert_int_not_equal(tkv_arena_adopt(&a, plain, &b, NULL), 0);
    assert_null(a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    close(plain);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

/* More than the successor's cap: an error, and nothing stays counted. */
static void a_smaller_cap_refuses(void **state)
{
    struct left l;
    struct tkv_budget b;
    struct tkv_arena *a;
    struct tkv_report why = {0};

    (void)state;
    leave(&l);
    tkv_budget_init(&b, 300 << 10);
    assert_int_equal(tkv_arena_adopt(&a, tkv_arena_fd(l.arena), &b, &why), TRIKV_E_MEMORY_CAP);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    done(&l);
}

static void deferred_blocks_stay_until_settled(void **state)
{
    struct left l;
    struct tkv_block_id fresh;
    size_t live;

    (void)state;
    leave(&l);
    live = tkv_arena_sizes(l.arena).live_bytes;
    assert_int_equal(tkv_arena_defer(l.arena, 2, NULL), 0);
    tkv_arena_unref(l.arena, l.id[1]);
    assert_int_equal(tkv_arena_sizes(l.arena).live_bytes, live);
    assert_true(tkv_arena_has_deferred(l.arena));
    assert_int_equal(tkv_arena_reserve(l.arena, BLOCK_BYTES, 1, NULL), 0);
    fresh = tkv_arena_alloc(l.arena, BLOCK_BYTES);
    assert_true(fresh.place != l.id[1].place);
    check_blocks(&l, l.arena, false);
    tkv_arena_settle(l.arena);
    assert_int_equal(tkv_arena_sizes(l.arena).live_bytes, live);
    assert_false(tkv_arena_has_deferred(l.arena));
    done(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_that_are_claimed_stay),
        cmocka_unit_test(what_nobody_claims_is_given_back),
        cmocka_unit_test(places_that_are_none_are_not_claimed),
        cmocka_unit_test(broken_files_are_refused),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(a_smaller_cap_refuses),
        cmocka_unit_test(deferred_blocks_stay_until_settled),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
