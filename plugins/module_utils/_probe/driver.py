# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. The driver in user space, its device nodes and daemon, and what the role keeps of and for it."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Sequence

from .host import ABSENT, KIB, Host, Unreadable, reason

_LIBCUDA = re.compile(r"libcuda\.so\.(\d{2,4}\.\d+(?:\.\d+)?)$")
# Where WSL2 and container platforms mount the driver without telling the loader's cache.
EXTRA_LIBRARY_FOLDERS = ("/usr/lib/wsl/lib", "/usr/local/nvidia/lib64")
_CONF_LIMIT = 64 * KIB
_UNIT = "nvidia-persistenced.service"
_UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
JOURNAL = "/var/lib/gpufleet/driver.json"
_STAGED = "/var/lib/gpufleet/staged/transaction.json"
_GENERATIONS = "/var/lib/gpufleet/generations"
_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
_MINOR = re.compile(r"^Device Minor:\s*(\d+)", re.MULTILINE)
_GIVEN_AWAY = ("vfio-pci", "pci-stub", "pciback", "xen-pciback")
_NVML_VGPU = (2, 3)  # nvmlGpuVirtualizationMode_t: VGPU (seen from the guest), HOST_VGPU
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
    return json_object(host, JOURNAL)


def staged(host: Host) -> dict[str, Any] | None:
    """Return what is downloaded and tried for the next change, or None where nothing is."""
    found = json_object(host, _STAGED)
    return found and {key: found.get(key) for key in ("branch", "flavor", "version", "packages")}


def generations(host: Host, unknown: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the drivers that one can go back to, the oldest first; those whose files are not all there are left out."""
    found = []
    for number in sorted(int(name) for name in host.names(_GENERATIONS) if name.isascii() and name.isdecimal()):
        folder = f"{_GENERATIONS}/{number}"
        try:
            document = json_object(host, f"{folder}/generation.json")
            if document is None:
                continue
            kept, files = document["driver"], [item["file"] for item in document["packages"]]
            missing = [name for name in files if not host.exists(f"{folder}/packages/{os.path.basename(name)}")]
            if missing:
                raise Unreadable(f"{folder}/packages lacks {', '.join(missing[:3])}")
            found.append(
                {
                    "n": number,
                    **{key: kept.get(key) for key in ("branch", "version", "flavor")},
                    "created": document["created"],
                    "environments": document.get("environments") or {},
                }
            )
        except Exception as error:  # a damaged generation is none, and hides no other
            unknown.append({"what": f"driver.generations[{number}]", "why": reason(error)})
    return found


def device_nodes(host: Host, gpus: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Return whether each device node is there that programs need: the common ones, and one for each GPU that the driver serves."""
    paths = list(_NODES)
    for gpu in gpus:
        text = host.text(f"/proc/driver/nvidia/gpus/{gpu['pci_address']}/information", 64 * KIB)
        minor = _MINOR.search(text or "")
        if minor:
            paths.append(f"/dev/nvidia{minor.group(1)}")
    return {path: host.exists(path) for path in paths}


def virtual(host: Host, gpu: dict[str, Any], mode: int | None, guest: bool) -> str | None:
    """Return "passthrough" for a GPU that this host gives to a guest, "vgpu" where GPUs are shared out, else None.

    ``mode`` is NVML's virtualization mode. A guest that has a whole GPU needs nothing special, and is None.
    """
    if gpu["kernel_driver"] in _GIVEN_AWAY:
        return "passthrough"
    if mode in _NVML_VGPU or host.exists(f"/sys/bus/pci/devices/{gpu['pci_address']}/mdev_supported_types"):
        return "vgpu"
    # Only the guest driver of NVIDIA's vGPU software has the licensing daemon.
    return "vgpu" if mode is None and guest and host.exists("/usr/bin/nvidia-gridd") else None


def json_object(host: Host, path: str) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no such file."""
    text = host.text(path)
    if text is None:
        return None
    found = json.loads(text)
    if not isinstance(found, dict):
        raise Unreadable(f"{path} holds no JSON object")
    return found
