/*
 * What a successor makes of kept sessions that are not as their journal left them, although every hash is right:
 * it says what is wrong with that session, has the others, and gives all memory back. And kept sessions
 * for which there is not enough memory: neither a request nor an adoption leaves something half done.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/errors.h"
#include "proto/limits.h"
#include "store/adopt.h"
#include "store/journal.h"
#include "tests/emulated.h"
#include "tests/session_aid.h"

enum { N_FIRST = 300, N_MORE = 120, N_TOKENS = 480, AMPLE = 256 << 20, N_LAYERS = 2 };

static const char first_note[] = "first", second_note[] = "second";

/* A session and a fork that went on, in one arena; both are kept. */
struct kept {
    struct aid aid;
    struct aid_tokens t;
    struct tkv_session *fork;
    size_t note_bytes; /* of the first */
};

static void feed(struct aid *a, const struct aid_tokens *t, uint32_t first, uint32_t n)
{
    for (uint32_t l = 0; l < N_LAYERS; l++)
        if (aid_step(a, l, t, first, n))
            fail_msg("%s", a->why.text);
}

static void kept_open(struct kept *k)
{
    const uint32_t ids[N_FIRST] = {7, 8, 9};

    *k = (struct kept){.note_bytes = sizeof(first_note)};
    aid_init(&k->aid, "tq4");
    aid_triattention(&k->aid, 200, 5);
    k->aid.config.is_kept = true;
    k->aid.config.rollback_tokens = 16;
    assert_int_equal(aid_open(&k->aid), 0);
    k->t = aid_tokens(&k->aid, N_TOKENS, 3);
    assert_int_equal(
        tkv_session_keep(k->aid.session, NULL, first_note, sizeof(first_note), &k->aid.why), 0);
    assert_int_equal(tkv_session_write_ids(k->aid.session, 0, ids, N_FIRST, &k->aid.why), 0);
    feed(&k->aid, &k->t, 0, N_FIRST);
}

static void kept_fork(struct kept *k)
{
    struct tkv_session *const parent = k->aid.session;

    assert_int_equal(tkv_session_fork(&k->fork, parent, &k->aid.why), 0);
    assert_int_equal(
        tkv_session_keep(k->fork, parent, second_note, sizeof(second_note), &k->aid.why), 0);
    k->aid.session = k->fork;
    feed(&k->aid, &k->t, N_FIRST, N_MORE);
    k->aid.session = parent;
}

static void kept_close(struct kept *k)
{
    tkv_session_destroy(&k->fork);
    free(k->t.k);
    aid_close(&k->aid);
}

/* ---- adopting --------------------------------------------------------------------------- */

enum stage { NOWHERE, BEGIN, NEXT, TAKE };

/* What came of an adoption. */
struct outcome {
    enum stage stage; /* where the last error was */
    struct tkv_report why;
    uint32_t n_taken;
    size_t begun_bytes, peak_bytes;
    uint64_t n_seen[2][N_LAYERS]; /* of the session with the first note, and the second */
    uint32_t n_ids[2];
    size_t note_bytes[2];
};

static void take(const struct kept *k, struct tkv_adoption *a, const struct tkv_adopted *x,
                 struct outcome *o, struct tkv_session **s)
{
    const uint32_t which = strcmp(x->note, second_note) == 0;

    for (uint32_t l = 0; l < x->config->config.n_layers; l++)
        x->config->layers[l].stats = k->aid.layers[l].stats;
    o->n_ids[which] = x->n_ids;
    o->note_bytes[which] = x->note_bytes;
    if (tkv_adoption_take(a, s, &o->why)) {
        o->stage = TAKE;
        assert_null(*s);
        return;
    }
    o->n_taken++;
    for (uint32_t l = 0; l < N_LAYERS; l++)
        o->n_seen[which][l] = tkv_session_n_seen(*s, l);
}

static struct outcome adopt(const struct kept *k, int fd, size_t cap_bytes)
{
    struct outcome o = {.stage = NOWHERE};
    struct tkv_session *s[4] = {NULL};
    struct tkv_adoption *a;
    struct tkv_adopted x;
    struct tkv_budget b;
    bool found = true;

    tkv_budget_init(&b, cap_bytes);
    if (tkv_adoption_begin(&a, fd, &b, &k->aid.kn, &o.why)) {
        o.stage = BEGIN;
        assert_null(a);
    }
    o.begun_bytes = atomic_load(&b.used_bytes);
    for (int i = 0; a && i < 4; i++) {
        const int e = tkv_adoption_next(a, &found, &x, &o.why);

        if (e)
            o.stage = NEXT;
        else if (!found)
            break;
        else
            take(k, a, &x, &o, &s[i]);
    }
    tkv_adoption_end(&a);
    o.peak_bytes = atomic_load(&b.peak_bytes);
    for (int i = 0; i < 4; i++)
        tkv_session_destroy(&s[i]);
    assert_int_equal(atomic_load(&b.used_bytes), 0);
    if (o.stage != NOWHERE)
        assert_true(o.why.error != 0 && o.why.text[0]);
    return o;
}

/* ---- damage ----------------------------------------------------------------------------- */

/* A copy of the file, mapped; what is changed is of the first session. */
struct damaged {
    const struct kept *k;
    const struct tkv_session *s;
    const struct tkv_journal *j;
    uint8_t *map;
    struct tkv_journal_header *header;
};

static void *place(const struct damaged *d, uint64_t at)
{
    return d->map + tkv_block_offset((struct tkv_block_id){at});
}

static struct tkv_journal_slot *slot(const struct damaged *d, uint32_t cell)
{
    return (struct tkv_journal_slot *)(void *)(d->header + 1) + 2 * cell + d->j->cells[cell].slot;
}

static uint8_t *image(const struct damaged *d, uint32_t cell)
{
    const struct tkv_journal_slot *now = slot(d, cell);

    return (uint8_t *)place(d, now->image_place) + now->image_offset;
}

static struct tkv_journal_front *front(const struct damaged *d)
{
    return (struct tkv_journal_front *)(void *)image(d, 0);
}

/* All hashes as if the journal had written it so. */
static void reseal(const struct damaged *d, uint32_t cell)
{
    struct tkv_journal_slot *now = slot(d, cell);

    now->image_hash = tkv_journal_hash(image(d, cell), now->image_bytes);
    tkv_journal_seal(now);
}

static void other_magic(struct damaged *d)
{
    d->header->magic++;
}

static void no_layers(struct damaged *d)
{
    d->header->n_layers = 0;
}

static void too_many_layers(struct damaged *d)
{
    d->header->n_layers = TRIKV_MAX_LAYERS + 1;
}

static void layer_more(struct damaged *d)
{
    d->header->n_layers++;
}

static void never_committed(struct damaged *d)
{
    d->header->committed = 0;
}

static void hashes_of_slots(struct damaged *d)
{
    struct tkv_journal_slot *both = slot(d, 1) - d->j->cells[1].slot;

    both[0].hash++;
    both[1].hash++;
}

static void long_state(struct damaged *d)
{
    slot(d, 2)->state_bytes = TKV_JOURNAL_STATE_BYTES + 1;
    tkv_journal_seal(slot(d, 2));
}

static void front_elsewhere(struct damaged *d)
{
    slot(d, 0)->image_place += UINT64_C(3) << TKV_SLAB_BITS;
    tkv_journal_seal(slot(d, 0));
}

static void front_of_other_size(struct damaged *d)
{
    slot(d, 0)->areas_bytes += 64;
    tkv_journal_seal(slot(d, 0));
}

static void image_at_odd_place(struct damaged *d)
{
    slot(d, 0)->image_offset += 4;
    tkv_journal_seal(slot(d, 0));
}

static void image_behind_buffer(struct damaged *d)
{
    slot(d, 0)->image_offset = (slot(d, 0)->areas_bytes / 8 + 1) * 8;
    tkv_journal_seal(slot(d, 0));
}

static void image_over_end(struct damaged *d)
{
    slot(d, 0)->image_bytes = slot(d, 0)->areas_bytes - slot(d, 0)->image_offset + 1;
    tkv_journal_seal(slot(d, 0));
}

static void image_changed(struct damaged *d)
{
    image(d, 0)[slot(d, 0)->image_bytes - 1] ^= 1;
}

static void image_shorter_than_front(struct damaged *d)
{
    slot(d, 0)->image_bytes = 8;
    reseal(d, 0);
}

static void no_note(struct damaged *d)
{
    front(d)->note_bytes = 0;
    reseal(d, 0);
}

static void note_over_end(struct damaged *d)
{
    front(d)->note_bytes = slot(d, 0)->image_bytes;
    reseal(d, 0);
}

static void config_cut(struct damaged *d)
{
    slot(d, 0)->image_bytes -= 8;
    reseal(d, 0);
}

static void more_ids_than_room(struct damaged *d)
{
    slot(d, 0)->n_ids = front(d)->ids_cap + 1;
    reseal(d, 0);
}

static void ids_elsewhere(struct damaged *d)
{
    front(d)->ids_place += UINT64_C(1) << TKV_SLAB_BITS;
    reseal(d, 0);
}

static void no_ids_elsewhere(struct damaged *d)
{
    slot(d, 0)->n_ids = 0;
    ids_elsewhere(d);
}

/* The configuration of a session that has one layer less, where this one's was. */
static void fewer_layers(struct damaged *d)
{
    uint8_t *config = image(d, 0) + sizeof(*front(d)) + tkv_align(front(d)->note_bytes, 8);
    struct aid a;
    size_t bytes;

    aid_init(&a, "tq4");
    aid_triattention(&a, 200, 5);
    a.config.n_layers = N_LAYERS - 1;
    assert_int_equal(aid_open(&a), 0);
    bytes = tkv_image_bytes(a.session, TKV_IMAGE_CONFIG, 0, NULL);
    tkv_image_write(a.session, TKV_IMAGE_CONFIG, 0, NULL, config);
    slot(d, 0)->image_bytes = (uint32_t)(config + bytes - image(d, 0));
    aid_close(&a);
    reseal(d, 0);
}

static void layer_elsewhere(struct damaged *d)
{
    slot(d, 2)->image_place = slot(d, 0)->image_place;
    tkv_journal_seal(slot(d, 2));
}

static void layer_cut(struct damaged *d)
{
    slot(d, 2)->image_bytes = 4;
    reseal(d, 2);
}

static void part_over_end(struct damaged *d)
{
    const uint64_t n = slot(d, 1)->image_bytes;

    memcpy(image(d, 1), &n, sizeof(n));
    reseal(d, 1);
}

static void short_state(struct damaged *d)
{
    slot(d, 1)->state_bytes = 8;
    tkv_journal_seal(slot(d, 1));
}

static void short_counters(struct damaged *d)
{
    slot(d, 0)->state_bytes = 0;
    tkv_journal_seal(slot(d, 0));
}

/* The image of layer 1 where the session's would be written next. */
static void two_buffers(struct damaged *d)
{
    struct tkv_journal_slot *to = slot(d, 2);
    const struct tkv_journal_cell *c = &d->j->cells[0];
    const uint32_t offset = c->offset + !c->area * c->cap_bytes;

    assert_true(to->image_bytes <= c->cap_bytes);
    memcpy((uint8_t *)place(d, d->j->front.place) + offset, image(d, 2), to->image_bytes);
    to->image_place = d->j->front.place;
    to->areas_bytes = (uint32_t)d->j->front_bytes;
    to->image_offset = offset;
    tkv_journal_seal(to);
}

static int32_t *positions(const struct damaged *d, const int32_t *original)
{
    const struct tkv_block_id id = d->s->layers[0].halves->id;
    const ptrdiff_t at = (const uint8_t *)original - (const uint8_t *)tkv_arena_at(d->s->arena, id);

    return (int32_t *)(void *)((uint8_t *)place(d, id.place) + at);
}

static void tail_out_of_order(struct damaged *d)
{
    positions(d, d->s->layers[0].tail.positions)[1] = 0;
}

static void tail_beyond_all(struct damaged *d)
{
    const struct tkv_half_tier *t = &d->s->layers[0].tail;

    positions(d, t->positions)[t->n - 1] = TRIKV_MAX_POSITION + 1;
}

static void pinned_out_of_order(struct damaged *d)
{
    positions(d, d->s->layers[0].pinned.positions)[2] = 0;
}

static void not_live(struct damaged *d)
{
    d->header->is_live = 0;
}

static const struct {
    const char *name;
    void (*change)(struct damaged *d);
    enum stage stage;
    const char *want; /* in the text of the error */
} changes[] = {
    {"not live", not_live, NOWHERE, ""},
    {"magic", other_magic, NEXT, "the header is broken"},
    {"no layers", no_layers, NEXT, "the header is broken"},
    {"too many layers", too_many_layers, NEXT, "the header is broken"},
    {"a layer more", layer_more, NEXT, "the header is broken"},
    {"nothing committed", never_committed, NEXT, "no slot in force"},
    {"hashes of slots", hashes_of_slots, NEXT, "no slot in force"},
    {"long state", long_state, NEXT, "no slot in force"},
    {"front elsewhere", front_elsewhere, NEXT, "an image is nowhere"},
    {"front's size", front_of_other_size, NEXT, "an image is nowhere"},
    {"odd place", image_at_odd_place, NEXT, "not within its buffer"},
    {"behind the buffer", image_behind_buffer, NEXT, "not within its buffer"},
    {"over the end", image_over_end, NEXT, "not within its buffer"},
    {"other bytes", image_changed, NEXT, "not what was written"},
    {"short image", image_shorter_than_front, NEXT, "the session's image is short"},
    {"no note", no_note, NEXT, "the note is longer than the image"},
    {"long note", note_over_end, NEXT, "the note is longer than the image"},
    {"config cut", config_cut, NEXT, "image"},
    {"fewer layers", fewer_layers, NEXT, "the number of layers is another one"},
    {"too many ids", more_ids_than_room, NEXT, "token ids are nowhere"},
    {"ids elsewhere", ids_elsewhere, NEXT, "token ids are nowhere"},
    {"room for ids elsewhere", no_ids_elsewhere, TAKE, "token ids are nowhere"},
    {"layer elsewhere", layer_elsewhere, TAKE, "an image is nowhere"},
    {"layer cut", layer_cut, TAKE, "a layer's image is short"},
    {"long part", part_over_end, TAKE, "a part of a layer is longer than its image"},
    {"short state", short_state, TAKE, "image"},
    {"short counters", short_counters, TAKE, "image"},
    {"two buffers", two_buffers, TAKE, "images of layers are in two buffers"},
    {"tail's order", tail_out_of_order, TAKE, "positions do not ascend"},
    {"tail's last", tail_beyond_all, TAKE, "positions do not ascend"},
    {"pinned order", pinned_out_of_order, TAKE, "positions do not ascend"},
};

static struct outcome adopt_changed(const struct kept *k, void (*change)(struct damaged *d))
{
    const struct tkv_session *s = k->aid.session;
    const int fd = aid_copy_arena(tkv_session_arena_own_fd(s));
    struct damaged d = {.k = k, .s = s, .j = s->journal};
    struct outcome o;
    struct stat st;

    assert_int_equal(fstat(fd, &st), 0);
    d.map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(d.map != MAP_FAILED);
    d.header = place(&d, s->journal->root.place);
    change(&d);
    munmap(d.map, (size_t)st.st_size);
    o = adopt(k, fd, AMPLE);
    close(fd);
    return o;
}

/* One session is refused for what is wrong with it, the other one is there. */
static void damaged_sessions_are_refused_alone(void **state)
{
    struct kept k;

    (void)state;
    kept_open(&k);
    kept_fork(&k);
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        const struct outcome o = adopt_changed(&k, changes[i].change);

        if (o.stage != changes[i].stage || !strstr(o.why.text, changes[i].want))
            fail_msg("%s: stage %d, \"%s\"; want stage %d, \"%s\"", changes[i].name, o.stage,
                     o.why.text, changes[i].stage, changes[i].want);
        if (o.n_taken != 1 || o.n_seen[1][1] != N_FIRST + N_MORE)
            fail_msg("%s: %u sessions taken", changes[i].name, o.n_taken);
    }
    kept_close(&k);
}

/* ---- shortage --------------------------------------------------------------------------- */

/* With room for everything both sessions are there; with less an error says so, and nothing is left. */
static void adopting_needs_its_room(void **state)
{
    const size_t n = 300 / slow_step(10);
    size_t n_short[TAKE + 1] = {0};
    struct outcome whole;
    struct kept k;
    int fd;

    (void)state;
    kept_open(&k);
    kept_fork(&k);
    fd = aid_copy_arena(tkv_session_arena_own_fd(k.aid.session));
    whole = adopt(&k, fd, AMPLE);
    close(fd);
    assert_int_equal(whole.n_taken, 2);
    assert_int_equal(whole.n_ids[0], N_FIRST);
    for (size_t i = 0; i < 2 * n; i++) {
        const size_t more = whole.peak_bytes - whole.begun_bytes;
        const size_t cap =
            i < n ? whole.begun_bytes * i / n : whole.begun_bytes + more * (i - n) / n;
        struct outcome o;

        fd = aid_copy_arena(tkv_session_arena_own_fd(k.aid.session));
        o = adopt(&k, fd, cap);
        close(fd);
        n_short[o.stage]++;
        if (o.stage == NOWHERE || o.why.error != TRIKV_E_MEMORY_CAP)
            fail_msg("cap of %zu bytes: stage %d, %s", cap, o.stage, o.why.text);
    }
    assert_true(n_short[BEGIN] > 1 && n_short[NEXT] > 1 && n_short[TAKE] > 1);
    kept_close(&k);
}

/* A session without room, then what a successor has of it: what the session itself says. */
static void check_successor(const struct kept *k, const char *at)
{
    const int fd = aid_copy_arena(tkv_session_arena_own_fd(k->aid.session));
    const struct outcome o = adopt(k, fd, AMPLE);

    close(fd);
    if (o.stage != NOWHERE || o.n_taken != 1 + (k->fork ? 1u : 0u))
        fail_msg("%s: %u sessions, %s", at, o.n_taken, o.why.text);
    if (o.note_bytes[0] != k->note_bytes)
        fail_msg("%s: a note of %zu bytes, want %zu", at, o.note_bytes[0], k->note_bytes);
    for (uint32_t l = 0; l < N_LAYERS; l++)
        assert_int_equal(o.n_seen[0][l], tkv_session_n_seen(k->aid.session, l));
}

static bool refused(struct kept *k, int e)
{
    if (e && e != TRIKV_E_MEMORY_CAP)
        fail_msg("%s", k->aid.why.text);
    return e;
}

/* Requests with so many bytes left; returns how many were refused. */
static uint32_t ask_with(struct kept *k, size_t left_bytes)
{
    static const uint32_t ids[N_TOKENS];
    struct tkv_session *s = k->aid.session;
    struct tkv_report *why = &k->aid.why;
    char note[4096] = "first, and much longer";
    uint32_t n = 0, n_ids = N_FIRST;

    k->aid.budget.cap_bytes = atomic_load(&k->aid.budget.used_bytes) + left_bytes;
    if (refused(k, tkv_session_note(s, note, sizeof(note), why)))
        n++;
    else
        k->note_bytes = sizeof(note);
    tkv_session_commit_ids(s, n_ids);
    check_successor(k, "note");
    if (tkv_session_write_ids(s, n_ids, ids, N_MORE, why) == 0)
        n_ids += N_MORE;
    tkv_session_commit_ids(s, N_FIRST);
    for (uint32_t i = 0; i < 2 * N_LAYERS; i++)
        n += refused(k, aid_step(&k->aid, i % N_LAYERS, &k->t, N_FIRST + i / N_LAYERS * 60, 60));
    check_successor(k, "append");
    n += refused(k, tkv_session_truncate(s, 1, why));
    n += refused(k, tkv_session_round(s, NULL, why));
    check_successor(k, "round");
    if (refused(k, tkv_session_fork(&k->fork, s, why)))
        return n + 1;
    if (refused(k, tkv_session_keep(k->fork, s, second_note, sizeof(second_note), why))) {
        n++;
        tkv_session_destroy(&k->fork);
    }
    check_successor(k, "fork");
    return n;
}

static void requests_without_room_change_nothing(void **state)
{
    uint32_t n_refused = 0, n_whole = 0;

    (void)state;
    for (size_t left = 0; left < 8 << 20; left += left < 40000 ? 1531 : left / 4) {
        struct kept k;
        uint32_t n;

        kept_open(&k);
        n = ask_with(&k, left);
        k.aid.budget.cap_bytes = AMPLE;
        n_refused += n;
        n_whole += n == 0;
        feed(&k.aid, &k.t, N_FIRST + N_MORE, 60); /* it goes on */
        check_successor(&k, "more");
        kept_close(&k);
    }
    if (n_refused <= 20 || n_whole == 0)
        fail_msg("%u requests refused, %u sessions had room", n_refused, n_whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_sessions_are_refused_alone),
        cmocka_unit_test(adopting_needs_its_room),
        cmocka_unit_test(requests_without_room_change_nothing),
    };

    return cmocka_run_group_tests_name("adopt", tests, NULL, NULL);
}
