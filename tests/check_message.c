/* Messages from the wire: what is not protobuf as we speak it, not UTF-8 or too much is refused by name
 * before anything is unpacked. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "daemon/message.h"
#include "proto/errors.h"
#include "proto/trikv.pb-c.h"

#define COUNT(x) (sizeof(x) / sizeof((x)[0]))

static char memory[TKV_MESSAGE_ARENA_BYTES];

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t n,
                                size_t arena_bytes, struct tkv_report *why)
{
    struct tkv_message_arena arena;

    *why = (struct tkv_report){0};
    tkv_message_arena_init(&arena, memory, arena_bytes);
    return tkv_message_unpack(&arena, type, data, n, why);
}

static const struct {
    const char *text;
    size_t n;
    int good;
} texts[] = {
    {"", 0, 1},
    {"a\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10, 1},
    {"\0", 1, 0},
    {"\x80", 1, 0},
    {"\xc1\xbf", 2, 0}, /* overlong */
    {"\xc2\x80", 2, 1},
    {"\xe0\x9f\xbf", 3, 0},
    {"\xe0\xa0\x80", 3, 1},
    {"\xed\xa0\x80", 3, 0}, /* surrogates */
    {"\xed\xbf\xbf", 3, 0},
    {"\xee\x80\x80", 3, 1},
    {"\xf0\x8f\xbf\xbf", 4, 0},
    {"\xf0\x90\x80\x80", 4, 1},
    {"\xf4\x8f\xbf\xbf", 4, 1},
    {"\xf4\x90\x80\x80", 4, 0}, /* beyond */
    {"\xf5\x80\x80\x80", 4, 0},
    {"\xe2\x82", 2, 0}, /* cut */
    {"\xc3(", 2, 0},
};

static void text_is_utf8(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(texts); i++)
        if (tkv_utf8_check(texts[i].text, texts[i].n) != texts[i].good)
            fail_msg("text %zu", i);
}

/* Of HELLO: field 3, client, is a string; 1 and 2 are numbers. Text says what the report must. */
static const struct {
    const char *bytes;
    size_t n;
    const char *says;
} broken[] = {
    {"\x08", 1, "message HelloRequest: broken field at byte 0"},         /* no value */
    {"\x08\x01\x80", 3, "message HelloRequest: broken field at byte 2"}, /* half a tag */
    {"\x00\x01", 2, "broken field at byte 0"},                           /* field 0 */
    {"\x80\x80\x80\x80\x80\x01\x01", 7, "broken field at byte 0"},       /* a tag over 32 bits */
    {"\x0b", 1, "broken field at byte 0"},                               /* a group */
    {"\x09\x01\x02", 3, "broken field at byte 0"},                       /* 64 bits cut */
    {"\x0d\x01\x02", 3, "broken field at byte 0"},                       /* 32 bits cut */
    {"\x1a", 1, "broken field at byte 0"},                               /* no length */
    {"\x1a\x05"
     "ab",
     4, "broken field at byte 0"}, /* longer than there is */
    {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11, "broken field at byte 0"}, /* 65 bits */
    {"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x80\x01", 12, "broken field at byte 0"},
    {"\x1a\x02\xc3(", 4, "message field client: not UTF-8 text"},
};

static void broken_fields_are_refused_where_they_are(void **state)
{
    struct tkv_report why;

    (void)state;
    for (size_t i = 0; i < COUNT(broken); i++) {
        assert_null(unpack(&trikv__hello_request__descriptor, broken[i].bytes, broken[i].n,
                           sizeof(memory), &why));
        assert_int_equal(why.error, TRIKV_E_PROTOCOL);
        if (!strstr(why.text, broken[i].says))
            fail_msg("message %zu: %s", i, why.text);
    }
}

static void some_unknown_fields_pass(void **state)
{
    uint8_t bytes[3 * (TKV_MESSAGE_UNKNOWN_FIELDS + 1)];
    struct tkv_report why;
    size_t n = 0;

    (void)state;
    for (; n < sizeof(bytes); n += 3)
        memcpy(bytes + n, "\xa0\x3e\x01", 3); /* field 1000 */
    assert_non_null(unpack(&trikv__empty__descriptor, bytes, n - 3, sizeof(memory), &why));
    assert_null(unpack(&trikv__empty__descriptor, bytes, n, sizeof(memory), &why));
    assert_int_equal(why.error, TRIKV_E_PROTOCOL);
    assert_string_equal(why.text, "message Empty: more than 16 unknown fields");
}

static void what_is_missing_has_a_name(void **state)
{
    const ProtobufCMessageDescriptor *rope = &trikv__rope__descriptor;
    struct tkv_report why;
    char want[64];

    (void)state;
    assert_null(unpack(rope, "", 0, sizeof(memory), &why));
    snprintf(want, sizeof(want), "message Rope: field %s is missing", rope->fields[0].name);
    assert_string_equal(why.text, want);
    /* Of the wrong wire type, which the scan steps over and protobuf-c refuses. */
    assert_null(unpack(&trikv__hello_request__descriptor, "\x18\x01", 2, sizeof(memory), &why));
    assert_int_equal(why.error, TRIKV_E_PROTOCOL);
}

static void an_arena_bounds_what_comes(void **state)
{
    const Trikv__HelloRequest all = {
        .base = PROTOBUF_C_MESSAGE_INIT(&trikv__hello_request__descriptor),
        .client = (char *)(uintptr_t) "somebody with a name of some length"};
    uint8_t bytes[128];
    const size_t n = protobuf_c_message_pack(&all.base, bytes);
    struct tkv_report why;

    (void)state;
    assert_true(n <= sizeof(bytes));
    assert_non_null(unpack(&trikv__hello_request__descriptor, bytes, n, sizeof(memory), &why));
    for (size_t room = 0; room < 64; room += 16) {
        assert_null(unpack(&trikv__hello_request__descriptor, bytes, n, room, &why));
        assert_int_equal(why.error, TRIKV_E_PROTOCOL);
        assert_non_null(strstr(why.text, "or it is too large"));
    }
}

/* No message of ours holds itself; one that did would not take the stack down. */
static void depth_is_bounded(void **state)
{
    static const ProtobufCIntRange ranges[] = {{1, 0}, {0, 1}};
    static const unsigned names[] = {0};
    static ProtobufCFieldDescriptor field = {.name = "self",
                                             .id = 1,
                                             .label = PROTOBUF_C_LABEL_OPTIONAL,
                                             .type = PROTOBUF_C_TYPE_MESSAGE};
    static const ProtobufCMessageDescriptor self = {
        .magic = PROTOBUF_C__MESSAGE_DESCRIPTOR_MAGIC,
        .short_name = "Self",
        .n_fields = 1,
        .fields = &field,
        .fields_sorted_by_name = names,
        .n_field_ranges = 1,
        .field_ranges = ranges,
        .sizeof_message = sizeof(ProtobufCMessage) + sizeof(void *),
    };
    static const uint8_t bytes[] = {10, 8, 10, 6, 10, 4, 10, 2, 10, 0};
    struct tkv_report why;

    (void)state;
    field.descriptor = &self;
    assert_null(unpack(&self, bytes, sizeof(bytes), sizeof(memory), &why));
    assert_string_equal(why.text, "message Self: nested too deep");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_utf8),
        cmocka_unit_test(broken_fields_are_refused_where_they_are),
        cmocka_unit_test(some_unknown_fields_pass),
        cmocka_unit_test(what_is_missing_has_a_name),
        cmocka_unit_test(an_arena_bounds_what_comes),
        cmocka_unit_test(depth_is_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
