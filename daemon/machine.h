/*
 * What the machine and the service's control group leave the daemon: how much memory to take if nobody
 * says, and whether somebody is short of it. All of it is advice: on many machines (Raspberry Pi OS) there
 * are no memory cgroups and no pressure files, and then it says nothing.
 *
 * `root` stands before every path: "", or a test's own folder.
 */
#ifndef TKV_DAEMON_MACHINE_H
#define TKV_DAEMON_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Half of what is available, and of what the control group may use; 64 MiB at least. */
uint64_t tkv_machine_cap_bytes(const char *root);

/* The pressure file closest to the daemon: the one that the service manager names in
 * $MEMORY_PRESSURE_WATCH, its control group's, the machine's. False: none can be read. */
bool tkv_machine_find_pressure(const char *root, char *path, size_t n);

/* The share of the last ten seconds in which somebody waited for memory, in percent; false: not told. */
bool tkv_machine_pressure(const char *path, double *percent);

#endif /* TKV_DAEMON_MACHINE_H */
