/* The scan of a message against its descriptor, and the arena behind the unpacking. */
#include "daemon/message.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "proto/errors.h"

enum { MAX_DEPTH = 4, ARENA_ALIGN = 16 };

struct scan {
    struct tkv_report *why;
    unsigned n_unknown;
};

struct cursor {
    const uint8_t *at, *end;
};

int tkv_utf8_check(const void *text, size_t n)
{
    const uint8_t *p = text, *const end = p + n;

    while (p < end) {
        const uint8_t c = *p++;
        const size_t more = c < 0x80 ? 0 : c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        uint32_t code = more == 0 ? c : c & (0x3fu >> more);

        if (c == 0 || (c >= 0x80 && c < 0xc2) || c > 0xf4 || (size_t)(end - p) < more)
            return 0;
        for (size_t i = 0; i < more; i++, p++) {
            if ((*p & 0xc0) != 0x80)
                return 0;
            code = code << 6 | (*p & 0x3fu);
        }
        if ((more == 2 && code < 0x800) || (more == 3 && (code < 0x10000 || code > 0x10ffff)) ||
            (code >= 0xd800 && code < 0xe000))
            return 0;
    }
    return 1;
}

static bool read_varint(struct cursor *c, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 70 && c->at < c->end; shift += 7) {
        const uint8_t byte = *c->at++;

        if (shift == 63 && byte > 1)
            return false;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* Step over the value of a field; *body is what a length-delimited one holds. */
static bool read_value(struct cursor *c, unsigned wire_type, struct cursor *body)
{
    uint64_t n;

    switch (wire_type) {
    case PROTOBUF_C_WIRE_TYPE_VARINT: return read_varint(c, &n);
    case PROTOBUF_C_WIRE_TYPE_64BIT: n = 8; break;
    case PROTOBUF_C_WIRE_TYPE_32BIT: n = 4; break;
    case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED:
        if (!read_varint(c, &n))
            return false;
        break;
    default: return false; /* groups are not of proto2 as we speak it */
    }
    if (n > (uint64_t)(c->end - c->at))
        return false;
    *body = (struct cursor){c->at, c->at + n};
    c->at += n;
    return true;
}

static bool scan_message(struct scan *s, const ProtobufCMessageDescriptor *type, struct cursor c,
                         unsigned depth);

static bool scan_field(struct scan *s, const ProtobufCFieldDescriptor *field, unsigned wire_type,
                       struct cursor body, unsigned depth)
{
    if (wire_type != PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED)
        return true;
    if (field->type == PROTOBUF_C_TYPE_STRING &&
        !tkv_utf8_check(body.at, (size_t)(body.end - body.at))) {
        tkv_fail(s->why, TRIKV_E_PROTOCOL, "message field %s: not UTF-8 text", field->name);
        return false;
    }
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        return scan_message(s, field->descriptor, body, depth + 1);
    return true;
}

static bool scan_message(struct scan *s, const ProtobufCMessageDescriptor *type, struct cursor c,
                         unsigned depth)
{
    const uint8_t *const start = c.at;

    if (depth > MAX_DEPTH) {
        tkv_fail(s->why, TRIKV_E_PROTOCOL, "message %s: nested too deep", type->short_name);
        return false;
    }
    while (c.at < c.end) {
        const size_t offset = (size_t)(c.at - start);
        const ProtobufCFieldDescriptor *field;
        struct cursor body = {0};
        uint64_t tag;

        if (!read_varint(&c, &tag) || tag >> 3 == 0 || tag > UINT32_MAX ||
            !read_value(&c, tag & 7, &body)) {
            tkv_fail(s->why, TRIKV_E_PROTOCOL, "message %s: broken field at byte %zu",
                     type->short_name, offset);
            return false;
        }
        field = protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3));
        if (!field && ++s->n_unknown > TKV_MESSAGE_UNKNOWN_FIELDS) {
            tkv_fail(s->why, TRIKV_E_PROTOCOL, "message %s: more than %d unknown fields",
                     type->short_name, TKV_MESSAGE_UNKNOWN_FIELDS);
            return false;
        }
        if (field && !scan_field(s, field, tag & 7, body, depth))
            return false;
    }
    return true;
}

static void *arena_alloc(void *data, size_t size)
{
    struct tkv_message_arena *a = data;
    const size_t aligned = (size + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    void *p;

    if (aligned < size || aligned > a->size_bytes - a->used_bytes)
        return NULL;
    p = a->memory + a->used_bytes;
    a->used_bytes += aligned;
    return p;
}

/* Memory comes back all at once, with the next message. */
static void arena_free(void *data, void *pointer)
{
    (void)data;
    (void)pointer;
}

void tkv_message_arena_init(struct tkv_message_arena *a, void *memory, size_t size_bytes)
{
    *a = (struct tkv_message_arena){.memory = memory, .size_bytes = size_bytes};
    a->allocator = (ProtobufCAllocator){arena_alloc, arena_free, a};
}

/* The first field that is required and absent, to name it: protobuf-c only says no. */
static const char *missing_field(const ProtobufCMessageDescriptor *type, struct cursor c)
{
    for (unsigned i = 0; i < type->n_fields; i++) {
        struct cursor rest = c, body;
        bool found = type->fields[i].label != PROTOBUF_C_LABEL_REQUIRED;
        uint64_t tag;

        while (!found && rest.at < rest.end && read_varint(&rest, &tag) &&
               read_value(&rest, tag & 7, &body))
            found = tag >> 3 == type->fields[i].id;
        if (!found)
            return type->fields[i].name;
    }
    return NULL;
}

ProtobufCMessage *tkv_message_unpack(struct tkv_message_arena *a,
                                     const ProtobufCMessageDescriptor *type, const void *data,
                                     size_t n, struct tkv_report *why)
{
    const struct cursor c = {data, (const uint8_t *)data + n};
    struct scan s = {.why = why};
    ProtobufCMessage *m;
    const char *missing;

    a->used_bytes = 0;
    if (!scan_message(&s, type, c, 0))
        return NULL;
    missing = missing_field(type, c);
    if (missing) {
        tkv_fail(why, TRIKV_E_PROTOCOL, "message %s: field %s is missing", type->short_name,
                 missing);
        return NULL;
    }
    m = protobuf_c_message_unpack(type, &a->allocator, n, data);
    if (!m)
        tkv_fail(
            why, TRIKV_E_PROTOCOL,
            "message %s: a field has the wrong type or is missing in a part, or it is too large",
            type->short_name);
    return m;
}
