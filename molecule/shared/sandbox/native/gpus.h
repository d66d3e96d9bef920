/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * The simulated GPUs of a sandbox host, for the stub NVML and the stub libcuda: read from a table that the simulator
 * writes. VERSION is the version of the driver that the library claims to belong to; CUDA_VERSION is its CUDA API.
 * With SCRIPTED (tests/stubs) table and faults come from files beside the library. */
#ifndef GPUFLEET_GPUS_H
#define GPUFLEET_GPUS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOADED "/sys/module/nvidia/version"
#define MAX_GPUS 16

#ifdef SCRIPTED
#include "faults.h" /* CALL, VALUE and TABLE */
#else
#define TABLE "/var/lib/gpufleet-sandbox/gpus"
#define CALL(gpu) /* where every function of the libraries begins; `gpu` is its number, or NO_GPU */
#define VALUE(gpu, usual) usual
#endif
#define NO_GPU (-1)

struct gpu {
    char address[32];
    unsigned device, subsystem;
    char name[96], uuid[64];
    unsigned long long memory_mib;
    int major, minor;
    unsigned width, max_width;
    unsigned domain, bus, slot;
};

/* Fill the table; return the number of GPUs, or -1 where this is no sandbox host. */
static int read_gpus(struct gpu *gpus)
{
    FILE *file = fopen(TABLE, "re");
    char line[512];
    int count = 0;

    if (!file)
        return -1;
    while (count < MAX_GPUS && fgets(line, sizeof line, file)) {
        struct gpu *one = &gpus[count];
        memset(one, 0, sizeof *one);
        if (sscanf(line, "%31[^|]|%x|%x|%95[^|]|%63[^|]|%llu|%d|%d|%u|%u", one->address, &one->device, &one->subsystem,
                   one->name, one->uuid, &one->memory_mib, &one->major, &one->minor, &one->width, &one->max_width) == 10
            && sscanf(one->address, "%x:%x:%x", &one->domain, &one->bus, &one->slot) == 3)
            count++;
    }
    fclose(file);
    return count;
}

enum driver { DRIVER_ABSENT, DRIVER_OTHER, DRIVER_MATCHES };

/* Whether the (simulated) kernel module is loaded, and whether it is of this library's version. */
static enum driver loaded_driver(void)
{
#if defined WSL || defined SCRIPTED
    return DRIVER_MATCHES;
#else
    char version[64] = "";
    FILE *file = fopen(LOADED, "re");

    if (!file)
        return DRIVER_ABSENT;
    if (!fgets(version, sizeof version, file))
        version[0] = '\0';
    fclose(file);
    version[strcspn(version, "\n")] = '\0';
    return strcmp(version, VERSION) == 0 ? DRIVER_MATCHES : DRIVER_OTHER;
#endif
}

#endif
