/* Published statistics: torch's zip and pickle, and both TRIA families. */
#include "tests/fuzz/fuzz.h"

#include "tools/import.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tkv_reason why = {""};
    struct tkv_import im;

    if (tkv_import_parse(&im, data, n, &why) == 0)
        fuzz_reached();
    else if (why.text[0] == '\0')
        abort();
    tkv_import_deinit(&im);
    return 0;
}
