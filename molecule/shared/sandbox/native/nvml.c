/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stub of libnvidia-ml.so.1: answers the questions of the simulated fleet's tools, with the real error codes. */
#include "gpus.h"

#define API __attribute__((visibility("default")))

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, IRQ_ISSUE = 11, CORRUPTED_INFOROM = 14,
       GPU_IS_LOST = 15, RESET_REQUIRED = 16, LIBRARY_MISMATCH = 18 };

static struct gpu gpus[MAX_GPUS];
static int count = -1;

static int copy(char *to, unsigned size, const char *text)
{
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return SUCCESS;
}

static struct gpu *known(void *device)
{
    struct gpu *one = device;
    return one >= gpus && one < gpus + (count > 0 ? count : 0) ? one : NULL;
}

#define FOR_GPU(one, device) \
    struct gpu *one = known(device); \
    if (!one) \
        return INVALID_ARGUMENT; \
    CALL((int)(one - gpus))

API int nvmlInit_v2(void)
{
    enum driver driver = loaded_driver();

    CALL(NO_GPU);
    if (driver == DRIVER_ABSENT)
        return DRIVER_NOT_LOADED;
    if (driver == DRIVER_OTHER)
        return LIBRARY_MISMATCH;
    count = read_gpus(gpus);
    return count < 0 ? DRIVER_NOT_LOADED : SUCCESS;
}
API int nvmlInit(void) { return nvmlInit_v2(); }
API int nvmlInitWithFlags(unsigned flags) { (void)flags; return nvmlInit_v2(); }
API int nvmlShutdown(void) { count = -1; return SUCCESS; }

/* nvml.h of CUDA 12.8 */
API const char *nvmlErrorString(int code)
{
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case TIMEOUT: return "Timeout";
    case IRQ_ISSUE: return "Interrupt Request Issue";
    case CORRUPTED_INFOROM: return "Corrupted infoROM";
    case GPU_IS_LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    case LIBRARY_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

API int nvmlSystemGetDriverVersion(char *text, unsigned size)
{
    CALL(NO_GPU);
    return count < 0 ? UNINITIALIZED : copy(text, size, VERSION);
}
API int nvmlSystemGetNVMLVersion(char *text, unsigned size) { return copy(text, size, "13." VERSION); }
API int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = CUDA_VERSION; return SUCCESS; }
API int nvmlSystemGetCudaDriverVersion(int *version) { *version = CUDA_VERSION; return SUCCESS; }

API int nvmlDeviceGetCount_v2(unsigned *number)
{
    CALL(NO_GPU);
    if (count < 0)
        return UNINITIALIZED;
    *number = (unsigned)count;
    return SUCCESS;
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    CALL((int)index);
    if (count < 0)
        return UNINITIALIZED;
    if (index >= (unsigned)count)
        return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

API int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci)
{
    FOR_GPU(one, device);
    memset(pci, 0, sizeof *pci);
    pci->domain = one->domain;
    pci->bus = one->bus;
    pci->device = one->slot;
    pci->device_id = one->device << 16 | 0x10de;
    pci->subsystem_id = one->subsystem;
    snprintf(pci->legacy, sizeof pci->legacy, "%04X:%02X:%02X.0", one->domain & 0xffff, one->bus & 0xff, one->slot & 0xff);
    snprintf(pci->bus_id, sizeof pci->bus_id, "%08X:%02X:%02X.0", one->domain, one->bus & 0xff, one->slot & 0xff);
    return SUCCESS;
}

API int nvmlDeviceGetName(void *device, char *text, unsigned size)
{
    FOR_GPU(one, device);
    return copy(text, size, one->name);
}

API int nvmlDeviceGetUUID(void *device, char *text, unsigned size)
{
    FOR_GPU(one, device);
    return copy(text, size, one->uuid);
}

API int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    FOR_GPU(one, device);
    *major = one->major;
    *minor = one->minor;
    return SUCCESS;
}

struct memory { unsigned long long total, free, used; };

API int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory)
{
    FOR_GPU(one, device);
    memory->total = memory->free = one->memory_mib << 20;
    memory->used = 0;
    return SUCCESS;
}

API int nvmlDeviceGetCurrPcieLinkWidth(void *device, unsigned *value)
{
    FOR_GPU(one, device);
    *value = one->width;
    return SUCCESS;
}

API int nvmlDeviceGetMaxPcieLinkWidth(void *device, unsigned *value)
{
    FOR_GPU(one, device);
    *value = one->max_width;
    return SUCCESS;
}

API int nvmlDeviceGetPersistenceMode(void *device, unsigned *value)
{
    FOR_GPU(one, device);
    *value = 1;
    return SUCCESS;
}

API int nvmlDeviceGetComputeMode(void *device, unsigned *value)
{
    FOR_GPU(one, device);
    *value = VALUE((int)(one - gpus), 0);
    return SUCCESS;
}

API int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *next)
{
    FOR_GPU(one, device);
    int mode = VALUE((int)(one - gpus), -1);
    if (mode < 0)
        return NOT_SUPPORTED;
    *now = *next = (unsigned)mode;
    return SUCCESS;
}

API int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *number)
{
    FOR_GPU(one, device);
    *number = 7;
    return SUCCESS;
}

API int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **part)
{
    FOR_GPU(one, device);
    if ((int)index >= VALUE((int)(one - gpus), 0))
        return NOT_FOUND;
    *part = one;
    return SUCCESS;
}

API int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *number, void *table)
{
    FOR_GPU(one, device);
    (void)table;
    *number = 0;
    return SUCCESS;
}
API int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *number, void *table)
{
    return nvmlDeviceGetComputeRunningProcesses_v3(device, number, table);
}

/* The health of a GeForce: it has neither ECC nor spare memory nor a word on recovery; it is idle, cool and at its default limit. */
#define UNUSED __attribute__((unused))
#define LACKS(name, ...) \
    API int name(void *device, __VA_ARGS__) \
    { \
        FOR_GPU(one, device); \
        return NOT_SUPPORTED; \
    }

LACKS(nvmlDeviceGetEccMode, UNUSED unsigned *now, UNUSED unsigned *next)
LACKS(nvmlDeviceGetTotalEccErrors, UNUSED unsigned kind, UNUSED unsigned counter, UNUSED unsigned long long *errors)
LACKS(nvmlDeviceGetSramEccErrorStatus, UNUSED void *status)
LACKS(nvmlDeviceGetRetiredPages, UNUSED unsigned cause, UNUSED unsigned *number, UNUSED unsigned long long *pages)
LACKS(nvmlDeviceGetRetiredPagesPendingStatus, UNUSED unsigned *pending)
LACKS(nvmlDeviceGetRemappedRows, UNUSED unsigned *corrected, UNUSED unsigned *uncorrected, UNUSED unsigned *pending, UNUSED unsigned *failure)
LACKS(nvmlDeviceGetFieldValues, UNUSED int number, UNUSED void *values)

API int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons)
{
    FOR_GPU(one, device);
    *reasons = 1; /* idle */
    return SUCCESS;
}

API int nvmlDeviceGetTemperature(void *device, unsigned sensor, unsigned *celsius)
{
    FOR_GPU(one, device);
    (void)sensor;
    *celsius = 36;
    return SUCCESS;
}

enum { MILLIWATTS = 250000 };

API int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts)
{
    FOR_GPU(one, device);
    *milliwatts = MILLIWATTS;
    return SUCCESS;
}
API int nvmlDeviceGetPowerManagementDefaultLimit(void *device, unsigned *milliwatts)
{
    return nvmlDeviceGetPowerManagementLimit(device, milliwatts);
}
API int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *least, unsigned *most)
{
    *least = MILLIWATTS / 2;
    return nvmlDeviceGetPowerManagementLimit(device, most);
}
API int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    FOR_GPU(one, device);
    *milliwatts = MILLIWATTS / 20;
    return SUCCESS;
}

API int nvmlDeviceGetBAR1MemoryInfo(void *device, struct memory *memory) { return nvmlDeviceGetMemoryInfo(device, memory); }
