/* Which instruction sets the kernels may use on this machine. */
#ifndef TKV_CORE_CPU_H
#define TKV_CORE_CPU_H

enum tkv_cpu_flag {
    TKV_CPU_AVX2 = 1u << 0,   /* AVX2 + FMA + F16C, usable together or not at all */
    TKV_CPU_AVX512 = 1u << 1, /* F + BW + DQ + VL */
    TKV_CPU_NEON = 1u << 2,
    TKV_CPU_VNNI = 1u << 3,    /* AVX-512 VNNI + VBMI; never without AVX512 */
    TKV_CPU_DOTPROD = 1u << 4, /* sdot; never without NEON */
    TKV_CPU_AVXVNNI = 1u << 5, /* VNNI of 256 bits; never without AVX2 */
};

/*
 * Flags of the running CPU, minus those named in `disable`, a comma-separated
 * list such as "avx512,avx2" (NULL: none). Never fails; pure but for CPUID.
 */
unsigned tkv_cpu_flags(const char *disable);

/* The names of the flags, comma-separated, in buf[n] ("scalar" if there are none). */
const char *tkv_cpu_names(unsigned flags, char *buf, unsigned n);

#endif /* TKV_CORE_CPU_H */
