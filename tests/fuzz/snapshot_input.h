/* An input of fuzz_snapshot: a byte that says whose statistics the sessions get (tests/scenes.h), then the
 * bytes of a snapshot as they are in a file once unpacked. */
#ifndef TKV_TESTS_FUZZ_SNAPSHOT_INPUT_H
#define TKV_TESTS_FUZZ_SNAPSHOT_INPUT_H

#include "tests/scenes.h"

/* Small, so that an input is, too. */
static const struct tkv_shape snapshot_input_shape = {.n_q_heads = 2,
                                                      .n_kv_heads = 1,
                                                      .head_dim_k = 8,
                                                      .head_dim_v = 8};

#endif /* TKV_TESTS_FUZZ_SNAPSHOT_INPUT_H */
