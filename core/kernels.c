/* Chooses the kernel variants for a set of CPU flags: the reference, then newer over older. */
#include "core/kernels.h"

#include "core/cpu.h"
#include "core/kernels_priv.h"

void tkv_kernels_init(struct tkv_kernels *k, unsigned cpu)
{
    *k = TKV_KERNELS(c);
#if defined(__x86_64__)
    if (cpu & TKV_CPU_AVX2)
        *k = TKV_KERNELS(avx2);
    if ((cpu & TKV_CPU_AVX2) && (cpu & TKV_CPU_AVXVNNI)) {
        k->code_dots = tkv_code_dots_avxvnni;
        k->code_sums = tkv_code_sums_avxvnni;
        k->try_scales = tkv_try_scales_avxvnni;
        k->level_dots = tkv_level_dots_avxvnni;
    }
    if (cpu & TKV_CPU_AVX512)
        *k = TKV_KERNELS(avx512);
    if ((cpu & TKV_CPU_AVX512) && (cpu & TKV_CPU_VNNI)) {
        k->code_dots = tkv_code_dots_vnni;
        k->code_sums = tkv_code_sums_vnni;
        k->try_scales = tkv_try_scales_vnni;
        k->level_dots = tkv_level_dots_vnni;
    }
#elif defined(__aarch64__)
    if (cpu & TKV_CPU_NEON)
        *k = TKV_KERNELS(neon);
    if ((cpu & TKV_CPU_NEON) && (cpu & TKV_CPU_DOTPROD)) {
        k->code_dots = tkv_code_dots_dotprod;
        k->code_sums = tkv_code_sums_dotprod;
        k->try_scales = tkv_try_scales_dotprod;
        k->level_dots = tkv_level_dots_dotprod;
    }
#else
    (void)cpu;
#endif
}
