# Copyright: the gpufleet.workstation maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to the collection. What the CUDA driver library says, without a context. Runs in a child process only.

Function names, attribute numbers and structures: cuda.h. Variables that choose, hide or inject (CUDA_VISIBLE_DEVICES,
CUDA_INJECTION64_PATH and so on) belong to whoever started the play, not to the host, so the child drops them.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from .driver import EXTRA_LIBRARY_FOLDERS
from .host import MIB, Host, Unreadable

LIBRARIES = ("libcuda.so.1", *(f"{folder}/libcuda.so.1" for folder in EXTRA_LIBRARY_FOLDERS))

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_PCI_BUS, _PCI_DEVICE, _PCI_DOMAIN = 33, 34, 50  # CU_DEVICE_ATTRIBUTE_PCI_*
_TEXT = 256


class _Uuid(ctypes.Structure):
    _fields_ = [("octets", ctypes.c_ubyte * 16)]


class _Cuda:
    def __init__(self, library: Any) -> None:
        self._library = library

    def code(self, name: str, *arguments: Any) -> int:
        return getattr(self._library, name)(*arguments)

    def call(self, name: str, *arguments: Any) -> None:
        code = self.code(name, *arguments)
        if code != 0:
            raise Unreadable(f"{name} failed with {code} ({self.words(code)})")

    def words(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(text)) != 0 or not text.value:
            return "no name for it in this driver"
        return text.value.decode("utf-8", "replace")

    def number(self, name: str, *after: Any) -> int:
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *after)
        return value.value

    def attribute(self, attribute: int, device: ctypes.c_int) -> int:
        return self.number("cuDeviceGetAttribute", ctypes.c_int(attribute), device)

    def uuid(self, device: ctypes.c_int) -> str:
        value = _Uuid()
        name = "cuDeviceGetUuid_v2" if hasattr(self._library, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"
        self.call(name, ctypes.byref(value), device)
        digits = bytes(value.octets).hex()
        return f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def read(host: Host) -> dict[str, Any]:
    """Return {result, error, cuda_version, gpus}; ``result`` is what cuInit said, 0 for success."""
    for name in [name for name in os.environ if name.startswith("CUDA_")]:
        del os.environ[name]
    cuda = _Cuda(host.load_library(LIBRARIES))
    number = cuda.number("cuDriverGetVersion")  # allowed before cuInit
    found: dict[str, Any] = {"cuda_version": f"{number // 1000}.{number % 1000 // 10}" if number else None, "gpus": []}
    code = cuda.code("cuInit", ctypes.c_uint(0))
    if code != 0:
        return {"result": code, "error": f"cuInit failed with {code} ({cuda.words(code)})", **found}
    found["gpus"] = [_gpu(cuda, ordinal) for ordinal in range(cuda.number("cuDeviceGetCount"))]
    return {"result": 0, "error": None, **found}


def _gpu(cuda: _Cuda, ordinal: int) -> dict[str, Any]:
    device = ctypes.c_int()
    cuda.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
    name = ctypes.create_string_buffer(_TEXT)
    cuda.call("cuDeviceGetName", name, ctypes.c_int(_TEXT), device)
    memory = ctypes.c_size_t()
    cuda.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    bus, slot, domain = (cuda.attribute(number, device) for number in (_PCI_BUS, _PCI_DEVICE, _PCI_DOMAIN))
    return {
        "pci_address": f"{domain:04x}:{bus:02x}:{slot:02x}.0",
        "name": name.value.decode("utf-8", "replace"),
        "uuid": cuda.uuid(device),
        "compute_capability": f"{cuda.attribute(_MAJOR, device)}.{cuda.attribute(_MINOR, device)}",
        "memory_mib": memory.value // MIB,
    }
