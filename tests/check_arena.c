/* The byte cap and the arenas: what is reserved is counted, what is given back is given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/errors.h"
#include "store/arena.h"
#include "store/budget.h"
#include "tests/rng.h"

enum { BLOCK_BYTES = 4800 };

static void budget_never_passes_its_cap(void **state)
{
    struct tkv_budget b;
    void *p;

    (void)state;
    tkv_budget_init(&b, 1000);
    assert_true(tkv_budget_reserve(&b, 1000));
    assert_false(tkv_budget_reserve(&b, 1));
    assert_false(tkv_budget_reserve(&b, SIZE_MAX));
    tkv_budget_release(&b, 1000);
    p = tkv_budget_alloc(&b, 640);
    assert_non_null(p);
    assert_int_equal((uintptr_t)p % 64, 0);
    assert_null(tkv_budget_alloc(&b, 361));
    assert_int_equal(atomic_load(&b.used_bytes), 640);
    tkv_budget_free(&b, p, 640);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    assert_int_equal(atomic_load(&b.peak_bytes), 1000);
    assert_null(tkv_budget_alloc(&b, 0));
}

/* Resident bytes of the file as the kernel counts them. */
static uint64_t file_bytes(const struct tkv_arena *a)
{
    struct stat st;

    assert_int_equal(fstat(tkv_arena_read_fd(a), &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void every_byte_comes_back(void **state)
{
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct tkv_block_id id[100];

    (void)state;
    tkv_budget_init(&b, 8 << 20);
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    for (int round = 0; round < 3; round++) {
        assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 100, NULL), 0);
        for (int i = 0; i < 100; i++) {
            id[i] = tkv_arena_alloc(a, BLOCK_BYTES);
            memset(tkv_arena_at(a, id[i]), i, BLOCK_BYTES);
        }
        assert_int_equal(tkv_arena_sizes(a).live_bytes, 100 * BLOCK_BYTES);
        assert_true(tkv_arena_sizes(a).slab_bytes < 100 * BLOCK_BYTES * 12 / 10);
        assert_true(file_bytes(a) <= tkv_arena_sizes(a).slab_bytes);
        for (int i = 0; i < 100; i++) {
            const uint8_t *p = tkv_arena_at(a, id[i]);

            assert_int_equal(p[0], i);
            assert_int_equal(p[BLOCK_BYTES - 1], i);
            tkv_arena_unref(a, id[i]);
        }
        tkv_arena_trim(a);
        assert_int_equal(tkv_arena_sizes(a).live_bytes, 0);
        assert_int_equal(tkv_arena_sizes(a).slab_bytes, 0);
        assert_int_equal(file_bytes(a), 0);
    }
    tkv_arena_destroy(&a);
    assert_null(a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
}

static void a_block_lives_until_its_last_reference(void **state)
{
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct tkv_block_id id;

    (void)state;
    tkv_budget_init(&b, 1 << 20);
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 1, NULL), 0);
    id = tkv_arena_alloc(a, BLOCK_BYTES);
    tkv_arena_ref(a, id);
    tkv_arena_unref(a, id);
    tkv_arena_trim(a);
    assert_int_equal(tkv_arena_sizes(a).live_bytes, BLOCK_BYTES);
    tkv_arena_unref(a, id);
    assert_int_equal(tkv_arena_sizes(a).live_bytes, 0);
    tkv_arena_destroy(&a);
}

/* Places of slabs that came together are handed out from the first on. */
static void new_blocks_ascend(void **state)
{
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    size_t last = 0;

    (void)state;
    tkv_budget_init(&b, 8 << 20);
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 400, NULL), 0);
    for (size_t i = 0; i < 400; i++) {
        const size_t at = tkv_block_offset(tkv_arena_take(a, BLOCK_BYTES));

        assert_true(i == 0 || at > last);
        last = at;
    }
    tkv_arena_destroy(&a);
}

static void the_cap_is_an_error_not_a_crash(void **state)
{
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct tkv_report why = {0};

    (void)state;
    tkv_budget_init(&b, 256 << 10);
    assert_int_equal(tkv_arena_create(&a, &b, &why), 0);
    assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 1000, &why), TRIKV_E_MEMORY_CAP);
    assert_non_null(strstr(why.text, "cap"));
    assert_true(atomic_load(&b.used_bytes) <= b.cap_bytes);
    tkv_arena_trim(a);
    assert_int_equal(tkv_arena_sizes(a).slab_bytes, 0);
    assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 10, &why), 0);
    tkv_arena_destroy(&a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
}

/* Blocks of several sizes come and go at random; none may overlap, all bytes are counted. */
static void random_blocks_never_overlap(void **state)
{
    static const size_t sizes[] = {64, 4800, 8384, 70016};
    struct rng rng = {1};
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct {
        struct tkv_block_id id;
        size_t bytes;
        uint8_t tag;
    } live[64] = {{{0}, 0, 0}};

    (void)state;
    tkv_budget_init(&b, 64 << 20);
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    for (int step = 0; step < 5000; step++) {
        const size_t i = rng_next(&rng) % 64;

        if (live[i].bytes) {
            const uint8_t *p = tkv_arena_at(a, live[i].id);

            for (size_t at = 0; at < live[i].bytes; at++)
                if (p[at] != live[i].tag)
                    fail_msg("step %d: byte %zu of a block changed", step, at);
            tkv_arena_unref(a, live[i].id);
            live[i].bytes = 0;
            if (step % 5 == 0)
                tkv_arena_trim(a);
            continue;
        }
        live[i].bytes = sizes[rng_next(&rng) % 4];
        live[i].tag = (uint8_t)step;
        assert_int_equal(tkv_arena_reserve(a, live[i].bytes, 1, NULL), 0);
        live[i].id = tkv_arena_alloc(a, live[i].bytes);
        for (size_t at = 0; at < live[i].bytes; at++)
            assert_int_equal(((uint8_t *)tkv_arena_at(a, live[i].id))[at], 0);
        memset(tkv_arena_at(a, live[i].id), live[i].tag, live[i].bytes);
    }
    assert_int_equal(atomic_load(&b.used_bytes),
                     tkv_arena_sizes(a).slab_bytes + tkv_arena_sizes(a).table_bytes);
    tkv_arena_destroy(&a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
}

/* Hundreds of slabs in use at once: the tables of slabs and gaps grow many times. */
static void many_slabs_fit_the_tables(void **state)
{
    enum { N = 250, BIG = 256 << 10 }; /* just under a power of two */
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct tkv_block_id id[N];

    (void)state;
    tkv_budget_init(&b, (size_t)N * BIG + (8 << 20));
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    for (int i = 0; i < N; i++) {
        assert_int_equal(tkv_arena_reserve(a, BIG, 1, NULL), 0);
        id[i] = tkv_arena_alloc(a, BIG);
    }
    for (int i = 0; i < N; i += 2) /* every second one: as many gaps as can be */
        tkv_arena_unref(a, id[i]);
    tkv_arena_trim(a);
    assert_int_equal(tkv_arena_sizes(a).slab_bytes, N / 2 * BIG);
    assert_int_equal(tkv_arena_reserve(a, 2 * BIG, 1, NULL), 0); /* fits no gap */
    for (int i = 1; i < N; i += 2)
        tkv_arena_unref(a, id[i]);
    tkv_arena_trim(a);
    assert_int_equal(tkv_arena_sizes(a).slab_bytes, 0);
    tkv_arena_destroy(&a);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
}

/* Every other block goes; gathering the rest gives memory back and keeps every byte. */
static void spread_blocks_can_be_gathered(void **state)
{
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    struct tkv_block_id id[400];
    size_t before;

    (void)state;
    tkv_budget_init(&b, 16 << 20);
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    assert_int_equal(tkv_arena_reserve(a, BLOCK_BYTES, 400, NULL), 0);
    for (int i = 0; i < 400; i++) {
        id[i] = tkv_arena_alloc(a, BLOCK_BYTES);
        memset(tkv_arena_at(a, id[i]), i, BLOCK_BYTES);
    }
    tkv_arena_ref(a, id[1]); /* someone else's too: it must not move */
    for (int i = 0; i < 400; i += 2)
        tkv_arena_unref(a, id[i]);
    before = tkv_arena_sizes(a).slab_bytes;
    tkv_arena_trim(a);
    assert_true(tkv_arena_sizes(a).slab_bytes > before * 9 / 10);
    assert_true(tkv_arena_drain(a) > 0);
    for (int i = 1; i < 400; i += 2) {
        const struct tkv_block_id to = tkv_arena_move(a, id[i]);

        assert_true(i != 1 || to.place == id[1].place);
        id[i] = to;
    }
    tkv_arena_trim(a);
    assert_true(tkv_arena_sizes(a).slab_bytes < before * 6 / 10);
    for (int i = 1; i < 400; i += 2) {
        const uint8_t *p = tkv_arena_at(a, id[i]);

        for (size_t at = 0; at < BLOCK_BYTES; at++)
            assert_int_equal(p[at], (uint8_t)i);
    }
    tkv_arena_destroy(&a);
}

/* What another user who is handed the descriptor can do with it: read, nothing else. */
static int try_to_write(int fd)
{
    char path[32];

    if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
        return 1;
    if (ftruncate(fd, 0) == 0 || fchmod(fd, 0777) == 0)
        return 2;
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0)
        return 3;
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (open(path, O_RDWR) >= 0)
        return 4;
    return 0;
}

static void a_reader_cannot_write(void **state)
{
    struct tkv_budget b;
    struct tkv_arena *a = NULL;
    pid_t child;
    int status;

    (void)state;
    if (getuid() != 0) {
        print_message("skip: needs root to become another user\n");
        skip();
    }
    tkv_budget_init(&b, 1 << 20);
    assert_int_equal(tkv_arena_create(&a, &b, NULL), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (setgid(65534) || setuid(65534))
            _exit(9);
        _exit(try_to_write(tkv_arena_read_fd(a)));
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(fcntl(tkv_arena_read_fd(a), F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW),
                     F_SEAL_SHRINK | F_SEAL_GROW);
    tkv_arena_destroy(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(budget_never_passes_its_cap),
        cmocka_unit_test(every_byte_comes_back),
        cmocka_unit_test(a_block_lives_until_its_last_reference),
        cmocka_unit_test(new_blocks_ascend),
        cmocka_unit_test(the_cap_is_an_error_not_a_crash),
        cmocka_unit_test(random_blocks_never_overlap),
        cmocka_unit_test(many_slabs_fit_the_tables),
        cmocka_unit_test(spread_blocks_can_be_gathered),
        cmocka_unit_test(a_reader_cannot_write),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
