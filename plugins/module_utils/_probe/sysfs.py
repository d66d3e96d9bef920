# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What /sys shows: PCI GPUs, loaded modules, the kind of machine."""

from __future__ import annotations

import os
import re
from typing import Any

from .host import Host, Unreadable

_PCI = "/sys/bus/pci/devices"
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])$")
_WIDEST_LINK = 32

# DMI vendor and product of the hypervisors, as systemd-detect-virt knows them.
_HYPERVISORS = (
    ("QEMU", "kvm"),
    ("KVM", "kvm"),
    ("OpenStack", "kvm"),
    ("Amazon EC2", "amazon"),
    ("Google", "google"),
    ("VMware", "vmware"),
    ("innotek GmbH", "oracle"),
    ("VirtualBox", "oracle"),
    ("Xen", "xen"),
    ("Bochs", "bochs"),
    ("Parallels", "parallels"),
    ("Microsoft Corporation", "microsoft"),
)


def pci_address(text: str) -> str | None:
    """Return a PCI address in the spelling of sysfs (0000:01:00.0), or None when it is none."""
    match = _ADDRESS.match(text.strip().lower())
    if not match:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):04x}:{bus}:{device}.{function}"


def pci_gpus(host: Host, unknown: list[dict[str, str]]) -> list[dict[str, Any]] | None:
    """Return NVIDIA's display and 3D controllers, by address, or None where the kernel shows no PCI bus.

    Virtual functions are left out: they are the hypervisor's to give away.
    """
    if not host.is_dir(_PCI):
        return None
    gpus = []
    for name in host.names(_PCI):
        address = pci_address(name)
        if address is None:
            continue
        folder = f"{_PCI}/{name}"
        try:
            if host.read(f"{folder}/vendor", 64).strip() != _NVIDIA:
                continue
            if not host.read(f"{folder}/class", 64).startswith(_DISPLAY):
                continue
            device = _hexadecimal(host.read(f"{folder}/device", 64))
        except (OSError, Unreadable, ValueError) as error:
            unknown.append({"what": f"gpus[{address}]", "why": f"{folder}: {error}"})
            continue
        if host.lstat(f"{folder}/physfn"):
            continue
        driver = host.link(f"{folder}/driver")
        gpus.append(
            {
                "pci_address": address,
                "pci_device_id": device,
                "subsystem_id": _subsystem(host, folder),
                "kernel_driver": os.path.basename(driver) if driver else None,
                "answers": _answers(host, folder),
                "pcie": {
                    "width": _width(_value(host, f"{folder}/current_link_width")),
                    "max_width": _width(_value(host, f"{folder}/max_link_width")),
                    "speed_gts": _speed(_value(host, f"{folder}/current_link_speed")),
                    "max_speed_gts": _speed(_value(host, f"{folder}/max_link_speed")),
                },
            }
        )
    return gpus


def module_loaded(host: Host, name: str) -> bool:
    """Whether a kernel module is loaded (built-in ones have no initstate)."""
    folder = f"/sys/module/{name}"
    return host.exists(f"{folder}/initstate") or host.exists(f"{folder}/refcnt") or host.exists(f"{folder}/version")


def virtualization(host: Host) -> str | None:
    """Return wsl, container, the hypervisor's name, or None on bare metal."""
    release = (host.text("/proc/sys/kernel/osrelease", 4096) or host.release).lower()
    if "microsoft" in release or host.exists("/proc/sys/fs/binfmt_misc/WSLInterop"):
        return "wsl"
    if _in_container(host):
        return "container"
    vendor = " ".join(_value(host, f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name"))
    flags = _processor(host)
    if "hypervisor" in flags or not flags:
        for text, name in _HYPERVISORS:
            if text in vendor:
                return name
    if "hypervisor" in flags:
        return "vm"
    if (host.text("/sys/hypervisor/type", 64) or "").strip() == "xen":
        return "xen"
    return None


def _in_container(host: Host) -> bool:
    if any(host.exists(path) for path in ("/run/systemd/container", "/.dockerenv", "/run/.containerenv")):
        return True
    if any(host.exists(path) for path in ("/run/host/container-manager", "/run/secrets/kubernetes.io")):
        return True
    if re.search(
        r"(?:^|\0)container=[^\0]", _value(host, "/proc/1/environ")
    ):  # LXC without systemd; only root may read it
        return True
    groups = host.text("/proc/1/cgroup", 65536) or ""
    return any(word in groups for word in ("docker", "kubepods", "/lxc/", "libpod", "machine.slice/machine-"))


def _processor(host: Host) -> list[str]:
    """The first processor's feature words; the file is made up processor by processor, so only its start is read."""
    try:
        start = host.head("/proc/cpuinfo", 8192)
    except (OSError, Unreadable):
        return []
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", start, re.MULTILINE)
    return match.group(1).split() if match else []


def _value(host: Host, path: str) -> str:
    """An attribute that a device may not have."""
    try:
        return host.read(path, 4096).strip()
    except (OSError, Unreadable):
        return ""


def _answers(host: Host, folder: str) -> bool:
    """Whether the device is still there: /sys goes on showing what it was, but its configuration space then reads as all ones.

    One that sleeps, as in a laptop with two, is left to sleep: reading would wake it, or read as all ones though nothing is wrong.
    """
    if (
        _value(host, f"{folder}/power/runtime_status") == "suspended"
        or _value(host, f"{folder}/power_state") == "D3cold"
    ):
        return True
    try:
        with host.open(f"{folder}/config") as file:
            return file.read(2) != b"\xff\xff"
    except (OSError, Unreadable):
        return True


def _hexadecimal(text: str) -> str:
    return f"{int(text.strip(), 16):04x}"


def _subsystem(host: Host, folder: str) -> str | None:
    try:
        vendor = _hexadecimal(_value(host, f"{folder}/subsystem_vendor"))
        return f"{vendor}:{_hexadecimal(_value(host, f'{folder}/subsystem_device'))}"
    except ValueError:
        return None


def _width(text: str) -> int | None:
    """Lanes; the kernel says 0, 63 or 255 where it does not know."""
    return int(text) if text.isdecimal() and 0 < int(text) <= _WIDEST_LINK else None


def _speed(text: str) -> float | None:
    match = re.match(r"(\d+(?:\.\d+)?) GT/s", text)
    return float(match.group(1)) if match else None
