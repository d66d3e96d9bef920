# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to gpufleet.workstation: what NVML says of the GPUs while others load them.

The runner sends this file's source to a Python without site-packages, as an unprivileged user. Arguments: the request
(unused), the descriptor for records (JSON, one a line), the descriptor that becomes readable when the load is over. It
only reads. What a card or driver cannot tell is left out. Standard library only, Python 3.9.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import sys
from typing import Any

INTERVAL = 0.25  # seconds between two looks
XID_EVENT = 8  # nvmlEventTypeXidCriticalError
UNCORRECTED, VOLATILE = 1, 0
# nvmlClocksEventReasons of nvml.h; idle clocks and clocks that somebody asked for are no throttling.
REASONS = {
    0x04: "sw_power_cap",
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}


class Pci(ctypes.Structure):
    _fields_ = [
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    ]


class Event(ctypes.Structure):
    _fields_ = [
        ("device", ctypes.c_void_p),
        ("kind", ctypes.c_ulonglong),
        ("data", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


class Gpu:
    """One GPU: the extremes of what was seen, and the errors since the first look."""

    def __init__(self, nvml: Any, handle: ctypes.c_void_p, address: str) -> None:
        self._nvml, self.handle, self.address = nvml, handle, address
        self.seen: dict[str, Any] = {"throttled": []}
        self._uncorrected = self._errors()

    def _number(self, name: str, *before: Any, kind: Any = ctypes.c_uint) -> int | None:
        value = kind()
        function = getattr(self._nvml, name, None)
        if function is None or function(self.handle, *before, ctypes.byref(value)):
            return None
        return int(value.value)

    def _errors(self) -> int | None:
        return self._number("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE, kind=ctypes.c_ulonglong)

    def look(self) -> None:
        temperature = self._number("nvmlDeviceGetTemperature", 0)
        if temperature is not None:
            self.seen["temperature_c"] = max(temperature, self.seen.get("temperature_c", 0))
        milliwatts = self._number("nvmlDeviceGetPowerUsage")
        if milliwatts is not None:
            self.seen["power_w"] = max(round(milliwatts / 1000), self.seen.get("power_w", 0))
        # An idle link runs slower than it can: the fastest one that was seen is the one under load.
        link = [self._number(f"nvmlDeviceGetCurrPcieLink{what}") for what in ("Generation", "Width")]
        if None not in link:
            self.seen["link"] = max(link, self.seen.get("link", [0, 0]))
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", kind=ctypes.c_ulonglong) or 0
        for bit, name in REASONS.items():
            if bits & bit and name not in self.seen["throttled"]:
                self.seen["throttled"].append(name)

    def told(self) -> dict[str, Any]:
        now = self._errors()
        if now is not None and self._uncorrected is not None:
            self.seen["uncorrected_ecc_errors"] = now - self._uncorrected
        return self.seen


def find(nvml: Any) -> list[Gpu]:
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    gpus = []
    for index in range(count.value):
        handle, pci = ctypes.c_void_p(), Pci()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
            continue
        if nvml.nvmlDeviceGetPciInfo_v3(handle, ctypes.byref(pci)) == 0:
            gpus.append(Gpu(nvml, handle, f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"))
    return gpus


def main(arguments: list[str]) -> None:
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    if nvml.nvmlInit_v2():
        raise OSError("NVML does not start")
    gpus = find(nvml)
    events = ctypes.c_void_p()
    told = nvml.nvmlEventSetCreate(ctypes.byref(events)) == 0
    for gpu in gpus if told else ():
        if nvml.nvmlDeviceRegisterEvents(gpu.handle, ctypes.c_ulonglong(XID_EVENT), events) == 0:
            gpu.seen["xid"] = []
    over = False
    while not over:
        over = bool(select.select([int(arguments[2])], [], [], INTERVAL)[0])
        for gpu in gpus:
            gpu.look()
        event = Event()
        while told and nvml.nvmlEventSetWait_v2(events, ctypes.byref(event), 0) == 0:
            for gpu in gpus:
                if gpu.handle.value == event.device and "xid" in gpu.seen:
                    gpu.seen["xid"].append(event.data)
    line = json.dumps({"event": "watched", "gpus": {gpu.address: gpu.told() for gpu in gpus}})
    os.write(int(arguments[1]), (line + "\n" + json.dumps({"event": "end"}) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
