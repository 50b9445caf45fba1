/* Checksum, frame header and error numbers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/errors.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/report.h"
#include "proto/trikv.pb-c.h"
#include "tests/rng.h"
#include "tests/wire.h"

/* CRC-32C bit by bit: the judge of the tables. */
static uint32_t slow_crc(uint32_t crc, const uint8_t *p, size_t n)
{
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? UINT32_C(0x82f63b78) : 0);
    }
    return ~crc;
}

/* RFC 3720, appendix B.4. */
static void check_crc_vectors(void **state)
{
    uint8_t bytes[32] = {0};

    (void)state;
    assert_int_equal(tkv_crc32c(0, bytes, 32), UINT32_C(0x8a9136aa));
    memset(bytes, 0xff, 32);
    assert_int_equal(tkv_crc32c(0, bytes, 32), UINT32_C(0x62a8ab43));
    for (uint8_t i = 0; i < 32; i++)
        bytes[i] = i;
    assert_int_equal(tkv_crc32c(0, bytes, 32), UINT32_C(0x46dd794e));
    for (uint8_t i = 0; i < 32; i++)
        bytes[i] = (uint8_t)(31 - i);
    assert_int_equal(tkv_crc32c(0, bytes, 32), UINT32_C(0x113fdb5c));
    assert_int_equal(tkv_crc32c(0, "123456789", 9), UINT32_C(0xe3069283));
    assert_int_equal(tkv_crc32c(0, NULL, 0), 0);
}

static void check_crc_against_bits(void **state)
{
    struct rng rng = {11};
    uint8_t bytes[300];

    (void)state;
    for (size_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)rng_next(&rng);
    for (size_t n = 0; n <= 280; n++) {
        const size_t offset = n % 9, cut = n ? rng_below(&rng, (uint32_t)n) : 0;
        const uint32_t whole = slow_crc(0, bytes + offset, n);
        const uint32_t first = tkv_crc32c(0, bytes + offset, cut);

        assert_int_equal(tkv_crc32c(0, bytes + offset, n), whole);
        assert_int_equal(tkv_crc32c(first, bytes + offset + cut, n - cut), whole);
    }
}

static struct trikv_frame good_frame(const char *message)
{
    struct trikv_frame f = {.type = TRIKV_OPEN, .payload_bytes = 100, .sequence = 7};

    f.header_bytes = (uint32_t)strlen(message);
    tkv_frame_seal(&f, message);
    return f;
}

struct field {
    const char *name;
    size_t offset;
    size_t bytes;
    uint64_t value;
    int error;
};

static void check_fields(void **state)
{
    static const struct field fields[] = {
        {"magic", 0, 4, 0x54525651, TRIKV_E_PROTOCOL},
        {"version", 4, 2, 0, TRIKV_E_VERSION},
        {"version", 4, 2, TRIKV_PROTOCOL_MAX + 1, TRIKV_E_VERSION},
        {"flags", 8, 4, 0x80000000, TRIKV_E_PROTOCOL},
        {"header_bytes", 12, 4, TRIKV_MAX_HEADER_BYTES + 1, TRIKV_E_TOO_LARGE},
        {"payload_bytes", 16, 8, 1001, TRIKV_E_TOO_LARGE},
        {"n_fds", 36, 4, 3, TRIKV_E_PROTOCOL},
        {"reserved", 40, 1, 1, TRIKV_E_PROTOCOL},
        {"reserved", 63, 1, 1, TRIKV_E_PROTOCOL},
    };
    const char *why = NULL;
    struct trikv_frame f = good_frame("hello");

    (void)state;
    assert_int_equal(tkv_frame_check(&f, 1000, &why), 0);
    assert_null(why);
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        f = good_frame("hello");
        memcpy((char *)&f + fields[i].offset, &fields[i].value, fields[i].bytes);
        why = "";
        if (tkv_frame_check(&f, 1000, &why) != fields[i].error ||
            strncmp(why, fields[i].name, strlen(fields[i].name)) != 0)
            fail_msg("%s: \"%s\"", fields[i].name, why);
    }
}

/* Every bit of header and message is covered by the checksum. */
static void check_checksum_covers(void **state)
{
    char message[] = "some message";
    struct trikv_frame f = good_frame(message);
    const char *why = NULL;

    (void)state;
    assert_int_equal(tkv_frame_check_message(&f, message, &why), 0);
    for (size_t bit = 0; bit < sizeof(f) * 8; bit++) {
        if (bit / 8 >= 12 && bit / 8 < 16)
            continue; /* header_bytes: another length of message, not this one's memory */
        ((uint8_t *)&f)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(tkv_frame_check_message(&f, message, &why), TRIKV_E_CHECKSUM);
        ((uint8_t *)&f)[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t bit = 0; bit < strlen(message) * 8; bit++) {
        message[bit / 8] = (char)(message[bit / 8] ^ 1 << bit % 8);
        assert_int_equal(tkv_frame_check_message(&f, message, &why), TRIKV_E_CHECKSUM);
        message[bit / 8] = (char)(message[bit / 8] ^ 1 << bit % 8);
    }
    assert_non_null(strstr(why, "crc32c"));
}

static void check_padding(void **state)
{
    (void)state;
    assert_int_equal(tkv_frame_padding(0), 0);
    assert_int_equal(tkv_frame_padding(1), 63);
    assert_int_equal(tkv_frame_padding(63), 1);
    assert_int_equal(tkv_frame_padding(64), 0);
    assert_int_equal(tkv_frame_padding(65536), 0);
}

static void check_errors(void **state)
{
    struct tkv_report r = {0};

    (void)state;
    assert_string_equal(tkv_error_name(TRIKV_E_MEMORY_CAP), "MEMORY_CAP");
    assert_string_equal(tkv_error_text(TRIKV_E_MEMORY_CAP), "memory cap reached");
    assert_string_equal(tkv_error_name(12345), "UNKNOWN");
    assert_string_equal(tkv_error_name(0), "OK");
    assert_non_null(tkv_error_text(-1));
    assert_int_equal(tkv_fail(&r, TRIKV_E_SIZE, "want %d bytes, got %d", 4096, 4080), TRIKV_E_SIZE);
    assert_string_equal(r.text, "want 4096 bytes, got 4080");
    assert_int_equal(tkv_fail(NULL, TRIKV_E_SIZE, "x"), TRIKV_E_SIZE);
    tkv_fail(&r, TRIKV_E_SIZE, "%500d", 1);
    assert_int_equal(strlen(r.text), sizeof(r.text) - 1);
}

/* docs/protocol.md tells the bytes of a HELLO, request and reply: they are real ones. Both
 * examples check out, and the request is what we would send. */
static size_t read_example(FILE *doc, uint8_t *out, size_t max)
{
    char line[256];
    size_t n = 0;

    while (n < max && fgets(line, sizeof(line), doc)) {
        unsigned offset;
        int at;

        if (sscanf(line, "%4x  %n", &offset, &at) != 1 || line[4] != ' ' || line[5] != ' ')
            continue;
        assert_int_equal(offset, n);
        for (unsigned byte; n < max && sscanf(line + at, "%2x", &byte) == 1; at += 3)
            out[n++] = (uint8_t)byte;
    }
    return n;
}

static void check_documented_hello(void **state)
{
    FILE *doc = fopen("docs/protocol.md", "r");
    Trikv__HelloRequest m = TRIKV__HELLO_REQUEST__INIT;
    Trikv__HelloReply *reply;
    char name[] = "demo";
    uint8_t request[128], answer[192];
    struct trikv_frame f;
    const char *why = "";
    uint8_t *frame;
    size_t n;

    (void)state;
    assert_non_null(doc);
    assert_int_equal(read_example(doc, request, sizeof(request)), sizeof(request));
    assert_int_equal(read_example(doc, answer, sizeof(answer)), sizeof(answer));
    fclose(doc);
    m.protocol_min = m.protocol_max = 1;
    m.client = name;
    frame = wire_frame(TRIKV_HELLO, 1, &m.base, NULL, 0, 0, &n);
    assert_int_equal(n, sizeof(request));
    assert_memory_equal(frame, request, n);
    free(frame);
    memcpy(&f, answer, sizeof(f));
    assert_int_equal(tkv_frame_check(&f, 0, &why), 0);
    assert_int_equal(tkv_frame_check_message(&f, answer + sizeof(f), &why), 0);
    reply = trikv__hello_reply__unpack(NULL, f.header_bytes, answer + sizeof(f));
    assert_non_null(reply);
    assert_int_equal(reply->memory_cap_bytes, 1 << 30);
    trikv__hello_reply__free_unpacked(reply, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(check_crc_vectors),      cmocka_unit_test(check_crc_against_bits),
        cmocka_unit_test(check_fields),           cmocka_unit_test(check_checksum_covers),
        cmocka_unit_test(check_padding),          cmocka_unit_test(check_errors),
        cmocka_unit_test(check_documented_hello),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
