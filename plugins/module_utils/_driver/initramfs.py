# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. Rebuild initial RAM file systems, so that they do not load nouveau before the driver can.

An image is replaced only by a complete new one: update-initramfs does that by itself, dracut writes into the place where the old
image is, so it is given another place and the result is renamed.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t

from ansible_collections.gpufleet.workstation.plugins.module_utils._probe import kernels
from ansible_collections.gpufleet.workstation.plugins.module_utils._probe.host import Host

from .commands import NOT_THERE, Done, Run
from .model import DriverError

_UPDATE = "/usr/sbin/update-initramfs"
_DRACUT = "/usr/bin/dracut"
_FOLDERS = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d")
_LIST_LIMIT = 120.0
_NOUVEAU = re.compile(r"/nouveau\.ko(?:\.(?:xz|zst|gz))?$", re.MULTILINE)
_NVIDIA = re.compile(r"/nvidia(?:-\w+)*\.ko(?:\.(?:xz|zst|gz))?$", re.MULTILINE)
_SETTINGS = re.compile(r"(?:^|\s)((?:etc|usr/lib|lib|run)/modprobe\.d/\S+\.conf)$", re.MULTILINE)
_BLOCKED = re.compile(r"^\s*(?:blacklist\s+nouveau|install\s+nouveau\s+/(?:usr/)?bin/(?:true|false))\s*$", re.MULTILINE)


def rebuild(host: Host, run: Run, releases: t.Sequence[str], time_limit: float) -> list[str]:
    """Rebuild the images of these kernels and return their paths; none where the host has no program for it.

    ``time_limit`` counts for each image. Raises DriverError when one fails, or would still load nouveau although the host blocks it.
    """
    rebuilt = []
    for release in releases:
        image = image_of(host, release)
        if host.exists(_UPDATE):
            verb = "-u" if host.exists(image) else "-c"
            done = run(["update-initramfs", verb, "-k", release], time_limit)
        elif host.exists(_DRACUT):
            new = f"{host.root}{os.path.dirname(image)}/.{os.path.basename(image)}.gpufleet"
            try:
                done = run(["dracut", "--force", new, release], time_limit)
                if done.status == 0:
                    os.replace(new, host.root + image)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
        else:
            return []
        if done.status != 0:
            raise DriverError(_failure(host, image, done))
        if _blocked(host) and loads_nouveau(host, run, release):
            raise DriverError(
                f"{image} was rebuilt, but would still load nouveau before NVIDIA's driver: it holds nouveau and not the line"
                " of /etc/modprobe.d that blocks it. See what keeps it out (/etc/initramfs-tools, /etc/dracut.conf.d), then run again."
            )
        rebuilt.append(image)
    return rebuilt


def image_of(host: Host, release: str) -> str:
    """Return the path of a kernel's image. Debian's family names it so whatever makes it, also dracut (Ubuntu since 25.10)."""
    debian, other = f"/boot/initrd.img-{release}", f"/boot/initramfs-{release}.img"
    if host.exists(debian) or host.exists(other):
        return debian if host.exists(debian) else other
    return debian if host.exists(_UPDATE) or host.exists("/etc/debian_version") else other


def _failure(host: Host, image: str, done: Done) -> str:
    left = (
        "The old image is still there."
        if host.exists(image)
        else "There is no image for this kernel now: do not reboot into it."
    )
    if "No space left on device" in done.output:
        why = "/boot is full"
        remedy = "Remove kernels that are not needed (apt autoremove, dnf remove --oldinstallonly), then run again."
    else:
        why = "it was not done in time" if done.timed_out else done.last_words
        remedy = "Mend the cause, then run again."
    return f"{image} could not be rebuilt: {why}. {left} {remedy}"


def _blocked(host: Host) -> bool:
    """Whether the host's own configuration keeps nouveau from being loaded; after a removal it does not."""
    files = [f"{folder}/{name}" for folder in _FOLDERS for name in host.names(folder) if name.endswith(".conf")]
    return any(_BLOCKED.search(host.text(path) or "") for path in files)


def loads_nouveau(host: Host, run: Run, release: str) -> bool | None:
    """Whether a kernel's image holds nouveau and nothing that keeps it from being loaded; None where that cannot be told."""
    listing = _listing(host, run, release)
    return None if listing is None else _would_load(host, listing)


def holds_older_driver(host: Host, run: Run, release: str) -> bool:
    """Whether a kernel's image holds NVIDIA's modules and was made before the module that the kernel has on disk now."""
    module, image = kernels.module_path(host, release), image_of(host, release)
    if module is None or not host.exists(image):
        return False
    # The change time: a package's files keep the modification times of their maker.
    if os.stat(host.at(image)).st_mtime_ns >= os.stat(host.at(module)).st_ctime_ns:
        return False
    return bool(_NVIDIA.search(_listing(host, run, release) or ""))


def _listing(host: Host, run: Run, release: str) -> str | None:
    """The files in a kernel's image; None where that cannot be told."""
    image = image_of(host, release)
    if not host.exists(image):
        return None
    for program in ("lsinitramfs", "lsinitrd"):
        done = run([program, host.root + image], _LIST_LIMIT)
        if done.status != NOT_THERE:
            return None if done.status != 0 else done.output
    return None


def _would_load(host: Host, listing: str) -> bool:
    """Judge a list of an image's files. What its modprobe.d files say is read on the host, from which they were just copied."""
    if not _NOUVEAU.search(listing):
        return False
    return not any(_BLOCKED.search(host.text(f"/{path}") or "") for path in _SETTINGS.findall(listing))
