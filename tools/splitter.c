/*
 * Pre-tokenizers of byte-level BPE: where a text is cut into words before merging.
 * Written out by hand from the regular expressions of the published models:
 *
 *   gpt-2   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   llama3  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
 *           ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 *   qwen2   as llama3 with \p{N} alone
 *
 * The alternatives are tried in order, each takes as much as it can.
 */
#include "tools/unicode.h"
#include "tools/vocabulary.h"

static const struct tkv_splitter gpt2 = {0};
static const struct tkv_splitter llama3 = {.max_digits = 3,
                                           .any_case = true,
                                           .prefixed_words = true,
                                           .newlines = true,
                                           .whole_words_first = true};
static const struct tkv_splitter qwen2 = {.max_digits = 1,
                                          .any_case = true,
                                          .prefixed_words = true,
                                          .newlines = true};

const struct tkv_splitter *tkv_splitter_find(struct tkv_text name)
{
    static const struct {
        const char *name;
        const struct tkv_splitter *splitter;
    } known[] = {
        {"gpt-2", &gpt2},      {"gpt2", &gpt2},   {"llama-bpe", &llama3},       {"llama3", &llama3},
        {"llama-v3", &llama3}, {"qwen2", &qwen2}, {"deepseek-r1-qwen", &qwen2},
    };

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (tkv_text_is(name, known[i].name))
            return known[i].splitter;
    }
    return NULL;
}

/* A place in a text and the character there. */
struct place {
    const char *text;
    size_t n_bytes;
    size_t at;
    size_t width; /* of the character; 0 at the end */
    uint32_t c;
};

static void look(struct place *p)
{
    p->width = 0;
    p->c = TKV_NOT_UNICODE;
    if (p->at < p->n_bytes)
        p->width = tkv_unicode_next(p->text + p->at, p->n_bytes - p->at, &p->c);
}

static void step(struct place *p)
{
    p->at += p->width;
    look(p);
}

static bool is_letter(const struct place *p)
{
    return p->width && tkv_unicode_is_letter(p->c);
}

static bool is_number(const struct place *p)
{
    return p->width && tkv_unicode_is_number(p->c);
}

static bool is_space(const struct place *p)
{
    return p->width && tkv_unicode_is_space(p->c);
}

static bool is_other(const struct place *p)
{
    return p->width && !is_letter(p) && !is_number(p) && !is_space(p);
}

static bool is_newline(const struct place *p)
{
    return p->width && (p->c == '\r' || p->c == '\n');
}

static char letter_at(const struct place *p, size_t offset, bool any_case)
{
    const size_t at = p->at + offset;
    const char c = at < p->n_bytes ? p->text[at] : '\0';

    return any_case && c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

/* Bytes of 's 't 'm 'd 're 've 'll, or 0. */
static size_t match_contraction(const struct tkv_splitter *s, const struct place *p)
{
    const char a = letter_at(p, 1, s->any_case), b = letter_at(p, 2, s->any_case);

    if (p->c != '\'')
        return 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* Letters, after one character that may stand before a word. */
static size_t match_word(const struct tkv_splitter *s, struct place p)
{
    const size_t start = p.at;

    if (s->prefixed_words ? !is_letter(&p) && !is_number(&p) && !is_newline(&p) : p.c == ' ')
        step(&p);
    if (!is_letter(&p))
        return 0;
    while (is_letter(&p))
        step(&p);
    return p.at - start;
}

static size_t match_number(const struct tkv_splitter *s, struct place p)
{
    const size_t start = p.at;

    if (!s->max_digits && p.c == ' ')
        step(&p);
    if (!is_number(&p))
        return 0;
    for (unsigned n = 0; is_number(&p) && (!s->max_digits || n < s->max_digits); n++)
        step(&p);
    return p.at - start;
}

static size_t match_punctuation(const struct tkv_splitter *s, struct place p)
{
    const size_t start = p.at;

    if (p.c == ' ')
        step(&p);
    if (!is_other(&p))
        return 0;
    while (is_other(&p))
        step(&p);
    while (s->newlines && is_newline(&p))
        step(&p);
    return p.at - start;
}

/* Spaces up to the last line end among them; or all but the last, if a word follows; or all. */
static size_t match_spaces(const struct tkv_splitter *s, struct place p)
{
    const size_t start = p.at;
    size_t line_end = 0, last = start;

    while (is_space(&p)) {
        last = p.at;
        if (is_newline(&p))
            line_end = p.at + p.width - start;
        step(&p);
    }
    if (s->newlines && line_end)
        return line_end;
    return p.width && last > start ? last - start : p.at - start;
}

size_t tkv_splitter_next(const struct tkv_splitter *s, const char *text, size_t n_bytes)
{
    struct place p = {.text = text, .n_bytes = n_bytes};
    size_t n;

    look(&p);
    if ((n = match_contraction(s, &p)) || (n = match_word(s, p)) || (n = match_number(s, p)) ||
        (n = match_punctuation(s, p)))
        return n;
    return match_spaces(s, p);
}
