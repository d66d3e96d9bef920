/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * What the proof's driver kernel is measured against: the same program for the GPU, on as many values, with the same calls of libcuda,
 * on all GPUs at once. It reports nothing but its status, and does not ask NVML who uses the GPUs.
 *
 *     cc -O2 -o driver_kernel bench/driver_kernel.c -ldl -lpthread        driver_kernel PTX-FILE VALUES */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCK = 32, MAX_GPUS = 64, MAX_PTX = 65536 };

static void *libcuda;
static char ptx[MAX_PTX];
static uint32_t count, *left, *right, *expected;

static uint32_t *words(void) { return calloc(count, sizeof(uint32_t)); }

static void *function_of(const char *name)
{
    void *function = dlsym(libcuda, name);

    if (!function) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return function;
}

#define CALL(name, types, ...) \
    do { \
        int code_ = ((int(*) types)function_of(#name))(__VA_ARGS__); \
        if (code_) { \
            fprintf(stderr, "%s: %d\n", #name, code_); \
            exit(1); \
        } \
    } while (0)

static void describe(int device)
{
    static const int ATTRIBUTES[] = {75, 76, 50, 33, 34};
    char name[256];
    unsigned char uuid[16];
    int value;

    for (unsigned at = 0; at < sizeof ATTRIBUTES / sizeof *ATTRIBUTES; at++)
        CALL(cuDeviceGetAttribute, (int *, int, int), &value, ATTRIBUTES[at], device);
    CALL(cuDeviceGetName, (char *, int, int), name, sizeof name, device);
    CALL(cuDeviceGetUuid_v2, (unsigned char *, int), uuid, device);
}

static void *prove(void *argument)
{
    int device, index = (int)(intptr_t)argument;
    void *context, *module, *kernel;
    uint64_t memory[3];
    size_t size = count * sizeof(uint32_t);
    uint32_t *out = words();
    void *parameters[] = {&memory[0], &memory[1], &memory[2], &count};

    CALL(cuDeviceGet, (int *, int), &device, index);
    CALL(cuCtxCreate_v2, (void **, unsigned, int), &context, 0, device);
    CALL(cuModuleLoadData, (void **, const char *), &module, ptx);
    CALL(cuModuleGetFunction, (void **, void *, const char *), &kernel, module, "blend");
    for (int at = 0; at < 3; at++)
        CALL(cuMemAlloc_v2, (uint64_t *, size_t), &memory[at], size);
    CALL(cuMemcpyHtoD_v2, (uint64_t, const void *, size_t), memory[0], left, size);
    CALL(cuMemcpyHtoD_v2, (uint64_t, const void *, size_t), memory[1], right, size);
    CALL(cuMemsetD32_v2, (uint64_t, unsigned, size_t), memory[2], 0xDEADBEEF, count);
    CALL(cuLaunchKernel,
         (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **), kernel,
         (count + BLOCK - 1) / BLOCK, 1, 1, BLOCK, 1, 1, 0, NULL, parameters, NULL);
    CALL(cuCtxSynchronize, (void), );
    CALL(cuMemcpyDtoH_v2, (void *, uint64_t, size_t), out, memory[2], size);
    for (uint32_t at = 0; at < count; at++)
        if (out[at] != expected[at]) {
            fprintf(stderr, "value %u is %u, expected %u\n", at, out[at], expected[at]);
            exit(1);
        }
    CALL(cuCtxDestroy_v2, (void *), context);
    free(out);
    return NULL;
}

int main(int argc, char **argv)
{
    FILE *file = argc == 3 ? fopen(argv[1], "r") : NULL;
    pthread_t threads[MAX_GPUS];
    int gpus, version, device;

    if (!file || !fread(ptx, 1, sizeof ptx - 1, file)) {
        fprintf(stderr, "name the file with the program for the GPU, and say how many values\n");
        return 2;
    }
    fclose(file);
    libcuda = dlopen("libcuda.so.1", RTLD_NOW);
    if (!libcuda) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    count = (uint32_t)atoi(argv[2]);
    left = words(), right = words(), expected = words();
    for (uint32_t at = 0; at < count; at++) {
        left[at] = at * 2654435761u + 12345;
        right[at] = at * 40503 + 977;
        expected[at] = left[at] * right[at] + at;
    }
    CALL(cuInit, (unsigned), 0);
    CALL(cuDriverGetVersion, (int *), &version);
    CALL(cuDeviceGetCount, (int *), &gpus);
    for (int index = 0; index < gpus && index < MAX_GPUS; index++) {
        CALL(cuDeviceGet, (int *, int), &device, index);
        describe(device);
    }
    for (int index = 0; index < gpus && index < MAX_GPUS; index++)
        pthread_create(&threads[index], NULL, prove, (void *)(intptr_t)index);
    for (int index = 0; index < gpus && index < MAX_GPUS; index++)
        pthread_join(threads[index], NULL);
    return gpus ? 0 : 1;
}
