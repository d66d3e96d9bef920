# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What the next boot depends on: the initramfs and its block list, and a passphrase for the disk."""

from __future__ import annotations

import os
import re
from typing import Iterator, Sequence

from .host import KIB, MIB, Host

_IMAGES = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/initrd-{}")
_MODPROBE = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
_BLOCKED = re.compile(
    r"^\s*(?:blacklist\s+nouveau|install\s+nouveau\s+\S*/(?:false|true)|alias\s+nouveau\s+off)\b", re.MULTILINE
)
_BLOCKED_AT_BOOT = re.compile(r"(?:^|\s)(?:modprobe\.blacklist|rd\.driver\.blacklist|module_blacklist)=\S*\bnouveau\b")
# Unlock tools that need nobody: what they do is written in the disk's header, where we do not look.
_CLEVIS = (
    "/usr/share/initramfs-tools/hooks/clevis",
    "/usr/lib/dracut/modules.d/60clevis",
    "/usr/lib/dracut/modules.d/50clevis",
)
_GRUB_ASKS = re.compile(r"^\s*GRUB_ENABLE_CRYPTODISK=[\"']?y", re.MULTILINE)
_DEVICES = 64


def initramfs_tool(host: Host, manager: str | None) -> str | None:
    """Return the program that makes an initramfs here; Debian's family with dracut keeps the name update-initramfs."""
    tools = ["update-initramfs", "dracut"]
    for tool in tools if manager != "dnf" else reversed(tools):
        if any(host.exists(f"{folder}/{tool}") for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin")):
            return tool
    return None


def nouveau_in_initramfs(host: Host, releases: Sequence[str]) -> dict[str, bool | None]:
    """Return for each kernel whether its initramfs may still load nouveau.

    Looking inside would mean unpacking 50-150 MB per kernel with decompressors that Python does not have. What decides is the block
    list, which is copied into an initramfs when that is made: true where the image is older than the block list's arrival on this
    host (its inode's change time, for packages keep the modification times of their makers), false where it is newer or there is no
    image, null where no block list is there to compare with.
    """
    if _BLOCKED_AT_BOOT.search(host.text("/proc/cmdline", 64 * KIB) or ""):
        return dict.fromkeys(releases, False)
    since = min(_blocked_since(host), default=None)
    found: dict[str, bool | None] = {}
    for release in releases:
        images = [path.format(release) for path in _IMAGES if host.exists(path.format(release))]
        if not images:
            found[release] = False
        elif since is None:
            found[release] = None
        else:
            found[release] = os.stat(host.at(images[0])).st_mtime_ns < since
    return found


def _blocked_since(host: Host) -> Iterator[int]:
    """When each block list came to be on this host; of a link and its target, the later one."""
    for folder in _MODPROBE:
        for name in host.names(folder):
            path = f"{folder}/{name}"
            if (
                not name.endswith(".conf") or host.resolve(path) == "/dev/null"
            ):  # which is how a file of a package is masked
                continue
            if _BLOCKED.search(host.text(path, MIB) or ""):
                link = host.lstat(path)
                target = os.stat(host.at(path))
                yield max(target.st_ctime_ns, link.st_ctime_ns if link else 0)


def disk_passphrase(host: Host) -> bool | None:
    """Return whether a boot stops until somebody types a passphrase; null where a tool may unlock the disk on its own."""
    asks, keyed, scripted = set(), set(), set()
    for line in (host.text("/etc/crypttab") or "").splitlines():
        words = line.split()
        if len(words) < 2 or words[0].startswith("#"):
            continue
        options = words[3].split(",") if len(words) > 3 else []
        if any(option.startswith("keyscript=") for option in options):
            scripted.add(words[0])
        elif (len(words) > 2 and words[2] not in ("none", "-")) or any(
            word.startswith("tpm2-device=") for word in options
        ):
            keyed.add(words[0])
        elif not {"noauto", "nofail"} & set(options):
            asks.add(words[0])
    below = _root_is_on(host)
    if below and _GRUB_ASKS.search(host.text("/etc/default/grub") or ""):
        return True
    asks |= below - keyed - scripted
    automatic = bool(scripted) or any(host.exists(path) for path in _CLEVIS)
    return None if automatic and (asks or scripted) else bool(asks)


def _root_is_on(host: Host) -> set[str]:
    """The names of the encrypted devices below the root file system, through LVM and RAID."""
    todo = _root_devices(host)
    found: set[str] = set()
    seen: set[str] = set()
    while todo and len(seen) < _DEVICES:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            if re.match(r"CRYPT-(?!PLAIN)", _value(host, name, "dm/uuid")):
                found.add(_value(host, name, "dm/name"))
            todo += host.names(f"/sys/class/block/{name}/slaves")
    return found


def _root_devices(host: Host) -> list[str]:
    """The kernel's name of the block device that holds the root file system."""
    for line in (host.text("/proc/self/mountinfo") or "").splitlines():
        fields, _dash, rest = line.partition(" - ")
        words, source = fields.split(), rest.split()
        if len(words) < 5 or words[4] != "/":
            continue
        link = host.link(f"/sys/dev/block/{words[2]}")
        if link:
            return [os.path.basename(link)]
        if len(source) > 1 and source[1].startswith("/dev/"):  # btrfs has a device number that belongs to no device
            wanted = os.path.basename(source[1])
            mapped = (name for name in host.names("/sys/class/block") if name.startswith("dm-"))
            return [name for name in mapped if _value(host, name, "dm/name") == wanted] or [wanted]
    return []


def _value(host: Host, name: str, attribute: str) -> str:
    return (host.text(f"/sys/class/block/{name}/{attribute}", 4 * KIB) or "").strip()
