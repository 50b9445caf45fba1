/*
 * What trikvd will meet on a machine, what each fact means for it, and what to change.
 */
#ifndef TKV_TOOLS_CTL_DOCTOR_H
#define TKV_TOOLS_CTL_DOCTOR_H

#include <stddef.h>

enum ctl_verdict { CTL_FINE = 0, CTL_NOTE, CTL_PROBLEM };

struct ctl_finding {
    const char *name;
    enum ctl_verdict verdict;
    char value[96];
    const char *meaning; /* static */
};

enum { CTL_MAX_FINDINGS = 24 };

/* Look at the machine, files of /proc and /sys below `root` ("" but in tests); the number of findings
 * in out[CTL_MAX_FINDINGS]. */
size_t ctl_doctor_examine(const char *root, struct ctl_finding *out);

#endif /* TKV_TOOLS_CTL_DOCTOR_H */
