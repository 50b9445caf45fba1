/* The request of a scraper or a browser, over a socket and over TCP. */
#include "tests/fuzz/fuzz.h"

#include "daemon/http_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct tkv_http_request r;
    const int status = tkv_http_parse((const char *)data, n, false, &r);

    if (status == 200)
        fuzz_reached();
    if (tkv_http_parse((const char *)data, n, true, &r) == 200 && status != 200)
        abort(); /* TCP asks for more, never for less */
    return 0;
}
