/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Faults for the simulated driver's libraries. A library looks for two files in the folder from which it was loaded: `gpus`, the
 * table of gpus.h, and `faults` (none: no faults), of lines
 *
 *     FUNCTION GPU FROM ACTION NUMBER
 *
 * FUNCTION is a pattern of fnmatch(3); GPU a number, or * for any (also none); FROM the call from which on the line acts, 1 for the
 * first that the other two match. ACTION and NUMBER: `return CODE`, `delay MILLISECONDS` (and go on), `signal NUMBER` (to itself:
 * 11 crashes, 19 stops), `hang 0` (for ever; no signal but SIGKILL ends it), `wrong WORDS` (so many words of the kernel's result),
 * `value NUMBER` (of a function of NVML that tells one). */
#ifndef GPUFLEET_FAULTS_H
#define GPUFLEET_FAULTS_H

#include <dlfcn.h>
#include <fnmatch.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TABLE beside("gpus")
#define VALUE(gpu, usual) scripted_value(__func__, gpu, usual)
#define CALL(gpu) \
    do { \
        int code_ = fault(__func__, gpu); \
        if (code_) \
            return code_; \
    } while (0)

struct fault {
    char function[64], gpu[8], action[8];
    int from, number;
    atomic_int seen;
};
static struct fault faults[64];

/* A file in the library's own folder. */
static const char *beside(const char *name)
{
    static _Thread_local char path[PATH_MAX];
    Dl_info self;

    if (!dladdr((void *)faults, &self))
        abort();
    snprintf(path, sizeof path - strlen(name), "%s", self.dli_fname);
    strcpy(strrchr(path, '/') + 1, name);
    return path;
}

__attribute__((constructor)) static void read_faults(void)
{
    FILE *file = fopen(beside("faults"), "re");
    struct fault *one = faults;

    while (file && one < faults + 63
           && fscanf(file, "%63s %7s %d %7s %d", one->function, one->gpu, &one->from, one->action, &one->number) == 5)
        one++;
    if (file && !feof(file)) {
        fprintf(stderr, "line %d of %s is no fault\n", (int)(one - faults) + 1, beside("faults"));
        abort();
    }
    if (file)
        fclose(file);
}

static void hang(void)
{
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_IGN); /* those that cannot be ignored stay as they are */
    for (;;)
        pause();
}

static bool concerns(struct fault *one, const char *function, int gpu)
{
    char text[16];

    snprintf(text, sizeof text, "%d", gpu);
    return fnmatch(one->function, function, 0) == 0 && (strcmp(one->gpu, "*") == 0 || strcmp(one->gpu, text) == 0);
}

/* Do what the lines say of this call; the code that it shall return, 0 where it shall do its work. */
static int fault(const char *function, int gpu)
{
    for (struct fault *one = faults; one->function[0]; one++) {
        if (!concerns(one, function, gpu) || ++one->seen < one->from)
            continue;
        if (strcmp(one->action, "return") == 0)
            return one->number;
        if (strcmp(one->action, "delay") == 0)
            usleep((useconds_t)one->number * 1000);
        else if (strcmp(one->action, "signal") == 0)
            raise(one->number);
        else if (strcmp(one->action, "hang") == 0)
            hang();
    }
    return 0;
}

/* The number that the lines give a function to tell. */
static inline int scripted_value(const char *function, int gpu, int usual)
{
    for (struct fault *one = faults; one->function[0]; one++)
        if (strcmp(one->action, "value") == 0 && concerns(one, function, gpu))
            return one->number;
    return usual;
}

#endif
