#include "tools/recall.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/wordlists.h"

/* The names used: the first ones of each list. */
enum { MAX_FACTS = 64, N_FIRST = 30, N_LAST = 30 };

/* Lines of tokens: tell[i] and ask[i] are of fact i; the answer is ask's [from, to). */
struct line {
    struct tkv_ids ids;
    size_t from, to;
};

struct plan {
    struct line tell[MAX_FACTS], ask[MAX_FACTS];
    size_t place[2 * MAX_FACTS]; /* in the prose, ascending: tells, then asks */
    size_t order[MAX_FACTS];     /* of the questions */
};

/* splitmix64 (Steele, Lea, Flood 2014). */
static size_t draw(uint64_t *state, size_t n)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (size_t)((z ^ z >> 31) % n);
}

static int encode(const struct tkv_tokenizer *t, const char *text, struct tkv_ids *ids,
                  struct tkv_reason *why)
{
    return tkv_tokenizer_encode(t, text, strlen(text), 0, ids, why);
}

static int make_fact(struct plan *p, size_t i, size_t who, uint64_t *state,
                     const struct tkv_tokenizer *t, struct tkv_reason *why)
{
    const size_t number = 10000 + draw(state, 90000);
    struct line *ask = &p->ask[i];
    struct tkv_text first;
    char name[32], text[96];

    (void)snprintf(name, sizeof(name), "%s %s", tkv_first_names[who % N_FIRST],
                   tkv_last_names[who / N_FIRST]);
    (void)snprintf(text, sizeof(text), "\nThe number of %s is %zu.\n", name, number);
    if (encode(t, text, &p->tell[i].ids, why))
        return -1;
    (void)snprintf(text, sizeof(text), "\nWhat is the number of %s? It is", name);
    if (encode(t, text, &ask->ids, why))
        return -1;
    ask->from = ask->ids.n;
    (void)snprintf(text, sizeof(text), " %zu", number);
    if (encode(t, text, &ask->ids, why))
        return -1;
    first = tkv_tokenizer_bytes(t, ask->ids.ids[ask->from]);
    if (first.n_bytes == 1 && first.data[0] == ' ')
        ask->from++; /* a space alone can be known without the fact */
    ask->to = ask->ids.n;
    return encode(t, ".\n", &ask->ids, why);
}

/* A name that no other fact has. */
static size_t draw_name(uint8_t *taken, uint64_t *state)
{
    size_t who;

    do
        who = draw(state, (size_t)N_FIRST * N_LAST);
    while (taken[who]);
    taken[who] = 1;
    return who;
}

static int make_facts(struct plan *p, const struct tkv_tokenizer *t,
                      const struct tkv_recall_options *o, uint64_t *state, struct tkv_reason *why)
{
    uint8_t taken[N_FIRST * N_LAST] = {0};

    for (size_t i = 0; i < o->n_facts; i++) {
        if (make_fact(p, i, draw_name(taken, state), state, t, why))
            return -1;
        p->order[i] = i;
    }
    for (size_t i = o->n_facts; i > 1; i--) {
        const size_t j = draw(state, i);
        const size_t swap = p->order[i - 1];

        p->order[i - 1] = p->order[j];
        p->order[j] = swap;
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    const size_t x = *(const size_t *)a, y = *(const size_t *)b;

    return (x > y) - (x < y);
}

static void choose_places(struct plan *p, size_t n_facts, size_t n_prose, uint64_t *state)
{
    const size_t first = n_prose * 3 / 4;

    for (size_t i = 0; i < n_facts; i++) {
        p->place[i] = draw(state, first);
        p->place[n_facts + i] = first + draw(state, n_prose - first);
    }
    qsort(p->place, n_facts, sizeof(*p->place), by_value);
    qsort(p->place + n_facts, n_facts, sizeof(*p->place), by_value);
}

static bool add(struct tkv_recall *r, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!tkv_ids_add(&r->ids, ids[i]))
            return false;
    return true;
}

static int assemble(struct tkv_recall *r, const struct plan *p, const struct tkv_recall_options *o,
                    size_t n_prose, struct tkv_reason *why)
{
    size_t at = 0;
    bool fits = true;

    for (size_t i = 0; fits && i < 2 * o->n_facts; i++) {
        const struct line *l = i < o->n_facts ? &p->tell[i] : &p->ask[p->order[i - o->n_facts]];

        fits = add(r, o->prose + at, p->place[i] - at);
        for (size_t a = l->from; a < l->to; a++)
            r->is_answer[r->ids.n + a] = 1;
        r->n_answer_tokens += l->to - l->from;
        fits = fits && add(r, l->ids.ids, l->ids.n);
        at = p->place[i];
    }
    fits = fits && add(r, o->prose + at, n_prose - at);
    return fits ? 0 : tkv_reason_set(why, "out of memory for %zu tokens", o->n_tokens);
}

static int build(struct tkv_recall *r, struct plan *p, const struct tkv_tokenizer *t,
                 const struct tkv_recall_options *o, struct tkv_reason *why)
{
    uint64_t state = o->seed;
    size_t n_prose = o->n_tokens - 1;

    if (make_facts(p, t, o, &state, why))
        return -1;
    for (size_t i = 0; i < o->n_facts; i++) {
        const size_t lines = p->tell[i].ids.n + p->ask[i].ids.n;

        if (lines > n_prose)
            return tkv_reason_set(why, "%zu facts do not fit into %zu tokens", o->n_facts,
                                  o->n_tokens);
        n_prose -= lines;
    }
    if (n_prose < 8 || n_prose > o->n_prose)
        return tkv_reason_set(why, "%zu tokens of prose are needed, there are %zu", n_prose,
                              o->n_prose);
    choose_places(p, o->n_facts, n_prose, &state);
    r->is_answer = calloc(o->n_tokens, 1);
    if (!r->is_answer || !tkv_ids_add(&r->ids, tkv_tokenizer_bos(t)))
        return tkv_reason_set(why, "out of memory for %zu tokens", o->n_tokens);
    return assemble(r, p, o, n_prose, why);
}

int tkv_recall_init(struct tkv_recall *r, const struct tkv_tokenizer *t,
                    const struct tkv_recall_options *o, struct tkv_reason *why)
{
    struct plan *p;
    int error;

    *r = (struct tkv_recall){0};
    if (o->n_facts > MAX_FACTS)
        return tkv_reason_set(why, "%zu facts, expected at most %d", o->n_facts, MAX_FACTS);
    if (tkv_tokenizer_bos(t) < 0)
        return tkv_reason_set(why, "the tokenizer has no start token");
    p = calloc(1, sizeof(*p));
    if (!p)
        return tkv_reason_set(why, "out of memory for %zu facts", o->n_facts);
    error = build(r, p, t, o, why);
    for (size_t i = 0; i < o->n_facts; i++) {
        tkv_ids_deinit(&p->tell[i].ids);
        tkv_ids_deinit(&p->ask[i].ids);
    }
    free(p);
    return error;
}

void tkv_recall_deinit(struct tkv_recall *r)
{
    tkv_ids_deinit(&r->ids);
    free(r->is_answer);
    *r = (struct tkv_recall){0};
}
