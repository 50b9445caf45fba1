/* The making of rulers, in double, and the codes of terms. */
#include "core/ruler.h"

#include <math.h>

/* What it is long, in deviations, and the deviation that there is at least, in means. */
#define LENGTH          16.0
#define LEAST_DEVIATION (1.0 / 32)

struct tkv_ruler tkv_ruler_lay(const float *terms, size_t n, float otherwise)
{
    double mean = 0, variance = 0, deviation;

    for (size_t i = 0; i < n; i++)
        mean += (double)terms[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        variance += ((double)terms[i] - mean) * ((double)terms[i] - mean) / (double)n;
    mean = mean > 0 ? mean : (double)otherwise;
    deviation = fmax(sqrt(variance), LEAST_DEVIATION * mean);
    return (struct tkv_ruler){(float)(mean - LENGTH / 2 * deviation),
                              (float)(LENGTH / 255 * deviation)};
}

uint8_t tkv_ruler_code(const struct tkv_ruler *r, float term)
{
    const float at = (term - r->base) / r->step + 0.5f;

    if (!(at >= 0)) /* nor where a step is 0 */
        return 0;
    return at < 255 ? (uint8_t)at : 255;
}
