/* The comparison kernels of each instruction set: for peers.c and the files that define them. */
#ifndef TKV_BENCH_PEERS_PRIV_H
#define TKV_BENCH_PEERS_PRIV_H

#include "bench/peers.h"

#define TKV_DECLARE_PEER_KERNELS(isa)                                                      \
    uint64_t tkv_peer_read_##isa(const void *bytes, size_t n);                             \
    void tkv_peer_encode_##isa(enum tkv_peer_format f, uint8_t *row, const float *x,       \
                               uint32_t dim);                                              \
    void tkv_peer_attend_##isa(const struct tkv_peer_head *h, const float *q, float scale, \
                               float *out, struct tkv_peer_work *w);                       \
    extern const struct tkv_peer_kernels tkv_peer_kernels_##isa

TKV_DECLARE_PEER_KERNELS(c);
TKV_DECLARE_PEER_KERNELS(avx2);
TKV_DECLARE_PEER_KERNELS(vnni);

#endif /* TKV_BENCH_PEERS_PRIV_H */
