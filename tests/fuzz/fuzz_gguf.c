/* A model file: its tables, its tokenizer, its tensors. */
#include "tests/fuzz/fuzz.h"

#include <string.h>

#include "tools/model.h"
#include "tools/tokenizer.h"

static void use(const struct tkv_gguf *g)
{
    struct tkv_tokenizer *t = NULL;
    struct tkv_model *m = NULL;
    struct tkv_ids ids = {0};
    struct tkv_reason why;

    if (tkv_tokenizer_create(&t, g, &why) == 0)
        (void)tkv_tokenizer_encode(t, "a \xc3\xa9\n12", 7, TKV_ENCODE_START, &ids, &why);
    tkv_ids_deinit(&ids);
    tkv_tokenizer_destroy(&t);
    (void)tkv_model_create(&m, g, 4, NULL, &why);
    tkv_model_destroy(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tkv_gguf g;
    struct tkv_reason why = {""};

    if (tkv_gguf_parse(&g, data, n, &why) == 0) {
        fuzz_reached();
        use(&g);
        tkv_gguf_close(&g);
    } else if (why.text[0] == '\0') {
        abort();
    }
    return 0;
}
