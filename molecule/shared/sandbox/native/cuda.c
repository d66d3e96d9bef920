/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stub of libcuda.so.1: it can say which simulated GPUs there are; it computes nothing and makes no context. */
#include "gpus.h"

#define API __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       NOT_SUPPORTED = 801, SYSTEM_DRIVER_MISMATCH = 803 };
enum { PCI_BUS = 33, PCI_DEVICE = 34, PCI_DOMAIN = 50, CC_MAJOR = 75, CC_MINOR = 76 };

static struct gpu gpus[MAX_GPUS];
static int count = -1;

API int cuInit(unsigned flags)
{
    enum driver driver = loaded_driver();

    (void)flags;
    if (driver == DRIVER_OTHER)
        return SYSTEM_DRIVER_MISMATCH;
    count = driver == DRIVER_ABSENT ? 0 : read_gpus(gpus);
    return count > 0 ? SUCCESS : NO_DEVICE;
}

API int cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return SUCCESS; }

API int cuDeviceGetCount(int *number)
{
    if (count < 0)
        return NOT_INITIALIZED;
    *number = count;
    return SUCCESS;
}

API int cuDeviceGet(int *device, int ordinal)
{
    if (ordinal < 0 || ordinal >= count)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API int cuDeviceGetName(char *name, int size, int device)
{
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    snprintf(name, (size_t)size, "%s", gpus[device].name);
    return SUCCESS;
}

API int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    *bytes = (size_t)gpus[device].memory_mib << 20;
    return SUCCESS;
}

API int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    switch (attribute) {
    case PCI_BUS: *value = (int)gpus[device].bus; return SUCCESS;
    case PCI_DEVICE: *value = (int)gpus[device].slot; return SUCCESS;
    case PCI_DOMAIN: *value = (int)gpus[device].domain; return SUCCESS;
    case CC_MAJOR: *value = gpus[device].major; return SUCCESS;
    case CC_MINOR: *value = gpus[device].minor; return SUCCESS;
    default: return INVALID_VALUE;
    }
}

API int cuDeviceGetUuid_v2(unsigned char *uuid, int device)
{
    const char *text;
    int at = 0;

    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    for (text = gpus[device].uuid + strlen("GPU-"); at < 16 && *text; text++) {
        unsigned octet;
        if (*text == '-')
            continue;
        if (sscanf(text, "%2x", &octet) != 1)
            return INVALID_VALUE;
        uuid[at++] = (unsigned char)octet;
        text++;
    }
    return SUCCESS;
}
API int cuDeviceGetUuid(unsigned char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

API int cuDeviceGetPCIBusId(char *text, int size, int device)
{
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    snprintf(text, (size_t)size, "%s", gpus[device].address);
    return SUCCESS;
}

API int cuGetErrorName(int code, const char **name)
{
    switch (code) {
    case SUCCESS: *name = "CUDA_SUCCESS"; return SUCCESS;
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return SUCCESS;
    case NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; return SUCCESS;
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return SUCCESS;
    case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; return SUCCESS;
    case NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; return SUCCESS;
    case SYSTEM_DRIVER_MISMATCH: *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; return SUCCESS;
    default: *name = NULL; return INVALID_VALUE;
    }
}
API int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

/* Whatever needs a context is not to be had here: nothing may mistake this for a working GPU. */
API int cuDevicePrimaryCtxRetain(void **context, int device) { (void)context; (void)device; return NOT_SUPPORTED; }
API int cuCtxCreate_v2(void **context, unsigned flags, int device) { (void)context; (void)flags; (void)device; return NOT_SUPPORTED; }
