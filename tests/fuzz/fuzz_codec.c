/* Any bytes are a block: every codec must decode them to numbers without reading past them. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "core/codec.h"
#include "core/cpu.h"
#include "core/kernels.h"

enum { MAX_DIM = 96, MAX_BLOCK_BYTES = 1 << 16 };

static void decode(const struct tkv_coder *c, const struct tkv_kernels *kn, const uint8_t *bytes,
                   size_t n)
{
    static float out[2 * MAX_DIM * TKV_BLOCK_TOKENS];
    uint8_t *block = malloc(c->k_block_bytes); /* of the exact size, for the sanitizer */

    if (!block)
        return;
    memset(block, 0, c->k_block_bytes);
    memcpy(block, bytes, n < c->k_block_bytes ? n : c->k_block_bytes);
    tkv_key_tile(c, kn, block, out);
    if (!c->codec->qjl) {
        block = realloc(block, c->v_block_bytes);
        if (!block)
            return;
        memset(block, 0, c->v_block_bytes);
        memcpy(block, bytes, n < c->v_block_bytes ? n : c->v_block_bytes);
        tkv_value_rows(c, kn, block, TKV_BLOCK_TOKENS, out);
    }
    free(block);
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
