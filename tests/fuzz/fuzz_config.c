/* The daemon's configuration file. */
#include "tests/fuzz/fuzz.h"

#include "daemon/config.h"
#include "daemon/diag.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tkv_diag diag = {0};
    struct tkv_config c;

    tkv_config_init(&c);
    if (tkv_config_parse(&c, "fuzz.yaml", (const char *)data, n, &diag))
        fuzz_reached();
    else if (diag.n == 0)
        abort(); /* refused without a word */
    tkv_diag_deinit(&diag);
    return 0;
}
