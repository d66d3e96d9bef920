/* Copyright: the gpufleet.workstation maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Preloaded into every program of a host that has a simulated kernel: uname(2) tells the release that the simulator booted. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

__attribute__((visibility("default"))) int uname(struct utsname *name)
{
    char release[sizeof name->release] = "";
    long status = syscall(SYS_uname, name);
    int file = status == 0 ? open("/var/lib/gpufleet-sandbox/osrelease", O_RDONLY | O_CLOEXEC) : -1;

    if (file >= 0) {
        ssize_t size = read(file, release, sizeof release - 1);

        close(file);
        release[strcspn(release, "\n")] = '\0';
        if (size > 1)
            memcpy(name->release, release, sizeof release);
    }
    return (int)status;
}
