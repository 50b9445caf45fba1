/* Buffers that grow on demand and are reused while they are small. */
#include "daemon/buffer.h"

#include <stdlib.h>

#include "core/types.h"
#include "store/budget.h"

enum {
    ALIGN_BYTES = 64,
    KEEP_BYTES = 1 << 20, /* a decode step of every known model fits; a prefill chunk may not */
};

bool tkv_buffer_need(struct tkv_buffer *b, struct tkv_budget *budget, size_t bytes)
{
    void *data;

    if (bytes <= b->bytes)
        return true;
    bytes = tkv_align(bytes, ALIGN_BYTES);
    if (!tkv_budget_reserve(budget, bytes))
        return false;
    data = aligned_alloc(ALIGN_BYTES, bytes);
    if (!data) {
        tkv_budget_release(budget, bytes);
        return false;
    }
    tkv_buffer_free(b, budget);
    *b = (struct tkv_buffer){data, bytes};
    return true;
}

void tkv_buffer_free(struct tkv_buffer *b, struct tkv_budget *budget)
{
    if (b->bytes)
        tkv_budget_release(budget, b->bytes);
    free(b->data);
    *b = (struct tkv_buffer){0};
}

void tkv_buffer_trim(struct tkv_buffer *b, struct tkv_budget *budget)
{
    if (b->bytes > KEEP_BYTES)
        tkv_buffer_free(b, budget);
}
