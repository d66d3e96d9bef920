/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * A stub of libcuda.so.1: it can say which simulated GPUs there are; it computes nothing and makes no context. (With SCRIPTED it
 * does both on the CPU, so that tests can break it: tests/stubs/kernels.h.) */
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

    CALL(NO_GPU);
    (void)flags;
    if (driver == DRIVER_OTHER)
        return SYSTEM_DRIVER_MISMATCH;
    count = driver == DRIVER_ABSENT ? 0 : read_gpus(gpus);
    return count > 0 ? SUCCESS : NO_DEVICE;
}

API int cuDriverGetVersion(int *version)
{
    CALL(NO_GPU);
    *version = CUDA_VERSION;
    return SUCCESS;
}

API int cuDeviceGetCount(int *number)
{
    CALL(NO_GPU);
    if (count < 0)
        return NOT_INITIALIZED;
    *number = count;
    return SUCCESS;
}

API int cuDeviceGet(int *device, int ordinal)
{
    CALL(ordinal);
    if (ordinal < 0 || ordinal >= count)
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

API int cuDeviceGetName(char *name, int size, int device)
{
    CALL(device);
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    snprintf(name, (size_t)size, "%s", gpus[device].name);
    return SUCCESS;
}

API int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    CALL(device);
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    *bytes = (size_t)gpus[device].memory_mib << 20;
    return SUCCESS;
}

API int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    CALL(device);
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

    CALL(device);
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
    CALL(device);
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    snprintf(text, (size_t)size, "%s", gpus[device].address);
    return SUCCESS;
}

/* cuda.h of CUDA 12.8 */
static const struct { int code; const char *name; } ERRORS[] = {
    {0, "CUDA_SUCCESS"}, {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"},
    {3, "CUDA_ERROR_NOT_INITIALIZED"}, {34, "CUDA_ERROR_STUB_LIBRARY"}, {46, "CUDA_ERROR_DEVICE_UNAVAILABLE"},
    {100, "CUDA_ERROR_NO_DEVICE"}, {101, "CUDA_ERROR_INVALID_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {214, "CUDA_ERROR_ECC_UNCORRECTABLE"}, {218, "CUDA_ERROR_INVALID_PTX"},
    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE"}, {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {304, "CUDA_ERROR_OPERATING_SYSTEM"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {702, "CUDA_ERROR_LAUNCH_TIMEOUT"}, {710, "CUDA_ERROR_ASSERT"},
    {714, "CUDA_ERROR_HARDWARE_STACK_ERROR"}, {715, "CUDA_ERROR_ILLEGAL_INSTRUCTION"},
    {719, "CUDA_ERROR_LAUNCH_FAILED"}, {801, "CUDA_ERROR_NOT_SUPPORTED"}, {802, "CUDA_ERROR_SYSTEM_NOT_READY"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}, {804, "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE"},
    {999, "CUDA_ERROR_UNKNOWN"},
};

API int cuGetErrorName(int code, const char **name)
{
    for (size_t at = 0; at < sizeof ERRORS / sizeof *ERRORS; at++)
        if (ERRORS[at].code == code) {
            *name = ERRORS[at].name;
            return SUCCESS;
        }
    *name = NULL;
    return INVALID_VALUE;
}
API int cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

#ifdef SCRIPTED
#include "kernels.h"
#else
/* Whatever needs a context is not to be had here: nothing may mistake this for a working GPU. */
API int cuDevicePrimaryCtxRetain(void **context, int device) { (void)context; (void)device; return NOT_SUPPORTED; }
API int cuCtxCreate_v2(void **context, unsigned flags, int device) { (void)context; (void)flags; (void)device; return NOT_SUPPORTED; }
#endif
