/*
 * Tokenizers: golden ids of the reference model's tokenizer, a naive encoder beside the
 * fast one on random vocabularies, words of the pre-tokenizers, round trips.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/gguf_aid.h"
#include "tests/rng.h"
#include "tests/tiny_vocabulary.h"
#include "tools/unicode.h"
#include "tools/vocabulary.h"

#define MODEL  "models/trikv-ref-6m.gguf"
#define GOLDEN "models/golden/tokenizer.tsv"

enum { TEXT_BYTES = 4096 };

/* Finishes a file and makes a tokenizer of it. -1, and a text, if it is refused. */
static int make(struct gguf_aid *g, struct tkv_tokenizer **t, struct tkv_reason *why)
{
    struct tkv_gguf parsed;
    size_t n_bytes;
    uint8_t *file = gguf_aid_finish(g, &n_bytes);
    int error;

    if (tkv_gguf_parse(&parsed, file, n_bytes, why))
        fail_msg("%s", why->text);
    error = tkv_tokenizer_create(t, &parsed, why);
    tkv_gguf_close(&parsed);
    free(file); /* the tokenizer has copied what it needs */
    return error;
}

static struct tkv_ids encode(const struct tkv_tokenizer *t, const char *text, size_t n,
                             unsigned flags)
{
    struct tkv_ids ids = {0};
    struct tkv_reason why = {""};

    if (tkv_tokenizer_encode(t, text, n, flags, &ids, &why))
        fail_msg("%s", why.text);
    return ids;
}

static void assert_ids(const struct tkv_ids *ids, const int32_t *want, size_t n, const char *what)
{
    if (ids->n != n || (n && memcmp(ids->ids, want, n * sizeof(*want)) != 0)) {
        for (size_t i = 0; i < ids->n; i++)
            print_message("%d ", ids->ids[i]);
        print_message("\nexpected\n");
        for (size_t i = 0; i < n; i++)
            print_message("%d ", want[i]);
        fail_msg("%s", what);
    }
}

static void assert_round_trip(const struct tkv_tokenizer *t, const char *text, size_t n)
{
    struct tkv_ids ids = encode(t, text, n, 0);
    size_t at = 0;

    for (size_t i = 0; i < ids.n; i++) {
        const struct tkv_text bytes = tkv_tokenizer_bytes(t, ids.ids[i]);

        assert_true(at + bytes.n_bytes <= n);
        assert_memory_equal(text + at, bytes.data, bytes.n_bytes);
        at += bytes.n_bytes;
    }
    assert_int_equal(at, n);
    tkv_ids_deinit(&ids);
}

/* Random bytes (even rounds) and random characters but U+2581 (odd ones), with many ASCII. */
static size_t random_text(struct rng *rng, char *text, size_t max, bool characters)
{
    size_t n = 0;

    for (size_t left = rng_below(rng, 200); left && n + 4 < max; left--) {
        static const uint32_t limits[] = {0x80, 0x80, 0x800, 0xd800, 0x110000};
        const uint32_t c = rng_below(rng, limits[rng_below(rng, 5)]);

        if (!characters)
            text[n++] = (char)rng_next(rng);
        else if (c != 0x2581 && !(c >= 0xd800 && c < 0xe000))
            n += tiny_vocabulary_utf8(text + n, c);
    }
    return n;
}

static void check_round_trips(const struct tkv_tokenizer *t, uint64_t seed)
{
    struct rng rng = {seed};
    char text[TEXT_BYTES];

    print_message("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < 600; i++) {
        size_t n = random_text(&rng, text, sizeof(text), i % 2);

        for (size_t at = 0; at + 3 <= n; at++) { /* U+2581 from random bytes: not reversible */
            if (memcmp(text + at, "\xe2\x96\x81", 3) == 0)
                text[at] = 'x';
        }
        assert_round_trip(t, text, n);
    }
}

struct reference {
    struct tkv_gguf file;
    struct tkv_tokenizer *t;
};

static bool open_reference(struct reference *r)
{
    struct tkv_reason why = {""};

    if (tkv_gguf_open(&r->file, MODEL, &why)) {
        print_message("skipped: %s\n", why.text);
        return false;
    }
    if (tkv_tokenizer_create(&r->t, &r->file, &why))
        fail_msg("%s", why.text);
    return true;
}

static void close_reference(struct reference *r)
{
    tkv_tokenizer_destroy(&r->t);
    tkv_gguf_close(&r->file);
}

/* In place: \n \t \r and \\. */
static size_t unescape(char *text)
{
    size_t n = 0;

    for (const char *c = text; *c; c++) {
        static const char from[] = "ntr\\", to[] = "\n\t\r\\";

        if (*c == '\\')
            text[n++] = to[strchr(from, *++c) - from];
        else
            text[n++] = *c;
    }
    return n;
}

static size_t parse_ids(char *text, int32_t *ids, size_t max)
{
    size_t n = 0;

    for (char *word = strtok(text, " \n"); word && n < max; word = strtok(NULL, " \n"))
        ids[n++] = (int32_t)strtol(word, NULL, 10);
    return n;
}

static void test_golden(void **state)
{
    FILE *file = fopen(GOLDEN, "r");
    struct reference r = {0};
    char line[TEXT_BYTES];
    int32_t want[1024] = {0};
    int n_cases = 0;

    (void)state;
    if (!file || !open_reference(&r)) {
        print_message("skipped: no " GOLDEN "\n");
        if (file)
            fclose(file);
        skip();
        return;
    }
    for (; fgets(line, sizeof(line), file); n_cases++) {
        char *tab = strchr(line, '\t');
        struct tkv_ids ids;
        size_t n_text, n_ids;

        assert_non_null(tab);
        *tab = '\0';
        n_ids = parse_ids(tab + 1, want, 1024);
        n_text = unescape(line);
        ids = encode(r.t, line, n_text, 0);
        assert_ids(&ids, want, n_ids, line);
        tkv_ids_deinit(&ids);
    }
    print_message("%d texts\n", n_cases);
    assert_true(n_cases > 20);
    fclose(file);
    close_reference(&r);
}

static void test_reference_round_trip(void **state)
{
    struct reference r = {0};
    struct tkv_ids ids;

    (void)state;
    if (!open_reference(&r))
        skip();
    check_round_trips(r.t, 11);
    ids = encode(r.t, "a", 1, TKV_ENCODE_START);
    assert_int_equal(ids.ids[0], tkv_tokenizer_bos(r.t));
    tkv_ids_deinit(&ids);
    ids = encode(r.t, "<s>", 3, TKV_ENCODE_CONTROL);
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.ids[0], tkv_tokenizer_bos(r.t));
    tkv_ids_deinit(&ids);
    assert_int_equal(tkv_tokenizer_bytes(r.t, tkv_tokenizer_bos(r.t)).n_bytes, 0);
    assert_int_equal(tkv_tokenizer_bytes(r.t, -1).n_bytes, 0);
    assert_int_equal(tkv_tokenizer_bytes(r.t, 1 << 30).n_bytes, 0);
    close_reference(&r);
}

/* A megabyte is a second's work at most; the bound is loose because machines are shared. */
static void test_speed(void **state)
{
    enum { N = 1 << 20 };
    struct reference r = {0};
    struct rng rng = {5};
    char *text = malloc(N);
    struct tkv_ids ids;
    double seconds;
    clock_t start;

    (void)state;
    assert_non_null(text);
    if (!open_reference(&r)) {
        free(text);
        skip();
    }
    for (size_t i = 0; i < N; i++)
        text[i] = "etaoinshrdlu    "[rng_below(&rng, 16)];
    start = clock();
    ids = encode(r.t, text, N, 0);
    seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    print_message("1 MiB of words: %zu tokens in %.2f s\n", ids.n, seconds);
    tkv_ids_deinit(&ids);
    for (size_t i = 0; i < N; i++) /* one word: the heap at its largest */
        text[i] = "etaoinshrdlu"[rng_below(&rng, 12)];
    start = clock();
    ids = encode(r.t, text, N, 0);
    seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    print_message("1 MiB in one word: %zu tokens in %.2f s\n", ids.n, seconds);
    assert_true(seconds < 30);
    tkv_ids_deinit(&ids);
    free(text);
    close_reference(&r);
}

static struct tkv_tokenizer *make_spm(const struct tiny_vocabulary *p, bool space_prefix)
{
    struct gguf_aid g = {0};
    struct tkv_tokenizer *t;
    struct tkv_reason why = {""};

    gguf_aid_string(&g, "tokenizer.ggml.model", "llama");
    tiny_vocabulary_put(&g, p);
    gguf_aid_array(&g, "tokenizer.ggml.scores", TKV_GGUF_F32, p->scores, p->n, 4);
    gguf_aid_u32(&g, "tokenizer.ggml.bos_token_id", 1);
    gguf_aid_u32(&g, "tokenizer.ggml.unknown_token_id", 0);
    gguf_aid_bool(&g, "tokenizer.ggml.add_space_prefix", space_prefix);
    if (make(&g, &t, &why))
        fail_msg("%s", why.text);
    return t;
}

/* Spaces as U+2581, as the encoder sees them. */
static size_t escape(const char *text, size_t n, char *out)
{
    size_t n_out = 0;

    for (size_t i = 0; i < n; i++) {
        memcpy(out + n_out, text[i] == ' ' ? "\xe2\x96\x81" : &text[i], text[i] == ' ' ? 3 : 1);
        n_out += text[i] == ' ' ? 3 : 1;
    }
    return n_out;
}

static void test_spm_random(void **state)
{
    static struct tiny_vocabulary p;
    struct rng rng = {77};
    char text[256], escaped[3 * 256];
    int32_t want[3 * 256] = {0};

    (void)state;
    for (int round = 0; round < 12; round++) {
        struct tkv_tokenizer *t;

        tiny_vocabulary_make_spm(&p, &rng, round % 2);
        t = make_spm(&p, false);
        assert_int_equal(t->splits_at_space, !(round % 2));
        for (int i = 0; i < 60; i++) {
            const size_t n = rng_below(&rng, 120);
            struct tkv_ids ids;

            for (size_t j = 0; j < n; j++)
                text[j] = "aabbc  \nx\xc3"[rng_below(&rng, 10)];
            ids = encode(t, text, n, 0);
            assert_ids(&ids, want,
                       tiny_vocabulary_encode_spm(&p, escaped, escape(text, n, escaped), want),
                       "random text");
            tkv_ids_deinit(&ids);
        }
        check_round_trips(t, 100 + (uint64_t)round);
        tkv_tokenizer_destroy(&t);
    }
}

static void test_spm_pieces(void **state)
{
    static struct tiny_vocabulary p;
    struct rng rng = {1};
    struct tkv_tokenizer *t;
    struct tkv_ids ids;
    int32_t tool;

    (void)state;
    tiny_vocabulary_make_spm(&p, &rng, true);
    t = make_spm(&p, true);
    for (tool = 0; p.types[tool] != TKV_TOKEN_USER;)
        tool++;
    ids = encode(t, "<tool>", 6, 0);
    assert_ids(&ids, &tool, 1, "user-defined piece");
    tkv_ids_deinit(&ids);
    ids = encode(t, "<s>", 3, 0); /* control pieces only when asked for */
    assert_int_equal(ids.n, 3);
    tkv_ids_deinit(&ids);
    ids = encode(t, "x", 1, TKV_ENCODE_START); /* start, prefix space, byte */
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.ids[0], 1);
    assert_int_equal(ids.ids[1], tiny_vocabulary_find(&p, "\xe2\x96\x81", 3));
    assert_int_equal(ids.ids[2], 2 + 'x');
    tkv_ids_deinit(&ids);
    tkv_tokenizer_destroy(&t);
}

static void test_bpe_random(void **state)
{
    static struct tiny_vocabulary p;
    struct rng rng = {99};
    char text[128];
    int32_t want[128] = {0};

    (void)state;
    for (int round = 0; round < 8; round++) {
        struct gguf_aid g = {0};
        struct tkv_tokenizer *t;
        struct tkv_reason why = {""};

        tiny_vocabulary_make_bpe(&p, &rng);
        tiny_vocabulary_put_bpe(&g, &p, round % 2 ? "qwen2" : "gpt-2");
        if (make(&g, &t, &why))
            fail_msg("%s", why.text);
        for (int i = 0; i < 60; i++) {
            const size_t n = rng_below(&rng, 100);
            size_t n_want = 0;
            struct tkv_ids ids;

            for (size_t j = 0; j < n; j++)
                text[j] = "aabbc  1.\nx\xc3"[rng_below(&rng, 12)];
            for (size_t at = 0, k; at < n; at += k) {
                k = tkv_splitter_next(t->splitter, text + at, n - at);
                n_want += tiny_vocabulary_encode_bpe(&p, text + at, k, want + n_want);
            }
            ids = encode(t, text, n, 0);
            assert_ids(&ids, want, n_want, "random text");
            tkv_ids_deinit(&ids);
        }
        check_round_trips(t, 200 + (uint64_t)round);
        tkv_tokenizer_destroy(&t);
    }
}

/* llama-bpe takes a word that is a token whole, though no merges lead to it. */
static void test_bpe_specials(void **state)
{
    static struct tiny_vocabulary p;
    struct rng rng = {3};
    struct tkv_tokenizer *t;
    struct tkv_reason why = {""};
    struct gguf_aid g = {0};
    struct tkv_ids ids;
    int32_t want[4] = {0};

    (void)state;
    tiny_vocabulary_make_bpe(&p, &rng);
    want[0] = tiny_vocabulary_add(&p, " whole", 6, TKV_TOKEN_NORMAL, 0);
    tiny_vocabulary_put_bpe(&g, &p, "llama-bpe");
    if (make(&g, &t, &why))
        fail_msg("%s", why.text);
    ids = encode(t, " whole", 6, 0);
    assert_ids(&ids, want, 1, "whole word");
    tkv_ids_deinit(&ids);
    want[0] = 'x';
    want[1] = 401; /* <think> */
    want[2] = 400; /* <|end|> */
    want[3] = 'x';
    ids = encode(t, "x<think><|end|>x", 16, TKV_ENCODE_CONTROL);
    assert_ids(&ids, want, 4, "specials");
    tkv_ids_deinit(&ids);
    ids = encode(t, "<|end|>", 7, 0);
    assert_true(ids.n > 1);
    tkv_ids_deinit(&ids);
    assert_int_equal(tkv_tokenizer_bos(t), -1);
    tkv_tokenizer_destroy(&t);
}

/* Every character there is, and what is none: one byte each. */
static void test_utf8(void **state)
{
    static const char *const wrong[] = {
        "\x80",
        "\xbf\x80",
        "\xc0\x80",
        "\xc1\xbf",
        "\xc3",
        "\xc3(",
        "\xe0\x9f\xbf",
        "\xed\xa0\x80",
        "\xed\xbf\xbf",
        "\xe2\x96",
        "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80",
        "\xff",
    };
    char text[4];
    uint32_t got;

    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        const size_t n = tiny_vocabulary_utf8(text, c);
        const bool surrogate = c >= 0xd800 && c < 0xe000;

        assert_int_equal(tkv_unicode_next(text, n, &got), surrogate ? 1 : n);
        assert_int_equal(got, surrogate ? TKV_NOT_UNICODE : c);
    }
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_int_equal(tkv_unicode_next(wrong[i], strlen(wrong[i]), &got), 1);
        assert_int_equal(got, TKV_NOT_UNICODE);
    }
}

/* Word lengths in bytes by the regular expressions themselves, run by Python's regex module. */
static void test_splitters(void **state)
{
    static const struct {
        const char *pre;
        const char *text;
        uint8_t lengths[24];
    } cases[] = {
        {"gpt-2",
         "I'm sure it's 12345 o'CLOCK, they'LL say.",
         {1, 2, 5, 3, 2, 6, 2, 1, 5, 1, 5, 1, 2, 4, 1}},
        {"llama-bpe",
         "I'm sure it's 12345 o'CLOCK, they'LL say.",
         {1, 2, 5, 3, 2, 1, 3, 2, 2, 6, 1, 5, 3, 4, 1}},
        {"qwen2",
         "I'm sure it's 12345 o'CLOCK, they'LL say.",
         {1, 2, 5, 3, 2, 1, 1, 1, 1, 1, 1, 2, 6, 1, 5, 3, 4, 1}},
        {"gpt-2", "x=3.14;\r\n\r\n  return x;\t\t", {1, 1, 1, 1, 2, 1, 5, 7, 2, 1, 2}},
        {"llama-bpe", "x=3.14;\r\n\r\n  return x;\t\t", {1, 1, 1, 1, 2, 5, 1, 7, 2, 1, 2}},
        {"qwen2", "x=3.14;\r\n\r\n  return x;\t\t", {1, 1, 1, 1, 1, 1, 5, 1, 7, 2, 1, 2}},
        {"gpt-2", "  two  spaces\n\n\n end \n", {1, 4, 1, 7, 3, 4, 2}},
        {"llama-bpe",
         "na\u00efve \u00dcn\u00efcode\u2014\u201cquoted\u201d \u4f60\u597d\uff0c"
         "\u4e16\u754c \u0663\u0664\u0665 \u2167",
         {6, 10, 6, 6, 3, 7, 9, 1, 6, 1, 3}},
        {"qwen2",
         "na\u00efve \u00dcn\u00efcode\u2014\u201cquoted\u201d \u4f60\u597d\uff0c"
         "\u4e16\u754c \u0663\u0664\u0665 \u2167",
         {6, 10, 6, 6, 3, 7, 9, 1, 2, 2, 2, 1, 3}},
        {"gpt-2", "don't 'S 'quote'  !!! ...\n\nnext", {3, 2, 2, 1, 2, 5, 1, 1, 4, 4, 1, 1, 4}},
        {"qwen2", "don't 'S 'quote'  !!! ...\n\nnext", {3, 2, 2, 1, 2, 5, 1, 1, 4, 6, 4}},
        {"gpt-2", "a\u00a0b\u3000 c", {1, 2, 1, 3, 2}},
        {"qwen2", "a\u00a0b\u3000 c", {1, 3, 3, 2}},
        {"gpt-2", "e\u0301 \U0001f600\U0001f680!", {1, 2, 10}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct tkv_text pre = {cases[i].pre, strlen(cases[i].pre)};
        const struct tkv_splitter *s = tkv_splitter_find(pre);
        const size_t n = strlen(cases[i].text);
        size_t at = 0;

        assert_non_null(s);
        for (size_t j = 0; at < n; j++) {
            const size_t k = tkv_splitter_next(s, cases[i].text + at, n - at);

            if (k != cases[i].lengths[j])
                fail_msg("%s \"%s\": word %zu has %zu bytes, expected %u", cases[i].pre,
                         cases[i].text, j, k, cases[i].lengths[j]);
            at += k;
        }
        assert_int_equal(at, n);
    }
}

static void refuse(struct gguf_aid *g, const char *part)
{
    struct tkv_reason why = {""};
    struct tkv_tokenizer *t;

    assert_int_equal(make(g, &t, &why), -1);
    assert_null(t);
    if (!strstr(why.text, part))
        fail_msg("\"%s\" does not say \"%s\"", why.text, part);
}

static void test_refusals(void **state)
{
    static struct tiny_vocabulary p;
    const float scores[1] = {0};
    struct rng rng = {4};
    struct gguf_aid g = {0};

    (void)state;
    refuse(&g, "tokenizer.ggml.model is missing");
    tiny_vocabulary_make_spm(&p, &rng, false);
    gguf_aid_string(&g, "tokenizer.ggml.model", "bert");
    tiny_vocabulary_put(&g, &p);
    refuse(&g, "\"bert\", expected llama or gpt2");
    gguf_aid_string(&g, "tokenizer.ggml.model", "llama");
    tiny_vocabulary_put(&g, &p);
    gguf_aid_array(&g, "tokenizer.ggml.scores", TKV_GGUF_F32, scores, 1, 4);
    refuse(&g, "scores: 1 items, expected 340");
    p.types[7] = 9;
    gguf_aid_string(&g, "tokenizer.ggml.model", "llama");
    tiny_vocabulary_put(&g, &p);
    refuse(&g, "token 7: type 9");
    p.types[7] = TKV_TOKEN_BYTE;
    p.text[7][5] = '?';
    gguf_aid_string(&g, "tokenizer.ggml.model", "llama");
    tiny_vocabulary_put(&g, &p);
    gguf_aid_array(&g, "tokenizer.ggml.scores", TKV_GGUF_F32, p.scores, p.n, 4);
    refuse(&g, "token 7: type byte");
    tiny_vocabulary_make_bpe(&p, &rng);
    tiny_vocabulary_put_bpe(&g, &p, "unheard-of");
    refuse(&g, "\"unheard-of\" is not supported");
    p.types['q'] = TKV_TOKEN_UNUSED;
    tiny_vocabulary_put_bpe(&g, &p, "qwen2");
    refuse(&g, "no token for byte 0x71");
    tiny_vocabulary_make_bpe(&p, &rng);
    p.types[399] = TKV_TOKEN_UNUSED; /* a merge makes it */
    tiny_vocabulary_put_bpe(&g, &p, "qwen2");
    refuse(&g, "are no tokens");
    tiny_vocabulary_make_bpe(&p, &rng);
    gguf_aid_u32(&g, "tokenizer.ggml.bos_token_id", 100000);
    tiny_vocabulary_put_bpe(&g, &p, "qwen2");
    refuse(&g, "bos_token_id: 100000");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_reference_round_trip),
        cmocka_unit_test(test_speed),
        cmocka_unit_test(test_spm_random),
        cmocka_unit_test(test_spm_pieces),
        cmocka_unit_test(test_bpe_random),
        cmocka_unit_test(test_bpe_specials),
        cmocka_unit_test(test_splitters),
        cmocka_unit_test(test_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
