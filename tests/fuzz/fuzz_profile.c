/* A profile, inline statistics included. */
#include "tests/fuzz/fuzz.h"

#include "daemon/diag.h"
#include "daemon/profile.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tkv_diag diag = {0};
    struct tkv_profile *p =
        tkv_profile_parse("tiny.yaml", "/nonexistent", (const char *)data, n, &diag);

    if (p)
        fuzz_reached();
    else if (diag.n == 0)
        abort();
    tkv_profile_unref(&p);
    tkv_diag_deinit(&diag);
    return 0;
}
