# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What NVML says of the driver and of every GPU. Runs in a child process only.

Function names and structures: nvml.h of the driver; the _v2 and _v3 variants named here exist since branch 470.
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable

from .._proof import failures
from .driver import EXTRA_LIBRARY_FOLDERS
from .host import MIB, Host, Unreadable

LIBRARIES = ("libnvidia-ml.so.1", *(f"{folder}/libnvidia-ml.so.1" for folder in EXTRA_LIBRARY_FOLDERS))

NOT_APPLICABLE = "not_applicable"
"""Stands for a value that a card, or the mode it is in, does not have: a GeForce has no retired pages."""

_INVALID_ARGUMENT, _NOT_SUPPORTED, _NOT_FOUND, _INSUFFICIENT_SIZE, _NO_FUNCTION = 2, 3, 6, 7, 13  # nvmlReturn_t
_LOST, _RESET_REQUIRED = 15, 16
_TEXT = 96
_WIDEST_LINK = 32
# GT/s of a PCI Express generation (PCI Express base specification)
_SPEED = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
_CORRECTED, _UNCORRECTED = 0, 1  # nvmlMemoryErrorType_t
_VOLATILE, _TOTAL = 0, 1  # nvmlEccCounterType_t: since the driver was loaded, in the card's life
_SINGLE_BIT, _DOUBLE_BIT = 0, 1  # nvmlPageRetirementCause_t
_SRAM_STATUS_1 = 0x1000068  # nvmlEccSramErrorStatus_v1: version 1 and the size of the structure
_RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, since branch 570
_RECOVERY_ACTIONS = (
    *("none", "gpu_reset", "node_reboot", "drain_p2p", "drain_and_reset", "recover_imex_domain", "bus_reset"),
    "system_reboot",
)
_COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
# nvmlClocksEventReasons, bit by bit
_CLOCK_REASONS = (
    *("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown"),
    *("hw_thermal_slowdown", "hw_power_brake_slowdown", "display_clock_setting", "board_limit", "reliability"),
)


class _Memory(ctypes.Structure):
    """nvmlMemory_t and nvmlBAR1Memory_t begin alike."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _SramStatus(ctypes.Structure):
    """nvmlEccSramErrorStatus_v1_t."""

    _fields_ = [
        ("version", ctypes.c_uint),
        ("counters", ctypes.c_ulonglong * 11),
        ("threshold_exceeded", ctypes.c_uint),
    ]


class _FieldValue(ctypes.Structure):
    """nvmlFieldValue_t."""

    _fields_ = [
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("kind", ctypes.c_uint),
        ("code", ctypes.c_uint),
        ("value", ctypes.c_ulonglong),
    ]


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
            raise NvmlError(_NO_FUNCTION, f"{name} is not in this driver's libnvidia-ml") from None
        code = function(*arguments)
        if code != 0:
            remedy = failures.remedy(f"nvml_{code}")
            raise NvmlError(code, f"{name} failed with {code} ({self._words(code)}): {remedy}")

    def _words(self, code: int) -> str:
        function = self._library.nvmlErrorString
        function.restype = ctypes.c_char_p
        return (function(code) or b"").decode("utf-8", "replace")

    def text(self, name: str, *before: Any) -> str:
        buffer = ctypes.create_string_buffer(_TEXT)
        self.call(name, *before, buffer, ctypes.c_uint(_TEXT))
        return buffer.value.decode("utf-8", "replace")

    def number(self, name: str, *before: Any, kind: Any = ctypes.c_uint) -> int:
        return self.numbers(name, 1, *before, kind=kind)[0]

    def numbers(self, name: str, count: int, *before: Any, kind: Any = ctypes.c_uint) -> list[int]:
        values = [kind() for _number in range(count)]
        self.call(name, *before, *map(ctypes.byref, values))
        return [value.value for value in values]

    def memory(self, name: str, device: Any) -> int:
        value = _Memory()
        self.call(name, device, ctypes.byref(value))
        return value.total // MIB

    def pages(self, device: Any, cause: int) -> int:
        """Return how many pages of memory are retired for a cause."""
        count = ctypes.c_uint(0)
        try:
            self.call("nvmlDeviceGetRetiredPages", device, ctypes.c_uint(cause), ctypes.byref(count), None)
        except NvmlError as error:
            if error.code != _INSUFFICIENT_SIZE:
                raise
        return count.value

    def field(self, device: Any, number: int) -> int:
        value = _FieldValue(field=number)
        try:
            self.call("nvmlDeviceGetFieldValues", device, ctypes.c_int(1), ctypes.byref(value))
            code = value.code
        except NvmlError as error:
            code = error.code
        if code == _INVALID_ARGUMENT:  # the driver is older than the field
            code = _NO_FUNCTION
        if code != 0:
            raise NvmlError(
                code, f"field {number} of nvmlDeviceGetFieldValues failed with {code} ({self._words(code)})"
            )
        return value.value & 0xFFFFFFFF

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


class _Questions:
    """Asks value by value: what is refused is a problem to report and costs nothing else; a lost GPU is asked no more."""

    def __init__(self, where: str, problems: list[list[str]]) -> None:
        self._where, self._problems = where, problems
        self.code = 0  # why no more is asked

    def ask(self, what: str, function: Callable[..., Any], *arguments: Any, absent: Any = None) -> Any:
        """Return the value; ``absent`` where the card has no such thing; None where it is not to be had."""
        if self.code:
            return None
        try:
            return function(*arguments)
        except NvmlError as error:
            if error.code == _NOT_SUPPORTED:
                return absent
            if error.code != _NO_FUNCTION:
                self._problems.append([f"{self._where}{what}", str(error)])
            if error.code in (_LOST, _RESET_REQUIRED):
                self.code = error.code
            return None

    def group(self, name: str, **functions: Callable[[], Any]) -> Any:
        """Return several values; one word for all of them where none is to be had, or the card has no such thing."""
        values = {key: self.ask(f"{name}.{key}", what, absent=NOT_APPLICABLE) for key, what in functions.items()}
        told = set(values.values())
        return told.pop() if told in ({None}, {NOT_APPLICABLE}) else values


def read(host: Host) -> dict[str, Any]:
    """Return {driver_version, cuda_version, gpus, lost, problems}; raise Unreadable when NVML cannot be used at all.

    ``lost`` counts the GPUs of which NVML says no more than that: not even where they are.
    """
    nvml = _Nvml(host.load_library(LIBRARIES))
    nvml.call("nvmlInit_v2")
    problems: list[list[str]] = []
    gpus, lost = [], 0
    for index in range(nvml.number("nvmlDeviceGetCount_v2")):
        try:
            gpus.append(_gpu(nvml, index, problems))
        except NvmlError as error:
            problems.append([f"gpus[nvml {index}]", str(error)])
            lost += error.code == _LOST
    questions = _Questions("", problems)
    return {
        "driver_version": questions.ask("driver version", nvml.text, "nvmlSystemGetDriverVersion"),
        "cuda_version": questions.ask("driver.cuda_api", _cuda_version, nvml),
        "gpus": gpus,
        "lost": lost,
        "problems": problems,
    }


def _gpu(nvml: _Nvml, index: int, problems: list[list[str]]) -> dict[str, Any]:
    device = ctypes.c_void_p()
    nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
    pci = _Pci()
    nvml.call("nvmlDeviceGetPciInfo_v3", device, ctypes.byref(pci))
    address = f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
    questions = _Questions(f"gpus[{address}].", problems)
    ask = questions.ask

    def capability() -> str:
        major, minor = nvml.numbers("nvmlDeviceGetCudaComputeCapability", 2, device, kind=ctypes.c_int)
        return f"{major}.{minor}"

    def width(name: str) -> int | None:
        value = nvml.number(name, device)
        return value if 0 < value <= _WIDEST_LINK else None

    def speed(name: str) -> float | None:
        return _SPEED.get(nvml.number(name, device))

    return {
        "pci_address": address,
        "pci_device_id": f"{pci.device_id >> 16:04x}",
        "subsystem_id": f"{pci.subsystem_id & 0xFFFF:04x}:{pci.subsystem_id >> 16:04x}",
        "name": ask("name", nvml.text, "nvmlDeviceGetName", device),
        "uuid": ask("uuid", nvml.text, "nvmlDeviceGetUUID", device),
        "compute_capability": ask("compute_capability", capability),
        "memory_mib": ask("memory_mib", nvml.memory, "nvmlDeviceGetMemoryInfo", device),
        "persistence_mode": ask("persistence_mode", lambda: bool(nvml.number("nvmlDeviceGetPersistenceMode", device))),
        "virtualization_mode": ask("virtual", nvml.number, "nvmlDeviceGetVirtualizationMode", device),
        "pcie": {
            "width": ask("pcie.width", width, "nvmlDeviceGetCurrPcieLinkWidth"),
            "max_width": ask("pcie.max_width", width, "nvmlDeviceGetMaxPcieLinkWidth"),
            "speed_gts": ask("pcie.speed_gts", speed, "nvmlDeviceGetCurrPcieLinkGeneration"),
            "max_speed_gts": ask("pcie.max_speed_gts", speed, "nvmlDeviceGetMaxPcieLinkGeneration"),
        },
        "compute_pids": ask("compute processes", nvml.compute_pids, device) or [],
        "health": _health(nvml, device, questions),
        "lost": questions.code == _LOST,
    }


def _health(nvml: _Nvml, device: Any, questions: _Questions) -> dict[str, Any]:
    """What the card says of its own state. Every value: the value, NOT_APPLICABLE, or None where it is not to be had."""

    def errors(kind: int, counter: int) -> Callable[[], int]:
        arguments = ("nvmlDeviceGetTotalEccErrors", device, ctypes.c_uint(kind), ctypes.c_uint(counter))
        return lambda: nvml.number(*arguments, kind=ctypes.c_ulonglong)

    def sram() -> bool:
        status = _SramStatus(version=_SRAM_STATUS_1)
        nvml.call("nvmlDeviceGetSramEccErrorStatus", device, ctypes.byref(status))
        return bool(status.threshold_exceeded)

    def remapped() -> dict[str, Any]:
        corrected, uncorrected, pending, failure = nvml.numbers("nvmlDeviceGetRemappedRows", 4, device)
        return {
            "corrected": corrected,
            "uncorrected": uncorrected,
            "pending": bool(pending),
            "failure": bool(failure),
        }

    def reasons() -> list[str]:
        bits = nvml.number("nvmlDeviceGetCurrentClocksEventReasons", device, kind=ctypes.c_ulonglong)
        return [_word(_CLOCK_REASONS, bit) for bit in range(64) if bits >> bit & 1]

    def watts(name: str) -> Callable[[], float]:
        return lambda: nvml.number(name, device) / 1000  # NVML counts in milliwatts

    def most_watts() -> float:
        return nvml.numbers("nvmlDeviceGetPowerManagementLimitConstraints", 2, device)[1] / 1000

    def one(what: str, function: Callable[[], Any]) -> Any:
        return questions.ask(f"health.{what}", function, absent=NOT_APPLICABLE)

    return {
        "ecc": questions.group(
            "health.ecc",
            enabled=lambda: bool(nvml.numbers("nvmlDeviceGetEccMode", 2, device)[0]),
            corrected_volatile=errors(_CORRECTED, _VOLATILE),
            uncorrected_volatile=errors(_UNCORRECTED, _VOLATILE),
            corrected_total=errors(_CORRECTED, _TOTAL),
            uncorrected_total=errors(_UNCORRECTED, _TOTAL),
            sram_threshold_exceeded=sram,
        ),
        "retired_pages": questions.group(
            "health.retired_pages",
            single_bit=lambda: nvml.pages(device, _SINGLE_BIT),
            double_bit=lambda: nvml.pages(device, _DOUBLE_BIT),
            pending=lambda: bool(nvml.number("nvmlDeviceGetRetiredPagesPendingStatus", device)),
        ),
        "remapped_rows": one("remapped_rows", remapped),
        "recovery_action": one(
            "recovery_action", lambda: _word(_RECOVERY_ACTIONS, nvml.field(device, _RECOVERY_ACTION))
        ),
        "throttle": one("throttle", reasons),
        "temperature_c": one(
            "temperature_c", lambda: nvml.number("nvmlDeviceGetTemperature", device, ctypes.c_uint(0))
        ),
        "power": questions.group(
            "health.power",
            limit_w=watts("nvmlDeviceGetPowerManagementLimit"),
            default_limit_w=watts("nvmlDeviceGetPowerManagementDefaultLimit"),
            max_limit_w=most_watts,
            draw_w=watts("nvmlDeviceGetPowerUsage"),
        ),
        "compute_mode": one(
            "compute_mode", lambda: _word(_COMPUTE_MODES, nvml.number("nvmlDeviceGetComputeMode", device))
        ),
        "bar1_mib": one("bar1_mib", lambda: nvml.memory("nvmlDeviceGetBAR1MemoryInfo", device)),
        "mig": one("mig", lambda: _mig(nvml, device, questions)),
    }


def _mig(nvml: _Nvml, device: Any, questions: _Questions) -> dict[str, Any]:
    """Return whether the card is split, whether it will be after its next reset, and what it is split into."""
    enabled, pending = map(bool, nvml.numbers("nvmlDeviceGetMigMode", 2, device))

    def instances() -> list[dict[str, Any]]:
        found = []
        for index in range(nvml.number("nvmlDeviceGetMaxMigDeviceCount", device)):
            part = ctypes.c_void_p()
            try:
                nvml.call("nvmlDeviceGetMigDeviceHandleByIndex", device, ctypes.c_uint(index), ctypes.byref(part))
            except NvmlError as error:
                if error.code != _NOT_FOUND:  # there may be fewer than there can be
                    raise
                continue
            found.append(
                {
                    "uuid": nvml.text("nvmlDeviceGetUUID", part),
                    "name": nvml.text("nvmlDeviceGetName", part),
                    "memory_mib": nvml.memory("nvmlDeviceGetMemoryInfo", part),
                }
            )
        return found

    found = questions.ask("health.mig.instances", instances) if enabled else []
    return {"enabled": enabled, "pending": pending, "instances": found}


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else f"unknown_{number}"


def _cuda_version(nvml: _Nvml) -> str:
    number = nvml.number("nvmlSystemGetCudaDriverVersion_v2")
    return f"{number // 1000}.{number % 1000 // 10}"
