/* Request and reply buffers, counted in the memory budget. Contents are not kept when one grows. */
#ifndef TKV_DAEMON_BUFFER_H
#define TKV_DAEMON_BUFFER_H

#include <stdbool.h>
#include <stddef.h>

struct tkv_budget;

struct tkv_buffer {
    void *data; /* 64-byte aligned, not zeroed */
    size_t bytes;
};

/* Make it at least `bytes` long (0 is allowed); false over the cap or out of memory: then it is as
 * it was. */
bool tkv_buffer_need(struct tkv_buffer *b, struct tkv_budget *budget, size_t bytes);
void tkv_buffer_free(struct tkv_buffer *b, struct tkv_budget *budget);

/* Free it if it is larger than what is worth keeping between requests. */
void tkv_buffer_trim(struct tkv_buffer *b, struct tkv_budget *budget);

#endif /* TKV_DAEMON_BUFFER_H */
