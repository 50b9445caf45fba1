/* What going through the daemon adds to a decode step of many layers. */
#ifndef TKV_BENCH_IPC_LAYERS_H
#define TKV_BENCH_IPC_LAYERS_H

#include "bench/pingpong.h"
#include "bench/record.h"
#include "bench/service.h"

/* 32 layers with n_tokens each; this process and the daemon are moved about. 0, or -1 with a text. */
int tkv_bench_ipc_layers(const struct tkv_bench_service *s, uint32_t n_tokens,
                         const struct tkv_places *places, struct tkv_record *r,
                         struct tkv_reason *why);

#endif /* TKV_BENCH_IPC_LAYERS_H */
