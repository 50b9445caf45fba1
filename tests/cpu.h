/* The instruction sets that a test may use: all, minus those of TRIKV_CPU_DISABLE. */
#ifndef TKV_TESTS_CPU_H
#define TKV_TESTS_CPU_H

#include <stdlib.h>

#include "core/cpu.h"

static inline unsigned cpu_flags(void)
{
    return tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE"));
}

#endif /* TKV_TESTS_CPU_H */
