/*
 * The protocol of rings (proto/ring.h) in every order that two processors can make of it: each has
 * stores that the other does not see yet, and which leave it in any order unless the protocol says
 * otherwise. No entry may be read that is not whole, and nobody may sleep for ever. Then the same
 * with one thing left out at a time, which must be found.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { N_SLOTS = 2, N_STEPS = 4, MAX_STORES = 6 };

/* Words that both see; entries and completions are one word each here. */
enum { SUBMITTED, COMPLETED, DAEMON_WAITS, CLIENT_WAITS, ENTRY, DONE = ENTRY + N_SLOTS };
enum { N_WORDS = DONE + N_SLOTS };
enum { CLIENT, DAEMON };

/* What is left out. */
enum fault {
    NO_FAULT = 0,
    COUNT_MAY_LAG, /* the counter is stored with release only: the look at the other overtakes it */
    WAIT_MAY_LAG,  /* the same of what one waits for */
    COUNT_UNORDERED, /* the counter is stored without release: the entry may come later */
    NO_SECOND_LOOK,  /* one sleeps without looking at the counter again */
    LOOKS_TOO_EARLY, /* one looks whether the other sleeps, and counts then */
    NEVER_WAKES,     /* the client does not ring the doorbell */
    N_FAULTS,
};

/* How a store is ordered. */
enum { RELAXED, RELEASE, SEQ_CST };

struct store {
    uint8_t word, value, order;
};

struct thread {
    uint8_t at;    /* in its program */
    uint8_t n;     /* entries written, or done */
    uint8_t saw;   /* what a look gave */
    uint8_t woken; /* its eventfd */
    uint8_t n_stores;
    struct store store[MAX_STORES]; /* that only it sees, oldest first; the rest is zero */
};

struct world {
    uint8_t word[N_WORDS];
    struct thread thread[2];
};

/* ---- memory ---------------------------------------------------------------------------------- */

static uint8_t load(const struct world *w, int who, uint8_t word)
{
    const struct thread *t = &w->thread[who];

    for (int i = t->n_stores - 1; i >= 0; i--) {
        if (t->store[i].word == word)
            return t->store[i].value;
    }
    return w->word[word];
}

/* A load of this order may not overtake stores of the same. */
static bool may_look(const struct world *w, int who)
{
    const struct thread *t = &w->thread[who];

    for (int i = 0; i < t->n_stores; i++) {
        if (t->store[i].order == SEQ_CST)
            return false;
    }
    return true;
}

static bool can_store(const struct world *w, int who)
{
    return w->thread[who].n_stores < MAX_STORES;
}

static void store(struct world *w, int who, uint8_t word, uint8_t value, uint8_t order)
{
    struct thread *t = &w->thread[who];

    t->store[t->n_stores++] = (struct store){word, value, order};
}

/* The store may become visible: nothing before it is of the same word, and nothing at all if it
 * has an order. */
static bool may_leave(const struct thread *t, int i)
{
    for (int j = 0; j < i; j++) {
        if (t->store[i].order != RELAXED || t->store[j].word == t->store[i].word)
            return false;
    }
    return true;
}

static void leave(struct world *w, int who, int i)
{
    struct thread *t = &w->thread[who];

    w->word[t->store[i].word] = t->store[i].value;
    t->n_stores--;
    for (int j = i; j < t->n_stores; j++)
        t->store[j] = t->store[j + 1];
    t->store[t->n_stores] = (struct store){0, 0, 0};
}

/* ---- the two programs ------------------------------------------------------------------------ */

/* What a step of a program came to. */
enum step { BLOCKED, MOVED, TORN };

/* Who counts: store, look, wake. Who waits: say it, look again, sleep. Both programs are made of these,
 * as both sides are of tkv_ring_publish and tkv_ring_may_sleep. */
enum { WRITE, COUNT, LOOK, WAKE, WAIT, AGAIN, SLEEP, UP, CHECK, OVER };

struct side {
    int who;
    uint8_t counter, other_counter;
    uint8_t waits, other_waits;
};

static const struct side sides[] = {
    {CLIENT, SUBMITTED, COMPLETED, CLIENT_WAITS, DAEMON_WAITS},
    {DAEMON, COMPLETED, SUBMITTED, DAEMON_WAITS, CLIENT_WAITS},
};

/* The count of the other that this side waits for. */
static uint8_t wanted(const struct world *w, int who)
{
    return (uint8_t)(w->thread[who].n + (who == DAEMON));
}

static enum step count_up(struct world *w, const struct side *s, enum fault f)
{
    struct thread *t = &w->thread[s->who];

    if (!can_store(w, s->who))
        return BLOCKED;
    store(w, s->who, s->counter, t->n,
          f == COUNT_UNORDERED ? RELAXED
          : f == COUNT_MAY_LAG ? RELEASE
                               : SEQ_CST);
    t->at = f == LOOKS_TOO_EARLY ? WAKE : LOOK;
    return MOVED;
}

static enum step look(struct world *w, const struct side *s, enum fault f)
{
    struct thread *t = &w->thread[s->who];

    if (!may_look(w, s->who))
        return BLOCKED;
    t->saw = load(w, s->who, s->other_waits);
    t->at = f == LOOKS_TOO_EARLY ? COUNT : WAKE;
    return MOVED;
}

/* A system call: what was stored before is seen by who is woken. */
static enum step wake(struct world *w, const struct side *s, enum fault f)
{
    struct thread *t = &w->thread[s->who];

    if (t->saw != 0 && t->n >= t->saw) {
        if (t->n_stores > 0)
            return BLOCKED;
        if (f != NEVER_WAKES || s->who == DAEMON)
            w->thread[!s->who].woken = 1;
    }
    t->saw = 0;
    t->at = CHECK;
    return MOVED;
}

static enum step wait_for(struct world *w, const struct side *s, enum fault f)
{
    struct thread *t = &w->thread[s->who];

    if (!can_store(w, s->who))
        return BLOCKED;
    store(w, s->who, s->waits, wanted(w, s->who), f == WAIT_MAY_LAG ? RELEASE : SEQ_CST);
    t->at = f == NO_SECOND_LOOK ? SLEEP : AGAIN;
    return MOVED;
}

static enum step look_again(struct world *w, const struct side *s)
{
    struct thread *t = &w->thread[s->who];

    if (!may_look(w, s->who))
        return BLOCKED;
    t->at = load(w, s->who, s->other_counter) < wanted(w, s->who) ? SLEEP : UP;
    return MOVED;
}

static enum step sleep_and_wake(struct world *w, const struct side *s)
{
    struct thread *t = &w->thread[s->who];

    if (!t->woken)
        return BLOCKED;
    t->woken = 0;
    t->at = UP;
    return MOVED;
}

static enum step get_up(struct world *w, const struct side *s)
{
    if (!can_store(w, s->who))
        return BLOCKED;
    store(w, s->who, s->waits, 0, RELAXED);
    w->thread[s->who].at = CHECK;
    return MOVED;
}

static enum step client_write(struct world *w, enum fault f)
{
    struct thread *t = &w->thread[CLIENT];

    if (t->n == N_STEPS) {
        t->at = OVER;
        return MOVED;
    }
    if (!can_store(w, CLIENT))
        return BLOCKED;
    store(w, CLIENT, (uint8_t)(ENTRY + t->n % N_SLOTS), (uint8_t)(t->n + 1), RELAXED);
    t->n++;
    if (t->n > 1) /* the first two go together, the others alone */
        t->at = f == LOOKS_TOO_EARLY ? LOOK : COUNT;
    return MOVED;
}

static enum step client_check(struct world *w)
{
    struct thread *t = &w->thread[CLIENT];

    if (load(w, CLIENT, COMPLETED) < t->n) {
        t->at = WAIT;
        return MOVED;
    }
    t->at = WRITE;
    if (t->n == N_SLOTS && load(w, CLIENT, DONE) != 1)
        return TORN;
    return load(w, CLIENT, (uint8_t)(DONE + (t->n - 1) % N_SLOTS)) == t->n ? MOVED : TORN;
}

static enum step daemon_check(struct world *w)
{
    struct thread *t = &w->thread[DAEMON];

    if (load(w, DAEMON, SUBMITTED) <= t->n) {
        t->at = WAIT;
        return MOVED;
    }
    t->at = WRITE;
    return load(w, DAEMON, (uint8_t)(ENTRY + t->n % N_SLOTS)) == t->n + 1 ? MOVED : TORN;
}

static enum step daemon_write(struct world *w, enum fault f)
{
    struct thread *t = &w->thread[DAEMON];

    if (!can_store(w, DAEMON))
        return BLOCKED;
    store(w, DAEMON, (uint8_t)(DONE + t->n % N_SLOTS), (uint8_t)(t->n + 1), RELAXED);
    t->n++;
    t->at = f == LOOKS_TOO_EARLY ? LOOK : COUNT;
    return MOVED;
}

static enum step step(struct world *w, int who, enum fault f)
{
    const struct side *s = &sides[who];

    switch (w->thread[who].at) {
    case WRITE: return who == CLIENT ? client_write(w, f) : daemon_write(w, f);
    case COUNT: return count_up(w, s, f);
    case LOOK: return look(w, s, f);
    case WAKE: return wake(w, s, f);
    case WAIT: return wait_for(w, s, f);
    case AGAIN: return look_again(w, s);
    case SLEEP: return sleep_and_wake(w, s);
    case UP: return get_up(w, s);
    case CHECK: return who == CLIENT ? client_check(w) : daemon_check(w);
    default: return BLOCKED;
    }
}

/* ---- exploring ------------------------------------------------------------------------------- */

enum { TABLE = 1 << 18 };

struct search {
    enum fault fault;
    struct world *todo; /* a stack */
    size_t n_todo, cap_todo;
    struct world *seen; /* a hash table of those not zero */
    size_t n_seen;
    size_t n_ends; /* the client has all its answers */
    bool is_torn;  /* somebody has read what was not whole */
    bool is_stuck; /* both sleep for ever */
};

static size_t hash(const struct world *w)
{
    const uint8_t *p = (const uint8_t *)w;
    uint64_t h = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < sizeof(*w); i++)
        h = (h ^ p[i]) * UINT64_C(0x100000001b3);
    return (size_t)(h ^ (h >> 29)) % TABLE;
}

/* Worlds have no padding (all are bytes), and none that is reached is zero. */
static void visit(struct search *s, const struct world *w)
{
    static const struct world zero;
    size_t i = hash(w);

    while (memcmp(&s->seen[i], &zero, sizeof(zero)) != 0) {
        if (memcmp(&s->seen[i], w, sizeof(*w)) == 0)
            return;
        i = (i + 1) % TABLE;
    }
    s->seen[i] = *w;
    s->n_seen++;
    assert_true(s->n_seen < TABLE / 2);
    if (s->n_todo == s->cap_todo) {
        s->cap_todo = s->cap_todo ? 2 * s->cap_todo : 1024;
        s->todo = realloc(s->todo, s->cap_todo * sizeof(*s->todo));
        assert_non_null(s->todo);
    }
    s->todo[s->n_todo++] = *w;
}

/* All that can happen next. */
static void expand(struct search *s, const struct world *from)
{
    bool moved = false;

    for (int who = 0; who < 2; who++) {
        struct world w = *from;
        const enum step r = step(&w, who, s->fault);

        s->is_torn = s->is_torn || r == TORN;
        if (r == MOVED)
            visit(s, &w);
        moved = moved || r != BLOCKED;
        for (int i = 0; i < from->thread[who].n_stores; i++) {
            if (!may_leave(&from->thread[who], i))
                continue;
            w = *from;
            leave(&w, who, i);
            visit(s, &w);
            moved = true;
        }
    }
    if (moved)
        return;
    if (from->thread[CLIENT].at == OVER)
        s->n_ends++;
    else
        s->is_stuck = true;
}

static struct search explore(enum fault fault)
{
    struct search s = {.fault = fault, .seen = calloc(TABLE, sizeof(*s.seen))};
    struct world begin = {.thread = {{.at = WRITE}, {.at = CHECK}}};

    assert_non_null(s.seen);
    visit(&s, &begin);
    while (s.n_todo > 0) {
        const struct world w = s.todo[--s.n_todo];

        expand(&s, &w);
    }
    free(s.seen);
    free(s.todo);
    return s;
}

static void check_protocol(void **state)
{
    const struct search s = explore(NO_FAULT);

    (void)state;
    print_message("%zu states, %zu ends\n", s.n_seen, s.n_ends);
    assert_false(s.is_torn);
    assert_false(s.is_stuck);
    assert_true(s.n_seen > 1000 && s.n_ends > 0);
}

static void check_faults(void **state)
{
    (void)state;
    for (enum fault f = NO_FAULT + 1; f < N_FAULTS; f++) {
        const struct search s = explore(f);
        const bool is_found = f == COUNT_UNORDERED ? s.is_torn : s.is_stuck;

        if (!is_found)
            fail_msg("fault %d is not found among %zu states", (int)f, s.n_seen);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_protocol),
        cmocka_unit_test(check_faults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
