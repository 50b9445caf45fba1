/* The instruction sets that a test may use: all, minus those of TRIKV_CPU_DISABLE. */
#ifndef TKV_TESTS_CPU_H
#define TKV_TESTS_CPU_H

#include <stdlib.h>

#include "core/cpu.h"
#include "core/kernels.h"

static inline unsigned cpu_flags(void)
{
    return tkv_cpu_flags(getenv("TRIKV_CPU_DISABLE"));
}

/* Their kernels. */
static inline const struct tkv_kernels *cpu_kernels(void)
{
    static struct tkv_kernels kn;

    tkv_kernels_init(&kn, cpu_flags());
    return &kn;
}

#endif /* TKV_TESTS_CPU_H */
