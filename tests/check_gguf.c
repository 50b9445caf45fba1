/* The GGUF reader: a right file is read right, a wrong one is refused with a text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gguf_aid.h"
#include "tests/rng.h"
#include "tools/gguf.h"

/* One key of each kind and a tensor of each type. */
static uint8_t *make_file(uint32_t version, size_t *n_bytes)
{
    const struct tkv_text texts[] = {{"one", 3}, {"", 0}, {"t\0o", 3}};
    const int32_t numbers[] = {1, -2, 3};
    struct gguf_aid g = {.version = version};
    float values[64];

    for (int i = 0; i < 64; i++)
        values[i] = (float)(i - 32);
    gguf_aid_string(&g, "general.architecture", "test");
    gguf_aid_u32(&g, "a.number", 42);
    gguf_aid_f32(&g, "a.real", 0.5f);
    gguf_aid_bool(&g, "a.flag", 1);
    gguf_aid_strings(&g, "a.texts", texts, 3);
    gguf_aid_array(&g, "a.numbers", TKV_GGUF_I32, numbers, 3, sizeof(*numbers));
    gguf_aid_tensor(&g, "vector", TKV_GGML_F32, 5, 0, values);
    gguf_aid_tensor(&g, "halves", TKV_GGML_F16, 4, 3, values);
    gguf_aid_tensor(&g, "bfloats", TKV_GGML_BF16, 4, 3, values);
    gguf_aid_tensor(&g, "blocks", TKV_GGML_Q8_0, 32, 2, values);
    return gguf_aid_finish(&g, n_bytes);
}

static void check_keys(const struct tkv_gguf *g)
{
    const struct tkv_gguf_entry *entry;
    struct tkv_reason why = {""};
    const uint8_t *cursor;
    struct tkv_text text;
    uint32_t number;
    double real;
    bool flag;

    assert_int_equal(tkv_gguf_text(g, "general.architecture", &text, &why), 0);
    assert_true(tkv_text_is(text, "test"));
    assert_int_equal(tkv_gguf_u32(g, "a.number", &number, &why), 0);
    assert_int_equal(number, 42);
    assert_int_equal(tkv_gguf_f64(g, "a.real", &real, &why), 0);
    assert_true(real == 0.5);
    assert_int_equal(tkv_gguf_bool(g, "a.flag", &flag, &why), 0);
    assert_true(flag);
    assert_int_equal(tkv_gguf_array(g, "a.texts", TKV_GGUF_STRING, &entry, &why), 0);
    assert_int_equal(entry->n_items, 3);
    cursor = entry->data;
    assert_true(tkv_text_is(tkv_gguf_next_text(&cursor), "one"));
    assert_int_equal(tkv_gguf_next_text(&cursor).n_bytes, 0);
    text = tkv_gguf_next_text(&cursor);
    assert_int_equal(text.n_bytes, 3);
    assert_memory_equal(text.data, "t\0o", 3);
}

static void check_wrong_kinds(const struct tkv_gguf *g)
{
    const struct tkv_gguf_entry *entry;
    struct tkv_reason why = {""};
    struct tkv_text text;
    uint32_t number;
    double real;
    bool flag;

    assert_int_equal(tkv_gguf_u32(g, "a.real", &number, &why), -1);
    assert_non_null(strstr(why.text, "a.real"));
    assert_int_equal(tkv_gguf_f64(g, "a.number", &real, &why), -1);
    assert_int_equal(tkv_gguf_bool(g, "a.number", &flag, &why), -1);
    assert_int_equal(tkv_gguf_text(g, "a.texts", &text, &why), -1);
    assert_int_equal(tkv_gguf_array(g, "a.numbers", TKV_GGUF_STRING, &entry, &why), -1);
    assert_int_equal(tkv_gguf_u32(g, "a.missing", &number, &why), -1);
    assert_string_equal(why.text, "key a.missing is missing");
    assert_null(tkv_gguf_find(g, "a.numbe"));
    assert_null(tkv_gguf_find(g, "a.numbers.more"));
}

static void test_reads(void **state)
{
    (void)state;
    for (uint32_t version = 2; version <= 3; version++) {
        const struct tkv_gguf_tensor *t;
        struct tkv_reason why = {""};
        struct tkv_gguf g;
        size_t n_bytes;
        uint8_t *file = make_file(version, &n_bytes);
        float first;

        assert_int_equal(tkv_gguf_parse(&g, file, n_bytes, &why), 0);
        check_keys(&g);
        check_wrong_kinds(&g);
        t = tkv_gguf_tensor(&g, "vector");
        assert_non_null(t);
        assert_int_equal(t->dims[0], 5);
        assert_int_equal(t->dims[1], 1);
        assert_int_equal(t->n_bytes, 20);
        memcpy(&first, t->data, sizeof(first));
        assert_true(first == -32.0f);
        assert_int_equal(tkv_gguf_tensor(&g, "halves")->n_bytes, 24);
        assert_int_equal(tkv_gguf_tensor(&g, "blocks")->n_bytes, 2 * TKV_Q8_BLOCK_BYTES);
        assert_null(tkv_gguf_tensor(&g, "nothing"));
        tkv_gguf_close(&g);
        free(file);
    }
}

/* Parses a copy of exactly n bytes; whether it was refused, with a text. */
static bool is_refused(const uint8_t *bytes, size_t n)
{
    uint8_t *copy = malloc(n ? n : 1);
    struct tkv_reason why = {""};
    struct tkv_gguf g;
    int error;

    assert_non_null(copy);
    memcpy(copy, bytes, n);
    error = tkv_gguf_parse(&g, copy, n, &why);
    if (error) {
        assert_true(why.text[0] != '\0');
        assert_null(g.entries);
        assert_null(g.tensors);
    }
    tkv_gguf_close(&g);
    free(copy);
    return error != 0;
}

static void test_truncation(void **state)
{
    size_t n_bytes;
    uint8_t *file = make_file(3, &n_bytes);

    (void)state;
    for (size_t n = 0; n < n_bytes; n++)
        assert_true(is_refused(file, n));
    assert_false(is_refused(file, n_bytes));
    free(file);
}

/* Every byte of the header, the keys and the tensor table, changed in several ways. */
static void test_mutations(void **state)
{
    static const uint8_t masks[] = {0x01, 0x80, 0xff, 0x10};
    struct rng rng = {2026};
    size_t n_bytes, n_refused = 0, n_tried = 0;
    uint8_t *file = make_file(3, &n_bytes);
    const size_t n_head = n_bytes - 164;

    (void)state;
    for (size_t i = 0; i < n_head; i++) {
        for (size_t m = 0; m < sizeof(masks); m++, n_tried++) {
            file[i] ^= masks[m];
            n_refused += is_refused(file, n_bytes);
            file[i] ^= masks[m];
        }
    }
    for (int i = 0; i < 500; i++, n_tried++) { /* eight bytes at once: lengths and counts */
        const size_t at = rng_below(&rng, (uint32_t)n_head - 8);
        uint64_t kept, wild = rng_next(&rng) >> rng_below(&rng, 64);

        memcpy(&kept, file + at, 8);
        memcpy(file + at, &wild, 8);
        n_refused += is_refused(file, n_bytes);
        memcpy(file + at, &kept, 8);
    }
    print_message("%zu mutations, %zu refused\n", n_tried, n_refused);
    assert_true(n_refused >= 300);
    assert_false(is_refused(file, n_bytes));
    free(file);
}

/* Expects a file to be refused with a text that holds `part`. */
static void expect(struct gguf_aid *g, const char *part)
{
    struct tkv_reason why = {""};
    struct tkv_gguf parsed;
    size_t n_bytes;
    uint8_t *file = gguf_aid_finish(g, &n_bytes);

    assert_int_equal(tkv_gguf_parse(&parsed, file, n_bytes, &why), -1);
    if (!strstr(why.text, part))
        fail_msg("\"%s\" does not say \"%s\"", why.text, part);
    free(file);
}

static void test_header_errors(void **state)
{
    struct gguf_aid g = {.version = 4};

    (void)state;
    expect(&g, "version 4, expected 2 or 3");
    g = (struct gguf_aid){.version = 0x03000000};
    expect(&g, "little-endian");
    g = (struct gguf_aid){.n_tensors = UINT64_MAX};
    expect(&g, "tensors cannot fit");
    g = (struct gguf_aid){.n_entries = UINT64_MAX / 13};
    expect(&g, "metadata keys cannot fit");
}

static void test_key_errors(void **state)
{
    const uint64_t huge = UINT64_MAX / 2, one_more = 5;
    const uint32_t string = TKV_GGUF_STRING, number = TKV_GGUF_U64, array = TKV_GGUF_ARRAY;
    struct gguf_aid g = {0};

    (void)state;
    gguf_aid_u32(&g, "twice", 1);
    gguf_aid_u32(&g, "twice", 2);
    expect(&g, "key twice occurs twice");
    gguf_aid_key(&g, "strange", 13);
    expect(&g, "key strange: unknown value type 13");
    gguf_aid_key(&g, "long", TKV_GGUF_STRING);
    gguf_aid_bytes(&g.entries, &huge, 8);
    expect(&g, "the file has 0 left");
    gguf_aid_key(&g, "long", TKV_GGUF_STRING);
    gguf_aid_bytes(&g.entries, &one_more, 8);
    gguf_aid_bytes(&g.entries, "1234", 4);
    expect(&g, "string value of 5 bytes, the file has 4 left");
    gguf_aid_key(&g, "many", TKV_GGUF_ARRAY);
    gguf_aid_bytes(&g.entries, &number, 4);
    gguf_aid_bytes(&g.entries, &huge, 8); /* times 8 overflows */
    expect(&g, "key many: array of");
    gguf_aid_key(&g, "many", TKV_GGUF_ARRAY);
    gguf_aid_bytes(&g.entries, &string, 4);
    gguf_aid_bytes(&g.entries, &huge, 8);
    expect(&g, "string in an array");
    gguf_aid_key(&g, "nested", TKV_GGUF_ARRAY);
    gguf_aid_bytes(&g.entries, &array, 4);
    gguf_aid_bytes(&g.entries, &huge, 8);
    expect(&g, "key nested: array of type 9");
    gguf_aid_u32(&g, "general.alignment", 24);
    expect(&g, "general.alignment: 24, expected a power of two");
    gguf_aid_string(&g, "general.alignment", "32");
    expect(&g, "general.alignment: type 8, expected an integer");
}

static void put_tensor(struct gguf_aid *g, const char *name, const uint64_t *dims, uint32_t n_dims,
                       uint32_t type, uint64_t offset)
{
    gguf_aid_text(&g->tensors, name, strlen(name));
    gguf_aid_bytes(&g->tensors, &n_dims, 4);
    gguf_aid_bytes(&g->tensors, dims, n_dims * sizeof(*dims));
    gguf_aid_bytes(&g->tensors, &type, 4);
    gguf_aid_bytes(&g->tensors, &offset, 8);
    g->n_tensors++;
}

static void test_tensor_errors(void **state)
{
    const uint64_t dims[] = {32, 2, 1, 1, 1}, zero[] = {0}, odd[] = {31, 2};
    const uint64_t huge[] = {(uint64_t)1 << 40, (uint64_t)1 << 40}, wide[] = {(uint64_t)1 << 62};
    const float values[32] = {0};
    struct gguf_aid g = {0};

    (void)state;
    put_tensor(&g, "t", dims, 5, TKV_GGML_F32, 0);
    expect(&g, "tensor t: 5 dimensions, expected 1 to 4");
    put_tensor(&g, "t", zero, 1, TKV_GGML_F32, 0);
    expect(&g, "tensor t: dimension 0 is 0");
    put_tensor(&g, "t", huge, 2, TKV_GGML_F32, 0);
    expect(&g, "tensor t: dimension 1");
    put_tensor(&g, "t", wide, 1, TKV_GGML_F32, 0);
    expect(&g, "tensor t: ggml type 0");
    put_tensor(&g, "t", odd, 2, TKV_GGML_Q8_0, 0);
    expect(&g, "rows of whole blocks of 32");
    put_tensor(&g, "t", dims, 2, 12, 0);
    expect(&g, "tensor t: ggml type 12");
    put_tensor(&g, "t", dims, 2, TKV_GGML_F32, 8);
    expect(&g, "offset 8 is not a multiple of 32");
    put_tensor(&g, "t", dims, 2, TKV_GGML_F32, (uint64_t)1 << 63);
    expect(&g, "tensor t: 256 bytes at offset");
    gguf_aid_tensor(&g, "t", TKV_GGML_F32, 32, 0, values);
    gguf_aid_tensor(&g, "t", TKV_GGML_F32, 32, 0, values);
    expect(&g, "tensor t occurs twice");
}

static void test_open(void **state)
{
    struct tkv_reason why = {""};
    struct tkv_gguf g;

    (void)state;
    assert_int_equal(tkv_gguf_open(&g, "/nonexistent/model.gguf", &why), -1);
    assert_non_null(strstr(why.text, "/nonexistent/model.gguf"));
    assert_int_equal(tkv_gguf_open(&g, "/", &why), -1);
    assert_non_null(strstr(why.text, "regular file"));
    assert_int_equal(tkv_gguf_open(&g, "/proc/self/exe", &why), -1);
    assert_non_null(strstr(why.text, "no GGUF file"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads),      cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_mutations),  cmocka_unit_test(test_header_errors),
        cmocka_unit_test(test_key_errors), cmocka_unit_test(test_tensor_errors),
        cmocka_unit_test(test_open),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
