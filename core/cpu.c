/*
 * CPU features, asked once by the caller. A flag means that all instructions its
 * kernel file is compiled for may be used, including that the OS saves the registers.
 */
#include "core/cpu.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* Oldest first: kernels of a later set replace those of an earlier one. */
static const struct {
    const char *name;
    unsigned flag;
} names[] = {
    {"avx2", TKV_CPU_AVX2},       {"avxvnni", TKV_CPU_AVXVNNI}, {"avx512", TKV_CPU_AVX512},
    {"avx512vnni", TKV_CPU_VNNI}, {"neon", TKV_CPU_NEON},       {"dotprod", TKV_CPU_DOTPROD},
};

enum { N_NAMES = sizeof(names) / sizeof(names[0]) };

#if defined(TRIKV_C_KERNELS) /* a sanitizer that does not follow vector instructions */
static unsigned detect(void)
{
    return 0;
}
#elif defined(__x86_64__)
/* The compilers' own query does not know F16C everywhere: CPUID leaf 1, ECX bit 29. */
static bool has_f16c(void)
{
    unsigned a, b, c, d;

    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

/* Nor AVX-VNNI: leaf 7, subleaf 1, EAX bit 4. */
static bool has_avxvnni(void)
{
    unsigned a, b, c, d;

    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

static unsigned detect(void)
{
    unsigned flags = 0;

    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c())
        flags |= TKV_CPU_AVX2;
    if (flags && has_avxvnni())
        flags |= TKV_CPU_AVXVNNI;
    if (flags && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        flags |= TKV_CPU_AVX512;
    if ((flags & TKV_CPU_AVX512) && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512vbmi"))
        flags |= TKV_CPU_VNNI;
    return flags;
}
#elif defined(__aarch64__)
/* NEON with half conversions is part of the base architecture; the kernel says what else. */
static unsigned detect(void)
{
    return TKV_CPU_NEON | (getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? TKV_CPU_DOTPROD : 0);
}
#else
static unsigned detect(void)
{
    return 0;
}
#endif

/* Whether `name` is an item of a comma-separated list. */
static bool listed(const char *list, const char *name)
{
    const size_t n = strlen(name);

    for (const char *item = list; item; item = strchr(item, ',')) {
        item += *item == ',';
        if (!strncmp(item, name, n) && (item[n] == '\0' || item[n] == ','))
            return true;
    }
    return false;
}

unsigned tkv_cpu_flags(const char *disable)
{
    unsigned flags = detect();

    for (size_t i = 0; i < N_NAMES; i++)
        if (listed(disable, names[i].name))
            flags &= ~names[i].flag;
    if (!(flags & TKV_CPU_AVX2))
        flags &= ~(unsigned)TKV_CPU_AVXVNNI;
    if (!(flags & TKV_CPU_AVX512))
        flags &= ~(unsigned)TKV_CPU_VNNI;
    if (!(flags & TKV_CPU_NEON))
        flags &= ~(unsigned)TKV_CPU_DOTPROD;
    return flags;
}

/* Appends as much of s as fits in buf[n]; returns the new length. */
static size_t append(char *buf, size_t n, size_t used, const char *s)
{
    while (*s && used + 1 < n)
        buf[used++] = *s++;
    buf[used] = '\0';
    return used;
}

const char *tkv_cpu_names(unsigned flags, char *buf, unsigned n)
{
    size_t used = 0;

    if (n == 0)
        return "";
    buf[0] = '\0';
    for (size_t i = 0; i < N_NAMES; i++) {
        if (!(flags & names[i].flag))
            continue;
        if (used)
            used = append(buf, n, used, ",");
        used = append(buf, n, used, names[i].name);
    }
    if (!used)
        append(buf, n, 0, "scalar");
    return buf;
}
