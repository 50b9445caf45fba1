/*
 * A text is prose with lines put in at places counted in tokens of prose: those that tell, in the
 * story, and those that ask, a few tokens of prose apart, behind it.
 */
#include "tools/planted.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/wordlists.h"

enum {
    MAX_LINES = 48,
    MAX_TEXT = 1024,
    GAP_TOKENS = 8,   /* of prose between two questions */
    LEAD_TOKENS = 16, /* of a repeated passage: before them nothing says that it comes again */
    N_PAIRS = 16,
    N_PAIRS_ASKED = 6,
    MIN_STORY_TOKENS = 256,
};

/* A line of tokens, put in before a token of the prose; [from, to) of it counts for a task. */
struct line {
    struct tkv_ids ids;
    size_t from, to;
    size_t place;
    struct tkv_mark mark;
};

struct plan {
    const struct tkv_tokenizer *tokenizer;
    const struct tkv_planted_options *o;
    struct tkv_reason *why;
    uint64_t state;
    size_t n_tell, n_ask;
    struct line tell[MAX_LINES], ask[MAX_LINES];
    uint8_t *taken; /* names that are used */
};

/* splitmix64 (Steele, Lea, Flood 2014). */
static size_t draw(struct plan *p, size_t n)
{
    uint64_t z = p->state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (size_t)((z ^ z >> 31) % n);
}

static const char *draw_word(struct plan *p, const char *const *words)
{
    return words[draw(p, tkv_words_count(words))];
}

static int encode(struct plan *p, const char *text, struct line *l)
{
    return tkv_tokenizer_encode(p->tokenizer, text, strlen(text), 0, &l->ids, p->why);
}

/* The answer of a question, marked; a lone space in front of it can be known without the fact. */
static int encode_answer(struct plan *p, const char *answer, const char *tail, struct line *l)
{
    struct tkv_text first;
    char text[64];

    l->from = l->ids.n;
    (void)snprintf(text, sizeof(text), " %s", answer);
    if (encode(p, text, l))
        return -1;
    first = tkv_tokenizer_bytes(p->tokenizer, l->ids.ids[l->from]);
    if (first.n_bytes == 1 && first.data[0] == ' ')
        l->from++;
    l->to = l->ids.n;
    return encode(p, tail, l);
}

/* ---- facts ------------------------------------------------------------------------------------- */

/* A name that no other fact has. */
static void draw_name(struct plan *p, char *name, size_t n_bytes)
{
    const size_t n_first = tkv_words_count(tkv_first_names);
    const size_t n = n_first * tkv_words_count(tkv_last_names);
    size_t who;

    do
        who = draw(p, n);
    while (p->taken[who]);
    p->taken[who] = 1;
    (void)snprintf(name, n_bytes, "%s %s", tkv_first_names[who % n_first],
                   tkv_last_names[who / n_first]);
}

static const struct tkv_wording *draw_wording(struct plan *p, enum tkv_task task)
{
    const struct tkv_wording *list = task == TKV_TASK_WORD     ? tkv_word_wordings
                                     : task == TKV_TASK_UNSEEN ? tkv_unseen_wordings
                                                               : tkv_number_wordings;

    return &list[draw(p, tkv_wordings_count(list))];
}

/* The wordings are const tables with one %s, where the name belongs. */
static void put_name(char *text, size_t n_bytes, const char *wording, const char *name)
{
    const char *at = strstr(wording, "%s");

    (void)snprintf(text, n_bytes, "\n%.*s%s%s", (int)(at - wording), wording, name, at + 2);
}

static int add_fact(struct plan *p, enum tkv_task task, unsigned depth)
{
    const struct tkv_wording *w = draw_wording(p, task);
    struct line *tell = &p->tell[p->n_tell++], *ask = &p->ask[p->n_ask++];
    char name[32], answer[32], text[256];

    draw_name(p, name, sizeof(name));
    if (w->answers)
        (void)snprintf(answer, sizeof(answer), "%s", draw_word(p, w->answers));
    else
        (void)snprintf(answer, sizeof(answer), "%zu", 10000 + draw(p, 90000));
    tell->mark.depth = (uint8_t)depth;
    put_name(text, sizeof(text), w->told, name);
    if (encode(p, text, tell) || encode_answer(p, answer, ".\n", tell))
        return -1;
    tell->from = tell->to = 0; /* telling is not asking */
    ask->mark = (struct tkv_mark){(uint8_t)task, (uint8_t)depth, (uint16_t)p->n_ask};
    put_name(text, sizeof(text), w->asked, name);
    return encode(p, text, ask) || encode_answer(p, answer, ".\n", ask) ? -1 : 0;
}

/* ---- lists and passages --------------------------------------------------------------------------- */

/* order[n] = a permutation of 0 .. n - 1. */
static void shuffle(struct plan *p, size_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const size_t j = draw(p, i + 1);
        size_t swap;

        order[i] = i;
        swap = order[j];
        order[j] = i;
        order[i] = swap;
    }
}

static int ask_pair(struct plan *p, const char *left, const char *right, unsigned depth)
{
    struct line *ask = &p->ask[p->n_ask++];
    char text[64];

    ask->mark = (struct tkv_mark){TKV_TASK_LIST, (uint8_t)depth, (uint16_t)p->n_ask};
    (void)snprintf(text, sizeof(text), "\n%s:", left);
    return encode(p, text, ask) || encode_answer(p, right, "\n", ask) ? -1 : 0;
}

static int add_list(struct plan *p, unsigned depth)
{
    struct line *tell = &p->tell[p->n_tell++];
    size_t word[256], pick[N_PAIRS];
    char text[MAX_TEXT] = "\n";
    size_t n = 1;

    tell->mark.depth = (uint8_t)depth;
    shuffle(p, word, tkv_words_count(tkv_things));
    for (size_t i = 0; i < N_PAIRS; i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, "%s: %s\n", tkv_things[word[2 * i]],
                              tkv_things[word[2 * i + 1]]);
    if (encode(p, text, tell))
        return -1;
    shuffle(p, pick, N_PAIRS);
    for (size_t i = 0; i < N_PAIRS_ASKED; i++)
        if (ask_pair(p, tkv_things[word[2 * pick[i]]], tkv_things[word[2 * pick[i] + 1]], depth))
            return -1;
    return 0;
}

/* Tokens of lines, with the prose between questions. */
static size_t count_lines(const struct plan *p)
{
    size_t n = 0;

    for (size_t i = 0; i < p->n_tell; i++)
        n += p->tell[i].ids.n;
    for (size_t i = 0; i < p->n_ask; i++)
        n += p->ask[i].ids.n + GAP_TOKENS;
    return n;
}

/* n tokens that the story has anyway, within one fifth of it, come again. */
static int add_passage(struct plan *p, unsigned depth, size_t n)
{
    struct line *ask = &p->ask[p->n_ask++];
    const size_t lines = count_lines(p) + n, n_tokens = p->o->n_tokens;
    const size_t fifth = lines < n_tokens ? (n_tokens - lines) / TKV_N_DEPTHS : 0;
    size_t first;

    if (fifth <= n || n <= LEAD_TOKENS)
        return tkv_reason_set(p->why,
                              "a context of %zu tokens is too short for a passage to come "
                              "again",
                              n_tokens);
    first = depth * fifth + draw(p, fifth - n);
    ask->mark = (struct tkv_mark){TKV_TASK_REPEAT, (uint8_t)depth, (uint16_t)p->n_ask};
    for (size_t i = 0; i < n; i++)
        if (!tkv_ids_add(&ask->ids, p->o->prose[first + i]))
            return tkv_reason_set(p->why, "out of memory for a passage of %zu tokens", n);
    ask->from = LEAD_TOKENS;
    ask->to = n;
    return 0;
}

/* ---- putting it together ------------------------------------------------------------------------ */

static bool put(struct tkv_planted *out, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!tkv_ids_add(&out->ids, ids[i]))
            return false;
    return true;
}

static bool put_line(struct tkv_planted *out, const struct line *l)
{
    for (size_t i = l->from; i < l->to; i++)
        out->marks[out->ids.n + i] = l->mark;
    return put(out, l->ids.ids, l->ids.n);
}

static int by_place(const void *a, const void *b)
{
    const struct line *x = a, *y = b;

    return (x->place > y->place) - (x->place < y->place);
}

/* Tokens of prose that are left beside the lines, or 0 with a text. */
static size_t count_prose(const struct plan *p)
{
    const size_t lines = count_lines(p);

    if (lines + MIN_STORY_TOKENS > p->o->n_tokens) {
        (void)tkv_reason_set(p->why, "a context of %zu tokens, expected at least %zu",
                             p->o->n_tokens, lines + MIN_STORY_TOKENS);
        return 0;
    }
    return p->o->n_tokens - lines + p->n_ask * GAP_TOKENS;
}

static int assemble(struct plan *p, struct tkv_planted *out)
{
    const size_t n_prose = count_prose(p);
    size_t order[MAX_LINES], at = 0, story;
    bool fits;

    if (!n_prose)
        return -1;
    story = n_prose - p->n_ask * GAP_TOKENS;
    for (size_t i = 0; i < p->n_tell; i++)
        p->tell[i].place = (p->tell[i].mark.depth * story + draw(p, story)) / TKV_N_DEPTHS;
    shuffle(p, order, p->n_ask);
    for (size_t i = 0; i < p->n_ask; i++)
        p->ask[i].place = story + order[i] * GAP_TOKENS;
    qsort(p->tell, p->n_tell, sizeof(p->tell[0]), by_place);
    qsort(p->ask, p->n_ask, sizeof(p->ask[0]), by_place);
    out->marks = calloc(p->o->n_tokens + 1, sizeof(*out->marks));
    fits = out->marks && tkv_ids_add(&out->ids, tkv_tokenizer_bos(p->tokenizer));
    for (size_t i = 0; fits && i < p->n_tell + p->n_ask; i++) {
        const struct line *l = i < p->n_tell ? &p->tell[i] : &p->ask[i - p->n_tell];

        fits = put(out, p->o->prose + at, l->place - at) && put_line(out, l);
        at = l->place;
    }
    fits = fits && put(out, p->o->prose + at, n_prose - at);
    return fits ? 0 : tkv_reason_set(p->why, "out of memory for %zu tokens", p->o->n_tokens);
}

static int check(const struct tkv_tokenizer *t, const struct tkv_planted_options *o,
                 struct tkv_reason *why)
{
    if (tkv_tokenizer_bos(t) < 0)
        return tkv_reason_set(why, "the tokenizer has no start token");
    if (o->n_prose < o->n_tokens)
        return tkv_reason_set(why, "%zu tokens of prose, expected at least %zu", o->n_prose,
                              o->n_tokens);
    return 0;
}

static struct plan *make_plan(const struct tkv_tokenizer *t, const struct tkv_planted_options *o,
                              struct tkv_reason *why)
{
    const size_t n_names = tkv_words_count(tkv_first_names) * tkv_words_count(tkv_last_names);
    struct plan *p;

    if (check(t, o, why))
        return NULL;
    p = calloc(1, sizeof(*p) + n_names);
    if (!p) {
        (void)tkv_reason_set(why, "out of memory for a plan of planted facts");
        return NULL;
    }
    *p = (struct plan){.tokenizer = t, .o = o, .why = why, .state = o->seed};
    p->taken = (uint8_t *)(p + 1);
    return p;
}

static int finish(struct plan *p, int error, struct tkv_planted *out)
{
    error = error ? error : assemble(p, out);
    for (size_t i = 0; i < MAX_LINES; i++) {
        tkv_ids_deinit(&p->tell[i].ids);
        tkv_ids_deinit(&p->ask[i].ids);
    }
    free(p);
    return error;
}

int tkv_planted_prose(struct tkv_planted *p, const struct tkv_tokenizer *t,
                      const struct tkv_planted_options *o, struct tkv_reason *why)
{
    *p = (struct tkv_planted){0};
    if (check(t, o, why))
        return -1;
    p->marks = calloc(o->n_tokens + 1, sizeof(*p->marks));
    if (!p->marks || !tkv_ids_add(&p->ids, tkv_tokenizer_bos(t)) || !put(p, o->prose, o->n_tokens))
        return tkv_reason_set(why, "out of memory for %zu tokens", o->n_tokens);
    for (size_t i = 1; i < p->ids.n; i++)
        p->marks[i].task = TKV_TASK_PROSE;
    return 0;
}

int tkv_planted_facts(struct tkv_planted *p, const struct tkv_tokenizer *t,
                      const struct tkv_planted_options *o, struct tkv_reason *why)
{
    static const enum tkv_task tasks[] = {TKV_TASK_NUMBER, TKV_TASK_WORD, TKV_TASK_UNSEEN};
    struct plan *plan = make_plan(t, o, why);
    int error = 0;

    *p = (struct tkv_planted){0};
    if (!plan)
        return -1;
    for (unsigned i = 0; !error && i < 3 * TKV_N_DEPTHS; i++)
        error = add_fact(plan, tasks[i % 3], i / 3);
    return finish(plan, error, p);
}

int tkv_planted_again(struct tkv_planted *p, const struct tkv_tokenizer *t,
                      const struct tkv_planted_options *o, struct tkv_reason *why)
{
    struct plan *plan = make_plan(t, o, why);
    unsigned depth, other;
    int error;

    *p = (struct tkv_planted){0};
    if (!plan)
        return -1;
    depth = (unsigned)draw(plan, TKV_N_DEPTHS);
    other = (unsigned)draw(plan, TKV_N_DEPTHS - 1);
    error = add_list(plan, depth);
    /* The list stands in another fifth, so that it does not cut the passage in two. */
    error = error ? error : add_passage(plan, other + (other >= depth), o->n_tokens / 16);
    return finish(plan, error, p);
}

int tkv_planted_needle(struct tkv_planted *p, const struct tkv_tokenizer *t,
                       const struct tkv_planted_options *o, unsigned depth, struct tkv_reason *why)
{
    struct plan *plan = make_plan(t, o, why);

    *p = (struct tkv_planted){0};
    if (!plan)
        return -1;
    return finish(plan, add_fact(plan, TKV_TASK_NEEDLE, depth), p);
}

void tkv_planted_deinit(struct tkv_planted *p)
{
    tkv_ids_deinit(&p->ids);
    free(p->marks);
    *p = (struct tkv_planted){0};
}
