# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What /proc shows: the loaded driver and the processes that hold GPUs."""

from __future__ import annotations

import os
import re
from typing import Any, Collection

from .accounts import user_name
from .host import ABSENT, KIB, Host, Unreadable

_VERSION = re.compile(r"^NVRM version:(.*?)\s(\d{2,4}\.\d+(?:\.\d+)?)\s", re.MULTILINE)
_OPEN_FILES = 200_000  # about half a second of looking
# How container engines name the control group of a container: docker, podman, containerd and CRI-O by its id, others by its name.
_CONTAINER = re.compile(
    r"(?:docker|libpod|cri-containerd|crio|containerd)?[-/]([0-9a-f]{64})(?:\.scope)?(?:/|$)"
    r"|/lxc(?:\.payload\.|/)([^/\n]+)|/machine\.slice/(?:systemd-nspawn@|machine-)([^/\n]+)\.(?:service|scope)",
    re.MULTILINE,
)
_SHORT_ID = 12  # as docker ps and podman ps show it
# Whole names, as the kernel keeps them: cut after 15 characters.
_DAEMONS = re.compile(r"nvidia-persiste|nvidia-powerd|nv-hostengine|nv-fabricmanage|nvidia-imex|dcgm-exporter")
_DESKTOP = re.compile(
    r"X|Xorg(\.bin)?|Xwayland|Xvnc|gnome-(shell|control-c|system-mo|remote-de|calculato|terminal-)"
    r"|kwin(_x11|_wayland)?|ksmserver|plasmashell|mutter(-x11-fram)?|sway|weston|Hyprland|cosmic-comp|cinnamon"
    r"|gdm(3|-x-session|-wayland-ses|-session-wor)?|sddm(-greeter(-qt6)?)?|lightdm(-gtk-greet)?"
    r"|firefox(-bin|-esr)?|Isolated Web Co|Web Content|chrome|google-chrome|chromium(-browse)?|brave(-browser)?|msedge|opera"
    r"|electron|slack|code|thunderbird(-bin)?|GPU Process|steam(webhelper)?"
)


def nvidia_version(text: str) -> tuple[str | None, str | None]:
    """Return (version, flavor) from the text of /proc/driver/nvidia/version."""
    match = _VERSION.search(text)
    if not match:
        return None, None
    return match.group(2), "open" if "Open Kernel Module" in match.group(1) else "proprietary"


def loaded_driver(host: Host) -> tuple[str | None, str | None]:
    """Return (version, flavor) of the loaded kernel module; in WSL2 it is Windows' own and not to be seen here."""
    version, flavor = nvidia_version(host.text("/proc/driver/nvidia/version", 64 * KIB) or "")
    return version or (host.text("/sys/module/nvidia/version", KIB) or "").strip() or None, flavor


def kind_of(command: str, devices: Collection[str]) -> str:
    """Return compute, graphics or daemon for a process that holds these /dev/nvidia* files.

    A desktop program that decodes video has nvidia-uvm open as well, hence names first. Whoever has neither nvidia-uvm
    nor nvidia-modeset open only watches (NVML).
    """
    if _DAEMONS.fullmatch(command):
        return "daemon"
    if _DESKTOP.fullmatch(command):
        return "graphics"
    if "/dev/nvidia-uvm" in devices or "/dev/dxg" in devices:
        return "compute"
    return "graphics" if "/dev/nvidia-modeset" in devices else "daemon"


def may_hold_gpu(host: Host, pid: int) -> bool:
    """Whether the process with this number can be the one that NVML means.

    It counts the processes of the machine: in a container another process can have the number, and that one holds no GPU.
    """
    try:
        devices, _files = _devices(host.at(f"/proc/{pid}/fd"))
    except OSError:  # somebody else's, and we are not root
        return True
    return bool(devices)


def gpu_processes(host: Host, compute_pids: Collection[int], leave_out: Collection[int]) -> list[dict[str, Any]]:
    """Return who holds a GPU, in one step."""
    return describe(host, holders(host, leave_out), compute_pids)


def holders(host: Host, leave_out: Collection[int]) -> dict[int, set[str]]:
    """Return the GPU devices that each process holds; raise Unreadable where other users' processes cannot be seen."""
    if host.uid != 0:
        raise Unreadable("only root sees which files other users' processes hold")
    held: dict[int, set[str]] = {}
    room = _OPEN_FILES
    for name in host.names("/proc"):
        if not name.isdecimal() or int(name) in leave_out:
            continue
        devices, files = _devices(host.at(f"/proc/{name}/fd"))
        if devices:
            held[int(name)] = devices
        room -= files
        if room < 0:
            raise Unreadable(f"there are more than {_OPEN_FILES} open files to look through")
    return held


def describe(host: Host, held: dict[int, set[str]], compute_pids: Collection[int]) -> list[dict[str, Any]]:
    """Return the holders by process id, and those that NVML names besides; it numbers processes of other containers its own way."""
    held = {**{pid: {"/dev/nvidia-uvm"} for pid in compute_pids if host.exists(f"/proc/{pid}")}, **held}
    ours = container_of(host, 1)  # this host may be a container itself
    found = []
    for pid, devices in sorted(held.items()):
        command = (host.text(f"/proc/{pid}/comm", KIB) or "").strip()
        state = host.lstat(f"/proc/{pid}")
        user = user_name(state.st_uid) if state else None
        container = container_of(host, pid)
        found.append(
            {
                "pid": pid,
                "command": command,
                "user": user,
                "kind": kind_of(command, devices),
                "container": None if container == ours else container,
            }
        )
    return found


def container_of(host: Host, pid: int) -> str | None:
    """Return the id (shortened) or name of the innermost container that a process runs in, by its control group."""
    found = None
    for identity, *names in _CONTAINER.findall(host.text(f"/proc/{pid}/cgroup", 64 * KIB) or ""):
        found = identity[:_SHORT_ID] or "".join(names)
    return found


def _devices(folder: str) -> tuple[set[str], int]:
    """The GPU devices among a process's open files, and how many it has open; called for every process, hence the plain calls."""
    devices = set()
    files = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                files += 1
                try:
                    target = os.readlink(entry.path)
                except OSError:
                    continue  # closed meanwhile
                if target.startswith(("/dev/nvidia", "/dev/dxg")):
                    devices.add(target.partition(" ")[0])
    except OSError as error:
        if error.errno not in ABSENT:
            raise
    return devices, files
