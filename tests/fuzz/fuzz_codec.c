/* Any bytes are a block: every codec must decode them to numbers without reading past them. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/kernels.h"

enum { MAX_DIM = 96, MAX_BLOCK_BYTES = 1 << 16 };

/* The bytes as a block of its exact size, so that the sanitizer sees a read beyond it. */
static uint8_t *block_of(const uint8_t *bytes, size_t n, size_t block_bytes)
{
    uint8_t *block = calloc(1, block_bytes);

    if (block)
        memcpy(block, bytes, n < block_bytes ? n : block_bytes);
    return block;
}

static void decode(const struct tkv_coder *c, const struct tkv_kernels *kn, const uint8_t *bytes,
                   size_t n)
{
    static float out[2 * MAX_DIM * TKV_BLOCK_TOKENS];
    uint8_t *keys = block_of(bytes, n, c->k_block_bytes);
    uint8_t *values = c->codec->qjl ? NULL : block_of(bytes, n, c->v_block_bytes);

    if (keys)
        tkv_key_tile(c, kn, keys, out);
    if (values)
        tkv_value_rows(c, kn, values, TKV_BLOCK_TOKENS, out);
    free(keys);
    free(values);
    fuzz_reached();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const uint32_t dims[] = {8, 18, 48, 64, 80, MAX_DIM};
    static struct tkv_coder coder;
    struct tkv_kernels kn;
    size_t n_codecs = 0;

    if (n < 3)
        return 0;
    while (tkv_codecs[n_codecs].name)
        n_codecs++;
    tkv_kernels_init(&kn, data[0] % 2 ? tkv_cpu_flags(NULL) : 0);
    if (!tkv_coder_init(&coder, &tkv_codecs[data[1] % n_codecs], dims[data[2] % 6],
                        TKV_ROTATION_SEED))
        decode(&coder, &kn, data + 3, n - 3);
    return 0;
}
