/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the simulated libcuda lacks for the proof's own kernel: contexts, memory (the host's) and `blend`, computed on the CPU.
 * Part of cuda.c; for tests only. */
#include <stdint.h>

static _Thread_local int current = NO_GPU; /* the GPU of this thread's context */

API int cuCtxCreate_v2(void **context, unsigned flags, int device)
{
    CALL(device);
    (void)flags;
    if (device < 0 || device >= count)
        return INVALID_DEVICE;
    current = device;
    *context = &gpus[device];
    return SUCCESS;
}

API int cuCtxDestroy_v2(void *context)
{
    CALL(current);
    return context == &gpus[current] ? SUCCESS : INVALID_VALUE;
}

API int cuModuleLoadData(void **module, const char *image)
{
    CALL(current);
    *module = strstr(image, ".entry blend(") ? &gpus[current] : NULL;
    return *module ? SUCCESS : INVALID_VALUE;
}

API int cuModuleGetFunction(void **function, void *module, const char *name)
{
    CALL(current);
    *function = module;
    return strcmp(name, "blend") == 0 ? SUCCESS : INVALID_VALUE;
}

API int cuMemAlloc_v2(uint64_t *address, size_t size)
{
    CALL(current);
    *address = (uint64_t)(uintptr_t)malloc(size);
    return SUCCESS;
}

API int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size)
{
    CALL(current);
    memcpy((void *)(uintptr_t)to, from, size);
    return SUCCESS;
}

API int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size)
{
    CALL(current);
    memcpy(to, (void *)(uintptr_t)from, size);
    return SUCCESS;
}

API int cuMemsetD32_v2(uint64_t to, unsigned value, size_t words)
{
    CALL(current);
    for (size_t at = 0; at < words; at++)
        ((uint32_t *)(uintptr_t)to)[at] = value;
    return SUCCESS;
}

API int cuLaunchKernel(void *function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                       unsigned threads_z, unsigned shared, void *stream, void **parameters, void **extra)
{
    CALL(current);
    const uint32_t *left = *(uint32_t **)parameters[0], *right = *(uint32_t **)parameters[1];
    uint32_t *out = *(uint32_t **)parameters[2], words = *(uint32_t *)parameters[3];

    if (!function || (y & z & threads_y & threads_z) != 1 || shared || stream || extra)
        return INVALID_VALUE;
    for (uint32_t at = 0; at < words && at < blocks * threads; at++)
        out[at] = left[at] * right[at] + at;
    for (struct fault *one = faults; one->function[0]; one++)
        if (strcmp(one->action, "wrong") == 0 && concerns(one, __func__, current))
            for (uint32_t at = 0; at < (uint32_t)one->number && at < words; at++)
                out[words - 1 - at] ^= 1;
    return SUCCESS;
}

API int cuCtxSynchronize(void)
{
    CALL(current);
    return SUCCESS;
}
