/* What going through the daemon adds to a decode step of many layers. */
#ifndef TKV_BENCH_IPC_LAYERS_H
#define TKV_BENCH_IPC_LAYERS_H

#include "bench/record.h"
#include "bench/service.h"

/* 32 layers with n_tokens each. On a daemon that runs where this process does. 0, or -1 with a text. */
int tkv_bench_ipc_layers(const struct tkv_bench_service *s, uint32_t n_tokens, struct tkv_record *r,
                         struct tkv_reason *why);

#endif /* TKV_BENCH_IPC_LAYERS_H */
