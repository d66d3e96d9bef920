# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The driver in user space, its persistence daemon and what it needs a reboot for."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from .host import ABSENT, KIB, Host, Unreadable

_LIBCUDA = re.compile(r"libcuda\.so\.(\d{2,4}\.\d+(?:\.\d+)?)$")
# Where WSL2 and container platforms mount the driver without telling the loader's cache.
EXTRA_LIBRARY_FOLDERS = ("/usr/lib/wsl/lib", "/usr/local/nvidia/lib64")
_CONF_LIMIT = 64 * KIB
_UNIT = "nvidia-persistenced.service"
_UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_JOURNAL = "/var/lib/gpufleet/driver.json"
_DISPLAY = re.compile(r"/\.X11-unix/X\d+$|/run/user/\d+/wayland-\d+$", re.MULTILINE)


def userspace_version(host: Host) -> str | None:
    """Return the version of the libcuda that programs get, from its file name."""
    for folder in _library_folders(host):
        name = f"{folder}/libcuda.so.1"
        if host.lstat(name):
            match = _LIBCUDA.match(os.path.basename(host.resolve(name)))
            if match:
                return match.group(1)
    for folder in _library_folders(host):  # without libcuda.so.1 (ldconfig was interrupted) the file is still there
        versions = [match.group(1) for match in map(_LIBCUDA.match, host.names(folder)) if match]
        if versions:
            return max(versions, key=lambda version: [int(part) for part in version.split(".")])
    return None


def _library_folders(host: Host) -> list[str]:
    """Where the loader looks. Folders of cuda-compat are left out: they hold a second libcuda that is not the driver's."""
    triplet = f"{host.machine}-linux-gnu"
    folders = [f"/usr/lib/{triplet}", f"/usr/lib/{triplet}/nvidia/current", "/usr/lib64", "/usr/lib"]
    for name in host.names("/etc/ld.so.conf.d"):
        for line in (host.text(f"/etc/ld.so.conf.d/{name}", _CONF_LIMIT) or "").splitlines():
            folder = line.strip().rstrip("/")
            if folder.startswith("/") and "compat" not in folder and folder not in folders:
                folders.append(folder)
    return [*folders, *EXTRA_LIBRARY_FOLDERS]


def is_runfile(host: Host) -> bool:
    """Whether NVIDIA's .run installer put the driver here: it leaves its uninstaller."""
    return host.exists("/usr/bin/nvidia-uninstall")


def persistence(host: Host) -> dict[str, Any]:
    """Return the state of the persistence daemon's unit, read from where systemd keeps it."""
    # The first folder that has the unit decides; a link to /dev/null there masks it.
    units = [f"{folder}/{_UNIT}" for folder in _UNIT_FOLDERS if host.lstat(f"{folder}/{_UNIT}") is not None]
    present = bool(units) and host.link(units[0]) != "/dev/null" and host.exists(units[0])
    enabled = any(
        host.lstat(f"{folder}/{name}/{_UNIT}") is not None
        for folder in _UNIT_FOLDERS
        for name in host.names(folder)
        if name.endswith((".wants", ".requires"))
    ) or _started_by_udev(host)
    # systemd keeps this link exactly as long as the unit is active (unit_export_invocation_id in its source).
    active = host.lstat(f"/run/systemd/units/invocation:{_UNIT}") is not None
    return {"unit": _UNIT, "present": present, "enabled": present and enabled, "active": active}


def _started_by_udev(host: Host) -> bool:
    """Ubuntu's unit has no [Install] section: a udev rule starts it with the GPU."""
    return any(
        _UNIT in (host.text(f"{folder}/{name}") or "")
        for folder in ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
        for name in host.names(folder)
        if "nvidia" in name
    )


def graphical(host: Host) -> bool:
    """Whether the machine is a desktop: a display manager starts by default, or a display server runs now."""
    if host.exists("/etc/systemd/system/display-manager.service"):
        target = next(
            (link for link in (host.link(f"{folder}/default.target") for folder in _UNIT_FOLDERS) if link), "graphical"
        )
        if os.path.basename(target).startswith("graphical"):
            return True
    try:
        return bool(_DISPLAY.search(host.read("/proc/net/unix", 4 * KIB * KIB)))
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise


def reboot_asked_for(host: Host) -> bool:
    """Whether the package manager asked for a reboot because of a kernel or the driver (Debian, Ubuntu)."""
    asking = host.text("/run/reboot-required.pkgs") or ""
    return any(line.startswith(("linux-image", "linux-modules")) or "nvidia" in line for line in asking.splitlines())


def journal(host: Host) -> dict[str, Any] | None:
    """Return what the role noted at its last change of the driver."""
    text = host.text(_JOURNAL)
    if text is None:
        return None
    found = json.loads(text)
    if not isinstance(found, dict):
        raise Unreadable(f"{_JOURNAL} holds no JSON object")
    return found
