/* Small files of every format that tools/import.h reads, for its tests and its fuzz target. */
#ifndef TKV_TESTS_IMPORT_AID_H
#define TKV_TESTS_IMPORT_AID_H

#include <stdbool.h>

#include "tests/gguf_aid.h"

enum { AID_LAYERS = 2, AID_HEADS = 4, AID_KV_HEADS = 2, AID_BANDS = 4 };

enum import_aid_kind {
    AID_TORCH,      /* early files: no theta, no KV heads */
    AID_TORCH_YARN, /* everything in metadata */
    AID_FIXED_1,
    AID_FIXED_2,
    AID_NAMED_1,
    AID_NAMED_2,
    AID_NAMED_3,
    AID_NPZ, /* deflated, as savez_compressed writes; no layout, no theta */
    AID_NPZ_STORED,
    AID_KINDS,
};

/* What is put there: mean_re, mean_im, mean_abs by part 0..2. */
float import_aid_value(uint32_t layer, uint32_t head, uint32_t part, uint32_t band);

/* The file, on the heap at its exact size. */
uint8_t *import_aid_make(enum import_aid_kind kind, size_t *n);

/* A torch file around this pickle. */
uint8_t *import_aid_zip(const uint8_t *pickle, size_t n_pickle, size_t *n);

/* A zip of deflated members. */
uint8_t *import_aid_npz(const char *const *names, const void *const *members, const size_t *n_bytes,
                        size_t n_members, size_t *n);

#endif /* TKV_TESTS_IMPORT_AID_H */
