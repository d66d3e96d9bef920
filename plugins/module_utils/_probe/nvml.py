# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What NVML says of the driver and of every GPU. Runs in a child process only.

Function names and structures: nvml.h of the driver; the _v2 and _v3 variants named here exist since branch 470.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable

from .driver import EXTRA_LIBRARY_FOLDERS
from .host import MIB, Host, Unreadable

LIBRARIES = ("libnvidia-ml.so.1", *(f"{folder}/libnvidia-ml.so.1" for folder in EXTRA_LIBRARY_FOLDERS))

_NOT_SUPPORTED = frozenset({3, 13})  # NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_FUNCTION_NOT_FOUND
_INSUFFICIENT_SIZE = 7
_TEXT = 96
_WIDEST_LINK = 32
# GT/s of a PCI Express generation (PCI Express base specification)
_SPEED = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Pci(ctypes.Structure):
    _fields_ = [
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    ]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class NvmlError(Unreadable):
    """NVML refused a call."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Nvml:
    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(13, f"{name} is not in this driver's libnvidia-ml") from None
        code = function(*arguments)
        if code != 0:
            raise NvmlError(code, f"{name} failed with {code} ({self._words(code)})")

    def _words(self, code: int) -> str:
        function = self._library.nvmlErrorString
        function.restype = ctypes.c_char_p
        return (function(code) or b"").decode("utf-8", "replace")

    def text(self, name: str, *before: Any) -> str:
        buffer = ctypes.create_string_buffer(_TEXT)
        self.call(name, *before, buffer, ctypes.c_uint(_TEXT))
        return buffer.value.decode("utf-8", "replace")

    def number(self, name: str, *before: Any) -> int:
        value = ctypes.c_uint()
        self.call(name, *before, ctypes.byref(value))
        return value.value

    def compute_pids(self, device: Any) -> list[int]:
        count = ctypes.c_uint(0)
        try:
            self.call("nvmlDeviceGetComputeRunningProcesses_v3", device, ctypes.byref(count), None)
        except NvmlError as error:
            if error.code != _INSUFFICIENT_SIZE:
                raise
        if not count.value:
            return []
        count = ctypes.c_uint(count.value + 16)  # some may start between the two calls
        table = (_Process * count.value)()
        self.call("nvmlDeviceGetComputeRunningProcesses_v3", device, ctypes.byref(count), table)
        return [entry.pid for entry in table[: count.value]]


def read(host: Host) -> dict[str, Any]:
    """Return {driver_version, cuda_version, gpus, problems}; raise Unreadable when NVML cannot be used at all."""
    nvml = _Nvml(host.load_library(LIBRARIES))
    nvml.call("nvmlInit_v2")
    problems: list[list[str]] = []
    gpus = []
    for index in range(nvml.number("nvmlDeviceGetCount_v2")):
        try:
            gpus.append(_gpu(nvml, index, problems))
        except NvmlError as error:
            problems.append([f"gpus[nvml {index}]", str(error)])
    return {
        "driver_version": _optional(lambda: nvml.text("nvmlSystemGetDriverVersion"), problems, "driver version"),
        "cuda_version": _optional(lambda: _cuda_version(nvml), problems, "driver.cuda_api"),
        "gpus": gpus,
        "problems": problems,
    }


def _gpu(nvml: _Nvml, index: int, problems: list[list[str]]) -> dict[str, Any]:
    device = ctypes.c_void_p()
    nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    pci = _Pci()
    nvml.call("nvmlDeviceGetPciInfo_v3", device, ctypes.byref(pci))
    address = f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"

    def ask(what: str, function: Callable[[], Any]) -> Any:
        return _optional(function, problems, f"gpus[{address}].{what}")

    def capability() -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        nvml.call("nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def memory() -> int:
        value = _Memory()
        nvml.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(value))
        return value.total // MIB

    def mig() -> bool:
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        nvml.call("nvmlDeviceGetMigMode", device, ctypes.byref(current), ctypes.byref(pending))
        return bool(current.value)

    def width(name: str) -> int | None:
        value = nvml.number(name, device)
        return value if 0 < value <= _WIDEST_LINK else None

    return {
        "pci_address": address,
        "pci_device_id": f"{pci.device_id >> 16:04x}",
        "subsystem_id": f"{pci.subsystem_id & 0xFFFF:04x}:{pci.subsystem_id >> 16:04x}",
        "name": ask("name", lambda: nvml.text("nvmlDeviceGetName", device)),
        "uuid": ask("uuid", lambda: nvml.text("nvmlDeviceGetUUID", device)),
        "compute_capability": ask("compute_capability", capability),
        "memory_mib": ask("memory_mib", memory),
        "persistence_mode": ask("persistence_mode", lambda: bool(nvml.number("nvmlDeviceGetPersistenceMode", device))),
        "mig": ask("mig", mig),
        "virtualization_mode": ask("virtual", lambda: nvml.number("nvmlDeviceGetVirtualizationMode", device)),
        "pcie": {
            "width": ask("pcie.width", lambda: width("nvmlDeviceGetCurrPcieLinkWidth")),
            "max_width": ask("pcie.max_width", lambda: width("nvmlDeviceGetMaxPcieLinkWidth")),
            "speed_gts": ask(
                "pcie.speed_gts", lambda: _SPEED.get(nvml.number("nvmlDeviceGetCurrPcieLinkGeneration", device))
            ),
            "max_speed_gts": ask(
                "pcie.max_speed_gts", lambda: _SPEED.get(nvml.number("nvmlDeviceGetMaxPcieLinkGeneration", device))
            ),
        },
        "compute_pids": ask("compute processes", lambda: nvml.compute_pids(device)) or [],
    }


def _cuda_version(nvml: _Nvml) -> str:
    number = nvml.number("nvmlSystemGetCudaDriverVersion_v2")
    return f"{number // 1000}.{number % 1000 // 10}"


def _optional(function: Callable[[], Any], problems: list[list[str]], what: str) -> Any:
    """Return the value, or None where this GPU or driver has no such thing; anything else is a problem to report."""
    try:
        return function()
    except NvmlError as error:
        if error.code not in _NOT_SUPPORTED:
            problems.append([what, str(error)])
        return None
