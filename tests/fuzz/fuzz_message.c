/* A frame's header, then a control message of any type, as they come from a peer. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "daemon/message.h"
#include "proto/frame.h"
#include "proto/trikv.pb-c.h"

static char arena_memory[TKV_MESSAGE_ARENA_BYTES];

static void check_frame(const uint8_t *data, size_t n)
{
    struct trikv_frame f;
    const char *why = NULL;

    if (n < sizeof(f))
        return;
    memcpy(&f, data, sizeof(f));
    if (tkv_frame_check(&f, 1 << 20, &why) && !why)
        abort(); /* an error without a reason */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const ProtobufCMessageDescriptor *const types[] = {
        &trikv__hello_request__descriptor,      &trikv__open_request__descriptor,
        &trikv__session_request__descriptor,    &trikv__tokens_request__descriptor,
        &trikv__staging_request__descriptor,    &trikv__session_list_reply__descriptor,
        &trikv__profile_list_reply__descriptor, &trikv__read_request__descriptor};
    struct tkv_message_arena arena;
    struct tkv_report why = {0};

    if (n == 0)
        return 0;
    check_frame(data, n);
    tkv_message_arena_init(&arena, arena_memory, sizeof(arena_memory));
    if (tkv_message_unpack(&arena, types[data[0] % 8], data + 1, n - 1, &why))
        fuzz_reached();
    else if (why.error == 0 || why.text[0] == '\0')
        abort();
    return 0;
}
