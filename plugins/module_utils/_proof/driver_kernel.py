# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to gpufleet.workstation: a kernel on every GPU through libcuda alone, without torch.

Tells a broken driver from a wrong wheel. The runner sends this file's source to a Python without site-packages, as an
unprivileged user, and kills it at a limit: libcuda and NVML can hang. Arguments: the request as JSON, the descriptor
for records (JSON, one a line), the descriptor on which the runner says which of the reported GPUs to use. Standard
library only, Python 3.9.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
import time
from array import array
from functools import partial

TYPE_CHECKING = False  # the import of typing takes milliseconds, which the proof of a driver can do without
if TYPE_CHECKING:
    from typing import Any, Callable

# PTX 6.0 for compute capability 5.0: every driver and GPU of the knowledge base assembles it for itself. The low 32
# bits of integer arithmetic are exact, so that the result is right or wrong and never nearly right.
PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry blend(.param .u64 left, .param .u64 right, .param .u64 out, .param .u32 count)
{
    .reg .pred %p;
    .reg .b32 %r<9>;
    .reg .b64 %a<8>;
    ld.param.u64 %a1, [left];
    ld.param.u64 %a2, [right];
    ld.param.u64 %a3, [out];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p, %r5, %r1;
    @%p bra done;
    cvta.to.global.u64 %a1, %a1;
    cvta.to.global.u64 %a2, %a2;
    cvta.to.global.u64 %a3, %a3;
    mul.wide.u32 %a4, %r5, 4;
    add.s64 %a5, %a1, %a4;
    add.s64 %a6, %a2, %a4;
    add.s64 %a7, %a3, %a4;
    ld.global.u32 %r6, [%a5];
    ld.global.u32 %r7, [%a6];
    mad.lo.u32 %r8, %r6, %r7, %r5;
    st.global.u32 [%a7], %r8;
done:
    ret;
}
\x00"""
COUNT = 8191  # prime: the last block is never full
BLOCK = 32  # a warp each: more blocks than GPUs have multiprocessors
WORD = 0xFFFFFFFF


class CudaError(Exception):
    """A call of the driver answered with an error code."""

    def __init__(self, call: str, number: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({number})")
        self.number = number


class Cuda:
    """libcuda.so.1; every call raises CudaError unless it succeeds."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")

    def __call__(self, name: str, *arguments: Any) -> None:
        number = getattr(self.library, name)(*arguments)
        if number:
            text = ctypes.c_char_p()
            self.library.cuGetErrorName(number, ctypes.byref(text))
            raise CudaError(name, number, (text.value or b"unknown error").decode())


class Records:
    """Writes records, one JSON document a line; safe to share between threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, **record: Any) -> None:
        data = (json.dumps(record) + "\n").encode()
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def check(self, name: str, function: Callable[[], str], gpu: str | None = None) -> bool:
        self.write(event="begin", id=name, gpu=gpu)
        started = time.perf_counter()
        record: dict[str, Any] = {"status": "failed"}
        try:
            record = {"status": "passed", "evidence": function()}
        except CudaError as error:
            record.update(evidence=str(error), error={"type": "CudaError", "number": error.number})
        except ArithmeticError as error:
            record.update(evidence=str(error), code="wrong_result")
        except OSError as error:  # libcuda does not load
            record.update(evidence=str(error), error={"type": "OSError", "number": None})
        self.write(event="check", id=name, gpu=gpu, ms=round((time.perf_counter() - started) * 1000, 1), **record)
        return record["status"] == "passed"


# ---- who uses the GPUs ----------------------------------------------------------------------------------------------


class NvmlPci(ctypes.Structure):
    _fields_ = [
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    ]


class NvmlProcess(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used_memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


def ask_nvml(told: dict[str, Any]) -> None:
    """Collect under `gpus` by PCI address {processes, compute_mode, mig, instances}, and under `errors` what it could not reach.

    `processes` are those with a compute context, None where the driver does not tell (WSL). What it lacks is left out.
    """
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    number = nvml.nvmlInit_v2()
    if number:
        told["errors"].append(number)
        raise OSError(f"NVML does not start: error {number}")
    count = ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for index in range(count.value):
        handle, pci = ctypes.c_void_p(), NvmlPci()
        number = nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        number = number or nvml.nvmlDeviceGetPciInfo_v3(handle, ctypes.byref(pci))
        if number:
            told["errors"].append(number)
            continue
        about: dict[str, Any] = {"processes": compute_processes(nvml, handle)}
        told["gpus"][f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"] = about
        about.update(modes(nvml, handle))
    nvml.nvmlShutdown()  # now, while CUDA starts, and not when the process ends: that takes as long as this


def compute_processes(nvml: Any, handle: ctypes.c_void_p) -> list[int] | None:
    processes = (NvmlProcess * 256)()
    size = ctypes.c_uint(len(processes))
    number = nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(size), processes)
    return None if number else [process.pid for process in processes[: size.value]]


def modes(nvml: Any, handle: ctypes.c_void_p) -> dict[str, Any]:
    """Who may compute on the GPU, and whether it is parted."""

    def asked(name: str, *arguments: Any) -> bool:
        function = getattr(nvml, name, None)
        return function is not None and function(handle, *arguments) == 0

    mode, mig, later, most, part = (*(ctypes.c_uint() for _value in range(4)), ctypes.c_void_p())
    told: dict[str, Any] = {}
    if asked("nvmlDeviceGetComputeMode", ctypes.byref(mode)):
        told["compute_mode"] = mode.value
    if asked("nvmlDeviceGetMigMode", ctypes.byref(mig), ctypes.byref(later)):
        told["mig"] = bool(mig.value)
    if mig.value and asked("nvmlDeviceGetMaxMigDeviceCount", ctypes.byref(most)):
        parts = range(most.value)
        told["instances"] = sum(asked("nvmlDeviceGetMigDeviceHandleByIndex", at, ctypes.byref(part)) for at in parts)
    return told


# ---- why CUDA does not start ----------------------------------------------------------------------------------------


def loaded_libcuda() -> str | None:
    """The file that is mapped as libcuda, its links followed."""
    with open("/proc/self/maps", errors="replace") as maps:
        paths = [line[line.index("/") :].rstrip("\n") for line in maps if "/libcuda.so" in line]
    return paths[0] if paths else None


def opened_nodes(folder: str) -> dict[str, int]:
    """How opening each device node that CUDA needs ends for this account: 0, or the error's number."""
    names = [name for name in os.listdir(folder) if re.fullmatch(r"nvidia\d+|dxg", name)]
    found = {}
    for name in ["dxg"] if "dxg" in names else ["nvidiactl", "nvidia-uvm", *sorted(names)]:
        try:
            os.close(os.open(f"{folder}/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            found[f"/dev/{name}"] = 0
        except OSError as error:
            found[f"/dev/{name}"] = error.errno or 0
    return found


# ---- the kernel -----------------------------------------------------------------------------------------------------


def describe(cuda: Cuda, index: int) -> dict[str, Any]:
    """One GPU as libcuda shows it."""
    device = ctypes.c_int()
    cuda("cuDeviceGet", ctypes.byref(device), index)
    values = []
    for attribute in (75, 76, 50, 33, 34):  # compute capability major, minor; PCI domain, bus, device
        value = ctypes.c_int()
        cuda("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        values.append(value.value)
    name = ctypes.create_string_buffer(256)
    cuda("cuDeviceGetName", name, len(name), device)
    raw = (ctypes.c_ubyte * 16)()
    cuda("cuDeviceGetUuid_v2", raw, device)
    digits = bytes(raw).hex()
    return {
        "index": index,
        "name": name.value.decode(errors="replace"),
        "sm": f"sm_{values[0]}{values[1]}",
        "pci_address": f"{values[2]:04x}:{values[3]:02x}:{values[4]:02x}.0",
        "uuid": "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])),
    }


def make_words() -> tuple[array[int], array[int], array[int]]:
    """Two inputs in which every bit changes, and what the kernel makes of them."""
    left = array("I", ((i * 2654435761 + 12345) & WORD for i in range(COUNT)))
    right = array("I", ((i * 40503 + 977) & WORD for i in range(COUNT)))
    return left, right, array("I", ((x * y + i) & WORD for i, (x, y) in enumerate(zip(left, right))))


def run_kernel(cuda: Cuda, index: int, words: tuple[array[int], array[int], array[int]]) -> str:
    """Compile, run and compare on one GPU, in a context of its own."""
    left, right, expected = words
    device, context = ctypes.c_int(), ctypes.c_void_p()
    cuda("cuDeviceGet", ctypes.byref(device), index)
    cuda("cuCtxCreate_v2", ctypes.byref(context), 0, device)
    try:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        cuda("cuModuleLoadData", ctypes.byref(module), PTX)
        cuda("cuModuleGetFunction", ctypes.byref(function), module, b"blend")
        size = COUNT * 4
        pointers = [ctypes.c_uint64() for _buffer in range(3)]
        for pointer in pointers:
            cuda("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        for pointer, data in zip(pointers, (left, right)):
            cuda("cuMemcpyHtoD_v2", pointer, ctypes.c_void_p(data.buffer_info()[0]), ctypes.c_size_t(size))
        cuda("cuMemsetD32_v2", pointers[2], ctypes.c_uint(0xDEADBEEF), ctypes.c_size_t(COUNT))
        parameters = [*pointers, ctypes.c_uint(COUNT)]
        addresses = (ctypes.c_void_p * len(parameters))(*(ctypes.addressof(parameter) for parameter in parameters))
        blocks = (COUNT + BLOCK - 1) // BLOCK
        cuda("cuLaunchKernel", function, blocks, 1, 1, BLOCK, 1, 1, 0, None, addresses, None)
        cuda("cuCtxSynchronize")
        out = array("I", bytes(size))
        cuda("cuMemcpyDtoH_v2", ctypes.c_void_p(out.buffer_info()[0]), pointers[2], ctypes.c_size_t(size))
    finally:
        cuda.library.cuCtxDestroy_v2(context)  # after an error it fails as well, and would hide the first error
    if out != expected:
        wrong = [i for i, (is_now, must_be) in enumerate(zip(out, expected)) if is_now != must_be]
        at = wrong[0]
        raise ArithmeticError(
            f"{len(wrong)} of {COUNT} values are wrong, for example value {at} is {out[at]}, expected {expected[at]}"
        )
    return f"a kernel compiled by the driver computed {COUNT} values exactly"


def main(arguments: list[str]) -> None:
    records = Records(int(arguments[1]))
    told: dict[str, Any] = {"gpus": {}, "errors": []}

    words: list[tuple[array[int], array[int], array[int]]] = []

    def prepare() -> None:
        try:
            ask_nvml(told)
        except (OSError, AttributeError) as error:  # no NVML, or one too old to tell: libcuda's own error says more
            told["error"] = str(error)
        records.write(event="nvml", **told)
        words.append(make_words())

    meanwhile = threading.Thread(target=prepare)  # while CUDA starts, which takes longer
    cuda: list[Cuda] = []
    gpus: list[dict[str, Any]] = []
    version = ctypes.c_int()

    def start() -> str:
        cuda.append(Cuda())
        cuda[0]("cuInit", 0)
        cuda[0]("cuDriverGetVersion", ctypes.byref(version))
        count = ctypes.c_int()
        cuda[0]("cuDeviceGetCount", ctypes.byref(count))
        gpus.extend(describe(cuda[0], index) for index in range(count.value))
        return f"libcuda speaks CUDA {version.value // 1000}.{version.value % 1000 // 10} and sees {len(gpus)} GPUs"

    def start_both() -> str:
        meanwhile.start()
        try:
            return start()
        finally:
            meanwhile.join()

    if not records.check("driver.init", start_both):
        records.write(
            event="around",
            libcuda=loaded_libcuda(),
            nodes=opened_nodes(json.loads(arguments[0]).get("devices", "/dev")),
        )
        records.write(event="end")
        return
    for gpu in gpus:
        gpu["processes"] = told["gpus"].get(gpu["pci_address"], {}).get("processes")
    records.write(event="gpus", gpus=gpus)
    with os.fdopen(int(arguments[2])) as control:
        chosen = json.loads(control.readline() or "{}").get("gpus") or []
    threads = []
    for gpu in gpus:
        if gpu["pci_address"] not in chosen:
            continue
        check = ("gpu.driver_kernel", partial(run_kernel, cuda[0], gpu["index"], words[0]), gpu["pci_address"])
        threads.append(threading.Thread(target=records.check, args=check))
        threads[-1].start()
    for thread in threads:
        thread.join()
    records.write(event="end")


if __name__ == "__main__":
    main(sys.argv[1:])
